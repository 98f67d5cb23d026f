"""Slow definitions of the face model's formulas, in float64 numpy, one vertex or triangle at a time."""

import numpy as np
import torch

from sgpn_arch.face3d.morphable_model import MorphableModel


def linear_combination(mean, basis, coefficients):
    """mean (V, 3) + sum over modes m and vertices v of coefficients[m] * basis[m, v]."""
    result = np.asarray(mean, float).copy()
    for mode, coefficient in enumerate(coefficients):
        for vertex in range(len(result)):
            for axis in range(3):
                result[vertex, axis] += float(coefficient) * float(basis[mode][vertex][axis])
    return result


def vertex_normals(vertices, triangles):
    """(V, 3): each triangle adds its normal, times its area, to its three corners; then unit length."""
    vertices = np.asarray(vertices, float)
    total = np.zeros_like(vertices)
    for triangle in triangles:
        a, b, c = (vertices[int(i)] for i in triangle)
        (ux, uy, uz), (vx, vy, vz) = b - a, c - a
        normal = np.array([uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx])
        for i in triangle:
            total[int(i)] += normal
    return np.array([n / max(np.sqrt((n**2).sum()), 1e-12) for n in total])


def pinhole(point, focal=1015.0, size=224, distance=10.0):
    """Continuous pixel of one point that a camera at (0, 0, distance) sees, looking down -z."""
    x, y, z = (float(value) for value in point)
    return np.array([size / 2 + focal * x / (distance - z), size / 2 - focal * y / (distance - z)])


def toy_model(seed=0, side=9, dims=(3, 2, 2), name="toy"):
    """A bulging square patch, about a face's size, facing +z, with random bases and landmarks."""
    rng = np.random.default_rng(seed)
    axis = np.linspace(-0.8, 0.8, side)
    x, y = (grid.ravel() for grid in np.meshgrid(axis, axis))
    mean = np.stack([x, y, 0.6 - 0.5 * (x**2 + y**2)], 1)
    corner = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).reshape(-1, 1)
    triangles = np.concatenate([corner + [0, 1, side + 1], corner + [0, side + 1, side]])
    values = {
        "shape_mean": mean,
        "tex_mean": rng.uniform(0.3, 0.6, mean.shape),
        "triangles": triangles,
        "landmarks": rng.permutation(len(mean))[:68],
    }
    for key, count in zip(("id_basis", "exp_basis", "tex_basis"), dims, strict=True):
        values[key] = 0.03 * rng.normal(size=(count, *mean.shape))
    return MorphableModel(**{key: torch.tensor(value) for key, value in values.items()}, name=name)
