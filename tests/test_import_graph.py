"""No lower floor imports a higher one: ops and face3d, then sgpn_arch, then sgpn_data, then sgpn_model, then sgpn."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Longest prefix first: a module belongs to the first floor whose prefix it begins with.
FLOORS = {"sgpn_arch.ops": 0, "sgpn_arch.face3d": 0, "sgpn_arch": 1, "sgpn_data": 2, "sgpn_model": 3, "sgpn": 4}
FOLDERS = {"sgpn_arch": "sgpn_arch", "data": "sgpn_data", "sgpn_model": "sgpn_model"}


def floor(module: str) -> int | None:
    for prefix, number in FLOORS.items():
        if module == prefix or module.startswith(prefix + "."):
            return number
    return None


def modules() -> dict[str, Path]:
    found = {"sgpn": ROOT / "sgpn.py"}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


def imports(module: str, path: Path) -> set[str]:
    """Absolute names that a file imports, also inside functions; relative imports resolved."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base]).strip(".")
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize(("module", "path"), sorted(modules().items()), ids=sorted(modules()))
def test_imports_only_from_its_own_floor_or_below(module, path):
    own = floor(module)
    higher = sorted(name for name in imports(module, path) if (floor(name) or 0) > own)
    assert not higher, f"{module} (floor {own}) imports {', '.join(higher)}"


def test_the_checker_sees_an_upward_import(tmp_path):
    path = tmp_path / "layers.py"
    path.write_text("def f():\n    from sgpn_model import losses\n")
    assert "sgpn_model.train.losses" in imports("sgpn_arch.layers", path)
    assert floor("sgpn_model.train.losses") > floor("sgpn_arch.layers")
