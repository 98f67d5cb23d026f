"""Slow, plain definitions of StyleGAN2's formulas, to compare the library's layers with."""

import math

import numpy as np
import torch
from scipy.signal import convolve2d


def upfirdn2d(x: np.ndarray, kernel: np.ndarray, up: int, down: int, pad: tuple[int, int]) -> np.ndarray:
    """Zero insertion, padding or cropping, full 2D convolution and decimation, one step and one channel at a time."""
    rows = []
    for sample in x:
        rows.append([_filter_channel(channel, kernel, up, down, pad) for channel in sample])
    return np.array(rows)


def _filter_channel(channel, kernel, up, down, pad):
    height, width = channel.shape
    stretched = np.zeros((height * up, width * up))
    stretched[::up, ::up] = channel
    return convolve2d(_pad_or_crop(stretched, pad), kernel, mode="valid")[::down, ::down]


def _pad_or_crop(picture, pad):
    before, after = pad
    picture = np.pad(picture, (max(before, 0), max(after, 0)))
    end = picture.shape[0] + min(after, 0)
    return picture[max(-before, 0) : end, max(-before, 0) : picture.shape[1] + min(after, 0)]


def fused_leaky_relu(x: np.ndarray, bias: np.ndarray, slope: float = 0.2, gain: float = math.sqrt(2)) -> np.ndarray:
    shifted = x + bias.reshape(1, -1, *[1] * (x.ndim - 2))
    return np.where(shifted > 0, shifted, slope * shifted) * gain


def blur_kernel(gain: float = 1.0) -> np.ndarray:
    """The 4x4 binomial filter, which sums to ``gain``."""
    line = np.array([1.0, 3.0, 3.0, 1.0]) / 8
    return np.outer(line, line) * gain


def modulated_conv2d(x, weight, style, demodulate=True, upsample=False):
    """One kernel per sample, as the paper writes it, applied sample by sample.

    ``weight`` (Cout, Cin, k, k) is the effective one (already scaled), ``style`` (N, Cin).
    """
    outputs = []
    for sample, s in zip(x, style, strict=True):
        kernel = weight * s[None, :, None, None]
        if demodulate:
            kernel = kernel / torch.sqrt(kernel.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8)
        outputs.append(_upsampling_conv(sample, kernel) if upsample else conv(sample, kernel, kernel.shape[-1] // 2))
    return torch.stack(outputs)


def conv(sample, kernel, pad=0, stride=1):
    """(Cin, H, W), (Cout, Cin, k, k) -> (Cout, H', W'): the weighted sum of shifted pictures, zeros beyond the border."""
    padded = torch.nn.functional.pad(sample, [pad] * 4)
    height, width = (size - kernel.shape[-1] + 1 for size in padded.shape[1:])
    out = sample.new_zeros(len(kernel), height, width)
    for dy in range(kernel.shape[2]):
        for dx in range(kernel.shape[3]):
            window = padded[:, dy : dy + height, dx : dx + width]
            out += torch.einsum("oi,ihw->ohw", kernel[:, :, dy, dx], window)
    return out[:, ::stride, ::stride]


def _upsampling_conv(sample, kernel):
    """Every input pixel stamps the kernel at twice its position; then the 4x4 blur with gain 4 and padding 1."""
    _, height, width = sample.shape
    size = kernel.shape[-1]
    stamped = sample.new_zeros(len(kernel), 2 * height - 2 + size, 2 * width - 2 + size)
    for y in range(height):
        for x in range(width):
            stamp = torch.einsum("oikl,i->okl", kernel, sample[:, y, x])
            stamped[:, 2 * y : 2 * y + size, 2 * x : 2 * x + size] += stamp
    return torch.from_numpy(upfirdn2d(stamped[None].numpy(), blur_kernel(gain=4), 1, 1, (1, 1))[0])


def minibatch_stddev(x: np.ndarray, group: int) -> np.ndarray:
    """The extra channel's value for every sample, (N,), for a batch that divides by ``group``."""
    batch = len(x)
    values = np.zeros(batch)
    for i in range(batch):
        members = [x[j] for j in range(batch) if j % (batch // group) == i % (batch // group)]
        values[i] = np.sqrt(np.var(members, axis=0) + 1e-8).mean()
    return values
