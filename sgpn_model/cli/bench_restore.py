"""``sgpn bench restore``: a whole restoration, from file to file, stage by stage; and how it grows with photo and faces."""

import contextlib
import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from torch import nn

from sgpn_data.detection import build_detector
from sgpn_data.photos import Photo, read_photo, write_photo
from sgpn_model.cli.bench_measure import Settings, clock, measure, peak_of_process, ratio, wait_for
from sgpn_model.cli.bench_network import RANDOM, build, describe, powers
from sgpn_model.cli.bench_report import Row, Table
from sgpn_model.config.reading import OptionError
from sgpn_model.restore.restorer import FaceRestorer

# The astronaut's head and shoulders (rows, columns); side of this square in the photo, unless the faces would not fit.
HEAD = np.s_[0:300, 80:380]
TILE, SMALLEST_TILE = 400, 64
WHOLE, PLAIN = "whole", "whole, plain network in fp32"
STAGES = ("decode", "detect", "align", "shape prior", "network", "paste back", "encode", "other")


def run(settings: Settings) -> Table:
    """Measures one photo, and the share of each stage."""
    restorers = build_restorers(settings)
    rows, told = measure_photo(restorers, settings.megapixels or 1, _faces(settings), settings)
    title = f"Restoring {told}; {describe(restorers[WHOLE].network, settings)}"
    said, peak = notes(restorers[WHOLE], settings), peak_of_process()
    if peak is not None and settings.device.type == "cpu" and not settings.compare:
        said.append(f"The process had {peak:.0f} MiB at its peak, with PyTorch, the weights and the benchmark itself.")
    return Table("restore", title, rows, said)


def sweep(axis: str, settings: Settings) -> Table:
    """The same over faces (0 and up to ``faces``, default 8) or megapixels (from 1/4 up to ``megapixels``, default 16)."""
    over_faces = axis == "faces"
    places = [0, *powers(1, settings.faces or 8)] if over_faces else powers(0.25, settings.megapixels or 16)
    rows = []
    for place in places:
        # A new one each time: the prepared network keeps its buffers, which belong to a restoration's memory.
        restorers = build_restorers(replace(settings, compare=False))
        photo = (settings.megapixels or 4, place) if over_faces else (place, _faces(settings))
        whole = measure_photo(restorers, *photo, settings)[0][0]
        whole.what, whole.at = f"{WHOLE}, {place:g}", place
        rows.append(whole)
    fixed = f"in {settings.megapixels or 4:g} megapixels" if over_faces else f"of {_faces(settings)} face"
    axis_name = "faces in the photo" if over_faces else "megapixels"
    title = f"Restoring a photo {fixed}, over the {axis_name}; {describe(restorers[WHOLE].network, settings)}"
    return Table(f"sweep_{axis}", title, rows, notes(restorers[WHOLE], settings), axis_name)


def _faces(settings: Settings) -> int:
    return 1 if settings.faces is None else settings.faces


def notes(restorer: FaceRestorer, settings: Settings) -> list[str]:
    """What the reader of a table should know."""
    found = [] if settings.weights else [RANDOM.format(seed=settings.seed)]
    found.append(
        f"The photo is a JPEG of copies of scikit-image's astronaut on noise; the result is one too. Detector: "
        f"{restorer.detector.name}, whose threads are its own. Network in {getattr(restorer.network, 'precision', 'fp32')}."
    )
    found.append(
        "The stages are those of separate rounds: watching costs a little. peak MiB: beyond the loaded weights."
    )
    return found


class Plain(nn.Module):
    """A network as it is written, which a restorer does not prepare."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.size = network, network.size

    def forward(self, *inputs, **options):
        """As the network's."""
        return self.network(*inputs, **options)


def build_restorers(settings: Settings) -> dict[str, FaceRestorer]:
    """A restorer with the prepared network, and with ``compare`` one with the network as it is written, in fp32."""
    network, prior = build(settings)
    detector = build_detector(settings.detector, str(settings.device))
    networks = {WHOLE: network} | ({PLAIN: Plain(network)} if settings.compare else {})
    precision = settings.precision or "auto"
    return {
        name: FaceRestorer(own, prior, "ffhq", detector, settings.device, precision=precision)
        for name, own in networks.items()
    }


