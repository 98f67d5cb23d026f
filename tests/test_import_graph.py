"""No floor or room imports one that it may not, no modules import each other in a circle, no two files share a name.

The floors: ops and face3d, then sgpn_arch, then sgpn_data, then sgpn_model, then sgpn. The rooms are sgpn_model's folders.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Longest prefix first: a module belongs to the first floor whose prefix it begins with.
FLOORS = {
    "sgpn_arch.colour": 0,
    "sgpn_arch.files": 0,
    "sgpn_arch.ops": 0,
    "sgpn_arch.face3d": 0,
    "sgpn_arch": 1,
    "sgpn_data": 2,
    "sgpn_model": 3,
    "sgpn": 4,
}
# Room -> the rooms that it may import beside itself. cli imports any, and none imports it.
ROOMS = {
    "config": set(),
    "weights": {"config"},
    "restore": {"config", "weights"},
    "train": {"config", "weights"},
    "evaluate": {"config", "weights", "restore", "train"},
    "web": {"restore"},
    "bulk": {"config", "restore"},
    "cli": {"config", "weights", "restore", "train", "evaluate", "web", "bulk"},
}
VAGUE = {"test", "common", "names", "loading", "compiled", "utils", "helpers", "misc"}
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


def imports(module: str, path: Path, for_types: bool = True) -> set[str]:
    """Absolute names that a file imports, also inside functions; relative imports resolved.

    Without ``for_types``, what stands under ``if TYPE_CHECKING`` at the top of the file is left out: it never runs.
    """
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not for_types:
        tree.body = [
            node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        ]
    for node in ast.walk(tree):
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
    path.write_text("def f():\n    from sgpn_model.train import losses\n")
    assert "sgpn_model.train.losses" in imports("sgpn_arch.layers", path)
    assert floor("sgpn_model.train.losses") > floor("sgpn_arch.layers")


def room(module: str) -> str | None:
    """The room of sgpn_model that a module lies in."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] or None if package == "sgpn_model" else None


@pytest.mark.parametrize(("module", "path"), sorted(modules().items()), ids=sorted(modules()))
def test_imports_only_from_the_rooms_that_its_own_may(module, path):
    own = room(module)
    if own is None:
        return
    allowed = ROOMS[own] | {own}
    wrong = sorted(name for name in imports(module, path) if room(name) not in allowed | {None})
    assert not wrong, f"{module} imports {', '.join(wrong)}"


def test_no_circle():
    """Depth-first over what each file imports, also inside functions; a package's own ``__init__`` is no circle."""
    files = modules()
    graph = {module: imports(module, path, for_types=False) & set(files) for module, path in files.items()}
    state: dict[str, str] = {}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert state.get(module) != "open", f"{' -> '.join([*trail[trail.index(module) :], module])}"
        if module in state:
            return
        state[module] = "open"
        for name in sorted(graph[module]):
            # `from package import module` names the package too.
            if not module.startswith(f"{name}."):
                visit(name, (*trail, module))
        state[module] = "done"

    for module in sorted(graph):
        visit(module, ())


def test_no_two_files_of_one_name_and_none_that_says_nothing():
    names = [path.stem for path in modules().values() if not path.stem.startswith("__")]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice
    assert not VAGUE & set(names)
