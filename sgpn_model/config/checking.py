"""What ``sgpn options`` runs, and the check of a whole option file with which training and testing begin."""

import itertools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.overrides import TorchFunctionMode

from sgpn_arch import build_network, complete_options, find_arch
from sgpn_arch.errors import nearest
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.face3d.shape_prior import PROTOCOLS, ShapePrior
from sgpn_arch.registry import DATASET_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY
from sgpn_data.degradation import DEGRADATIONS, build_degradation
from sgpn_model.config.data_folders import check_roots, fill_roots
from sgpn_model.config.reading import (
    OptionError,
    Origins,
    check_arguments,
    check_keys,
    check_numbers,
    check_plugin,
    check_sections,
    read_options,
    shipped_files,
)
from sgpn_model.config.registries import fill_registries
from sgpn_model.train.log import check_wandb
from sgpn_model.train.optimizers import find_optimizer
from sgpn_model.train.saving import check_best
from sgpn_model.train.training_model import COMMON_TRAIN_KEYS, PRECISIONS, SCHEDULES, TrainingModel, check_speed

REQUIRED = ("name", "model_type", "datasets", "train")


# ---------------------------------------------------------------------------------------------------------------------
# The commands


def listing() -> int:
    """Prints the names of the shipped option files, each with the first sentence of the comment that it opens with."""
    for name, path in shipped_files().items():
        comment = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
        text = " ".join(line.removeprefix("#").strip() for line in comment)
        print(f"{name:32} {text.partition('. ')[0].rstrip('.')}")
    return 0


def show(file: str, overrides: Iterable[str] = (), origin: bool = False) -> int:
    """Prints the merged options as YAML, with ``origin`` each with the file it was written in; 1 if they are wrong."""
    options, origins = read_options(file, overrides)
    if origin:
        print("\n".join(_lines_with_origin(options, origins)))
    else:
        print(yaml.safe_dump(options, sort_keys=False, allow_unicode=True), end="")
    return _report(file, overrides)


def check(files: Iterable[str], overrides: Iterable[str] = ()) -> int:
    """Checks files as the commands that they are for would; prints a line each, returns 1 if one is wrong."""
    return max([_report(file, overrides, quiet=False) for file in files], default=0)


def _report(file: str, overrides: Iterable[str], quiet: bool = True) -> int:
    from sgpn_model.evaluate.evaluate import check_testing  # it imports this module

    try:
        options, origins = checked_options(file, overrides, files=False)
        if "test" in _mapping(options, "datasets"):
            with origins.named():
                check_testing({"restorers": {}, **options})
    except OptionError as error:
        print(f"sgpn: error: {error}", file=sys.stderr)
        return 1
    if not quiet:
        print(f"{file}: all right")
    return 0


def _lines_with_origin(options: Mapping, origins: Origins, parents: tuple[str, ...] = ()) -> Iterable[str]:
    for key, value in options.items():
        start = "  " * len(parents) + _inline(key) + ":"
        if isinstance(value, Mapping) and value:
            yield start
            yield from _lines_with_origin(value, origins, (*parents, str(key)))
        else:
            yield f"{start} {_inline(value)}  # {origins.at([*parents, str(key)])}"


