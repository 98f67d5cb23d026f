"""RunLog, where a training run tells how it goes: console, JSON lines, TensorBoard, Weights & Biases, pictures."""

import contextlib
import importlib
import json
import logging
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import cv2
import numpy as np
import torch

from sgpn_arch.errors import OptionError
from sgpn_arch.files import write_atomically
from sgpn_data.sheet import labelled_grid
from sgpn_data.tensors import to_images
from sgpn_model.config.sections import TrainingFile, WandbOptions
from sgpn_model.config.strict_yaml import dump
from sgpn_model.train import distributed

LOGGER = logging.getLogger("sgpn")


class RunningMeans:
    """Means of what was logged since they were last taken: losses that are not computed at every step are seen, too."""

    def __init__(self, sums: Mapping[str, list] | None = None):
        self.sums = {name: list(pair) for name, pair in (sums or {}).items()}

    def add(self, values: Mapping[str, float]) -> None:
        """Takes the values of one step."""
        for name, value in values.items():
            pair = self.sums.setdefault(name, [0.0, 0])
            pair[0] += value
            pair[1] += 1

    def take(self) -> dict[str, float]:
        """The means over steps and processes, all of which must call it. Begins anew."""
        totals: dict[str, list] = {}
        for sums in distributed.everyones(self.sums):
            for name, (value, count) in sums.items():
                pair = totals.setdefault(name, [0.0, 0])
                pair[0] += value
                pair[1] += count
        self.sums = {}
        return {name: value / count for name, (value, count) in totals.items()}


class RunLog:
    """Console, ``log/train.jsonl``, TensorBoard, Weights & Biases and pictures of one run.

    Args:
        folder: the experiment's. opt: all options, as they were read. file: the same, typed.
        step: where the run begins; what was logged after it, before the run
            was cut off, is taken out of train.jsonl, and TensorBoard is told to hide it.
    """

    def __init__(self, folder: Path, opt: dict, file: TrainingFile, step: int):
        options = file.logger
        self.folder = folder
        self.started, self.begun_at = time.perf_counter(), step
        (folder / "log").mkdir(parents=True, exist_ok=True)
        (folder / "options.yml").write_text(dump(opt), encoding="utf-8")
        path = folder / "log" / "train.jsonl"
        keep_lines(path, step)
        self.lines = open(path, "a", encoding="utf-8")  # noqa: SIM115  (closed in close)
        self.board = _tensorboard(folder / "log", step) if options.use_tb_logger else None
        self.wandb = _wandb_run(options.wandb, folder, opt, step) if options.wandb else None
        LOGGER.info("%s: from step %d, writing to %s", opt["name"], step, folder)

    def scalars(self, step: int, total: int, values: dict[str, float]) -> None:
        """Logs training values with speed and remaining time."""
        rate = (step - self.begun_at) / max(time.perf_counter() - self.started, 1e-9)
        left = timedelta(seconds=round((total - step) / rate))
        LOGGER.info("step %d/%d  %.2f it/s  left %s  %s", step, total, rate, left, _format(values))
        self._write(step, "train", values)

    def first_step(self, step: int, total: int, every: int, seconds: float) -> None:
        """Says how long the first step took, so that nobody waits for the first line without knowing for how long."""
        left = timedelta(seconds=round((total - step) * seconds))
        LOGGER.info(
            "step %d took %.3g s; %d more, at this pace %s; a line every %d steps",
            *(step, seconds, total - step, left, every),
        )

    def validation(self, step: int, values: dict[str, float], faces: Sequence[dict[str, torch.Tensor]]) -> None:
        """Logs validation metrics, and writes a sheet with a row for each face: title -> picture (3, H, W) in [-1, 1]."""
        LOGGER.info("validation at %d  %s", step, _format(values))
        self._write(step, "val", values)
        if not faces:
            return
        columns = {title: to_images(torch.stack([face[title] for face in faces])) for title in faces[0]}
        rows = labelled_grid(columns, [str(number) for number in range(1, len(faces) + 1)])
        path = self.folder / "visualization" / f"{step}.jpg"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), rows)
        if self.board is not None:
            self.board.add_image("val/pictures", rows[..., ::-1], step, dataformats="HWC")
        if self.wandb is not None:
            picture = importlib.import_module("wandb").Image(np.ascontiguousarray(rows[..., ::-1]))
            self.wandb.log({"val/pictures": picture}, step=step)

    def _write(self, step: int, phase: str, values: dict[str, float]) -> None:
        self.lines.write(json.dumps({"step": step, "phase": phase, **values}) + "\n")
        self.lines.flush()
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{phase}/{name}", value, step)
        if self.wandb is not None:
            self.wandb.log({f"{phase}/{name}": value for name, value in values.items()}, step=step)

    def flush(self) -> None:
        """Puts everything on disk; a training state must not be newer than the lines before it."""
        os.fsync(self.lines.fileno())
        if self.board is not None:
            self.board.flush()

    def close(self) -> None:
        """Flushes and closes everything."""
        with contextlib.suppress(OSError):  # a full disk, which has been told already
            self.lines.close()
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish()


def keep_lines(path: Path, step: int) -> None:
    """Takes the lines after ``step`` out of a log, and a last one that was cut off."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= step]
    if kept != lines:
        write_atomically(path, lambda temporary: Path(temporary).write_text("".join(kept), encoding="utf-8"))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"] if line.endswith("\n") else float("inf")
    except (ValueError, TypeError, KeyError):
        return float("inf")


def _tensorboard(folder: Path, step: int = 0):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        LOGGER.warning('TensorBoard is not installed (pip install "sgpn[train]"): scalars go to train.jsonl only')
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


# ---------------------------------------------------------------------------------------------------------------------
# Weights & Biases


def require_wandb(section: WandbOptions | None) -> None:
    """Raises OptionError where Weights & Biases is asked for and not installed."""
    if not section:
        return
    try:
        importlib.import_module("wandb")
    except ImportError as error:
        raise OptionError(
            "logger.wandb: Weights & Biases is not installed; pip install wandb, or leave this option out"
        ) from error


def _wandb_run(options: WandbOptions, folder: Path, opt: dict, step: int):
    """A run of wandb's; a training that goes on continues the run that it began."""
    note = folder / "log" / "wandb_id"
    known = note.read_text(encoding="utf-8").strip() if step and note.is_file() else secrets.token_hex(4)
    settings = {"name": opt["name"], "id": known, **options.model_dump(exclude_none=True)}
    note.write_text(settings["id"], encoding="utf-8")
    wandb = importlib.import_module("wandb")
    return wandb.init(dir=str(folder / "log"), config=opt, resume="allow", **settings)


def _format(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
