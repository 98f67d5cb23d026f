"""Upsample, filter, downsample: a FIR filter on pictures whose sampling rate may change.

The three steps of StyleGAN2's operation of this name: put ``up - 1`` zeros after every pixel, pad (or crop, where
negative), convolve every channel with one small kernel, keep every ``down``-th pixel.
"""

import torch
from torch.nn import functional

BLUR_TAPS = (1.0, 3.0, 3.0, 1.0)


def fir_kernel(taps: tuple[float, ...] = BLUR_TAPS, gain: float = 1.0) -> torch.Tensor:
    """Returns the (k, k) float32 outer product of ``taps`` with themselves, which sums to ``gain``."""
    line = torch.tensor(taps, dtype=torch.float32)
    kernel = torch.outer(line, line)
    return kernel * (gain / kernel.sum())


def upfirdn2d(
    x: torch.Tensor, kernel: torch.Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)
) -> torch.Tensor:
    """Upsamples, pads, convolves and downsamples every channel of ``x`` alike.

    Args:
        x: (N, C, H, W) tensor; its type and memory format are kept, under autocast too.
        kernel: (k, k) filter, applied as a true convolution (flipped); no gradient reaches it.
        up: zeros inserted after every pixel, plus one.
        down: every how manieth pixel is kept.
        pad: zeros before and after each axis of the upsampled picture; negative values crop.

    Returns:
        (N, C, H', W') with ``H' = (H * up + pad[0] + pad[1] - k) // down + 1``, and W' alike.
    """
    channels, taps = x.shape[1], kernel.shape[-1]
    kernel = kernel.detach().to(device=x.device, dtype=x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        if up > 1:
            # A transposed convolution with stride `up` is zero insertion and convolution at once;
            # its full output starts where a padding of taps - 1 would start, and ends where taps - up would.
            weight = kernel.expand(channels, 1, taps, taps)
            x = functional.conv_transpose2d(x, weight, stride=up, groups=channels)
            x = _pad(x, (pad[0] - taps + 1, pad[1] - taps + up))
            return x[:, :, ::down, ::down] if down > 1 else x
        # Padding inside the convolution is several times quicker on the CPU than padding before it.
        inner = max(min(pad), 0)
        x = _pad(x, (pad[0] - inner, pad[1] - inner))
        weight = kernel.flip(0, 1).expand(channels, 1, taps, taps)
        return functional.conv2d(x, weight, stride=down, padding=inner, groups=channels)


def upsample2d(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) -> (N, C, 2H, 2W), zero insertion and a (k, k) filter with gain 4, k even."""
    taps = kernel.shape[-1]
    return upfirdn2d(x, kernel, up=2, pad=(taps // 2, taps // 2 - 1))


def downsample2d(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) -> (N, C, H/2, W/2), a (k, k) filter with gain 1, k even, then every second pixel; H, W even."""
    taps = kernel.shape[-1]
    return upfirdn2d(x, kernel, down=2, pad=(taps // 2 - 1, taps // 2 - 1))


def _pad(x: torch.Tensor, pad: tuple[int, int]) -> torch.Tensor:
    return x if pad == (0, 0) else functional.pad(x, pad * 2)
