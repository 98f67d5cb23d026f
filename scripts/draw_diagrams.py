"""Draws the diagrams of the pages as SVG files, which the site shows in place of their text.

    npm install @mermaid-js/mermaid-cli
    python scripts/draw_diagrams.py --mmdc node_modules/.bin/mmdc --browser /usr/bin/chromium

The site loads nothing from elsewhere, Mermaid neither; code hosts draw the text themselves. A drawing's name is a checksum of its
text. Drawings without a text are deleted.
"""

import argparse
import importlib.util
import json
import subprocess
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


def site_hooks():
    """docs/site_hooks.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "site_hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def diagrams() -> dict[Path, str]:
    """Where the drawing of each diagram lies, and the diagram's text."""
    hooks = site_hooks()
    texts = [
        text for page in sorted(DOCS.rglob("*.md")) for text in hooks.DIAGRAM.findall(page.read_text(encoding="utf-8"))
    ]
    return {hooks.drawing_path(text): text for text in texts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mmdc", default="mmdc", help="mermaid-cli's program (default: mmdc)")
    parser.add_argument("--browser", default="chromium", help="Chromium's program, with its folder (default: chromium)")
    parser.add_argument("-o", "--output", type=Path, help="folder (default: docs/images/diagrams of this project)")
    arguments = parser.parse_args()
    wanted = diagrams()
    folder = arguments.output or DOCS / "images" / "diagrams"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        browser = Path(place, "browser.json")
        browser.write_text(json.dumps({"executablePath": arguments.browser, "args": ["--no-sandbox"]}))
        for path, text in wanted.items():
            if not (folder / path.name).exists():
                source = Path(place, "diagram.mmd")
                source.write_text(text)
                name = ["--svgId", f"diagram-{path.stem}"]
                command = [
                    arguments.mmdc,
                    "-i",
                    source,
                    "-o",
                    folder / path.name,
                    "-p",
                    browser,
                    "-t",
                    "neutral",
                    *name,
                ]
                subprocess.run(command, check=True)
    for path in folder.glob("*.svg"):
        if path.name not in {each.name for each in wanted}:
            path.unlink()


if __name__ == "__main__":
    main()
