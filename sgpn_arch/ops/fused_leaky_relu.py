"""Fused leaky ReLU: bias, leaky ReLU and gain in one call; also of a concatenation, which is then never stored.

``y = gain * leaky_relu(x + bias)``, the activation of StyleGAN2 (Karras et al. 2020), whose gain of sqrt(2) keeps
the variance of a signal that lost its negative half.
"""

import math

import torch
from torch.nn import functional

from sgpn_arch.ops import library

SLOPE = 0.2
GAIN = math.sqrt(2)


def fused_leaky_relu(x: torch.Tensor, bias: torch.Tensor, slope: float = SLOPE, gain: float = GAIN) -> torch.Tensor:
    """Returns ``gain * leaky_relu(x + bias, slope)``.

    Args:
        x: (N, C, ...) activations.
        bias: (C,) one bias per channel; used in the type of ``x``, so that autocast's bfloat16 stays bfloat16.
        slope: slope for negative values, > 0.
        gain: factor on the result, > 0.

    Returns:
        A tensor like ``x``.

    Raises:
        ValueError: ``bias`` does not have one value per channel.
    """
    if bias.shape != x.shape[1:2]:
        raise ValueError(f"fused_leaky_relu: bias has shape {tuple(bias.shape)}, x has {x.shape[1]} channels")
    if library.has_pointwise_kernel(x):
        return torch.ops.sgpn.fused_leaky_relu(x, bias.to(library.wide(x.dtype)), slope, gain)
    return _plain(x, bias, slope, gain)


def concat_leaky_relu(
    hidden: torch.Tensor,
    fused: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    slope: float = SLOPE,
    gain: float = GAIN,
) -> torch.Tensor:
    """Returns ``fused_leaky_relu([hidden, weight * fused], bias)``, concatenated along the channels.

    Args:
        hidden: (N, C, ...) activations.
        fused: (N, D, ...) activations.
        weight: (1,) factor on ``fused``, used in its type.
        bias, slope, gain: as :func:`fused_leaky_relu`'s; (C + D,) biases.

    Returns:
        (N, C + D, ...), of the wider type of the two.

    Raises:
        ValueError: ``bias`` does not have one value per channel.
    """
    if not library.has_pointwise_kernel(hidden):
        return fused_leaky_relu(torch.cat([hidden, fused * weight.to(fused.dtype)], dim=1), bias, slope, gain)
    channels = hidden.shape[1] + fused.shape[1]
    if tuple(bias.shape) != (channels,):
        raise ValueError(f"concat_leaky_relu: bias has shape {tuple(bias.shape)}, the activations {channels} channels")
    dtype = torch.promote_types(hidden.dtype, fused.dtype)
    weight, bias = weight.to(library.wide(dtype)), bias.to(library.wide(dtype))
    return torch.ops.sgpn.concat_leaky_relu(hidden.to(dtype), fused.to(dtype), weight, bias, slope, gain)


def _plain(x, bias, slope, gain):
    bias = bias.to(x.dtype).reshape(1, -1, *[1] * (x.ndim - 2))
    # A positive gain may be applied before the leaky ReLU, which saves a pass over the activations; the sum is a fresh
    # tensor, so that working in place is safe and saves another. torch.compile fuses steps itself, and where x is a matrix
    # product it would lose `alpha` (findings/inductor_add_alpha.sh).
    compiling = torch.compiler.is_compiling()
    total = bias * gain + x * gain if compiling else torch.add(bias * gain, x, alpha=gain)
    return functional.leaky_relu_(total, slope)


# ---------------------------------------------------------------------------------------------------------------------
# The same as operators with kernels. Gradients look at the output's sign, as PyTorch's leaky_relu_ does, so that the input
# need not be kept. With s = gain or gain * slope by that sign, z = s * grad is the gradient of what the bias is added to.


def _plain_concat(hidden, fused, weight, bias, slope, gain):
    return _plain(torch.cat([hidden, fused * weight.to(fused.dtype)], dim=1), bias, slope, gain)


def _per_channel(values, x):
    return values.to(x.dtype).reshape(1, -1, *[1] * (x.ndim - 2))


def _plain_backward(grad, out, slope, gain):
    z = torch.where(out > 0, grad * gain, grad * (gain * slope))
    return z, z.to(library.wide(z.dtype)).sum(dim=[d for d in range(z.ndim) if d != 1])


def _plain_concat_backward(grad, out, fused, weight, slope, gain):
    z, grad_bias = _plain_backward(grad, out, slope, gain)
    above, below = z.split([out.shape[1] - fused.shape[1], fused.shape[1]], dim=1)
    grad_weight = (below.to(weight.dtype) * fused.to(weight.dtype)).sum().reshape(weight.shape)
    return above, below * weight.to(below.dtype), grad_weight, grad_bias


