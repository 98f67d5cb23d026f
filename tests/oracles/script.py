"""Importing one of the project's scripts, to test its functions."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

# Scripts for an extra that the tests do without -> its package.
NEEDS = {"measure_bulk": "ray"}


def load_script(name: str) -> ModuleType:
    """``scripts/NAME.py`` as a module; it may import other scripts, as it may when it is run. It skips without its package."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"scripts/{name}.py needs the package {NEEDS[name]}")
    path = Path(__file__).parents[2] / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module
