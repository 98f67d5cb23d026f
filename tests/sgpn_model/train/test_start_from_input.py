"""An SGPN that begins as the identity, and one that goes on with a smaller one's work at twice the size."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sgpn_arch import build_network, complete_options
from sgpn_arch.fusion_arch import Fusion
from sgpn_arch.registry import ARCH_REGISTRY
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


class Gated(Fusion):
    """A plugin's fusion, which says how it passes the photo: by channels of its own choice."""

    photo_channel = 2

    def __init__(self, channels):
        super().__init__(channels)
        self.gate = nn.Parameter(torch.full((1, channels, 1, 1), 0.5))

    def forward(self, hidden, features_lq, features_3d):
        return self.gate * features_lq.roll(2, dims=1) + (1 - self.gate) * features_3d, None

    def pass_photo(self, count):
        self.gate.data[:, 2 : 2 + count] = 1


class Silent(Fusion):
    """A plugin's fusion that does not say how it passes the photo."""

    def forward(self, hidden, features_lq, features_3d):
        return features_lq * torch.sigmoid(features_3d), None


def why_refused(fusion: str, changes: dict) -> str | None:
    """What the message says if a network cannot begin as the identity."""
    if fusion == "SumFusion" and not changes:
        return "SumFusion adds the rendering.*share_encoder: false"
    return "Silent does not say how it passes the photo" if fusion == "Silent" else None


@pytest.fixture
def plugins():
    for fusion in (Gated, Silent):
        ARCH_REGISTRY.register(fusion)
    yield
    for fusion in (Gated, Silent):
        del ARCH_REGISTRY._obj_map[fusion.__name__]


def every_fusion() -> list[str]:
    """Whatever is registered as a fusion by this library."""
    return [name for name, found in ARCH_REGISTRY if isinstance(found, type) and issubclass(found, Fusion)]


@pytest.mark.parametrize("fusion", [*every_fusion(), "Gated", "Silent"])
@pytest.mark.parametrize("changes", [{}, {"share_encoder": False}])
def test_a_fresh_network_returns_its_photo_or_its_fusion_is_refused(plugins, fusion, changes):
    torch.manual_seed(0)
    network = build_network({**OPTIONS, "fusion": fusion, **changes}).eval()
    photo, render, coeffs = inputs(64)
    if reason := why_refused(fusion, changes):
        before = [value.clone() for value in network.parameters()]
        with pytest.raises(ValueError, match=reason):
            start_from_input(network)
        assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
        return
    start_from_input(network)
    with torch.no_grad():
        assert (network(photo, render, coeffs) - photo).abs().max() < 2e-3


def test_too_few_channels_for_the_photo_are_an_error():
    with pytest.raises(ValueError, match="modulates 4 of 8 channels and cannot pass 6"):
        start_from_input(build_network({**OPTIONS, "width": 0.01, "fusion": "ChannelSplitSFT"}))


def test_a_network_with_patches_grows_instead():
    with pytest.raises(ValueError, match="network_g.patch: 1 can begin"):
        start_from_input(build_network({**OPTIONS, "patch": 2}))


def test_it_can_learn_to_change_it(small):
    """Every scale's ToRGB has a gradient, and so has what comes before it once the weights have moved."""
    photo, render, coeffs = inputs(64)
    small(photo, render, coeffs).square().mean().backward()
    layers = [small.decoder.first_to_rgb, *small.decoder.to_rgbs]
    assert all(layer.conv.weight.grad.abs().max() > 0 for layer in layers)


def saved(network, path, options=OPTIONS):
    metadata = {"archs": {"network_g": complete_options(options)}}
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


def test_a_sum_of_photo_and_rendering_does_not_grow(tmp_path):
    own = {**OPTIONS, "fusion": "SumFusion", "share_encoder": False}
    path = saved(build_network(own), tmp_path / "small.safetensors", own)
    with pytest.raises(CheckpointError, match="small.safetensors: cannot grow with a fusion that adds"):
        grow(build_network({**own, "size": 128}), path)


def enlarged(image):
    """Each pixel as a square of four."""
    return image.repeat_interleave(2, 2).repeat_interleave(2, 3)


def light_of(photo):
    """(N, 3, H, W) -> (N, 1, H, W), by Rec. 601."""
    return (photo * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


@pytest.mark.parametrize("channels", [8, 30, 32])
def test_a_network_grown_by_a_patch_gives_each_of_four_pixels_what_the_small_one_gives_their_mean(
    small, tmp_path, channels
):
    """Exactly, where only the finest scale makes colours, to what the photo shows but for how colours vary among the four.

    30 and 32 channels of that scale are four and six more than the small one's 26.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # as trained: nothing is zero that counts
        for value in [*small.encoder.parameters(), *small.decoder.convs.parameters()]:
            value += 0.1 * torch.randn(value.shape, generator=generator)
        finest = small.decoder.to_rgbs[-1]
        finest.conv.weight += 0.05 * torch.randn(finest.conv.weight.shape, generator=generator)
    large = build_network({**OPTIONS, "size": 128, "patch": 2, "min_channels": channels}).eval()
    grow(large, saved(small, tmp_path / "small.safetensors"))
    photo, render = (torch.rand(2, 3, 128, 128, generator=generator) * 2 - 1 for _ in range(2))
    coeffs = torch.randn(2, 5, generator=generator)
    light = light_of(photo)
    with torch.no_grad():
        halves = [F.avg_pool2d(image, 2) for image in (photo, render)]
        correction = small(*halves, coeffs) - halves[0]
        found = large(photo, render, coeffs) - enlarged(halves[0]) - (light - enlarged(F.avg_pool2d(light, 2)))
    assert (found - enlarged(correction)).abs().max() < 1e-4
    assert correction.abs().mean() > 0.01


def test_a_network_grown_by_a_patch_sees_how_light_varies_within_a_square(small, tmp_path):
    large = build_network({**OPTIONS, "size": 128, "patch": 2, "min_channels": 32}).eval()
    grow(large, saved(small, tmp_path / "small.safetensors"))
    photo = inputs(128)[0]
    light = light_of(photo)[:, 0]
    one, two, three, four = light[:, ::2, ::2], light[:, ::2, 1::2], light[:, 1::2, ::2], light[:, 1::2, 1::2]
    differences = torch.stack([one - two + three - four, one + two - three - four, one - two - three + four], dim=1)
    wanted = 2**0.5 * F.leaky_relu(torch.cat([differences, -differences], dim=1), 0.2)
    with torch.no_grad():
        found = large.encoder.stages[0](F.pixel_unshuffle(photo, 2))
    torch.testing.assert_close(found[:, 26:32], wanted, atol=1e-5, rtol=1e-4)
    assert wanted.abs().mean() > 0.01


def test_only_a_network_of_half_the_size_grows(small, tmp_path):
    path = saved(small, tmp_path / "small.safetensors")
    with pytest.raises(CheckpointError, match="an SGPN of 128 px, found a SGPN of 64 px"):
        grow(build_network({**OPTIONS, "size": 256}), path)
    with pytest.raises(CheckpointError, match="does not fit network_g at .*only its size may differ"):
        grow(build_network({**OPTIONS, "size": 128, "style_dim": 8}), path)
    for changes in ({"style_dim": 8}, {"min_channels": 31, "max_channels": 40}):
        with pytest.raises(CheckpointError, match="does not fit network_g at .*and its finest channels may differ"):
            grow(build_network({**OPTIONS, "size": 128, "patch": 2, **changes}), path)
    with pytest.raises(CheckpointError, match="only from 1 to 2"):
        grow(build_network({**OPTIONS, "size": 128, "patch": 4}), path)
