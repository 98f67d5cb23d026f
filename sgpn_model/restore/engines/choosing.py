"""Which engine runs: by its name, or the fastest of those at hand, as measured on this machine."""

import hashlib
import importlib
import json
import logging
import platform
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sgpn_arch.errors import OptionError
from sgpn_arch.files import cache_folder, write_atomically
from sgpn_data.alignment import template_points
from sgpn_model.config.device import choose_device, cuda_is_likely
from sgpn_model.restore.engines import Engine
from sgpn_model.weights.bundle import Bundle, bundle_of
from sgpn_model.weights.formats import CheckpointError

LOGGER = logging.getLogger("sgpn")

# Engine -> module and class; those but torch run bundles. An engine is called as the package that it needs.
ENGINES = {
    "torch": ("torch_engine", "TorchEngine"),
    "openvino": ("openvino_engine", "OpenvinoEngine"),
    "onnxruntime": ("onnxruntime_engine", "OnnxruntimeEngine"),
}
NAMES = ("auto", *ENGINES)
RUNS = 3  # of which the quickest counts


class Opened(NamedTuple):
    """An engine, and what a restorer must know beside it."""

    engine: Engine
    template: str
    task: str
    hole: str


def open_engine(
    name: str, weights: Path, device: str = "auto", precision: str = "auto", threads: int | None = None
) -> Opened:
    """The networks of a checkpoint in an engine.

    Args:
        name: one of :data:`NAMES`. "auto" is torch on a GPU and where there is no bundle beside the checkpoint; else the
            fastest that is installed, which is measured the first time and kept in the cache.
        device, precision: see :meth:`FaceRestorer.from_pretrained`. threads: None is the engine's own choice.

    Raises:
        OptionError: there is no such engine, it is not installed, or it cannot do what is asked.
        CheckpointError: the weights, or the bundle beside them, cannot be used.
    """
    if name not in NAMES:
        raise OptionError(f"engine is {name!r}; it may be {', '.join(NAMES)}")
    candidates = able(weights, device, precision) if name == "auto" else [name]
    if len(candidates) == 1:
        return _open(candidates[0], weights, device, precision, threads)
    seconds = _measured(candidates, weights, precision, threads)
    fastest = min(seconds, key=seconds.__getitem__)
    told = ", ".join(f"{each} {value * 1e3:.0f} ms" for each, value in seconds.items())
    LOGGER.info("engine: %s, the fastest on this machine (one face: %s)", fastest, told)
    return _open(fastest, weights, device, precision, threads)


def able(weights: Path, device: str, precision: str) -> list[str]:
    """The engines that can run these weights here; torch where none can, so that its message says what is missing."""
    torch = ["torch"] if find_spec("torch") else []
    if device not in ("auto", "cpu") or precision == "fp16" or (device == "auto" and cuda_is_likely()):
        return ["torch"]
    try:
        bundle = bundle_of(weights)
        if bundle is not None:
            bundle.check()
    except CheckpointError as error:
        LOGGER.info("engine: torch, for %s", error)
        return ["torch"]
    others = [name for name in ENGINES if name != "torch" and find_spec(name)] if bundle else []
    if precision == "bf16":
        others = [name for name in others if name != "onnxruntime"]
    return torch + others or ["torch"]


def _open(name: str, weights: Path, device: str, precision: str, threads: int | None) -> Opened:
    if find_spec(name) is None:
        raise OptionError(
            f"engine '{name}': the package {name} is not installed; run: pip install {name}{_without(name)}"
        )
    module, kind = ENGINES[name]
    make: Callable[..., Engine] = getattr(importlib.import_module(f"sgpn_model.restore.engines.{module}"), kind)
    if name == "torch":
        return _open_torch(make, weights, device, precision, threads)
    bundle = bundle_of(weights)
    if bundle is None:
        raise OptionError(
            f"engine '{name}' runs exported networks, and there are none beside {weights}: run sgpn export --weights "
            f"{weights} -o BUNDLE, and give --weights BUNDLE"
        )
    return Opened(
        make(bundle, precision, threads, device), bundle.manifest.template, bundle.manifest.task, bundle.manifest.hole
    )


def _without(name: str) -> str:
    return ", or restore weights that are exported (docs/deploy.md)" if name == "torch" else ""


def _open_torch(make, weights: Path, device: str, precision: str, threads: int | None) -> Opened:
    import torch

    from sgpn_model.weights.checkpoint import load_checkpoint
    from sgpn_model.weights.pretrained import build_networks

    if threads is not None:
        torch.set_num_threads(threads)
    place = choose_device(device)
    checkpoint = load_checkpoint(weights)
    network, prior, template = build_networks(checkpoint)
    task, hole = checkpoint.metadata.get("task", "restore"), checkpoint.metadata.get("hole", "white")
    del checkpoint  # the last that holds the weights as they were stored
    return Opened(make(network, prior, place, precision), template, task, hole)


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def _measured(names: list[str], weights: Path, precision: str, threads: int | None) -> dict[str, float]:
    """Seconds for one face of each engine, from the cache or measured now; an engine that fails is left out."""
    bundle = bundle_of(weights)
    assert bundle is not None  # or there were nothing to choose from
    path, key = cache_folder() / "engines.json", _key(names, bundle, precision, threads)
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if isinstance(known, dict) and isinstance(known.get(key), dict) and set(known[key]) <= set(names) and known[key]:
        return known[key]
    LOGGER.info("engine: measuring %s, once", ", ".join(names))
    found = {}
    for name in names:
        try:
            found[name] = seconds_for_a_face(_open(name, weights, "cpu", precision, threads))
        except Exception as error:  # whatever somebody else's library raises: there are others
            LOGGER.warning("engine '%s' fails and is left out: %s", name, error)
    if not found:
        raise OptionError(f"none of the engines {', '.join(names)} works here; --engine NAME tells why")
    try:
        text = json.dumps({**(known if isinstance(known, dict) else {}), key: found}, indent=1)
        write_atomically(path, lambda part: Path(part).write_text(text, encoding="utf-8"), durable=False)
    except OSError as error:
        LOGGER.info("engine: the measurement could not be kept: %s", error)
    return found


def seconds_for_a_face(opened: Opened, runs: int = RUNS) -> float:
    """The quickest of some runs of one face, after a first that is not counted."""
    size = opened.engine.size
    crop = np.random.default_rng(0).uniform(-1, 1, (1, 3, size, size)).astype(np.float32)
    points = template_points(opened.template, size)[None].astype(np.float32)
    times = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        opened.engine(crop, points)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def _key(names: list[str], bundle: Bundle, precision: str, threads: int | None) -> str:
    """A name for all that the times depend on."""
    from importlib.metadata import version

    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.is_file() else []
    processor = next((line for line in lines if line.startswith("model name")), platform.processor())
    parts = [processor, *(f"{name} {version(name)}" for name in names), bundle.manifest.weights.sha256]
    return hashlib.sha256(repr([*parts, precision, threads]).encode()).hexdigest()[:16]
