"""The released networks' weights in ours: outputs against plain functions of the released tensors, and what is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet50

from oracles import released_fixtures as made
from oracles import released_network as oracle
from oracles import stylegan2
from sgpn_arch.d3dfr_arch import D3DFR
from sgpn_arch.sgpn_arch import SGPN

SPEC = Path(__file__).parents[3] / "shared" / "spec"
NEEDS_SPEC = pytest.mark.skipif(not SPEC.exists(), reason="the lists of the released tensors are not here")
LAST = "final_layers.6.bias"


def close(found, expected, tolerance=1e-4):
    np.testing.assert_allclose(np.asarray(found.detach()), np.asarray(expected), rtol=0, atol=tolerance)


def in_file(name):
    """A pattern for messages: the user has only the released file, so it is that file's name that helps."""
    return re.escape(name)


# --- The oracle and the made-up files themselves ----------------------------------------------------------------------


@NEEDS_SPEC
@pytest.mark.parametrize("name, shapes", [("sgpn", made.sgpn_shapes), ("d3dfr", made.d3dfr_shapes)])
def test_the_rules_give_the_released_names_and_shapes(name, shapes):
    listed = json.loads((SPEC / f"released_{name}_keys.json").read_text())
    assert {key: list(shape) for key, shape in shapes().items()} == listed


@pytest.mark.parametrize("name", ["netG.convs.2.conv", "netG.convs.3.conv", "netG.to_rgbs.1.conv"])
def test_the_oracles_modulated_convolutions_are_stylegan2s(name):
    weights, rng = oracle.as_numpy(made.sgpn_state()), np.random.default_rng(0)
    kernel = weights[f"{name}.weight"][0]
    x, w = rng.normal(size=(kernel.shape[1], 8, 8)), rng.normal(size=16)
    style = weights[f"{name}.modulation.weight"] @ w / 4 + weights[f"{name}.modulation.bias"]
    plain, upsamples = "rgb" in name, f"{name}.blur.kernel" in weights
    expected = stylegan2.modulated_conv2d(
        torch.tensor(x)[None],
        torch.tensor(kernel / np.sqrt(kernel[0].size)),
        torch.tensor(style)[None],
        demodulate=not plain,
        upsample=upsamples,
    )
    np.testing.assert_allclose(oracle.modulated_conv(weights, name, x, w, not plain), expected[0], atol=1e-12)


def test_the_oracles_convolutions_are_torchs():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(3, 9, 9)), rng.normal(size=(5, 3, 3, 3))
    sample, weight = torch.tensor(x)[None], torch.tensor(kernel)
    for stride, pad in ((1, 1), (2, 0)):
        expected = nn.functional.conv2d(sample, weight, stride=stride, padding=pad)[0]
        np.testing.assert_allclose(oracle.conv(x, kernel, stride, pad), expected, atol=1e-12)
    expected = nn.functional.conv_transpose2d(sample, weight.transpose(0, 1), stride=2)[0]
    np.testing.assert_allclose(oracle.transposed_conv(x, kernel), expected, atol=1e-12)


@torch.no_grad()
def test_the_oracles_backbone_is_torchvisions(regressor_state):
    network = resnet50(weights=None).double().eval()
    network.fc = nn.Identity()
    own = {name.removeprefix("backbone."): t for name, t in regressor_state.items() if name.startswith("backbone.")}
    network.load_state_dict(own)
    image = pictures().double()
    features = oracle.resnet50({k: v.double() for k, v in regressor_state.items()}, image, "backbone.").mean((2, 3))
    assert features.std() > 0.1
    torch.testing.assert_close(features, network(image))


# --- SGPN -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def state():
    return made.sgpn_state()


@torch.no_grad()
def output(state, *inputs):
    return SGPN.from_released(state)(*inputs)


@pytest.mark.parametrize("seed", [0, 1])
@torch.no_grad()
def test_picture_and_masks_are_the_released_networks(seed):
    state, inputs = made.sgpn_state(seed=seed), made.sgpn_inputs(seed=seed)
    network = SGPN.from_released(state)
    picture, masks = network(*inputs, return_masks=True)
    expected, expected_masks = oracle.sgpn(state, *inputs)
    assert not network.training and np.abs(expected).std() > 0.2
    close(picture, expected)
    assert list(masks) == list(expected_masks) == [8, 16, 32, 64]
    for resolution, pair in masks.items():
        for found, mask in zip(pair, expected_masks[resolution], strict=True):
            assert mask.std() > 0.05  # the comparison means something
            close(found, mask)


