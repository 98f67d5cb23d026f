"""Tests of the SGPN network: shapes, variants, gradients, masks, layout of its weights, and how it is built by name."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sgpn_arch
from oracles import stylegan2 as oracle
from sgpn_arch import build_network
from sgpn_arch.fusion_arch import Fusion
from sgpn_arch.registry import ARCH_REGISTRY
from sgpn_arch.sgpn_arch import SGPN

TINY = {"size": 64, "width": 0.02, "max_channels": 12, "style_dim": 16, "latent_dim": 8, "coeff_dim": 5}
RELEASED_KEYS = Path(__file__).parents[3] / "shared" / "spec" / "released_sgpn_keys.json"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _inputs(batch=2, size=64, coeff_dim=5):
    lq, render = (torch.rand(batch, 3, size, size) * 2 - 1 for _ in range(2))
    return lq, render, torch.randn(batch, coeff_dim)


def _learn_weights(network, value=0.5):
    """Sets the scalars on F, which start at 0, so that features take part."""
    for name, parameter in network.named_parameters():
        if name.startswith("decoder.") and parameter.shape == (1,):
            nn.init.constant_(parameter, value)
    return network


@pytest.mark.parametrize("fusion", ["AFFB", "SumFusion", "LQOnly"])
@pytest.mark.parametrize("share_encoder", [True, False])
@pytest.mark.parametrize("width", [0.01, 0.03])
def test_every_variant_trains(fusion, share_encoder, width):
    options = {**TINY, "width": width, "fusion": fusion, "share_encoder": share_encoder}
    network = _learn_weights(SGPN(**options))
    lq, render, coeffs = _inputs()
    image = network(lq, None if fusion == "LQOnly" else render, coeffs)
    assert image.shape == (2, 3, 64, 64)
    (image * torch.randn_like(image)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def _encode(encoder, image):
    """The features of every scale, by their size, and the latent of the last, made stage by stage."""
    features = {}
    for resolution, stage in zip((64, 32, 16, 8, 4), encoder.stages, strict=True):
        image = features[resolution] = stage(image)
    return features, encoder.to_latent(image.reshape(len(image), -1))


def _decode(decoder, w, features_lq, features_3d):
    """From the constant up: at 4 the photo's features only, then two styled convolutions and a picture per scale."""
    x, _ = decoder.first_conv(decoder.input.input.repeat(len(w), 1, 1, 1), w, features_lq[4])
    image, masks = decoder.first_to_rgb(x, w), {}
    for i, r in enumerate((8, 16, 32, 64)):
        render = features_3d and features_3d[r]
        x, first = decoder.convs[2 * i](x, w, features_lq[r], render)
        x, second = decoder.convs[2 * i + 1](x, w, features_lq[r], render)
        image = decoder.to_rgbs[i](x, w, image)
        masks[r] = [mask for mask in (first, second) if mask is not None]
    return image, masks


def _map(mapping, z, lr_mul):
    """z over its root mean square, then equalised linear layers whose effective weights and biases are lr_mul as large."""
    w = z / np.sqrt((z**2).mean(1, keepdims=True) + 1e-8)
    for layer in mapping.layers:
        weight, bias = (value.detach().numpy() * lr_mul for value in (layer.weight, layer.bias))
        w = oracle.fused_leaky_relu(w @ weight.T / np.sqrt(weight.shape[1]), bias)
    return w


@pytest.mark.parametrize(("layers", "lr_mul"), [(1, 1.0), (2, 0.01), (3, 0.01), (3, 0.3)])
def test_mapping_is_pixel_norm_and_slow_linear_layers(layers, lr_mul):
    mapping = SGPN(**TINY, mapping_layers=layers, mapping_lr_mul=lr_mul).double().mapping
    for layer in mapping.layers:
        nn.init.normal_(layer.bias, std=1 / lr_mul)
    z = 3 * torch.randn(4, 8 + 8 + 5, dtype=torch.float64)
    assert len(mapping.layers) == layers
    np.testing.assert_allclose(mapping(z).detach().numpy(), _map(mapping, z.numpy(), lr_mul), atol=1e-9)


