"""What a training run leaves on disk: checkpoints and training states, rotated, and which of them a run goes on from."""

import contextlib
import copy
import logging
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgpn_arch.errors import OptionError, UserError
from sgpn_arch.files import write_atomically
from sgpn_arch.ranges import Whole
from sgpn_arch.schema import Options
from sgpn_arch.state_dicts import is_finite, tensors_in
from sgpn_model.train import distributed
from sgpn_model.train.training_model import TrainingModel
from sgpn_model.weights.checkpoint import CHECKSUM, CheckpointError, digest_of, read_pickle
from sgpn_model.weights.formats import damage_of

LOGGER = logging.getLogger("sgpn")
STATES_KEPT = 2  # so that there is one to fall back on if the newest is damaged


class TrainingState(Options):
    """What is in a training state; see :meth:`TrainingModel.training_state`."""

    step: Whole
    """Steps that were done."""
    networks: dict[str, dict[str, Any]]
    """Name -> state dict."""
    ema: dict[str, dict[str, Any]]
    """The same of the averages."""
    optimizers: dict[str, dict[str, Any]]
    """The same of the optimisers."""
    extra: dict[str, Any]
    """What the stage added."""
    loop: dict[str, Any]
    """What the loop added."""
    processes: list[dict[str, Any]]
    """Random numbers, and the loop's own, of each process."""
    sha256: str | None = None
    """The digest of all the rest; states from before there were checksums have none."""


class SaveError(UserError, OSError):
    """A checkpoint could not be written, most often because the disk is full; the one before is as it was."""


class Diverged(UserError, FloatingPointError):
    """A loss, a gradient or a weight is no finite number any more, or a loss is above its limit."""


