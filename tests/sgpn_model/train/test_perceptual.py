"""The MobileNetV2 features: torchvision's network with the shipped weights, frozen."""

import pytest
import torch
from safetensors.torch import load_file
from torchvision import models

from sgpn_model.train.perceptual import FEATURES_FILE, TAPS, MobileNetFeatures


@pytest.fixture(scope="module")
def features():
    return MobileNetFeatures()


@pytest.fixture(scope="module")
def image():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_equals_torchvisions_network_layer_by_layer(features, image):
    reference = models.mobilenet_v2(weights=None)
    state = {f"features.{key}": value for key, value in load_file(FEATURES_FILE).items()}
    unused = reference.load_state_dict(state, strict=False)
    assert not unused.unexpected_keys and all(
        int(key.split(".")[1]) > TAPS[-1] for key in unused.missing_keys if key.startswith("features")
    )
    outputs = {}
    for index in TAPS:
        reference.features[index].register_forward_hook(lambda *a, index=index: outputs.update({index: a[2]}))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (((image.permute(0, 2, 3, 1) + 1) / 2 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        reference.eval().features(normalised)
        taken = features(image)
    for mine, index in zip(taken, TAPS, strict=True):
        assert torch.allclose(mine, outputs[index], rtol=1e-4, atol=1e-5)


def test_sizes(features, image):
    shapes = [tuple(stage.shape) for stage in features(image)]
    assert shapes == [(2, 16, 32, 48), (2, 24, 16, 24), (2, 32, 8, 12), (2, 96, 4, 6)]


def test_stays_in_evaluation_mode_and_frozen(features, image):
    before = {key: value.clone() for key, value in features.state_dict().items()}
    parent = torch.nn.Sequential(features).train()
    assert not any(module.training for module in features.modules()) and parent.training
    features(image)
    assert all(torch.equal(before[key], value) for key, value in features.state_dict().items())
    assert not any(parameter.requires_grad for parameter in features.parameters())


def test_gradients_reach_the_picture(features, image):
    picture = image.clone().requires_grad_(True)
    sum(stage.sum() for stage in features(picture)).backward()
    assert torch.isfinite(picture.grad).all() and (picture.grad != 0).any()
