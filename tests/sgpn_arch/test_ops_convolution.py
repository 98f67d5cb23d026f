"""Tests of sgpn_arch/ops/convolution.py: the quicker gradient of weights against PyTorch's, and where it is taken."""

import importlib

import pytest
import torch
from torch.nn import functional

from sgpn_arch.ops import convolution, plain_operations

# stride, padding, transposed: the convolutions of the networks
GEOMETRIES = [(1, 1, False), (2, 0, False), (2, 0, True)]


@pytest.fixture
def avx2(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


def _tensors(channels, dtype, side=9):
    """x in channels_last, and weights of as many channels to as many."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, side, side, generator=generator, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, generator=generator, dtype=dtype)
    return x.requires_grad_(), weight.requires_grad_()


def _plainly(x, weight, stride, padding, transposed):
    plain = functional.conv_transpose2d if transposed else functional.conv2d
    return plain(x, weight, stride=stride, padding=padding)


def _is_quick(y):
    return type(y.grad_fn).__name__ == "_ConvolutionBackward"


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_values_and_gradients_are_those_of_float64(avx2, geometry):
    x, weight = _tensors(32, torch.float32)
    stride, padding, transposed = geometry
    y = convolution(x, weight, stride=stride, padding=padding, transposed=transposed)
    assert _is_quick(y)
    exact = [v.detach().double().requires_grad_() for v in (x, weight)]
    expected = _plainly(*exact, *geometry)
    torch.testing.assert_close(y.double(), expected, atol=1e-4, rtol=1e-5)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(y, (x, weight), grad)
    for actual, wanted in zip(found, torch.autograd.grad(expected, exact, grad.double()), strict=True):
        torch.testing.assert_close(actual.double(), wanted, atol=2e-4, rtol=1e-5)
    assert found[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradients_are_the_slopes_and_have_gradients(monkeypatch, geometry):
    module = importlib.import_module("sgpn_arch.ops.convolution")  # of the same name as the function
    monkeypatch.setattr(module, "_learns_slowly", lambda x, weight: True)
    x, weight = _tensors(2, torch.float64, side=4)
    stride, padding, transposed = geometry

    def convolve(x, weight):
        return convolution(x, weight, None, stride, padding, transposed)

    assert _is_quick(convolve(x, weight))
    assert torch.autograd.gradcheck(convolve, (x, weight))
    assert torch.autograd.gradgradcheck(convolve, (x, weight))
    for needed, fixed in ((x, weight.detach()), (x.detach(), weight)):
        leaf = needed if needed is x else fixed
        (found,) = torch.autograd.grad(convolve(needed, fixed).square().sum(), leaf)
        (wanted,) = torch.autograd.grad(_plainly(x, weight, *geometry).square().sum(), leaf)
        torch.testing.assert_close(found, wanted)


def test_it_is_taken_where_it_is_quicker_and_nowhere_else(avx2, monkeypatch):
    x, weight = _tensors(32, torch.float32)
    assert _is_quick(convolution(x, weight))
    few, narrow = _tensors(16, torch.float32)
    assert not _is_quick(convolution(few, narrow))
    assert not _is_quick(convolution(x.contiguous(), weight))
    assert not _is_quick(convolution(x, weight[:, :, :1, :1]))
    assert not _is_quick(convolution(x, weight.detach()))
    assert not _is_quick(convolution(x, weight, torch.zeros(32)))
    assert not _is_quick(convolution(x.double(), weight.double()))
    with torch.no_grad():
        assert not _is_quick(convolution(x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        y = convolution(x, weight)
        assert y.dtype == torch.bfloat16 and not _is_quick(y)
    with plain_operations():
        assert not _is_quick(convolution(x, weight))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert not _is_quick(convolution(x, weight))
