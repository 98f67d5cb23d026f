"""What a photo shows finer than the crop that a face is restored from: put back whole, in part, or without the photo's noise."""

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

# Noise lies everywhere, detail does not: what a band shows in its quietest windows (their side in pixels, their part of all)
# is noise. These numbers were chosen on 60 training photos at 21 degradations; scripts/judge_fidelity.py measures others.
WINDOW, QUIETEST = 7, 0.3
# Where even less is nearly without energy it is hair or cloth rather than noise: noise is at most so many times that of the
# very quietest windows.
RARE, MOST = 0.05, 4.0
# Taken off a window's energy, relative to the noise: windows of noise alone spread by half around it, and these must go too.
SUBTRACTED = 2.0
# Grey levels of noise that are a good photo's own: up to the first it is left, from the second on it is taken away.
UNSEEN = 0.6, 1.0
# Grey levels at which a photo is clipped, and its noise with it.
CLIPPED = 4, 251
# Noise is measured on this many pixels of a face, squared: the middle of a larger one.
MEASURED = 1024
# How far the damping looks around, in pixels of the coarsest octave.
HALO = 8


def with_detail(
    face: np.ndarray,
    crop: np.ndarray | None,
    keep: float | str,
    photo: np.ndarray,
    move: Callable[[np.ndarray], np.ndarray],
    noise: Sequence[float] = (),
) -> np.ndarray:
    """A face in its photo's pixels, with what the photo shows there and its crop does not.

    Args:
        face, crop: (S, S, 3). photo: (H, W, 3). move: a picture (S, S, 3) -> (H, W, 3).
        keep: how much of it, 0..1; "auto" is all but its noise.
        noise: of each band, as :func:`noise_of` finds it; for "auto".
    """
    if crop is None or keep == 0:
        return move(face)
    if keep == "auto" and any(noise):
        return move(face).astype(np.float32) + without_noise(detail_of(photo, crop, move), noise)
    # Moving is linear, so one picture is moved.
    share = np.float32(1 if keep == "auto" else keep)
    return move(face.astype(np.float32) - share * crop) + share * photo


def detail_of(photo: np.ndarray, crop: np.ndarray, move: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """(H, W, 3) float32: what a photo shows and its crop does not."""
    return photo - move(crop.astype(np.float32))


def noise_of(detail: np.ndarray, photo: np.ndarray, scale: float, inside: np.ndarray | None = None) -> list[float]:
    """The noise of a photo finer than a crop, in each octave; the finest first.

    Args:
        detail: (H, W, 3) float32, of :func:`detail_of`. photo: (H, W, 3) uint8. scale: pixels of the photo in one of the crop.
        inside: (H, W) bool, where the crop is; None is everywhere.

    Returns:
        Mean squares of its grey levels; 0 for what nobody sees. An octave for each factor of two of ``scale``, at least one.
    """
    grey = cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY)
    known = (grey >= CLIPPED[0]) & (grey <= CLIPPED[1])
    if inside is not None:
        known &= inside
    octaves = max(1, math.ceil(math.log2(scale) - 0.1))
    noise = []
    for octave, band in enumerate(_bands(detail, octaves)):
        energy = _energy(band)[known[:: 1 << octave, :: 1 << octave]]
        rare, least = np.quantile(energy, (RARE, QUIETEST)) if energy.size > WINDOW**2 else (0.0, 0.0)
        least = min(float(least), MOST * float(rare))
        noise.append(least * float(np.clip((math.sqrt(least) - UNSEEN[0]) / (UNSEEN[1] - UNSEEN[0]), 0, 1)))
    return noise


def without_noise(detail: np.ndarray, noise: Sequence[float]) -> np.ndarray:
    """Detail (H, W, 3) float32 of which each octave is damped where it shows little but noise: a local Wiener filter."""
    clean = None
    for band, least in list(zip(_bands(detail, len(noise)), noise, strict=True))[::-1]:
        if least:
            energy = np.maximum(_energy(band), 1e-6)
            band = band * (np.maximum(energy - SUBTRACTED * least, 0) / energy)[..., None]
        clean = band if clean is None else band + cv2.pyrUp(clean, dstsize=band.shape[1::-1])
    assert clean is not None
    return clean


def _bands(detail: np.ndarray, count: int) -> list[np.ndarray]:
    """A Laplacian pyramid of so many octaves, the finest first; the last holds the rest."""
    bands = []
    for _ in range(count - 1):
        coarse = cv2.pyrDown(detail)
        bands.append(detail - cv2.pyrUp(coarse, dstsize=detail.shape[1::-1]))
        detail = coarse
    return [*bands, detail]


def _energy(band: np.ndarray) -> np.ndarray:
    """Mean squares of a band's grey levels around each pixel (H, W)."""
    return cv2.blur(cv2.cvtColor(band, cv2.COLOR_BGR2GRAY) ** 2, (WINDOW, WINDOW), borderType=cv2.BORDER_REFLECT_101)
