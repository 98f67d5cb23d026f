"""Datasets and the batches that training and testing draw from them."""

import itertools
import math
import random
import signal
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from sgpn_arch.by_name import check_plugin
from sgpn_arch.errors import OptionError
from sgpn_arch.registry import DATASET_REGISTRY
from sgpn_data.face_dataset import LoaderOptions


def asked_for(part: Any, batch: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a loss or a metric asks for of a batch by its attribute ``inputs``.

    Raises:
        OptionError: the batch lacks some of it; ``where`` is the part's key in the option file.
    """
    names = getattr(part, "inputs", ())
    lacking = [name for name in names if name not in batch]
    if lacking:
        raise OptionError(
            f"{where}: {type(part).__name__} needs {', '.join(lacking)}, which the dataset's items lack; "
            f"they have {', '.join(batch)}"
        )
    return {name: batch[name] for name in names}


class SizedDataset(Dataset):
    """A dataset that knows how many items it has, as those that are registered do."""

    def __len__(self) -> int:
        raise NotImplementedError


def build_dataset(opt: dict, phase: str) -> SizedDataset:
    """Builds the dataset that ``datasets.PHASE`` describes."""
    where = f"datasets.{phase}"
    check_plugin(opt, DATASET_REGISTRY, where)
    try:
        return DATASET_REGISTRY.get(opt["type"])({**opt, "phase": phase})
    except OptionError:
        raise
    except (KeyError, ValueError, OSError) as error:
        raise OptionError(f"{where}: {error.args[0] if isinstance(error, KeyError) else error}") from error


class BatchSampler(Sampler[list[tuple[int, int]]]):
    """Endless batches of (epoch, index) for one process, from the first batch of a step on.

    Every epoch is a new permutation, which depends on the seed and the epoch alone. A step takes the next
    ``batch_size * accumulate * processes`` items of it; what is left over at an epoch's end is left out. Of these, the
    k-th batch of process r gets every item whose place is r + k * processes modulo accumulate * processes. Dealt out like
    that, the samples that the minibatch standard deviation groups in a large batch (those of equal place modulo the
    number of groups) stay together, if the group's size divides ``batch_size``.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, step: int = 0, accumulate: int = 1, rank: int = 0, world: int = 1
    ):
        self.length, self.seed, self.step = length, seed, step
        self.shares = accumulate * world
        self.own = [rank + part * world for part in range(accumulate)]
        self.per_step = batch_size * self.shares
        self.per_epoch = length // self.per_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, []
        for step in itertools.count(self.step):
            if step // self.per_epoch != epoch:
                epoch = step // self.per_epoch
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                order = torch.randperm(self.length, generator=generator).tolist()
            start = step % self.per_epoch * self.per_step
            items = order[start : start + self.per_step]
            for share in self.own:
                yield [(epoch, index) for index in items[share :: self.shares]]


class Draws(SizedDataset):
    """A dataset whose items are asked for by (epoch, index), so that loader workers may outlive an epoch.

    In a worker, the global generators are seeded for each item, so that a dataset that draws from them gives the same
    items in a run that was resumed. (In the main process they are the training's, and are kept with its state.) Where
    the dataset has ``paths`` and its items a ``path``, an item gets a key ``replaced``: its index if the picture is not
    the one that was asked for, which then cannot be used; else -1.
    """

    def __init__(self, dataset: SizedDataset, seed: int):
        self.dataset, self.seed = dataset, seed
        self.epoch: int | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: tuple[int, int]) -> dict[str, Any]:
        epoch, index = draw
        if epoch != self.epoch and hasattr(self.dataset, "set_epoch"):  # BasicSR's datasets have none
            self.dataset.set_epoch(epoch)
        self.epoch = epoch
        if get_worker_info() is not None:
            torch_seed, *seeds = np.random.SeedSequence((self.seed, epoch, index)).generate_state(3).tolist()
            torch.manual_seed(torch_seed)
            np.random.seed(seeds[0])
            random.seed(seeds[1])
        item = self.dataset[index]
        paths = getattr(self.dataset, "paths", None)
        if paths is not None and "path" in item:
            item = {**item, "replaced": -1 if str(paths[index]) == item["path"] else index}
        return item

    def leave_the_others(self) -> None:
        """Gives this worker's copy of the dataset its own epoch, where all workers share one.

        A worker that has begun the next epoch must not change what another still draws from this one.
        """
        for name, value in list(vars(self.dataset).items()):
            if isinstance(value, torch.Tensor) and value.dim() == 0 and value.is_shared():
                setattr(self.dataset, name, value.clone())


def _begin_worker(_: int) -> None:
    """A signal to the whole group of processes (Ctrl-C, a scheduler's SIGTERM) is for the training, which ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(1)
    worker = get_worker_info()
    if worker is not None and isinstance(worker.dataset, Draws):
        worker.dataset.leave_the_others()


class TrainingBatches:
    """Endless batches of one process, from those of ``step`` on; the same whether or not the run was interrupted before.

    Args:
        dataset: the training set. opt: its section of the options. seed: of the order.
        step: the training step to begin with. accumulate: batches per step. rank, world: this process, and how many.
        pin: whether batches are to be put where a CUDA device copies them from without waiting.

    Attributes:
        unusable: indices of the pictures that were found unusable in what was given out so far.

    Raises:
        OptionError: the data set is smaller than what one step takes.
    """

    def __init__(
        self,
        dataset: SizedDataset,
        opt: LoaderOptions,
        seed: int,
        step: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        pin: bool = False,
    ):
        batch_size = opt.batch_size_per_gpu
        order = BatchSampler(len(dataset), batch_size, seed, step, accumulate, rank, world)
        if not order.per_epoch:
            total = f" x {order.shares} = {order.per_step}" if order.shares > 1 else ""
            raise OptionError(
                f"datasets.train.batch_size_per_gpu: {batch_size}{total} is more than the {len(dataset)} images there are"
            )
        self.unusable: set[int] = set()
        # A loader draws from its generator when it begins. The global one is the model's: if the loader drew from it too,
        # a resumed run would go on with other numbers.
        own = torch.Generator().manual_seed(seed)
        self._loader = DataLoader(
            Draws(dataset, seed),
            batch_sampler=order,
            num_workers=opt.num_worker_per_gpu,
            generator=own,
            pin_memory=pin,
            worker_init_fn=_begin_worker,
        )
        self._batches: Iterator[dict] | None = None

    def __iter__(self) -> "TrainingBatches":
        return self

    def __next__(self) -> dict[str, Any]:
        if self._batches is None:  # here and not before, for workers start with it
            self._batches = iter(self._loader)
        batch = next(self._batches)
        found = batch.pop("replaced", None)
        if found is not None:
            self.unusable.update(index for index in found.tolist() if index >= 0)
        return batch

    def close(self) -> None:
        """Ends the workers."""
        self._batches = None


def evaluation_batches(dataset: Dataset, opt: LoaderOptions) -> DataLoader:
    """Every item once, in order; leaves the global random numbers alone."""
    generator = torch.Generator().manual_seed(0)
    return DataLoader(
        dataset,
        opt.batch_size_per_gpu,
        num_workers=opt.num_worker_per_gpu,
        generator=generator,
        worker_init_fn=_begin_worker,
    )


def mean_of_known(values: Iterable[float]) -> float | None:
    """Mean of the finite values, None if there are none: faces without known landmarks have no landmark error."""
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else None
