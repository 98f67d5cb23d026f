"""Gradients of pointwise operations on a CPU, as loops compiled by numba that read and write each map once.

PyTorch's operations go over a whole map for each step of a formula, and there is little to compute: memory limits them. Maps
are (P, C) matrices here, one pixel a row. Import this module only where loops run: numba takes a while to load.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from sgpn_arch.face3d.numba_loops import compiled, for_each

BLOCK = 512  # pixels that are added up in the type of the maps; what they come to is added in float64


def run(loop: Callable, maps: Sequence[torch.Tensor], numbers: Sequence[float] = (), sums: int = 0) -> torch.Tensor:
    """loop(*maps, *numbers, total) on as many threads as torch has, each for some of the pixels of one sample.

    Args:
        loop: one of this module's, which fills some of the maps.
        maps: (N, C, H, W) of one floating-point type, all with the same N, H and W; what is to be filled in channels_last.
        numbers: in that type, for the loop.
        sums: length of ``total``, to which the loop adds sums over pixels.

    Returns:
        (sums,), the total in float64; the parts, and with them its last digits, depend on the number of threads.
    """
    samples = [x.detach().permute(0, 2, 3, 1).flatten(1, 2).numpy() for x in maps]
    count, pixels = samples[0].shape[:2]
    parts = -(-torch.get_num_threads() // count)
    totals = np.zeros((count, parts, sums))
    kind = samples[0].dtype.type
    jobs = []
    for n in range(count):
        for part in range(parts):
            here = slice(pixels * part // parts, pixels * (part + 1) // parts)
            jobs.append((*(x[n, here] for x in samples), *map(kind, numbers), totals[n, part]))
    for_each(loop, jobs)
    return torch.from_numpy(totals.sum(axis=(0, 1)))


@compiled
def fused_leaky_relu_backward(grad, out, to_x, slope, gain, total):
    """total: (C,), the bias's gradient."""
    pixels, channels = grad.shape
    block = np.zeros(channels, grad.dtype)
    for p in range(pixels):
        given, made, found = grad[p], out[p], to_x[p]
        for c in range(channels):
            z = given[c] * (gain if made[c] > 0 else gain * slope)
            found[c] = z
            block[c] += z
        if p % BLOCK == BLOCK - 1 or p == pixels - 1:
            total += block
            block[:] = 0


@compiled
def concat_leaky_relu_backward(grad, out, fused, to_hidden, to_fused, weight, slope, gain, total):
    """total: (C + D + D,), the bias's gradient, and a part of the weight's for each channel of ``fused``."""
    pixels, channels = to_hidden.shape
    both = grad.shape[1]
    block = np.zeros(len(total), grad.dtype)
    for p in range(pixels):
        given, made, found = grad[p], out[p], to_hidden[p]
        for c in range(channels):
            z = given[c] * (gain if made[c] > 0 else gain * slope)
            found[c] = z
            block[c] += z
        given, made, found, map_f = grad[p, channels:], out[p, channels:], to_fused[p], fused[p]
        for c in range(both - channels):
            z = given[c] * (gain if made[c] > 0 else gain * slope)
            found[c] = z * weight
            block[channels + c] += z
            block[both + c] += z * map_f[c]
        if p % BLOCK == BLOCK - 1 or p == pixels - 1:
            total += block
            block[:] = 0


@compiled
def masked_blend_backward(grad, lq, render, mask, to_logits, to_lq, to_render, total):
    pixels, channels = grad.shape
    one = grad.dtype.type(1)
    for p in range(pixels):
        g, m, a, b, for_logits, for_a, for_b = grad[p], mask[p], lq[p], render[p], to_logits[p], to_lq[p], to_render[p]
        for c in range(channels):
            through = g[c] * m[c]
            for_logits[c] = through * (a[c] - b[c]) * (one - m[c])
            for_a[c] = through
            for_b[c] = g[c] - through
