"""Pictures (uint8 HxWx3 BGR) to planes and tensors (float NCHW RGB in [-1, 1]) and back; planes are NumPy's."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def to_planes(image: np.ndarray) -> np.ndarray:
    """uint8, or float in [0, 1], HxWx3 BGR -> float32 (3, H, W) RGB in [-1, 1]."""
    planes = np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1), np.float32)
    planes *= np.float32(2 / 255 if image.dtype == np.uint8 else 2)
    planes -= 1
    return planes


def to_pictures(planes: np.ndarray) -> list[np.ndarray]:
    """(N, 3, H, W) float RGB, about [-1, 1] -> uint8 HxWx3 BGR pictures, clamped and rounded."""
    levels = np.rint((np.clip(planes, -1, 1) + 1) * np.float32(127.5)).astype(np.uint8)
    return [np.ascontiguousarray(picture[::-1].transpose(1, 2, 0)) for picture in levels]


def to_tensor(image: np.ndarray) -> "Tensor":
    """As :func:`to_planes`, but a PyTorch tensor."""
    import torch

    return torch.from_numpy(to_planes(image))


def to_images(batch: "Tensor") -> list[np.ndarray]:
    """As :func:`to_pictures`, of a PyTorch tensor on any device."""
    import torch

    levels = ((batch.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [np.ascontiguousarray(picture[..., ::-1]) for picture in levels.permute(0, 2, 3, 1).cpu().numpy()]
