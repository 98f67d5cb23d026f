"""Slow definitions of the metrics, in float64 numpy, for pictures of 8 bits and for points."""

import math

import numpy as np
from PIL import Image
from scipy import linalg, ndimage, optimize, special


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


def frechet_distance(a, b):
    """Of the Gaussians fitted to two sets of rows: |m - n|^2 + tr(C + D - 2 sqrt(C D)), with SciPy's matrix root."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    c, d = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    root = linalg.sqrtm(c @ d)
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(c) + np.trace(d) - 2 * np.trace(root).real


def niqe(bgr, mean, covariance):
    """Mittal et al. 2013 for a uint8 BGR picture, against the mean (36,) and covariance (36, 36) of good pictures."""
    blue, green, red = np.moveaxis(bgr.astype(np.float64) / 255, 2, 0)
    luma = np.rint(16 + 65.481 * red + 128.553 * green + 24.966 * blue)
    rows, columns = luma.shape[0] // 96, luma.shape[1] // 96
    luma = luma[: rows * 96, : columns * 96]
    half = Image.fromarray(luma.astype(np.float32)).resize((columns * 48, rows * 48), Image.Resampling.BICUBIC)
    features = []
    for picture, side in ((luma, 96), (np.asarray(half, np.float64), 48)):
        normalised = _without_contrast(picture)
        blocks = [
            normalised[y * side : (y + 1) * side, x * side : (x + 1) * side]
            for x in range(columns)
            for y in range(rows)
        ]
        features.append([_block_features(block) for block in blocks])
    features = np.concatenate(features, axis=1)
    difference = features.mean(0) - mean.ravel()
    spread = (np.cov(features, rowvar=False) + covariance) / 2
    return math.sqrt(difference @ np.linalg.pinv(spread) @ difference)


def _without_contrast(picture):
    """The picture less its local mean, divided by its local deviation plus one; windows of 7x7, sigma 7/6."""
    window = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
    window = np.outer(window, window) / np.outer(window, window).sum()
    mean = ndimage.correlate(picture, window, mode="nearest")
    variance = ndimage.correlate(picture**2, window, mode="nearest") - mean**2
    return (picture - mean) / (np.sqrt(np.abs(variance)) + 1)


def _block_features(block):
    shape, left, right = _fit_asymmetric(block)
    features = [shape, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        shape, left, right = _fit_asymmetric(block * np.roll(block, shift, axis=(0, 1)))
        mean = (right - left) * special.gamma(2 / shape) / special.gamma(1 / shape)
        features += [shape, mean, left, right]
    return features


def _fit_asymmetric(values):
    """Shape and the two scales of an asymmetric generalised Gaussian, by moments (Lasmar et al. 2009)."""
    left, right = (math.sqrt(np.mean(part**2)) for part in (values[values < 0], values[values > 0]))
    ratio = left / right
    wanted = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    wanted *= (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2

    def excess(shape):
        one, two, three = (special.gamma(n / shape) for n in (1, 2, 3))
        return two**2 / (one * three) - wanted

    shape = optimize.brentq(excess, 0.2, 10)
    scale = math.sqrt(special.gamma(1 / shape) / special.gamma(3 / shape))
    return shape, left * scale, right * scale
