"""scripts/even_out_patches.py: a grid that features explain is found and taken away, and what is no grid is left alone."""

import json
import sys

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from oracles.script import load_script
from sgpn_arch import build_network, complete_options
from sgpn_arch.d3dfr_arch import D3DFR
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_data.alignment import template_points
from sgpn_model.weights.checkpoint import load_checkpoint, save_checkpoint

SHAPE = {"type": "D3DFR", "id_dim": 80, "exp_dim": 52, "tex_dim": 40, "backbone": "mobilenet_v2"}
GENERATOR = {"type": "SGPN", "size": 64, "patch": 2, "width": 0.05, "max_channels": 32, "style_dim": 16}


@pytest.fixture(scope="module")
def script():
    return load_script("even_out_patches")


def test_a_change_that_would_explain_what_is_missing_is_found(script):
    """Features that are the same all over a window, and errors that a layer of other weights would not make."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(3, 4, 6, generator=generator)
    true -= true.mean(dim=1, keepdim=True)  # nothing but how the four pixels differ
    sums = script.Sums(6)
    for _ in range(4):
        features = torch.randn(1, 6, 4, 4, generator=generator).repeat_interleave(16, 2).repeat_interleave(16, 3)
        missing = F.pixel_shuffle(torch.einsum("cpi,nihw->ncphw", true, features).flatten(1, 2), 2)
        light = torch.randn(1, 3, 64, 64, generator=generator).repeat_interleave(2, 2).repeat_interleave(2, 3)
        sums.add(features, missing + light, torch.zeros(128, 128))
    torch.testing.assert_close(sums.change().float(), true.flatten(0, 1), atol=0.02, rtol=0)


def test_texture_without_a_grid_changes_little(script):
    generator = torch.Generator().manual_seed(0)
    sums = script.Sums(6)
    for _ in range(4):
        features = torch.randn(1, 6, 64, 64, generator=generator)
        sums.add(features, torch.randn(1, 3, 128, 128, generator=generator), torch.zeros(128, 128))
    assert sums.change().abs().max() < 0.2  # of a deviation of 1 in both


@pytest.fixture
def faces_folder(astronaut, tmp_path):
    """Three aligned faces to train with, and where their landmarks are."""
    folder = tmp_path / "faces" / "train"
    folder.mkdir(parents=True)
    points = np.tile(template_points("ffhq", 64).mean(0), (68, 1)) + np.random.default_rng(0).normal(0, 9, (68, 2))
    for number in range(3):
        face = cv2.resize(astronaut[30 + 9 * number : 170, 150 + 9 * number : 290], (64, 64))
        cv2.imwrite(str(folder / f"{number}.png"), face)
    (folder / "landmarks68.json").write_text(json.dumps({f"{n}.png": points.tolist() for n in range(3)}))
    return folder.parent


def test_weights_go_in_and_come_out(script, faces_folder, tmp_path, monkeypatch):
    """The whole script: how the four pixels differ changes, and nothing else in the file."""
    torch.manual_seed(0)
    prior_of = D3DFR(80, 52, 40, "mobilenet_v2")
    options = complete_options({**GENERATOR, "coeff_dim": 205})
    network = build_network(options)
    states = {"network_g": network.state_dict(), "network_shape": prior_of.state_dict()}
    metadata = {
        "archs": {"network_g": options, "network_shape": complete_options(SHAPE)},
        "template": "ffhq",
        "size": 64,
    }
    source = tmp_path / "grid.safetensors"
    save_checkpoint(source, states, metadata, morphable_model=MorphableModel.open())
    target = tmp_path / "even.safetensors"
    given = [str(source), "--data", str(faces_folder), "--faces", "2", "-o", str(target)]
    monkeypatch.setattr(sys, "argv", ["even_out_patches.py", *given])
    script.main()
    before, after = (load_checkpoint(path).weights["network_g"] for path in (source, target))
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert changed == [f"decoder.to_rgbs.{len(network.decoder.to_rgbs) - 1}.conv.weight"]
    old, new = (np.asarray(state[changed[0]])[:, :, 0, 0].reshape(3, 4, -1) for state in (before, after))
    np.testing.assert_allclose(new.mean(1), old.mean(1), atol=1e-5)
