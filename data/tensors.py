"""Pictures (uint8 HxWx3 BGR) to tensors (float NCHW RGB in [-1, 1]) and back."""

import numpy as np
import torch
from torch import Tensor


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8, or float in [0, 1], HxWx3 BGR -> float32 (3, H, W) RGB in [-1, 1]."""
    scale = 2 / 255 if image.dtype == np.uint8 else 2.0
    planes = np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1), np.float32)
    return torch.from_numpy(planes).mul_(scale).sub_(1)


def to_images(batch: Tensor) -> list[np.ndarray]:
    """(N, 3, H, W) RGB, about [-1, 1] -> uint8 HxWx3 BGR pictures, clamped and rounded."""
    levels = ((batch.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [np.ascontiguousarray(picture[..., ::-1]) for picture in levels.permute(0, 2, 3, 1).cpu().numpy()]
