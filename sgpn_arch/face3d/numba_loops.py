"""Loops for the CPU, compiled by numba: how they are compiled and run for several meshes at a time, and those of vertex normals.

Import this module only where loops run: numba takes a while to load. The rasteriser's are in `raster/rasterizer_cpu.py`.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numba
import numpy as np
import torch


def compiled(function: Callable) -> Callable:
    """Compiles a function of numpy arrays on its first call with arguments of new types; it runs without Python's lock.

    Compiled code depends on the arguments' types, never on their sizes. It is kept between runs in ``__pycache__``
    beside the source or, where that cannot be written, in the user's cache folder; ``NUMBA_CACHE_DIR`` names another.
    Where no folder can be written, it is compiled anew in each process.
    """
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # numba found no folder to keep compiled code in, as in a read-only container
        return numba.njit(nogil=True, error_model="numpy")(function)


def for_each(function: Callable, jobs: Iterable[tuple]) -> None:
    """function(*job) for each job, as many at a time as torch has threads.

    A job must write only what no other job reads or writes, so that the result does not depend on the threads.
    """
    jobs = list(jobs)
    workers = min(torch.get_num_threads(), len(jobs))
    if workers < 2:
        for job in jobs:
            function(*job)
        return
    # The calling thread waits, and torch's own threads have nothing to do meanwhile.
    for _ in _pool(torch.get_num_threads()).map(lambda job: function(*job), jobs):
        pass


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="sgpn-mesh")


if hasattr(os, "register_at_fork"):
    # A forked process inherits the pool's object, but not its threads.
    os.register_at_fork(after_in_child=_pool.cache_clear)


# ---- vertex normals and their gradients. Arguments are C-contiguous numpy arrays; `normals.py` says what they mean. Arithmetic
# is float64 whatever the precision of the vertices, and the order of the sums is that of the triangles.

# Shorter vectors are divided by this, as torch.nn.functional.normalize does it.
SHORTEST = 1e-12


@compiled
def _face_normal(vertices, i, j, k):
    """The edges from i to j and from i to k, and their cross product: the normal, as long as twice the area."""
    ux, uy, uz = vertices[j, 0] - vertices[i, 0], vertices[j, 1] - vertices[i, 1], vertices[j, 2] - vertices[i, 2]
    vx, vy, vz = vertices[k, 0] - vertices[i, 0], vertices[k, 1] - vertices[i, 1], vertices[k, 2] - vertices[i, 2]
    return ux, uy, uz, vx, vy, vz, uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx


@compiled
def _sums(vertices, triangles, unit):
    """(V, 3): the sum of the adjoining triangles' normals, each of unit length if `unit`."""
    table = vertices.astype(np.float64)
    sums = np.zeros_like(table)
    for triangle in range(len(triangles)):
        i, j, k = triangles[triangle, 0], triangles[triangle, 1], triangles[triangle, 2]
        _, _, _, _, _, _, x, y, z = _face_normal(table, i, j, k)
        if unit:
            scale = 1 / max(np.sqrt(x * x + y * y + z * z), SHORTEST)
            x, y, z = x * scale, y * scale, z * scale
        for corner in (i, j, k):
            sums[corner, 0] += x
            sums[corner, 1] += y
            sums[corner, 2] += z
    return table, sums


@compiled
def vertex_normals(vertices, triangles, unit, normals):
    """Write the normals (V, 3) of one mesh."""
    _, sums = _sums(vertices, triangles, unit)
    for i in range(len(sums)):
        x, y, z = sums[i, 0], sums[i, 1], sums[i, 2]
        scale = 1 / max(np.sqrt(x * x + y * y + z * z), SHORTEST)
        normals[i, 0], normals[i, 1], normals[i, 2] = x * scale, y * scale, z * scale


@compiled
def _through_normalisation(x, y, z, gx, gy, gz):
    """The gradient of a vector, given that of the vector divided by its length."""
    length = np.sqrt(x * x + y * y + z * z)
    if length < SHORTEST:
        return gx / SHORTEST, gy / SHORTEST, gz / SHORTEST
    along = (x * gx + y * gy + z * gz) / (length * length)
    return (gx - along * x) / length, (gy - along * y) / length, (gz - along * z) / length


@compiled
def vertex_normals_backward(vertices, triangles, unit, grad_normals, grad_vertices):
    """Write the gradient (V, 3) of one mesh's vertices, given that of its normals.

    With the edges u and v of a triangle and its normal n = u x v: dL/du = v x dL/dn and dL/dv = dL/dn x u.
    """
    table, sums = _sums(vertices, triangles, unit)
    found = np.zeros_like(table)
    for i in range(len(sums)):
        gx, gy, gz = np.float64(grad_normals[i, 0]), np.float64(grad_normals[i, 1]), np.float64(grad_normals[i, 2])
        # From here on, `sums` holds its own gradient.
        sums[i, 0], sums[i, 1], sums[i, 2] = _through_normalisation(sums[i, 0], sums[i, 1], sums[i, 2], gx, gy, gz)
    for triangle in range(len(triangles)):
        i, j, k = triangles[triangle, 0], triangles[triangle, 1], triangles[triangle, 2]
        gx = sums[i, 0] + sums[j, 0] + sums[k, 0]
        gy = sums[i, 1] + sums[j, 1] + sums[k, 1]
        gz = sums[i, 2] + sums[j, 2] + sums[k, 2]
        ux, uy, uz, vx, vy, vz, x, y, z = _face_normal(table, i, j, k)
        if unit:
            gx, gy, gz = _through_normalisation(x, y, z, gx, gy, gz)
        jx, jy, jz = vy * gz - vz * gy, vz * gx - vx * gz, vx * gy - vy * gx
        kx, ky, kz = gy * uz - gz * uy, gz * ux - gx * uz, gx * uy - gy * ux
        found[i, 0] -= jx + kx
        found[i, 1] -= jy + ky
        found[i, 2] -= jz + kz
        found[j, 0] += jx
        found[j, 1] += jy
        found[j, 2] += jz
        found[k, 0] += kx
        found[k, 1] += ky
        found[k, 2] += kz
    grad_vertices[:] = found
