"""The released SGPN and its coefficient regressor as plain functions on their flat state dicts, in float64.

Names are those of the released files (``netE.*``, ``netG.*``; ``backbone.*``, ``final_layers.*``). The generator is
written sample by sample with one kernel per sample, in numpy; only the regressor's plain convolutions are torch's.
"""

import math

import numpy as np
import torch

from oracles.stylegan2 import fused_leaky_relu, upfirdn2d

BATCH_NORM_EPSILON = 1e-5
BLOCKS = {"layer1": 3, "layer2": 4, "layer3": 6, "layer4": 3}  # of a ResNet-50


def as_numpy(state):
    """A state dict of tensors as float64 arrays."""
    return {name: tensor.detach().double().cpu().numpy() for name, tensor in state.items()}


# --- SGPN -------------------------------------------------------------------------------------------------------------


def sgpn(state, lq, render, coeffs):
    """lq, render (N, 3, S, S) in [-1, 1], coeffs (N, C) -> picture (N, 3, S, S), masks {resolution: [two (N, C, r, r)]}."""
    weights = as_numpy(state)
    pictures, masks = [], {}
    for sample in zip(lq, render, coeffs, strict=True):
        picture, of_sample = _one(weights, *(np.asarray(part, np.float64) for part in sample))
        pictures.append(picture)
        for resolution, pair in of_sample.items():
            masks.setdefault(resolution, []).append(pair)
    by_resolution = {r: [np.stack(both) for both in zip(*pairs, strict=True)] for r, pairs in masks.items()}
    return np.stack(pictures), by_resolution


def _one(weights, lq, render, coeffs):
    features_lq, latent_lq = encode(weights, lq)
    features_3d, latent_3d = encode(weights, render)
    w = mapping(weights, np.concatenate([latent_lq, latent_3d, coeffs]))
    return synthesis(weights, w, features_lq, features_3d)


def encode(weights, image):
    """image (3, S, S) -> {resolution: features (C, r, r)} from S down to 4, latent (D,)."""
    stages = 1 + max(int(name.split(".")[1][3:]) for name in weights if name.startswith("netE.ecd"))
    hidden = equalised_conv(image, weights["netE.ecd0.0.0.weight"])
    hidden = activate(hidden, weights["netE.ecd0.0.1.bias"])
    features = {hidden.shape[-1]: hidden}
    for stage in range(1, stages):
        name = f"netE.ecd{stage}.0"
        blurred = upfirdn2d(hidden[None], weights[f"{name}.0.kernel"], 1, 1, (2, 2))[0]
        hidden = equalised_conv(blurred, weights[f"{name}.1.weight"], stride=2)
        hidden = activate(hidden, weights[f"{name}.2.bias"])
        features[hidden.shape[-1]] = hidden
    latent = equalised_linear(hidden.reshape(-1), weights["netE.final_linear.0.weight"])
    return features, activate(latent, weights["netE.final_linear.0.bias"])


def mapping(weights, z, multiplier=0.01):
    """z (D,) -> w: divided by its root mean square, then every layer with the learning-rate multiplier."""
    w = z / math.sqrt((z**2).mean() + 1e-8)
    layer = 1
    while f"netG.mlp.{layer}.weight" in weights:
        w = equalised_linear(w, weights[f"netG.mlp.{layer}.weight"] * multiplier)
        w = activate(w, weights[f"netG.mlp.{layer}.bias"] * multiplier)
        layer += 1
    return w


def synthesis(weights, w, features_lq, features_3d):
    """w -> picture (3, S, S) and the masks of every scale from 8 up, two each."""
    scales = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("netG.to_rgbs."))
    hidden = modulated_conv(weights, "netG.conv1.conv", weights["netG.input.input"][0], w)
    extra = weights["netG.conv1.noise.weight"] * features_lq[4]
    hidden = activate(np.concatenate([hidden, extra]), weights["netG.conv1.activate.bias"])
    skip = to_rgb(weights, "netG.to_rgb1", hidden, w)
    masks = {}
    for scale in range(scales):
        resolution = 8 * 2**scale
        masks[resolution] = []
        for number in (2 * scale, 2 * scale + 1):
            hidden, mask = styled_conv(
                weights, f"netG.convs.{number}", hidden, w, features_lq[resolution], features_3d[resolution]
            )
            masks[resolution].append(mask)
        skip = upsample(skip, weights[f"netG.to_rgbs.{scale}.upsample.kernel"])
        skip = skip + to_rgb(weights, f"netG.to_rgbs.{scale}", hidden, w)
    return skip, masks


def styled_conv(weights, name, hidden, w, lq, render):
    """Convolution, then the learnt mask between the two features, which double the channels."""
    hidden = modulated_conv(weights, f"{name}.conv", hidden, w)
    logits = equalised_conv(np.concatenate([hidden, lq, render]), weights[f"{name}.convs_mask.0.weight"])
    mask = 1 / (1 + np.exp(-(logits + weights[f"{name}.convs_mask.0.bias"][:, None, None])))
    extra = weights[f"{name}.noise.weight"] * (mask * lq + (1 - mask) * render)
    return activate(np.concatenate([hidden, extra]), weights[f"{name}.activate.bias"]), mask


