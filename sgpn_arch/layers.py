"""The layers that encoder, decoder and discriminator are built of: equalised, modulated and resampling ones.

Formulas are StyleGAN2's (Karras et al. 2019 and 2020). "Equalised" means that weights are drawn from N(0, 1) and
scaled by 1 / sqrt(fan_in) whenever they are used, so that Adam's step means the same in every layer.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from sgpn_arch.colour import LUMA
from sgpn_arch.ops import concat_leaky_relu, convolution, fir_kernel, fused_leaky_relu, upfirdn2d, upsample2d

MIN_SIZE, MAX_SIZE = 64, 1024


def resolutions(size: int, patch: int = 1) -> list[int]:
    """The resolutions of a network for ``size`` pixels, from 4 up: ``[4, 8, ..., size / patch]``.

    Raises:
        ValueError: ``size`` is not a power of two from 64 to 1024.
    """
    if size not in [2**n for n in range(6, 11)]:
        raise ValueError(f"size is {size!r}; it must be a power of two from {MIN_SIZE} to {MAX_SIZE}")
    return [2**n for n in range(2, (size // patch).bit_length())]


def channels_at(resolution: int, width: float, max_channels: int, min_channels: int = 8) -> int:
    """Channels of the feature maps at one resolution: ``32768 * width / resolution``, within both bounds.

    With width 1 and max_channels 512 these are the released network's: 64 at 512, 128 at 256, ..., 512 from 64 down.

    Raises:
        ValueError: ``width`` is not positive or ``max_channels`` is less than ``min_channels``.
    """
    if width <= 0:
        raise ValueError(f"width is {width!r}; it must be greater than 0 (1 is the released network's)")
    if max_channels < min_channels:
        raise ValueError(f"max_channels is {max_channels!r}; it must be at least {min_channels}")
    wanted = 32768 * width / resolution  # infinite for the widest
    return max_channels if wanted >= max_channels else max(min_channels, round(wanted))


def check_image(name: str, image: torch.Tensor, size: int) -> None:
    """Raises ValueError, naming ``name``, unless ``image`` is a (N, 3, size, size) tensor."""
    if image.ndim != 4 or tuple(image.shape[1:]) != (3, size, size):
        raise ValueError(
            f"{name} has shape {tuple(image.shape)}; this network takes (N, 3, {size}, {size}): "
            "resize the picture or build the network with another size"
        )


def check_inputs(network: Any, lq, render, coeffs) -> None:
    """Raises ValueError unless the inputs are what an SGPN takes; ``network`` has its size, coeff_dim and uses_render."""
    check_image("lq", lq, network.size)
    if tuple(coeffs.shape) != (lq.shape[0], network.coeff_dim):  # not len(): see SGPN._encode
        raise ValueError(f"coeffs has shape {tuple(coeffs.shape)}; expected ({lq.shape[0]}, {network.coeff_dim})")
    if not network.uses_render:
        return
    if render is None:
        raise ValueError("render is None, but this network's fusion needs the rendering; only LQOnly does not")
    check_image("render", render, network.size)
    if render.shape[0] != lq.shape[0]:
        raise ValueError(f"render has {len(render)} pictures, lq has {len(lq)}")


def quick_layout(x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) unchanged in value; on the CPU in channels_last, where convolutions and blurs run much quicker."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


def within_patches(image: torch.Tensor, patch: int) -> torch.Tensor:
    """RGB (N, 3, H, W) -> how much lighter each pixel is than the mean of its square of ``patch`` by ``patch`` pixels; the same
    for all three colours. What colours alone do within a square is left out: in a photo that is mostly noise, and JPEG seldom
    keeps it.
    """
    red, green, blue = image.split(1, dim=1)
    light = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    mean = functional.avg_pool2d(light, patch)
    return (light - functional.interpolate(mean, scale_factor=patch, mode="nearest")).expand_as(image)


class PixelNorm(nn.Module):
    """Divides each row by its root mean square: ``x / sqrt(mean(x^2) + 1e-8)`` over dimension 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


