"""Fidelity, from 0 to 1: how much of a restored face is taken back to its photo, from large forms to fine detail."""

import functools
from collections.abc import Sequence
from numbers import Real

import numpy as np

from sgpn_arch.errors import OptionError

BANDS = 6  # of the pyramid; at 256 px the coarsest is 8 px wide
SMALLEST = 4  # pixels, of the coarsest band


def checked_fidelity(fidelity: float | str) -> float | str:
    """A user's wish, a number from 0 to 1 or "auto", as it is; anything else raises OptionError."""
    if fidelity == "auto" or (isinstance(fidelity, Real) and 0 <= fidelity <= 1):
        return fidelity
    raise OptionError(f"fidelity is {fidelity!r}: give a number from 0 to 1, or auto")


def blend(restored: np.ndarray, photo: np.ndarray, fidelity: float | Sequence[float] | np.ndarray) -> np.ndarray:
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
    values = np.asarray(fidelity, np.float32)
    if not (((values >= 0) & (values <= 1)).all() and values.shape in ((), photo.shape[:1])):
        raise ValueError(f"fidelity is {fidelity!r}; expected a number from 0 to 1, or one for each of the pictures")
    if values.ndim == 0 and values in (0, 1):
        return photo if values else restored
    # The pyramid is linear, so that of the difference is enough.
    return restored + _share(photo - restored, values.astype(photo.dtype).reshape(-1, 1, 1, 1))


def _share(difference: np.ndarray, fidelity: np.ndarray) -> np.ndarray:
    """The sum of the difference's bands, each times its weight."""
    levels = [difference]
    while len(levels) < BANDS and min(levels[-1].shape[-2:]) >= 2 * SMALLEST:
        height, width = (max(1, side // 2) for side in levels[-1].shape[-2:])
        levels.append(_resized(levels[-1], height, width))
    count = len(levels)
    weights = [np.clip(fidelity * count - place, 0, 1) for place in range(count)]  # coarsest first
    total = weights[0] * levels[-1]
    for weight, fine, coarse in zip(weights[1:], levels[-2::-1], levels[:0:-1], strict=True):
        size = fine.shape[-2:]
        total = _resized(total, *size) + weight * (fine - _resized(coarse, *size))
    return total


def _resized(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """(N, C, h, w) -> (N, C, height, width), bilinearly; of what is reduced, all pixels count."""
    rows, columns = _weights(images.shape[-2], height), _weights(images.shape[-1], width)
    return rows.astype(images.dtype) @ images @ columns.astype(images.dtype).T


@functools.lru_cache(maxsize=64)
def _weights(before: int, after: int) -> np.ndarray:
    """(after, before): each new pixel's weights of the old ones, a triangle as wide as two pixels of the coarser grid."""
    step = before / after
    distance = (np.arange(after)[:, None] + 0.5) * step - (np.arange(before) + 0.5)
    weights = np.maximum(0, 1 - np.abs(distance) / max(step, 1.0))
    return weights / weights.sum(axis=1, keepdims=True)
