"""Slow rasterisers to compare with: every triangle is tested at every pixel centre, in float64 or in exact fractions."""

from fractions import Fraction
from itertools import product
from math import isfinite

import numpy as np


def rasterize(points, depth, triangles, size):
    """One mesh: points (V, 2), depth (V,), triangles (F, 3) -> ids (H, W), barycentrics (H, W, 3), depth (H, W).

    Solves, for each triangle, the 3x3 system whose unknowns are the barycentric coordinates of all pixel centres.
    """
    rows, columns = np.indices(size)
    centres = np.stack([columns + 0.5, rows + 0.5, np.ones(size)]).reshape(3, -1)
    ids, nearest = np.full(centres.shape[1], -1), np.full(centres.shape[1], np.inf)
    barycentrics = np.zeros((centres.shape[1], 3))
    for index, triangle in enumerate(triangles):
        corners, z = points[triangle].astype(np.float64), depth[triangle].astype(np.float64)
        system = np.vstack([corners.T, np.ones(3)])
        if not (np.isfinite(system).all() and np.isfinite(z).all() and (z > 0).all()):
            continue
        if abs(np.linalg.det(system)) < 1e-12:
            continue
        weights = np.linalg.solve(system, centres)
        with np.errstate(divide="ignore"):
            here = 1 / (weights / z[:, None]).sum(0)
        won = (weights >= 0).all(0) & (here < nearest * (1 - 1e-9))
        ids[won], nearest[won] = index, here[won]
        barycentrics[won] = (weights / z[:, None] * here)[:, won].T
    return ids.reshape(size), barycentrics.reshape(*size, 3), np.where(ids >= 0, nearest, 0).reshape(size)


# Depths that differ by less than this fraction are equal, by the definition of the rasteriser.
TIE = Fraction(1, 10**10)


def rasterize_exactly(points, depth, triangles, size):
    """As `rasterize`, from lists of Python floats and without any rounding, so that edges and ties are decided truly."""
    ids, barycentrics, pixel_depth = np.full(size, -1), np.zeros((*size, 3)), np.zeros(size)
    for row, column in product(*map(range, size)):
        nearest, centre = None, (column + Fraction(1, 2), row + Fraction(1, 2))
        for index, triangle in enumerate(triangles):
            found = _at([points[i] for i in triangle], [depth[i] for i in triangle], centre)
            if found and (nearest is None or found[1] * (1 + TIE) < nearest):  # equally near: the first stays
                nearest = found[1]
                ids[row, column], barycentrics[row, column], pixel_depth[row, column] = index, *found
    return ids, barycentrics, pixel_depth


def _at(corners, depth, centre):
    """Perspective-correct weights and depth of one triangle at a point, or None where it is not to be seen."""
    if not all(map(isfinite, (*depth, *(value for corner in corners for value in corner)))) or min(depth) <= 0:
        return None
    a, b, c = ([Fraction(value) for value in corner] for corner in corners)
    whole = _cross(a, b, c)
    if whole == 0:
        return None
    weights = [_cross(b, c, centre) / whole, _cross(c, a, centre) / whole, _cross(a, b, centre) / whole]
    if min(weights) < 0:
        return None
    here = 1 / sum(w / Fraction(z) for w, z in zip(weights, depth, strict=True))
    return [float(w * here / Fraction(z)) for w, z in zip(weights, depth, strict=True)], here


def _cross(a, b, c):
    """Twice the signed area of the triangle a, b, c."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
