"""The library's face: ``from sgpn import FaceRestorer, build_network``. Importing it is cheap; PyTorch loads on first use."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgpn_arch import build_network
    from sgpn_arch.face3d.morphable_model import MorphableModel
    from sgpn_arch.face3d.shape_prior import ShapePrior
    from sgpn_data.degradation import Degradation
    from sgpn_model.restore.restorer import FaceRestorer
    from sgpn_model.weights.pretrained import available_weights

__version__ = "0.1.0"
__all__ = [
    "Degradation",
    "FaceRestorer",
    "MorphableModel",
    "ShapePrior",
    "__version__",
    "available_weights",
    "build_network",
]

# Where each name is imported from when it is first asked for; type checkers read the block above.
_HOMES = {
    "Degradation": "sgpn_data.degradation",
    "FaceRestorer": "sgpn_model.restore.restorer",
    "MorphableModel": "sgpn_arch.face3d.morphable_model",
    "ShapePrior": "sgpn_arch.face3d.shape_prior",
    "available_weights": "sgpn_model.weights.pretrained",
    "build_network": "sgpn_arch",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'sgpn' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
