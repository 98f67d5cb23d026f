"""The typed sections of option files whose options are the same whatever they name: the files themselves, path, val, logger."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, ConfigDict, Field, PlainValidator, model_validator

from sgpn_arch.by_name import SECTION, check_plugin, named, options_of
from sgpn_arch.errors import OptionError, Problem, nearest, shown
from sgpn_arch.ranges import AtHome, Count, Device, FilePath, FolderName, Fraction, Processes, Told, Weights, Whole
from sgpn_arch.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY
from sgpn_arch.schema import SWITCHABLE, Options
from sgpn_data.face_dataset import LoaderOptions
from sgpn_model.config.registries import is_metric

# Rows that every table of `sgpn test` has.
INPUT, TRUTH = "degraded input", "ground truth"

Network = named(ARCH_REGISTRY)
Loss = named(LOSS_REGISTRY)


class ForeignDataset(LoaderOptions):
    """A dataset of another package, which takes its section as one dict and looks into it itself."""

    model_config = ConfigDict(extra="allow")


def read_dataset(section: Any) -> LoaderOptions:
    """The typed options of ``datasets.PHASE``. Raises OptionError."""
    if isinstance(section, LoaderOptions):
        return section
    check_plugin(section, DATASET_REGISTRY)
    kind: Any = options_of(DATASET_REGISTRY.get(section["type"])) or ForeignDataset
    return kind.read(section)


Dataset = Annotated[LoaderOptions, PlainValidator(read_dataset), Told(SECTION)]


def best_rule(text: str) -> tuple[str, bool]:
    """The metric of ``val.best``, and whether more of it is better.

    Args:
        text: ``min:NAME``, ``max:NAME``, or the NAME of a validation value that begins with a registered metric's, such as
            psnr_output.

    Raises:
        OptionError: nobody knows which direction is good.
    """
    directions = {"landmark_error": False}
    for name, metric in METRIC_REGISTRY:
        if isinstance(getattr(metric, "higher_is_better", None), bool):
            directions[name] = metric.higher_is_better
    prefix, colon, rest = text.partition(":")
    if colon and rest and prefix in ("min", "max"):
        return rest, prefix == "max"
    fitting = [name for name in directions if f"{text}_".startswith(f"{name}_")]
    if not fitting:
        hint = f"Write min:{text} or max:{text}{nearest(text, directions)}"
        raise OptionError(Problem("", f"is less or more of '{text}' better? {hint}"))
    return text, directions[max(fitting, key=len)]


def _checked_rule(text: str) -> str:
    best_rule(text)
    return text


def _known_backend(name: bool | str) -> bool | str:
    backends = () if isinstance(name, bool) else torch.compiler.list_backends(exclude_tags=())
    if isinstance(name, str) and name not in backends:
        raise OptionError(Problem("", f"expected true, false or one of {', '.join(backends)}, found {shown(name)}"))
    return name


def _known_metric(name: str) -> str:
    known = [key for key, metric in METRIC_REGISTRY if is_metric(metric)]
    if name not in known:
        raise OptionError(Problem("", f"unknown name '{name}'{nearest(name, known)}"))
    return name


Metric = Annotated[str, AfterValidator(_known_metric), Told("a metric's name")]


class PathOptions(Options):
    """``path``: what a training starts from, and where it writes."""

    experiments_root: Annotated[str, AtHome()] = "experiments"
    """Folder for the experiment's own folder, which has the file's ``name``."""
    morphable_model: FilePath | None = None
    """Folder of the Basel Face Model, or a morphable model as .safetensors; by default the one that
    ``pretrain_network_shape`` was trained with, or else the open one that ships."""
    pretrain_network_g: Weights | None = None
    """Checkpoint whose generator the training starts from."""
    pretrain_network_d: Weights | None = None
    """Checkpoint whose discriminator the training starts from."""
    pretrain_network_shape: Weights | None = None
    """Checkpoint whose regressor the training starts from."""
    pretrain_frozen_shape: Weights | None = None
    """Checkpoint whose regressor judges in L_3dlm and L_mesh, and is not trained. By default the one that the regressor of
    ``pretrain_network_shape`` was adapted from, which ShapeAdaptModel's checkpoints hold beside it; where there is none,
    that regressor itself, as it begins."""
    pretrain_backbone: FilePath | None = None
    """Weights of torchvision's for the regressor's backbone (.pth)."""
    pretrain_prior: Weights | None = None
    """Generative prior that a fresh SGPN starts from: PriorModel's checkpoint, or GPEN's .pth."""
    grow_from: Weights | None = None
    """Checkpoint of an SGPN of half the size, which the new one begins as."""
    resume_state: FilePath | None = None
    """Training state to continue from; ``--auto-resume`` finds the newest by itself."""


class ValOptions(Options):
    """``val``: the validation during training."""

    val_freq: Count | None = None
    """Steps between two validations; by default ``logger.save_checkpoint_freq``."""
    save_images: Whole = 8
    """Faces on the sheet of pictures."""
    best: Annotated[str, AfterValidator(_checked_rule)] | None = None
    """Value of the validation by which the best model is kept: ``min:NAME``, ``max:NAME``, or a metric's name."""
    metrics: list[Metric] = ["psnr", "perceptual_mnv2"]
    """What the joint stage measures of its input and its output, beside the landmark error: metrics with a value per face."""


class WandbOptions(Options):
    """``logger.wandb``: Weights & Biases; what ``wandb.init`` takes."""

    project: str
    """Name of the project."""
    entity: str | None = None
    """User or team."""
    name: str | None = None
    """Name of the run; by default the file's."""
    group: str | None = None
    """Runs that belong together."""
    job_type: str | None = None
    """Kind of the run."""
    tags: list[str] | None = None
    """Words to find the run by."""
    notes: str | None = None
    """Notes on the run."""
    mode: Literal["online", "offline", "disabled", "shared"] | None = None
    """Whether the log is sent."""
    id: str | None = None
    """Identity of the run to continue; by default the one that the experiment began."""


