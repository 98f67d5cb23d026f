"""What a program may rely on, the names of ``sgpn`` and the methods of its classes, is what public_surface.txt lists."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import sgpn

LIST = Path(__file__).with_name("public_surface.txt")
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def surface() -> list[str]:
    """One line for each public function, class and method, as the source writes it; ``forward`` is how modules are called."""
    lines = []
    for name in sorted(set(sgpn.__all__) - {"__version__"}):
        module = importlib.import_module(getattr(sgpn, name).__module__)
        node = next(node for node in ast.parse(inspect.getsource(module)).body if getattr(node, "name", None) == name)
        if isinstance(node, FUNCTION):
            lines.append(signature(node, name))
        else:
            methods = [member for member in node.body if isinstance(member, FUNCTION)]
            lines += [signature(method, f"{name}.{method.name}") for method in methods if is_public(method.name)]
    return lines


def signature(node: FUNCTION, name: str) -> str:
    told = [ast.unparse(decorator) for decorator in node.decorator_list]
    kind = "".join(f"@{word} " for word in told if word in ("property", "classmethod", "staticmethod"))
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{kind}{name}({ast.unparse(node.args)}){returns}"


def is_public(method: str) -> bool:
    return not method.startswith("_") or method in ("__init__", "__call__")


def test_the_public_surface_is_the_list():
    listed, found = set(LIST.read_text(encoding="utf-8").splitlines()), set(surface())
    changes = [f"- {line}" for line in sorted(listed - found)] + [f"+ {line}" for line in sorted(found - listed)]
    if changes:
        pytest.fail(
            "the public surface of sgpn changed. If that is meant, remove (-) and add (+) these lines in "
            "tests/public_surface.txt, and tell users in CHANGELOG.md:\n" + "\n".join(changes),
            pytrace=False,
        )


def test_every_public_name_has_a_docstring():
    assert [name for name in sgpn.__all__ if name != "__version__" and not inspect.getdoc(getattr(sgpn, name))] == []
