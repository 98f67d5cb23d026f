"""Option files: reading them with inheritance, overriding single keys, and refusing keys that nobody knows."""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

TOP_LEVEL = {
    "name", "model_type", "manual_seed", "device", "num_threads", "precision",
    "datasets", "path", "train", "val", "logger", "restorers", "judge", "metrics",
}  # fmt: skip
PATH_KEYS = {"experiments_root", "pretrain_network_g", "pretrain_network_shape", "pretrain_backbone", "resume_state"}
LOGGER_KEYS = {"print_freq", "save_checkpoint_freq", "use_tb_logger"}
VAL_KEYS = {"val_freq", "save_images"}


class OptionError(ValueError):
    """An option file that cannot be used; the message names the key and what to write instead."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` with the nearest known name, or the list of known names where none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else f" (known: {', '.join(known)})"


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
        raise OptionError(f"{where}.type: unknown name '{opt['type']}'{nearest(opt['type'], registry.keys())}")
    plugin = registry.get(opt["type"])
    parameters = inspect.signature(plugin).parameters.values()
    takes_dict = [parameter.name for parameter in parameters] == [
        "opt"
    ]  # as BasicSR's datasets; they check it themselves
    if takes_dict or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    check_keys(opt, {"type", *(parameter.name for parameter in parameters)}, where)


def build(opt: Mapping, registry, where: str, *args: Any, **defaults: Any) -> Any:
    """Builds the plugin that ``{type: NAME, **arguments}`` names, after checking it."""
    check_plugin(opt, registry, where)
    arguments = {**defaults, **{key: value for key, value in opt.items() if key != "type"}}
    return registry.get(opt["type"])(*args, **arguments)


def _set_key(options: dict, assignment: str) -> None:
    dotted, separator, text = assignment.partition("=")
    if not separator:
        raise OptionError(f"--set {assignment}: write KEY=VALUE, for instance train.total_iter=100")
    *parents, last = dotted.split(".")
    section = options
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise OptionError(f"--set {assignment}: '{parent}' is a value, not a section")
    section[last] = yaml.safe_load(text)


def load_options(path: str | Path, overrides: Iterable[str] = ()) -> dict:
    """Reads an option file (YAML, ``_base_`` inheritance through mmengine) and applies ``a.b=c`` overrides.

    Returns:
        A plain nested dict whose sections and top-level keys are known; plugin arguments are checked when built.

    Raises:
        OptionError: the file is missing, is not YAML, or has an unknown key.
    """
    from mmengine.config import Config

    path = Path(path)
    if not path.is_file():
        raise OptionError(f"{path}: no such option file")
    try:
        options = Config.fromfile(path, import_custom_modules=False).to_dict()
    except (OSError, yaml.YAMLError) as error:
        raise OptionError(f"{path}: cannot be read: {error}") from error
    for assignment in overrides:
        _set_key(options, assignment)
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
