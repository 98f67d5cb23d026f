"""Tests of the CUDA kernels without a GPU: they compile for it, and, compiled as plain C++, compute what PyTorch does."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sgpn_arch.ops
from sgpn_arch.ops import concat_leaky_relu, fir_kernel, fused_leaky_relu, masked_blend, upfirdn2d

CSRC = Path(sgpn_arch.ops.__file__).parent / "csrc"
TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-6, torch.float64: 1e-13}
# Small, so that small pictures run every loop more than once.
LIMITS = {"CHUNK": 64, "GRAD_SLOTS": 256, "MAX_BLOCKS": 3}
POINTER, LONG, INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


def _structure(name, **fields):
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


def _named(kind, names):
    return dict.fromkeys(names.split(), kind)


# The structs of csrc/launch.h, field by field.
Activation = _structure(
    "Activation",
    **_named(INT, "type channels_last"),
    **_named(LONG, "batch area hidden_channels fused_channels hidden_stride fused_stride"),
    **_named(POINTER, "hidden fused weight bias out"),
    **_named(ctypes.c_double, "slope gain"),
)
ActivationGrad = _structure(
    "ActivationGrad",
    **_named(INT, "type channels_last"),
    **_named(LONG, "batch area hidden_channels fused_channels fused_stride partial_sums"),
    **_named(POINTER, "grad out fused weight grad_hidden grad_fused partial_bias partial_weight"),
    **_named(ctypes.c_double, "slope gain"),
)
Blend = _structure("Blend", type=INT, count=LONG, **_named(POINTER, "logits lq render fused mask"))
BlendGrad = _structure(
    "BlendGrad",
    type=INT,
    count=LONG,
    **_named(POINTER, "grad_fused grad_mask lq render mask grad_logits grad_lq grad_render"),
)
Filter = _structure(
    "Filter",
    **_named(INT, "type channels_last taps up down correlate"),
    **_named(LONG, "batch channels in_height in_width out_height out_width pad"),
    in_strides=LONG * 4,
    out_strides=LONG * 4,
    **_named(POINTER, "x kernel out"),
)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler (nvcc) is on the path")
def test_kernels_compile_for_a100_and_h100(tmp_path):
    chips = [f"-gencode=arch=compute_{chip},code=sm_{chip}" for chip in (80, 90)]
    command = ["nvcc", "-std=c++17", "-O1", "-Werror", "all-warnings", "--threads=2", *chips]
    done = subprocess.run(
        [*command, "-c", str(CSRC / "kernels.cu"), "-o", str(tmp_path / "kernels.o")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """The kernels as a library of plain C++."""
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler (g++) is on the path")
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    limits = [f"-DSGPN_{name}={value}" for name, value in LIMITS.items()]
    shim = Path(__file__).parent / "cuda_on_cpu.h"
    source = ["-x", "c++", str(CSRC / "kernels.cu")]
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-w", *limits, "-include", str(shim), *source]
    done = subprocess.run([*command, "-o", str(library)], capture_output=True, text=True)
    if "_Float16" in done.stderr:
        pytest.skip("this g++ has no half-precision type (it came with version 12)")
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


def _random(*shape, dtype, seed=0, channels_last=False):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return x.to(memory_format=torch.channels_last) if channels_last else x


def _wide(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _run(function, struct, dtype, **fields):
    """Calls a launcher; tensors become their addresses."""
    fields = {key: value.data_ptr() if torch.is_tensor(value) else value for key, value in fields.items()}
    function(ctypes.byref(struct(type=TYPES.index(dtype), **fields)), None)


def _close(actual, expected, dtype, factor=1.0):
    tolerance = TOLERANCE[dtype] * factor
    torch.testing.assert_close(actual.double(), expected.double(), atol=tolerance, rtol=tolerance)


SHAPES = [(2, 8, 8, 6, 4), (1, 8, 16, 16, 16), (3, 5, 3, 7, 5), (2, 16, 0, 12, 12), (2, 3, 0, 1, 1)]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sliced", [False, True])
def test_activation_and_its_gradients(kernels, dtype, channels_last, shape, sliced):
    batch, c, d, height, width = shape
    # A slice of the channels has another stride from sample to sample, or from pixel to pixel.
    both = _random(batch, 2 * (c + d), height, width, dtype=dtype, channels_last=channels_last)
    hidden, fused = (both[:, :c], both[:, c : c + d]) if sliced else _dense(both[:, :c], both[:, c : c + d])
    weight, bias = _wide(_random(1, dtype=dtype, seed=1)), _wide(_random(c + d, dtype=dtype, seed=2))
    outer = 3 if channels_last and height * width > 1 else 0
    out = torch.empty_like(_dense(both[:, : c + d])[0])
    common = dict(batch=batch, area=height * width, hidden_channels=c, fused_channels=d, slope=0.2, gain=2**0.5)
    common |= dict(channels_last=channels_last, fused=fused if d else None, weight=weight)
    common |= dict(fused_stride=fused.stride(outer) if d else 0)
    _run(
        kernels.sgpn_activation,
        Activation,
        dtype,
        **common,
        hidden=hidden,
        hidden_stride=hidden.stride(outer),
        bias=bias,
        out=out,
    )
    inputs = [x.double().requires_grad_() for x in (hidden, fused, weight, bias)]
    expected = concat_leaky_relu(*inputs)
    _close(out, expected, dtype)

    grad = torch.empty_like(out).copy_(_random(batch, c + d, height, width, dtype=dtype, seed=3))
    wide = _wide(bias).dtype
    rows = min(max(LIMITS["GRAD_SLOTS"] // (c + d), 1), batch * height * width)
    chunks = -(-height * width // LIMITS["CHUNK"])
    partial = [
        torch.full((rows, n) if channels_last else (batch, n, chunks), torch.nan, dtype=wide) for n in (c + d, d)
    ]
    grads = [torch.empty_like(x) for x in _dense(hidden, fused)]
    _run(
        kernels.sgpn_activation_grad,
        ActivationGrad,
        dtype,
        **common,
        partial_sums=rows if channels_last else chunks,
        grad=grad,
        out=out,
        grad_hidden=grads[0],
        grad_fused=grads[1],
        partial_bias=partial[0],
        partial_weight=partial[1],
    )
    bias_grad = partial[0].sum(0) if channels_last else partial[0].sum((0, 2))
    z = grad.double() * 2**0.5
    z = torch.where(out > 0, z, 0.2 * z)  # by the rounded output, as the kernel sees it
    _close(grads[0], z[:, :c], dtype)
    _close(grads[1], z[:, c:] * weight.double(), dtype)
    _close(bias_grad, z.sum((0, 2, 3)), dtype, batch * height * width)
    _close(partial[1].sum(), (z[:, c:] * fused.double()).sum(), dtype, batch * height * width)
    if dtype == torch.float64:
        for actual, wanted in zip(
            [*grads, partial[1].sum()[None], bias_grad],
            torch.autograd.grad(expected, inputs, grad, materialize_grads=True),
            strict=True,
        ):
            _close(actual, wanted, dtype, 100)


def _dense(*tensors):
    return tuple(x.contiguous(memory_format=_format(x)) for x in tensors)


def _format(x):
    return torch.channels_last if x.stride(1) == 1 and x.shape[2] * x.shape[3] > 1 else torch.contiguous_format


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("count", [1, 7, 16, 3072])
@pytest.mark.parametrize("uses_mask", [False, True])
def test_blend_and_its_gradients(kernels, dtype, count, uses_mask):
    inputs = [3 * _random(count, dtype=dtype, seed=seed) for seed in range(3)]
    fused, mask = (torch.empty_like(inputs[0]) for _ in range(2))
    logits, lq, render = inputs
    _run(kernels.sgpn_blend, Blend, dtype, count=count, logits=logits, lq=lq, render=render, fused=fused, mask=mask)
    exact = [x.double().requires_grad_() for x in inputs]
    expected = masked_blend(*exact)
    _close(fused, expected[0], dtype, 5)
    _close(mask, expected[1], dtype)

    grads = [_random(count, dtype=dtype, seed=seed) for seed in (3, 4)]
    if not uses_mask:
        grads[1] = None
    results = [torch.empty_like(x) for x in inputs]
    named = dict(zip(("grad_logits", "grad_lq", "grad_render"), results, strict=True))
    named |= dict(grad_fused=grads[0], grad_mask=grads[1], lq=lq, render=render, mask=mask)
    _run(kernels.sgpn_blend_grad, BlendGrad, dtype, count=count, **named)
    outputs = expected if uses_mask else expected[:1]
    wanted = torch.autograd.grad(outputs, exact, [g.double() for g in grads if g is not None])
    for actual, right in zip(results, wanted, strict=True):
        _close(actual, right, dtype, 5)


def test_a_saturated_mask_gives_one_picture_exactly(kernels):
    logits = torch.tensor([-200.0, 200.0, -torch.inf, torch.inf])
    lq, render = torch.full((4,), 0.1), torch.full((4,), 0.7)
    fused, mask = torch.empty(4), torch.empty(4)
    fields = dict(logits=logits, lq=lq, render=render, fused=fused, mask=mask)
    _run(kernels.sgpn_blend, Blend, torch.float32, count=4, **fields)
    assert torch.equal(mask, torch.tensor([0.0, 1, 0, 1]))
    assert torch.equal(fused, torch.tensor([0.7, 0.1, 0.7, 0.1]))


def _filtered(kernels, x, kernel, up, down, pad, correlate=False):
    """upfirdn2d by the kernels; ``x`` may have any strides, the result has the layout of the operator's."""
    last = x.stride(1) == 1 and x.shape[1] > 1
    height, width = ((side * up + sum(pad) - kernel.shape[-1]) // down + 1 for side in x.shape[2:])
    out = torch.full((*x.shape[:2], height, width), torch.nan, dtype=x.dtype)
    out = out.to(memory_format=torch.channels_last) if last else out
    kernel = _wide(kernel.to(x.dtype)).contiguous()
    shape = ("batch", "channels", "in_height", "in_width")
    fields = dict(zip(shape, x.shape, strict=True), out_height=height, out_width=width)
    strides = {"in_strides": (LONG * 4)(*x.stride()), "out_strides": (LONG * 4)(*out.stride())}
    fields |= dict(x=x, kernel=kernel, out=out, up=up, down=down, pad=pad[0], taps=len(kernel), correlate=correlate)
    _run(kernels.sgpn_filter, Filter, x.dtype, channels_last=last, **fields, **strides)
    return out


# What this project's layers ask for, and their gradients: rate up, rate down, padding.
USED = [(1, 1, (1, 1)), (1, 1, (2, 2)), (1, 1, (2, 1)), (2, 1, (2, 1)), (1, 2, (1, 1)), (2, 1, (2, 2)), (1, 1, (0, 0))]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize(("up", "down", "pad"), USED)
def test_filter_of_the_layers(kernels, dtype, channels_last, channels, up, down, pad):
    x = _random(2, channels, 19, 22, dtype=dtype, channels_last=channels_last)
    actual = _filtered(kernels, x, fir_kernel(gain=up**2), up, down, pad)
    _close(actual, upfirdn2d(x.double(), fir_kernel(gain=up**2), up, down, pad), dtype)


@settings(max_examples=150, deadline=None)
@given(
    up=st.integers(1, 3),
    down=st.integers(1, 3),
    before=st.integers(-3, 6),
    after=st.integers(-3, 6),
    taps=st.sampled_from([1, 2, 3, 4, 4, 4, 5]),
    layout=st.sampled_from(["planes", "pixels", "strided"]),
    size=st.tuples(st.integers(1, 2), st.sampled_from([1, 3, 4]), st.integers(5, 14), st.integers(5, 14)),
    correlate=st.booleans(),
)
def test_filter_of_any_rates_and_paddings(kernels, up, down, before, after, taps, layout, size, correlate):
    x = _random(*size, dtype=torch.float32)
    if layout == "pixels":
        x = x.to(memory_format=torch.channels_last)
    if layout == "strided":
        x = x.repeat_interleave(2, dim=3)[..., ::2]
    kernel = torch.randn(taps, taps, generator=torch.Generator().manual_seed(1))
    if min(size[2:]) * up + before + after < taps:
        return
    expected = upfirdn2d(x.double(), kernel.flip(0, 1) if correlate else kernel, up, down, (before, after))
    actual = _filtered(kernels, x, kernel, up, down, (before, after), correlate)
    torch.testing.assert_close(actual.double(), expected, atol=2e-5, rtol=1e-5)


def test_activation_alone_is_fused_leaky_relu(kernels):
    x, bias = _random(3, 8, dtype=torch.float32), _random(8, dtype=torch.float32, seed=1)
    out = torch.empty_like(x)
    fields = dict(batch=3, area=1, hidden_channels=8, hidden_stride=8, slope=0.1, gain=3.0, channels_last=True)
    _run(kernels.sgpn_activation, Activation, torch.float32, hidden=x, bias=bias, out=out, **fields)
    torch.testing.assert_close(out, fused_leaky_relu(x, bias, 0.1, 3.0))
