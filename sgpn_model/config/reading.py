"""Option files: reading them with inheritance and overrides, where each option was written, and refusals that say so."""

import contextlib
import copy
import importlib.resources
import inspect
import math
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import yaml

from sgpn_arch.errors import UserError, nearest
from sgpn_arch.registry import load_basicsr

TRAINING_ONLY = {"model_type", "train", "val", "logger", "precision", "channels_last", "compile"}  # and network_*
TESTING_ONLY = {"restorers", "judge", "metrics"}
TOP_LEVEL = TRAINING_ONLY | TESTING_ONLY | {
    "name", "manual_seed", "device", "num_threads", "protocol", "datasets", "path",
}  # fmt: skip
PATH_KEYS = {
    "experiments_root", "morphable_model", "pretrain_network_g", "pretrain_network_shape", "pretrain_backbone",
    "pretrain_prior", "grow_from", "pretrain_network_d", "resume_state",
}  # fmt: skip
LOGGER_KEYS = {"print_freq", "save_checkpoint_freq", "use_tb_logger", "keep_last", "wandb"}
VAL_KEYS = {"val_freq", "save_images", "best"}

# What the common numbers may be, by the last part of their key; arguments of plugins are checked by their signatures.
COUNTS = {
    "total_iter", "print_freq", "save_checkpoint_freq", "val_freq", "batch_size_per_gpu", "r1_every", "landmark_every",
    "every", "batch_shrink", "ramp_images", "accumulate",
}  # fmt: skip
WHOLE = {
    "manual_seed", "num_threads", "num_worker_per_gpu", "warmup_iter", "save_images", "start_iter",
    "landmark_start_iter", "synthetic_iter", "keep_last",
}  # fmt: skip
FRACTIONS = {"ema_decay", "synthetic_fraction", "degraded_fraction", "mean_decay", "max_p"}
AMOUNTS = {
    "lr", "weight_decay", "loss_weight", "r1_weight", "landmark_weight", "mesh_weight", "pose_weight", "grad_clip",
    "point_jitter", "max_loss",
}  # fmt: skip
SWITCHES = {"use_tb_logger", "train_shape"}
MAY_BE_NONE = {"num_threads", "grad_clip", "max_loss"}

# Numbers of YAML 1.2 that PyYAML, which reads YAML 1.1, takes for text.
BARE_EXPONENT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")
BASE, DELETE = "_base_", "_delete_"  # what to inherit from; what makes a mapping replace the inherited one
PLAIN_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


class OptionError(UserError, ValueError):
    """An option that cannot be used: the message begins with its dotted key, and says what to write instead.

    Attributes:
        source: the file or ``--set`` that the message begins with, where that is known.
    """

    def __init__(self, message: str, source: str | None = None):
        super().__init__(message if source is None else f"{source}: {message}")
        self.source = source


# ---------------------------------------------------------------------------------------------------------------------
# Where an option was written


