"""Tests of sgpn_arch/layers.py and fusion_arch.py against explicit definitions."""

import math

import numpy as np
import pytest
import torch

from oracles import stylegan2 as oracle
from sgpn_arch.fusion_arch import AFFB, Fusion, LQOnly, SumFusion, find_fusion, mask_pictures
from sgpn_arch.layers import (
    ConvLayer,
    EqualConv2d,
    EqualLinear,
    ModulatedConv2d,
    PixelNorm,
    StyledConv,
    ToRGB,
    channels_at,
    minibatch_stddev,
    resolutions,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class _MinibatchStddev(torch.nn.Module):
    def forward(self, x):
        return minibatch_stddev(x)


def _doubles(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_channels_are_the_released_networks():
    assert [channels_at(r, 1.0, 512) for r in resolutions(512)] == [512] * 5 + [256, 128, 64]
    assert channels_at(1024, 0.01, 512) == 8
    assert channels_at(64, 0.01, 512) == 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: resolutions(96), "size is 96"),
        (lambda: resolutions(32), "size is 32"),
        (lambda: resolutions(2048), "size is 2048"),
        (lambda: channels_at(4, 0, 512), "width is 0"),
        (lambda: channels_at(4, 1, 4), "max_channels is 4"),
    ],
)
def test_wrong_sizes_and_widths_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_pixel_norm_gives_unit_mean_square():
    x = _doubles(3, 769) * 5
    np.testing.assert_allclose(PixelNorm()(x).square().mean(dim=1).numpy(), np.ones(3), atol=1e-8)
    for size in (1, 1e-4, 0):  # where the epsilon does not matter, and where it does
        expected = [row / np.sqrt(np.mean(row**2) + 1e-8) for row in size * x.numpy()]
        np.testing.assert_allclose(PixelNorm()(size * x).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("lr_mul", [1.0, 0.01])
def test_equal_linear_scales_weights_and_bias(lr_mul):
    layer = EqualLinear(6, 5, bias_init=0.3, lr_mul=lr_mul).double()
    x = _doubles(4, 6)
    expected = x @ (layer.weight.T / math.sqrt(6) * lr_mul) + layer.bias * lr_mul
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.bias * lr_mul, torch.full((5,), 0.3, dtype=torch.float64), atol=1e-6, rtol=0)
    layer.activate = True
    activated = oracle.fused_leaky_relu((expected - layer.bias * lr_mul).detach().numpy(), np.full(5, 0.3))
    np.testing.assert_allclose(layer(x).detach().numpy(), activated, atol=1e-6)


@pytest.mark.parametrize("lr_mul", [1.0, 0.01])
def test_equalised_layers_start_with_unit_variance(lr_mul):
    linear = EqualLinear(512, 512, lr_mul=lr_mul)
    assert linear(torch.randn(64, 512)).std().item() == pytest.approx(1, rel=0.05)
    assert linear.weight.std().item() == pytest.approx(1 / lr_mul, rel=0.02)
    conv = EqualConv2d(64, 64, 3, padding=1)
    assert conv.weight.std().item() == pytest.approx(1, rel=0.02)
    assert conv(torch.randn(1, 64, 32, 32))[..., 1:-1, 1:-1].std().item() == pytest.approx(1, rel=0.1)


def test_one_adam_step_moves_effective_weights_alike_whatever_the_fan_in():
    steps = []
    for fan_in in (4, 400):
        layer = EqualLinear(fan_in, 8)
        before = layer.weight.detach().clone()
        layer(torch.ones(2, fan_in)).sum().backward()
        torch.optim.Adam(layer.parameters(), lr=0.1).step()
        steps.append((layer.weight - before).abs().mean().item() / before.abs().mean().item())
    assert steps[0] == pytest.approx(steps[1], rel=0.5)


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("downsample", [True, False])
def test_conv_layer_is_blur_convolution_and_activation(kernel_size, downsample):
    layer = ConvLayer(3, 4, kernel_size, downsample).double()
    torch.nn.init.normal_(layer.bias)
    x = _doubles(2, 3, 8, 6)
    kernel, pad, stride = layer.conv.weight.detach() / math.sqrt(3 * kernel_size**2), kernel_size // 2, 1
    moved = x
    if downsample:  # the blur pads for the convolution, too
        moved = torch.from_numpy(oracle.upfirdn2d(x.numpy(), oracle.blur_kernel(), 1, 1, (1 + pad, 1 + pad)))
        pad, stride = 0, 2
    convolved = torch.stack([oracle.conv(sample, kernel, pad, stride) for sample in moved])
    expected = oracle.fused_leaky_relu(convolved.numpy(), layer.bias.detach().numpy())
    assert expected.shape == ((2, 4, 4, 3) if downsample else (2, 4, 8, 6))
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-10)


def test_equal_conv_scales_weights_and_adds_its_bias():
    layer = EqualConv2d(3, 4, 3, stride=2, padding=1).double()
    torch.nn.init.normal_(layer.bias)
    x = _doubles(1, 3, 7, 8)
    expected = oracle.conv(x[0], layer.weight.detach() / math.sqrt(27), 1, 2) + layer.bias.detach()[:, None, None]
    torch.testing.assert_close(layer(x)[0].detach(), expected)


