"""What ``sgpn train`` runs: one training stage from an option file, with checkpoints, validation and logs."""

import contextlib
import errno
import itertools
import logging
import math
import os
import random
import shlex
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from sgpn_arch.errors import OptionError
from sgpn_arch.registry import MODEL_REGISTRY
from sgpn_model.config.checking import checked_options, training_file
from sgpn_model.config.device import choose_device
from sgpn_model.config.sections import TrainingFile, best_rule
from sgpn_model.train import distributed
from sgpn_model.train.batches import SizedDataset, TrainingBatches, build_dataset, evaluation_batches, mean_of_known
from sgpn_model.train.log import RunLog, RunningMeans, require_wandb
from sgpn_model.train.saving import Saver
from sgpn_model.train.training_model import TrainingModel, undisturbed_random_numbers

LOGGER = logging.getLogger("sgpn")

# torchrun passes a signal on that its processes got already; within this time it is not a second wish to stop.
SAME_SIGNAL = 1.0  # seconds


class TrainingStopped(SystemExit):
    """A signal ended the training, after a step was finished and saved. Its code is 128 + the signal's number."""


def run(
    options_path: str,
    overrides: Iterable[str] = (),
    device: str | None = None,
    auto_resume: bool = False,
    data: Sequence[str] = (),
) -> Path:
    """Trains what the option file says and returns the experiment's folder.

    Started by torchrun, each of its processes trains on its share; ``batch_size_per_gpu`` counts for each.

    Args:
        options_path: the option file. overrides: ``a.b=c`` assignments. device: overrides the file's ``device``.
        auto_resume: continue from the newest training state of this experiment, where there is one.
        data: folders of faces for the datasets that name none.

    Raises:
        OptionError, CheckpointError: before any work starts. Diverged: a loss is not finite, or too large. SaveError: the
            disk is full. TrainingStopped: by SIGTERM or Ctrl-C, with everything saved.
    """
    overrides = list(overrides)
    opt, origins = checked_options(options_path, overrides, "train", data=data)
    stage = MODEL_REGISTRY.get(opt["model_type"])
    with origins.named():
        file = training_file(stage).read(opt)
        require_wandb(file.logger.wandb)
        place = distributed.place(choose_device(device or file.device))
    resume = ["sgpn", "train", str(options_path), "--auto-resume", *(["--device", device] if device else [])]
    resume += [*(["--data", *data] if data else []), *(["--set", *overrides] if overrides else [])]
    distributed.join(place)
    _prepare_process(file)
    with origins.named():  # what only data and networks themselves can refuse
        model = stage(opt, place)
        sets = {phase: build_dataset(section, phase) for phase, section in opt["datasets"].items() if section}
        loop = Loop(model, sets["train"], sets.get("val"), auto_resume, shlex.join(resume))
    loop.run()
    return loop.folder


def _prepare_process(file: TrainingFile) -> None:
    if file.num_threads:
        torch.set_num_threads(file.num_threads)
    seed = file.manual_seed
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    cv2.setNumThreads(1)
    if distributed.rank() > 0:
        LOGGER.setLevel(logging.WARNING)


