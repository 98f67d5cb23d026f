"""TrainingModel, what every training stage shares: networks, optimisers, EMA, learning rate, and its state on disk."""

import contextlib
import copy
import importlib.metadata
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sgpn_arch import build_network, complete_options
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.face3d.shape_prior import ShapePrior
from sgpn_arch.names import nearest
from sgpn_model.checkpoint import CheckpointError, load_checkpoint, load_weights, save_checkpoint, write_atomically
from sgpn_model.options import OptionError, check_keys

OPTIMIZERS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
PRECISIONS = ("fp32", "bf16")
COMMON_TRAIN_KEYS = {"total_iter", "warmup_iter", "schedule", "ema_decay", "grad_clip"}


def learning_rate_factor(step: int, total: int, warmup: int, schedule: str) -> float:
    """Factor on the base rate at ``step`` of ``total``: a linear warm-up, then constant, or a cosine to 1 %."""
    ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if schedule == "constant":
        return ramp
    return ramp * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0))))


def _version() -> str:
    try:
        return importlib.metadata.version("sgpn")
    except importlib.metadata.PackageNotFoundError:
        return "unknown (run from a folder, not installed)"


class TrainingModel:
    """Base of the training stages.

    A stage builds its networks in ``build``, takes a batch in ``feed_data``, makes one step in
    ``optimize_parameters`` and scores a batch in ``validate_batch``. What it wants logged is in ``self.log``.

    Args:
        opt: the whole option file. device: where networks live.
    """

    NETWORKS: tuple[str, ...] = ()
    # What ``train`` may hold beyond COMMON_TRAIN_KEYS; for the sections in it their options, for choices their values.
    TRAIN_KEYS: frozenset[str] = frozenset()
    TRAIN_SECTIONS: Mapping[str, Iterable[str]] = {}
    TRAIN_CHOICES: Mapping[str, Iterable[str]] = {}

    def __init__(self, opt: dict, device: torch.device):
        self.opt = opt
        self.device = device
        self.train_opt = opt.get("train") or {}
        check_keys(self.train_opt, COMMON_TRAIN_KEYS | self.TRAIN_KEYS, "train")
        self.schedule = self.train_opt.get("schedule", "constant")
        if self.schedule not in ("constant", "cosine"):
            raise OptionError(f"train.schedule: unknown value{nearest(str(self.schedule), ['constant', 'cosine'])}")
        if opt.get("precision", "fp32") not in PRECISIONS:
            raise OptionError(f"precision: unknown value{nearest(str(opt['precision']), PRECISIONS)}")
        # A stage that works with 3D shapes sets it; its morphable model then goes with the checkpoints.
        self.prior: ShapePrior | None = None
        self.networks: dict[str, nn.Module] = {}
        self.ema: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.base_rates: dict[str, float] = {}
        self.log: dict[str, float] = {}
        self.batch: dict[str, Any] = {}
        self.build()

    # -- what a stage defines -----------------------------------------------------------------------------------------

    def build(self) -> None:
        """Makes networks, losses and optimisers."""
        raise TypeError(f"{type(self).__name__} does not say how to build its networks")

    def optimize_parameters(self, step: int) -> None:
        """One training step on the batch that feed_data took."""
        raise TypeError(f"{type(self).__name__} does not say how to train")

    def validate_batch(self) -> tuple[dict[str, list[float]], Tensor]:
        """Metric name -> one value per item of the batch, and a sheet (N, 3, H, W) in [-1, 1] with a row per item."""
        raise TypeError(f"{type(self).__name__} does not say how to validate")

    def describe(self) -> dict[str, Any]:
        """Metadata for the checkpoints, beyond what all stages write."""
        return {}

    def release(self) -> dict[str, nn.Module]:
        """The networks that go into a checkpoint, by name; the averaged ones where there are any."""
        return {name: self.ema.get(name, network) for name, network in self.networks.items()}

    # -- building blocks ----------------------------------------------------------------------------------------------

    def network(self, name: str, pretrained: str | None = None) -> nn.Module:
        """Builds the network that the section ``name`` describes, with the weights of a checkpoint if one is given."""
        if not isinstance(self.opt.get(name), Mapping):
            raise OptionError(
                f"{name}: this section is missing; {type(self).__name__} needs {', '.join(self.NETWORKS)}"
            )
        try:
            network = build_network(self.opt[name])
        except ValueError as error:
            raise OptionError(f"{name}: {error}") from error
        if pretrained:
            checkpoint = load_checkpoint(pretrained)
            if name not in checkpoint.weights:
                raise CheckpointError(f"{pretrained}: holds no '{name}' (it has {', '.join(checkpoint.weights)})")
            load_weights(network, checkpoint.weights[name], f"{pretrained}: {name}")
        return network.to(self.device, memory_format=torch.channels_last)

    def shape_prior(self, regressor: nn.Module) -> ShapePrior:
        """The shape prior of a regressor and the morphable model of ``path.morphable_model`` (default: the one that ships)."""
        path = (self.opt.get("path") or {}).get("morphable_model")
        try:
            model = MorphableModel.read(path) if path else MorphableModel.open()
        except (OSError, ValueError) as error:
            raise OptionError(f"path.morphable_model: {error}") from error
        try:
            return ShapePrior(regressor, model, protocol=self.opt.get("protocol", "open")).to(self.device)
        except ValueError as error:
            raise OptionError(f"network_shape: {error}") from error

    def optimizer(self, name: str, parameters: Iterable[nn.Parameter], opt: dict | None) -> None:
        """Adds an optimiser ``{type: Adam, lr: ..., betas: ...}`` under the name."""
        if not isinstance(opt, Mapping):
            raise OptionError(f"train.{name}: this section is missing; write for instance {{type: Adam, lr: 2.0e-3}}")
        arguments = dict(opt)
        kind = arguments.pop("type", "Adam")
        if kind not in OPTIMIZERS:
            raise OptionError(f"train.{name}.type: unknown optimiser '{kind}'{nearest(kind, OPTIMIZERS)}")
        check_keys(arguments, {"lr", "betas", "weight_decay", "eps"}, f"train.{name}")
        self.optimizers[name] = OPTIMIZERS[kind](parameters, **arguments)
        self.base_rates[name] = arguments.get("lr", 1e-3)

    def average(self, name: str) -> None:
        """Keeps an exponential moving average of a network's weights."""
        self.ema[name] = copy.deepcopy(self.networks[name]).eval().requires_grad_(False)

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        """Moves the averages; their decay warms up, so that early checkpoints are not the initialisation."""
        decay = min(self.train_opt.get("ema_decay", 0.999), (1 + step) / (10 + step))
        for name, average in self.ema.items():
            network = self.networks[name]
            for mean, value in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
            for mean, value in zip(average.buffers(), network.buffers(), strict=True):
                mean.copy_(value)

    def autocast(self) -> contextlib.AbstractContextManager:
        """Mixed precision where ``precision: bf16`` asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.opt.get("precision", "fp32") == "bf16")

    def step_optimizer(self, names: str | Iterable[str], loss: Tensor) -> None:
        """Backward pass and a step of one optimiser or several, with clipped gradients where ``train.grad_clip`` says so.

        Raises:
            FloatingPointError: the loss, or the norm of the gradients where they are clipped, is not finite.
        """
        names = [names] if isinstance(names, str) else list(names)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of {', '.join(names)} is {loss.item()}; the parts so far: {self.log}")
        for name in names:
            self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        if self.train_opt.get("grad_clip"):
            for name in names:
                self._clip_gradients(name)
        for name in names:
            self.optimizers[name].step()

    def _clip_gradients(self, name: str) -> None:
        parameters = [p for group in self.optimizers[name].param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.train_opt["grad_clip"]).item()
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient of {name} is {norm}; the losses: {self.log}")
        self.log[f"grad_{name}"] = norm

    def feed_data(self, batch: dict[str, Any]) -> None:
        """Takes a batch of a dataset, tensors moved to the device."""
        self.batch = {
            key: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }

    def set_learning_rate(self, step: int) -> None:
        """Sets the rate of step ``step``; it depends on nothing else, so a resumed run has the same."""
        total, warmup = self.train_opt["total_iter"], self.train_opt.get("warmup_iter", 0)
        factor = learning_rate_factor(step, total, warmup, self.schedule)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.base_rates[name] * factor

    # -- on disk ------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, step: int, dtype: torch.dtype | None = None) -> None:
        """Writes the self-describing checkpoint that restoring and later stages read."""
        released = self.release()
        metadata = {
            "archs": {name: complete_options(self.opt[name]) for name in released},
            "name": self.opt["name"],
            "step": step,
            "version": _version(),
            **self.describe(),
        }
        weights = {name: network.state_dict() for name, network in released.items()}
        save_checkpoint(path, weights, metadata, dtype, morphable_model=self.prior and self.prior.model)

    def save_training_state(self, path: str | Path, step: int) -> None:
        """Writes all that a resumed run needs, atomically."""
        state = {
            "step": step,
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "ema": {name: network.state_dict() for name, network in self.ema.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "random": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self.device)
        write_atomically(path, lambda temporary: torch.save(state, temporary))

    def load_training_state(self, path: str | Path) -> int:
        """Reads what save_training_state wrote and returns its step.

        Raises:
            CheckpointError: the file is damaged or belongs to other options.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            for group in ("networks", "ema", "optimizers"):
                for name, part in getattr(self, group).items():
                    part.load_state_dict(state[group][name])
            torch.set_rng_state(state["random"])
            if self.device.type == "cuda" and "random_cuda" in state:
                torch.cuda.set_rng_state(state["random_cuda"], self.device)
        except Exception as error:
            raise CheckpointError(f"{path}: cannot be resumed with these options: {error}") from error
        return state["step"]
