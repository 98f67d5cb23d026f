"""scripts/refit_regressor.py: it finds coefficients that pictures and landmarks were made with, and the linear map to them."""

import pytest
import torch

from oracles.script import load_script
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


def test_landmarks_are_fitted(script, prior):
    """Two views of each of two faces: what was found puts the landmarks where they were, with one identity for both views."""
    generator = torch.Generator().manual_seed(0)
    coeffs = torch.zeros(4, prior.coeff_dim)
    coeffs[:, :80] = torch.randn(2, 80, generator=generator)[[0, 1, 0, 1]]
    coeffs[:, 80:100] = 0.5 * torch.randn(4, 20, generator=generator)
    coeffs[:, 173] = torch.tensor([0.2, -0.3, 0.1, 0.0])  # the angle about y
    truth = prior.landmarks224(prior.mesh(coeffs))
    start = torch.zeros_like(coeffs)
    found = script.fit_landmarks(prior, start, truth, torch.tensor([0, 1, 0, 1]))
    before = (prior.landmarks224(prior.mesh(start)) - truth).norm(dim=2).mean()
    after = (prior.landmarks224(prior.mesh(found)) - truth).norm(dim=2).mean()
    assert after < 1.0 < before
    assert torch.equal(found[0, :80], found[2, :80])


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