class Origins:
    """Which file, or which ``--set``, each option of a merged result was last written in.

    Args:
        top: the option file that was asked for, which is named where no single file can be.
    """

    def __init__(self, top: str | Path):
        self.top = str(top)
        self._tree: dict = {}

    def add(self, content: Mapping, source: str) -> None:
        """Notes what ``source`` writes on top of what came before it."""
        _overlay(self._tree, content, source)

    def put(self, keys: list[str], value: Any, source: str) -> None:
        """Notes that ``source`` replaces the option at the end of ``keys``, with all that was below it."""
        tree = self._tree
        for key in keys[:-1]:
            tree = _section(tree, key)
        tree[keys[-1]] = source
        if isinstance(value, Mapping) and value:
            _overlay(_section(tree, keys[-1]), value, source)

    def of(self, message: str) -> str:
        """The source of the option that a message is about: ``train.gan.r1_evry: unknown option``.

        A section that several files wrote is searched for the one option of it that the message names.
        """
        text = message.partition(";")[0]
        tree = _deepest(self._tree, text.partition(": ")[0].split("."))
        while isinstance(tree, dict):
            named = [below for key, below in tree.items() if re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", text)]
            if len(named) != 1:
                break
            tree = named[0]
        sources = set(_sources(tree))
        return sources.pop() if len(sources) == 1 else self.top

    def at(self, keys: list[str]) -> str:
        """The source of the option whose key has these parts."""
        tree = self._tree
        for key in keys:
            tree = tree.get(str(key)) if isinstance(tree, dict) else None
        sources = set(_sources(tree)) if tree else set()
        return sources.pop() if len(sources) == 1 else self.top

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Within it, every OptionError that names no file yet gets the one where the option was written."""
        try:
            yield
        except OptionError as error:
            if error.source is not None:
                raise
            raise OptionError(str(error), self.of(str(error))) from error


def _overlay(tree: dict, content: Mapping, source: str) -> None:
    if content.get(DELETE):
        tree.clear()
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            _overlay(_section(tree, str(key)), value, source)
        elif key != DELETE and not (isinstance(value, Mapping) and str(key) in tree):
            tree[str(key)] = source


def _section(tree: dict, key: str) -> dict:
    if not isinstance(tree.get(key), dict):
        tree[key] = {}
    return tree[key]


def _deepest(tree: dict, parts: list[str]) -> dict | str:
    """What lies at the end of ``parts``, or as near to it as the tree goes. A key may hold dots itself."""
    for end in range(len(parts), 0, -1):
        below = tree.get(".".join(parts[:end]))
        if isinstance(below, dict):
            return _deepest(below, parts[end:])
        if below is not None:
            return below
    return tree


def _sources(tree: dict | str) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
        return
    for below in tree.values():
        yield from _sources(below)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_options(path: str | Path, overrides: Iterable[str] = ()) -> tuple[dict, Origins]:
    """Reads an option file and applies ``a.b=c`` overrides.

    ``_base_: FILE`` or a list of files, relative to the file that says so, are read first; mappings are merged, anything
    else replaces what was there, and so does a mapping with ``_delete_: true``. mmengine merges; but a mapping may follow
    ``~``, and only YAML is read, which cannot run code. A file that is not there may be one that ships (:func:`find_options`).

    Returns:
        A plain nested dict, of which nothing is checked yet, and where each of its options was written.

    Raises:
        OptionError: the file or one that it inherits from is missing or is not YAML, or an override cannot be applied.
    """
    path = find_options(path)
    options, origins = {}, Origins(path)
    for file, content in _read_chain(path):
        options = _merged(options, content)
        origins.add(content, str(file))
    for assignment in overrides:
        _set_key(options, assignment, origins)
    return _with_numbers(options), origins


def load_options(path: str | Path, overrides: Iterable[str] = ()) -> dict:
    """The options that :func:`read_options` reads, with sections and top-level keys checked.

    Raises:
        OptionError: as read_options; or a key is unknown, or has no business in such a file, or a common number is none.
            The message begins with the file, of all that were inherited, where the key was written.
    """
    options, origins = read_options(path, overrides)
    with origins.named():
        check_sections(options)
        check_numbers(options)
    return options


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
        raise OptionError("no such option file" + (f" ({heirs[-1]} inherits from it)" if heirs else ""), str(path))
    if path.suffix not in (".yml", ".yaml"):
        raise OptionError("an option file is YAML and ends in .yml", str(path))
    if path.resolve() in [heir.resolve() for heir in heirs]:
        raise OptionError(f"inherits from itself through {heirs[-1]}", str(path))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise OptionError(f"cannot be read: {error}", str(path)) from error
    if not isinstance(content, dict):
        raise OptionError(f"holds {type(content).__name__}, expected a mapping of options", str(path))
    bases = content.pop(BASE, None) or []
    for base in [bases] if isinstance(bases, str) else bases:
        yield from _read_chain(find_options(str(base), path.parent), (*heirs, path))
    yield path, content


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


# ---------------------------------------------------------------------------------------------------------------------
# Checking


def check_keys(section: Mapping, known: Iterable[str], where: str) -> None:
    """Raises OptionError for the first key of ``section`` that is not in ``known``."""
    if not isinstance(section, Mapping):
        raise OptionError(f"{where}: expected a mapping of options, found {section!r}")
    for key in section:
        if key not in known:
            raise OptionError(f"{where + '.' if where else ''}{key}: unknown option{nearest(str(key), known)}")


def check_sections(options: dict) -> None:
    """Raises OptionError for an unknown key at the top or in a section of fixed keys, or one of another kind of file."""
    networks = {key for key in options if str(key).startswith("network_")}
    check_keys(options, TOP_LEVEL | networks, "")
    kinds = [("model_type", TESTING_ONLY, "sgpn train"), ("restorers", TRAINING_ONLY | networks, "sgpn test")]
    for mark, foreign, command in kinds:
        for key in sorted(foreign & options.keys()) if mark in options else ():
            raise OptionError(f"{key}: has no meaning in a file for `{command}`, which this is, as it has '{mark}'")
    for section, known in (("path", PATH_KEYS), ("logger", LOGGER_KEYS), ("val", VAL_KEYS)):
        check_keys(options.get(section) or {}, known, section)


def check_numbers(options: dict) -> None:
    """Raises OptionError for a common number or switch that is not what its name stands for."""
    for section in ("logger", "val", "train"):
        _check_values(options.get(section), f"{section}.")
    _check_values({key: value for key, value in options.items() if not isinstance(value, Mapping)}, "")
    phases = options.get("datasets")
    for phase, section in phases.items() if isinstance(phases, Mapping) else ():
        _check_values(section, f"datasets.{phase}.", inside=False)


def _check_values(section: Any, where: str, inside: bool = True) -> None:
    for key, value in section.items() if isinstance(section, Mapping) else ():
        if isinstance(value, Mapping):
            # Losses are plugins.
            if inside and key != "losses":
                _check_values(value, f"{where}{key}.")
            continue
        wanted = _wanted(key, value)
        if wanted and not (value is None and key in MAY_BE_NONE):
            raise OptionError(f"{where}{key}: expected {wanted}, found {value!r}")


def _wanted(key: Any, value: Any) -> str | None:
    """What a value of this key should be, if it is not."""
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    whole = number and isinstance(value, int)
    rules = [
        (COUNTS, whole and value >= 1, "a whole number of at least 1"),
        (WHOLE, whole and value >= 0, "a whole number of at least 0"),
        (FRACTIONS, number and 0 <= value <= 1, "a number from 0 to 1"),
        (AMOUNTS, number and value >= 0, "a number of at least 0"),
        (SWITCHES, isinstance(value, bool), "true or false"),
    ]
    return next((wanted for keys, fits, wanted in rules if key in keys and not fits), None)


def check_plugin(opt: Mapping, registry, where: str, given: int = 0, supplied: Iterable[str] = ()) -> None:
    """Checks ``{type: NAME, **arguments}`` against the registry, and the arguments against NAME's signature.

    Args:
        given, supplied: as :func:`check_arguments` has them.
    """
    if not isinstance(opt, Mapping) or "type" not in opt:
        raise OptionError(f"{where}: needs a 'type', one of {', '.join(sorted(registry.keys()))}")
    if opt["type"] not in registry:
        load_basicsr()
    if opt["type"] not in registry:
        raise OptionError(f"{where}.type: unknown name '{opt['type']}'{nearest(str(opt['type']), registry.keys())}")
    plugin = registry.get(opt["type"])
    arguments = {key: value for key, value in opt.items() if key != "type"}
    if list(inspect.signature(plugin).parameters) != ["opt"]:
        check_arguments(arguments, plugin, where, given, supplied)
    # As BasicSR's datasets, which take all their options as one dict; ours say in OPTIONS which they are.
    elif hasattr(plugin, "OPTIONS"):
        check_keys(arguments, plugin.OPTIONS, where)


def check_arguments(arguments: Mapping, function, where: str, given: int = 0, supplied: Iterable[str] = ()) -> None:
    """Raises OptionError unless ``function`` takes these keywords.

    Checked are names, what has no default, and plain types (int, float, bool, str, or None) where they are annotated.

    Args:
        given: how many positional arguments come before them. supplied: keywords that somebody else adds.
    """
    parameters = list(_signature(function).parameters.values())[given:]
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        check_keys(arguments, named, where)
    for name, parameter in named.items():
        if name in arguments:
            _check_type(arguments[name], parameter.annotation, f"{where}.{name}")
        elif parameter.default is parameter.empty and name not in supplied:
            raise OptionError(f"{where}.{name}: this option is missing")


def _signature(function) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except (NameError, TypeError, SyntaxError):  # annotations that mean nothing outside their module
        return inspect.signature(function)


def _check_type(value: Any, annotation: Any, where: str) -> None:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = typing.get_args(annotation) if union else (annotation,)
    if not all(kind in PLAIN_TYPES or kind is type(None) for kind in kinds):
        return
    if not any(_is_a(value, kind) for kind in kinds):
        wanted = " or ".join(PLAIN_TYPES.get(kind, "~ (nothing)") for kind in kinds)
        raise OptionError(f"{where}: expected {wanted}, found {value!r}")


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int) if kind is float and not isinstance(value, float) else isinstance(value, kind)


def build(opt: Mapping, registry, where: str, *args: Any, **defaults: Any) -> Any:
    """Builds the plugin that ``{type: NAME, **arguments}`` names, after checking it."""
    check_plugin(opt, registry, where, len(args), defaults)
    arguments = {**defaults, **{key: value for key, value in opt.items() if key != "type"}}
    try:
        return registry.get(opt["type"])(*args, **arguments)
    except ValueError as error:
        raise OptionError(f"{where}: {error}") from error
