"""scripts/refit_regressor.py: it finds coefficients that pictures and landmarks were made with, and trains towards them."""

import json

import cv2
import pytest
import torch

from oracles.script import load_script
from sgpn_arch.d3dfr_arch import D3DFR
from sgpn_arch.face3d.lighting import sh_basis, shade
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.face3d.shape_prior import ShapePrior
from sgpn_data.alignment import template_points
from sgpn_data.face_dataset import FaceRestorationDataset, mirror_points
from sgpn_data.tensors import to_tensor
from sgpn_model.weights.checkpoint import load_checkpoint
from sgpn_model.weights.pretrained import find_weights


@pytest.fixture(scope="module")
def script():
    return load_script("refit_regressor")


@pytest.fixture(scope="module")
def prior():
    return ShapePrior(torch.nn.Identity(), MorphableModel.open())


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


def test_training_brings_landmarks_nearer(script):
    """Two views again and again."""
    torch.manual_seed(0)
    regressor = D3DFR(80, 52, 40, "mobilenet_v2", imagenet_normalisation=True).eval().requires_grad_(False)
    prior = ShapePrior(regressor, MorphableModel.open())
    coeffs = 0.1 * torch.randn(2, prior.coeff_dim)
    coeffs[:, 173] = 0.4  # the angle about y
    truth = prior.landmarks224(prior.mesh(coeffs))
    pictures = torch.randint(256, (2, 3, 224, 224), dtype=torch.uint8)
    errors = script.train(prior, pictures, coeffs, truth, steps=20, batch=4, rate=4e-3)
    assert min(errors[-5:]) < 0.6 * errors[0]
    assert not regressor.training and not any(parameter.requires_grad for parameter in regressor.parameters())


def test_views_of_mirrored_photos_are_mirrored(script, monkeypatch, astronaut, tmp_path):
    """Without jitter: each photo good and degraded, then its mirror image; landmarks follow the picture."""
    monkeypatch.setattr(script, "JITTER", 0.0)
    monkeypatch.setattr(script, "MOST_JITTER", 0.0)
    monkeypatch.setattr(script, "TEMPLATE", 0.0)
    monkeypatch.setattr(script, "GREY", 10**6)
    monkeypatch.setattr(script, "WORKERS", 0)
    checkpoint = load_checkpoint(find_weights("default"))
    prior = ShapePrior(checkpoint.network("network_shape"), checkpoint.morphable_model()).eval().requires_grad_(False)
    places = {}
    for number in range(2):
        face = cv2.resize(astronaut[30 + 9 * number : 170, 150 + 9 * number : 290], (128, 128))
        cv2.imwrite(str(tmp_path / f"{number}.png"), face)
        five = torch.tensor(template_points("ffhq", 128), dtype=torch.float32)[None]
        places[f"{number}.png"] = prior(to_tensor(face)[None], five).landmarks[0].tolist()
    (tmp_path / "landmarks68.json").write_text(json.dumps(places))
    dataset = FaceRestorationDataset(
        {
            "dataroot": str(tmp_path),
            "size": 128,
            "phase": "train",
            "use_hflip": False,
            "degradation": {"preset": "mild"},
        }
    )
    views = script.look(prior, dataset, rounds=4, every=1)
    count = len(dataset)
    numbers = torch.arange(2 * count)
    assert torch.equal(views["photo"], torch.cat([numbers, numbers, numbers]))
    pictures, truth = views["pictures"].float(), views["truth"]
    torch.testing.assert_close(truth[: 2 * count], truth[2 * count : 4 * count])
    back = torch.from_numpy(mirror_points(truth[count : 2 * count].numpy(), 224))
    assert (back - truth[:count]).abs().max() < 2
    difference = (pictures[count : 2 * count].flip(3) - pictures[:count]).abs().mean()
    assert difference < 0.3 * (pictures[count : 2 * count] - pictures[:count]).abs().mean()
    degraded = (pictures[2 * count : 4 * count] - pictures[: 2 * count]).abs().mean()
    assert 0 < degraded < 20
    again = (pictures[4 * count :] - pictures[2 * count : 4 * count]).abs().mean()
    assert again > 0.1, "the second round of a photo is degraded in another way"
