"""D3DFR, the regressor from a face image to the coefficients of the morphable model, its pose and its lighting.

Its backbones follow: ResNet (He et al. 2016) and MobileNetV2 (Sandler et al. 2018), down to pooled features. Their layers are
named and initialised as torchvision's, so its weights, the authors' and Deep3DFaceRecon's load as they are. They are written
out here because importing torchvision brings in PyTorch's compiler, which takes longer than a restoration.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated

import torch
from annotated_types import Predicate
from torch import Tensor, nn

from sgpn_arch.inference.network import InferenceRegressor
from sgpn_arch.ranges import Count, Told
from sgpn_arch.registry import ARCH_REGISTRY

Backbone = Annotated[str, Predicate(lambda name: name in BACKBONES), Told("resnet50, resnet18 or mobilenet_v2")]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# MobileNetV2's table 2: expansion, channels, repetitions, stride of the first repetition.
INVERTED_RESIDUALS = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


@ARCH_REGISTRY.register()
class D3DFR(nn.Module):
    """A convolutional backbone with one 1x1 head per group of coefficients (Deep3DFaceRecon's and SGPN's regressor).

    Args:
        id_dim, exp_dim, tex_dim: dimensions of the morphable model's bases.
        backbone: "resnet50" (the paper's), "resnet18" or "mobilenet_v2".
        imagenet_normalisation: subtract ImageNet's mean and divide by its deviation first. The released weights do
            not; a backbone that starts from ImageNet weights should.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        id_dim: Count = 80,
        exp_dim: Count = 64,
        tex_dim: Count = 80,
        backbone: Backbone = "resnet50",
        imagenet_normalisation: bool = False,
    ):
        super().__init__()
        if backbone not in BACKBONES:
            raise ValueError(f"D3DFR: unknown backbone '{backbone}', choose one of {', '.join(BACKBONES)}")
        self.backbone = BACKBONES[backbone]()
        self.imagenet_normalisation = imagenet_normalisation
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        # identity, expression, texture, angles, lighting, translation xy, translation z
        sizes = (id_dim, exp_dim, tex_dim, 3, 27, 2, 1)
        self.coeff_dim = sum(sizes)
        self.final_layers = nn.ModuleList(nn.Conv2d(self.backbone.width, size, 1) for size in sizes)
        for parameter in self.final_layers.parameters():
            # All coefficients start at zero: the mean face, looking straight ahead.
            nn.init.zeros_(parameter)

    @classmethod
    def from_released(cls, state_dict: Mapping) -> "D3DFR":
        """The network of the authors' ``d3dfr_*.pth`` or Deep3DFaceRecon's ``epoch_20.pth``, in evaluation mode.

        Raises:
            ValueError: names the first tensor that is missing, unknown, of a shape that does not fit, or not finite.
        """
        from sgpn_arch.released_names import d3dfr_options, load_d3dfr
        from sgpn_arch.state_dicts import build_unfilled

        options = d3dfr_options(state_dict)
        network = build_unfilled(state_dict, lambda: cls(**options))
        load_d3dfr(network, state_dict)
        return network.eval()

    def for_inference(self, precision: str = "auto") -> InferenceRegressor:
        """A copy for inference, called alike; see :meth:`sgpn_arch.face3d.shape_prior.ShapePrior.for_inference`."""
        return InferenceRegressor(self, precision)

    def forward(self, image: Tensor) -> Tensor:
        """RGB image (N, 3, 224, 224) in [0, 1] -> coefficients (N, id + exp + tex + 3 + 27 + 3).

        The order is identity, expression, texture, angles (radians), lighting (27), translation (decimetres).
        """
        if self.imagenet_normalisation:
            image = (image - self.mean) / self.std
        features = self.backbone(image)[:, :, None, None]
        return torch.cat([head(features) for head in self.final_layers], dim=1).flatten(1)

    def load_backbone(self, state_dict: dict[str, Tensor]) -> None:
        """Initialises the backbone from a torchvision classifier's state dict; its classifier is left out.

        Raises:
            ValueError: the state dict belongs to another backbone.
        """
        wanted = self.backbone.state_dict()
        taken = {key: value for key, value in state_dict.items() if key in wanted and value.shape == wanted[key].shape}
        missing = [key for key in wanted if key not in taken and not key.endswith("num_batches_tracked")]
        if missing:
            raise ValueError(
                f"D3DFR: the state dict lacks {len(missing)} tensors of the backbone or has them in another shape, first "
                f"'{missing[0]}': it belongs to another architecture"
            )
        self.backbone.load_state_dict(taken, strict=False)


# ---------------------------------------------------------------------------------------------------------------------
# Backbones


def initialise(network: nn.Module) -> None:
    """He's initialisation of all convolutions, from the number of outputs; batch norms start as the identity."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _conv(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)


class Pooled(nn.Module):
    """A backbone's end: the mean over the picture, (N, C, h, w) -> (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the first has the stride."""

    expansion = 1

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = _conv(before, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(before, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, h, w) -> (N, width, h / stride, w / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the second has the stride, the last four times the channels."""

    expansion = 4

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = _conv(before, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(before, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, h, w) -> (N, 4 width, h / stride, w / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def _shortcut(before: int, after: int, stride: int) -> nn.Module | None:
    """A projection where the shape changes; None where the input can be added as it is."""
    if stride == 1 and before == after:
        return None
    return nn.Sequential(_conv(before, after, 1, stride), nn.BatchNorm2d(after))


class ResNet(nn.Module):
    """A residual network up to its pooled features.

    Args:
        block: BasicBlock or Bottleneck.
        counts: blocks in each of the four stages.
    """

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], counts: tuple[int, int, int, int]):
        super().__init__()
        self.conv1, self.bn1 = _conv(3, 64, 7, 2), nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        before = 64
        for number, count in enumerate(counts):
            width = 64 << number
            stage = nn.Sequential()
            for index in range(count):
                stage.append(block(before, width, 2 if index == 0 and number else 1))
                before = width * block.expansion
            self.add_module(f"layer{number + 1}", stage)
        self.avgpool = Pooled()
        self.width = before
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, h, w) -> (N, width)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        for number in range(4):
            x = self.get_submodule(f"layer{number + 1}")(x)
        return self.avgpool(x)


def _conv_norm_relu6(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(_conv(before, after, kernel, stride, groups), nn.BatchNorm2d(after), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Widen, convolve each channel by itself, narrow linearly; added to the input where the shape stays."""

    def __init__(self, before: int, after: int, stride: int, expansion: int):
        super().__init__()
        hidden = before * expansion
        widen = [_conv_norm_relu6(before, hidden, 1)] if expansion > 1 else []
        self.conv = nn.Sequential(
            *widen,
            _conv_norm_relu6(hidden, hidden, 3, stride, groups=hidden),
            _conv(hidden, after, 1),
            nn.BatchNorm2d(after),
        )
        self.adds = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, h, w) -> (N, after, h / stride, w / stride)."""
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 of width 1 up to its pooled features."""

    width = 1280

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(_conv_norm_relu6(3, 32, 3, 2))
        before = 32
        for expansion, after, count, stride in INVERTED_RESIDUALS:
            for index in range(count):
                self.features.append(InvertedResidual(before, after, 1 if index else stride, expansion))
                before = after
        self.features.append(_conv_norm_relu6(before, self.width, 1))
        self.avgpool = Pooled()
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, h, w) -> (N, 1280)."""
        return self.avgpool(self.features(image))


# Name -> what builds it.
BACKBONES: dict[str, Callable[[], ResNet | MobileNetV2]] = {
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "mobilenet_v2": MobileNetV2,
}
