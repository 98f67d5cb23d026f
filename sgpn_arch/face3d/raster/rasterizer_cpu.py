"""The rasteriser's loops for the CPU, compiled by numba: drawing and interpolation, each with its gradient.

Import this module only where it is used: numba takes a while to load. Arguments are C-contiguous numpy arrays, of
either float precision, and outputs are written in place; `rasterizer.py` says what they mean. Arithmetic is float64.
"""

import numpy as np

from sgpn_arch.face3d.numba_loops import compiled
from sgpn_arch.face3d.raster.rasterizer_numpy import TIE


@compiled
def _inverse_depth(points, depth):
    """1 / depth of each vertex, or 0 for one that cannot be drawn."""
    inverse = np.zeros(len(depth))
    for i in range(len(depth)):
        if np.isfinite(points[i, 0]) and np.isfinite(points[i, 1]) and depth[i] > 0:
            inverse[i] = 1 / np.float64(depth[i])
        if not np.isfinite(inverse[i]):
            inverse[i] = 0
    return inverse


@compiled
def _pixel_range(a, b, c, length):
    """First and last pixel whose centre may lie between three coordinates, clipped to the image."""
    first = max(np.ceil(min(a, b, c) - 0.5), 0.0)
    last = min(np.floor(max(a, b, c) - 0.5), length - 1.0)
    return int(min(first, length)), int(max(last, -1.0))


@compiled
def _areas(ax, ay, bx, by, cx, cy):
    """Twice the signed areas between the origin and the edges opposite a, b and c.

    An area changes only its sign, never a bit, when the ends of its edge change places. So the two triangles
    at an edge agree on the side a pixel centre lies on, and one of them has it.
    """
    return bx * cy - by * cx, cx * ay - cy * ax, ax * by - ay * bx


@compiled
def draw(points, depth, triangles, triangle_ids, barycentrics, pixel_depth):
    """Draw one mesh, points (V, 2), depth (V,), triangles (F, 3), into images, whatever they hold.

    A triangle is inside where all three areas have one sign, whichever it is: both sides are drawn. Where all
    are 0 it has no area. 1/z = sum_i (e_i / z_i) / sum_i e_i decides which one is nearest.
    """
    # Filled here, so that each thread touches its own images' memory first.
    triangle_ids[:], barycentrics[:], pixel_depth[:] = -1, 0, 0
    height, width = triangle_ids.shape
    nearest = np.zeros((height, width))  # 1 / depth
    inverse = _inverse_depth(points, depth)
    for triangle in range(len(triangles)):
        i, j, k = triangles[triangle, 0], triangles[triangle, 1], triangles[triangle, 2]
        ia, ib, ic = inverse[i], inverse[j], inverse[k]
        if ia == 0 or ib == 0 or ic == 0:
            continue
        ax, bx, cx = np.float64(points[i, 0]), np.float64(points[j, 0]), np.float64(points[k, 0])
        left, right = _pixel_range(ax, bx, cx, width)
        if left > right:
            continue
        ay, by, cy = np.float64(points[i, 1]), np.float64(points[j, 1]), np.float64(points[k, 1])
        top, bottom = _pixel_range(ay, by, cy, height)
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                u, v = x + 0.5, y + 0.5
                ea, eb, ec = _areas(ax - u, ay - v, bx - u, by - v, cx - u, cy - v)
                if not ((ea >= 0 and eb >= 0 and ec >= 0) or (ea <= 0 and eb <= 0 and ec <= 0)):
                    continue
                wa, wb, wc = ea * ia, eb * ib, ec * ic
                total = wa + wb + wc
                if total == 0:
                    continue
                here = total / (ea + eb + ec)
                if here > nearest[y, x] * (1 + TIE):
                    nearest[y, x] = here
                    triangle_ids[y, x] = triangle
                    pixel_depth[y, x] = 1 / here
                    barycentrics[y, x, 0] = wa / total
                    barycentrics[y, x, 1] = wb / total
                    barycentrics[y, x, 2] = wc / total


@compiled
def draw_backward(points, depth, triangles, triangle_ids, grad_barycentrics, grad_depth, grad_points, grad_z):
    """Add one drawing's gradients to grad_points (V, 2) and grad_z (V,).

    With e the areas, w = e / z, s = sum w, b = w / s, depth d = sum e / s, and gb, gd the gradients given:
    dL/dw_i = (gb_i - sum_j gb_j b_j - gd d) / s,  dL/de_i = dL/dw_i / z_i + gd / s,
    dL/dz_i = -dL/dw_i w_i / z_i.
    """
    height, width = triangle_ids.shape
    for y in range(height):
        for x in range(width):
            if triangle_ids[y, x] < 0:
                continue
            corners = triangles[triangle_ids[y, x]]
            i, j, k = corners[0], corners[1], corners[2]
            u, v = x + 0.5, y + 0.5
            ax, bx, cx = points[i, 0] - u, points[j, 0] - u, points[k, 0] - u
            ay, by, cy = points[i, 1] - v, points[j, 1] - v, points[k, 1] - v
            ia, ib, ic = 1 / np.float64(depth[i]), 1 / np.float64(depth[j]), 1 / np.float64(depth[k])
            ea, eb, ec = _areas(ax, ay, bx, by, cx, cy)
            wa, wb, wc = ea * ia, eb * ib, ec * ic
            scale = 1 / (wa + wb + wc)
            ga, gb, gc = grad_barycentrics[y, x, 0], grad_barycentrics[y, x, 1], grad_barycentrics[y, x, 2]
            gd = grad_depth[y, x]
            common = (ga * wa + gb * wb + gc * wc + gd * (ea + eb + ec)) * scale
            ga, gb, gc = (ga - common) * scale, (gb - common) * scale, (gc - common) * scale
            grad_z[i] -= ga * wa * ia
            grad_z[j] -= gb * wb * ib
            grad_z[k] -= gc * wc * ic
            ga, gb, gc = ga * ia + gd * scale, gb * ib + gd * scale, gc * ic + gd * scale
            grad_points[i, 0] += gc * by - gb * cy
            grad_points[i, 1] += gb * cx - gc * bx
            grad_points[j, 0] += ga * cy - gc * ay
            grad_points[j, 1] += gc * ax - ga * cx
            grad_points[k, 0] += gb * ay - ga * by
            grad_points[k, 1] += ga * bx - gb * ax


@compiled
def blend(attributes, triangles, triangle_ids, barycentrics, image):
    """Interpolate one mesh's attributes (V, C) into image (H, W, C), whatever it holds."""
    image[:] = 0
    height, width, channels = image.shape
    for y in range(height):
        for x in range(width):
            if triangle_ids[y, x] < 0:
                continue
            corners = triangles[triangle_ids[y, x]]
            for k in range(3):
                weight = barycentrics[y, x, k]
                for c in range(channels):
                    image[y, x, c] += weight * attributes[corners[k], c]


@compiled
def blend_backward(attributes, triangles, triangle_ids, barycentrics, grad_image, grad_table, grad_weights):
    """Add the gradients of `blend` to grad_table (V, C), the attributes', and grad_weights (H, W, 3)."""
    height, width, channels = grad_image.shape
    for y in range(height):
        for x in range(width):
            if triangle_ids[y, x] < 0:
                continue
            corners = triangles[triangle_ids[y, x]]
            for k in range(3):
                weight = barycentrics[y, x, k]
                for c in range(channels):
                    grad_table[corners[k], c] += weight * grad_image[y, x, c]
                    grad_weights[y, x, k] += attributes[corners[k], c] * grad_image[y, x, c]
