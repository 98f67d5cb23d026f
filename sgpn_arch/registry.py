"""The five plugin registries, BasicSR's own, and the one place where BasicSR is made importable.

BasicSR 1.4.2 imports ``torchvision.transforms.functional_tensor``, which torchvision removed in 0.17. Where it is
missing, a module of that name holding the single function that BasicSR uses stands in for it.
"""

import importlib.util
import sys
import types


def _make_basicsr_importable() -> None:
    name = "torchvision.transforms.functional_tensor"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    from torchvision.transforms.functional import rgb_to_grayscale

    module = types.ModuleType(name)
    module.rgb_to_grayscale = rgb_to_grayscale
    sys.modules[name] = module


_make_basicsr_importable()

from basicsr.utils.registry import (  # noqa: E402  (needs the module above)
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
)

__all__ = ["ARCH_REGISTRY", "DATASET_REGISTRY", "LOSS_REGISTRY", "METRIC_REGISTRY", "MODEL_REGISTRY"]
