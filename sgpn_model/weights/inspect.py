"""What is in a file of weights, and whether it is whole, safe and usable; no code of it runs."""

import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sgpn_arch import find_arch
from sgpn_arch.face3d.morphable_model import FORMAT as MODEL_FORMAT
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.state_dicts import is_finite
from sgpn_model.weights.catalogue import find_file, load_catalogue, problem_of, size_text
from sgpn_model.weights.checkpoint import (
    CHECKSUM,
    FORMAT,
    CheckpointError,
    load_checkpoint,
    opened,
    read_metadata,
    read_pickle,
)
from sgpn_model.weights.formats import damage_of, kind_of
from sgpn_model.weights.pretrained import build_networks

FIRST_KEYS = 3  # so many tensors of a state dict are named to tell what it is


def whose(path: Path, digest: str) -> str:
    """Which entry of the catalogue a file with this SHA-256 is.

    Raises:
        ValueError: it bears the name of an entry, but is something else.
    """
    entries = load_catalogue().values()
    for entry in entries:
        if entry.sha256 and digest.startswith(entry.sha256):
            place = (
                ", which ships with this library" if entry.shipped and find_file(entry) == path else " of the catalogue"
            )
            return f"it is '{entry.name}'{place}: its SHA-256 {'is' if len(entry.sha256) == 64 else 'begins as'} the catalogue's"
    for entry in entries:
        if entry.file == path.name:
            problem = problem_of(path, entry)
            if problem:
                raise ValueError(f"it is called like '{entry.name}' of the catalogue, but {problem}")
            return f"it is called like '{entry.name}' of the catalogue; hash not known, so that is all that can be said"
    return "it is not in the catalogue"


def describe(path: Path, check: bool = False) -> list[str]:
    """What is in a file, in a few lines. ``check`` reads all of it, and builds networks of this library from it.

    Raises:
        ValueError: it does not open, or asks for code to be run; with ``check`` also: what is in it does not fit together.
    """
    kind = kind_of(path)
    if kind == "safetensors":
        return _describe_safetensors(path, check)
    if kind in ("pytorch", "pickle"):
        return _describe_pickle(path, check)
    if kind in ("matlab", "hdf5"):  # MATLAB's newest files are HDF5, and the reader says what to do
        model = _model(MorphableModel.from_bfm, path, check)
        return [f"a Basel Face Model; its {len(model.shape_mean):,} vertices and {model.dims} modes fit together"]
    problem = damage_of(path)
    if problem:
        raise CheckpointError(f"{path}: {problem}")
    if kind == "zip":
        with zipfile.ZipFile(path) as archive:
            members = [
                f"{info.filename}: {size_text(info.file_size)}"
                for info in archive.infolist()
                if not info.filename.endswith("/")
            ]
        return [*members, "unpack it and verify the files in it"]
    return ["what is in it is not known"]


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for key, value in tensors.items():
        if not is_finite(value):
            raise ValueError(f"'{key}' holds NaN or infinity")


def _model(read: Callable[[Path], MorphableModel], path: Path, check: bool) -> MorphableModel:
    try:
        model = read(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{error}" if str(path) in str(error) else f"{path}: {error}") from error
    faults = model.faults() if check else []
    if faults:
        raise CheckpointError("\n".join(f"{path}: the morphable model {fault}" for fault in faults))
    return model


def _count(number: int) -> str:
    """A number of parameters for people."""
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number:,}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


# ---------------------------------------------------------------------------------------------------------------------
# safetensors


