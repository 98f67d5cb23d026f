"""A slow rasteriser to compare with: every triangle is tested at every pixel centre, in float64 numpy."""

import numpy as np


def plane_weights(corners, centre):
    """Screen-space barycentric coordinates (3,) of `centre`, by solving a linear system; None where there is none."""
    system = np.vstack([corners.T, np.ones(3)])
    if abs(np.linalg.det(system)) < 1e-12:
        return None
    return np.linalg.solve(system, np.append(centre, 1.0))


def rasterize(points, depth, triangles, size, edge=0.0):
    """One mesh: points (V, 2), depth (V,), triangles (F, 3) -> ids (H, W), barycentrics (H, W, 3), depth (H, W).

    `edge` widens each triangle by that much in barycentric units, for centres that lie exactly on edges.
    """
    height, width = size
    ids = np.full(size, -1)
    barycentrics, nearest = np.zeros((height, width, 3)), np.full(size, np.inf)
    for index, triangle in enumerate(triangles):
        corners, z = points[triangle].astype(np.float64), depth[triangle].astype(np.float64)
        if not (np.isfinite(corners).all() and np.isfinite(z).all() and (z > 0).all()):
            continue
        for row, column in np.ndindex(height, width):
            weights = plane_weights(corners, np.array([column + 0.5, row + 0.5]))
            if weights is None or weights.min() < -edge:
                continue
            here = 1 / (weights / z).sum()
            if here < nearest[row, column] * (1 - 1e-9):
                ids[row, column], nearest[row, column] = index, here
                barycentrics[row, column] = weights / z * here
    return ids, barycentrics, np.where(ids >= 0, nearest, 0)
