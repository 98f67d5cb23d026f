"""Slow definitions of the face model's formulas, in float64 numpy, one vertex or triangle at a time."""

import numpy as np
import torch
from scipy import ndimage

from sgpn_arch.face3d.morphable_model import MorphableModel


def linear_combination(mean, basis, coefficients):
    """mean (V, 3) + sum over modes m and vertices v of coefficients[m] * basis[m, v]."""
    result = np.asarray(mean, float).copy()
    for mode, coefficient in enumerate(coefficients):
        for vertex in range(len(result)):
            for axis in range(3):
                result[vertex, axis] += float(coefficient) * float(basis[mode][vertex][axis])
    return result


def vertex_normals(vertices, triangles, face_normals="area"):
    """(V, 3): each triangle adds its normal, times its area or of unit length, to its three corners; then unit length."""
    vertices = np.asarray(vertices, float)
    total = np.zeros_like(vertices)
    for triangle in triangles:
        a, b, c = (vertices[int(i)] for i in triangle)
        (ux, uy, uz), (vx, vy, vz) = b - a, c - a
        normal = np.array([uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx])
        if face_normals == "unit":
            normal /= np.sqrt((normal**2).sum())
        for i in triangle:
            total[int(i)] += normal
    return np.array([n / max(np.sqrt((n**2).sum()), 1e-12) for n in total])


def pinhole(point, focal=1015.0, size=224, distance=10.0):
    """Continuous pixel of one point that a camera at (0, 0, distance) sees, looking down -z."""
    x, y, z = (float(value) for value in point)
    return np.array([size / 2 + focal * x / (distance - z), size / 2 - focal * y / (distance - z)])


def pose_scale_translation(points2d, points3d):
    """Scale and translation (2,) of a scaled-orthographic camera: least squares on the stacked system of 2K equations.

    The unknowns are the first two rows of the projection, (sR1, tx) and (sR2, ty); the scale is the rows' mean length.
    """
    system = np.zeros((2 * len(points3d), 8))
    for i, point in enumerate(points3d):
        system[2 * i, :4] = system[2 * i + 1, 4:] = [*point, 1]
    solution = np.linalg.lstsq(system, np.asarray(points2d).reshape(-1), rcond=None)[0]
    lengths = [np.sqrt((row**2).sum()) for row in (solution[:3], solution[4:7])]
    return sum(lengths) / 2, solution[[3, 7]]


def warp(image, matrix, size):
    """image (C, H, W) moved by the 2x3 matrix onto (C, size, size): bilinear, and 0 beyond the border, in float64."""
    linear, shift = np.asarray(matrix, float)[:, :2], np.asarray(matrix, float)[:, 2]
    y, x = np.indices((size, size))
    source = np.linalg.solve(linear, np.stack([x, y]).reshape(2, -1) - shift[:, None])[::-1]
    planes = [
        ndimage.map_coordinates(np.asarray(plane, float), source, order=1, mode="grid-constant", cval=0)
        for plane in image
    ]
    return np.reshape(planes, (-1, size, size))


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