@pytest.mark.parametrize(
    "options",
    [
        dict(style=10, latent=6, coeffs=7, layers=2),
        dict(layers=1),
        dict(latent=3, coeffs=16),
        dict(size=128, width=1 / 32, max_channels=16, layers=4),
        dict(max_channels=512),  # 8 channels at 64 pixels, 128 at 4
        dict(width=1.0, max_channels=12),  # the same everywhere
    ],
    ids=str,
)
def test_dimensions_are_read_from_the_tensors(options):
    state = made.sgpn_state(**options)
    inputs = made.sgpn_inputs(1, options.get("size", 64), options.get("coeffs", 10))
    close(output(state, *inputs), oracle.sgpn(state, *inputs)[0])


def test_sizes_we_cannot_build_are_refused():
    with pytest.raises(ValueError, match="size is 32"):
        SGPN.from_released(made.sgpn_state(32))


def test_what_is_loaded_belongs_to_the_network_alone(state):
    """Training the network must leave the caller's tensors as they are."""
    before = {name: tensor.clone() for name, tensor in state.items()}
    network = SGPN.from_released(state)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())


EVERY_KIND = [
    "netE.ecd0.0.0.weight",
    "netE.ecd0.0.1.bias",
    "netE.ecd3.0.1.weight",
    "netE.ecd3.0.2.bias",
    "netE.final_linear.0.weight",
    "netE.final_linear.0.bias",
    "netG.mlp.1.weight",
    "netG.mlp.3.bias",
    "netG.input.input",
    "netG.conv1.conv.weight",
    "netG.conv1.noise.weight",
    "netG.to_rgb1.bias",
    "netG.to_rgb1.conv.modulation.bias",
    "netG.convs.4.noise.weight",
    "netG.convs.5.noise.weight",
    "netG.convs.6.activate.bias",
    "netG.convs.5.convs_mask.0.weight",
    "netG.convs.4.convs_mask.0.bias",
    "netG.convs.7.conv.modulation.weight",
    "netG.to_rgbs.3.bias",
    "netG.to_rgbs.2.conv.weight",
]


@pytest.mark.parametrize("name", EVERY_KIND)
def test_every_kind_of_tensor_takes_part(state, name):
    """A tensor that were ignored, or put elsewhere, would leave our change of the picture unlike the oracle's."""
    changed = {**state, name: state[name] * 0 if state[name].numel() == 1 else state[name].flip(0) * 1.5 + 0.1}
    inputs = made.sgpn_inputs(1)
    plain, other = output(state, *inputs), output(changed, *inputs)
    assert (plain - other).abs().max() > 1e-3
    close(other, oracle.sgpn(changed, *inputs)[0], 1e-4 * max(1, other.abs().max().item()))


def test_without_the_scalars_the_features_reach_the_picture_only_through_the_latent(state):
    silent = {name: t * 0 if name.endswith("noise.weight") else t for name, t in state.items()}
    lq, render, coeffs = made.sgpn_inputs(1)
    assert (output(state, lq, render, coeffs) - output(silent, lq, render, coeffs)).abs().max() > 0.1
    close(output(silent, lq, render, coeffs), oracle.sgpn(silent, lq, render, coeffs)[0])


def test_the_renderings_features_matter_and_are_not_the_photos(state):
    lq, render, coeffs = made.sgpn_inputs(2)
    plain = output(state, lq, render, coeffs)
    assert (plain - output(state, lq, render[[1, 0]], coeffs)).abs().max() > 0.1
    assert (plain - output(state, render, lq, coeffs)).abs().max() > 0.1
    assert (plain - output(state, lq, render, coeffs[[1, 0]])).abs().max() > 1e-2


@pytest.mark.parametrize("name", EVERY_KIND)
def test_a_missing_tensor_is_named(state, name):
    with pytest.raises(ValueError, match=in_file(name)):
        SGPN.from_released({key: tensor for key, tensor in state.items() if key != name})


@pytest.mark.parametrize(
    "name", ["netG.noises.noise_0", "netG.convs.8.conv.weight", "netD.conv.weight", "netE.ecd9.bias"]
)
def test_an_unknown_tensor_is_named(state, name):
    with pytest.raises(ValueError, match=in_file(name)):
        SGPN.from_released({**state, name: torch.zeros(3)})


