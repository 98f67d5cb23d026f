"""The coefficient regressor: its backbone against torchvision's, its heads, and the loading of backbones."""

import pytest
import torch
from torch import nn
from torchvision import models

from sgpn_arch.d3dfr_arch import BACKBONES, D3DFR, IMAGENET_MEAN, IMAGENET_STD
from sgpn_arch.registry import ARCH_REGISTRY


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return models.resnet50(weights=None).eval()


@pytest.fixture
def image():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def pooled_features(network, image):
    """What torchvision's own forward pass hands to the classifier."""
    found = []
    handle = network.fc.register_forward_pre_hook(lambda module, arguments: found.append(arguments[0]))
    network(image)
    handle.remove()
    return found[0]


def randomise_heads(regressor):
    for head in regressor.final_layers:
        nn.init.normal_(head.weight, std=0.1)
        nn.init.normal_(head.bias)


@torch.no_grad()
def test_coefficients_are_linear_in_torchvisions_features(classifier, image):
    regressor = D3DFR().eval()
    regressor.load_backbone(classifier.state_dict())
    randomise_heads(regressor)
    torch.testing.assert_close(regressor.backbone(image), pooled_features(classifier, image))
    # In double precision, so that only the formula is compared and not the order of its sums.
    regressor, image = regressor.double(), image.double()
    features = regressor.backbone(image)
    heads = [features @ head.weight[:, :, 0, 0].T + head.bias for head in regressor.final_layers]
    torch.testing.assert_close(regressor(image), torch.cat(heads, 1))


@torch.no_grad()
def test_order_and_width_of_the_output(image):
    regressor = D3DFR(id_dim=7, exp_dim=5, tex_dim=4, backbone="resnet18").eval()
    assert regressor.coeff_dim == 7 + 5 + 4 + 3 + 27 + 3
    assert all(isinstance(head, nn.Conv2d) and head.kernel_size == (1, 1) for head in regressor.final_layers)
    for number, head in enumerate(regressor.final_layers):
        nn.init.constant_(head.bias, number)
    expected = [0] * 7 + [1] * 5 + [2] * 4 + [3] * 3 + [4] * 27 + [5] * 2 + [6]
    assert regressor(image).tolist() == [expected] * 2


def test_released_layout():
    """The paper's model has 257 coefficients, in seven heads named as the released weights are."""
    regressor = D3DFR()
    assert regressor.coeff_dim == 257
    widths = [tuple(regressor.state_dict()[f"final_layers.{i}.weight"].shape) for i in range(7)]
    assert widths == [(n, 2048, 1, 1) for n in (80, 64, 80, 3, 27, 2, 1)]


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_every_backbone_starts_at_the_mean_face(backbone, image):
    regressor = D3DFR(3, 2, 1, backbone=backbone).eval()
    assert torch.equal(regressor(image), torch.zeros(2, 39))
    assert not any(key.endswith(("mean", "std")) and "running" not in key for key in regressor.state_dict())


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
@torch.no_grad()
def test_backbones_are_torchvisions(name, image):
    """Same names and shapes of weights, same features bit for bit, same scale of the random weights."""
    theirs = getattr(models, name)(weights=None).eval()
    for classifier in ("fc", "classifier"):
        if hasattr(theirs, classifier):
            setattr(theirs, classifier, nn.Identity())
    ours = BACKBONES[name]().eval()
    state = theirs.state_dict()
    assert {key: value.shape for key, value in ours.state_dict().items()} == {key: v.shape for key, v in state.items()}
    for key, value in ours.state_dict().items():
        if value.ndim == 4 and value.numel() > 5000:
            assert value.std() == pytest.approx(float(state[key].std()), rel=0.1)
    for module in theirs.modules():  # the identity would hide how they are used
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.normal_(1, 0.1)
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours(image), theirs(image)) and ours.width == theirs(image).shape[1]


@torch.no_grad()
def test_imagenet_normalisation(image):
    plain = D3DFR(3, 2, 1, backbone="resnet18").eval()
    randomise_heads(plain)
    normalising = D3DFR(3, 2, 1, backbone="resnet18", imagenet_normalisation=True).eval()
    normalising.load_state_dict(plain.state_dict())
    normalised = torch.stack([(image[:, c] - IMAGENET_MEAN[c]) / IMAGENET_STD[c] for c in range(3)], 1)
    torch.testing.assert_close(normalising(image), plain(normalised))
    assert not torch.allclose(normalising(image), plain(image), atol=1e-3)


def test_every_part_learns(image):
    """From zero heads the first step reaches the heads, and the backbone from then on."""
    regressor = D3DFR(3, 2, 1, backbone="resnet18")
    (regressor(image) - 1).square().mean().backward()
    assert all((head.weight.grad != 0).any() for head in regressor.final_layers)
    randomise_heads(regressor)
    regressor.zero_grad()
    regressor(image).square().mean().backward()
    assert (regressor.backbone.conv1.weight.grad != 0).any()


@pytest.mark.parametrize(
    "own, other", [("resnet50", "resnet18"), ("resnet18", "resnet50"), ("resnet18", "mobilenet_v2")]
)
def test_weights_of_another_architecture_are_refused(own, other):
    regressor = D3DFR(3, 2, 1, backbone=own)
    before = regressor.backbone.conv1.weight.clone()
    with pytest.raises(ValueError, match="another architecture"):
        regressor.load_backbone(getattr(models, other)(weights=None).state_dict())
    assert torch.equal(regressor.backbone.conv1.weight, before)


def test_unknown_backbone_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown backbone 'vgg16', choose one of resnet18, resnet50, mobilenet_v2"):
        D3DFR(backbone="vgg16")


def test_is_registered():
    assert ARCH_REGISTRY.get("D3DFR") is D3DFR
