"""TrainingModel, what every training stage shares: networks, optimisers, EMA, learning rate, and its state on disk."""

import contextlib
import copy
import inspect
import logging
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sgpn_arch import build_network, complete_options
from sgpn_arch.errors import OptionError
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.face3d.shape_prior import Mesh, ShapePrior
from sgpn_arch.ranges import Amount, Count, Fraction, Whole
from sgpn_arch.schema import Options
from sgpn_arch.state_dicts import is_finite, tensors_in
from sgpn_model.config.checking import training_file
from sgpn_model.train import distributed
from sgpn_model.train.optimizers import OptimizerOptions, build_optimizer
from sgpn_model.weights.bundle import package_version
from sgpn_model.weights.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from sgpn_model.weights.pretrained import find_weights

LOGGER = logging.getLogger("sgpn")
# What a checkpoint calls the network that one of its networks was adapted from: network_shape_pretrained.
PRETRAINED = "_pretrained"


class TrainOptions(Options):
    """``train``: what all stages have."""

    total_iter: Count
    """Training steps."""
    warmup_iter: Whole = 0
    """Steps over which the learning rate rises to its value."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The learning rate after the warm-up: constant, or falling to 1 % along a cosine."""
    ema_decay: Fraction = 0.999
    """Decay of the average of the weights, once it has warmed up."""
    grad_clip: Amount | None = None
    """Norm to which the gradients of each optimiser are clipped; 0 or ~ leaves them."""
    accumulate: Count = 1
    """Batches whose gradients are averaged for one step."""
    max_loss: Amount | None = None
    """Loss above which the training stops; 0 or ~ sets no limit."""


def learning_rate_factor(step: int, total: int, warmup: int, schedule: str) -> float:
    """Factor on the base rate at ``step`` of ``total``: a linear warm-up, then constant, or a cosine to 1 %."""
    ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if schedule == "constant":
        return ramp
    return ramp * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0))))


