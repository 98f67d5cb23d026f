"""Convolution: PyTorch's own, but on a CPU with AVX2 the gradient of its weights is computed in the quicker memory format."""

import torch
from torch.nn import functional

from sgpn_arch.ops import library


def convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    transposed: bool = False,
) -> torch.Tensor:
    """``conv2d``, or ``conv_transpose2d`` if ``transposed``, of torch.nn.functional.

    Args:
        x: (N, Cin, H, W).
        weight: (Cout, Cin, k, k); (Cin, Cout, k, k) if ``transposed``.
        bias: (Cout,) or None.
        stride, padding: of both axes.
    """
    if bias is None and _learns_slowly(x, weight):
        return _Convolution.apply(x, weight, [stride] * 2, [padding] * 2, [1, 1], transposed, [0, 0], 1)
    plain = functional.conv_transpose2d if transposed else functional.conv2d
    return plain(x, weight, bias, stride, padding)


# ---------------------------------------------------------------------------------------------------------------------
# With AVX2, the gradient of the weights takes oneDNN (3.12) up to 2.7 times as long on maps in channels_last as on contiguous
# ones, which it brings into a layout of its own. Copying them first pays from about 32 channels up. The forward pass and the
# gradient of x are quickest in channels_last.

FEWEST_CHANNELS = 32


def _learns_slowly(x, weight):
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.shape[1] >= FEWEST_CHANNELS
        and weight.shape[2:].numel() > 1
        and weight.requires_grad
        and torch.is_grad_enabled()
        and library.are_wanted()
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, *geometry):
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return torch.convolution(x, weight, None, *geometry)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad[:2]

        def gradients(grad, x, *mask):
            return torch.ops.aten.convolution_backward(grad, x, weight, None, *ctx.geometry, [*mask, False])

        if torch.is_grad_enabled():  # second gradients are on their way, and PyTorch knows them
            grad_x, grad_weight, _ = gradients(grad, x, needs_x, needs_weight)
        else:
            grad_x, _, _ = gradients(grad, x, needs_x, False)
            _, grad_weight, _ = gradients(grad.contiguous(), x.contiguous(), False, needs_weight)
        return grad_x, grad_weight, *[None] * len(ctx.geometry)