class Loop:
    """The training loop of one process.

    Raises:
        OptionError, CheckpointError: the data are too few, or the state or ``val.best`` cannot be used.
    """

    def __init__(
        self,
        model: TrainingModel,
        train_set: SizedDataset,
        val_set: SizedDataset | None,
        auto_resume: bool,
        resume: str,
    ):
        self.file = file = model.file
        self.model, self.val_set, self.resume = model, val_set, resume
        self.total, self.accumulate = file.train.total_iter, file.train.accumulate
        self.best = best_rule(file.val.best) if file.val.best else None
        self.folder = Path(file.path.experiments_root) / file.name
        self.saver = Saver(self.folder, file.name, file.logger.keep_last)
        self._make_batches(train_set, 0)  # too few images are found before anything is touched
        self._check_best()
        _seed_process(file.manual_seed)
        self.step = self.saver.begin(model, file.path.resume_state, auto_resume)
        self.batches = self._make_batches(train_set, self.step)
        own = model.process_state
        self.batches.unusable.update(own.get("unusable", ()))
        self.means = RunningMeans(own.get("sums"))
        self.waited, self.timed_from = 0.0, time.perf_counter()
        self.timed_step = self.step
        self.log: RunLog | None = None

    def _make_batches(self, train_set: SizedDataset, step: int) -> TrainingBatches:
        return TrainingBatches(
            train_set,
            self.file.datasets.train,
            self.file.manual_seed,
            step,
            self.accumulate,
            distributed.rank(),
            distributed.world_size(),
            pin=self.model.device.type == "cuda",
        )

    def _check_best(self) -> None:
        """Tries the validation on one face: a wrong name would be found only after the first part of the training."""
        if self.best is None or self.val_set is None:
            return
        values, _ = _validated(self.model, Subset(self.val_set, [0]), 0)
        if self.best[0] not in values:
            raise OptionError(f"val.best: validation gives no '{self.best[0]}', but {', '.join(values)}")

    # -- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Trains to the end, or until a signal says to stop."""
        if distributed.rank() == 0:
            self.log = RunLog(self.folder, self.model.opt, self.file, self.step)
        try:
            with _signals(self.model) as received:
                begun = self.step
                while self.step < self.total:
                    if self._advance(first=self.step == begun):
                        self._say_goodbye(received)
                model = self.saver.model_path(self.step)
                if self.log and model.is_file():
                    LOGGER.info("%s: finished; the trained model is %s", self.file.name, model)
        except OSError as error:  # of the log, which is on the same disk
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self.saver.unwritten(error, self.folder / "log", self.step) from error
            raise
        finally:
            self.batches.close()
            if self.log:
                self.log.close()

    def _advance(self, first: bool = False) -> bool:
        """One step, and what is due after it; whether it is to be the last one because a signal said so.

        Lines are logged before the state is saved that goes on after them.
        """
        began = time.perf_counter()
        self._train()
        every = self.file.logger.print_freq
        last, stops = self.step == self.total, self._stops()
        if self.step % every == 0 or last:
            self._print()
        elif first and self.log:
            self.log.first_step(self.step, self.total, every, time.perf_counter() - began)
        if self.val_set is not None and (self.step % self.file.val_freq == 0 or last):
            self._validate(self.val_set)
        if self.step % self.file.logger.save_checkpoint_freq == 0 or last or stops:
            self._save()
        return stops

    def _train(self) -> None:
        began = time.perf_counter()
        batches = [next(self.batches) for _ in range(self.accumulate)]
        self.waited += time.perf_counter() - began
        try:
            self.means.add(self.model.train_step(batches, self.step))
        except FloatingPointError as error:
            raise self.saver.diverged(error, self.step + 1) from error
        self.step += 1

    def _stops(self) -> bool:
        alone = distributed.world_size() == 1
        return self.step < self.total and (self.model.stop_requested if alone else self.model.stop_agreed)

    def _print(self) -> None:
        values = self.means.take()
        unusable = set().union(*distributed.everyones(self.batches.unusable))
        if unusable:
            values["unusable"] = len(unusable)
        steps, now = self.step - self.timed_step, time.perf_counter()
        images = steps * self.accumulate * self.file.datasets.train.batch_size_per_gpu
        values["images_per_s"] = images * distributed.world_size() / max(now - self.timed_from, 1e-9)
        values["data_wait"] = self.waited / steps
        for name, optimizer in self.model.optimizers.items():
            values[name.replace("optim_", "lr_")] = optimizer.param_groups[0]["lr"]
        self.waited, self.timed_from, self.timed_step = 0.0, now, self.step
        if self.log:
            self.log.scalars(self.step, self.total, values)

    def _validate(self, val_set: SizedDataset) -> None:
        began = time.perf_counter()
        values, faces = validate(self.model, val_set, self.file.val.save_images)
        if self.log:
            self.log.validation(self.step, values, faces)
        if self.best is not None:
            self._keep_best(*self.best, values)
        self.timed_from += time.perf_counter() - began

    def _keep_best(self, name: str, higher: bool, values: dict[str, float]) -> None:
        value, before = values.get(name), self.model.loop_state.get("best")
        if value is None or (before is not None and (value <= before if higher else value >= before)):
            return
        self.model.loop_state["best"] = value
        self.saver.save_best(self.model, self.step, name, value)

    def _save(self) -> None:
        began = time.perf_counter()
        self.model.process_state = {"sums": self.means.sums, "unusable": sorted(self.batches.unusable)}
        if self.log:
            self.log.flush()
        self.saver.save(self.model, self.step)
        self.timed_from += time.perf_counter() - began

    def _say_goodbye(self, received: list[int]) -> None:
        number = max(max(numbers, default=0) for numbers in distributed.everyones(received))
        if self.log:
            LOGGER.warning(
                "%s: stopped after step %d of %d; saved in %s. Continue with: %s",
                *(signal.Signals(number).name, self.step, self.total, self.saver.newest_state(), self.resume),
            )
        raise TrainingStopped(128 + number)


