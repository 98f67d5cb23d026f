"""Slow definitions of the metrics, in float64 numpy, for pictures of 8 bits and for points."""

import math

import numpy as np
from scipy import ndimage


def psnr(a, b):
    """10 log10(255^2 / mean squared error) of two uint8 pictures."""
    return 10 * math.log10(255**2 / np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))


def ssim(a, b):
    """Wang et al. 2004, the mean over the channels of two uint8 pictures (H, W, C)."""
    return np.mean(
        [_ssim_channel(a[..., c].astype(np.float64), b[..., c].astype(np.float64)) for c in range(a.shape[2])]
    )


def _ssim_channel(a, b):
    """With the 11x11 Gaussian window of sigma 1.5, over windows within the picture."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(window, window) / np.outer(window, window).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

    def mean(x):
        return ndimage.correlate(x, window, mode="constant")[5:-5, 5:-5]

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()


def perceptual_distance(features_a, features_b):
    """Sum over stages (C, H, W) of the mean over places of |a / |a| - b / |b||^2, with vectors along the channels."""
    total = 0.0
    for stage_a, stage_b in zip(features_a, features_b, strict=True):
        places = [
            np.sum((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2)
            for a, b in zip(stage_a.reshape(len(stage_a), -1).T, stage_b.reshape(len(stage_b), -1).T, strict=True)
        ]
        total += np.mean(places)
    return total


def landmark_error(points, truth):
    """Per face, the mean distance of its 68 points in % of the distance of points 36 and 45 (the eyes' outer corners)."""
    errors = []
    for face, right in zip(np.asarray(points, np.float64), np.asarray(truth, np.float64), strict=True):
        mean = sum(math.dist(p, q) for p, q in zip(face, right, strict=True)) / 68
        errors.append(100 * mean / math.dist(right[36], right[45]))
    return errors