def measure_photo(
    restorers: Mapping[str, FaceRestorer], megapixels: float, faces: int, settings: Settings
) -> tuple[list[Row], str]:
    """Rows of the whole restorations and of the first one's stages, and in words what was restored."""
    bgr = make_photo(megapixels, faces, settings.seed)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "photo.jpg", Path(folder) / "restored.jpg"
        write_photo(source, Photo(bgr))
        calls = {name: partial(restore_file, restorer, source, target) for name, restorer in restorers.items()}
        found = measure(calls, settings)
        stages = watch(restorers[WHOLE], source, target, len(found[WHOLE].seconds))
    rows = {name: Row(name, own.seconds, own.output, peak_mib=own.peak_mib) for name, own in found.items()}
    if PLAIN in found:
        rows[WHOLE].versus_fp32 = ratio(found[PLAIN].seconds, found[WHOLE].seconds)
    medians = {name: float(np.median(seconds)) for name, seconds in stages.items()}
    rows[WHOLE].stages = medians
    parts = [Row(name, stages[name], share=seconds / sum(medians.values())) for name, seconds in medians.items()]
    height, width = bgr.shape[:2]
    seen = found[WHOLE].output
    told = f"{faces} face{'' if faces == 1 else 's'}" + ("" if seen == faces else f" (found: {seen})")
    return [*rows.values(), *parts], f"{told} in {width}x{height} pixels"


def restore_file(restorer: FaceRestorer, source: Path, target: Path) -> int:
    """What ``sgpn restore`` does with one photo; returns how many faces it found."""
    result = restorer.restore(read_photo(source).bgr)
    write_photo(target, Photo(result.image))
    return len(result.faces)


def make_photo(megapixels: float, faces: int, seed: int) -> np.ndarray:
    """A photo (uint8 HxWx3 BGR, 4:3) of so many copies of the astronaut's head in a grid, on smooth noise.

    Raises:
        OptionError: so many faces do not fit.
    """
    from skimage.data import astronaut

    height = round(math.sqrt(megapixels * 1e6 * 3 / 4))
    width = round(height * 4 / 3)
    rng = np.random.default_rng(seed)
    photo = cv2.resize(rng.integers(60, 200, (12, 16, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    photo = cv2.add(photo, rng.integers(0, 8, photo.shape, np.uint8))
    tile, columns = _grid(width, height, faces)
    if tile < SMALLEST_TILE:
        raise OptionError(f"--faces {faces}: so many do not fit into {megapixels:g} megapixels; raise --megapixels")
    head = cv2.resize(astronaut()[HEAD][..., ::-1], (tile, tile), interpolation=cv2.INTER_AREA)
    for number in range(faces):
        row, column = divmod(number, columns)
        photo[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile] = head
    return photo


def _grid(width: int, height: int, faces: int) -> tuple[int, int]:
    """The largest tile up to TILE of which so many fit, and how many columns they take."""
    tile = min(TILE, height)
    while (width // tile) * (height // tile) < faces:
        tile -= 1
    return tile, width // tile


# ---------------------------------------------------------------------------------------------------------------------
# Stages


class Stages:
    """Seconds spent in named functions, those that they call apart."""

    def __init__(self, device):
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner: list[float] = []

    def watched(self, function: Callable, stage: str) -> Callable:
        """The function, its time counted."""

        def call(*args, **kwargs):
            self._inner.append(0.0)
            start = clock()
            try:
                result = function(*args, **kwargs)
                wait_for(self.device)
                return result
            finally:
                took = clock() - start
                self.seconds[stage] += took - self._inner.pop()
                if self._inner:
                    self._inner[-1] += took

        return call


def watch(restorer: FaceRestorer, source: Path, target: Path, rounds: int) -> dict[str, list[float]]:
    """Stage -> seconds in each round of restoring the photo."""
    found: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for _ in range(rounds):
        stages = Stages(restorer.device)
        with _watching(restorer, stages):
            bgr = stages.watched(read_photo, "decode")(source).bgr
            # What is left of cutting out and of running the networks is aligning, and going from pictures to tensors and back.
            photo = stages.watched(restorer.prepare, "align")(bgr)
            stages.watched(restorer.run, "other")(photo.faces)
            result = stages.watched(restorer.finish, "paste back")(photo)
            stages.watched(write_photo, "encode")(target, Photo(result.image))
        for stage in STAGES:
            found[stage].append(stages.seconds[stage])
    return found


@contextlib.contextmanager
def _watching(restorer: FaceRestorer, stages: Stages) -> Iterator[None]:
    watched = [(restorer.detector, "detect", "detect"), (restorer.prior, "forward", "shape prior")]
    calls = [name for name in ("forward", "with_mask_picture") if hasattr(restorer.network, name)]
    watched += [(restorer.network, name, "network") for name in calls]
    with contextlib.ExitStack() as stack:
        for owner, name, stage in watched:
            stack.enter_context(_replaced(owner, name, stages.watched(getattr(owner, name), stage)))
        yield


@contextlib.contextmanager
def _replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Within it, an object has an attribute of its own in place of its class's."""
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