def _seed_process(seed: int) -> None:
    """After networks were initialised alike everywhere, each process augments with random numbers of its own.

    A batch that is spread over processes is thus augmented (by what a stage draws, not by the dataset, whose numbers
    depend on the item alone) in another way than the same batch in one process; only the distribution is the same.
    """
    if distributed.rank() > 0:
        torch.manual_seed(seed + 1_000_003 * distributed.rank())
        np.random.seed((seed + distributed.rank()) % 2**32)
        random.seed(seed + distributed.rank())


@contextlib.contextmanager
def _signals(model: TrainingModel) -> Iterator[list[int]]:
    """SIGTERM and Ctrl-C ask the model's loop to end after the step; a second one ends at once. Yields what was received.

    Only the main thread can listen; elsewhere signals do what they did.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    times: list[float] = []

    def handle(number: int, _frame: Any) -> None:
        if times and time.monotonic() - times[0] > SAME_SIGNAL:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        times.append(time.monotonic())
        if not received and distributed.rank() == 0:
            # Not by logging, which the signal may have interrupted.
            os.write(2, b"\nsgpn: finishing this step, then saving; a second Ctrl-C stops at once\n")
        received.append(number)
        model.stop_requested = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------------------------------------------------------------
# Validation


def validate(
    model: TrainingModel, dataset: SizedDataset, pictures: int
) -> tuple[dict[str, float], list[dict[str, torch.Tensor]]]:
    """Mean metrics over the validation set, and for each of its first ``pictures`` items title -> picture (3, H, W).

    Each process scores its share, all get the results. Random numbers that scoring draws are the same each time, and
    those of the training are as before.
    """
    rank, world = distributed.rank(), distributed.world_size()
    share = Subset(dataset, range(rank, len(dataset), world))
    parts = distributed.everyones(_validated(model, share, math.ceil(pictures / world)))
    names = dict.fromkeys(name for values, _ in parts for name in values)
    all_means = {name: mean_of_known(_dealt([values.get(name, []) for values, _ in parts])) for name in names}
    means = {name: mean for name, mean in all_means.items() if mean is not None}
    sheets = _dealt([rows for _, rows in parts])[:pictures]
    return means, sheets


def _validated(
    model: TrainingModel, dataset: Dataset, pictures: int
) -> tuple[dict[str, list[float]], list[dict[str, torch.Tensor]]]:
    values: dict[str, list[float]] = {}
    rows: list[dict[str, torch.Tensor]] = []
    section = model.file.datasets.val
    assert section is not None  # the dataset was built of it
    with undisturbed_random_numbers(model.device, model.file.manual_seed):
        for batch in evaluation_batches(dataset, section):
            model.feed_data(batch)
            scores, columns = model.validate_batch()
            for name, numbers in scores.items():
                values.setdefault(name, []).extend(numbers)
            shown = {title: column[: max(0, pictures - len(rows))].float().cpu() for title, column in columns.items()}
            rows += [dict(zip(shown, row, strict=True)) for row in zip(*shown.values(), strict=True)]
    return values, rows


def _dealt(parts: Sequence[Sequence]) -> list:
    """The items of a list that was dealt out to several processes, in their order."""
    nothing = object()
    rounds = itertools.zip_longest(*parts, fillvalue=nothing)
    return [item for items in rounds for item in items if item is not nothing]
