"""Reading option files: YAML with inheritance and ``a.b=c`` overrides, which mmengine merges. Options are not checked here."""

import copy
import importlib.resources
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sgpn_arch.errors import OptionError, Problem, Problems, shown
from sgpn_model.config import strict_yaml
from sgpn_model.config.origins import DELETE, Origins

BASE = "_base_"  # what to inherit from
MAX_BYTES, MAX_FILES = 256 * 1024, 100  # more than any option file has, or inherits from
KINDS = {type(None): "nothing", list: "a list", str: "text"}


def read_options(
    path: str | Path, overrides: Iterable[str] = (), problems: Problems | None = None
) -> tuple[dict, Origins]:
    """Reads an option file and applies ``a.b=c`` overrides.

    ``_base_: FILE`` or a list of files, relative to the file that says so, are read first; mappings are merged, anything
    else replaces what was there, and so does a mapping with ``_delete_: true``. mmengine merges; but a mapping may follow
    ``~``, and only YAML is read, which cannot run code. A file that is not there may be one that ships (:func:`find_options`).

    Args:
        problems: takes what can be left out: keys that are not text or are written twice, and overrides that cannot be
            applied. Without it, they are raised.

    Returns:
        A plain nested dict, of which nothing is checked yet, and where each of its options was written.

    Raises:
        OptionError: the file or one that it inherits from is missing or is not YAML; or what ``problems`` would take.
    """
    path = find_options(path)
    options: dict = {}
    origins = Origins(path)
    found = Problems() if problems is None else problems
    for file, content in _read_chain(path, found):
        options = _merged(options, content)
        origins.add(content, str(file))
    for assignment in overrides:
        with found:
            _set_key(options, assignment, origins, found)
    if problems is None:
        found.tell()
    return options, origins


def shipped_files() -> dict[str, Path]:
    """The option files that come with the library: ``train/shape_open.yml`` and so on -> the file."""
    folder = Path(str(importlib.resources.files("sgpn_options")))
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.glob("*/*.yml"))}


def find_options(name: str | Path, folder: Path = Path()) -> Path:
    """The option file of this name in ``folder``, or if there is none, that which ships: ``options/train/shape_open.yml`` or
    ``train/shape_open.yml``."""
    path = Path(os.path.normpath(folder / os.path.expanduser(name)))
    return path if os.path.exists(path) else shipped_files().get(str(name).removeprefix("options/"), path)


def _read_chain(top: Path, problems: Problems) -> list[tuple[Path, dict]]:
    """The file and those that it inherits from, each with its content, in the order in which they are merged."""
    found: list[tuple[Path, dict]] = []

    def add(path: Path, heirs: tuple[Path, ...]) -> None:
        content = _content(path, heirs, problems)
        bases = content.pop(BASE, None)
        bases = [] if bases is None else bases if isinstance(bases, list) else [bases]
        if not all(isinstance(base, str) and base for base in bases):
            raise OptionError(f"{BASE}: expected a file or a list of files, found {shown(bases)}", source=str(path))
        for base in bases:
            add(find_options(base, path.parent), (*heirs, path))
        found.append((path, content))
        if len(found) > MAX_FILES:
            raise OptionError(f"inherits from more than {MAX_FILES} files", source=str(top))

    add(top, ())
    return found


def _content(path: Path, heirs: tuple[Path, ...], problems: Problems) -> dict:
    """What a single file says."""
    source = str(path)
    if not os.path.exists(path):
        by = f" ({heirs[-1]} inherits from it)" if heirs else ""
        raise OptionError(f"no such option file{by}", source=source)
    if path.suffix not in (".yml", ".yaml"):
        raise OptionError("an option file is YAML and ends in .yml", source=source)
    if len(heirs) == MAX_FILES or path.resolve() in [heir.resolve() for heir in heirs]:
        raise OptionError(f"inherits from itself through {heirs[-1]}", source=source)
    try:
        if not path.is_file():  # nor a pipe, which might never end
            raise OSError("it is not a file")
        if path.stat().st_size > MAX_BYTES:
            raise OSError(f"it has more than {MAX_BYTES // 1024} KiB; give folders, not each picture")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise OptionError("cannot be read, for it is not text in UTF-8; save it as that", source=source) from error
    except OSError as error:
        raise OptionError(Problem("", f"cannot be read: {error.strerror or error}", source)) from error
    content = strict_yaml.parse(text, problems, source)
    if not isinstance(content, dict):
        kind = KINDS.get(type(content), shown(content))
        raise OptionError(f"holds {kind}, expected a mapping of options, such as `name: mine`", source=source)
    return content


def _set_key(options: dict, assignment: str, origins: Origins, problems: Problems) -> None:
    source = f"--set {shown(assignment, str)}"
    dotted, separator, text = assignment.partition("=")
    if not separator:
        raise OptionError(f"{source}: write KEY=VALUE, for instance train.total_iter=100")
    *parents, last = dotted.split(".")
    if not all([*parents, last]):
        raise OptionError(f"{source}: a part of the key is empty; write KEY=VALUE, with dots between sections")
    section = options
    for parent in parents:
        if section.get(parent) is None:
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            raise OptionError(f"{source}: '{parent}' is a value, not a section")
    section[last] = strict_yaml.parse(text, problems, source)
    origins.put([*parents, last], section[last], source)


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
