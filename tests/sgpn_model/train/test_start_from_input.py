"""An SGPN that begins as the identity, and one that goes on with a smaller one's work at twice the size."""

import pytest
import torch
from torch.nn import functional as F

from sgpn_arch import build_network, complete_options
from sgpn_model.train.initialise import grow, start_from_input
from sgpn_model.weights.checkpoint import CheckpointError, save_checkpoint

OPTIONS = {
    "type": "SGPN",
    "size": 64,
    "width": 0.05,
    "max_channels": 32,
    "style_dim": 16,
    "latent_dim": 16,
    "coeff_dim": 5,
}


def inputs(size: int):
    """Smooth pictures, so that enlarging and halving them loses little."""
    generator = torch.Generator().manual_seed(size)
    photo, render = (
        F.interpolate(torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1, size=size, mode="bicubic").clamp(-1, 1)
        for _ in range(2)
    )
    return photo, render, torch.randn(2, 5, generator=generator)


@pytest.fixture
def small():
    torch.manual_seed(0)
    network = build_network(OPTIONS).eval()
    start_from_input(network)
    return network


@pytest.mark.parametrize("changes", [{}, {"fusion": "LQOnly"}, {"fusion": "ChannelSplitSFT"}, {"share_encoder": False}])
def test_a_fresh_network_returns_its_photo(changes):
    torch.manual_seed(0)
    network = build_network({**OPTIONS, **changes}).eval()
    start_from_input(network)
    photo, render, coeffs = inputs(64)
    with torch.no_grad():
        assert (network(photo, render, coeffs) - photo).abs().max() < 2e-3


def test_it_can_learn_to_change_it(small):
    """Every scale's ToRGB has a gradient, and so has what comes before it once the weights have moved."""
    photo, render, coeffs = inputs(64)
    small(photo, render, coeffs).square().mean().backward()
    layers = [small.decoder.first_to_rgb, *small.decoder.to_rgbs]
    assert all(layer.conv.weight.grad.abs().max() > 0 for layer in layers)


def saved(network, path):
    metadata = {"archs": {"network_g": complete_options(OPTIONS)}}
    save_checkpoint(path, {"network_g": network.state_dict()}, metadata)
    return str(path)


def test_a_grown_network_does_what_the_small_one_did(small, tmp_path):
    """Its output is the photo plus the correction that the small one makes of the halved photo."""
    layers = [small.decoder.first_to_rgb, *small.decoder.to_rgbs]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # a correction at every scale, and features that depend on the style
        for layer in layers:
            layer.conv.weight += 0.05 * torch.randn(layer.conv.weight.shape, generator=generator)
        for stage in small.encoder.stages:
            stage.bias += 0.1 * torch.randn(stage.bias.shape, generator=generator)
        small.encoder.stages[0].bias[:6] = 0
    large = build_network({**OPTIONS, "size": 128}).eval()
    grow(large, saved(small, tmp_path / "small.safetensors"))
    photo, render, coeffs = inputs(128)
    with torch.no_grad():
        found = large(photo, render, coeffs) - photo
        halves = [F.interpolate(image, size=64, mode="area") for image in (photo, render)]
        correction = small(*halves, coeffs) - halves[0]
    wanted = F.interpolate(correction, size=128, mode="bilinear", align_corners=False)
    inner = (..., slice(16, -16), slice(16, -16))  # the filters pad with zeros
    assert (found - wanted)[inner].abs().mean() < 0.1 * wanted[inner].abs().mean()


def test_only_a_network_of_half_the_size_grows(small, tmp_path):
    path = saved(small, tmp_path / "small.safetensors")
    with pytest.raises(CheckpointError, match="an SGPN of 128 px, found a SGPN of 64 px"):
        grow(build_network({**OPTIONS, "size": 256}), path)
    with pytest.raises(CheckpointError, match="does not fit network_g at .*only its size may differ"):
        grow(build_network({**OPTIONS, "size": 128, "style_dim": 8}), path)
