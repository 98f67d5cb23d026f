"""The check of a whole option file, with which training and testing begin: all that can be found before pictures are read.

What a file names is found in the registries, and says itself which options it takes; no other room is imported.
"""

import contextlib
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import create_model
from torch import nn
from torch.overrides import TorchFunctionMode

from sgpn_arch import build_network, complete_options
from sgpn_arch.errors import OptionError, Problem, Problems, nearest, shown
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.face3d.shape_prior import ShapePrior
from sgpn_arch.registry import MODEL_REGISTRY
from sgpn_arch.schema import Options, absent
from sgpn_model.config.data_folders import fill_roots, missing_roots
from sgpn_model.config.origins import Origins
from sgpn_model.config.reading import read_options
from sgpn_model.config.registries import fill_registries
from sgpn_model.config.sections import Dataset, Network, TestingFile, TrainingFile

SETS = ("train", "val", "test")
MAX_WEIGHTS = 5_000_000_000  # 20 GB; all networks of the paper together have a fortieth of that
NETWORKS = ("network_g", "network_d", "network_shape")


def checked_options(
    path: str | Path,
    overrides: Iterable[str] = (),
    command: str | None = None,
    files: bool = True,
    data: Sequence[str] = (),
) -> tuple[dict, Origins]:
    """Reads an option file and checks all that can be checked before data are read or networks are built.

    Args:
        command: "train" or "test": check the file as that command needs it. By default, as the one that it is for: a file
            with ``model_type`` is for training, one with ``restorers`` or ``metrics`` for tests, and of any other, which
            may be there to be inherited from, nothing need be complete.
        files: whether the files and folders that it names must be there already; for a command that is said, every dataset
            must name its folder.
        data: folders of faces for the datasets that name none.

    Returns:
        The options, and where each was written: ``with origins.named():`` adds that to later OptionErrors.

    Raises:
        OptionError: a line for each wrong option, which begins with the file where it was written and names its key.
    """
    problems = Problems()
    options, origins = read_options(path, overrides, problems)
    options = _without_switched_off(options)
    with origins.named():
        with problems:
            fill_roots(options, origins, data)
        with problems:
            check(options, command or _command_of(options), files, runs=command is not None)
        problems.tell()
    return options, origins


def _without_switched_off(options: Mapping) -> dict:
    """Without the sections written as ``~``, which may be those of the other command, or of another stage."""
    known = {*TrainingFile.model_fields, *TestingFile.model_fields, *NETWORKS}
    kept = {key: value for key, value in options.items() if value is not None or key not in known}
    if isinstance(kept.get("datasets"), dict):
        kept["datasets"] = {
            key: value for key, value in kept["datasets"].items() if value is not None or key not in SETS
        }
    return kept


def _command_of(options: Mapping) -> str | None:
    return "train" if "model_type" in options else "test" if {"restorers", "metrics"} & options.keys() else None


def check(options: Mapping, command: str | None, files: bool = True, runs: bool = True) -> None:
    """Raises OptionError for all that is wrong.

    Args:
        command, files: as :func:`checked_options` has them; runs: whether the command is to run now, with these folders.
    """
    fill_registries()
    problems = Problems()
    problems.found += missing_roots(options) if files and runs else []
    foreign: Any = {"train": (TrainingFile, TestingFile), "test": (TestingFile, TrainingFile)}.get(command or "")
    for key in options if foreign else ():
        meant = key in foreign[0].model_fields or (command == "train" and key.startswith("network_"))
        if not meant and (key in foreign[1].model_fields or key.startswith("network_")):
            mark = "" if command != _command_of(options) else f", which this is, as it has '{_mark(options)}'"
            hint = "; the degradations' seed is datasets.test.seed" if key == "manual_seed" else ""
            problems.found.append(Problem(key, f"has no meaning in a file for `sgpn {command}`{mark}{hint}"))
    told = {problem.key for problem in problems.found}
    own = {key: value for key, value in options.items() if key not in told}
    with problems:
        if command == "train":
            _check_training(own)
        else:
            (TestingFile if command else _fragment()).read(own)
    if files and command:
        problems.found += _absent(own)
    problems.tell()


def _mark(options: Mapping) -> str:
    return next(key for key in ("model_type", "restorers", "metrics") if key in options)


def _absent(options: Mapping) -> list[Problem]:
    """A problem for each file or folder that is not there. Options are read one by one, so that none hides another's."""
    parts: list[dict] = []
    for key, value in options.items():
        if key == "path" and isinstance(value, Mapping):
            parts += [{key: {name: each}} for name, each in value.items()]
        elif key == "datasets" and isinstance(value, Mapping):
            for phase, section in value.items():
                given = section if isinstance(section, Mapping) else {}
                parts += [{key: {phase: {"type": given.get("type"), name: each}}} for name, each in given.items()]
        else:
            parts.append({key: value})
    found: list[Problem] = []
    for part in parts:
        with contextlib.suppress(OptionError):
            found += absent(_fragment().read(part))
    return list(dict.fromkeys(found))