@pytest.mark.parametrize(
    ("fusion", "share_encoder"), [("AFFB", True), ("AFFB", False), ("SumFusion", True), ("LQOnly", False)]
)
def test_network_is_encoders_mapping_and_decoder_joined_in_the_papers_order(fusion, share_encoder):
    """From its layers, each of which has its own tests: which features and latents go where, and in which order."""
    network = SGPN(**TINY, fusion=fusion, share_encoder=share_encoder).double()
    for parameter in network.parameters():
        if parameter.ndim == 1:  # biases and the scalars on F, most of which start at 0
            nn.init.normal_(parameter)
    lq, render, coeffs = (value.double() for value in _inputs())
    features_lq, latent_lq = _encode(network.encoder, lq)
    features_3d, latents = None, [latent_lq, coeffs]
    if fusion != "LQOnly":
        features_3d, latent_3d = _encode(network.encoder if share_encoder else network.render_encoder, render)
        latents = [latent_lq, latent_3d, coeffs]
    w = _map(network.mapping, torch.cat(latents, 1).detach().numpy(), 0.01)
    expected, expected_masks = _decode(network.decoder, torch.from_numpy(w), features_lq, features_3d)
    image, masks = network(lq, render, coeffs, return_masks=True)
    torch.testing.assert_close(image, expected, atol=1e-9, rtol=1e-9)
    assert list(masks) == [8, 16, 32, 64]
    for resolution, pair in masks.items():
        assert len(pair) == (2 if fusion == "AFFB" else 0)
        for mask, expected_mask in zip(pair, expected_masks[resolution], strict=True):
            torch.testing.assert_close(mask, expected_mask)
            assert mask.shape[2:] == (resolution, resolution) and mask.min() > 0 and mask.max() < 1


@pytest.mark.parametrize("size", [64, 128, 256])
def test_every_size_gives_its_size(size):
    network = SGPN(**{**TINY, "size": size})
    with torch.no_grad():
        image, masks = network(*_inputs(1, size), return_masks=True)
    assert image.shape == (1, 3, size, size)
    assert list(masks) == [2**n for n in range(3, size.bit_length())]


@pytest.mark.parametrize("patch", [2, 4])
def test_a_patch_of_pixels_is_one_place_of_the_finest_maps(patch):
    """Its pixels are the channels of what a network without patches would see, and of what its last ToRGB makes."""
    network = _learn_weights(SGPN(**{**TINY, "size": 64 * patch, "patch": patch})).eval()
    lq, render, coeffs = _inputs(2, 64 * patch)

    def squares(image):  # (N, 3, S, S) -> (N, 3, patch, patch, 64, 64)
        return image.reshape(2, 3, 64, patch, 64, patch).permute(0, 1, 3, 5, 2, 4)

    parts = [_encode(network.encoder, squares(image).flatten(1, 3)) for image in (lq, render)]
    w = network.mapping(torch.cat([parts[0][1], parts[1][1], coeffs], 1))
    last = network.decoder.to_rgbs[-1]
    made = {}
    last.register_forward_hook(lambda layer, given, result: made.update(x=given[0], before=given[2], result=result))
    _decode(network.decoder, w, parts[0][0], parts[1][0])
    colours = last.conv(made["x"], w) + last.bias
    picture = colours.reshape(2, 3, patch, patch, 64, 64) + squares(last.upsample(made["before"]))
    light = squares((lq * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True).expand_as(lq))
    picture = picture + light - light.mean(dim=(2, 3), keepdim=True)
    image, masks = network(lq, render, coeffs, return_masks=True)
    torch.testing.assert_close(squares(image), picture, atol=1e-5, rtol=1e-4)
    assert list(masks) == [8, 16, 32, 64] and masks[64][0].shape[-1] == 64


def test_fewest_channels():
    network = SGPN(**{**TINY, "min_channels": 12})
    assert [stage.conv.weight.shape[0] for stage in network.encoder.stages] == [12] * 5
    with pytest.raises(ValueError, match="max_channels is 12; it must be at least 13"):
        SGPN(**{**TINY, "min_channels": 13})


@pytest.mark.parametrize("size", [512, 1024])
def test_large_sizes_have_a_stage_and_two_convolutions_per_scale(size):
    with torch.device("meta"):
        network = SGPN(size=size)
    scales = size.bit_length() - 2
    assert len(network.encoder.stages) == scales
    assert len(network.decoder.convs) == 2 * (scales - 1)
    assert len(network.decoder.to_rgbs) == scales - 1


