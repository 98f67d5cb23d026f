"""The library's face: ``from sgpn import FaceRestorer, build_network``. Importing it is cheap; PyTorch loads on first use."""

import importlib

__version__ = "0.1.0"

_HOMES = {"FaceRestorer": "sgpn_model.restore.restorer", "build_network": "sgpn_arch"}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'sgpn' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