class EqualLinear(nn.Module):
    """Linear layer with equalised learning rate; with ``activate``, followed by the fused leaky ReLU.

    (N, in_features) -> (N, out_features). Weights are stored divided by ``lr_mul`` and biases are multiplied by it on
    use, so that the layer learns ``lr_mul`` times as fast. It always computes in float32 or wider, under autocast
    too: what it computes here (latents, styles, the realness score) is small and scales everything else.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias_init: float = 0.0,
        lr_mul: float = 1.0,
        activate: bool = False,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_mul)
        self.bias = nn.Parameter(torch.full((out_features,), float(bias_init) / lr_mul))
        self.scale = lr_mul / math.sqrt(in_features)
        self.lr_mul = lr_mul
        self.activate = activate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.weight.dtype)
            if self.activate:
                return fused_leaky_relu(functional.linear(x, self.weight * self.scale), self.bias * self.lr_mul)
            return functional.linear(x, self.weight * self.scale, self.bias * self.lr_mul)


class EqualConv2d(nn.Module):
    """Convolution with equalised learning rate. (N, Cin, H, W) -> (N, Cout, H', W')."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.scale = 1 / math.sqrt(in_channels * kernel_size**2)
        self.stride = stride
        self.padding = padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return convolution(x, self.weight * self.scale, self.bias, self.stride, self.padding)


class Blur(nn.Module):
    """The 4x4 binomial filter [1, 3, 3, 1] with zero padding ``pad`` = (before, after) on both axes."""

    kernel: torch.Tensor

    def __init__(self, pad: tuple[int, int], gain: float = 1.0):
        super().__init__()
        self.register_buffer("kernel", fir_kernel(gain=gain), persistent=False)
        self.pad = pad

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return upfirdn2d(x, self.kernel, pad=self.pad)


