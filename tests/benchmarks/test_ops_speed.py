"""pytest-benchmark of the operations: each, and its definition step by step, in groups of the same work.

``pytest tests/benchmarks/test_ops_speed.py --benchmark-enable`` measures; otherwise each runs once, on small tensors. With
``--benchmark-json=FILE`` every measurement carries its GB/s, counted as if inputs were read and results written once; the
copy's is what the memory can do.
"""

import pytest
import torch
from torch.nn import functional

from sgpn_arch.inference.network import DTYPES
from sgpn_arch.ops import (
    concat_leaky_relu,
    fir_kernel,
    fused_leaky_relu,
    masked_blend,
    plain_operations,
    upfirdn2d,
    upsample2d,
)
from sgpn_arch.ops.fused_leaky_relu import GAIN, SLOPE

CHANNELS, COPIED_BYTES = 64, 256 * 2**20  # as in the last layers of the paper's network; more than any cache holds
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


# ---------------------------------------------------------------------------------------------------------------------
# The definitions, step by step


def leaky_steps(x, bias):
    return GAIN * functional.leaky_relu(x + bias.to(x.dtype).reshape(1, -1, 1, 1), SLOPE)


def concat_steps(hidden, fused, weight, bias):
    return leaky_steps(torch.cat([hidden, weight.to(fused.dtype) * fused], dim=1), bias)


def blend_steps(logits, lq, render):
    mask = torch.sigmoid(logits)
    return mask * lq + (1 - mask) * render


def fir_steps(x, kernel, up, pad):
    """Zeros between the pixels, padding, and a convolution of each channel."""
    if up > 1:
        spread = x.new_zeros(*x.shape[:2], x.shape[2] * up, x.shape[3] * up)
        spread[:, :, ::up, ::up] = x
        x = spread
    weight = kernel.to(x.dtype).flip(0, 1).expand(x.shape[1], 1, *kernel.shape)
    return functional.conv2d(functional.pad(x, pad * 2), weight, groups=x.shape[1])


BLUR = fir_kernel(gain=4.0)
# Name -> the operation, its definition, and its inputs: channels and size of a picture, in parts of the network's, or the
# length of a vector; then how many pictures are read and written at least, forward and with gradients.
CASES = {
    "fused_leaky_relu": (fused_leaky_relu, leaky_steps, ["picture", 1], (2, 5)),
    "concat_leaky_relu": (concat_leaky_relu, concat_steps, ["picture", "picture", "one", 2], (4, 11)),
    "masked_blend": (lambda *x: masked_blend(*x)[0], blend_steps, ["picture"] * 3, (5, 12)),
    "upfirdn2d, blur": (
        lambda x: upfirdn2d(x, BLUR.to(x.device), pad=(1, 1)),
        lambda x: fir_steps(x, BLUR.to(x.device), 1, (1, 1)),
        ["grown"],
        (2, 4),
    ),
    "upsample2d, RGB": (
        lambda x: upsample2d(x, BLUR.to(x.device)),
        lambda x: fir_steps(x, BLUR.to(x.device), 2, (2, 1)),
        ["small"],
        (1.25 * 3 / CHANNELS, 2.5 * 3 / CHANNELS),
    ),
}


def make_inputs(name: str, size: int, precision: str, device: str) -> list[torch.Tensor]:
    """Random numbers in the layout that the network has them in; all get gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"picture": (CHANNELS, size), "grown": (CHANNELS, size + 1), "small": (3, size // 2)}
    layout = torch.channels_last if precision != "fp32" or device == "cpu" else torch.contiguous_format
    inputs = []
    for kind in CASES[name][2]:
        if kind in shapes:
            channels, side = shapes[kind]
            x = torch.randn(1, channels, side, side, generator=generator)
            x = x.to(device, DTYPES[precision], memory_format=layout)
        else:
            x = torch.randn(1 if kind == "one" else kind * CHANNELS, generator=generator).to(device)
        inputs.append(x.requires_grad_())
    return inputs


def take_time(benchmark, call, nbytes: float):
    """Runs or measures a call to its end on the device, and notes its GB/s; returns its last result."""

    def finished():
        out = call()
        if out.is_cuda:
            torch.cuda.synchronize()
        return out

    out = benchmark(finished)
    if benchmark.enabled:
        benchmark.extra_info["GB/s"] = nbytes / benchmark.stats.stats.median / 1e9
    return out


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["forward", "gradients"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("path", ["operation", "steps", "kernels off"])
@pytest.mark.parametrize("name", CASES)
def test_speed(benchmark, name, path, precision, kind, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if path == "kernels off" and device == "cpu":
        pytest.skip("a CPU has no kernels of ours")
    size = 512 if benchmark.enabled else 32  # full size only where time is taken
    operation, steps, _, passes = CASES[name]
    function = steps if path == "steps" else operation
    inputs = make_inputs(name, size, precision, device)

    def forward():
        with torch.no_grad():
            return function(*inputs)

    def gradients():
        out = function(*inputs)
        torch.autograd.grad(out, inputs, torch.ones_like(out))
        return out.detach()

    def call():
        if path != "kernels off":
            return forward() if kind == "forward" else gradients()
        with plain_operations():
            return forward() if kind == "forward" else gradients()

    benchmark.group = f"{name}, {kind}, {precision}, {device}"
    nbytes = passes[kind == "gradients"] * CHANNELS * size**2 * DTYPES[precision].itemsize
    out = take_time(benchmark, call, nbytes)
    expected = steps(*inputs)
    assert (out - expected).abs().max() < (1e-4 if precision == "fp32" else 0.1)


@pytest.mark.parametrize("device", DEVICES)
def test_copy(benchmark, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    source = torch.ones(COPIED_BYTES // 4 if benchmark.enabled else 16, device=device)
    target = torch.zeros_like(source)
    benchmark.group = f"copy, {device}"
    assert take_time(benchmark, lambda: target.copy_(source), 2 * source.nbytes).min() == 1
