"""``sgpn bench engines``: speed, memory, installed size and agreement of the engines installed, each in its own process."""

import importlib.metadata
import json
import re
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from sgpn_data.tensors import to_pictures

# Key of a row -> column of the printed table.
COLUMNS = {
    "engine": "engine",
    "precision": "precision",
    "start_s": "start, s",
    "face_ms": "one face, ms",
    "iqr_ms": "+-",
    "cpu_ms": "processor, ms",
    "peak_mib": "peak, MiB",
    "installed_mb": "installed, MB",
    "most_levels": "most, levels",
    "psnr_db": "PSNR, dB",
}


def bench_engines(
    output: str, weights: str, precision: str | None, threads: int | None, seconds: float, cpu: str
) -> None:
    """Measures, prints the table and writes it as JSON; ``cpu`` is the processor's name.

    Raises:
        CheckpointError, OptionError: there are no such weights, or no engine can run them.
    """
    from sgpn_model.restore.engines import choosing
    from sgpn_model.weights.pretrained import find_weights

    path = find_weights(weights)
    rows: list[dict] = []
    reference = None
    for wanted in [precision] if precision else ["fp32", "auto"]:
        for name in choosing.able(path, "cpu", wanted):
            print(f"measuring: {name}, {wanted}", flush=True)
            # A process of its own, so that start and memory are those of one engine.
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                row, restored = process.submit(measure, name, str(path), wanted, threads, seconds).result()
            if any(row["precision"] == other["precision"] and name == other["engine"] for other in rows):
                continue  # "auto" is fp32 here
            reference = restored if reference is None else reference
            rows.append({**row, "installed_mb": installed_mb(name), **agreement(restored, reference)})
    report = {"weights": weights, "cpu": cpu, "threads": threads, "rows": rows}
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(output).write_text(json.dumps(report, indent=1), encoding="utf-8")
    lines = [list(COLUMNS.values()), *([_cell(row.get(key)) for key in COLUMNS] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"{weights}; {report['cpu']}; agreement is with {rows[0]['engine']} in {rows[0]['precision']}")
    print("\n".join("  ".join(map(str.rjust, line, widths)) for line in lines))
    print(f"written: {output}")


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def measure(name: str, weights: str, precision: str, threads: int | None, seconds: float) -> tuple[dict, np.ndarray]:
    """One engine in this process: its row, and what it restores of real faces, (N, 3, S, S)."""
    from sgpn_data.astronaut import real_faces
    from sgpn_model.restore.engines.choosing import open_engine

    begin = time.perf_counter()
    opened = open_engine(name, Path(weights), "cpu", precision, threads)
    crops, points5 = real_faces(opened.engine.size, opened.template)
    opened.engine(crops[:1], points5[:1])
    start = time.perf_counter() - begin
    times: list[float] = []
    burnt = time.process_time()
    while sum(times) < seconds or len(times) < 5:
        begin = time.perf_counter()
        opened.engine(crops[:1], points5[:1])
        times.append(time.perf_counter() - begin)
    burnt = (time.process_time() - burnt) / len(times)
    low, middle, high = statistics.quantiles(times, n=4)
    row = {"engine": name, "precision": opened.engine.precision, "start_s": start, "face_ms": middle * 1e3}
    row |= {"iqr_ms": (high - low) * 1e3, "cpu_ms": burnt * 1e3, "runs": len(times), "peak_mib": peak_mib()}
    return row, np.concatenate(
        [opened.engine(crops[n : n + 1], points5[n : n + 1]).restored for n in range(len(crops))]
    )


def peak_mib() -> float | None:
    """The most memory that this process has had, MiB; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def agreement(restored: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Of pictures, as they are written: the largest difference in grey levels, and the PSNR where there is one."""
    ours, theirs = (np.stack(to_pictures(each)).astype(float) for each in (restored, reference))
    error = float(np.mean((ours - theirs) ** 2))
    found = {"most_levels": float(np.abs(ours - theirs).max())}
    return found | ({"psnr_db": 10 * np.log10(255**2 / error)} if error else {})


def installed_mb(package: str) -> float:
    """Size of a package's files and of those of all that it requires, MB."""
    return sum(_size(name) for name in _with_requirements(package, set())) / 1e6


def _with_requirements(package: str, seen: set[str]) -> Iterator[str]:
    name = re.sub(r"[-_.]+", "-", package).lower()
    if name in seen:
        return
    seen.add(name)
    try:
        needed = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:  # of another platform
        return
    yield name
    for line in needed:
        if "extra ==" not in line:
            yield from _with_requirements(re.split(r"[^\w.-]", line, maxsplit=1)[0], seen)


def _size(package: str) -> int:
    files = importlib.metadata.files(package) or []
    paths = [Path(str(file.locate())) for file in files]
    return sum(path.stat().st_size for path in paths if path.is_file())
