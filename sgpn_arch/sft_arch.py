"""ChannelSplitSFT, the way in which GFP-GAN joins photo and prior, as a fusion for comparing with AFFB."""

import torch
from torch import nn

from sgpn_arch.fusion_arch import Fusion
from sgpn_arch.layers import EqualConv2d
from sgpn_arch.registry import ARCH_REGISTRY


@ARCH_REGISTRY.register()
class ChannelSplitSFT(Fusion):
    """``F = [h_1, (1 + scale(F_lq)) * h_2 + shift(F_lq)]``: half of the prior's channels as they are, half modulated.

    Channel-split spatial feature transform (Wang et al. 2021), put where SGPN has AFFB, so F stands beside h rather than
    in its place (a choice of ours, which keeps all else alike). Scale and shift are 1x1 convolutions. The rendering is not used.
    """

    uses_render = False

    def __init__(self, channels: int):
        super().__init__(channels)
        self.modulated = channels - channels // 2
        self.scale = EqualConv2d(channels, self.modulated, 1)
        self.shift = EqualConv2d(channels, self.modulated, 1)
        nn.init.zeros_(self.scale.weight)

    def forward(self, hidden, features_lq, features_3d):
        kept, changed = hidden.split([self.channels - self.modulated, self.modulated], dim=1)
        changed = changed * (1 + self.scale(features_lq)) + self.shift(features_lq)
        return torch.cat([kept, changed], dim=1), None