def test_a_mask_of_one_ignores_the_renderings_features_and_of_zero_the_photos():
    network = _learn_weights(SGPN(**TINY)).eval()
    features = {r: torch.randn(2, c, r, r) for r, c in zip([64, 32, 16, 8, 4], [10, 12, 12, 12, 12], strict=True)}
    other = {r: torch.randn_like(f) for r, f in features.items()}
    w = torch.randn(2, 16)

    def decode(bias, lq, render):
        for conv in network.decoder.convs:
            nn.init.constant_(conv.fusion.mask.bias, bias)
        return network.decoder(w, {**lq, 4: features[4]}, render)[0]

    torch.testing.assert_close(decode(200.0, features, features), decode(200.0, features, other))
    torch.testing.assert_close(decode(-200.0, features, features), decode(-200.0, other, features))
    assert not torch.allclose(decode(0.0, features, features), decode(0.0, features, other))


def test_a_new_network_uses_its_inputs_only_through_the_latent():
    network = SGPN(**TINY)
    w = torch.randn(1, 16)
    features = [network.encoder(torch.randn(1, 3, 64, 64))[0] for _ in range(4)]
    first = network.decoder(w, features[0], features[1])[0]
    second = network.decoder(w, features[2], features[3])[0]
    assert torch.equal(first, second)


def test_separate_encoders_add_exactly_one_encoder():
    shared, separate = (SGPN(**TINY, share_encoder=share) for share in (True, False))
    added = set(separate.state_dict()) - set(shared.state_dict())
    assert added == {f"render_{name}" for name in shared.state_dict() if name.startswith("encoder.")}


def test_without_rendering_there_is_no_branch_for_it():
    network = SGPN(**TINY, fusion="LQOnly", share_encoder=False)
    assert network.render_encoder is None
    assert network.mapping.layers[0].weight.shape == (16, 8 + 5)
    lq, render, coeffs = _inputs()
    assert torch.equal(network(lq, None, coeffs), network(lq, render, coeffs))


@pytest.mark.parametrize("fusion", ["AFFB", "SumFusion"])
def test_photo_rendering_and_coefficients_all_matter(fusion):
    network = SGPN(**TINY, fusion=fusion)
    inputs = _inputs()
    image = network(*inputs)
    for i in range(3):
        changed = list(inputs)
        changed[i] = torch.randn_like(changed[i])
        assert not torch.allclose(network(*changed), image, atol=1e-4), i


def test_samples_of_a_batch_do_not_mix():
    network = _learn_weights(SGPN(**TINY)).eval()
    lq, render, coeffs = _inputs(3)
    together = network(lq, render, coeffs)
    alone = network(lq[1:2], render[1:2], coeffs[1:2])
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lq": torch.zeros(2, 3, 32, 32)}, r"lq has shape \(2, 3, 32, 32\)"),
        ({"lq": torch.zeros(2, 1, 64, 64)}, r"lq has shape \(2, 1, 64, 64\)"),
        ({"render": None}, "render is None"),
        ({"render": torch.zeros(2, 3, 64, 32)}, r"render has shape \(2, 3, 64, 32\)"),
        ({"render": torch.zeros(1, 3, 64, 64)}, "render has 1 pictures, lq has 2"),
        ({"coeffs": torch.zeros(2, 4)}, r"coeffs has shape \(2, 4\); expected \(2, 5\)"),
        ({"coeffs": torch.zeros(1, 5)}, r"coeffs has shape \(1, 5\); expected \(2, 5\)"),
    ],
)
def test_wrong_inputs_are_named(change, message):
    inputs = dict(zip(("lq", "render", "coeffs"), _inputs(), strict=True))
    with pytest.raises(ValueError, match=message):
        SGPN(**TINY)(**{**inputs, **change})


def test_a_mapping_without_layers_is_refused():
    with pytest.raises(ValueError, match="mapping_layers is 0"):
        SGPN(**TINY, mapping_layers=0)


def test_state_dict_round_trip():
    first, second = SGPN(**TINY).eval(), SGPN(**TINY).eval()
    second.load_state_dict(first.state_dict())
    inputs = _inputs()
    assert torch.equal(first(*inputs), second(*inputs))
    assert not any("kernel" in name for name in first.state_dict())


def test_memory_format_and_autocast_do_not_change_the_picture():
    network = _learn_weights(SGPN(**TINY), 0.1).eval()
    lq, render, coeffs = _inputs()
    with torch.no_grad():
        image = network(lq, render, coeffs)
        last = network.to(memory_format=torch.channels_last)(
            lq.to(memory_format=torch.channels_last), render.to(memory_format=torch.channels_last), coeffs
        )
        with torch.autocast("cpu", torch.bfloat16):
            half = network(lq, render, coeffs)
    torch.testing.assert_close(last, image, atol=1e-4, rtol=1e-4)
    assert half.dtype == torch.float32
    assert (half - image).abs().max() < 0.05 * image.abs().max()


