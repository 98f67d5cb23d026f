"""Upsample, filter, downsample: a FIR filter on pictures whose sampling rate may change.

The three steps of StyleGAN2's operation of this name: put ``up - 1`` zeros after every pixel, pad (or crop, where
negative), convolve every channel with one small kernel, keep every ``down``-th pixel.
"""

import torch
from torch.nn import functional

from sgpn_arch.ops import library

BLUR_TAPS = (1.0, 3.0, 3.0, 1.0)


def fir_kernel(taps: tuple[float, ...] = BLUR_TAPS, gain: float = 1.0) -> torch.Tensor:
    """Returns the (k, k) float32 outer product of ``taps`` with themselves, which sums to ``gain``."""
    line = torch.tensor(taps, dtype=torch.float32)
    kernel = line[:, None] * line
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
    if library.has_kernel(x):
        return _kernel(x, kernel, up, down, pad)
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


# ---------------------------------------------------------------------------------------------------------------------
# The same as an operator with a kernel. It is told the result's size and the zeros before an axis; how many zeros follow is
# then plain: out[o] = sum over i of x[i] * flipped[i * up - o * down + pad]. Read from x's side, the same sum with up and
# down exchanged, the kernel not flipped (`correlate`) and taps - 1 - pad zeros is the gradient, so that one kernel serves all.


def _kernel(x, kernel, up, down, pad):
    taps = kernel.shape[-1]
    height, width = ((side * up + sum(pad) - taps) // down + 1 for side in x.shape[2:])
    kernel = kernel.detach().to(device=x.device, dtype=library.wide(x.dtype))
    return torch.ops.sgpn.upfirdn2d(x, kernel, up, down, pad[0], height, width, False)


def _plain(x, kernel, up, down, pad, height, width, correlate):
    taps = kernel.shape[-1]
    kernel = (kernel.flip(0, 1) if correlate else kernel).to(x.dtype)
    after = [(out - 1) * down + taps - side * up - pad for out, side in ((height, x.shape[2]), (width, x.shape[3]))]
    # One padding after both axes, and what is too much cut off.
    return upfirdn2d(x, kernel, up, down, (pad, max(after)))[:, :, :height, :width]


def _like(x, kernel, up, down, pad, height, width, correlate):
    return library.empty(x, (*x.shape[:2], height, width))


def _save(ctx, inputs, output):
    x, kernel, ctx.up, ctx.down, ctx.pad, _, _, ctx.correlate = inputs
    ctx.size = x.shape[2:]
    ctx.save_for_backward(kernel)


def _backward(ctx, grad):
    (kernel,) = ctx.saved_tensors
    pad = kernel.shape[-1] - 1 - ctx.pad
    grad_x = torch.ops.sgpn.upfirdn2d(grad, kernel, ctx.down, ctx.up, pad, *ctx.size, not ctx.correlate)
    return grad_x, *[None] * 7


library.declare(
    "upfirdn2d(Tensor x, Tensor kernel, int up, int down, int pad, SymInt height, SymInt width, bool correlate) -> Tensor",
    plain=_plain,
    like=_like,
    setup_context=_save,
    backward=_backward,
)
