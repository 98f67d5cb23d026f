"""What ``sgpn bench`` runs: how fast the networks, the shape prior, a restoration, the operations and a training step are."""

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import cv2
import torch

from sgpn_arch.errors import nearest
from sgpn_arch.fusion_arch import find_fusion
from sgpn_arch.inference.memory import keep_freed_memory
from sgpn_arch.layers import channels_at, resolutions
from sgpn_model.cli.bench_measure import Settings, describe_machine
from sgpn_model.cli.bench_report import Table, plain_text, told, write
from sgpn_model.config.device import choose_device
from sgpn_model.config.reading import OptionError

PARTS = ("network", "shape", "restore", "ops", "train")
USUAL = PARTS[:-1]  # a training step of the full size needs more memory than many machines have
SWEEPS = {"batch": "network", "size": "network", "faces": "restore", "photo": "restore"}


def run(
    part: str | None = None,
    output: str = "experiments/bench",
    compare: str | None = None,
    sweep: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    **options,
) -> list[Table]:
    """Measures, prints a table for each part and writes it as NAME.json and NAME.md (and NAME.png for a sweep).

    Args:
        part: one of PARTS; None is all but "train". output: the folder. compare: "plain" measures the plain path too.
        sweep: one of SWEEPS: how one thing grows, in place of one measurement. device: auto, cpu or cuda.
        threads: of PyTorch and OpenCV. options: the other fields of :class:`sgpn_model.cli.bench_measure.Settings`.

    Raises:
        OptionError: a name is unknown, two options do not go together, or a number is out of range.
        CheckpointError, DetectorError: the weights or the detector cannot be used.
    """
    _check(part, compare, sweep, threads, options)
    place = choose_device(device)
    tables = []
    with _threads(threads) as count:
        keep_freed_memory()
        settings = Settings(place, count, compare=compare == "plain", **_with_defaults(options))
        _check_network(settings)
        machine = describe_machine(settings)
        print(told(machine), flush=True)
        for name in [SWEEPS[sweep]] if sweep else [part] if part else USUAL:
            module = importlib.import_module(f"sgpn_model.cli.bench_{name}")
            table = module.sweep(sweep, settings) if sweep else module.run(settings)
            tables.append(table)
            print(f"\n{plain_text(table)}", flush=True)
            date = datetime.now(timezone.utc).isoformat(timespec="seconds")
            places = write(Path(output), table, machine, asdict(settings) | {"device": str(place)}, date)
            print("written: " + ", ".join(map(str, places)), flush=True)
    return tables


def _check(part: str | None, compare: str | None, sweep: str | None, threads: int | None, options: dict) -> None:
    for value, name, known in ((part, "bench", PARTS), (sweep, "--sweep", SWEEPS), (compare, "--compare", ("plain",))):
        if value is not None and value not in known:
            raise OptionError(f"{name}: unknown '{value}'{nearest(value, known)}")
    if sweep and part and part != SWEEPS[sweep]:
        raise OptionError(f"--sweep {sweep}: is about '{SWEEPS[sweep]}', not '{part}'; leave the name out")
    least = {"threads": 1, "batch": 1, "repeat": 1, "faces": 0, "seconds": 0, "megapixels": 0.01}
    for name, value in {**options, "threads": threads}.items():
        if name in least and value is not None and value < least[name]:
            raise OptionError(f"--{name}: is {value}; it must be at least {least[name]}")
    given = [name for name in ("size", "width", "fusion") if options.get(name) is not None]
    if options.get("weights") and given:
        raise OptionError(f"--{given[0]}: the weights say what the network is like; leave it out, or --weights")
    if options.get("weights") and sweep == "size":
        raise OptionError("--sweep size: weights have one size; leave --weights out")


def _check_network(settings: Settings) -> None:
    try:
        settings.precisions()
        channels_at(settings.size, settings.width, 512)
        resolutions(settings.size)
        find_fusion(settings.fusion)
    except ValueError as error:
        raise OptionError(f"bench: {error}") from error


def _with_defaults(options: dict) -> dict:
    return {name: value for name, value in options.items() if value is not None}


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[int]:
    """Within it, PyTorch and OpenCV use so many threads; gives the number."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    if count is not None:
        torch.set_num_threads(count)
        cv2.setNumThreads(count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
