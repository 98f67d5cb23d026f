"""What ``sgpn train`` runs: one training stage from an option file, with checkpoints, validation and logs."""

import json
import logging
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml

from sgpn_arch.registry import MODEL_REGISTRY
from sgpn_data.tensors import to_images
from sgpn_model.checkpoint import CheckpointError
from sgpn_model.pipeline.common import (
    build_dataset,
    evaluation_batches,
    mean_of_known,
    training_batches,
)
from sgpn_model.pipeline.options import checked_options
from sgpn_model.restorer import choose_device
from sgpn_model.training_model import TrainingModel

LOGGER = logging.getLogger("sgpn")


def run(options_path: str, overrides: Iterable[str] = (), device: str | None = None, auto_resume: bool = False) -> Path:
    """Trains what the option file says and returns the experiment's folder.

    Args:
        options_path: the option file. overrides: ``a.b=c`` assignments. device: overrides the file's ``device``.
        auto_resume: continue from the newest training state of this experiment, where there is one.

    Raises:
        OptionError, CheckpointError: before any work starts. FloatingPointError: a loss is not finite.
    """
    opt, origins = checked_options(options_path, overrides, training=True)
    _prepare_process(opt)
    with origins.named():  # what only data and networks themselves can refuse
        train_set = build_dataset(opt["datasets"]["train"], "train")
        val_set = build_dataset(opt["datasets"]["val"], "val") if "val" in opt["datasets"] else None
        model = MODEL_REGISTRY.get(opt["model_type"])(opt, choose_device(device or opt.get("device", "auto")))

    folder = Path((opt.get("path") or {}).get("experiments_root", "experiments")) / opt["name"]
    step = _resume(model, opt, folder, auto_resume)
    run_log = RunLog(folder, opt, step)
    try:
        _train(model, train_set, val_set, folder, run_log, step)
    finally:
        run_log.close()
    return folder


def _prepare_process(opt: dict) -> None:
    if opt.get("num_threads"):
        torch.set_num_threads(opt["num_threads"])
    torch.manual_seed(opt.get("manual_seed", 0))
    cv2.setNumThreads(1)


def _resume(model: TrainingModel, opt: dict, folder: Path, auto_resume: bool) -> int:
    state = (opt.get("path") or {}).get("resume_state")
    if auto_resume:
        found = _states(folder / "training_states")
        state = found[max(found)] if found else state
    if not state:
        return 0
    if not Path(state).is_file():
        raise CheckpointError(f"{state}: no such training state")
    return model.load_training_state(state)


def _states(folder: Path) -> dict[int, Path]:
    """Step -> file of the training states that runs wrote; other files may lie beside them."""
    return {int(path.stem): path for path in folder.glob("*.state") if path.stem.isdecimal()}


def _train(model: TrainingModel, train_set, val_set, folder: Path, run_log: "RunLog", step: int) -> None:
    opt = model.opt
    total = opt["train"]["total_iter"]
    logger_opt, val_opt = opt.get("logger") or {}, opt.get("val") or {}
    print_freq = logger_opt.get("print_freq", 50)
    save_freq = logger_opt.get("save_checkpoint_freq", 1000)
    val_freq = val_opt.get("val_freq", save_freq)
    batches = training_batches(train_set, opt["datasets"]["train"], opt.get("manual_seed", 0), step)
    waited, logged = 0.0, step
    while step < total:
        began = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - began
        model.set_learning_rate(step)
        model.feed_data(batch)
        model.optimize_parameters(step)
        step += 1
        if step % print_freq == 0 or step == total:
            run_log.scalars(step, total, {**model.log, "data_wait": waited / (step - logged)})
            waited, logged = 0.0, step
        if step % save_freq == 0 or step == total:
            _save(model, folder, step)
        if val_set is not None and (step % val_freq == 0 or step == total):
            run_log.validation(step, *validate(model, val_set, val_opt.get("save_images", 8)))


def _save(model: TrainingModel, folder: Path, step: int) -> None:
    """Writes checkpoint and state; the previous state goes only when the new one is whole."""
    model.save(folder / "models" / f"{model.opt['name']}_{step}.safetensors", step)
    states = folder / "training_states"
    model.save_training_state(states / f"{step}.state", step)
    for written, old in _states(states).items():
        if written != step:
            old.unlink()


def validate(model: TrainingModel, dataset, pictures: int) -> tuple[dict[str, float], torch.Tensor | None]:
    """Mean metrics over the validation set, and the sheets of its first ``pictures`` items (None if that is 0)."""
    values: dict[str, list[float]] = {}
    sheets = []
    for batch in evaluation_batches(dataset, model.opt["datasets"]["val"]):
        model.feed_data(batch)
        scores, sheet = model.validate_batch()
        for name, numbers in scores.items():
            values.setdefault(name, []).extend(numbers)
        if sum(map(len, sheets)) < pictures:
            sheets.append(sheet.float().cpu())
    means = {name: mean_of_known(numbers) for name, numbers in values.items()}
    means = {name: mean for name, mean in means.items() if mean is not None}
    return means, torch.cat(sheets)[:pictures] if sheets else None


class RunLog:
    """Console, ``log/train.jsonl``, TensorBoard and pictures of one run."""

    def __init__(self, folder: Path, opt: dict, step: int):
        self.folder = folder
        self.started, self.first_step = time.perf_counter(), step
        (folder / "log").mkdir(parents=True, exist_ok=True)
        (folder / "options.yml").write_text(yaml.safe_dump(opt, sort_keys=False), encoding="utf-8")
        self.lines = open(folder / "log" / "train.jsonl", "a", encoding="utf-8")  # noqa: SIM115  (closed in close)
        self.board = _tensorboard(folder / "log") if (opt.get("logger") or {}).get("use_tb_logger", True) else None
        LOGGER.info("%s: from step %d, writing to %s", opt["name"], step, folder)

    def scalars(self, step: int, total: int, values: dict[str, float]) -> None:
        """Logs training values with speed and remaining time."""
        rate = (step - self.first_step) / (time.perf_counter() - self.started)
        left = timedelta(seconds=round((total - step) / rate))
        LOGGER.info("step %d/%d  %.2f it/s  left %s  %s", step, total, rate, left, _format(values))
        self._write(step, "train", values)

    def validation(self, step: int, values: dict[str, float], sheet: torch.Tensor | None) -> None:
        """Logs validation metrics and writes the sheet, one row per face, if there is one."""
        LOGGER.info("validation at %d  %s", step, _format(values))
        self._write(step, "val", values)
        if sheet is None:
            return
        rows = np.concatenate(to_images(sheet))
        path = self.folder / "visualization" / f"{step}.jpg"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), rows)
        if self.board is not None:
            self.board.add_image("val/pictures", rows[..., ::-1], step, dataformats="HWC")

    def _write(self, step: int, phase: str, values: dict[str, float]) -> None:
        self.lines.write(json.dumps({"step": step, "phase": phase, **values}) + "\n")
        self.lines.flush()
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{phase}/{name}", value, step)

    def close(self) -> None:
        """Flushes everything."""
        self.lines.close()
        if self.board is not None:
            self.board.close()


def _tensorboard(folder: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        LOGGER.warning('TensorBoard is not installed (pip install "sgpn[train]"): scalars go to train.jsonl only')
        return None
    return SummaryWriter(str(folder))


def _format(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