class TrainingModel:
    """Base of the training stages.

    A stage builds its networks in ``build``, takes a batch in ``feed_data``, makes one step in
    ``optimize_parameters`` and scores a batch in ``validate_batch``. What it wants logged is in ``self.log``, losses by
    names that begin with ``l_``: when a sum of losses breaks, those that were noted since the last one are looked at.

    With ``train.accumulate: N``, a step is N calls of feed_data and optimize_parameters (see :meth:`train_step`).
    step_optimizer and update_average then act in the last call only, so a stage need not know. It must make the same
    calls of step_optimizer, in the same order, for every batch of a step.

    Attributes:
        loop_state: what the training loop wants kept with the training state, the same in every process.
        process_state: the same, of this process.
        stop_requested: set from outside to ask for an end after this step.
        stop_agreed: some process was asked to end, and by now all processes know.

        file: the whole option file, typed; ``train_opt`` is its section ``train``.

    Args:
        opt: the whole option file as it was read. device: where networks live.

    Raises:
        OptionError: some options cannot be used; all of these are named.
    """

    NETWORKS: tuple[str, ...] = ()
    # The model of the stage's section ``train``.
    OPTIONS: type[TrainOptions] = TrainOptions
    # Whether the stage brings pictures that are larger than its generator's down to its size.
    SHRINKS_PICTURES = False

    def __init__(self, opt: dict, device: torch.device):
        self.opt = opt
        self.device = device
        stage: Any = type(self)
        self.file = training_file(stage).read(opt)
        self.train_opt = self.file.train
        self.memory_format = self._memory_format(self.file.channels_last)
        # A stage that works with 3D shapes sets it; its morphable model then goes with the checkpoints.
        self.prior: ShapePrior | None = None
        # Networks are plugins: what they have beyond a module's methods, the stage that takes them knows.
        self.networks: dict[str, Any] = {}
        self.ema: dict[str, Any] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.base_rates: dict[str, float] = {}
        self.log: dict[str, float] = {}
        self.batch: dict[str, Any] = {}
        self.loop_state: dict[str, Any] = {}
        self.process_state: dict[str, Any] = {}
        self.stop_requested = self.stop_agreed = False
        # Which of the parts of a step is under way, and how many there are; see train_step.
        self._part, self._parts, self._call = 0, 1, 0
        self._held: dict[tuple, list[Tensor | None]] = {}
        self._failure: str | None = None
        self._written: dict[nn.Module, Any] = {}  # the forward pass of what is compiled, as it was
        self._blamed: tuple[dict, set[str]] = (self.log, set())
        self._checkpoints: dict[str | Path, Checkpoint] = {}  # those that were read while the stage is built
        self.build()
        self._checkpoints.clear()
        distributed.share_weights([*self.networks.values(), *self.ema.values()])
        self._compile()

    def _memory_format(self, wanted: Any) -> torch.memory_format:
        """ "auto": channels-last on the CPU, and for bf16, whose tensor cores work in that order (a choice of ours)."""
        fitting = self.device.type != "cuda" or self.file.precision == "bf16"
        return torch.channels_last if wanted is True or (wanted == "auto" and fitting) else torch.contiguous_format

    def _compile(self) -> None:
        """torch.compile of the networks' forward pass where ``compile`` asks for it; the averaged copies stay as they are."""
        wanted = self.file.compile
        for network in self.networks.values() if wanted else ():
            self._written[network] = network.forward
            network.forward = torch.compile(network.forward, backend=wanted if isinstance(wanted, str) else "inductor")

    # -- what a stage defines -----------------------------------------------------------------------------------------

    @classmethod
    def needed_networks(cls, train: Any) -> tuple[str, ...]:
        """Those of NETWORKS that a training with these options builds."""
        return cls.NETWORKS

    def build(self) -> None:
        """Makes networks, losses and optimisers."""
        raise TypeError(f"{type(self).__name__} does not say how to build its networks")

    def optimize_parameters(self, step: int) -> None:
        """One training step on the batch that feed_data took."""
        raise TypeError(f"{type(self).__name__} does not say how to train")

    def validate_batch(self) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
        """Metric name -> one value per item of the batch; and for the sheet, title -> pictures (N, 3, H, W) in [-1, 1]."""
        raise TypeError(f"{type(self).__name__} does not say how to validate")

    def state_extra(self) -> dict[str, Any]:
        """What else a resumed run needs: numbers, text, tensors, lists and mappings; the same in every process."""
        return {}

    def load_state_extra(self, extra: dict[str, Any]) -> None:
        """Takes back what state_extra gave."""

    def describe(self) -> dict[str, Any]:
        """Metadata for the checkpoints, beyond what all stages write."""
        return {}

    def release(self) -> dict[str, nn.Module]:
        """The networks that go into a checkpoint, by name; the averaged ones where there are any."""
        return {name: self.ema.get(name, network) for name, network in self.networks.items()}

    # -- building blocks ----------------------------------------------------------------------------------------------

    def network(self, name: str, pretrained: str | Path | None = None) -> nn.Module:
        """Builds the network that the section ``name`` describes, with the weights of a checkpoint if one is given."""
        if self.opt.get(name) is None:
            raise OptionError(
                f"{name}: this section is missing; {type(self).__name__} needs {', '.join(self.NETWORKS)}"
            )
        try:
            network = build_network(self.opt[name])
        except ValueError as error:
            raise OptionError(f"{name}: {error}") from error
        if name == "network_d":
            try:
                inspect.signature(network.forward).bind("picture")
            except TypeError as error:
                raise OptionError(
                    f"network_d.type: {self.opt[name]['type']} is no discriminator, which takes a picture and nothing else"
                ) from error
        if pretrained:
            self.load(network, pretrained, name)
        return network.to(self.device).to(memory_format=self.memory_format)

    def checkpoint(self, path: str | Path) -> Checkpoint:
        """A checkpoint, read once while the stage is built."""
        if path not in self._checkpoints:
            self._checkpoints[path] = load_checkpoint(find_weights(path))
        return self._checkpoints[path]

    def load(self, network: nn.Module, path: str | Path, name: str) -> None:
        """Gives a network the weights that a checkpoint has under ``name``."""
        weights = self.checkpoint(path).weights
        if name not in weights:
            raise CheckpointError(f"{path}: holds no '{name}' (it has {', '.join(weights)})")
        load_weights(network, weights[name], f"{path}: {name}")

    def load_unadapted(self, regressor: nn.Module, path: str | Path) -> bool:
        """Gives a regressor the weights from before stage 1, which ShapeAdaptModel's checkpoints hold, and says whether
        there are any in this one."""
        name = f"network_shape{PRETRAINED}"
        found = name in self.checkpoint(path).weights
        if found:
            self.load(regressor, path, name)
        return found

    def shape_prior(self, regressor: nn.Module) -> ShapePrior:
        """The shape prior of a regressor and its morphable model.

        That is ``path.morphable_model``; by default the one that ``path.pretrain_network_shape`` was trained with, and for a
        regressor from nothing the one that ships.
        """
        path = self.file.path
        before = path.pretrain_network_shape and self.checkpoint(path.pretrain_network_shape)
        try:
            if path.morphable_model:
                model = MorphableModel.read(path.morphable_model)
            elif before and before.names_morphable_model:
                model = before.morphable_model()
            else:
                model = MorphableModel.open()
        except CheckpointError:
            raise
        except (OSError, ValueError) as error:
            raise OptionError(f"path.morphable_model: {error}") from error
        try:
            return ShapePrior(regressor, model, protocol=self.file.protocol).to(self.device)
        except ValueError as error:
            raise OptionError(f"network_shape: {error}") from error

    def see(self, prior: ShapePrior, images: Tensor, transform: Tensor) -> tuple[Tensor, Mesh]:
        """What a shape prior sees in images (N, 3, S, S) cut out by ``transform``: coefficients (N, D), float32, and the mesh."""
        with self.autocast():
            coeffs = prior.coefficients(images, transform)
        coeffs = coeffs.float()
        return coeffs, prior.mesh(coeffs)

    def with_regressor(self, regressor: nn.Module) -> ShapePrior:
        """The stage's shape prior with another regressor, evaluated and not trained; both have one morphable model."""
        assert self.prior is not None
        return ShapePrior(regressor.eval().requires_grad_(False), self.prior.model, protocol=self.prior.protocol)

    def optimizer(self, name: str, parameters: Iterable[nn.Parameter], opt: OptimizerOptions | None) -> None:
        """Adds an optimiser under the name, which is that of its section in ``train``."""
        if opt is None:
            raise OptionError(f"train.{name}: this section is missing; write for instance {{type: Adam, lr: 2.0e-3}}")
        self.optimizers[name] = build_optimizer(opt, parameters)
        self.base_rates[name] = self.optimizers[name].defaults["lr"]

    def average(self, name: str) -> None:
        """Keeps an exponential moving average of a network's weights."""
        self.ema[name] = copy.deepcopy(self.networks[name]).eval().requires_grad_(False)

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        """Moves the averages; their decay warms up, so that early checkpoints are not the initialisation."""
        if not self._last_part:
            return
        decay = min(self.train_opt.ema_decay, (1 + step) / (10 + step))
        for name, average in self.ema.items():
            network = self.networks[name]
            for mean, value in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
            for kept, current in zip(average.buffers(), network.buffers(), strict=True):
                kept.copy_(current)

    def autocast(self) -> contextlib.AbstractContextManager:
        """Mixed precision where ``precision: bf16`` asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.file.precision == "bf16")

    def train_step(self, batches: Sequence[dict[str, Any]], step: int) -> dict[str, float]:
        """Step ``step`` (from 0) on one batch, or on several whose gradients are averaged; returns the mean of the logs.

        Several small batches give the gradients of the large one as far as losses are means over samples. Losses that
        count only some of them (faces with known landmarks), batch normalisation, and the minibatch standard deviation
        of a discriminator if its groups are larger than the small batches, see each small batch alone. A stage that
        steps several optimisers takes all gradients of its earlier batches before its first optimiser moves.
        """
        self.set_learning_rate(step)
        logs = []
        for part, batch in enumerate(batches):
            self._part, self._parts, self._call = part, len(batches), 0
            self.feed_data(batch)
            self.optimize_parameters(step)
            logs.append(self.log)
        return mean_log(logs)

    @property
    def _last_part(self) -> bool:
        return self._part == self._parts - 1

    @contextlib.contextmanager
    def uncompiled(self, network: nn.Module) -> Iterator[None]:
        """Within it, ``network`` runs as it was written; what torch.compile makes cannot be differentiated twice."""
        if network not in self._written:
            yield
            return
        compiled, network.forward = network.forward, self._written[network]
        try:
            yield
        finally:
            network.forward = compiled

    def step_optimizer(self, names: str | Iterable[str], loss: Tensor) -> None:
        """Backward pass and a step of one optimiser or several, with clipped gradients where ``train.grad_clip`` says so.

        Gradients are averaged over processes and over the batches of the step.

        Raises:
            FloatingPointError: the loss, or the norm of the gradients where they are clipped, is not finite, or the loss
                is above ``train.max_loss``; in any of the processes. The weights are as before.
        """
        names = [names] if isinstance(names, str) else list(names)
        fault = self._fault(names, loss)
        if fault and distributed.world_size() == 1:
            raise FloatingPointError(fault)
        # The other processes are told at the end of the step, where they wait for this one.
        self._failure = self._failure or fault
        for name in names:
            self.optimizers[name].zero_grad(set_to_none=True)
        if not self._failure:
            (loss if self._parts == 1 else loss / self._parts).backward()
        self._finish_step(names)

    def _finish_step(self, names: list[str]) -> None:
        parameters = [parameter for name in names for parameter in self._parameters(name)]
        self._add_held((self._call, *names), parameters)
        self._call += 1
        if not self._last_part:
            return
        flags = (self._failure is not None, self.stop_requested)
        failed, stop = distributed.average_gradients(parameters, flags, self.device)
        self.stop_agreed = self.stop_agreed or stop
        if failed:
            found = enumerate(distributed.everyones(self._failure))
            raise FloatingPointError("; ".join(f"in process {rank}: {fault}" for rank, fault in found if fault))
        distributed.average_statistics(self.networks.values(), self.device)
        if self.train_opt.grad_clip:
            for name in names:
                self._clip_gradients(name)
        for name in names:
            self.optimizers[name].step()

    def _add_held(self, call: tuple, parameters: list[nn.Parameter]) -> None:
        """Adds the gradients of this step's earlier batches to the present ones, and holds the sums until the last.

        Held apart from ``.grad``: each call of step_optimizer has its own, so that one optimiser may step twice, and what
        a backward pass leaves in other networks is as gone as without accumulation.
        """
        if self._parts == 1:
            return
        for parameter, sum_before in zip(parameters, self._held.pop(call, [None] * len(parameters)), strict=True):
            if sum_before is not None:
                parameter.grad = sum_before if parameter.grad is None else sum_before.add_(parameter.grad)
        if not self._last_part:
            self._held[call] = [parameter.grad for parameter in parameters]
            for parameter in parameters:
                parameter.grad = None

    def _fault(self, names: list[str], loss: Tensor) -> str | None:
        """What is wrong with a loss, and with which of its parts; None if nothing is."""
        value, limit = loss.item(), self.train_opt.max_loss or math.inf
        before = self._blamed[1] if self._blamed[0] is self.log else set()
        losses = {name: part for name, part in self.log.items() if name.startswith("l_")}
        parts = {name: part for name, part in losses.items() if name not in before} or losses
        self._blamed = (self.log, set(self.log))
        if math.isfinite(value) and abs(value) <= limit:
            return None
        what = f"is {value}" if not math.isfinite(value) else f"is {value:.4g}, above train.max_loss ({limit:g})"
        broken = [name for name, part in parts.items() if not math.isfinite(part)]
        culprits = broken or [max(parts, key=lambda name: abs(parts[name]))] if parts else []
        blame = f" because of {', '.join(culprits)}" if culprits else ""
        return f"the loss of {', '.join(names)} {what}{blame}; the parts so far: {self.log}"

    def _parameters(self, name: str) -> list[nn.Parameter]:
        return [parameter for group in self.optimizers[name].param_groups for parameter in group["params"]]

    def _clip_gradients(self, name: str) -> None:
        norm = nn.utils.clip_grad_norm_(self._parameters(name), self.train_opt.grad_clip).item()
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
        train = self.train_opt
        factor = learning_rate_factor(step, train.total_iter, train.warmup_iter, train.schedule)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.base_rates[name] * factor

    # -- on disk ------------------------------------------------------------------------------------------------------

    def save(
        self, path: str | Path, step: int, dtype: torch.dtype | None = None, about: Mapping[str, Any] | None = None
    ) -> None:
        """Writes the self-describing checkpoint that restoring and later stages read; ``about`` goes into its metadata."""
        released = self.release()
        metadata = {
            "archs": {name: complete_options(self.opt[name.removesuffix(PRETRAINED)]) for name in released},
            "name": self.opt["name"],
            "step": step,
            "version": package_version(),
            **self.describe(),
            **(about or {}),
        }
        weights = {name: network.state_dict() for name, network in released.items()}
        save_checkpoint(
            path, weights, metadata, dtype, morphable_model=None if self.prior is None else self.prior.model
        )

    def training_state(self, step: int) -> dict[str, Any]:
        """All that a resumed run needs. Every process must call it: each has random numbers of its own.

        Raises:
            FloatingPointError: a weight, or what an optimiser remembers, is not finite; such a state could only fail again.
        """
        own = {"random": _random_state(self.device), "own": self.process_state}
        state: dict[str, Any] = {
            "step": step,
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "ema": {name: network.state_dict() for name, network in self.ema.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "extra": self.state_extra(),
            "loop": self.loop_state,
            "processes": distributed.everyones(own),
        }
        for group in ("networks", "ema", "optimizers"):
            for name, tensor in tensors_in(state[group]):
                if not is_finite(tensor):
                    raise FloatingPointError(f"{group}: '{name}' holds NaN or infinity")
        return state

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Takes back a :meth:`training_state`. Where it does not fit, whatever fits least raises, and part of it is loaded."""
        for group in ("networks", "ema", "optimizers"):
            for name, part in getattr(self, group).items():
                part.load_state_dict(state[group][name])
        self.load_state_extra(state["extra"])
        self.loop_state = dict(state["loop"])
        self._load_own(state["processes"])

    def _load_own(self, processes: list[dict[str, Any]]) -> None:
        rank, world = distributed.rank(), distributed.world_size()
        if len(processes) != world and rank == 0:
            LOGGER.warning(
                "the training state is of %d processes and goes on in %d: their random numbers will be others",
                *(len(processes), world),
            )
        if rank < len(processes):
            self.process_state = dict(processes[rank]["own"])
            _set_random_state(processes[rank]["random"], self.device)


def mean_log(logs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each value over those of the logs that have it."""
    names = dict.fromkeys(name for log in logs for name in log)
    values = {name: [log[name] for log in logs if name in log] for name in names}
    return {name: sum(numbers) / len(numbers) for name, numbers in values.items()}


@contextlib.contextmanager
def undisturbed_random_numbers(device: torch.device, seed: int) -> Iterator[None]:
    """Within it, the global generators begin at ``seed``; after it, they go on as if nothing had been drawn."""
    before = _random_state(device)
    try:
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
    finally:
        _set_random_state(before, device)


def _random_state(device: torch.device) -> dict[str, Any]:
    """The state of every global generator, in types that are read back without running code."""
    kind, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
