"""Tests of the loops for the CPU (sgpn_arch/ops/loops.py): gradients against plain operations in float64, and where they run."""

import pytest
import torch

from sgpn_arch.ops import concat_leaky_relu, fused_leaky_relu, library, loops, masked_blend, plain_operations
from sgpn_arch.sgpn_arch import SGPN

NAMES = ("fused_leaky_relu", "concat_leaky_relu", "masked_blend")
FUNCTIONS = {
    "fused_leaky_relu": fused_leaky_relu,
    "concat_leaky_relu": concat_leaky_relu,
    "masked_blend": masked_blend,
    "masked_blend, mask used too": masked_blend,
}


@pytest.fixture
def ran(monkeypatch):
    """Maps of any size are large; the names of the loops that ran."""
    names, run = [], loops.run

    def note(loop, *arguments, **keywords):
        names.append(loop.__name__)
        return run(loop, *arguments, **keywords)

    monkeypatch.setattr(library, "LARGE", 1)
    monkeypatch.setattr(loops, "run", note)
    return names


def _arguments(name, shape, dtype, others=0):
    """Maps in channels_last, and what else the function takes; the second map has ``others`` more channels."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=dtype)

    batch, channels, height, width = shape
    wider = (batch, channels + others, height, width)
    maps = [draw(*size).to(memory_format=torch.channels_last) for size in (shape, wider, wider)]
    if name.startswith("masked"):
        return [x.requires_grad_() for x in maps]
    if name.startswith("fused"):
        return [maps[0].requires_grad_(), draw(channels).requires_grad_()]
    return [x.requires_grad_() for x in (maps[0], maps[1], draw(1), draw(2 * channels + others))]


def _gradients(function, arguments, name):
    results = function(*arguments)
    results = (results,) if isinstance(results, torch.Tensor) else results
    results = results if name.endswith("too") else results[:1]
    generator = torch.Generator().manual_seed(1)
    # Contiguous, as gradients of slices and reshapes may be.
    grads = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in results]
    return torch.autograd.grad(results, arguments, grads)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(2, 5, 31, 37), (1, 16, 8, 8), (4, 3, 1, 1)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_those_of_plain_operations_in_float64(ran, name, shape, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        arguments = _arguments(name, shape, torch.float32, others=2 if name.startswith("concat") else 0)
        found = _gradients(FUNCTIONS[name], arguments, name)
    finally:
        torch.set_num_threads(before)
    assert ran == [f"{name.partition(',')[0]}_backward"]
    with plain_operations():
        expected = _gradients(FUNCTIONS[name], [x.detach().double().requires_grad_() for x in arguments], name)
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual.double(), wanted, atol=1e-5 * wanted.abs().max().item(), rtol=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_the_slopes_and_have_gradients(ran, name):
    arguments = _arguments(name, (2, 2, 3, 2), torch.float64)
    assert torch.autograd.gradcheck(FUNCTIONS[name], arguments)
    assert torch.autograd.gradgradcheck(FUNCTIONS[name], arguments)
    assert set(ran) >= {f"{name.partition(',')[0]}_backward"}


def test_loops_run_for_large_maps_of_a_cpu_that_learn(ran, monkeypatch):
    x, bias = _arguments("fused", (1, 4, 8, 8), torch.float32)

    def runs(x):
        ran.clear()
        fused_leaky_relu(x, bias).sum().backward()
        return bool(ran)

    assert runs(x)
    assert not runs(x.contiguous())
    assert not runs(x.bfloat16())
    with plain_operations():
        assert not runs(x)
    monkeypatch.setattr(library, "LARGE", 4 * 8 * 8 + 1)
    assert not runs(x)
    with torch.no_grad():
        monkeypatch.setattr(library, "LARGE", 1)
        assert not library.has_pointwise_kernel(x)


def test_a_network_learns_with_loops_as_without(ran):
    torch.manual_seed(0)
    network = SGPN(size=64, width=0.02, max_channels=32, style_dim=8, latent_dim=4, coeff_dim=3)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)  # features are heard
    inputs = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64), torch.randn(2, 3)

    def gradients():
        network.zero_grad()
        network(*inputs).square().mean().backward()
        return [parameter.grad for parameter in network.parameters()]

    found = gradients()
    assert set(ran) == {f"{name}_backward" for name in NAMES}
    with plain_operations():
        expected = gradients()
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-5 * wanted.abs().max().item(), rtol=1e-3)