def _describe_safetensors(path: Path, check: bool) -> list[str]:
    with opened(path) as file:
        header, slices = file.metadata() or {}, {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        shapes = {key: (value.get_shape(), value.get_dtype()) for key, value in slices.items()}
        if check and header.get("format") not in (FORMAT, MODEL_FORMAT):
            _check_finite({key: file.get_tensor(key) for key in shapes})
    if header.get("format") == FORMAT:
        return _describe_checkpoint(path, header, shapes) + (_check_checkpoint(path, header) if check else [])
    if header.get("format") == MODEL_FORMAT:
        model = _model(MorphableModel.load, path, check)
        modes = ", ".join(
            f"{n} {kind}" for n, kind in zip(model.dims, ("identity", "expression", "texture"), strict=True)
        )
        lines = [
            f"morphable model of this library: {model.name}",
            f"{len(model.shape_mean):,} vertices, {len(model.triangles):,} triangles; modes: {modes}",
        ]
        return lines + [
            f"{key}: {_short(header[key])}" for key in ("licence", "version", "source", "units") if key in header
        ]
    lines = [f"{len(shapes)} tensors, {_count(sum(math.prod(shape) for shape, _ in shapes.values()))} numbers"]
    lines.append(f"first: {', '.join(list(shapes)[:FIRST_KEYS])}")
    return lines + [f"{key}: {_short(value)}" for key, value in header.items()]


def _describe_checkpoint(path: Path, header: dict, shapes: dict) -> list[str]:
    about = read_metadata(path, header)
    lines = ["checkpoint of this library"]
    for name, arch in about.pop("archs").items():
        own = [value for key, value in shapes.items() if key.startswith(f"{name}.")]
        arguments = dict(arch)
        kind, types = arguments.pop("type"), "/".join(sorted({dtype for _, dtype in own}))
        numbers = _count(sum(math.prod(shape) for shape, _ in own))
        told = ", ".join(f"{key} {value}" for key, value in arguments.items())
        lines.append(f"{name}: {kind}, {numbers} numbers in {len(own)} tensors ({types}): {told}")
    model = about.pop("morphable_model", None)
    if model is not None:
        model = (
            f"{_short(model.get('name'))} ({'in this file' if model.get('embedded') else 'ships with this library'})"
        )
    first = [key for key in ("template", "protocol", "step", "licence", "version") if key in about]
    rest = [key for key in about if key not in first]
    return [*lines, f"morphable model: {model or 'none'}", *(f"{key}: {_short(about[key])}" for key in first + rest)]


def _check_checkpoint(path: Path, header: Mapping[str, str]) -> list[str]:
    """Builds and loads every network, and puts a restoration together where the parts are there."""
    checkpoint = load_checkpoint(path)
    if not checkpoint.weights:
        raise ValueError(f"{path}: its metadata names no network")
    for name in checkpoint.weights:
        checkpoint.network(name)
    lines = [
        "its checksum is that of its tensors and metadata"
        if CHECKSUM in header
        else "it has no checksum, for it was written before there were any: a wrong number that is finite goes unseen"
    ]
    if checkpoint.names_morphable_model:
        _model(lambda _: checkpoint.morphable_model(), path, check=True)
    told = f"{', '.join(checkpoint.weights)}: built and loaded, all numbers are finite"
    if {"network_g", "network_shape"} <= set(checkpoint.weights) and checkpoint.names_morphable_model:
        build_networks(checkpoint)
        return [*lines, f"{told}; with its template and morphable model it restores photos"]
    return [*lines, f"{told}; not a whole restoration"]


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch's own files


def _describe_pickle(path: Path, check: bool) -> list[str]:
    lines = []
    content = read_pickle(path)
    problem = damage_of(path) if check else None
    if problem:
        raise CheckpointError(f"{path}: {problem}")
    for name, state in state_dicts(content):
        layout = layout_of(state)
        told = f" (names as in the released {layout})" if layout else ""
        lines.append(
            f"{name}: {len(state)} tensors, {_count(sum(value.numel() for value in state.values()))} numbers{told}"
        )
        first = [f"{key} {tuple(value.shape)}" for key, value in list(state.items())[:FIRST_KEYS]]
        lines.append(f"  first: {', '.join(first)}")
        if not check:
            continue
        _check_finite(state)
        if layout in ("SGPN", "D3DFR"):
            try:
                find_arch(layout).from_released(state)
            except (ValueError, RuntimeError, OverflowError) as error:
                raise ValueError(f"{path}: looks like the released {layout}, but {error}") from error
            lines.append(f"  they all fit the released {layout}")
    if not lines:
        raise CheckpointError(f"{path}: holds no tensors")
    return ["it opens without running code", *lines]


def state_dicts(content: Any, name: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, dict]]:
    """The state dicts in what a pickle held, each once: where they lie in it, and their tensors by name."""
    seen = set() if seen is None else seen
    if id(content) in seen:
        return
    seen.add(id(content))
    if isinstance(content, Tensor):
        yield name or "a tensor", {name or "tensor": content}
        return
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if not isinstance(content, Mapping):
        return
    own = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if own:
        yield name or "state dict", own
    for key, value in content.items():
        if not isinstance(value, Tensor):
            yield from state_dicts(value, f"{name}.{key}" if name else str(key), seen)


def layout_of(state: Mapping) -> str | None:
    """Which known network a state dict's names belong to: "SGPN", "D3DFR", "GPEN" or None."""
    keys = [key.removeprefix("module.") for key in state]
    if any(key.startswith(("netE.", "netG.")) for key in keys):
        return "SGPN"
    if any(key.startswith("final_layers.") for key in keys):
        return "D3DFR"
    return "GPEN" if any(key.startswith("generator.to_rgbs.") for key in keys) else None