class Upsample(nn.Module):
    """Doubles height and width with the blur's filter (gain 4 makes up for the inserted zeros)."""

    kernel: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("kernel", fir_kernel(gain=4.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return upsample2d(x, self.kernel)


class ConvLayer(nn.Module):
    """Equalised convolution and fused leaky ReLU; with ``downsample``, a blur and stride 2 halve the picture.

    (N, Cin, H, W) -> (N, Cout, H, W), or (N, Cout, H/2, W/2). ``kernel_size`` is odd.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, downsample: bool = False):
        super().__init__()
        half = kernel_size // 2
        self.blur = Blur(pad=(1 + half, 1 + half)) if downsample else None
        stride, padding = (2, 0) if downsample else (1, half)
        self.conv = EqualConv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.blur is not None:
            x = self.blur(x)
        return fused_leaky_relu(self.conv(x), self.bias)


class ModulatedConv2d(nn.Module):
    """Convolution whose input channels are scaled by a style and whose output channels are brought back to unit variance.

    (N, Cin, H, W), (N, style_dim) -> (N, Cout, H, W), or (N, Cout, 2H, 2W) with ``upsample`` (a transposed
    convolution with stride 2, then the blur with gain 4).

    StyleGAN2 defines it with one kernel per sample, ``W'[o,i] = s[i] W[o,i] / sqrt(sum((s W)[o]^2) + 1e-8)``. The same
    is computed here with one shared kernel: inputs times ``s``, an ordinary convolution, outputs times the root.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        style_dim: int,
        demodulate: bool = True,
        upsample: bool = False,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.modulation = EqualLinear(style_dim, in_channels, bias_init=1.0)
        self.scale = 1 / math.sqrt(in_channels * kernel_size**2)
        self.demodulate = demodulate
        self.padding = kernel_size // 2
        self.blur = Blur(pad=(1, 1), gain=4.0) if upsample else None

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        style = self.modulation(w)
        weight = self.weight * self.scale
        x = self._convolve(x * _per_channel(style, x), weight)
        if self.demodulate:
            x = x * _per_channel(self._demodulation(style, weight), x)
        return x

    def _convolve(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if self.blur is None:
            return convolution(x, weight, padding=self.padding)
        return self.blur(convolution(x, weight.transpose(0, 1), stride=2, transposed=True))

    @staticmethod
    def _demodulation(style: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """(N, Cin) styles and (Cout, Cin, k, k) weights -> (N, Cout) factors, in the style's float32."""
        with torch.autocast(style.device.type, enabled=False):
            energy = style.square() @ weight.square().sum(dim=(2, 3)).t()
            return torch.rsqrt(energy + 1e-8)


def _per_channel(factors: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(N, C) factors, shaped and typed to multiply the (N, C, H, W) activations ``x``."""
    return factors.to(x.dtype)[:, :, None, None]


class ConstantInput(nn.Module):
    """The learnt (1, C, 4, 4) picture that the decoder starts from, repeated for each sample."""

    def __init__(self, channels: int):
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))

    def forward(self, batch: int) -> torch.Tensor:
        return self.input.expand(batch, -1, -1, -1)


class StyledConv(nn.Module):
    """Modulated convolution with spatial features beside its output, where StyleGAN2 has noise (as in GPEN).

    ``h = conv(x, w);  F = fusion(h, F_lq, F_3d);  out = fused_leaky_relu([h, weight * F])``: the output has
    2 * out_channels channels. ``weight`` is a learnt scalar that starts at 0, so that a pretrained prior is undisturbed
    at first.

    Args:
        fusion: the module that makes F; see :class:`sgpn_arch.fusion_arch.Fusion`.
    """

    def __init__(self, in_channels: int, out_channels: int, style_dim: int, fusion: Any, upsample: bool = False):
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, out_channels, 3, style_dim, upsample=upsample)
        self.fusion = fusion
        self.weight = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(2 * out_channels))

    def forward(
        self,
        x: torch.Tensor,
        w: torch.Tensor,
        features_lq: torch.Tensor,
        features_3d: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(N, Cin, r, r), w, features (N, Cout, r', r') -> output (N, 2 Cout, r', r') and the fusion's mask or None."""
        hidden = self.conv(x, w)
        fused, mask = self.fusion(hidden, features_lq, features_3d)
        return concat_leaky_relu(hidden, fused, self.weight, self.bias), mask


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to RGB, without demodulation, added to the upsampled picture of the scale before.

    Each place becomes a square of ``patch`` by ``patch`` pixels. Pictures are summed in float32 or wider, under autocast too.
    """

    def __init__(self, in_channels: int, style_dim: int, upsample: bool = True, patch: int = 1):
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, 3 * patch**2, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3 * patch**2, 1, 1))
        self.upsample = nn.Sequential(*(Upsample() for _ in range(patch.bit_length()))) if upsample else None
        self.patch = patch

    def forward(self, x: torch.Tensor, w: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        """(N, Cin, r, r), w and the (N, 3, r/2, r/2) picture so far (None at 4x4) -> (N, 3, patch r, patch r)."""
        image = functional.pixel_shuffle(self.conv(x, w).to(self.bias.dtype) + self.bias, self.patch)
        return image if skip is None or self.upsample is None else image + self.upsample(skip)


def minibatch_stddev(x: torch.Tensor, group: int = 4) -> torch.Tensor:
    """Appends one channel that says how much the samples of a group differ (Karras et al. 2018).

    The standard deviation over the group of every value, averaged over channels and pixels, fills the channel.

    Args:
        x: (N, C, H, W). Sample i belongs to the group of i modulo N / group, as in StyleGAN2.
        group: samples per group; the largest divisor of N that is not greater is used (a choice of ours for batches
            that do not divide evenly; StyleGAN2 refuses them).

    Returns:
        (N, C + 1, H, W).
    """
    batch, _, height, width = x.shape
    group = next(g for g in range(min(group, batch), 0, -1) if batch % g == 0)
    values = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(group, batch // group, -1)
    deviation = torch.sqrt(values.var(dim=0, unbiased=False) + 1e-8).mean(dim=1)
    channel = deviation.to(x.dtype).repeat(group)[:, None, None, None].expand(-1, 1, height, width)
    return torch.cat([x, channel], dim=1)