@pytest.mark.parametrize(("kernel_size", "upsample"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("size", [1, 1e-4])  # the epsilon matters for small weights
def test_modulated_conv_is_one_kernel_per_sample(kernel_size, upsample, demodulate, size):
    conv = ModulatedConv2d(3, 5, kernel_size, 7, demodulate=demodulate, upsample=upsample).double()
    conv.weight.data.mul_(size)
    x, w = _doubles(2, 3, 4, 6), _doubles(2, 7)
    style = w @ conv.modulation.weight.T / math.sqrt(7) + 1
    weight = conv.weight / math.sqrt(3 * kernel_size**2)
    expected = oracle.modulated_conv2d(x, weight.detach(), style.detach(), demodulate, upsample)
    assert expected.shape == ((2, 5, 8, 12) if upsample else (2, 5, 4, 6))
    torch.testing.assert_close(conv(x, w).detach(), expected, atol=1e-10, rtol=1e-9)


def test_demodulation_gives_every_channel_unit_variance_whatever_the_style():
    conv = ModulatedConv2d(64, 32, 3, 16)
    with torch.no_grad():
        conv.modulation.bias.mul_(30)
        out = conv(torch.randn(4, 64, 64, 64), 20 * torch.randn(4, 16))[..., 1:-1, 1:-1]
    variances = out.var(dim=(2, 3))
    assert variances.mean().item() == pytest.approx(1, rel=0.02)
    assert (variances - 1).abs().max() < 0.25


def test_modulation_starts_at_one():
    conv = ModulatedConv2d(3, 5, 3, 7)
    torch.testing.assert_close(conv.modulation(torch.zeros(2, 7)), torch.ones(2, 3))


@pytest.mark.parametrize("upsample", [True, False])
def test_styled_conv_concatenates_weighted_features(upsample):
    conv = StyledConv(4, 3, 5, AFFB(3), upsample).double()
    torch.nn.init.constant_(conv.weight, 0.7)
    torch.nn.init.normal_(conv.bias)
    x, w = _doubles(2, 4, 4, 4), _doubles(2, 5)
    side = 8 if upsample else 4
    lq, render = _doubles(2, 3, side, side), _doubles(2, 3, side, side)
    hidden = conv.conv(x, w)
    fused, expected_mask = conv.fusion(hidden, lq, render)
    both = torch.cat([hidden, 0.7 * fused], dim=1).detach().numpy()
    out, mask = conv(x, w, lq, render)
    expected = oracle.fused_leaky_relu(both, conv.bias.detach().numpy())
    np.testing.assert_allclose(out.detach().numpy(), expected, atol=1e-10)
    assert torch.equal(mask, expected_mask)


@pytest.mark.parametrize("fusion", [AFFB, SumFusion, LQOnly])
def test_features_do_not_matter_until_the_weight_is_learnt(fusion):
    conv = StyledConv(4, 3, 5, fusion(3), upsample=True)
    x, w = torch.randn(2, 4, 4, 4), torch.randn(2, 5)
    first, second = (conv(x, w, torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8))[0] for _ in range(2))
    assert torch.equal(first, second)
    with torch.no_grad():
        conv.weight.fill_(0.1)
    third, fourth = (conv(x, w, torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8))[0] for _ in range(2))
    assert not torch.allclose(third, fourth)


def test_the_weight_of_features_learns_from_its_start_at_zero():
    conv = StyledConv(4, 3, 5, AFFB(3))
    out, _ = conv(torch.randn(2, 4, 4, 4), torch.randn(2, 5), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4))
    (out * torch.randn_like(out)).sum().backward()
    assert conv.weight.item() == 0
    assert conv.weight.grad.abs().item() > 0


def test_affb_is_its_formula():
    fusion = AFFB(3).double()
    torch.nn.init.normal_(fusion.mask.bias)
    hidden, lq, render = (_doubles(2, 3, 4, 4) for _ in range(3))
    fused, mask = fusion(hidden, lq, render)
    weight, bias = fusion.mask.weight.detach()[:, :, 0, 0].numpy() / 3, fusion.mask.bias.detach().numpy()
    for n, y, x in np.ndindex(2, 4, 4):
        column = np.concatenate([part[n, :, y, x].numpy() for part in (hidden, lq, render)])
        m = 1 / (1 + np.exp(-(weight @ column + bias)))
        expected = m * lq[n, :, y, x].numpy() + (1 - m) * render[n, :, y, x].numpy()
        np.testing.assert_allclose(mask[n, :, y, x].detach().numpy(), m, atol=1e-10)
        np.testing.assert_allclose(fused[n, :, y, x].detach().numpy(), expected, atol=1e-10)


def test_plain_fusions():
    hidden, lq, render = (_doubles(1, 2, 2, 2) for _ in range(3))
    assert torch.equal(SumFusion(2)(hidden, lq, render)[0], lq + render)
    assert torch.equal(LQOnly(2)(hidden, lq, None)[0], lq)


