"""StyleGAN2's networks as SGPN uses them: the discriminator, and the prior generator that SGPN's decoder can start from.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020; that noise is concatenated, not
added, is GPEN's change (Yang et al., CVPR 2021).
"""

import math

import torch
from torch import nn

from sgpn_arch.fusion_arch import LQOnly
from sgpn_arch.layers import (
    ConvLayer,
    EqualConv2d,
    EqualLinear,
    channels_at,
    check_image,
    minibatch_stddev,
    quick_layout,
    resolutions,
)
from sgpn_arch.ops import downsample2d, fir_kernel
from sgpn_arch.ranges import Count, MappingLayers, PictureSize, Positive
from sgpn_arch.registry import ARCH_REGISTRY
from sgpn_arch.sgpn_arch import Decoder, MappingNetwork

NOISE_INIT = 0.1


@ARCH_REGISTRY.register()
class SGPNDiscriminator(nn.Module):
    """StyleGAN2's residual discriminator: tells real pictures from restored ones.

    Args:
        size: height and width of the pictures, a power of two from 64 to 1024.
        width: factor on the channels at high resolutions; see :func:`sgpn_arch.layers.channels_at`.
        max_channels: most channels at any resolution.
        stddev_group: samples compared by the minibatch standard deviation; see :func:`sgpn_arch.layers.minibatch_stddev`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, size: PictureSize = 512, width: Positive = 1.0, max_channels: Count = 512, stddev_group: Count = 4
    ):
        super().__init__()
        if stddev_group < 1:
            raise ValueError(f"stddev_group is {stddev_group!r}; it must be at least 1")
        self.size = size
        self.stddev_group = stddev_group
        widths = [channels_at(r, width, max_channels) for r in reversed(resolutions(size))]
        last = widths[-1]
        self.from_rgb = ConvLayer(3, widths[0], 1)
        self.blocks = nn.Sequential(
            *(ResidualBlock(before, after) for before, after in zip(widths, widths[1:], strict=False))
        )
        self.final_conv = ConvLayer(last + 1, last, 3)
        self.final_linear = nn.Sequential(EqualLinear(last * 4 * 4, last, activate=True), EqualLinear(last, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, size, size) RGB in [-1, 1] -> (N, 1) logits, greater for what looks real.

        Raises:
            ValueError: ``image`` has another shape.
        """
        check_image("image", image, self.size)
        x = self.blocks(self.from_rgb(quick_layout(image)))
        x = self.final_conv(minibatch_stddev(x, self.stddev_group))
        return self.final_linear(x.flatten(1))


class ResidualBlock(nn.Module):
    """Two convolutions, the second halving the picture, beside a blurred 1x1 skip: ``(conv2(conv1(x)) + skip(x)) / sqrt(2)``."""

    kernel: torch.Tensor

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = ConvLayer(in_channels, in_channels, 3)
        self.conv2 = ConvLayer(in_channels, out_channels, 3, downsample=True)
        self.skip = EqualConv2d(in_channels, out_channels, 1, bias=False)
        self.register_buffer("kernel", fir_kernel(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, Cin, H, W) -> (N, Cout, H/2, W/2)."""
        skip = self.skip(downsample2d(x, self.kernel))
        return (self.conv2(self.conv1(x)) + skip) * math.sqrt(0.5)


@ARCH_REGISTRY.register()
class ConcatStyleGAN2Generator(nn.Module):
    """A StyleGAN2 generator with concatenated noise: SGPN's own decoder, fed with noise in place of features.

    Every tensor of its ``decoder`` has the name and shape that it has in SGPN, so that a trained prior initialises SGPN.

    The noise is N(0, 1) in every channel and pixel, as wide as the features that take its place later, and enters
    through the learnt scalar of each convolution, which starts at 0 (as in GPEN). Choices of ours:

    - Both convolutions of a scale see the same noise, as both see the same features in SGPN; GPEN draws it for each.
    - The weights that look at noise channels start at NOISE_INIT of the others' size. While the scalar is 0 those
      channels are 0, and demodulation, which reckons with inputs of unit variance, would halve the signal's variance at
      each convolution: after the fifteen of a 512 pixel network, 0.5 % of the deviation would be left.

    There is one w for all layers, as in SGPN, hence no style mixing.

    Args:
        size, width, max_channels, style_dim: as in :class:`sgpn_arch.sgpn_arch.SGPN`; z is style_dim long as well.
        mapping_layers: linear layers of the mapping network.
        mapping_lr_mul: their learning-rate multiplier.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        size: PictureSize = 512,
        width: Positive = 1.0,
        max_channels: Count = 512,
        style_dim: Count = 512,
        mapping_layers: MappingLayers = 8,
        mapping_lr_mul: Positive = 0.01,
    ):
        super().__init__()
        self.size = size
        self.style_dim = style_dim
        self.channels = {r: channels_at(r, width, max_channels) for r in resolutions(size)}
        self.mapping = MappingNetwork(style_dim, style_dim, mapping_layers, mapping_lr_mul)
        self.decoder = Decoder(self.channels, style_dim, LQOnly)
        self._quieten_noise_weights()

    @torch.no_grad()
    def _quieten_noise_weights(self) -> None:
        """Scales the weights whose inputs are noise: the second half of the input channels after the first layer."""
        decoder = self.decoder
        for layer in (*decoder.convs, decoder.first_to_rgb, *decoder.to_rgbs):
            weight = layer.conv.weight
            weight[:, weight.shape[1] // 2 :] *= NOISE_INIT

    def forward(self, z: torch.Tensor, noise: dict[int, torch.Tensor] | None = None) -> torch.Tensor:
        """Makes pictures of latents.

        Args:
            z: (N, style_dim) drawn from N(0, 1).
            noise: resolution -> (N, C, r, r) for every resolution from 4 to size; drawn from N(0, 1) if None.

        Returns:
            (N, 3, size, size) RGB, about [-1, 1], not clamped.

        Raises:
            ValueError: ``z`` has another shape.
        """
        if z.ndim != 2 or z.shape[1] != self.style_dim:
            raise ValueError(f"z has shape {tuple(z.shape)}; expected (N, {self.style_dim})")
        return self.synthesise(self.mapping(z), noise)

    def synthesise(self, w: torch.Tensor, noise: dict[int, torch.Tensor] | None = None) -> torch.Tensor:
        """(N, style_dim) of the mapping network, and noise as in :meth:`forward` -> (N, 3, size, size)."""
        image, _ = self.decoder(w, self.draw_noise(w) if noise is None else noise)
        return image

    def draw_noise(self, z: torch.Tensor, generator: torch.Generator | None = None) -> dict[int, torch.Tensor]:
        """N(0, 1) noise for a batch like ``z``: resolution -> (N, C, r, r), in autocast's type where that is on.

        It is drawn where ``generator`` lives (None: the global one of z's device) and moved to z's device.
        """
        source = z.device if generator is None else generator.device
        autocast = torch.is_autocast_enabled(z.device.type)
        dtype = torch.get_autocast_dtype(z.device.type) if autocast else z.dtype
        noise = {}
        for r, c in self.channels.items():
            drawn = torch.randn(len(z), c, r, r, generator=generator, device=source, dtype=z.dtype)
            noise[r] = quick_layout(drawn.to(z.device, dtype))
        return noise
