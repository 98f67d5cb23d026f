"""How time and memory grow: of the network with batch and size, of a restoration with the faces in a photo and its pixels.

python tests/benchmarks/growth.py batch -o experiments/growth        # up to --last faces at once, plain and made ready
python tests/benchmarks/growth.py size --last 512 --precision bf16 -o docs/images

Writes OUT/performance_AXIS.png. The networks are random and of the paper's kind; photos are copies of scikit-image's astronaut on
noise. Memory is the peak of resident memory beyond what was there before (Linux; on CUDA, what PyTorch allocated).
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from compare_network import build, make_inputs, plain_call
from torch.utils.benchmark import Timer

from sgpn_arch.inference.memory import keep_freed_memory, return_freed_memory
from sgpn_arch.inference.network import DTYPES, choose_precision
from sgpn_data.detection import build_detector
from sgpn_model.cli.bench import random_networks
from sgpn_model.restore.restorer import FaceRestorer

# Axis -> where it begins, where it ends unless --last says so, and what a plot calls it.
AXES = {
    "batch": (1, 4, "faces in a batch"),
    "size": (64, 512, "side of the face, pixels"),
    "faces": (1, 4, "faces in a photo of 4 megapixels"),
    "photo": (0.25, 16, "megapixels, one face"),
}
HEAD = np.s_[0:300, 80:380]  # the astronaut's head and shoulders (rows, columns)
TILE = 400  # pixels of this square in a photo, unless the faces would not fit


def places(first: float, last: float) -> list[float]:
    """first, 2 first, 4 first, ... and last."""
    return [first * 2**k for k in range(math.ceil(math.log2(last / first)))] + [last]


def cases(axis: str, asked: argparse.Namespace) -> Iterator[tuple[str, float, Callable]]:
    """(name of a line in the plot, place on the axis, what to measure)."""
    device = torch.device(asked.device)
    for place in places(AXES[axis][0], asked.last or AXES[axis][1]):
        if axis in ("batch", "size"):
            size, batch = (asked.size, int(place)) if axis == "batch" else (int(place), 1)
            network = build(size, asked.width).to(device)
            inputs = tuple(x.to(device) for x in make_inputs(batch, size))
            yield f"plain {asked.precision}", place, plain_call(network, inputs, asked.precision)
            yield f"inference {asked.precision}", place, partial(network.for_inference(asked.precision), *inputs)
            continue
        # A new restorer each time: the network keeps its buffers, which belong to a restoration's memory.
        network, prior, template = random_networks(asked.size, asked.width)
        detector = build_detector("auto", asked.device)
        restorer = FaceRestorer(network, prior, template, detector, device, precision=asked.precision)
        photo = make_photo(*((4, int(place)) if axis == "faces" else (place, 1)))
        yield f"restoration {asked.precision}", place, partial(restorer.restore, photo)


def make_photo(megapixels: float, faces: int) -> np.ndarray:
    """A photo (uint8 HxWx3 BGR, 4:3) of so many copies of the astronaut's head in a grid, on smooth noise."""
    from skimage.data import astronaut

    height = round(math.sqrt(megapixels * 1e6 * 3 / 4))
    width = round(height * 4 / 3)
    rng = np.random.default_rng(0)
    photo = cv2.resize(rng.integers(60, 200, (12, 16, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    photo = cv2.add(photo, rng.integers(0, 8, photo.shape, np.uint8))
    tile = min(TILE, height)
    while (width // tile) * (height // tile) < faces:
        tile -= 1
    head = cv2.resize(astronaut()[HEAD][..., ::-1], (tile, tile), interpolation=cv2.INTER_AREA)
    for number in range(faces):
        row, column = (tile * part for part in divmod(number, width // tile))
        photo[row : row + tile, column : column + tile] = head
    return photo


def peak_mib(call: Callable, device: str) -> float:
    """MiB of memory at a call's peak beyond what was there before; NaN where that cannot be told."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    return_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        before = _status("VmRSS")
    except OSError:
        return math.nan
    call()
    return (_status("VmHWM") - before) / 2**10


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    """Measures what the command line names, prints it and draws it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("axis", choices=AXES)
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="folder of the plot")
    add("--last", type=float, help="end of the axis (default: 4 faces, 512 pixels, 16 megapixels)")
    add("--size", type=int, default=512, help="of the networks, but on the axis of sizes")
    add("--width", type=float, default=1.0)
    add("--precision", choices=tuple(DTYPES), help="default: what the device multiplies in hardware")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--seconds", type=float, default=10.0, help="for each measurement")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()
    asked.precision = asked.precision or choose_precision("auto", torch.device(asked.device))
    keep_freed_memory()
    lines = defaultdict(list)
    for name, place, call in cases(asked.axis, asked):
        memory = peak_mib(call, asked.device)  # of the first call, buffers that stay included
        timer = Timer("call()", globals={"call": call}, num_threads=asked.threads)
        found = timer.blocked_autorange(min_run_time=asked.seconds)
        lines[name].append((place, found.median, found.iqr / 2, memory))
        print(f"{name}, {place:g}: {found.median:.4g} s, {memory:.0f} MiB", flush=True)

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.3), layout="constrained")
    for name, rows in lines.items():
        at, seconds, spread, memory = zip(*rows, strict=True)
        left.errorbar(at, seconds, spread, marker="o", capsize=3, label=name)
        right.plot(at, memory, marker="o", label=name)
    for panel, title in ((left, "seconds"), (right, "peak memory, MiB")):
        panel.set(title=title, xlabel=AXES[asked.axis][2], xlim=(0, None), ylim=(0, None))
        panel.grid(alpha=0.3)
    left.legend()
    asked.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(asked.output / f"performance_{asked.axis}.png", dpi=90)


if __name__ == "__main__":
    main()