def to_rgb(weights, name, hidden, w):
    return modulated_conv(weights, f"{name}.conv", hidden, w, demodulate=False) + weights[f"{name}.bias"][0]


def modulated_conv(weights, name, x, w, demodulate=True):
    """One sample x (Cin, H, W): the kernel is scaled per input channel; it upsamples where the file has a blur."""
    style = equalised_linear(w, weights[f"{name}.modulation.weight"]) + weights[f"{name}.modulation.bias"]
    kernel = weights[f"{name}.weight"][0]
    kernel = kernel / math.sqrt(kernel[0].size) * style[None, :, None, None]
    if demodulate:
        kernel = kernel / np.sqrt((kernel**2).sum((1, 2, 3), keepdims=True) + 1e-8)
    blur = weights.get(f"{name}.blur.kernel")
    if blur is None:
        return conv(x, kernel, pad=kernel.shape[-1] // 2)
    return upfirdn2d(transposed_conv(x, kernel)[None], blur, 1, 1, (1, 1))[0]


def upsample(x, kernel):
    """Twice the size: zeros between the pixels, then the blur, whose stored values hold the gain of 4."""
    return upfirdn2d(x[None], kernel, 2, 1, (2, 1))[0]


def conv(x, kernel, stride=1, pad=0):
    """Plain convolution (correlation) of one sample, summed over the kernel's taps."""
    x = np.pad(x, [(0, 0), (pad, pad), (pad, pad)])
    size = kernel.shape[-1]
    rows, columns = ((n - size) // stride + 1 for n in x.shape[1:])
    out = np.zeros((len(kernel), rows, columns))
    for dy, dx in np.ndindex(size, size):
        window = x[:, dy : dy + stride * (rows - 1) + 1 : stride, dx : dx + stride * (columns - 1) + 1 : stride]
        out += np.tensordot(kernel[:, :, dy, dx], window, 1)
    return out


def transposed_conv(x, kernel):
    """Stride 2, no padding: every input pixel adds the kernel at twice its position."""
    _, height, width = x.shape
    size = kernel.shape[-1]
    out = np.zeros((len(kernel), 2 * (height - 1) + size, 2 * (width - 1) + size))
    for dy, dx in np.ndindex(size, size):
        spread = np.tensordot(kernel[:, :, dy, dx], x, 1)
        out[:, dy : dy + 2 * height - 1 : 2, dx : dx + 2 * width - 1 : 2] += spread
    return out


def equalised_conv(x, weight, stride=1):
    return conv(x, weight / math.sqrt(weight[0].size), stride)


def equalised_linear(x, weight):
    return weight @ x / math.sqrt(weight.shape[1])


def activate(x, bias):
    """Bias per channel, leaky ReLU of slope 0.2, gain sqrt(2), for one sample."""
    return fused_leaky_relu(x[None], bias)[0]


# --- The coefficient regressor ----------------------------------------------------------------------------------------


def d3dfr(state, image):
    """image (N, 3, H, W) in [0, 1] -> coefficients (N, 257): the seven heads' outputs, one after the other."""
    weights = {name: tensor.double() for name, tensor in state.items()}
    features = resnet50(weights, image.double(), "backbone.").mean((2, 3))
    heads = [features @ weights[f"final_layers.{i}.weight"][:, :, 0, 0].T for i in range(7)]
    return torch.cat([head + weights[f"final_layers.{i}.bias"] for i, head in enumerate(heads)], 1)


def resnet50(weights, x, prefix):
    """The last feature map (N, 2048, h, w), in inference form."""
    x = _plain_conv(x, weights[f"{prefix}conv1.weight"], 2)
    x = batch_norm(weights, f"{prefix}bn1", x).clamp(min=0)
    x = torch.nn.functional.pad(x, [1] * 4, value=-math.inf)
    x = x.unfold(2, 3, 2).unfold(3, 3, 2).amax((-2, -1))  # the 3x3 maximum, stride 2
    for layer, blocks in BLOCKS.items():
        for block in range(blocks):
            stride = 2 if block == 0 and layer != "layer1" else 1
            x = bottleneck(weights, f"{prefix}{layer}.{block}", x, stride)
    return x


def bottleneck(weights, name, x, stride):
    """1x1, 3x3 (which has the stride), 1x1, and the shortcut, projected in the first block of a layer."""
    out = x
    for number, step in ((1, 1), (2, stride), (3, 1)):
        out = _plain_conv(out, weights[f"{name}.conv{number}.weight"], step)
        out = batch_norm(weights, f"{name}.bn{number}", out)
        if number < 3:
            out = out.clamp(min=0)
    if f"{name}.downsample.0.weight" in weights:
        x = _plain_conv(x, weights[f"{name}.downsample.0.weight"], stride)
        x = batch_norm(weights, f"{name}.downsample.1", x)
    return (out + x).clamp(min=0)


def batch_norm(weights, name, x):
    weight, bias, mean, variance = (
        weights[f"{name}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / (variance + BATCH_NORM_EPSILON).sqrt() * weight + bias


def _plain_conv(x, weight, stride):
    return torch.nn.functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
