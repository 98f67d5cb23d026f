"""Hooks of mkdocs.yml: pages of files outside docs/, pages of the source that pages link to, diagrams, the examples.

In the repository, a link of a page leads to a file. On the site it leads to that file's page here, and where the link's text
names what the file defines, to its line: so the site needs no code host, and works without a network.
"""

import ast
import hashlib
import json
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # so that scripts/draw_diagrams.py and the tests can do without mkdocs
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
# Files outside docs/ that are pages -> their places on the site.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/README.md": "examples/index.md",
    "findings/README.md": "findings.md",
    "sgpn_arch/assets/README.md": "open_model_file.md",
}
LANGUAGES = {".py": "python", ".yml": "yaml", ".sh": "bash", ".toml": "toml"}
FENCED = re.compile(r"^(```+|~~~+).*?^\1 *$", re.MULTILINE | re.DOTALL)
DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s#:]+)(#[\w-]*)?\)")
NAMED_LINK = re.compile(r"(?:\[`([\w.]+)`)?\]\(([^()\s#:]+)(#[\w-]*)?\)")
PLAIN_CODE = re.compile(r"(?<=<code>)[^<>\n]+(?=</code>)")
SHORT_WORD = re.compile(r"(?<!\S)\S{1,24}(?!\S)")
ROLE = re.compile(r":(?:meth|func|class|attr|data|mod):<code>[~.]*([\w.]+)</code>")


# ---------------------------------------------------------------------------------------------------------------------
# Which pages there are


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Adds the pages outside docs/, the examples, and whatever source file a page links to."""
    from mkdocs.structure.files import File

    def add(place: str, content: str) -> None:
        files.append(File.generated(config, place, content=content))

    for name, place in PAGES.items():
        add(place, (ROOT / name).read_text(encoding="utf-8"))
    for path in sorted((ROOT / "examples").glob("*.py")):
        add(f"examples/{path.stem}.md", example_page(path))
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        add(f"examples/{path.stem}.md", notebook_page(path))
    linked = {
        target
        for file in files.documentation_pages()
        for match in LINK.finditer(FENCED.sub("", file.content_string))
        if (target := outside(repository_path(file.src_uri), match[1]))
    }
    for target in sorted(linked):
        add(f"source/{target}.md", source_page(target))
    return files


def repository_path(place: str) -> str:
    """Where in the repository the page at a place of the site comes from."""
    return next((name for name, page in PAGES.items() if page == place), f"docs/{place}")


def outside(page: str, link: str) -> str | None:
    """The file or folder that a page's link leads to, relative to the repository, if that needs a page of source."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    is_page = target in PAGES or target.startswith(("docs/", "..")) or example_place(target)
    return None if is_page or not (ROOT / target).exists() else target


def example_place(target: str) -> str | None:
    path = Path(target)
    is_example = path.parent.name == "examples" and path.suffix in (".py", ".ipynb")
    return f"examples/{path.stem}.md" if is_example else None


def source_page(target: str) -> str:
    """A file with its lines' numbers, or what a folder holds."""
    path = ROOT / target
    head = f"---\ntitle: {path.name}\nhide: [toc]\nsearch: {{exclude: true}}\n---\n\n# `{target}`\n\n"
    if path.is_dir():
        return head + "".join(f"- `{each.name}`\n" for each in sorted(path.iterdir()) if not each.name.startswith("_"))
    return (
        f'{head}````````{LANGUAGES.get(path.suffix, "text")} linenums="1"\n{path.read_text(encoding="utf-8")}````````\n'
    )


def example_page(path: Path) -> str:
    """An example's first sentences, and the program itself."""
    text = path.read_text(encoding="utf-8")
    told = ast.get_docstring(ast.parse(text)) or ""
    title, _, rest = told.partition("\n")
    return f"# {title.rstrip('.')}\n\n{rest.strip()}\n\n`examples/{path.name}`:\n\n````````python\n{text}````````\n"


def notebook_page(path: Path) -> str:
    """A notebook's text and code; what it shows is seen by running it."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = ["".join(cell["source"]) for cell in cells]
    shown = [
        part if cell["cell_type"] == "markdown" else f"```python\n{part}\n```"
        for cell, part in zip(cells, parts, strict=True)
    ]
    return "\n\n".join([shown[0], f"This is the notebook `examples/{path.name}`.", *shown[1:]]) + "\n"


# ---------------------------------------------------------------------------------------------------------------------
# What a page says


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Leads links to pages of the site, and puts the drawing in a diagram's place."""
    here = repository_path(page.file.src_uri)
    if here == "README.md":
        page.meta["hide"] = ["navigation"]

    def lead(match: re.Match) -> str:
        name, link, anchor = match[1], match[2], match[3] or ""
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), link))
        place = PAGES.get(target) or example_place(target)
        if place is None and outside(here, link):
            place = f"source/{target}.md"
            anchor = f"#__codelineno-0-{line}" if name and (line := line_of(target, name)) else ""
        if place is None:
            place = target.removeprefix("docs/")
        there = posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")
        return f"{f'[`{name}`' if name else ''}]({there}{anchor})"

    def outside_code(text: str) -> str:
        parts, end = [], 0
        for block in FENCED.finditer(text):
            parts += [NAMED_LINK.sub(lead, text[end : block.start()]), block[0]]
            end = block.end()
        return "".join([*parts, NAMED_LINK.sub(lead, text[end:])])

    drawn = DIAGRAM.sub(lambda block: f'<div class="diagram">\n{drawing(block[1])}\n</div>', markdown)
    return outside_code(drawn)


def line_of(target: str, name: str) -> int | None:
    """The line where a Python file defines a function, class or constant, ``Class.name``, or a test by its bare name."""
    if not target.endswith(".py"):
        return None
    text = (ROOT / target).read_text(encoding="utf-8")
    owner, _, bare = name.rpartition(".")
    start = text.find(f"class {owner}") if owner else 0
    found = re.compile(rf"^ *(?:(?:async )?def {bare}\(|class {bare}\b|{bare}\b[^\n=(]*=)", re.MULTILINE).search(
        text, max(start, 0)
    )
    return text.count("\n", 0, found.start()) + 1 if found else None


def drawing(source: str) -> str:
    """The drawing of a diagram's text, as scripts/draw_diagrams.py made it.

    Raises:
        FileNotFoundError: it was not drawn since the text changed.
    """
    return drawing_path(source).read_text(encoding="utf-8")


def drawing_path(source: str) -> Path:
    """Where the drawing of a diagram's text lies: its name is a checksum of the text, so it is never an old one."""
    return ROOT / "docs" / "images" / "diagrams" / f"{hashlib.sha256(source.encode()).hexdigest()[:12]}.svg"


def on_page_content(html: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Docstrings refer to each other as Sphinx has it; here the name alone is shown. Files are named by their own place.

    A short word of code is not divided where a line ends: without that, ``--set`` may end a line after its first hyphen.
    """
    html = ROLE.sub(r"<code>\1</code>", html).replace(".ci/typings/sgpn_data/", "data/")
    return PLAIN_CODE.sub(lambda code: SHORT_WORD.sub(r'<span class="word">\g<0></span>', code[0]), html)
