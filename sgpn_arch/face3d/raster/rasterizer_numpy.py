"""The rasteriser in NumPy, where neither PyTorch nor numba is installed or worth its start: it sees what `rasterizer.py` defines.

As in `visibility.py`, every pixel centre within a triangle's bounding box is one row of a table.
"""

import numpy as np

# Two depths that differ by less than this fraction are a tie, which the triangle with the lower index wins.
# It lies far above the rounding of float64 and far below that of float32 depths.
TIE = 1e-10


def draw(
    points: np.ndarray, depth: np.ndarray, colors: np.ndarray, triangles: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Draws one mesh: the picture and the mask of :meth:`sgpn_arch.face3d.shape_prior.ShapePrior.render224`.

    Args:
        points: (V, 2) continuous pixels. depth: (V,). colors: (V, 3) RGB. triangles: (F, 3) integers. size: (height, width).

    Returns:
        (4, height, width) float32: RGB clamped to 0..1, black outside, and the mask, 0 or 1.
    """
    height, width = size
    image = np.zeros((height * width, 4), np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1 / depth.astype(np.float64)
        drawn = np.isfinite(points).all(1) & (depth > 0) & np.isfinite(inverse) & (inverse > 0)
    faces = triangles[drawn[triangles].all(1)]
    x, y = (np.ascontiguousarray(points[:, axis].astype(np.float64)[faces].T) for axis in (0, 1))  # (3, F)
    triangle, column, row = _pixels(x, y, size)
    areas = _areas(x.take(triangle, 1) - (column + 0.5), y.take(triangle, 1) - (row + 0.5))
    hit = np.flatnonzero((areas.min(0) >= 0) | (areas.max(0) <= 0))
    areas, triangle, pixel = areas[:, hit], triangle[hit], (row * width + column)[hit]
    weights = areas * inverse[faces].T.take(triangle, 1)
    total = weights.sum(0)
    with np.errstate(invalid="ignore"):
        near = _nearest(pixel, np.where(total != 0, total / areas.sum(0), 0), height * width)
    weights, pixel = (weights[:, near] / total[near]).astype(np.float32), pixel[near]
    image[pixel, :3] = np.clip(np.einsum("cp,pcd->pd", weights, colors[faces[triangle[near]]]), 0, 1)
    image[pixel, 3] = 1
    return np.ascontiguousarray(image.T.reshape(4, height, width))


def _areas(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(3, P) twice the signed areas opposite the corners (3, P), which are seen from the pixels' centres.

    Written so, the two triangles at an edge agree on the side that a centre lies on.
    """
    (ax, bx, cx), (ay, by, cy) = x, y
    return np.stack([bx * cy - by * cx, cx * ay - cy * ax, ax * by - ay * bx])


def _pixels(x: np.ndarray, y: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixels whose centres lie in the bounding boxes of triangles (3, F): triangle, column and row of each, (P,)."""
    left, right = _range(x, size[1])
    top, bottom = _range(y, size[0])
    across = np.maximum(right - left + 1, 0)
    counts = across * np.maximum(bottom - top + 1, 0)
    triangle = np.repeat(np.arange(len(counts)), counts)
    rank = np.arange(len(triangle)) - np.repeat(np.cumsum(counts) - counts, counts)
    below = rank // across[triangle]
    return triangle, left[triangle] + rank - below * across[triangle], top[triangle] + below


def _range(corners: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last pixel whose centres may lie between corners (3, F), within the image."""
    first = np.clip(np.ceil(corners.min(0) - 0.5), 0, length)
    last = np.clip(np.floor(corners.max(0) - 0.5), -1, length - 1)
    return first.astype(np.int64), last.astype(np.int64)


def _nearest(pixel: np.ndarray, here: np.ndarray, pixels: int) -> np.ndarray:
    """The row of each pixel that is nearest, by inverse depth > 0; rows are in the triangles' order, and the first wins a tie."""
    best = np.zeros(pixels)
    np.maximum.at(best, pixel, here)
    won = np.flatnonzero((here * (1 + TIE) >= best[pixel]) & (here > 0))
    first = np.full(pixels, -1)
    first[pixel[won[::-1]]] = won[::-1]  # of several, the last that is written stays
    return first[first >= 0]
