"""The registries filled with all that an option file can name, and metrics built by name, BasicSR's functions among them."""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

from torch import Tensor

import sgpn_data
from sgpn_arch import load_plugins, register_archs
from sgpn_arch.registry import METRIC_REGISTRY, load_basicsr
from sgpn_data.tensors import to_images


@functools.cache
def fill_registries() -> None:
    """Imports every ``train/*_model.py`` and ``*_dataset.py``, the losses, the metrics, BasicSR and the installed plugins.

    By name and not by import statement: what is registered may lie in a higher room than this one.
    """
    load_basicsr()
    register_archs()
    train = importlib.import_module("sgpn_model.train")
    for module in pkgutil.iter_modules(train.__path__):
        if module.name.endswith("_model"):
            importlib.import_module(f"sgpn_model.train.{module.name}")
    sgpn_data.register_datasets()
    for name in (
        "sgpn_model.train.losses",
        "sgpn_model.train.identity",
        "sgpn_model.train.efficientnet",
        "sgpn_model.evaluate.metrics",
        "sgpn_model.evaluate.faceres",
    ):
        importlib.import_module(name)
    load_plugins()


def is_metric(registered: Callable) -> bool:
    """Whether something in METRIC_REGISTRY can be named as a metric: it says which way is better, and it is a class, or a
    function of one picture or two as BasicSR has them."""
    known = isinstance(getattr(registered, "higher_is_better", None), bool)
    return known and (isinstance(registered, type) or "img" in inspect.signature(registered).parameters)


def build_metric(name: str) -> Callable:
    """The registered metric, ready to be called; see :class:`sgpn_model.evaluate.metrics.Metric`.

    Raises:
        UserError: its weights or package are not on this machine.
    """
    if name not in METRIC_REGISTRY:
        fill_registries()
    found = METRIC_REGISTRY.get(name)
    return found() if isinstance(found, type) else FunctionMetric(found)


class FunctionMetric:
    """A metric of BasicSR's kind, a function of uint8 pictures HxWx3 BGR (``img``, perhaps ``img2``) to a number, as one of ours.

    It says by attributes what a class says by its own: ``higher_is_better`` and, if it must, ``unit`` and ``min_size``. It is
    called with ``crop_border=0``, for a face fills its picture.
    """

    def __init__(self, function: Any):
        self.function = function
        self.higher_is_better = function.higher_is_better
        self.min_size = getattr(function, "min_size", 1)
        self.needs_reference = "img2" in inspect.signature(function).parameters

    def __call__(self, pred: Tensor, target: Tensor | None = None) -> list[float]:
        """(N, 3, H, W) once or twice, RGB in [-1, 1] -> one value per picture."""
        if target is None or not self.needs_reference:
            return [float(self.function(img, crop_border=0)) for img in to_images(pred)]
        pairs = zip(to_images(pred), to_images(target), strict=True)
        return [float(self.function(img, img2, crop_border=0)) for img, img2 in pairs]
