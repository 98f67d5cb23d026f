"""Features of an ImageNet MobileNetV2, which ship with the library, for a perceptual loss and a perceptual distance.

They stand in for VGG's where those cannot be had: everything computed from them carries ``mnv2`` in its name.
"""

from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sgpn_arch.d3dfr_arch import IMAGENET_MEAN, IMAGENET_STD, MobileNetV2

FEATURES_FILE = Path(__file__).parents[1] / "weights" / "mobilenet_v2_features.safetensors"
# The last block of each resolution: 16 channels at 1/2, 24 at 1/4, 32 at 1/8, 96 at 1/16.
TAPS = (1, 3, 6, 13)


class MobileNetFeatures(nn.Module):
    """RGB in [-1, 1] (N, 3, H, W) -> the outputs of four stages of MobileNetV2. Frozen."""

    mean: Tensor
    std: Tensor

    def __init__(self):
        super().__init__()
        self.stages = MobileNetV2().features[: TAPS[-1] + 1]
        state = {
            key: value.float() if value.is_floating_point() else value
            for key, value in load_file(FEATURES_FILE).items()
        }
        self.stages.load_state_dict(state)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "MobileNetFeatures":
        """Stays in evaluation mode: the statistics of its batch normalisation are ImageNet's."""
        return super().train(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        return tapped(self.stages, ((image + 1) / 2 - self.mean) / self.std, TAPS)


def tapped(stages: Iterable[nn.Module], x: Tensor, taps: Collection[int]) -> list[Tensor]:
    """What the stages whose numbers are in ``taps`` give, one stage after the other."""
    taken = []
    for index, stage in enumerate(stages):
        x = stage(x)
        if index in taps:
            taken.append(x)
    return taken