def test_training_under_autocast_keeps_gradients_finite_and_close():
    gradients = []
    network = _learn_weights(SGPN(**TINY), 0.1)
    inputs = _inputs()
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = network(*inputs).square().mean()
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert gradients[1].isfinite().all()
    assert torch.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.99


def test_double_precision_gradient_of_the_whole_network():
    network = _learn_weights(SGPN(**TINY), 0.3).double()
    lq, render, coeffs = (x.double() for x in _inputs(1))
    coeffs.requires_grad_()
    direction = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    gradient = torch.autograd.grad((network(lq, render, coeffs) * direction).sum(), coeffs)[0]
    step = torch.zeros_like(coeffs)
    step[0, 2] = 1e-6
    with torch.no_grad():
        change = (network(lq, render, coeffs + step) - network(lq, render, coeffs - step)) * direction
    assert gradient[0, 2].item() == pytest.approx(change.sum().item() / 2e-6, rel=1e-4, abs=1e-6)


@pytest.mark.skipif(not RELEASED_KEYS.exists(), reason="the list of the released tensors is not here")
def test_tensors_have_the_shapes_of_the_released_network():
    with torch.device("meta"):
        network = SGPN(size=512, width=1.0, mapping_layers=3)
    listed = json.loads(RELEASED_KEYS.read_text())
    released = Counter(
        # Modulated convolutions are stored there with a leading 1.
        tuple(shape[1:] if len(shape) == 5 else shape)
        for name, shape in listed.items()
        if not name.endswith("kernel")
    )
    assert Counter(tuple(p.shape) for p in network.parameters()) == released


def test_build_network_leaves_its_options_alone():
    options = {"type": "SGPN", **TINY}
    before = dict(options)
    assert isinstance(build_network(options), SGPN)
    assert options == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "SGPM"}, "no network is registered as 'SGPM'; did you mean 'SGPN'"),
        ({"type": "SGPN", "widht": 1.0}, "SGPN takes no option 'widht'; did you mean 'width'"),
        ({"type": "SGPN", "fusion": "AFB"}, "'AFB'; did you mean 'AFFB'"),
        ({"size": 64}, r"no 'type' \(keys: size\)"),
        ({"type": "zzzz"}, "'zzzz'; known: .*AFFB"),
        ({"type": "SGPN", "zzzz": 1}, "'zzzz'; known: .*width"),
    ],
)
def test_build_network_names_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        build_network(options)


class _Plugin:
    """Stands for an installed package's entry point."""

    name, value = "our-plugin", "our_plugin"

    def __init__(self, load):
        self.load = load


@pytest.fixture
def install_plugin(monkeypatch):
    def install(load):
        sgpn_arch.load_plugins.cache_clear()
        found = {"sgpn.plugins": [_Plugin(load)]}
        monkeypatch.setattr("importlib.metadata.entry_points", lambda group: found[group])

    yield install
    monkeypatch.undo()
    sgpn_arch.load_plugins.cache_clear()


def test_a_plugin_adds_a_fusion(install_plugin, monkeypatch):
    class MeanFusion(Fusion):
        def forward(self, hidden, features_lq, features_3d):
            return (features_lq + features_3d) / 2, None

    monkeypatch.setattr(ARCH_REGISTRY, "_obj_map", dict(ARCH_REGISTRY._obj_map))
    install_plugin(lambda: ARCH_REGISTRY.register(MeanFusion))
    network = build_network({"type": "SGPN", **TINY, "fusion": "MeanFusion"})
    assert isinstance(network.decoder.convs[0].fusion, MeanFusion)
    assert network(*_inputs()).shape == (2, 3, 64, 64)


def test_a_broken_plugin_is_named(install_plugin):
    def load():
        raise RuntimeError("no such thing")

    install_plugin(load)
    with pytest.raises(ImportError, match="'our-plugin'.*no such thing"):
        build_network({"type": "SGPN", **TINY})


def test_importing_the_package_imports_no_torch():
    code = "import sys, sgpn_arch; sys.exit('torch' in sys.modules)"
    root = Path(sgpn_arch.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
