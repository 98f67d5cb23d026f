"""Fused leaky ReLU: bias, leaky ReLU and gain in one call.

``y = gain * leaky_relu(x + bias)``, the activation of StyleGAN2 (Karras et al. 2020), whose gain of sqrt(2) keeps
the variance of a signal that lost its negative half.
"""

import math

import torch
from torch.nn import functional

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
    bias = bias.to(x.dtype).reshape(1, -1, *[1] * (x.ndim - 2))
    # A positive gain may be applied before the leaky ReLU, which saves a pass over the activations;
    # the sum is a fresh tensor, so that working in place is safe and saves another.
    return functional.leaky_relu_(torch.add(bias * gain, x, alpha=gain), slope)