class LoggerOptions(Options):
    """``logger``: what a training tells, and what it keeps."""

    print_freq: Count = 50
    """Steps between two lines of the log."""
    save_checkpoint_freq: Count = 1000
    """Steps between two checkpoints."""
    use_tb_logger: bool = True
    """Write events for TensorBoard."""
    keep_last: Whole = 3
    """Checkpoints to keep beside the best; 0 keeps all."""
    wandb: WandbOptions | None = None
    """Also log to Weights & Biases."""


class TrainingSets(Options):
    """``datasets`` of a file for training."""

    train: Dataset
    """The faces to learn from."""
    val: Dataset | None = None
    """The faces to validate with; without them there is no validation."""


class TrainingFile(Options):
    """An option file for `sgpn train`. The stage that ``model_type`` names adds its ``train`` and its networks."""

    name: FolderName
    """Name of the experiment and of its folder."""
    model_type: str
    """The training stage: a registered class."""
    manual_seed: Whole = 0
    """Seed of initialisation and order; the degradations' is ``datasets.train.seed``."""
    device: Device = "auto"
    """Where to compute; auto is CUDA where there is any."""
    num_threads: Processes | None = None
    """Threads of PyTorch; by default, or with 0, as many as it chooses."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Numbers that the networks compute with; bf16 is mixed precision."""
    channels_last: bool | Literal["auto"] = "auto"
    """Memory order of pictures and weights; auto: channels last on the CPU, and for bf16."""
    compile: Annotated[bool | str, AfterValidator(_known_backend)] = False
    """torch.compile for the networks' forward pass: true, or the name of a backend."""
    protocol: Literal["open", "released"] = "open"
    """How the regressor's picture is cut out; ``released`` is the authors' way."""
    datasets: TrainingSets
    """The pictures."""
    path: PathOptions = PathOptions()
    """What the training starts from, and where it writes."""
    train: Any
    """The stage's own options."""
    val: ValOptions = ValOptions()
    """The validation during training."""
    logger: LoggerOptions = LoggerOptions()
    """What is logged, and what is kept."""

    @model_validator(mode="after")
    def _best_of_what(self) -> "TrainingFile":
        if self.val.best and self.datasets.val is None:
            raise OptionError("val.best: there is no datasets.val to find the best with")
        return self

    @model_validator(mode="after")
    def _one_beginning(self) -> "TrainingFile":
        """What gives the generator its weights; a second one would undo the first."""
        given = {
            f"path.{key}": getattr(self.path, key) for key in ("pretrain_network_g", "pretrain_prior", "grow_from")
        }
        given["train.start_from_input"] = getattr(self.train, "start_from_input", False)
        first, *others = [key for key, value in given.items() if value] or [""]
        if others:
            raise OptionError(f"{others[0]}: would overwrite {first}; give one of the two")
        return self

    @property
    def val_freq(self) -> int:
        """Steps between two validations."""
        return self.val.val_freq or self.logger.save_checkpoint_freq


class TestSets(Options):
    """``datasets`` of a file for tests."""

    test: Dataset
    """The faces to measure with."""


Points = Literal["detected", "true", "template"]


class RestorerOptions(Options):
    """``restorers.NAME``: weights, and how they are used."""

    weights: Annotated[str, Field(min_length=1), AtHome(), Told("weights or a folder")]
    """A shipped name or a checkpoint file."""
    fidelity: Fraction | Literal["auto"] = "auto"
    """How much of the photo is kept, as ``sgpn restore --fidelity``."""
    points: Points | None = None
    """The five points of each face for this row; by default the file's ``points``."""


def read_restorer(given: Any) -> RestorerOptions:
    """The restorer of a row: weights or a folder, or these with more options. Raises OptionError."""
    if isinstance(given, Mapping | RestorerOptions):
        return RestorerOptions.read(given)
    if not isinstance(given, str) or not given:
        raise OptionError(Problem("", f"expected weights or a folder, found {shown(given)}"))
    return RestorerOptions(weights=given)


def _free_rows(restorers: dict) -> dict:
    taken = [name for name in (INPUT, TRUTH) if name in restorers]
    if taken:
        raise OptionError(
            *(Problem(name, "the table has a row of this name already; choose another") for name in taken)
        )
    return restorers


class TestingFile(Options):
    """An option file for `sgpn test`."""

    name: FolderName
    """Name of the test, and of the folder for its report."""
    device: Device = "auto"
    """Where to compute; auto is CUDA where there is any."""
    num_threads: Processes | None = None
    """Threads of PyTorch; by default, or with 0, as many as it chooses."""
    datasets: TestSets
    """The pictures."""
    restorers: Annotated[
        dict[str, Annotated[RestorerOptions, PlainValidator(read_restorer)]],
        SWITCHABLE,
        AfterValidator(_free_rows),
        Told("a mapping of names to weights or folders"),
    ] = {}
    """Row of the table -> weights (a shipped name, a checkpoint, or ``{weights: ..., fidelity: ...}``), or a folder of pictures
    that something else restored."""
    points: Points = "detected"
    """Which five points of a face restorers get: those that ``sgpn restore --aligned`` takes, the true ones, or the
    template's."""
    judge: Annotated[str, AtHome()] = "default"
    """Weights whose regressor finds the landmarks."""
    metrics: Annotated[list[Metric], Field(min_length=1), Told("a list of metrics' names")]
    """What is measured."""
