"""scripts/refit_regressor.py: it finds coefficients that pictures and landmarks were made with, and the linear map to them."""

import pytest
import torch

from oracles.script import load_script
from sgpn_arch.d3dfr_arch import D3DFR
from sgpn_arch.face3d.lighting import sh_basis, shade
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.face3d.shape_prior import ShapePrior


@pytest.fixture(scope="module")
def script():
    return load_script("refit_regressor")


@pytest.fixture(scope="module")
def prior():
    return ShapePrior(torch.nn.Identity(), MorphableModel.open())


def test_ridge_is_the_minimum_of_its_energy(script):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    targets = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    weights, bias = (value.double() for value in script.ridge(features, targets, 0.1))
    own = features - features.mean(0)
    strength = 0.1 * (own.T @ own).diagonal().mean()
    residual = features @ weights.T + bias - targets
    gradient = residual.T @ own + strength * weights
    assert residual.mean(0).abs().max() < 1e-6
    assert gradient.abs().max() < 1e-4


def test_a_linear_map_is_found_again(script):
    generator = torch.Generator().manual_seed(0)
    features, truth = torch.randn(400, 6, generator=generator), torch.randn(3, 6, generator=generator)
    weights, bias = script.chosen_ridge(features, features @ truth.T + 2, torch.arange(400))
    torch.testing.assert_close(weights, truth, atol=0.02, rtol=0)
    torch.testing.assert_close(bias, torch.full((3,), 2.0), atol=0.02, rtol=0)


def test_colours_are_fitted(script, prior):
    """Vertices that are lit by a known light: texture and light together give the colours back."""
    generator = torch.Generator().manual_seed(0)
    model = prior.model
    texture = 0.7 * torch.randn(1, model.dims[2], generator=generator)
    normals = torch.nn.functional.normalize(torch.randn(1, len(model.shape_mean), 3, generator=generator), dim=2)
    lighting = 0.05 * torch.randn(1, 27, generator=generator)
    albedo = model.albedo(texture)
    colors = shade(albedo, normals, lighting)
    seen = torch.ones(colors.shape[:2], dtype=torch.bool)
    found, light = script.fit_colors(prior, albedo, seen, colors, sh_basis(normals))
    back = shade(model.albedo(found), normals, light)
    assert (back - colors).abs().mean() < 0.02
    torch.testing.assert_close(light, lighting, atol=0.05, rtol=0)


def test_late_layers_learn_where_landmarks_are_and_leave_the_others(script):
    """Two views again and again: landmarks come nearer. What is before the maps stays, and so do statistics of norms."""
    torch.manual_seed(0)
    regressor = D3DFR(80, 52, 40, "mobilenet_v2", imagenet_normalisation=True).eval()
    prior = ShapePrior(regressor, MorphableModel.open())
    before = {key: value.clone() for key, value in regressor.state_dict().items()}
    coeffs = 0.1 * torch.randn(2, prior.coeff_dim)
    coeffs[:, 173] = 0.4  # the angle about y
    truth = prior.landmarks224(prior.mesh(coeffs))
    errors = script.train_late(prior, torch.rand(2, 160, 7, 7).half(), coeffs, truth, steps=20, batch=2, rate=4e-3)
    assert min(errors[-5:]) < 0.75 * errors[0]
    after = regressor.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    late = tuple(f"backbone.features.{number}." for number in range(script.LATE, 19))
    assert any(key.startswith(late) for key in changed)
    assert all(key.startswith((*late, "final_layers.")) and "running" not in key for key in changed)


def test_heads_are_written_in_the_order_of_the_coefficients(script):
    regressor = D3DFR(4, 3, 2, "mobilenet_v2")
    bias = torch.arange(float(regressor.coeff_dim))
    script.set_heads(regressor, torch.zeros(regressor.coeff_dim, regressor.backbone.width), bias)
    torch.testing.assert_close(regressor.eval()(torch.rand(1, 3, 32, 32))[0], bias)
