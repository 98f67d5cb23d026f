"""scripts/learn_texture_basis.py: what it computes, on textures that are made up."""

import numpy as np
import pytest
import torch

from oracles.script import load_script
from sgpn_arch.face3d.lighting import sh_basis
from sgpn_arch.face3d.morphable_model import MorphableModel


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
