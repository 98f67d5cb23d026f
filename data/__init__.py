"""Where pictures come from: alignment, degradation and datasets (installed and imported as ``sgpn_data``).

Importing this package costs nothing: no torch, no basicsr. Files named ``*_dataset.py`` beside this one
register their classes when :func:`register_datasets` (or :func:`build_dataset`, which calls it) runs.
"""

import importlib
from pathlib import Path

__all__ = ["build_dataset", "register_datasets"]


def register_datasets() -> list[str]:
    """Imports every ``*_dataset.py`` of this folder, so that their classes are in DATASET_REGISTRY.

    Returns the names of the modules imported, sorted. Calling it again is free.
    """
    names = sorted(path.stem for path in Path(__file__).parent.glob("*_dataset.py"))
    for name in names:
        importlib.import_module(f"{__name__}.{name}")
    return names


def build_dataset(opt):
    """The dataset that ``opt["type"]`` names, constructed with the whole of ``opt``.

    Raises KeyError if ``type`` is absent or not registered; what the class itself raises passes through.
    """
    register_datasets()
    from sgpn_arch.registry import DATASET_REGISTRY, load_basicsr

    if "type" not in opt:
        raise KeyError("dataset options: 'type' is missing; name a registered dataset, e.g. FaceRestorationDataset")
    if opt["type"] not in DATASET_REGISTRY:
        load_basicsr()
    return DATASET_REGISTRY.get(opt["type"])(opt)