def _loop_backward(grad, out, slope, gain):
    from sgpn_arch.ops import loops

    z = torch.empty_like(out)
    to_bias = loops.run(loops.fused_leaky_relu_backward, (grad, out, z), (slope, gain), sums=out.shape[1])
    return z, to_bias.to(out.dtype)


def _loop_concat_backward(grad, out, fused, weight, slope, gain):
    from sgpn_arch.ops import loops

    both, channels = out.shape[1], fused.shape[1]
    hidden, below = library.empty(out, (out.shape[0], both - channels, *out.shape[2:])), torch.empty_like(fused)
    maps, numbers = (grad, out, fused, hidden, below), (weight.item(), slope, gain)
    total = loops.run(loops.concat_leaky_relu_backward, maps, numbers, sums=both + channels).to(out.dtype)
    return hidden, below, total[both:].sum().reshape(weight.shape), total[:both]


def _saver(kept):
    """A setup_context that keeps the tensors ``kept(inputs, output)`` for the gradient, and slope and gain."""

    def save(ctx, inputs, output):
        ctx.save_for_backward(*kept(inputs, output))
        ctx.slope, ctx.gain = inputs[-2:]

    return save


def _backward(ctx, grad):
    return *torch.ops.sgpn.fused_leaky_relu_backward(grad, *ctx.saved_tensors, ctx.slope, ctx.gain), None, None


def _second_backward(ctx, second_z, second_bias):
    (out,) = ctx.saved_tensors
    second = second_z + _per_channel(second_bias, second_z)
    return torch.ops.sgpn.fused_leaky_relu_backward(second, out, ctx.slope, ctx.gain)[0], None, None, None


def _concat_backward(ctx, grad):
    grads = torch.ops.sgpn.concat_leaky_relu_backward(grad, *ctx.saved_tensors, ctx.slope, ctx.gain)
    return *grads, None, None


def _second_concat_backward(ctx, second_hidden, second_fused, second_weight, second_bias):
    grad, out, fused, weight = ctx.saved_tensors
    through = torch.ops.sgpn.fused_leaky_relu_backward
    below = through(grad, out, ctx.slope, ctx.gain)[0][:, out.shape[1] - fused.shape[1] :]
    second_below = second_fused * weight.to(fused.dtype) + fused * second_weight.to(fused.dtype)
    second = torch.cat([second_hidden, second_below], dim=1) + _per_channel(second_bias, out)
    to_weight = (second_fused.to(weight.dtype) * below.to(weight.dtype)).sum().reshape(weight.shape)
    return (
        through(second, out, ctx.slope, ctx.gain)[0],
        None,
        below * second_weight.to(below.dtype),
        to_weight,
        None,
        None,
    )


def _like_concat(hidden, fused, *_):
    return library.empty(hidden, (hidden.shape[0], hidden.shape[1] + fused.shape[1], *hidden.shape[2:]))


def _like_backward(grad, out, *_):
    return library.empty(out), out.new_empty(out.shape[1], dtype=library.wide(out.dtype))


def _like_concat_backward(grad, out, fused, weight, *_):
    hidden = library.empty(out, (out.shape[0], out.shape[1] - fused.shape[1], *out.shape[2:]))
    bias = out.new_empty(out.shape[1], dtype=library.wide(out.dtype))
    return hidden, library.empty(out, fused.shape), torch.empty_like(weight), bias


library.declare(
    "fused_leaky_relu(Tensor x, Tensor bias, float slope, float gain) -> Tensor",
    plain=_plain,
    like=lambda x, *_: library.empty(x),
    setup_context=_saver(lambda inputs, output: (output,)),
    backward=_backward,
)
library.declare(
    "fused_leaky_relu_backward(Tensor grad, Tensor out, float slope, float gain) -> (Tensor, Tensor)",
    plain=_plain_backward,
    like=_like_backward,
    setup_context=_saver(lambda inputs, _: inputs[1:2]),
    backward=_second_backward,
    loops=_loop_backward,
)
library.declare(
    "concat_leaky_relu(Tensor hidden, Tensor fused, Tensor weight, Tensor bias, float slope, float gain) -> Tensor",
    plain=_plain_concat,
    like=_like_concat,
    setup_context=_saver(lambda inputs, output: (output, *inputs[1:3])),
    backward=_concat_backward,
)
library.declare(
    "concat_leaky_relu_backward(Tensor grad, Tensor out, Tensor fused, Tensor weight, float slope, float gain)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    plain=_plain_concat_backward,
    like=_like_concat_backward,
    setup_context=_saver(lambda inputs, _: inputs[:4]),
    backward=_second_concat_backward,
    loops=_loop_concat_backward,
)
