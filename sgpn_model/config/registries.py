"""Fills the registries with all that an option file can name: networks, stages, datasets, losses, metrics, also of plugins."""

import functools
import importlib
import pkgutil

import sgpn_data
from sgpn_arch import load_plugins, register_archs
from sgpn_arch.registry import load_basicsr


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
    for name in ("sgpn_model.train.losses", "sgpn_model.evaluate.metrics"):
        importlib.import_module(name)
    load_plugins()
