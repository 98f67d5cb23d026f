"""Slow definitions of the degradation's steps and of the whole chain, in float64 numpy, with SciPy and Pillow."""

import io
import math

import numpy as np
from PIL import Image
from scipy import fft, ndimage

# The luminance table of the JPEG standard (ITU-T T.81, annex K.1), for quality 50.
LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)


def gaussian_kernel(size, along, across, angle):
    """exp(-d^T C^-1 d / 2), entry by entry, over its sum; C has standard deviation `along` in the direction `angle`."""
    axis = np.array([math.cos(angle), math.sin(angle)])
    normal = np.array([-axis[1], axis[0]])
    inverse = np.linalg.inv(along**2 * np.outer(axis, axis) + across**2 * np.outer(normal, normal))
    kernel = np.zeros((size, size))
    for row, column in np.ndindex(size, size):
        offset = np.array([column - size // 2, row - size // 2])  # x, y
        kernel[row, column] = math.exp(-0.5 * offset @ inverse @ offset)
    return kernel / kernel.sum()


def convolve(image, kernel):
    """Each channel convolved; the border mirrored about the centres of the outermost pixels."""
    return np.stack([ndimage.convolve(image[..., c].astype(np.float64), kernel, mode="mirror") for c in range(3)], -1)


def _cubic(distance, a=-0.75):
    """Keys' cubic convolution kernel (1981) with OpenCV's parameter."""
    x = abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def _resize_weights(old, new, kernel):
    """(new, old): how much each old pixel counts in each new one. Pixels are intervals; the outermost ones go on."""
    weights, ratio = np.zeros((new, old)), old / new
    for i in range(new):
        if kernel == "area":  # the mean over the new pixel's interval
            for j in range(old):
                overlap = min((i + 1) * ratio, j + 1) - max(i * ratio, j)
                weights[i, j] = max(overlap, 0) / ratio
            continue
        centre = (i + 0.5) * ratio - 0.5
        for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
            tap = _cubic(centre - j) if kernel == "cubic" else max(0.0, 1 - abs(centre - j))
            weights[i, min(max(j, 0), old - 1)] += tap
    return weights


def resize(image, width, height, kernel):
    """Area (shrinking only), linear or cubic, without antialiasing but for area."""
    rows = _resize_weights(image.shape[0], height, kernel)
    columns = _resize_weights(image.shape[1], width, kernel)
    return np.einsum("yi,xj,ijc->yxc", rows, columns, image.astype(np.float64))


def levels(image):
    """0..1 clipped and rounded to 8 bits."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def jpeg(image, quality):
    """BGR in 0..1 through Pillow's encoder and decoder."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(levels(image)[..., ::-1])).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))[..., ::-1] / 255.0


def jpeg_gray(plane, quality):
    """(H, W) uint8, sides multiples of 8, by the standard: each block's cosine transform rounded to steps."""
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality  # libjpeg's meaning of quality
    steps = np.clip(np.floor((LUMINANCE * scale + 50) / 100), 1, 255)
    result = np.zeros(plane.shape)
    for top, left in np.ndindex(plane.shape[0] // 8, plane.shape[1] // 8):
        block = (slice(8 * top, 8 * top + 8), slice(8 * left, 8 * left + 8))
        coefficients = np.rint(fft.dctn(plane[block] - 128.0, norm="ortho") / steps) * steps
        result[block] = fft.idctn(coefficients, norm="ortho") + 128
    return np.clip(np.rint(result), 0, 255)


def degrade(image, drawn, rng):
    """I_lq = up(JPEG(down(I * k) + n)) of a BGR image in 0..1, with the parameters drawn; `rng` makes the noise n."""
    height, width = image.shape[:2]
    result = image.astype(np.float64)
    if drawn.color_shift is not None:
        result = np.clip(result + np.array(drawn.color_shift), 0, 1)
    if drawn.gray:
        luma = 0.114 * result[..., 0] + 0.587 * result[..., 1] + 0.299 * result[..., 2]
        result = np.stack([luma, luma, luma], axis=-1)
    if drawn.sigma is not None:
        result = convolve(result, gaussian_kernel(drawn.kernel_size, *drawn.sigma, drawn.angle))
    small = [max(1, round(side / drawn.downsample)) for side in (width, height)]
    result = resize(result, *small, drawn.downsample_kernel)
    if drawn.noise is not None:
        result = result + drawn.noise / 255 * rng.standard_normal(result.shape, dtype=np.float32)
    if drawn.jpeg is not None:
        result = jpeg(result, drawn.jpeg)
    return np.clip(resize(result, width, height, drawn.upsample_kernel), 0, 1)
