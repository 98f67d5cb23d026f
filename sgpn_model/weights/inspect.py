"""What ``sgpn weights`` does: list the catalogue, fetch, verify and show files of weights, convert released ones."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sgpn_arch.errors import nearest
from sgpn_model.weights.catalogue import (
    CatalogueError,
    Entry,
    cache_folder,
    find_entry,
    find_file,
    home,
    kind_of,
    load_catalogue,
    problem_of,
    sha256_of,
    size_text,
    structure_problem,
)

KINDS = {
    "safetensors": "safetensors file",
    "pytorch": "PyTorch file",
    "pickle": "PyTorch file of the old format",
    "matlab": "MATLAB file",
    "hdf5": "HDF5 file",
    "zip": "zip archive",
    "gzip": "gzip archive",
    "7z": "7z archive",
    "rar": "RAR archive",
    "html": "web page",
    "empty": "empty file",
    "unknown": "file of an unknown kind",
}
ARCHIVES = {"zip", "gzip", "7z", "rar"}
# How many tensors of a state dict are named to tell what it is.
FIRST_KEYS = 3
# How deep containers may lie in each other in a pickle.
DEEPEST = 20


# ---------------------------------------------------------------------------------------------------------------------
# list, fetch, convert


def list_catalogue() -> int:
    """Prints the catalogue as a table, and where downloads go."""
    rows = [("NAME", "WHAT FOR", "SIZE", "HERE", "SHA-256", "LICENCE")]
    rows += [_row(entry) for entry in load_catalogue().values()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"\nDownloads go to {cache_folder()} (SGPN_HOME changes that). More: docs/weights.md")
    return 0


def _row(entry: Entry) -> tuple[str, ...]:
    place = find_file(entry)
    size = place.stat().st_size if place else entry.size
    return entry.name, entry.what, size_text(size), _whereabouts(entry, place), _hash_state(entry), entry.licence


def _whereabouts(entry: Entry, place: Path | None) -> str:
    if entry.shipped:
        return "ships" if place else "missing"
    if place is None:
        return "no: by hand" if entry.by_hand else "no"
    return "yes" if place.parent == cache_folder() else f"yes ({entry.home})"


def _hash_state(entry: Entry) -> str:
    if entry.shipped:
        return "-"
    if entry.sha256 is None:
        return "not known"
    return "known" if len(entry.sha256) == 64 else f"{len(entry.sha256)} digits"


def fetch(name: str, output: str | None = None) -> int:
    """Fetches weights of the catalogue by their name into the folder ``output``, or the cache folder."""
    from sgpn_model.weights import download

    entry = find_entry(name)
    if entry.shipped:
        print(f"{name} ships with this library: {find_file(entry)}")
        return 0
    path, is_new = download.fetch(entry, output)
    print(f"{path}: {size_text(path.stat().st_size)}, {'fetched' if is_new else 'is there already'}")
    print(f"  SHA-256 {sha256_of(path)}, {_hash_verdict(entry)}")
    print(f"  licence: {entry.licence}; source: {entry.source}")
    folder = home(entry)
    if folder and path.parent != folder:
        print(f"  {entry.home} looks for it in {folder}: copy it there, or fetch it with -o {folder}")
    print(f"  use: {entry.use}")
    return 0


def _hash_verdict(entry: Entry) -> str:
    if entry.sha256 is None:
        return "hash not known: the catalogue has none to compare with. Note this one, to recognise the file later"
    return "as in the catalogue" if len(entry.sha256) == 64 else f"begins as in the catalogue ({entry.sha256})"


def convert(output: str, sgpn: str | None, d3dfr: str | None, bfm: str | None, init_prior: str | None) -> int:
    """Converts released weights into a checkpoint of this library and prints the report."""
    from sgpn_model.weights.convert import convert as convert_released

    print(convert_released(output, sgpn=sgpn, d3dfr=d3dfr, bfm=bfm, init_prior=init_prior))
    return 0


def _find(name: str) -> Path:
    """A file by its path, or by its name in the catalogue if it is on this machine.

    Raises:
        CatalogueError: neither is there.
    """
    path, catalogue = Path(name), load_catalogue()
    if path.is_file():
        return path
    if path.is_dir():
        raise CatalogueError(f"{path}: is a folder, not a file of weights")
    if name not in catalogue:
        raise CatalogueError(f"{name}: no such file, and no weights of this name{nearest(name, catalogue)}")
    place = find_file(catalogue[name])
    if place is None:
        raise CatalogueError(f"{name}: is not on this machine; run: sgpn weights fetch {name}")
    return place


# ---------------------------------------------------------------------------------------------------------------------
# verify


def verify(file: str) -> int:
    """Prints what a file of weights is and whether it is whole, safe and usable; 1 if something is wrong, else 0."""
    path = _find(file)
    digest = sha256_of(path)
    print(f"{path}: {KINDS[kind_of(path)]}, {size_text(path.stat().st_size)}\n  SHA-256 {digest}")
    problems = []
    for check in (lambda: _check_catalogue(path, digest), lambda: _check_content(path)):
        try:
            print(f"  {check()}")
        except ValueError as error:  # CheckpointError is one
            problems.append(str(error))
    for problem in problems:
        print(f"  WRONG: {problem}")
    print("  something is wrong with it" if problems else "  nothing is wrong with it")
    return 1 if problems else 0


def _check_catalogue(path: Path, digest: str) -> str:
    """Which entry of the catalogue a file is.

    Raises:
        ValueError: it bears the name of an entry, but is something else.
    """
    catalogue = load_catalogue().values()
    for entry in catalogue:
        if entry.sha256 and digest.startswith(entry.sha256):
            return f"it is '{entry.name}' of the catalogue; SHA-256 {_hash_verdict(entry)}"
    for entry in catalogue:
        if entry.shipped and find_file(entry) == path.resolve():
            return f"it is '{entry.name}', which ships with this library"
    for entry in catalogue:
        if entry.file == path.name:
            problem = problem_of(path, entry)
            if problem:
                raise ValueError(f"it is called like '{entry.name}' of the catalogue, but {problem}")
            return f"it is called like '{entry.name}' of the catalogue; hash not known, so that is all that can be said"
    return "it is not in the catalogue"


def _check_content(path: Path) -> str:
    """Opens a file, safely, and says what it was found to be.

    Raises:
        ValueError: it does not open, or what is in it does not fit together.
    """
    kind = kind_of(path)
    if kind == "safetensors":
        return _check_safetensors(path)
    if kind in ("pytorch", "pickle"):
        return _check_pickle(path)
    if kind == "matlab":
        return _check_basel(path)
    problem = structure_problem(path)
    if problem:
        raise ValueError(f"{path}: {problem}")
    hint = "unpack it and verify the files in it" if kind in ARCHIVES else "what is in it was not checked"
    return f"it opens; {hint}"


def _check_safetensors(path: Path) -> str:
    from sgpn_arch.face3d.morphable_model import FORMAT as MODEL_FORMAT
    from sgpn_arch.face3d.morphable_model import MorphableModel
    from sgpn_model.weights.checkpoint import FORMAT

    form = _read_header(path)[0].get("format")
    if form == FORMAT:
        return _check_checkpoint(path)
    if form == MODEL_FORMAT:
        model = MorphableModel.load(path)
        _check_finite(model.tensors())
        return f"a morphable model; its {len(model.shape_mean):,} vertices and {model.dims} modes fit together"
    from safetensors.torch import load_file

    tensors = load_file(path)
    _check_finite(tensors)
    return f"{len(tensors)} tensors, all finite; not a checkpoint of this library"


def _check_checkpoint(path: Path) -> str:
    """Every network of a checkpoint is built and loaded, and a restoration put together where the parts are there."""
    from sgpn_model.weights.checkpoint import load_checkpoint
    from sgpn_model.weights.pretrained import load_networks

    checkpoint = load_checkpoint(path)
    if not checkpoint.weights:
        raise ValueError(f"{path}: its metadata names no network")
    for name in checkpoint.weights:
        checkpoint.network(name)
    told = f"{', '.join(checkpoint.weights)}: built and loaded, all numbers are finite"
    if {"network_g", "network_shape"} <= set(checkpoint.weights) and checkpoint.metadata.get("morphable_model"):
        load_networks(path)
        return f"{told}; with its template and morphable model it restores photos"
    return f"{told}; not a whole restoration"


def _check_pickle(path: Path) -> str:
    from sgpn_model.weights.checkpoint import read_pickle

    content = read_pickle(path)
    found = dict(state_dicts(content))
    if not found:
        raise ValueError(f"{path}: holds no tensors")
    told = []
    for name, state in found.items():
        _check_finite(state)
        told.append(f"{name}: {len(state)} tensors, all finite{_check_layout(path, state)}")
    return "it opens without running code; " + "; ".join(told)


def _check_layout(path: Path, state: Mapping) -> str:
    """Loads a state dict whose names are those of a released network into that network."""
    layout = layout_of(state)
    if layout not in ("SGPN", "D3DFR"):
        return ""
    from sgpn_arch import find_arch

    try:
        network = find_arch(layout).from_released(state)
    except ValueError as error:
        raise ValueError(f"{path}: looks like the released {layout}, but {error}") from error
    return f", the released {layout} ({_count(sum(p.numel() for p in network.parameters()))} parameters): they all fit"


def _check_basel(path: Path) -> str:
    from sgpn_arch.face3d.morphable_model import MorphableModel

    model = MorphableModel.from_bfm(path)
    return f"a Basel Face Model; its {len(model.shape_mean):,} vertices and {model.dims} modes fit together"


def _check_finite(tensors: Mapping) -> None:
    for key, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"'{key}' holds NaN or infinity")


# ---------------------------------------------------------------------------------------------------------------------
# What is in a file


def state_dicts(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, dict]]:
    """The state dicts in what a pickle held: where they lie in it, and their tensors by name.

    Raises:
        CatalogueError: it is nested deeper than any weights are; it may even contain itself.
    """
    from torch import Tensor

    if depth > DEEPEST:
        raise CatalogueError(f"what the file holds is nested more than {DEEPEST} deep; these are no weights")
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
            yield from state_dicts(value, f"{name}.{key}" if name else str(key), depth + 1)


def layout_of(state: Mapping) -> str | None:
    """Which known network a state dict's names belong to: "SGPN", "D3DFR", "GPEN" or None."""
    keys = [key.removeprefix("module.") for key in state]
    if any(key.startswith(("netE.", "netG.")) for key in keys):
        return "SGPN"
    if any(key.startswith("final_layers.") for key in keys):
        return "D3DFR"
    return "GPEN" if any(key.startswith("generator.to_rgbs.") for key in keys) else None