@pytest.mark.parametrize(
    "name, shape",
    [
        ("netE.ecd1.0.1.weight", (16, 8, 1, 1)),
        ("netE.ecd2.0.2.bias", (7,)),
        ("netG.mlp.2.weight", (16, 17)),
        ("netG.convs.3.convs_mask.0.weight", (24, 71, 1, 1)),
        ("netG.convs.3.noise.weight", (2,)),
        ("netG.convs.4.conv.weight", (1, 16, 47, 3, 3)),
        ("netG.to_rgbs.1.bias", (3,)),
        ("netG.to_rgbs.1.conv.weight", (1, 4, 48, 1, 1)),
        ("netE.ecd1.0.0.kernel", (3, 3)),
    ],
)
def test_a_wrong_shape_is_named(state, name, shape):
    with pytest.raises(ValueError, match=in_file(name)):
        SGPN.from_released({**state, name: torch.ones(shape)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["netG.convs.5.conv.weight", "netE.ecd0.0.1.bias", "netG.conv1.noise.weight"])
def test_numbers_that_are_not_finite_are_named(state, name, value):
    broken = state[name].clone()
    broken.view(-1)[-1] = value
    with pytest.raises(ValueError, match=in_file(name)):
        SGPN.from_released({**state, name: broken})


@pytest.mark.parametrize(
    "kernel",
    [
        made.blur_kernel((1.0, 2.0, 2.0, 1.0), 4),
        made.blur_kernel(gain=1) * 1.01,
        torch.full((4, 4), float("nan")),
        torch.zeros(4, 4),
    ],
    ids=["narrow", "louder", "nan", "zero"],
)
@pytest.mark.parametrize(
    "name", ["netE.ecd2.0.0.kernel", "netG.convs.4.conv.blur.kernel", "netG.to_rgbs.0.upsample.kernel"]
)
def test_another_blur_is_refused(state, name, kernel):
    with pytest.raises(ValueError, match=in_file(name)):
        SGPN.from_released({**state, name: kernel})


def test_a_gpen_generator_is_refused():
    with pytest.raises(ValueError, match=r"net[EG]\.|generator\.|ecd0|GPEN"):
        SGPN.from_released(made.gpen_state())


@pytest.mark.parametrize("other", [{}, {"params": 3}, {"network_g": {"netE": torch.zeros(1)}}])
def test_what_is_no_state_dict_of_it_is_refused(other):
    with pytest.raises(ValueError):
        SGPN.from_released(other)


# --- The coefficient regressor ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def regressor_state():
    return made.d3dfr_state()


def pictures(size=64):
    """Two pictures in [0, 1] that differ in colour and brightness."""
    noise = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    return noise * torch.tensor([[0.3, 0.6, 1.0], [1.0, 0.2, 0.1]])[:, :, None, None]


@pytest.mark.parametrize("wrapped", [False, True])
@torch.no_grad()
def test_coefficients_are_the_released_regressors(regressor_state, wrapped):
    network = D3DFR.from_released({"net_recon": regressor_state} if wrapped else regressor_state)
    expected = oracle.d3dfr(regressor_state, pictures())
    assert not network.training and expected.shape == (2, 257)
    assert (expected[0] - expected[1]).std() > 0.02
    close(network(pictures()), expected)


@torch.no_grad()
def test_coefficients_of_a_picture_of_the_released_size(regressor_state):
    image = pictures(224)[:1]
    close(D3DFR.from_released(regressor_state)(image), oracle.d3dfr(regressor_state, image))


@pytest.mark.parametrize(
    "name",
    ["backbone.layer3.5.bn3.running_var", "backbone.conv1.weight", "backbone.layer1.0.downsample.0.weight", LAST],
)
def test_a_missing_tensor_of_the_regressor_is_named(regressor_state, name):
    with pytest.raises(ValueError, match=in_file(name)):
        D3DFR.from_released({key: tensor for key, tensor in regressor_state.items() if key != name})


@pytest.mark.parametrize(
    "name, tensor",
    [
        ("final_layers.7.bias", torch.zeros(1)),
        ("backbone.fc.weight", torch.zeros(1000, 2048)),
        (LAST, torch.zeros(2)),
        ("backbone.layer2.0.conv2.weight", torch.zeros(128, 128, 1, 1)),
        ("backbone.bn1.running_mean", torch.full((64,), float("nan"))),
        ("final_layers.3.weight", torch.full((3, 2048, 1, 1), float("inf"))),
    ],
)
def test_tensors_that_do_not_fit_the_regressor_are_named(regressor_state, name, tensor):
    with pytest.raises(ValueError, match=in_file(name)):
        D3DFR.from_released({**regressor_state, name: tensor})


def test_other_networks_are_no_regressor(regressor_state, state):
    classifier = {name.removeprefix("backbone."): tensor for name, tensor in regressor_state.items()}
    for other, named in ((classifier, "conv1|backbone"), (state, "netE|netG|backbone|final_layers"), ({}, ".")):
        with pytest.raises(ValueError, match=named):
            D3DFR.from_released(other)
    with pytest.raises(ValueError):
        D3DFR.from_released({"opt_00": {"state": {}}, "epoch": 20})
