"""scripts/learn_texture_basis.py: what it computes, on textures that are made up."""

import numpy as np
import pytest
import torch

from oracles.script import load_script
from sgpn_arch.face3d.lighting import sh_basis
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.face3d.shape_prior import ShapePrior


@pytest.fixture(scope="module")
def script():
    return load_script("learn_texture_basis")


@pytest.fixture(scope="module")
def textures():
    """200 textures of 50 vertices that three modes explain: (textures, mean, basis)."""
    rng = np.random.default_rng(0)
    mean = rng.uniform(0.3, 0.7, (50, 3))
    basis = rng.standard_normal((3, 50, 3)) * np.array([0.1, 0.05, 0.02])[:, None, None]
    return np.einsum("nk,kvc->nvc", rng.standard_normal((200, 3)), basis) + mean, mean, basis


def test_components_are_those_of_the_covariance(script, textures):
    data, _, _ = textures
    mean, basis = script.principal_components(data, np.ones(data.shape[:2], bool), 3)
    flat = data.reshape(len(data), -1)
    np.testing.assert_allclose(mean.ravel(), flat.mean(0), atol=1e-5)
    modes = basis.reshape(3, -1)
    np.testing.assert_allclose(modes.T @ modes, np.cov(flat.T), atol=1e-5)


def test_what_was_not_seen_is_filled_in(script, textures):
    data, _, _ = textures
    seen = np.random.default_rng(1).random(data.shape[:2]) > 0.3
    holes = np.where(seen[..., None], data, 9.0)
    _, basis = script.principal_components(holes, seen, 3, rounds=30)
    modes, wanted = basis.reshape(3, -1), np.cov(data.reshape(len(data), -1).T)
    assert np.abs(modes.T @ modes - wanted).max() < 0.1 * np.abs(wanted).max()


def test_strangers_do_not_count(script, textures):
    data, _, _ = textures
    changed = data.copy()
    changed[3, 7] = 5.0
    seen = script.without_strangers(changed, np.ones(data.shape[:2], bool))
    assert not seen[3, 7]
    assert seen.mean() > 0.98


def test_light_is_found_and_the_tone_of_the_skin_is_not_taken_for_it(script):
    generator = torch.Generator().manual_seed(0)
    normals = torch.nn.functional.normalize(torch.randn(1, 2000, 3, generator=generator), dim=2)
    basis, mean = sh_basis(normals), torch.full((2000, 3), 0.5)
    gamma = torch.tensor([1.0, 0.1, 0.15, -0.1, 0.02, 0, 0.03, 0, 0])
    wanted = (basis @ gamma) / basis[..., 0]
    dark = 0.4 * mean * wanted.unsqueeze(2)
    found = script._light(dark, mean, basis, torch.ones(1, 2000, dtype=torch.bool))
    torch.testing.assert_close(found[..., 0], wanted, atol=0.03, rtol=0)


def test_the_mirror_of_the_mirror_is_the_vertex(script):
    mirror = script.mirror_of(MorphableModel.open())
    assert (mirror[mirror] == torch.arange(len(mirror))).float().mean() > 0.99


def test_a_learnt_model_has_the_tone_everywhere(script):
    """The tone that photos show of some vertices goes to the others too, with the pattern that was painted."""
    model = MorphableModel.open()
    rng = torch.Generator().manual_seed(0)
    tones = 1 + 0.2 * torch.randn(60, 1, 1, generator=rng)
    textures = model.tex_mean * tones * torch.tensor([1.0, 0.8, 0.6])
    seen = (model.shape_mean[:, 2] > model.shape_mean[:, 2].median()).expand(60, -1)
    learnt = script.learn(model, textures, seen, 2)
    assert learnt.dims == (*model.dims[:2], 2)
    ratio = (learnt.tex_mean / (model.tex_mean * tones.mean() * torch.tensor([1.0, 0.8, 0.6]))).median(0).values
    torch.testing.assert_close(ratio, torch.ones(3), atol=0.1, rtol=0)
    deviation = learnt.tex_basis[0].mean(1).abs() / model.tex_mean.mean(1)
    assert deviation.min() > 0.3 * deviation.median()


def test_landmarks_are_fitted(script):
    """Two views of each of two faces: what was found puts the landmarks where they were, with one face for both views."""
    prior = ShapePrior(torch.nn.Identity(), MorphableModel.open())
    generator = torch.Generator().manual_seed(0)
    coeffs = torch.zeros(4, prior.coeff_dim)
    coeffs[:, :80] = torch.randn(2, 80, generator=generator)[[0, 1, 0, 1]]
    coeffs[:, 80:100] = 0.5 * torch.randn(2, 20, generator=generator)[[0, 1, 0, 1]]
    coeffs[:, 173] = torch.tensor([0.2, -0.3, 0.1, 0.0])  # the angle about y
    truth = prior.landmarks224(prior.mesh(coeffs))
    start = torch.zeros_like(coeffs)
    found = script.fit_landmarks(prior, start, truth, torch.tensor([0, 1, 0, 1]))
    before = (prior.landmarks224(prior.mesh(start)) - truth).norm(dim=2).mean()
    after = (prior.landmarks224(prior.mesh(found)) - truth).norm(dim=2).mean()
    assert after < 1.0 < before
    assert torch.equal(found[0, :132], found[2, :132])


def test_landmarks_go_back_to_where_they_belong(script):
    """Moved by some vertices, the landmarks of jaw, brows and lips find the places that the views show; the others stay."""
    prior = ShapePrior(torch.nn.Identity(), MorphableModel.open())
    coeffs = torch.zeros(6, prior.coeff_dim)
    coeffs[:, 173] = torch.linspace(-0.3, 0.3, 6)
    truth, right = prior.landmarks224(prior.mesh(coeffs)), prior.model.landmarks.clone()
    mirror, moved = script.mirror_of(prior.model), [2, 19, 61]
    for point in moved:
        near = torch.cdist(prior.model.shape_mean[right[point]][None], prior.model.shape_mean)[0].argsort()[5]
        prior.model.landmarks[point], prior.model.landmarks[script.MIRROR_68[point]] = near, mirror[near]
    found = script.placed_landmarks(prior, coeffs, truth)
    off = (prior.model.shape_mean[found] - prior.model.shape_mean[right]).norm(dim=1)
    assert off.max() < 0.02  # decimetres; the other side's landmark is not the exact mirror
    assert torch.equal(found[36:48], right[36:48])


@pytest.mark.parametrize("tone", [0.15, 0.4, 0.8])
def test_hair_on_the_forehead_is_no_skin(script, tone):
    """Of pale and of dark skin: a fringe that is darker, or of another colour, is left out; what has the cheeks' colour stays."""
    model = MorphableModel.open()
    skin = tone * torch.tensor([1.0, 0.75, 0.65])
    height, brows = model.shape_mean[:, 1], model.shape_mean[model.landmarks][17:27, 1]
    textures = skin.expand(2, len(height), 3).clone()
    fringe = height > brows.max() + 0.1
    textures[0, fringe] *= 0.4
    textures[1, fringe] *= torch.tensor([1.1, 0.9, 0.6])
    kept = script.own_skin(model, textures, torch.ones(textures.shape[:2], dtype=torch.bool))
    assert not kept[:, fringe].any()
    assert kept[:, ~fringe].all()
    assert script.own_skin(model, 0.85 * textures[:1], torch.ones(1, len(height), dtype=torch.bool))[0, ~fringe].all()