def _inline(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


# ---------------------------------------------------------------------------------------------------------------------
# Checking a whole file


def checked_options(
    path: str | Path,
    overrides: Iterable[str] = (),
    training: bool = False,
    files: bool = True,
    data: Sequence[str] = (),
) -> tuple[dict, Origins]:
    """Reads an option file and checks all that can be checked before data are read or networks are built.

    Args:
        training: check it as ``sgpn train`` needs it, as is done anyway if it has ``model_type``; any other file is
            checked as far as its sections go.
        files: whether the files that ``path`` names must be there already, and every dataset must have its folder.
        data: folders of faces for the datasets that name none.

    Returns:
        The options, and where each was written: ``with origins.named():`` adds that to later OptionErrors.

    Raises:
        OptionError: begins with the file where the wrong option was written, and names the key.
    """
    options, origins = read_options(path, overrides)
    with origins.named():
        fill_roots(options, origins, data)
        check_sections(options)
        fill_registries()
        check_numbers(options)
        if training or "model_type" in options:
            check_training(options, files)
        else:
            for phase in _mapping(options, "datasets"):
                check_dataset(options, phase)
    return options, origins


def check_training(options: dict, files: bool = True) -> None:
    """Raises OptionError where ``sgpn train`` would fail on these options; ``files``: as in :func:`checked_options`."""
    for key in REQUIRED:
        if key not in options:
            raise OptionError(f"{key}: this option is missing")
    if options["model_type"] not in MODEL_REGISTRY:
        known = nearest(str(options["model_type"]), MODEL_REGISTRY.keys())
        raise OptionError(f"model_type: unknown name '{options['model_type']}'{known}")
    for key, known in (("precision", PRECISIONS), ("protocol", PROTOCOLS)):
        _check_choice(options, key, known)
    check_speed(options)
    check_wandb(_mapping(options, "logger").get("wandb"))
    check_keys(options["datasets"], {"train", "val"}, "datasets")
    if "train" not in options["datasets"]:
        raise OptionError("datasets.train: this section is missing")
    check_best(options)
    if "total_iter" not in (options["train"] or {}):
        raise OptionError("train.total_iter: this option is missing")
    for phase in options["datasets"]:
        check_dataset(options, phase)
    model = MODEL_REGISTRY.get(options["model_type"])
    # What else is registered there, such as BasicSR's models, has options of its own.
    if isinstance(model, type) and issubclass(model, TrainingModel):
        _check_train(options["train"], model)
        if files:
            _check_files(options)
        check_networks(options, model, files)
    if files:
        check_roots(options)


def _check_choice(section: Mapping, key: str, known: Iterable[str], where: str = "") -> None:
    if key in section and section[key] not in known:
        raise OptionError(f"{where}{key}: unknown value '{section[key]}'{nearest(str(section[key]), known)}")


def _mapping(options: Mapping, key: str) -> Mapping:
    section = options.get(key) or {}
    if not isinstance(section, Mapping):
        raise OptionError(f"{key}: expected a mapping of options, found {section!r}")
    return section


def check_dataset(options: Mapping, phase: str) -> None:
    """Raises OptionError for a wrong name or argument in ``datasets.PHASE``; no picture is looked for."""
    section, where = options["datasets"][phase], f"datasets.{phase}"
    check_plugin(section, DATASET_REGISTRY, where)
    # A dataset of somebody else's may mean another thing by the word.
    ours = "degradation" in getattr(DATASET_REGISTRY.get(section["type"]), "OPTIONS", ())
    if ours and section.get("degradation"):
        _check_degradation(section["degradation"], f"{where}.degradation")


def _check_degradation(section: Mapping, where: str) -> None:
    check_keys(section, section if isinstance(section, Mapping) else (), where)
    name = section.get("type", "Degradation")
    if name not in DEGRADATIONS:
        raise OptionError(f"{where}.type: unknown name '{name}'{nearest(str(name), DEGRADATIONS)}")
    check_arguments({key: value for key, value in section.items() if key != "type"}, DEGRADATIONS[name], where)
    try:
        build_degradation(section)
    except (KeyError, ValueError) as error:
        raise OptionError(f"{where}: {error.args[0]}") from error


def _check_train(train: Mapping, model: type[TrainingModel]) -> None:
    check_keys(train, COMMON_TRAIN_KEYS | model.TRAIN_KEYS, "train")
    for key, known in {"schedule": SCHEDULES, **model.TRAIN_CHOICES}.items():
        _check_choice(train, key, known, "train.")
    for key, defaults in model.TRAIN_SECTIONS.items():
        check_keys(train.get(key) or {}, defaults, f"train.{key}")
    for key in sorted(key for key in train if str(key).startswith("optim_")):
        _check_optimizer(train[key], f"train.{key}")
    for name, section in _mapping(train, "losses").items():
        check_plugin(section, LOSS_REGISTRY, f"train.losses.{name}")


def _check_optimizer(section: Mapping | None, where: str) -> None:
    if section is None:
        return  # one that the stage may not need; it says so itself
    find_optimizer(section, where)


def _check_files(options: Mapping) -> None:
    for key, value in _mapping(options, "path").items():
        shipped = re.fullmatch(r"\w+", str(value))  # a name such as default, which loading looks up
        if key.startswith("pretrain_") and value is not None and not shipped and not Path(str(value)).is_file():
            raise OptionError(
                f"path.{key}: {value}: no such file of weights; train the stage that writes it, or give another"
            )


# ---------------------------------------------------------------------------------------------------------------------
# Networks


def check_networks(options: Mapping, model: type[TrainingModel], files: bool = True) -> dict[str, nn.Module]:
    """Builds the networks without memory for their weights (PyTorch's meta device), and sees whether they fit each other.

    Args:
        files: as in :func:`checked_options`.

    Returns:
        The networks by name; without those that cannot be built so, such as ones that read a file.

    Raises:
        OptionError: a network is missing, unknown to the stage, refuses an argument, or does not fit another or the data.
    """
    for name in sorted(key for key in options if str(key).startswith("network_")):
        if name not in model.NETWORKS:
            raise OptionError(f"{name}: {model.__name__} has no such network{nearest(name, model.NETWORKS)}")
    unused = {"network_d"} if options["train"].get("gan", {}) is None else set()
    built = {name: dry_network(options, name, model) for name in model.NETWORKS if name not in unused}
    networks = {name: network for name, network in built.items() if network is not None}
    _check_shape_network(options, networks, files)
    _check_sizes(options, networks, model)
    return networks


def dry_network(options: Mapping, name: str, model: type[TrainingModel]) -> nn.Module | None:
    """The network of one section on the meta device, or None if it cannot be built there."""
    section = options.get(name)
    if not isinstance(section, Mapping):
        raise OptionError(f"{name}: this section is missing; {model.__name__} needs {', '.join(model.NETWORKS)}")
    if "type" not in section:
        raise OptionError(f"{name}.type: this option is missing")
    try:
        arch = find_arch(section["type"])
        check_arguments({key: value for key, value in section.items() if key != "type"}, arch, name)
        with torch.device("meta"), _Uninitialised():
            return build_network(section)
    except OptionError:
        raise
    except ValueError as error:
        raise OptionError(f"{_blamed(section, name, str(error))}: {error}") from error
    except (NotImplementedError, RuntimeError, TypeError):
        return None


class _Uninitialised(TorchFunctionMode):
    """Within it, weights are not drawn: on the meta device that does nothing, but takes most of the time."""

    FILLS = frozenset({torch.Tensor.normal_, torch.Tensor.uniform_})

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.FILLS:
            return args[0]
        return (torch.empty if func is torch.randn else func)(*args, **(kwargs or {}))


def _blamed(section: Mapping, where: str, message: str) -> str:
    """The key of the one argument that an error names or quotes, or else that of the section."""
    named = [
        key
        for key, value in section.items()
        if re.search(rf"\b{re.escape(str(key))}\b", message) or (isinstance(value, str) and repr(value) in message)
    ]
    return f"{where}.{named[0]}" if len(named) == 1 else where


def _check_shape_network(options: Mapping, networks: Mapping[str, nn.Module], files: bool) -> None:
    """The regressor's coefficients are those of the morphable model, and those that the generator takes."""
    regressor, path = networks.get("network_shape"), _mapping(options, "path").get("morphable_model")
    given = getattr(regressor, "coeff_dim", None)
    if regressor is not None and (files or path is None or Path(str(path)).exists()):
        try:
            model = MorphableModel.read(path) if path else MorphableModel.open()
        except (OSError, ValueError) as error:
            raise OptionError(f"path.morphable_model: {error}") from error
        try:
            given = ShapePrior(regressor, model).coeff_dim
        except ValueError as error:
            raise OptionError(f"network_shape: {error}") from error
    wanted = getattr(networks.get("network_g"), "coeff_dim", None)
    if None not in (given, wanted) and wanted != given:
        raise OptionError(f"network_g.coeff_dim: is {wanted}, but network_shape gives {given} coefficients")


def _check_sizes(options: Mapping, networks: Mapping[str, nn.Module], model: type[TrainingModel]) -> None:
    """Pictures are as large as the generator makes them (larger where the stage shrinks them); so are the discriminator's."""
    if "network_g" not in networks:
        return
    size = complete_options(options["network_g"]).get("size")
    others = {"network_d": options["network_d"]} if "network_d" in networks else {}
    found = {f"{name}.size": complete_options(section).get("size") for name, section in others.items()}
    for phase, section in options["datasets"].items():
        found[f"datasets.{phase}.size"] = section.get("size", size)
    for key, value in found.items():
        if None in (size, value) or (model.SHRINKS_PICTURES and key.startswith("datasets.") and value > size):
            continue
        if value != size:
            raise OptionError(f"{key}: is {value}, but network_g makes pictures of {size} pixels")
