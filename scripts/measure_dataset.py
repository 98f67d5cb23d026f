"""Prints how many training pictures a second the dataset makes, by size, degradation and number of workers.

python scripts/measure_dataset.py                                   # generated pictures, so that anybody can compare
python scripts/measure_dataset.py --data faces --sizes 512 --presets gfpgan inpaint --gpu-rate 40

Images a second are the median of several passes and their range, after a pass to warm up: other work on the machine shows
in them. The processor's time for an image, the median over images in one process, shows it hardly.
"""

import argparse
import logging
import math
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from sgpn_data import build_dataset
from sgpn_data.degradation import PRESETS
from sgpn_model.cli.arguments import add_data

GENERATED = 64
INPAINT = "inpaint"
EIGHT = 8


def generate(folder: Path, size: int, suffix: str, count: int = GENERATED) -> None:
    """Writes pictures that compress about as photos do: noise at every scale, the finer the fainter."""
    rng = np.random.default_rng(0)
    for number in range(count):
        picture = np.full((size, size, 3), 0.5, np.float32)
        cells = 4
        while cells <= size:
            noise = rng.standard_normal((cells, cells, 3), dtype=np.float32) * 0.5 / cells**0.9
            picture += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
            cells *= 2
        levels = np.clip(picture * 255, 0, 255).astype(np.uint8)
        path = folder / f"{number}{suffix}"
        if not cv2.imwrite(str(path), levels):
            raise OSError(f"{path}: cannot be written")


def options_of(roots: list[str], size: int, preset: str, cache: str) -> dict:
    """A dataset's section; ``inpaint`` stands for holes in good photos."""
    task = {"degradation": None, "inpaint": {}} if preset == INPAINT else {"degradation": {"preset": preset}}
    read = {"dataroot": roots, "split": "train", "size": size, "cache": cache}
    return {"type": "FaceRestorationDataset", **read, "phase": "train", **task}


def passes(dataset: Dataset, workers: int, batch: int, repeats: int, images: int) -> list[float]:
    """Images a second of each pass over about ``images`` images, worker processes started before."""
    indices = [index % len(dataset) for index in range(images)]
    loader = DataLoader(dataset, batch, sampler=indices, num_workers=workers, persistent_workers=True)
    rates = []
    for repeat in range(repeats + 1):  # the first warms up
        dataset.set_epoch(repeat)
        start = time.perf_counter()
        for _ in loader:
            pass
        rates.append(images / (time.perf_counter() - start))
    return rates[1:]


def processor_time(dataset: Dataset, images: int) -> float:
    """Median seconds of the processor for an item, made in this process."""
    times = []
    for index in range(images):
        start = time.thread_time()
        dataset[index % len(dataset)]
        times.append(time.thread_time() - start)
    return statistics.median(times)


def workers_for(rate: float, gpus: int, per_worker: float) -> int:
    """How many workers make ``rate`` images a second for each of the GPUs."""
    return math.ceil(rate * gpus / per_worker)


def measure(roots: list[str], arguments: argparse.Namespace) -> None:
    """Prints a line of the table for each size, degradation and number of workers."""
    for size in arguments.sizes:
        for preset in arguments.presets:
            dataset = build_dataset(options_of(roots, size, preset, arguments.cache))
            seconds = processor_time(dataset, arguments.images)
            for workers in arguments.workers:
                rates = passes(dataset, workers, arguments.batch, arguments.repeats, arguments.images)
                print(_line(size, preset, seconds, workers, rates, arguments.gpu_rate), flush=True)


def _line(size: int, preset: str, seconds: float, workers: int, rates: list[float], gpu_rate: float) -> str:
    median = statistics.median(rates)
    wanted = workers_for(gpu_rate, EIGHT, median / workers)
    spread = f"{min(rates):.0f} to {max(rates):.0f}"
    head = f"| {size} | {preset} | {seconds * 1000:.1f} | {workers} |"
    return f"{head} {median:.1f} | {spread} | {median / workers:.1f} | {wanted} |"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add_data(parser)  # without it: generated pictures
    add("--sizes", type=int, nargs="+", default=[256, 512], help="pixels of the items")
    known = [*PRESETS, INPAINT]
    add("--presets", nargs="+", default=["gfpgan", "codeformer", "sr_x4", INPAINT], choices=known, metavar="PRESET")
    add("--workers", type=int, nargs="+", default=[1, 2], help="numbers of loader processes, at least 1")
    add("--gpu-rate", type=float, default=20.0, help="images a second that one GPU takes (default: 20)")
    add("--stored", type=int, default=512, help="pixels of generated pictures (default: 512)")
    add("--suffix", default=".jpg", choices=(".jpg", ".png", ".webp"), help="kind of generated pictures")
    add("--cache", default="none", choices=("none", "ram"), help="the dataset's option")
    add("--images", type=int, default=64, help="images of a pass")
    add("--repeats", type=int, default=5, help="passes that count")
    add("--batch", type=int, default=8)
    return parser


def main() -> None:
    """Measures what the command line names and prints a Markdown table."""
    parser = _parser()
    arguments = parser.parse_args()
    if min(arguments.workers) < 1 or arguments.gpu_rate <= 0:
        parser.error("--workers and --gpu-rate must be positive")
    logging.getLogger("sgpn").setLevel(logging.ERROR)
    # Before any use of OpenCV: its threads do not survive a fork, and a worker would wait for them for ever.
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    gpus = f"workers for {EIGHT} GPUs of {arguments.gpu_rate:g}/s"
    print(f"| size | degradation | CPU ms an image | workers | images/s | range | per worker | {gpus} |")
    print("|---" * 8 + "|", flush=True)
    if arguments.data:
        measure(arguments.data, arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), arguments.stored, arguments.suffix)
        measure([folder], arguments)


if __name__ == "__main__":
    main()
