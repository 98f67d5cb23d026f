"""Slow definitions of the losses in float64, one face, point or pixel at a time, and of the training step around them."""

import math

import numpy as np
import torch


def _array(values):
    return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, np.float64)


def l1(a, b):
    """Mean of |a - b| over every number."""
    pairs = zip(_array(a).ravel().tolist(), _array(b).ravel().tolist(), strict=True)
    return math.fsum(abs(x - y) for x, y in pairs) / _array(a).size


def perceptual(features_a, features_b):
    """Mean over the stages of the mean absolute difference of their features."""
    return np.mean([l1(a, b) for a, b in zip(features_a, features_b, strict=True)])


def block_means(image, factor):
    """(N, C, H, W) averaged over factor x factor blocks."""
    image = _array(image)
    n, c, height, width = image.shape
    small = np.zeros((n, c, height // factor, width // factor))
    for y, x in np.ndindex(small.shape[2:]):
        block = image[:, :, y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
        small[:, :, y, x] = block.sum(axis=(2, 3)) / factor**2
    return small


def logistic(logits, real):
    """Cross-entropy of sigmoid(logits), the probability of being real, with the right answer."""
    total = 0.0
    for x in _array(logits).ravel().tolist():
        total -= math.log(1 / (1 + math.exp(-x if real else x)))  # sigmoid(-x) is the probability of being made
    return total / _array(logits).size


def r1_by_differences(discriminator, images, step=1e-5):
    """Mean over the batch of |d D(x) / d x|^2, each number of each picture moved up and down, each picture on its own."""
    total = 0.0
    for image in images.detach():
        for place in np.ndindex(*image.shape):
            values = []
            for sign in (1, -1):
                moved = image.clone()
                moved[place] += sign * step
                values.append(discriminator(moved[None]).item())
            total += ((values[0] - values[1]) / (2 * step)) ** 2
    return total / len(images)


def slope(function, x, direction, step=1e-6):
    """The derivative of a scalar function at x along a direction, by central differences."""
    with torch.no_grad():
        return (function(x + step * direction) - function(x - step * direction)).item() / (2 * step)


def mean_distance(a, b):
    """Mean Euclidean distance along the last axis."""
    pairs = zip(_array(a).reshape(-1, a.shape[-1]).tolist(), _array(b).reshape(-1, a.shape[-1]).tolist(), strict=True)
    distances = [math.dist(p, q) for p, q in pairs]
    return math.fsum(distances) / len(distances)


def landmark_3d(points, target):
    """Mean over faces and points of the squared distance."""
    points, target = _array(points), _array(target)
    faces, count, _ = points.shape
    return math.fsum((points[n, k, axis] - target[n, k, axis]) ** 2 for n, k, axis in np.ndindex(faces, count, 3)) / (
        faces * count
    )


def landmark_2d(points, target, weights):
    """Weighted mean distance of each face's points, averaged over the faces whose target has no NaN; 0 without any."""
    points, target, weights = _array(points), _array(target), _array(weights).tolist()
    values = []
    for face, truth in zip(points, target, strict=True):
        if not np.isnan(truth).any():
            distances = [math.dist(p, q) for p, q in zip(face, truth, strict=True)]
            values.append(math.fsum(w * d for w, d in zip(weights, distances, strict=True)) / math.fsum(weights))
    return float(np.mean(values)) if values else 0.0


def photometric(render, image, mask):
    """Mean over the mask's pixels, weighted by it, of the colours' distance."""
    render, image, mask = _array(render), _array(image), _array(mask)
    total = 0.0
    for n, y, x in np.argwhere(mask[:, 0] > 0):
        total += mask[n, 0, y, x] * math.dist(render[n, :, y, x], image[n, :, y, x])
    return total / max(mask.sum(), 1)


def coefficient_prior(identity, expression, texture, lighting):
    """3e-4 (|id|^2 + 0.8 |exp|^2 + 0.017 |tex|^2), mean over faces, + the channels' variance around their mean light."""
    gaussian = 0.0
    for weight, part in ((1.0, identity), (0.8, expression), (0.017, texture)):
        gaussian += weight * np.mean([math.fsum(x * x for x in row) for row in _array(part).tolist()])
    faces = _array(lighting)
    white = []
    for face in faces:
        red, green, blue = face[:9], face[9:18], face[18:]
        for band in zip(red, green, blue, strict=True):
            white += [(value - sum(band) / 3) ** 2 for value in band]
    return 3e-4 * gaussian + np.mean(white)


def adam(start, gradients, rate, betas, eps=1e-8):
    """Where Adam (Kingma and Ba 2015, algorithm 1) takes a tensor by one step per gradient."""
    value, first, second = _array(start).copy(), 0.0, 0.0
    for t, gradient in enumerate(map(_array, gradients), start=1):
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient**2
        value -= rate * (first / (1 - betas[0] ** t)) / (np.sqrt(second / (1 - betas[1] ** t)) + eps)
    return value


def grid_loss(pred, target, period, window):
    """(N, C, H, W) twice: in windows of squares of pixels, how far each phase of the period is from the mean of all."""
    values = []
    side, step = period * window, period * max(1, window // 2)
    for plane in (pred - target).reshape(-1, *pred.shape[2:]):
        for top in range(0, plane.shape[0] - side + 1, step):
            for left in range(0, plane.shape[1] - side + 1, step):
                part = plane[top : top + side, left : left + side]
                values += [
                    abs(part[y::period, x::period].mean() - part.mean()) for y in range(period) for x in range(period)
                ]
    return sum(values) / len(values)
