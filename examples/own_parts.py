"""A fusion, a loss and a degradation of your own, and a training with them.

The decorators register them, and the option file names them: nothing in the library changes. Here they live in the program that
trains; a package of your own brings them to every command (docs/plugins.md). Two steps at 64 px show that it works, and no more.
"""

from pathlib import Path

import numpy as np
from torch import nn

from sgpn_arch.fusion_arch import Fusion
from sgpn_arch.registry import ARCH_REGISTRY, LOSS_REGISTRY
from sgpn_data.degradation import register_degradation
from sgpn_model import cli


@ARCH_REGISTRY.register()
class MeanFusion(Fusion):
    """Photo and rendering count alike, everywhere."""

    def forward(self, hidden, features_lq, features_3d):
        return (features_lq + features_3d) / 2, None


@LOSS_REGISTRY.register()
class ContrastLoss(nn.Module):
    """The difference of the pictures' deviations, channel by channel."""

    def __init__(self, loss_weight: float = 1.0):
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, pred, target):
        return self.loss_weight * (pred.std(dim=(2, 3)) - target.std(dim=(2, 3))).abs().mean()


@register_degradation
class Posterised:
    """So many grey levels are left of each channel."""

    def __init__(self, levels: int = 6):
        self.levels = levels

    def __call__(self, image, rng):  # float32 HxWx3 BGR in 0..1, and numpy's Generator
        return np.round(image * (self.levels - 1)).astype(np.float32) / (self.levels - 1)


Path("own.yml").write_text("""
_base_: options/example/joint.yml
name: own
path: {pretrain_prior: ~, pretrain_network_shape: default}
network_g: {fusion: MeanFusion}
datasets:
  train: {degradation: {_delete_: true, type: Posterised, levels: 5}}
  val: {degradation: {_delete_: true, type: Posterised, levels: 5}}
train:
  total_iter: 2
  losses: {contrast: {type: ContrastLoss, loss_weight: 0.1}}
""")
cli.main(["align", "--demo", "-o", "demo"])  # twelve faces made of the astronaut
cli.main(["train", "own.yml", "--data", "demo", "--device", "cpu"])
