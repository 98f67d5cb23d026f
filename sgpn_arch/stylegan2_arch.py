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
from sgpn_arch.registry import ARCH_REGISTRY
from sgpn_arch.sgpn_arch import Decoder, MappingNetwork


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

    def __init__(self, size: int = 512, width: float = 1.0, max_channels: int = 512, stddev_group: int = 4):
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
    Both convolutions of a scale see the same noise, as both see the same features in SGPN (a choice of ours).

    Args:
        size, width, max_channels, style_dim: as in :class:`sgpn_arch.sgpn_arch.SGPN`; z is style_dim long as well.
        mapping_layers: linear layers of the mapping network.
        mapping_lr_mul: their learning-rate multiplier.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        size: int = 512,
        width: float = 1.0,
        max_channels: int = 512,
        style_dim: int = 512,
        mapping_layers: int = 8,
        mapping_lr_mul: float = 0.01,
    ):
        super().__init__()
        self.style_dim = style_dim
        self.channels = {r: channels_at(r, width, max_channels) for r in resolutions(size)}
        self.mapping = MappingNetwork(style_dim, style_dim, mapping_layers, mapping_lr_mul)
        self.decoder = Decoder(self.channels, style_dim, LQOnly)

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
        image, _ = self.decoder(self.mapping(z), self.draw_noise(z) if noise is None else noise)
        return image

    def draw_noise(self, z: torch.Tensor) -> dict[int, torch.Tensor]:
        """N(0, 1) noise for a batch like ``z``: resolution -> (N, C, r, r)."""
        return {r: quick_layout(z.new_empty(len(z), c, r, r).normal_()) for r, c in self.channels.items()}
