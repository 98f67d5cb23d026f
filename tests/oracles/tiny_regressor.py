"""TinyD3DFR, a regressor that takes a millisecond, where a test is about what is done with one."""

from torch import Tensor, nn

from sgpn_arch.d3dfr_arch import BACKBONES, D3DFR, Pooled
from sgpn_arch.registry import ARCH_REGISTRY


class TinyBackbone(nn.Module):
    """Two small convolutions of the reduced picture, with batch statistics to keep or to move."""

    width = 16

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.AvgPool2d(8),
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, self.width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(self.width),
            nn.ReLU(),
            Pooled(),
        )

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, 224, 224) -> (N, 16)."""
        return self.layers(image)


BACKBONES["tiny"] = TinyBackbone


@ARCH_REGISTRY.register()
class TinyD3DFR(D3DFR):
    """D3DFR on that backbone."""

    def __init__(self, id_dim: int = 80, exp_dim: int = 64, tex_dim: int = 80):
        super().__init__(id_dim, exp_dim, tex_dim, "tiny")
