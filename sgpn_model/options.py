"""Option files: reading them with inheritance, overriding single keys, and refusing keys that nobody knows."""

import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from sgpn_arch.names import nearest
from sgpn_model.errors import UserError

TOP_LEVEL = {
    "name", "model_type", "manual_seed", "device", "num_threads", "precision",
    "datasets", "path", "train", "val", "logger", "restorers", "judge", "metrics",
}  # fmt: skip
PATH_KEYS = {
    "experiments_root", "morphable_model", "pretrain_network_g", "pretrain_network_shape", "pretrain_backbone",
    "resume_state",
}  # fmt: skip
LOGGER_KEYS = {"print_freq", "save_checkpoint_freq", "use_tb_logger"}
VAL_KEYS = {"val_freq", "save_images"}

# Numbers of YAML 1.2 that PyYAML, which reads YAML 1.1, takes for text.
BARE_EXPONENT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")


class OptionError(UserError, ValueError):
    """An option file that cannot be used; the message names the key and what to write instead."""


def check_keys(section: Mapping, known: Iterable[str], where: str) -> None:
    """Raises OptionError for the first key of ``section`` that is not in ``known``."""
    if not isinstance(section, Mapping):
        raise OptionError(f"{where}: expected a mapping of options, found {section!r}")
    for key in section:
        if key not in known:
            raise OptionError(f"{where + '.' if where else ''}{key}: unknown option{nearest(str(key), known)}")


def check_plugin(opt: Mapping, registry, where: str) -> None:
    """Checks ``{type: NAME, **arguments}`` against the registry and the arguments that NAME takes."""
    if not isinstance(opt, Mapping) or "type" not in opt:
        raise OptionError(f"{where}: needs a 'type', one of {', '.join(sorted(registry.keys()))}")
    if opt["type"] not in registry:
        raise OptionError(f"{where}.type: unknown name '{opt['type']}'{nearest(str(opt['type']), registry.keys())}")
    plugin = registry.get(opt["type"])
    parameters = inspect.signature(plugin).parameters.values()
    # As BasicSR's datasets, which check their options themselves.
    takes_dict = [parameter.name for parameter in parameters] == ["opt"]
    if takes_dict or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    check_keys(opt, {"type", *(parameter.name for parameter in parameters)}, where)


def build(opt: Mapping, registry, where: str, *args: Any, **defaults: Any) -> Any:
    """Builds the plugin that ``{type: NAME, **arguments}`` names, after checking it."""
    check_plugin(opt, registry, where)
    arguments = {**defaults, **{key: value for key, value in opt.items() if key != "type"}}
    try:
        return registry.get(opt["type"])(*args, **arguments)
    except ValueError as error:
        raise OptionError(f"{where}: {error}") from error


def _set_key(options: dict, assignment: str) -> None:
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


def _with_numbers(value: Any) -> Any:
    """The same options with values such as 2e-4 as the numbers that they are meant to be."""
    if isinstance(value, dict):
        return {key: _with_numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_numbers(part) for part in value]
    return float(value) if isinstance(value, str) and BARE_EXPONENT.fullmatch(value) else value


def _check_file(path: Path, heirs: tuple[Path, ...] = ()) -> None:
    """Refuses what mmengine would crash on or run as code (Python files, YAML tags), here and in the ``_base_`` files."""
    if not path.is_file():
        raise OptionError(f"{path}: no such option file" + (f" ({heirs[-1]} inherits from it)" if heirs else ""))
    if path.suffix not in (".yml", ".yaml"):
        raise OptionError(f"{path}: an option file is YAML and ends in .yml")
    if path in heirs:
        raise OptionError(f"{path}: inherits from itself through {heirs[-1]}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise OptionError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise OptionError(f"{path}: holds {type(content).__name__}, expected a mapping of options")
    bases = content.get("_base_") or []
    for base in [bases] if isinstance(bases, str) else bases:
        _check_file((path.parent / base).resolve(), (*heirs, path.resolve()))


def load_options(path: str | Path, overrides: Iterable[str] = ()) -> dict:
    """Reads an option file (YAML, ``_base_`` inheritance through mmengine) and applies ``a.b=c`` overrides.

    Returns:
        A plain nested dict whose sections and top-level keys are known; plugin arguments are checked when built.

    Raises:
        OptionError: the file or one that it inherits from is missing or is not YAML, or there is an unknown key.
    """
    from mmengine.config import Config

    path = Path(path)
    _check_file(path)
    try:
        options = Config.fromfile(path, import_custom_modules=False).to_dict()
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise OptionError(f"{path}: cannot be read: {error}") from error
    for assignment in overrides:
        _set_key(options, assignment)
    options = _with_numbers(options)
    try:
        _check_sections(options)
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from error
    return options


def _check_sections(options: dict) -> None:
    networks = {key for key in options if str(key).startswith("network_")}
    check_keys(options, TOP_LEVEL | networks, "")
    for section, known in (("path", PATH_KEYS), ("logger", LOGGER_KEYS), ("val", VAL_KEYS)):
        check_keys(options.get(section) or {}, known, section)
