"""Tests of the discriminator and of the prior generator."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from oracles import stylegan2 as oracle
from sgpn_arch import build_network
from sgpn_arch.sgpn_arch import SGPN
from sgpn_arch.stylegan2_arch import ConcatStyleGAN2Generator, ResidualBlock, SGPNDiscriminator

TINY = {"size": 64, "width": 0.02, "max_channels": 12}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("width", [0.01, 0.03])
def test_discriminator_gives_one_logit_per_picture(size, width):
    network = SGPNDiscriminator(size, width, 12)
    logits = network(torch.randn(4, 3, size, size))
    assert logits.shape == (4, 1)
    nn.functional.softplus(logits).mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def _conv_layer(layer, x, downsample=False):
    """Effective weights, then bias, slope and gain, sample by sample and in float64."""
    kernel = layer.conv.weight.detach()
    kernel, pad, stride = kernel / math.sqrt(kernel[0].numel()), kernel.shape[-1] // 2, 1
    if downsample:
        x = oracle.upfirdn2d(x, oracle.blur_kernel(), 1, 1, (1 + pad, 1 + pad))
        pad, stride = 0, 2
    x = torch.stack([oracle.conv(torch.as_tensor(sample), kernel, pad, stride) for sample in x]).numpy()
    return oracle.fused_leaky_relu(x, layer.bias.detach().numpy())


def _discriminate(network, image, group):
    """Logits (N, 1) of StyleGAN2's discriminator, from the network's weights alone."""
    x = _conv_layer(network.from_rgb, image)
    for block in network.blocks:
        smaller = oracle.upfirdn2d(x, oracle.blur_kernel(), 1, 2, (1, 1))
        kernel = block.skip.weight.detach().numpy()[:, :, 0, 0] / math.sqrt(block.skip.weight.shape[1])
        skip = np.einsum("oi,nihw->nohw", kernel, smaller)
        x = (_conv_layer(block.conv2, _conv_layer(block.conv1, x), downsample=True) + skip) / math.sqrt(2)
    deviation = np.broadcast_to(oracle.minibatch_stddev(x, group)[:, None, None, None], (len(x), 1, 4, 4))
    x = _conv_layer(network.final_conv, np.concatenate([x, deviation], 1)).reshape(len(x), -1)
    hidden, last = network.final_linear
    weights = [layer.weight.detach().numpy().T / math.sqrt(layer.weight.shape[1]) for layer in (hidden, last)]
    return oracle.fused_leaky_relu(x @ weights[0], hidden.bias.detach().numpy()) @ weights[1] + last.bias.item()


@pytest.mark.parametrize("group", [4, 2])
def test_discriminator_is_stylegan2s(group):
    network = SGPNDiscriminator(**TINY, stddev_group=group).double()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter)
    pictures = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    logits = network(pictures).detach().numpy()
    np.testing.assert_allclose(logits, _discriminate(network, pictures.numpy(), group), atol=1e-9)
    assert logits.std() > 1e-3


@pytest.mark.parametrize("size", [512, 1024])
def test_discriminator_has_a_block_per_scale(size):
    with torch.device("meta"):
        network = SGPNDiscriminator(size)
    assert len(network.blocks) == size.bit_length() - 3
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    widest = 32768 // size
    assert shapes["from_rgb.conv.weight"] == (widest, 3, 1, 1)
    assert shapes["blocks.0.conv1.conv.weight"] == (widest, widest, 3, 3)
    assert shapes["blocks.0.conv2.conv.weight"] == (2 * widest, widest, 3, 3)
    assert shapes["blocks.0.skip.weight"] == (2 * widest, widest, 1, 1)
    assert shapes["final_conv.conv.weight"] == (512, 513, 3, 3)
    assert shapes["final_linear.0.weight"] == (512, 8192) and shapes["final_linear.1.weight"] == (1, 512)


def test_discriminator_compares_the_samples_of_a_batch():
    network = SGPNDiscriminator(**TINY)
    pictures = torch.randn(4, 3, 64, 64)
    assert not torch.allclose(network(pictures)[:1], network(pictures[:1]), atol=1e-4)
    alone = SGPNDiscriminator(**TINY, stddev_group=1)
    torch.testing.assert_close(alone(pictures)[:1], alone(pictures[:1]), atol=1e-4, rtol=1e-4)


def test_second_gradients_of_r1_equal_those_of_plain_operations(monkeypatch):
    # Finite differences would not do: the penalty jumps where an activation changes sign.
    network = SGPNDiscriminator(**TINY).double()
    pictures = torch.randn(4, 3, 64, 64, dtype=torch.float64, requires_grad=True)

    def second_gradients():
        gradient = torch.autograd.grad(network(pictures).sum(), pictures, create_graph=True)[0]
        penalty = gradient.square().sum(dim=(1, 2, 3)).mean()
        return torch.autograd.grad(penalty, list(network.parameters()), materialize_grads=True)

    ours = second_gradients()
    monkeypatch.setattr("sgpn_arch.layers.fused_leaky_relu", _plain_activation)
    monkeypatch.setattr("sgpn_arch.layers.upfirdn2d", lambda x, kernel, pad: _plain_blur(x, pad))
    monkeypatch.setattr(
        "sgpn_arch.stylegan2_arch.downsample2d", lambda x, kernel: _plain_blur(x, (1, 1))[:, :, ::2, ::2]
    )
    plain = second_gradients()
    for (name, _), mine, expected in zip(network.named_parameters(), ours, plain, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-9, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert ours[0].abs().sum() > 0


def _plain_activation(x, bias):
    x = x + bias.reshape(1, -1, *[1] * (x.ndim - 2))
    return torch.where(x > 0, x, 0.2 * x) * 2**0.5


def _plain_blur(x, pad):
    taps = [1 / 8, 3 / 8, 3 / 8, 1 / 8]
    x = nn.functional.pad(x, [*pad, *pad])
    height, width = x.shape[2] - 3, x.shape[3] - 3
    x = sum(tap * x[:, :, i : i + height] for i, tap in enumerate(taps))
    return sum(tap * x[:, :, :, i : i + width] for i, tap in enumerate(taps))


def test_residual_block_keeps_variance():
    block = ResidualBlock(32, 32)
    with torch.no_grad():
        out = block(torch.randn(2, 32, 64, 64))
    assert out.shape == (2, 32, 32, 32)
    assert 0.2 < out.std().item() < 1.2


def test_discriminator_under_autocast_is_close():
    network = SGPNDiscriminator(**TINY).eval()
    pictures = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        logits = network(pictures)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(pictures)
    assert half.dtype == torch.float32
    assert (half - logits).abs().max() < 0.1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SGPNDiscriminator(size=100), "size is 100"),
        (lambda: SGPNDiscriminator(**TINY, stddev_group=0), "stddev_group is 0"),
        (lambda: SGPNDiscriminator(**TINY)(torch.zeros(1, 3, 32, 32)), r"image has shape \(1, 3, 32, 32\)"),
        (lambda: ConcatStyleGAN2Generator(**TINY, style_dim=16)(torch.zeros(1, 8)), r"z has shape \(1, 8\)"),
    ],
)
def test_wrong_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_prior_generator_makes_pictures_that_noise_changes_once_its_weight_is_learnt():
    network = build_network({"type": "ConcatStyleGAN2Generator", **TINY, "style_dim": 16, "mapping_layers": 2})
    z = torch.randn(2, 16)
    first = network(z)
    assert first.shape == (2, 3, 64, 64)
    assert torch.equal(first, network(z))
    for conv in network.decoder.convs:
        nn.init.constant_(conv.weight, 0.5)
    noise = network.draw_noise(z)
    assert not torch.allclose(network(z), network(z))
    assert torch.equal(network(z, noise), network.decoder(network.mapping(z), noise)[0])
    network(z).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_prior_initialises_the_decoder_of_sgpn():
    prior = ConcatStyleGAN2Generator(**TINY, style_dim=16)
    network = SGPN(**TINY, style_dim=16, latent_dim=8, coeff_dim=5)
    result = network.decoder.load_state_dict(prior.decoder.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all(".fusion.mask." in name for name in result.missing_keys)
    w = torch.randn(1, 16)
    features = {r: torch.randn(1, c, r, r) for r, c in prior.channels.items()}
    torch.testing.assert_close(network.decoder(w, features, features)[0], prior.decoder(w, features)[0])
