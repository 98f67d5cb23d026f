"""Measures what scripts/simulate_scale.py reckons with: what listing, the table, a chunk and a worker's start cost.

python scripts/measure_bulk.py
python scripts/measure_bulk.py --photos FOLDER --weights default

With --photos it restores a folder instead, with sgpn restore and sgpn bulk, on one core and on two (Linux). Seconds of the
processor hardly depend on what else runs; all others do.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from sgpn_model.bulk.folders import Folder
from sgpn_model.bulk.job import Bulk, ray
from sgpn_model.bulk.listing import Manifest, list_photos, waiting
from sgpn_model.bulk.table import Table
from sgpn_model.bulk.worker import Worker

FILES, ROWS, CHUNK, COEFFICIENTS = 20_000, 32_000, 64, 257


class Idle(Worker):
    """A worker that does nothing, so that what is left is Ray's."""

    def __init__(self, work):
        pass

    def __call__(self, chunk: pa.Table) -> pa.Table:
        """Counts."""
        counts = dict(rows=len(chunk), before=0, photos=len(chunk), failed=0, faces=0)
        return pa.table({**{name: [count] for name, count in counts.items()}, "trouble": pa.nulls(1, pa.string())})


def listing(folder: Path) -> None:
    """What a listed photo costs."""
    for number in range(FILES):
        path = folder / f"photos/{number // 1000:04}/photograph_{number:08}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for traced in (False, True):
        if traced:
            tracemalloc.start()
        began = time.process_time()
        photos = list_photos(Folder(str(folder / "photos")), Folder(str(folder / "out")))
        waiting(photos, np.sort(np.array([b"%016d" % number for number in range(FILES)], "S16")))
        if not traced:
            print(f"listing, s of the processor a photo: {(time.process_time() - began) / FILES:.2e}")
    print(f"listing, bytes of memory a photo, at most: {tracemalloc.get_traced_memory()[1] / FILES:.0f}")
    print(f"list of the photos, bytes a photo: {photos.nbytes / FILES:.0f}")
    tracemalloc.stop()
    pyarrow.parquet.write_table(pa.table({"path": photos["source"]}), folder / "photos.parquet")
    began = time.process_time()
    waiting(
        Manifest(str(folder / "photos.parquet")).photos(),
        np.sort(np.array([b"%016d" % n for n in range(FILES)], "S16")),
    )
    print(f"manifest, s of the processor a photo: {(time.process_time() - began) / FILES:.2e}")


def table(folder: Path) -> None:
    """What a row costs: a photo with one face."""
    rng, made = np.random.default_rng(0), Table(Folder(str(folder / "made")))
    row = {"faces": 1, "scores": [0.999], "remarks": [], "seconds": 1.0}
    for first in range(0, ROWS, CHUNK):
        numbers = range(first, first + CHUNK)
        made.add(
            1,
            [
                {
                    **row,
                    "source": f"s3://archive/photos/{number // 1000:04}/photograph_{number:08}.jpg",
                    "destination": f"s3://archive/restored/{number // 1000:04}/photograph_{number:08}.jpg",
                    "boxes": rng.uniform(0, 1000, (1, 4)).tolist(),
                    "coefficients": rng.normal(size=(1, COEFFICIENTS)).tolist(),
                }
                for number in numbers
            ],
        )
    size = sum(path.stat().st_size for path in (folder / "made").rglob("*.parquet"))
    began = time.process_time()
    made.done()
    print(f"table, s of the processor a row, at the start of a run: {(time.process_time() - began) / ROWS:.2e}")
    print(f"table, bytes a row: {size / ROWS:.0f}")


def chunks(folder: Path) -> None:
    """What a chunk costs the driver."""
    used = []
    for count in (100, 1100):
        for number in range(count):
            path = folder / f"chunks{count}/{number}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.touch()
        began = time.process_time()
        Bulk(str(folder / f"chunks{count}"), str(folder / f"none{count}"), chunk=1, workers=2, worker=Idle).run()
        used.append(time.process_time() - began)
    print(f"driver, s of the processor a chunk: {(used[1] - used[0]) / 1000:.2e}")


def restoring(photos: str, weights: str, folder: Path) -> None:
    """sgpn restore and sgpn bulk on one core and on two, on the same photos.

    A worker reads, restores and writes in threads of its own, so that "of one core" is what the system allows it, and not what
    it is told.
    """
    count, options = len(list(Path(photos).rglob("*.*"))), ["--weights", weights, "--device", "cpu"]
    usable = sorted(os.sched_getaffinity(0))
    for cores in (1, 2):
        os.sched_setaffinity(0, usable[:cores])
        for command in (["restore", "-r", photos, "--threads"], ["bulk", photos, "--workers"]):
            name = f"sgpn {command[0]} on {cores} core{'s' * (cores > 1)}"
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "sgpn_model.cli", *command, str(cores), "-o", str(folder / name), *options],
                check=False,
                stdout=subprocess.DEVNULL,
            )
            seconds = time.perf_counter() - began
            print(f"{name}: {seconds:.1f} s, start-up included; {count / seconds:.2f} photos a second", flush=True)


def main() -> None:
    """Prints one line for each thing that is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", metavar="FOLDER", help="also restore these, with both commands")
    parser.add_argument("--weights", default="default", metavar="NAME|FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.photos:
            restoring(arguments.photos, arguments.weights, Path(folder))
            return
        listing(Path(folder))
        table(Path(folder))
        chunks(Path(folder))
        ray.shutdown()


if __name__ == "__main__":
    main()
