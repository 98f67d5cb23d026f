"""Which triangle each pixel sees, in PyTorch operations: for any device, and the same triangles as the compiled loops see.

Every pixel centre within a triangle's bounding box becomes one row of a table; the inside of the triangle, its depth there
and the nearest triangle of each pixel follow from operations over whole tables. No order of execution changes the result.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sgpn_arch.face3d.raster.rasterizer_numpy import TIE

# Rows of the table at a time, some 400 bytes each. Meshes of a face have 70,000 to 180,000 at 224x224.
ROWS = 1 << 21


@torch.no_grad()
def visible_triangles(
    points: Tensor, depth: Tensor, triangles: Tensor, size: tuple[int, int], rows: int = ROWS
) -> Tensor:
    """The nearest triangle at every pixel centre, by the rules of :func:`sgpn_arch.face3d.raster.rasterizer.rasterize`.

    Args:
        points: (N, V, 2) continuous pixels. depth: (N, V). triangles: (F, 3) int64. size: (height, width).
        rows: how many pixels of bounding boxes to look at in one go; it bounds the memory, not the result.

    Returns:
        (N, H, W) int64, -1 where there is none.
    """
    height, width = size
    pixels = len(points) * height * width
    nearest = torch.zeros(pixels, dtype=torch.float64, device=points.device)  # 1 / depth
    seen = torch.full((pixels,), -1, device=points.device)
    if not len(triangles) or not pixels:
        return seen.view(len(points), *size)
    # One row of (x, y, 1 / depth) for each vertex of each mesh.
    x, y, inverse = points[..., 0].double(), points[..., 1].double(), 1 / depth.double()
    drawn = x.isfinite() & y.isfinite() & (depth > 0) & inverse.isfinite() & (inverse > 0)
    vertices = torch.stack([x, y, inverse], 2).masked_fill(~drawn[..., None], 0)
    boxes = _bounding_boxes(vertices, drawn, triangles, size)
    meshes = torch.arange(len(points), device=points.device)[:, None, None]
    corners = (triangles + meshes * points.shape[1]).view(-1, 3)
    vertices = vertices.view(-1, 3)
    for first, last in _portions(boxes[:, 2] * boxes[:, 3], rows):
        triangle, column, row = _pixels_in(boxes[first:last])
        triangle += first
        here = _inverse_depth(vertices[corners[triangle]], column, row)
        hit = here > 0
        triangle, row, column, here = triangle[hit], row[hit], column[hit], here[hit]
        mesh = triangle.div(len(triangles), rounding_mode="floor")
        pixel = (mesh * height + row) * width + column
        _keep_nearest(nearest, seen, pixel, here, triangle - mesh * len(triangles))
    return seen.view(len(points), *size)


def _bounding_boxes(vertices: Tensor, drawn: Tensor, triangles: Tensor, size: tuple[int, int]) -> Tensor:
    """(N * F, 4) int64: left, top, width and height of the pixels whose centres a triangle may hold; of size 0 if none."""
    parts = []
    for axis, length in ((0, size[1]), (1, size[0])):
        corner = vertices[..., axis][:, triangles]
        first = torch.ceil(corner.amin(2) - 0.5).clamp(0, length)
        last = torch.floor(corner.amax(2) - 0.5).clamp(-1, length - 1)
        parts.append((first, (last - first + 1).clamp_min(0)))
    (left, across), (top, down) = parts
    across = across * drawn[:, triangles].all(2)
    return torch.stack([left, top, across, down], 2).view(-1, 4).long()


def _portions(counts: Tensor, rows: int) -> Iterator[tuple[int, int]]:
    """Cuts the triangles, in their order, into pieces of about `rows` pixels: first and one behind last."""
    begin = counts.cumsum(0) - counts
    first = 0
    for length in torch.bincount(begin.div(rows, rounding_mode="floor")).tolist():
        if length:
            yield first, first + length
        first += length


def _pixels_in(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All pixels of the boxes: index of the box, column and row, each (P,)."""
    counts = boxes[:, 2] * boxes[:, 3]
    box = torch.repeat_interleave(torch.arange(len(boxes), device=boxes.device), counts)
    rank = torch.arange(len(box), device=boxes.device) - (counts.cumsum(0) - counts)[box]
    left, top, across, _ = boxes[box].unbind(1)
    down = rank.div(across, rounding_mode="floor")
    return box, left + rank - down * across, top + down


def _inverse_depth(corners: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """1 / depth (P,) of the triangles with corners (P, 3, 3) of (x, y, 1 / depth) at pixel centres; 0 outside."""
    ax, bx, cx = (corners[:, :, 0] - (column + 0.5)[:, None]).unbind(1)
    ay, by, cy = (corners[:, :, 1] - (row + 0.5)[:, None]).unbind(1)
    # Twice the areas opposite the corners. Written so, two triangles at an edge agree on the side a centre lies on.
    areas = torch.stack([bx * cy - by * cx, cx * ay - cy * ax, ax * by - ay * bx], 1)
    inside = (areas >= 0).all(1) | (areas <= 0).all(1)
    weighted = (areas * corners[:, :, 2]).sum(1)
    return torch.where(inside & (weighted != 0), weighted / areas.sum(1), 0)


def _keep_nearest(nearest: Tensor, seen: Tensor, pixel: Tensor, here: Tensor, triangle: Tensor) -> None:
    """Enters triangles, later ones than those entered so far, where they are nearer; the lowest index wins a tie."""
    best = torch.zeros_like(nearest).scatter_reduce_(0, pixel, here, "amax")
    won = here * (1 + TIE) >= best[pixel]
    index = torch.full_like(seen, torch.iinfo(seen.dtype).max)
    index.scatter_reduce_(0, pixel[won], triangle[won], "amin")
    nearer = best > nearest * (1 + TIE)
    nearest[nearer], seen[nearer] = best[nearer], index[nearer]
