"""Tests of sgpn_arch/ops against slow definitions, with first and second gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles import stylegan2 as oracle
from sgpn_arch.ops import downsample2d, fir_kernel, fused_leaky_relu, upfirdn2d, upsample2d


def _random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@settings(max_examples=60, deadline=None)
@given(
    up=st.integers(1, 3),
    down=st.integers(1, 3),
    before=st.integers(-2, 4),
    after=st.integers(-2, 4),
    taps=st.integers(1, 5),
    channels_last=st.booleans(),
)
def test_upfirdn2d_is_zero_insertion_convolution_and_decimation(up, down, before, after, taps, channels_last):
    x, kernel = _random(2, 3, 9, 11), _random(taps, taps, seed=1)
    expected = oracle.upfirdn2d(x.numpy(), kernel.numpy(), up, down, (before, after))
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    actual = upfirdn2d(x, kernel, up, down, (before, after))
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-10)


@pytest.mark.parametrize(
    ("up", "down", "pad"),
    [(1, 1, (2, 1)), (2, 1, (2, 1)), (1, 2, (1, 1)), (1, 1, (-1, 2)), (2, 3, (3, -1)), (3, 2, (-2, 4))],
)
def test_upfirdn2d_has_right_first_and_second_gradients(up, down, pad):
    x, kernel = _random(1, 2, 4, 4).requires_grad_(), _random(4, 4, seed=1)
    assert torch.autograd.gradcheck(lambda x: upfirdn2d(x, kernel, up, down, pad), x)
    assert torch.autograd.gradgradcheck(lambda x: upfirdn2d(x, kernel, up, down, pad), x)


def test_blur_kernel_is_the_binomial_one_and_sums_to_its_gain():
    assert torch.equal(fir_kernel() * 64, torch.tensor([[1.0, 3, 3, 1], [3, 9, 9, 3], [3, 9, 9, 3], [1, 3, 3, 1]]))
    assert fir_kernel(gain=4.0).sum().item() == pytest.approx(4)


def test_resampling_keeps_a_constant_picture_away_from_the_border():
    x = torch.full((1, 2, 16, 16), 0.7)
    assert torch.allclose(upsample2d(x, fir_kernel(gain=4.0))[:, :, 2:-2, 2:-2], torch.tensor(0.7))
    assert torch.allclose(downsample2d(x, fir_kernel())[:, :, 1:-1, 1:-1], torch.tensor(0.7))
    assert upsample2d(x, fir_kernel(gain=4.0)).shape == (1, 2, 32, 32)
    assert downsample2d(x, fir_kernel()).shape == (1, 2, 8, 8)


def test_resampling_does_not_shift_the_picture():
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    larger = upsample2d(ramp, fir_kernel(gain=4.0))
    centres = (torch.arange(32.0) + 0.5) / 2 - 0.5
    assert torch.allclose(larger[0, 0, 16, 4:-4], centres[4:-4], atol=1e-5)
    smaller = downsample2d(ramp, fir_kernel())
    assert torch.allclose(smaller[0, 0, 4, 2:-2], torch.arange(8.0)[2:-2] * 2 + 0.5, atol=1e-5)


def test_upfirdn2d_keeps_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert upsample2d(torch.randn(1, 3, 8, 8), fir_kernel(gain=4.0)).dtype == torch.float32


@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 5), (2, 4, 3, 5)])
@pytest.mark.parametrize("options", [{}, {"slope": 0.01, "gain": 3.0}])
def test_fused_leaky_relu_is_its_formula(shape, options):
    x, bias = _random(*shape), _random(4, seed=1)
    expected = oracle.fused_leaky_relu(x.numpy(), bias.numpy(), **options)
    np.testing.assert_allclose(fused_leaky_relu(x, bias, **options).numpy(), expected, atol=1e-12)


def test_fused_leaky_relu_leaves_its_input_and_memory_format_alone():
    x = torch.randn(2, 4, 8, 8).to(memory_format=torch.channels_last)
    before = x.clone()
    y = fused_leaky_relu(x, torch.ones(4))
    assert torch.equal(x, before)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_fused_leaky_relu_has_right_first_and_second_gradients():
    x, bias = _random(2, 3, 2, 2).requires_grad_(), _random(3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(fused_leaky_relu, (x, bias))
    assert torch.autograd.gradgradcheck(fused_leaky_relu, (x, bias))


def test_fused_leaky_relu_says_which_shape_is_wrong():
    with pytest.raises(ValueError, match=r"bias has shape \(3,\), x has 4 channels"):
        fused_leaky_relu(torch.zeros(1, 4, 2, 2), torch.zeros(3))