class Saver:
    """Writes and rotates ``models/NAME_STEP.safetensors``, ``models/NAME_best.safetensors`` and ``training_states/STEP.state``.

    Args:
        folder: the experiment's. name: its name. keep_last: how many models are kept beside the best one; 0 keeps all.
    """

    def __init__(self, folder: Path, name: str, keep_last: int = 3):
        self.folder, self.name, self.keep_last = folder, name, keep_last
        self.models, self.states = folder / "models", folder / "training_states"

    def model_path(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.models / f"{self.name}_{step}.safetensors"

    # -- writing ------------------------------------------------------------------------------------------------------

    def save(self, model: TrainingModel, step: int) -> None:
        """Writes model and state, then removes old ones. Every process must call it; the first writes.

        Raises:
            SaveError: a file could not be written. Diverged: a weight is not finite. All earlier files are untouched.
        """
        try:
            state = model.training_state(step)
        except FloatingPointError as error:
            raise self.diverged(error, step) from error

        def write() -> None:
            path = self.model_path(step)
            with self._explained(path, step):
                model.save(path, step)
            path = self.states / f"{step}.state"
            with self._explained(path, step):
                write_state(path, state)
            self._rotate(step)

        distributed.once(write)

    def save_best(self, model: TrainingModel, step: int, metric: str, value: float) -> None:
        """Writes the model that had the best ``metric`` so far. Every process must call it; the first writes."""
        path = self.models / f"{self.name}_best.safetensors"

        def write() -> None:
            with self._explained(path, step):
                model.save(path, step, about={"best": {"metric": metric, "value": value}})

        distributed.once(write)

    def diverged(self, error: FloatingPointError, step: int) -> Diverged:
        """The error to stop with, which says where things were still good."""
        good = self._newest_good_state()
        model = good and self.model_path(int(good.stem))
        kept = f"the last good checkpoint is {model}, with its state {good}" if good else "none was yet"
        return Diverged(
            f"step {step}: {error}. Nothing of this step was saved; {kept}. Lower the learning rate, or see what data and "
            "losses there are, then continue with --auto-resume"
        )

    @contextlib.contextmanager
    def _explained(self, path: Path, step: int) -> Iterator[None]:
        try:
            yield
        except CheckpointError:
            raise
        # On a full disk, PyTorch raises RuntimeError.
        except (OSError, RuntimeError) as error:
            raise self.unwritten(error, path, step) from error

    def unwritten(self, error: Exception, path: Path, step: int) -> SaveError:
        """The error to stop with if ``path`` cannot be written."""
        folder = next(parent for parent in path.absolute().parents if parent.is_dir())
        free = shutil.disk_usage(folder).free / 1e6
        good = self.newest_state()
        kept = f"{good}, of the checkpoint before, is untouched" if good else "no checkpoint was written before"
        return SaveError(
            f"step {step}: {path} could not be written ({error}); {free:.0f} MB are free there, and {kept}. Make room or "
            "mend the disk, then continue with --auto-resume"
        )

    def _rotate(self, step: int) -> None:
        """Removes what is older than the newest; never a file of a later step, which is somebody else's."""
        found = [(_states(self.states), STATES_KEPT), (self._numbered_models(), self.keep_last)]
        for files, kept in found:
            own = sorted(number for number in files if number <= step)
            for number in own[:-kept] if kept else ():
                files[number].unlink(missing_ok=True)

    def _numbered_models(self) -> dict[int, Path]:
        pattern = re.compile(rf"{re.escape(self.name)}_(\d+)\.safetensors")
        matches = {path: pattern.fullmatch(path.name) for path in self.models.glob("*.safetensors")}
        return {int(match[1]): path for path, match in matches.items() if match}

    # -- beginning or going on ----------------------------------------------------------------------------------------

    def newest_state(self) -> Path | None:
        """The training state of the latest step."""
        found = _states(self.states)
        return found[max(found)] if found else None

    def _newest_good_state(self) -> Path | None:
        for _, path in sorted(_states(self.states).items(), reverse=True):
            with contextlib.suppress(CheckpointError):
                read_state(path)
                return path
        return None

    def begin(self, model: TrainingModel, state: str | Path | None, auto_resume: bool) -> int:
        """Loads the state to go on from, if there is one, and returns its step (0: from the start).

        Args:
            state: the file to go on from. auto_resume: go on from the newest one of this experiment, if it has any; a
                damaged one is set aside, and the one before is taken.

        An experiment that has states but is not to go on is archived: its folder gets another name.

        Raises:
            CheckpointError: there is no such state, or none can be used with these options.
        """
        path = distributed.once(lambda: self._first_usable(model, state, auto_resume))
        if path is None:
            distributed.once(lambda: self._clear(0, archive=True))
            return 0
        # The first process has loaded it too, but its random numbers have gone on since.
        step = load_state(model, path)
        distributed.once(lambda: self._clear(step, archive=False))
        return step

    def _first_usable(self, model: TrainingModel, state: str | Path | None, auto_resume: bool) -> str | Path | None:
        found = _states(self.states) if auto_resume else {}
        errors = []
        for number in sorted(found, reverse=True):
            try:
                load_state(model, found[number])
            except CheckpointError as error:
                errors.append(error)
                continue
            for damaged in errors:
                LOGGER.warning("%s; going on from %s", damaged, found[number])
            return str(found[number])
        if errors:
            raise errors[0]
        return state

    def _clear(self, step: int, archive: bool) -> None:
        """Puts away what a run from ``step`` on must not find again."""
        later = {number: path for number, path in _states(self.states).items() if number > step}
        if archive and later:
            archived = self.folder.with_name(f"{self.folder.name}_archived_{time.strftime('%Y%m%d_%H%M%S')}")
            self.folder.rename(archived)
            LOGGER.warning(
                "%s holds an earlier run, which is now in %s; --auto-resume would go on", self.folder, archived
            )
            return
        for path in later.values():
            path.rename(path.with_name(path.name + ".unused"))
            LOGGER.warning("%s is of a later step than the one to go on from: renamed to %s.unused", path, path.name)
        for left in (*self.models.glob(f".{self.name}_*.safetensors.*"), *self.states.glob(".*.state.*")):
            left.unlink()  # half a file, from a process that was killed while it wrote


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a training state with its checksum, atomically.

    Raises:
        OSError, RuntimeError: it cannot be written.
    """

    def whole(tensor: Tensor) -> Tensor:
        return (
            tensor.contiguous()
            if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
            else tensor
        )

    # An expanded tensor claims more numbers than it holds, which is refused when it is read; all others are not copied.
    state = copy.deepcopy(state, {id(tensor): whole(tensor) for _, tensor in tensors_in(state)})
    write_atomically(path, lambda temporary: torch.save({**state, CHECKSUM: digest_of(state)}, temporary))


def read_state(path: str | Path) -> dict[str, Any]:
    """Reads a training state, tensors on the CPU. No code of it runs.

    Raises:
        CheckpointError: it is damaged or was changed, is of another step than its name says, is no training state, or holds
            NaN or infinity.
    """
    path = Path(path).expanduser()
    state = read_pickle(path)
    try:
        told = TrainingState.read(state)
    except OptionError as error:
        raise CheckpointError(f"{path}: is no training state: {error}") from error
    if told.sha256 is None:
        damage = damage_of(path)  # PyTorch writes checksums, but does not look at them
        if damage:
            raise CheckpointError(f"{path}: {damage}")
    elif told.sha256 != digest_of({key: value for key, value in state.items() if key != CHECKSUM}):
        raise CheckpointError(f"{path}: is damaged or was changed: its {CHECKSUM} is not that of its content")
    if path.stem.isdecimal() and int(path.stem) != told.step:
        raise CheckpointError(f"{path}: is of step {told.step}, not of the one that its name says")
    for name, tensor in tensors_in({group: state[group] for group in ("networks", "ema", "optimizers")}):
        if not is_finite(tensor):
            raise CheckpointError(f"{path}: '{name}' holds NaN or infinity")
    return state


def load_state(model: TrainingModel, path: str | Path) -> int:
    """Gives a stage the state in a file, and returns its step.

    Raises:
        CheckpointError: as :func:`read_state`, or it belongs to other options.
    """
    state = read_state(path)
    try:
        model.load_training_state(state)
    except Exception as error:  # a stage's own, or PyTorch's, raises whatever does not fit
        raise CheckpointError(f"{path}: cannot be resumed with these options: {error}") from error
    return state["step"]


def _states(folder: Path) -> dict[int, Path]:
    """Step -> file of the training states that runs wrote; other files may lie beside them."""
    return {int(path.stem): path for path in folder.glob("*.state") if path.stem.isdecimal()}