@functools.cache
def _fragment() -> type[Options]:
    """What a file that is inherited from may hold: anything of either command, and no part need be there."""
    kinds = {**TestingFile.model_fields, **TrainingFile.model_fields, "datasets": None}
    fields: dict[str, Any] = {name: (field and field.rebuild_annotation(), None) for name, field in kinds.items()}
    sets: dict[str, Any] = dict.fromkeys(SETS, (Dataset | None, None))
    fields["datasets"] = (create_model("AnySets", __base__=Options, **sets), None)
    networks: dict[str, Any] = dict.fromkeys(NETWORKS, (Network | None, None))
    return create_model("Fragment", __base__=Options, **fields, **networks)


# ---------------------------------------------------------------------------------------------------------------------
# Training


@functools.cache
def training_file(stage: Any) -> type[TrainingFile]:
    """The model of an option file for a training stage: what all have, the stage's ``train`` and its networks."""
    networks: dict[str, Any] = dict.fromkeys(stage.NETWORKS, (Network | None, None))
    return create_model(f"{stage.__name__}File", __base__=TrainingFile, train=(stage.OPTIONS, ...), **networks)


def _check_training(options: Mapping) -> None:
    problems = Problems()
    stage: Any = None
    found = options.get("model_type")
    if isinstance(found, str) and found in MODEL_REGISTRY:
        stage = MODEL_REGISTRY.get(found)
    elif "model_type" in options:
        problems.found.append(
            Problem("model_type", f"unknown name '{shown(found, str)}'{nearest(str(found), MODEL_REGISTRY.keys())}")
        )
    # What else is registered there, such as BasicSR's models, has options of its own.
    ours = hasattr(stage, "NETWORKS") and isinstance(getattr(stage, "OPTIONS", None), type)
    own = dict(options)
    for name in [key for key in options if key.startswith("network_") and key not in getattr(stage, "NETWORKS", ())]:
        del own[name]
        if ours:
            text = f"{stage.__name__} has no such network{nearest(name, stage.NETWORKS)}"
            problems.found.append(Problem(name, text))
    with problems:
        (training_file(stage) if ours else TrainingFile).read(own)
        if ours:
            check_networks(own, stage)
    problems.tell()


# ---------------------------------------------------------------------------------------------------------------------
# Networks


def check_networks(options: Mapping, stage: Any) -> dict[str, nn.Module]:
    """Builds the networks without memory for their weights (PyTorch's meta device), and sees whether they fit each other.

    Args:
        options: of a file whose sections are right. A morphable model that is not there yet is left out.

    Returns:
        The networks by name; without those that cannot be built so, such as ones that read a file.

    Raises:
        OptionError: a network is missing, refuses an argument, or does not fit another or the data.
    """
    file = training_file(stage).read(options)
    problems, networks = Problems(), {}
    needed = stage.needed_networks(file.train)
    for name in needed:
        with problems:
            network = dry_network(options, name, stage)
            if network is not None:
                networks[name] = network
    with problems:
        _check_shape_network(file, networks)
    problems.found += _sizes_that_differ(options, file, needed, stage)
    problems.tell()
    return networks


def dry_network(options: Mapping, name: str, stage: Any) -> nn.Module | None:
    """The network of one section on the meta device, or None if it cannot be built there."""
    section = options.get(name)
    if section is None:
        raise OptionError(f"{name}: this section is missing; {stage.__name__} needs {', '.join(stage.NETWORKS)}")
    try:
        with torch.device("meta"), _Uninitialised():
            network = build_network(section)
    except ValueError as error:
        raise OptionError(f"{_blamed(section, name, str(error))}: {error}") from error
    except (NotImplementedError, RuntimeError, TypeError, OverflowError) as error:
        if "overflow" in str(error).lower() or isinstance(error, OverflowError):  # more numbers than can be counted
            raise OptionError(f"{name}: is too large to be built; lower its widths") from error
        return None
    count = sum(parameter.numel() for parameter in network.parameters())
    if count > MAX_WEIGHTS:
        raise OptionError(f"{name}: would have {count:.3g} weights, more than {MAX_WEIGHTS:.0e}; lower its widths")
    return network


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


def _check_shape_network(file: TrainingFile, networks: Mapping[str, nn.Module]) -> None:
    """The regressor's coefficients are those of the morphable model, and those that the generator takes."""
    regressor, path = networks.get("network_shape"), file.path.morphable_model
    given = getattr(regressor, "coeff_dim", None)
    if regressor is not None and (path is None or Path(path).exists()):
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


def _sizes_that_differ(options: Mapping, file: TrainingFile, needed: Iterable[str], stage: Any) -> Iterator[Problem]:
    """Pictures are as large as the generator makes them (larger where the stage shrinks them); so are the discriminator's.

    Sizes are read from the options, for not every network can be built here.
    """
    sizes = {name: complete_options(options[name]).get("size") for name in needed if options.get(name)}
    size = sizes.get("network_g")
    sets = {"train": file.datasets.train, "val": file.datasets.val}
    found = {f"datasets.{phase}.size": getattr(section, "size", None) for phase, section in sets.items()}
    found["network_d.size"] = sizes.get("network_d")
    for key, value in found.items():
        if size is None or value is None or (stage.SHRINKS_PICTURES and key.startswith("datasets.") and value > size):
            continue
        if value != size:
            yield Problem(key, f"is {value}, but network_g makes pictures of {size} pixels")