def _read_header(path: Path) -> tuple[dict[str, str], dict[str, tuple[list[int], str]]]:
    """The metadata of a safetensors file, and shape and type of its tensors; no tensor is read.

    Raises:
        CheckpointError: the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    from sgpn_model.weights.checkpoint import CheckpointError

    try:
        with safe_open(str(path), framework="np") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
            return file.metadata() or {}, {key: (s.get_shape(), s.get_dtype()) for key, s in slices.items()}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}); is the copy complete?") from error


def _product(shape: list[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def _count(number: int) -> str:
    """A number of parameters for people."""
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number:,}"


# ---------------------------------------------------------------------------------------------------------------------
# show


def show(file: str) -> int:
    """Prints what a file of weights is, in a few lines; runs no code of it."""
    path = _find(file)
    kind = kind_of(path)
    print(f"{path}: {KINDS[kind]}, {size_text(path.stat().st_size)}")
    for line in _describe(path, kind):
        print(f"  {line}")
    return 0


def _describe(path: Path, kind: str) -> list[str]:
    if kind == "safetensors":
        return _describe_safetensors(path)
    if kind in ("pytorch", "pickle"):
        return _describe_pickle(path)
    if kind == "matlab":
        return [_check_basel(path)]
    if kind == "zip":
        return _describe_zip(path)
    return ["it holds no weights that can be shown"]


def _describe_zip(path: Path) -> list[str]:
    import zipfile

    problem = structure_problem(path)
    if problem:
        raise CatalogueError(f"{path}: {problem}")
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if not info.is_dir()]
    return [f"{info.filename}: {size_text(info.file_size)}" for info in members] + ["unpack it to use them"]


def _describe_safetensors(path: Path) -> list[str]:
    from sgpn_arch.face3d.morphable_model import FORMAT as MODEL_FORMAT
    from sgpn_model.weights.checkpoint import FORMAT

    header, tensors = _read_header(path)
    if header.get("format") == FORMAT:
        return _describe_checkpoint(path, header, tensors)
    if header.get("format") == MODEL_FORMAT:
        return _describe_model(header, tensors)
    numbers = sum(_product(shape) for shape, _ in tensors.values())
    lines = [f"{len(tensors)} tensors, {_count(numbers)} numbers", f"first: {', '.join(list(tensors)[:FIRST_KEYS])}"]
    return lines + [f"{key}: {_short(value)}" for key, value in header.items()]


def _describe_checkpoint(path: Path, header: dict, tensors: dict) -> list[str]:
    from sgpn_model.weights.checkpoint import CheckpointError

    try:
        about = json.loads(header["metadata"])
        archs = dict(about.pop("archs"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its metadata does not describe networks ({error!r})") from error
    lines = ["checkpoint of this library"] + [_describe_network(name, archs[name], tensors) for name in archs]
    lines.append(f"morphable model: {_model_text(about.pop('morphable_model', None))}")
    first = ("template", "protocol", "step", "licence", "version")
    order = [key for key in first if key in about] + [key for key in about if key not in first]
    return lines + [f"{key}: {_short(about[key])}" for key in order]


def _describe_network(name: str, arch: Any, tensors: dict) -> str:
    own = [value for key, value in tensors.items() if key.startswith(f"{name}.")]
    numbers = sum(_product(shape) for shape, _ in own)
    arguments = dict(arch) if isinstance(arch, dict) else {"type": arch}
    kind = arguments.pop("type", "?")
    types = "/".join(sorted({dtype for _, dtype in own}))
    told = ", ".join(f"{key} {value}" for key, value in arguments.items())
    return f"{name}: {kind}, {_count(numbers)} numbers in {len(own)} tensors ({types}): {told}"


def _model_text(about: Any) -> str:
    if not isinstance(about, dict):
        return str(about or "none")
    return f"{about.get('name')} ({'in this file' if about.get('embedded') else 'ships with this library'})"


def _describe_model(header: dict, tensors: dict) -> list[str]:
    def length(key: str) -> int:
        shape = tensors.get(key, ([0], ""))[0]
        return shape[0] if shape else 0

    modes = ", ".join(f"{length(f'{key}_basis')} {name}" for key, name in MODES)
    return [
        f"morphable model of this library: {header.get('name', 'unnamed')}",
        f"{length('shape_mean'):,} vertices, {length('triangles'):,} triangles; modes: {modes}",
        *(f"{key}: {_short(header[key])}" for key in ("licence", "version", "source", "units") if key in header),
    ]


MODES = (("id", "identity"), ("exp", "expression"), ("tex", "texture"))


def _describe_pickle(path: Path) -> list[str]:
    from sgpn_model.weights.checkpoint import read_pickle

    lines = []
    for name, state in state_dicts(read_pickle(path)):
        numbers = sum(value.numel() for value in state.values())
        layout = layout_of(state)
        told = f" (names as in the released {layout})" if layout else ""
        lines.append(f"{name}: {len(state)} tensors, {_count(numbers)} numbers{told}")
        first = [f"{key} {tuple(value.shape)}" for key, value in list(state.items())[:FIRST_KEYS]]
        lines.append(f"  first: {', '.join(first)}")
    return lines or ["it holds no tensors"]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
