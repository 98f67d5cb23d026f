"""``sgpn bench ops``: each operation of ``sgpn_arch.ops`` against PyTorch's own, and against what the memory allows."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sgpn_arch.layers import channels_at
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
from sgpn_model.cli import bench_measure
from sgpn_model.cli.bench_measure import (
    DTYPES,
    Settings,
    copy_bandwidth,
    difference,
    measure,
    ratio,
)
from sgpn_model.cli.bench_report import Row, Table, number

FORWARD, GRADIENTS = "forward", "gradients"


@dataclass
class Case:
    """An operation on tensors as they are in the network's last layers.

    Attributes:
        name: of the operation. function: of ``inputs``. steps: its definition, one PyTorch operation after the other.
        inputs: activations and parameters, all of which get gradients. forward, backward: how many elements are read and
            written at least.
    """

    name: str
    function: Callable[..., Tensor]
    steps: Callable[..., Tensor]
    inputs: list[Tensor]
    forward: int
    backward: int


def run(settings: Settings) -> Table:
    """Measures every operation in every precision, forward and with gradients."""
    copied = copy_bandwidth(settings)
    per_second = 2 * bench_measure.COPIED_BYTES / Row("copy", copied.seconds).median
    rows = [
        Row(
            f"copy of {bench_measure.COPIED_BYTES >> 20} MiB",
            copied.seconds,
            floor=2 * bench_measure.COPIED_BYTES / per_second,
        )
    ]
    for precision in settings.precisions():
        for case in cases(precision, settings):
            rows += _measure_case(case, precision, per_second, settings)
    channels = channels_at(settings.size, settings.width, 512)
    title = f"Operations on {channels} channels of {settings.size}x{settings.size}, batch {settings.batch or 1}"
    notes = [
        f"bandwidth: what part of a copy's {number(per_second / 1e9)} GB/s (bytes read and written) an operation reaches if it "
        "reads its inputs and writes its results once; above 100% where they stay in the caches. peak MiB: with the result.",
        "grad: forward, and the gradients of all inputs.",
    ]
    if settings.compare:
        other = "PyTorch's own operations" if settings.device.type == "cuda" else "its definition step by step"
        notes.append(f"x plain: the time of {other} over the operation's; difference: the largest absolute one.")
    return Table("ops", title, rows, notes)


def cases(precision: str, settings: Settings) -> list[Case]:
    """The operations, in the layout that the network has them in, on random numbers."""
    size, batch = settings.size, settings.batch or 1
    channels = channels_at(size, settings.width, 512)
    generator = torch.Generator().manual_seed(settings.seed)
    halved = precision != "fp32" or settings.device.type == "cpu"

    def picture(count: int, side: int) -> Tensor:
        x = torch.randn(batch, count, side, side, generator=generator)
        layout = torch.channels_last if halved else torch.contiguous_format
        return x.to(settings.device, DTYPES[precision], memory_format=layout).requires_grad_()

    def vector(count: int) -> Tensor:
        return torch.randn(count, generator=generator).to(settings.device).requires_grad_()

    hidden, fused, logits = (picture(channels, size) for _ in range(3))
    grown, small = picture(channels, size + 1), picture(3, size // 2)
    blur, enlarge = (fir_kernel(gain=4.0).to(settings.device) for _ in range(2))
    one, whole = hidden.numel(), 3 * batch * size**2
    return [
        Case("fused_leaky_relu", fused_leaky_relu, _leaky_steps, [hidden, vector(channels)], 2 * one, 3 * one),
        Case(
            "concat_leaky_relu",
            concat_leaky_relu,
            _concat_steps,
            [hidden, fused, vector(1), vector(2 * channels)],
            4 * one,
            7 * one,
        ),
        Case("masked_blend", lambda *x: masked_blend(*x)[0], _blend_steps, [logits, hidden, fused], 5 * one, 7 * one),
        Case(
            "upfirdn2d, blur",
            lambda x: upfirdn2d(x, blur, pad=(1, 1)),
            lambda x: _fir_steps(x, blur, 1, (1, 1)),
            [grown],
            one + grown.numel(),
            one + grown.numel(),
        ),
        Case(
            "upsample2d, RGB",
            lambda x: upsample2d(x, enlarge),
            lambda x: _fir_steps(x, enlarge, 2, (2, 1)),
            [small],
            whole + small.numel(),
            whole + small.numel(),
        ),
    ]


def _measure_case(case: Case, precision: str, per_second: float, settings: Settings) -> list[Row]:
    functions = {"own": case.function}
    if settings.compare:
        functions["plain"] = _in_plain(case.function) if case.inputs[0].is_cuda else case.steps
    rows = []
    for kind, elements in ((FORWARD, case.forward), (GRADIENTS, case.forward + case.backward)):
        found = measure(
            {name: timed_call(function, case.inputs, kind) for name, function in functions.items()}, settings
        )
        own, plain = found["own"], found.get("plain")
        name = f"{case.name} {precision}" + ("" if kind == FORWARD else " grad")
        row = Row(name, own.seconds, peak_mib=own.peak_mib)
        row.floor = elements * DTYPES[precision].itemsize / per_second
        if plain is not None:
            row.plain_seconds = plain.seconds
            row.ratio = ratio(plain.seconds, own.seconds)
            row.difference = difference(own.output, plain.output)
        rows.append(row)
    return rows


def timed_call(function: Callable, inputs: list[Tensor], kind: str) -> Callable:
    """A call of a function without arguments: FORWARD, without gradients, or GRADIENTS, with those of all inputs."""
    if kind == FORWARD:
        return torch.no_grad()(lambda: function(*inputs))

    def with_gradients():
        out = function(*inputs)
        torch.autograd.grad(out, inputs, torch.ones_like(out))
        return out.detach()

    return with_gradients


def _in_plain(function: Callable) -> Callable:
    """The function as it is without kernels of ours."""

    def call(*inputs):
        with plain_operations():
            return function(*inputs)

    return call


# ---------------------------------------------------------------------------------------------------------------------
# The definitions, step by step


def _leaky_steps(x: Tensor, bias: Tensor) -> Tensor:
    return GAIN * functional.leaky_relu(x + bias.to(x.dtype).reshape(1, -1, 1, 1), SLOPE)


def _concat_steps(hidden: Tensor, fused: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _leaky_steps(torch.cat([hidden, weight.to(fused.dtype) * fused], dim=1), bias)


def _blend_steps(logits: Tensor, lq: Tensor, render: Tensor) -> Tensor:
    mask = torch.sigmoid(logits)
    return mask * lq + (1 - mask) * render


def _fir_steps(x: Tensor, kernel: Tensor, up: int, pad: tuple[int, int]) -> Tensor:
    """Zeros between the pixels, padding, and a convolution of each channel."""
    channels = x.shape[1]
    if up > 1:
        spread = x.new_zeros(*x.shape[:2], x.shape[2] * up, x.shape[3] * up)
        spread[:, :, ::up, ::up] = x
        x = spread
    weight = kernel.to(x.dtype).flip(0, 1).expand(channels, 1, *kernel.shape)
    return functional.conv2d(functional.pad(x, pad * 2), weight, groups=channels)
