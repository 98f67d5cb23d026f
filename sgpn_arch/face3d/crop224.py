"""The similarity that moves a face crop onto the regressor's 224x224 image and back, and the warp that applies it."""

import torch
from torch import Tensor
from torch.nn import functional as F

TARGET_SCALE = 102.0


def pose_scale_translation(points2d: Tensor, points3d: Tensor, solver: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scaled-orthographic pose ("POS") by linear least squares: p2d ~ s R p3d + t.

    Each image axis is a linear function of (X, Y, Z, 1); the scale is the mean length of the two axes' rows.

    Args:
        points2d: (N, K, 2) pixels. points3d: (K, 3), K >= 4, not coplanar for K = 4.
        solver: of :func:`pose_solver` for points3d, where it is at hand.

    Returns:
        scale (N,) in pixels per unit of points3d, translation (N, 2): the pixel where the 3D origin falls.
    """
    solver = pose_solver(points3d) if solver is None else solver
    solution = solver.to(points2d) @ points2d  # (N, 4, 2)
    return solution[:, :3].norm(dim=1).mean(1), solution[:, 3]


def pose_solver(points3d: Tensor) -> Tensor:
    """(K, 3) -> (4, K) float64, the pseudo-inverse that takes these points' pixels to the least-squares solution."""
    return torch.linalg.pinv(_precisely(torch.cat([points3d, torch.ones_like(points3d[:, :1])], dim=1)))


def _precisely(points: Tensor) -> Tensor:
    """In float64, on the CPU where the device has no such numbers."""
    return (points.cpu() if points.device.type == "mps" else points).double()


def crop_to_224(points5: Tensor, reference5: Tensor, size: int = 224, solver: Tensor | None = None) -> Tensor:
    """The matrix (N, 2, 3) that brings a crop to the regressor's image, OpenCV pixels to OpenCV pixels.

    The face is scaled so that one decimetre measures 102 px and the model's origin falls on pixel size / 2; no
    rotation is removed (the regressor finds it). That is half a pixel right and below of where the camera sees the
    origin; the regressor, trained with the same map, makes up for it.

    Args:
        points5: (N, 5, 2) pixels in the crop. reference5: (5, 3) the same points on the model, decimetres.
        size: of the regressor's image. solver: see :func:`pose_scale_translation`.
    """
    scale, centre = pose_scale_translation(points5, reference5, solver)
    zoom = TARGET_SCALE / scale.clamp_min(1e-6)
    return _zoom_about(zoom, centre, torch.full_like(centre, size / 2))


def released_crop_to_224(
    points5: Tensor, reference5: Tensor, crop_size: int, size: int = 224, solver: Tensor | None = None
) -> Tensor:
    """As :func:`crop_to_224`, with the roundings of the authors' code, which their weights were trained with.

    There the crop is thought of as resized to a whole number of pixels, so that the origin falls up to half a pixel to the
    right; and rows are counted from below, so that it falls as much, and one pixel more, above. The authors then fit a
    similarity transform to points that were moved by exactly this map, which gives the map back.

    Args:
        points5, reference5, size, solver: as there. crop_size: height and width of the crop, pixels.
    """
    scale, centre = pose_scale_translation(_precisely(points5), _precisely(reference5), solver)
    zoom = TARGET_SCALE / scale.clamp_min(1e-6)
    cut_off = (zoom * crop_size - torch.floor(zoom * crop_size)) / 2
    origin = torch.stack([size / 2 + cut_off, size / 2 - 1 - cut_off], dim=1)
    return _zoom_about(zoom, centre, origin).to(points5)


def _zoom_about(zoom: Tensor, centre: Tensor, origin: Tensor) -> Tensor:
    """The matrix (N, 2, 3) that enlarges by zoom (N,) and moves the point centre (N, 2) to origin (N, 2)."""
    offset = origin - zoom[:, None] * centre
    linear = zoom[:, None, None] * torch.eye(2, dtype=zoom.dtype, device=zoom.device)
    return torch.cat([linear, offset.unsqueeze(2)], dim=2)


def invert_affine(matrix: Tensor) -> Tensor:
    """(N, 2, 3) -> the inverse map (N, 2, 3)."""
    (a, b), (c, d) = (row.unbind(1) for row in matrix[:, :, :2].unbind(1))
    # Written out, for ONNX has no inverse.
    adjoint = torch.stack([torch.stack([d, -b], 1), torch.stack([-c, a], 1)], 1)
    linear = adjoint / (a * d - b * c)[:, None, None]
    return torch.cat([linear, -linear @ matrix[:, :, 2:]], dim=2)


def warp_affine(image: Tensor, matrix: Tensor, size: int) -> Tensor:
    """Bilinear warp with a black border, as cv2.warpAffine does; differentiable.

    Args:
        image: (N, C, H, W). matrix: (N, 2, 3) from the image's pixels to the output's. size: of the square output.

    Returns:
        (N, C, size, size).
    """
    # The pixels where the output looks, from -1 at the centre of the image's first pixel to 1 at that of its last.
    extent = image.new_tensor([[image.shape[3] - 1], [image.shape[2] - 1]])
    source = invert_affine(matrix) * 2 / extent
    axis = torch.arange(size, dtype=image.dtype, device=image.device)[:, None]
    across = axis * source[:, None, :, 0]
    down = axis * source[:, None, :, 1] + (source[:, None, :, 2] - 1)
    grid = across.unsqueeze(1) + down.unsqueeze(2)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
