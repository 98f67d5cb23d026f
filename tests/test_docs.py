"""What the documentation points to is there: links lead to files, code names to what a file defines, and no file is forgotten."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from oracles.script import load_script

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path for place in (".", "docs", "docs/api", "examples", "findings") for path in (ROOT / place).glob("*.md")
)
FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\[\]]*)\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
CODE_NAME = re.compile(r"`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)?)`")


def links(text: str) -> list[tuple[str, str]]:
    """(text, target) of every link and picture that is not in a block of code."""
    return LINK.findall(FENCED.sub("", text))


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings: lower case, spaces as hyphens, punctuation left out."""
    headings = HEADING.findall(FENCED.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def definitions(path: Path) -> set[str]:
    """The functions, classes and constants that a module defines, and ``Class.name`` for what a class does.

    A test's bare name will do for a method, as pytest finds it by that.
    """
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names.update(bound(node))
        if isinstance(node, ast.ClassDef):
            members = {name for member in node.body for name in bound(member)}
            names.update(f"{node.name}.{name}" for name in members)
            names.update(name for name in members if name.startswith("test_"))
    return names


def bound(node: ast.stmt) -> set[str]:
    """The names that a statement defines; an import defines none."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}


def faults(page: Path) -> list[str]:
    """What is wrong with the links of a page, one line each."""
    return [
        f"[{text}]({target}): {fault}"
        for text, target in links(page.read_text(encoding="utf-8"))
        if (fault := fault_of(page, text, target))
    ]


def fault_of(page: Path, text: str, target: str) -> str | None:
    if re.match(r"[a-z][a-z0-9+.-]*:", target):  # https:, mailto:
        return None
    address, _, anchor = target.partition("#")
    path = (page.parent / address).resolve() if address else page
    if not path.exists():
        return "there is no such file"
    if anchor and path.suffix == ".md" and anchor not in anchors(path):
        return f"{path.name} has no such heading"
    name = CODE_NAME.fullmatch(text)
    if name and path.suffix == ".py" and name[1] != path.name and name[1] not in definitions(path):
        return f"{path.name} does not define {name[1]}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    assert not faults(page)


def test_the_method_is_linked_throughout():
    """Were the links written in a way that is not recognised, nothing would be checked."""
    targets = [target for _, target in links((ROOT / "docs" / "method.md").read_text(encoding="utf-8"))]
    assert sum(target.startswith("../tests/") for target in targets) > 100
    assert sum(target.startswith("../sgpn_arch/") for target in targets) > 50


def test_the_page_on_the_architecture_names_every_file_of_the_library_and_no_other():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = {Path(name).name for name in re.findall(r"`([\w/]+\.py)`", page)}
    files = {path.name for folder in ("sgpn_arch", "data", "sgpn_model") for path in (ROOT / folder).rglob("[!_]*.py")}
    assert named == files | {"sgpn.py", "test_import_graph.py"}


def stations(page: Path) -> list[tuple[str, str]]:
    """(words, file) of every station in the page's diagrams that names a file."""
    diagrams = re.findall(r"^```mermaid\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [found for diagram in diagrams for found in re.findall(r'\["([^"]+)<br>([\w/]+\.py)"\]', diagram)]


def test_the_stations_of_the_diagrams_are_there():
    found = stations(ROOT / "docs" / "architecture.md")
    assert len(found) > 20
    for words, file in found:
        assert (ROOT / file).is_file(), file
        name = re.match(r"[\w.]+", words)[0]
        assert name in {*definitions(ROOT / file), "the"}, f"{file} does not define {name}"


def test_every_finding_is_in_the_index():
    listed = {target for _, target in links((ROOT / "findings" / "README.md").read_text(encoding="utf-8"))}
    assert {path.name for path in (ROOT / "findings").glob("*.sh")} == {name for name in listed if name.endswith(".sh")}


def test_the_diagrams_are_drawn():
    """The site shows drawings, which scripts/draw_diagrams.py makes of the text; their names are checksums of it."""
    drawn = load_script("draw_diagrams").diagrams()
    assert len(drawn) >= 3
    assert set((ROOT / "docs" / "images" / "diagrams").glob("*.svg")) == set(drawn)


CODE = """
import os
from math import pi as PI

LIMIT = 3
FIRST, SECOND = 1, 2
KIND: str = "a"

def draw():
    inner = 1

class Model:
    rate: float = 0.1
    def fit(self): ...

class TestModel:
    def test_fits(self): ...
"""


@pytest.mark.parametrize(
    ("link", "fault"),
    [
        ("[`draw`](code.py)", None),
        ("[`Model`](code.py), [`Model.fit`](code.py) and [`Model.rate`](code.py#L14)", None),
        ("[`LIMIT`](code.py) [`SECOND`](code.py) [`KIND`](code.py)", None),
        ("[`TestModel.test_fits`](code.py) or [`test_fits`](code.py)", None),
        ("[`code.py`](code.py), [what it does](code.py), [`fit it`](code.py), [folder](.)", None),
        ("![a picture](code.py) [elsewhere](https://example.org/missing.py) [mail](mailto:a@example.org)", None),
        ("[below](#two-words-so-it-is) and [here](page.md#two-words-so-it-is)", None),
        ("```\n[a](missing.py)\n```", None),
        ("[a](missing.py)", "no such file"),
        ("![a](missing.png)", "no such file"),
        ("[`draw`](missing.py)", "no such file"),
        ("[`paint`](code.py)", "code.py does not define paint"),
        ("[`fit`](code.py)", "does not define fit"),
        ("[`Model.fly`](code.py)", "does not define Model.fly"),
        ("[`draw.inner`](code.py)", "does not define draw.inner"),
        ("[`inner`](code.py)", "does not define inner"),
        ("[`os`](code.py)", "does not define os"),
        ("[`PI`](code.py)", "does not define PI"),
        ("| [`draw`](code.py)<br>[`test_flies`](code.py) |", "does not define test_flies"),
        ("[below](#three-words)", "no such heading"),
    ],
)
def test_the_checker_sees_what_is_wrong(tmp_path, link, fault):
    (tmp_path / "code.py").write_text(CODE)
    (tmp_path / "page.md").write_text(f"# Two words: so it `is`\n\n{link}\n")
    found = faults(tmp_path / "page.md")
    if fault is None:
        assert found == []
    else:
        assert len(found) == 1 and fault in found[0]
