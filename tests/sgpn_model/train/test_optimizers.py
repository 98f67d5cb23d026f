"""Muon against definitions by singular values and PyTorch's own Adam, and the names that option files may use."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgpn_arch.errors import OptionError
from sgpn_model.train.optimizers import Muon, build_optimizer, orthogonal, read_optimizer


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 1000))
def test_orthogonal_keeps_directions_and_evens_out_their_strength(rows, columns, seed):
    # Singular values from 0.3 to 1 of the largest: what the iteration is made for.
    generator = torch.Generator().manual_seed(seed)
    left, _, right = torch.linalg.svd(
        torch.randn(rows, columns, generator=generator, dtype=torch.float64), full_matrices=False
    )
    strengths = torch.linspace(1, 0.3, min(rows, columns), dtype=torch.float64)
    made = left.t() @ orthogonal(left * strengths @ right) @ right.t()
    assert (made.diagonal() > 0.6).all() and (made.diagonal() < 1.25).all()
    torch.testing.assert_close(made, torch.diag(made.diagonal()), atol=1e-9, rtol=0)


def test_orthogonal_is_the_iteration_on_the_whole_matrix():
    matrix = torch.randn(24, 70, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = matrix / matrix.norm()
    for _ in range(5):
        square = wanted @ wanted.t()
        wanted = 3.4445 * wanted - 4.7750 * square @ wanted + 2.0315 * square @ square @ wanted
    torch.testing.assert_close(orthogonal(matrix), wanted, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(orthogonal(matrix.t()), wanted.t(), atol=1e-6, rtol=1e-6)


def test_orthogonal_of_nothing_is_nothing():
    assert (orthogonal(torch.zeros(20, 30)) == 0).all()


@pytest.mark.parametrize("shape", [(40,), (1,), (3, 64, 1, 1), (1, 32, 4, 4), (64, 15)])
def test_narrow_parameters_go_by_adam(shape):
    ours = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    optimizers = Muon([ours], lr=0.01), torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.99))
    for step in range(5):
        ours.grad = torch.randn(shape, generator=torch.Generator().manual_seed(10 + step))
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(32, 48, 3, 3), (64, 16), (16, 200)])
def test_a_matrix_moves_by_the_rate_whatever_the_gradient_s_size(shape):
    for strength in (1e-4, 1e4):
        weight = torch.zeros(shape, requires_grad=True)
        weight.grad = strength * torch.randn(shape, generator=torch.Generator().manual_seed(2))
        Muon([weight], lr=0.01).step()
        assert 0.006 < weight.detach().square().mean().sqrt() < 0.0125
        assert (weight.detach() * weight.grad).sum() < 0


def test_muon_learns_and_resumes_exactly():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 20))
    inputs = torch.randn(64, 20)
    wanted = inputs.roll(1, dims=1)

    def train(network, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (network(inputs) - wanted).square().mean()
            loss.backward()
            optimizer.step()
        return loss.item()

    optimizer = Muon(network.parameters(), lr=5e-3)
    first = train(network, optimizer, 1)
    train(network, optimizer, 60)
    resumed = copy.deepcopy(network)
    other = Muon(resumed.parameters(), lr=5e-3)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(network, optimizer, 40) == train(resumed, other, 40) < 0.3 * first


def test_an_option_file_names_optimisers():
    weights = [torch.zeros(2, requires_grad=True)]
    built = build_optimizer(read_optimizer({"type": "Muon", "lr": 1e-3, "momentum": 0.9}), weights)
    assert isinstance(built, Muon) and built.defaults == {
        "lr": 1e-3,
        "momentum": 0.9,
        "betas": (0.9, 0.99),
        "eps": 1e-8,
    }
    for name in ("Adam", "AdamW"):
        theirs = getattr(torch.optim, name)
        built = build_optimizer(read_optimizer({"type": name}), weights)
        assert type(built) is theirs and built.defaults == theirs(weights).defaults
    assert read_optimizer({"lr": 1e-3}).type == "Adam"
    with pytest.raises(OptionError, match="type: unknown optimiser 'Mion'; did you mean 'Muon'"):
        read_optimizer({"type": "Mion"})
    with pytest.raises(OptionError, match="momentum"):
        read_optimizer({"type": "Adam", "momentum": 0.9})
