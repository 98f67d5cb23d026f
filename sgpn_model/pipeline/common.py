"""What training and testing share: the registries filled, datasets and loaders built from options."""

import importlib
import math
import pkgutil
from collections.abc import Iterable, Iterator

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

import sgpn_data
import sgpn_model
from sgpn_arch import load_plugins
from sgpn_arch.registry import DATASET_REGISTRY
from sgpn_model.options import OptionError, check_plugin


def fill_registries() -> None:
    """Imports every ``*_model.py`` and ``*_dataset.py``, the losses, the metrics and the installed plugins."""
    for module in pkgutil.iter_modules(sgpn_model.__path__):
        if module.name.endswith("_model"):
            importlib.import_module(f"sgpn_model.{module.name}")
    sgpn_data.register_datasets()
    for name in ("losses", "metrics"):
        importlib.import_module(f"sgpn_model.{name}")
    load_plugins()


def build_dataset(opt: dict, phase: str) -> Dataset:
    """Builds the dataset that ``datasets.PHASE`` describes."""
    where = f"datasets.{phase}"
    check_plugin(opt, DATASET_REGISTRY, where)
    try:
        return DATASET_REGISTRY.get(opt["type"])({**opt, "phase": phase})
    except (KeyError, ValueError, FileNotFoundError) as error:
        raise OptionError(f"{where}: {error.args[0]}") from error


class ResumableSampler(Sampler[int]):
    """A new permutation each epoch, from the seed and the epoch alone; can begin in the middle of an epoch."""

    def __init__(self, length: int, seed: int):
        self.length, self.seed = length, seed
        self.epoch, self.start = 0, 0

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        yield from torch.randperm(self.length, generator=generator).tolist()[self.start :]

    def __len__(self) -> int:
        return self.length - self.start


def training_batches(dataset: Dataset, opt: dict, seed: int, step: int) -> Iterator[dict]:
    """Endless batches from the batch of ``step`` on; the same whether or not the run was interrupted before."""
    batch_size = opt.get("batch_size_per_gpu", 8)
    per_epoch = len(dataset) // batch_size
    if not per_epoch:
        raise OptionError(
            f"datasets.train.batch_size_per_gpu: {batch_size} is more than the {len(dataset)} images there are"
        )
    sampler = ResumableSampler(len(dataset), seed)
    workers = opt.get("num_worker_per_gpu", 0)
    # A loader draws from its generator whenever it begins an epoch. The global one is the model's: if loaders drew from
    # it too, a run resumed within an epoch would go on with other numbers.
    own = torch.Generator()
    loader = DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers, drop_last=True, generator=own)
    while True:
        sampler.epoch, done = divmod(step, per_epoch)
        sampler.start = done * batch_size
        own.manual_seed(seed * 1_000_003 + sampler.epoch)
        if hasattr(dataset, "set_epoch"):  # BasicSR's datasets have none
            dataset.set_epoch(sampler.epoch)
        for batch in loader:
            yield batch
            step += 1


def evaluation_batches(dataset: Dataset, opt: dict) -> DataLoader:
    """Every item once, in order; leaves the global random numbers alone."""
    workers = opt.get("num_worker_per_gpu", 0)
    generator = torch.Generator().manual_seed(0)
    return DataLoader(dataset, opt.get("batch_size_per_gpu", 8), num_workers=workers, generator=generator)


def mean_of_known(values: Iterable[float]) -> float | None:
    """Mean of the finite values, None if there are none: faces without known landmarks have no landmark error."""
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else None
