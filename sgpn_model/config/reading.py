"""Reading option files: YAML with inheritance and ``a.b=c`` overrides, which mmengine merges. Nothing is checked here."""

import copy
import importlib.resources
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sgpn_arch.errors import OptionError, Problem
from sgpn_model.config.origins import DELETE, Origins

# Numbers of YAML 1.2 that PyYAML, which reads YAML 1.1, takes for text.
BARE_EXPONENT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")
BASE = "_base_"  # what to inherit from


def read_options(path: str | Path, overrides: Iterable[str] = ()) -> tuple[dict, Origins]:
    """Reads an option file and applies ``a.b=c`` overrides.

    ``_base_: FILE`` or a list of files, relative to the file that says so, are read first; mappings are merged, anything
    else replaces what was there, and so does a mapping with ``_delete_: true``. mmengine merges; but a mapping may follow
    ``~``, and only YAML is read, which cannot run code. A file that is not there may be one that ships (:func:`find_options`).

    Returns:
        A plain nested dict, of which nothing is checked yet, and where each of its options was written.

    Raises:
        OptionError: the file or one that it inherits from is missing or is not YAML, a key is not text, or an override
            cannot be applied.
    """
    path = find_options(path)
    options: dict = {}
    origins = Origins(path)
    for file, content in _read_chain(path):
        options = _merged(options, content)
        origins.add(content, str(file))
    for assignment in overrides:
        _set_key(options, assignment, origins)
    return _with_numbers(options), origins


def shipped_files() -> dict[str, Path]:
    """The option files that come with the library: ``train/shape_open.yml`` and so on -> the file."""
    folder = Path(str(importlib.resources.files("sgpn_options")))
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.glob("*/*.yml"))}


def find_options(name: str | Path, folder: Path = Path()) -> Path:
    """The option file of this name in ``folder``, or if there is none, that which ships: ``options/train/shape_open.yml`` or
    ``train/shape_open.yml``."""
    path = Path(os.path.normpath(folder / name))
    return path if path.exists() else shipped_files().get(str(name).removeprefix("options/"), path)


def _read_chain(path: Path, heirs: tuple[Path, ...] = ()) -> Iterator[tuple[Path, dict]]:
    """The file and those that it inherits from, each with its content, in the order in which they are merged."""
    if not path.is_file():
        raise OptionError(
            "no such option file" + (f" ({heirs[-1]} inherits from it)" if heirs else ""), source=str(path)
        )
    if path.suffix not in (".yml", ".yaml"):
        raise OptionError("an option file is YAML and ends in .yml", source=str(path))
    if path.resolve() in [heir.resolve() for heir in heirs]:
        raise OptionError(f"inherits from itself through {heirs[-1]}", source=str(path))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise OptionError(Problem("", f"cannot be read: {error}", str(path))) from error
    if not isinstance(content, dict):
        raise OptionError(f"holds {type(content).__name__}, expected a mapping of options", source=str(path))
    wrong = list(_wrong_keys(content))
    if wrong:
        raise OptionError(*wrong, source=str(path))
    bases = content.pop(BASE, None) or []
    for base in [bases] if isinstance(bases, str) else bases:
        yield from _read_chain(find_options(str(base), path.parent), (*heirs, path))
    yield path, content


def _wrong_keys(content: Any, where: str = "") -> Iterator[Problem]:
    """YAML 1.1 reads ``on``, ``no`` or ``4`` as something else than text, also where they are keys."""
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if not isinstance(key, str):
            yield Problem(f"{where}{key}", f"keys are text, but YAML reads this one as {key!r}; write it in quotes")
        yield from _wrong_keys(value, f"{where}{key}.")


def _set_key(options: dict, assignment: str, origins: Origins) -> None:
    dotted, separator, text = assignment.partition("=")
    if not separator:
        raise OptionError(f"--set {assignment}: write KEY=VALUE, for instance train.total_iter=100")
    *parents, last = dotted.split(".")
    if not all([*parents, last]):
        raise OptionError(
            f"--set {assignment}: a part of the key is empty; write KEY=VALUE, with dots between sections"
        )
    section = options
    for parent in parents:
        if section.get(parent) is None:
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            raise OptionError(f"--set {assignment}: '{parent}' is a value, not a section")
    try:
        section[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise OptionError(f"--set {assignment}: the value is not YAML: {error}") from error
    wrong = list(_wrong_keys(section[last], f"{dotted}."))
    if wrong:
        raise OptionError(*wrong, source=f"--set {assignment}")
    origins.put([*parents, last], section[last], f"--set {assignment}")


def _merged(base: Mapping, heir: Mapping) -> dict:
    """What mmengine makes of the two; but a mapping may also stand over something else, such as an inherited ``~``."""
    from mmengine.config import Config

    merged = Config(_room_for(heir, base))
    merged.merge_from_dict(copy.deepcopy(dict(heir)))
    return _without_delete(merged.to_dict())


def _room_for(heir: Mapping, base: Mapping) -> dict:
    """``base`` without what a mapping of ``heir`` shall replace though it is none, which mmengine refuses."""
    room = {}
    for key, value in base.items():
        replaced = isinstance(heir.get(key), Mapping)
        if replaced and isinstance(value, Mapping):
            room[key] = _room_for(heir[key], value)
        elif not replaced:
            room[key] = value
    return room


def _without_delete(options: Any) -> Any:
    """Without the marks in mappings that replaced nothing, which mmengine leaves."""
    if not isinstance(options, Mapping):
        return options
    return {key: _without_delete(value) for key, value in options.items() if key != DELETE}


def _with_numbers(value: Any) -> Any:
    """The same options with values such as 2e-4 as the numbers that they are meant to be."""
    if isinstance(value, dict):
        return {key: _with_numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_numbers(part) for part in value]
    return float(value) if isinstance(value, str) and BARE_EXPONENT.fullmatch(value) else value
