"""Fidelity, from 0 to 1: how much of a restored face is taken back to its photo, from large forms to fine detail."""

from numbers import Real

import torch
from torch import Tensor
from torch.nn import functional as F

from sgpn_arch.errors import OptionError

BANDS = 6  # of the pyramid; at 256 px the coarsest is 8 px wide
SMALLEST = 4  # pixels, of the coarsest band


def checked_fidelity(fidelity: float | str) -> float | str:
    """A user's wish, a number from 0 to 1 or "auto", as it is; anything else raises OptionError."""
    if fidelity == "auto" or (isinstance(fidelity, Real) and 0 <= fidelity <= 1):
        return fidelity
    raise OptionError(f"fidelity is {fidelity!r}: give a number from 0 to 1, or auto")


def blend(restored: Tensor, photo: Tensor, fidelity: float | Tensor) -> Tensor:
    """Mixes a restoration with its photo, band by band of a Laplacian pyramid (a choice of ours).

    CodeFormer has such a control, but conditions its network by it. Here the photo takes over one band after the other,
    the coarsest first, for what a bad photo still has right is its colours and large forms: at 0.5 these are the
    photo's and the detail is the restoration's. 0 gives the restoration as it is, 1 the photo as it is.

    Args:
        restored, photo: (N, C, H, W) of any range, of the same size.
        fidelity: 0..1, or (N,) of them.

    Returns:
        (N, C, H, W); continuous in ``fidelity``.

    Raises:
        ValueError: the pictures differ in shape, or fidelity is outside of 0..1.
    """
    if restored.shape != photo.shape:
        raise ValueError(f"restored {tuple(restored.shape)} and photo {tuple(photo.shape)} must have the same shape")
    values = torch.as_tensor(fidelity, dtype=torch.float32, device=photo.device)
    if not (((values >= 0) & (values <= 1)).all() and values.shape in ((), photo.shape[:1])):
        raise ValueError(f"fidelity is {fidelity!r}; expected a number from 0 to 1, or one for each of the pictures")
    if values.ndim == 0 and values in (0, 1):
        return photo if values else restored
    # The pyramid is linear, so that of the difference is enough.
    return restored + _share(photo - restored, values.to(photo.dtype).reshape(-1, 1, 1, 1))


def _share(difference: Tensor, fidelity: Tensor) -> Tensor:
    """The sum of the difference's bands, each times its weight."""
    levels, sizes = [difference], []
    while len(levels) < BANDS and min(levels[-1].shape[-2:]) >= 2 * SMALLEST:
        sizes.append(levels[-1].shape[-2:])
        levels.append(_halved(levels[-1]))
    count = len(levels)
    weights = [(fidelity * count - place).clamp(0, 1) for place in range(count)]  # coarsest first
    total = weights[0] * levels[-1]
    for weight, size, fine, coarse in zip(weights[1:], sizes[::-1], levels[-2::-1], levels[:0:-1], strict=True):
        total = _enlarged(total, size)
        total = total + weight * (fine - _enlarged(coarse, size))
    return total


def _halved(images: Tensor) -> Tensor:
    size = [max(1, side // 2) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def _enlarged(images: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(images, size=tuple(size), mode="bilinear", align_corners=False)