def test_fusions_are_found_by_name():
    assert find_fusion("AFFB") is AFFB
    with pytest.raises(ValueError, match="did you mean 'SumFusion'"):
        find_fusion("SumFusoin")
    with pytest.raises(ValueError, match="'SGPN' is registered but is no Fusion"):
        find_fusion("SGPN")


def test_a_fusion_without_forward_says_so():
    class Unfinished(Fusion):
        pass

    with pytest.raises(NotImplementedError, match="Unfinished must define forward"):
        Unfinished(3)(None, None, None)


def test_mask_pictures_are_channel_means_of_the_last_mask():
    first, last = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    pictures = mask_pictures({8: [first, last], 16: []})
    assert list(pictures) == [8]
    torch.testing.assert_close(pictures[8], (last[:, :1] + last[:, 1:2] + last[:, 2:]) / 3)


def test_to_rgb_adds_the_upsampled_picture():
    layer = ToRGB(4, 5).double()
    torch.nn.init.normal_(layer.bias)
    x, w, skip = _doubles(2, 4, 8, 8), _doubles(2, 5), _doubles(2, 3, 4, 4)
    style = w @ layer.conv.modulation.weight.T / math.sqrt(5) + 1
    own = oracle.modulated_conv2d(x, layer.conv.weight.detach() / 2, style.detach(), demodulate=False)
    larger = oracle.upfirdn2d(skip.numpy(), oracle.blur_kernel(gain=4), 2, 1, (2, 1))
    expected = own.numpy() + layer.bias.detach().numpy() + larger
    np.testing.assert_allclose(layer(x, w, skip).detach().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("batch", "group"), [(4, 4), (8, 4), (6, 3), (1, 1)])
def test_minibatch_stddev_is_its_formula(batch, group):
    x = _doubles(batch, 3, 4, 5)
    out = minibatch_stddev(x, group)
    assert torch.equal(out[:, :3], x)
    expected = oracle.minibatch_stddev(x.numpy(), group)
    np.testing.assert_allclose(out[:, 3].numpy(), np.broadcast_to(expected[:, None, None], (batch, 4, 5)), atol=1e-12)


def test_minibatch_stddev_takes_the_largest_group_that_divides_the_batch():
    x = torch.randn(6, 2, 4, 4)
    assert torch.equal(minibatch_stddev(x, 4), minibatch_stddev(x, 3))
    assert torch.equal(minibatch_stddev(x[:2], 4), minibatch_stddev(x[:2], 2))


GRADIENT_CASES = {
    "pixel norm": (PixelNorm, [(2, 4)]),
    "linear": (lambda: EqualLinear(3, 2, lr_mul=0.5), [(2, 3)]),
    "activated linear": (lambda: EqualLinear(3, 2, lr_mul=0.5, activate=True), [(2, 3)]),
    "convolution": (lambda: EqualConv2d(2, 2, 3, padding=1), [(1, 2, 3, 3)]),
    "conv layer": (lambda: ConvLayer(2, 2, 3), [(1, 2, 3, 3)]),
    "downsampling conv layer": (lambda: ConvLayer(2, 2, 3, downsample=True), [(1, 2, 4, 4)]),
    "modulated": (lambda: ModulatedConv2d(2, 2, 3, 3), [(2, 2, 2, 3), (2, 3)]),
    "modulated, upsampling": (lambda: ModulatedConv2d(2, 2, 3, 3, upsample=True), [(2, 2, 2, 2), (2, 3)]),
    "modulated only": (lambda: ModulatedConv2d(2, 2, 1, 3, demodulate=False), [(2, 2, 2, 2), (2, 3)]),
    "affb": (lambda: AFFB(2), [(1, 2, 2, 2)] * 3),
    "styled": (lambda: StyledConv(2, 2, 2, AFFB(2)), [(1, 2, 2, 2), (1, 2), (1, 2, 2, 2), (1, 2, 2, 2)]),
    "styled, upsampling": (
        lambda: StyledConv(2, 2, 2, AFFB(2), upsample=True),
        [(1, 2, 2, 2), (1, 2), (1, 2, 4, 4), (1, 2, 4, 4)],
    ),
    "to rgb": (lambda: ToRGB(2, 2), [(1, 2, 4, 4), (1, 2), (1, 3, 2, 2)]),
    "minibatch standard deviation": (_MinibatchStddev, [(4, 2, 2, 2)]),
}


@pytest.mark.parametrize(("build", "shapes"), GRADIENT_CASES.values(), ids=GRADIENT_CASES)
def test_first_and_second_gradients(build, shapes):
    """Against finite differences, for the inputs and for all parameters, none of which is 0 here."""
    module = build().double()
    names = [name for name, _ in module.named_parameters()]
    values = [_doubles(*shape).requires_grad_() for shape in shapes]
    values += [torch.randn_like(parameter).requires_grad_() for parameter in module.parameters()]

    def call(*values):
        inputs, parameters = values[: len(shapes)], dict(zip(names, values[len(shapes) :], strict=True))
        out = torch.func.functional_call(module, parameters, inputs)
        return out[0] if isinstance(out, tuple) else out

    assert torch.autograd.gradcheck(call, values)
    assert torch.autograd.gradgradcheck(call, values)
