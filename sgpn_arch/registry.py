"""The five plugin registries, BasicSR's own, and the one place where BasicSR is made importable.

``import basicsr`` imports every network, dataset and model of BasicSR, which takes longer than a restoration. So its file of
registries is loaded alone, under its own name: whoever imports BasicSR later, a plugin or :func:`load_basicsr`, meets the
same five objects, and what it brings is registered beside ours.

BasicSR 1.4.2 imports ``torchvision.transforms.functional_tensor``, which torchvision removed in 0.17. Where it is missing, a
module of that name holding the single function that BasicSR uses stands in for it.
"""

import importlib.util
import sys
import types
from importlib.abc import MetaPathFinder

from sgpn_arch.files import package_folder

REGISTRY_MODULE = "basicsr.utils.registry"


# BasicSR's metrics are functions, and do not say which way is better, or what pictures they can judge.
BASICSR_METRICS = {
    "calculate_psnr": {"higher_is_better": True, "unit": "dB"},
    "calculate_ssim": {"higher_is_better": True, "min_size": 11},
    "calculate_niqe": {"higher_is_better": False, "min_size": 192},
}


def load_basicsr() -> None:
    """Imports all of BasicSR, so that what it registers can be named; free where that has been done."""
    importlib.import_module("basicsr")
    for name, facts in BASICSR_METRICS.items():
        vars(METRIC_REGISTRY.get(name)).update(facts)


def _load_registry_module() -> types.ModuleType:
    if REGISTRY_MODULE in sys.modules:
        return sys.modules[REGISTRY_MODULE]
    package = package_folder("basicsr")
    if package is None:
        raise ImportError("sgpn needs the package basicsr, whose registries it uses; run: pip install basicsr")
    path = package / "utils" / "registry.py"
    spec = importlib.util.spec_from_file_location(REGISTRY_MODULE, path)
    assert spec is not None and spec.loader is not None  # a path that ends in .py always has them
    module = importlib.util.module_from_spec(spec)
    sys.modules[REGISTRY_MODULE] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[REGISTRY_MODULE]
        raise
    return module


class _BasicSRImport(MetaPathFinder):
    """Finds nothing, but prepares the import of BasicSR when it begins."""

    def find_spec(self, name, path=None, target=None):
        if name == "basicsr":
            _make_basicsr_importable()
        elif name.startswith("basicsr.utils."):
            # What an import does to its package; ours came before there was one.
            sys.modules["basicsr.utils"].registry = sys.modules[REGISTRY_MODULE]


def _make_basicsr_importable() -> None:
    name = "torchvision.transforms.functional_tensor"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    from torchvision.transforms.functional import rgb_to_grayscale

    module = types.ModuleType(name)
    vars(module)["rgb_to_grayscale"] = rgb_to_grayscale
    sys.modules[name] = module


_registries = _load_registry_module()
sys.meta_path.insert(0, _BasicSRImport())

ARCH_REGISTRY = _registries.ARCH_REGISTRY
DATASET_REGISTRY = _registries.DATASET_REGISTRY
LOSS_REGISTRY = _registries.LOSS_REGISTRY
METRIC_REGISTRY = _registries.METRIC_REGISTRY
MODEL_REGISTRY = _registries.MODEL_REGISTRY

__all__ = [
    "ARCH_REGISTRY", "DATASET_REGISTRY", "LOSS_REGISTRY", "METRIC_REGISTRY", "MODEL_REGISTRY", "load_basicsr",
]  # fmt: skip
