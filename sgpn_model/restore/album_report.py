"""The report of an album: each photo before and after, its faces, times, and what was not done and why; as a page or as JSON."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np

from sgpn_arch.files import write_atomically
from sgpn_data.photos import ImageError, read_photo, write_picture
from sgpn_model.restore.record import Done, FaceNote

PREVIEW, CLOSE_UP = 720, 200  # longest side of a photo's picture, side of a face's, in pixels
MOST_FACES = 8  # of a photo that are shown close up, the largest
AROUND = 1.7  # sides of a close-up in those of the face's box
STATES = {
    "restored": "restored",
    "unchanged": "no face restored",
    "before": "done before",
    "failed": "failed",
    "open": "not done",
}


@dataclass
class Row:
    """One photo of the report.

    Attributes:
        source, result: paths. state: a key of STATES. lines: what a user was told of it. faces: see :class:`.FaceNote`.
        seconds: that it took. failed_faces: places in pixels of the photo.
    """

    source: Path
    result: Path
    state: str = "open"
    lines: list[str] = field(default_factory=list)
    faces: list[FaceNote] = field(default_factory=list)
    seconds: float = 0.0
    failed_faces: list[tuple[int, int]] = field(default_factory=list)


class AlbumReport:
    """Gathers what becomes of photos and writes it; threads that finish photos may hand their pictures in at once.

    Args:
        path: .html, a page that needs no server, with its pictures in a folder NAME_files beside it; or .json.
        sources: each photo with its result, in order. about: what else is worth knowing, such as the weights' name.
    """

    def __init__(self, path: Path, sources: Sequence[tuple[Path, Path]], about: dict[str, Any]):
        self.path, self.about = path, about
        self._rows = {result: Row(source, result) for source, result in sources}
        self._start = time.monotonic()
        self._lock = threading.Lock()

    @property
    def has_pictures(self) -> bool:
        """Whether pictures are wanted."""
        return self.path.suffix.lower() == ".html"

    def picture(self, result: Path, moment: str, bgr: np.ndarray, faces: Sequence[FaceNote], scale: int = 1) -> None:
        """Keeps small pictures of a photo and of its faces.

        Args:
            result: says which photo. moment: "before" or "after". bgr: (H, W, 3) uint8. faces: in pixels of the photo.
            scale: how many times larger than the photo ``bgr`` is.
        """
        if not self.has_pictures:
            return
        write_picture(self._picture(result, moment), fitted(bgr, PREVIEW))
        for number, face in enumerate(faces[:MOST_FACES]):
            write_picture(self._picture(result, f"{moment}_{number}"), _close_up(bgr, face, scale))

    def add(self, result: Path, state: str, lines: Sequence[str], done: Done | None) -> None:
        """Notes what became of a photo; ``state`` is a key of STATES."""
        with self._lock:
            row = self._rows[result]
            row.state, row.lines = state, list(lines)
            if done is not None:
                row.faces, row.seconds, row.failed_faces = done.faces, done.seconds, done.failed
        if state == "before" and done is not None and self.has_pictures and not self._picture(result, "after").exists():
            try:
                before, after = read_photo(row.source).bgr, read_photo(result).bgr
            except ImageError as error:
                row.lines.append(str(error))
                return
            self.picture(result, "before", before, done.faces)
            self.picture(result, "after", after, done.faces, max(1, round(max(after.shape) / max(before.shape))))

    def write(self) -> None:
        """Writes the report, of what is known by now.

        Raises:
            ImageError: it cannot be written; the message names the file.
        """
        rows = list(self._rows.values())
        text = self._page(rows) if self.has_pictures else self._json(rows)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(
                self.path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"), durable=False
            )
        except OSError as error:
            raise ImageError(f"{self.path}: cannot be written: {error}") from error

    def _json(self, rows: Sequence[Row]) -> str:
        photos = [{**asdict(row), "source": str(row.source), "result": str(row.result)} for row in rows]
        return json.dumps({**self.about, "seconds": self._seconds(), "photos": photos}, indent=2) + "\n"

    def _page(self, rows: Sequence[Row]) -> str:
        from jinja2 import Environment, StrictUndefined

        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        counts = {state: sum(row.state == state for row in rows) for state in STATES}
        cards = [
            {
                "row": row,
                "source": self._address(row.source),
                "result": self._address(row.result),
                "pair": self._pair(row, ""),
                "faces": [(face, self._pair(row, f"_{number}")) for number, face in enumerate(row.faces[:MOST_FACES])],
            }
            for row in rows
        ]
        return environment.from_string(TEMPLATE).render(
            cards=cards,
            counts={STATES[state]: count for state, count in counts.items() if count},
            states=STATES,
            faces=sum(len(row.faces) for row in rows),
            seconds=self._seconds(),
            about=self.about,
        )

    def _pair(self, row: Row, which: str) -> list[str] | None:
        """Addresses of two pictures, before and after, where both were made."""
        paths = [self._picture(row.result, moment + which) for moment in ("before", "after")]
        shown = row.state not in ("failed", "open") and all(path.exists() for path in paths)
        return [self._address(path) for path in paths] if shown else None

    def _seconds(self) -> float:
        return round(time.monotonic() - self._start, 1)

    def _picture(self, result: Path, moment: str) -> Path:
        name = hashlib.sha256(os.fsencode(os.path.abspath(result))).hexdigest()[:16]
        return self.path.parent / f"{self.path.stem}_files" / f"{name}_{moment}.jpg"

    def _address(self, path: Path) -> str:
        """What a link on the page says for a file."""
        relative = os.path.relpath(path.resolve(), self.path.parent.resolve())
        return quote(Path(os.fsencode(relative).decode(errors="surrogateescape")).as_posix(), errors="surrogateescape")


def fitted(bgr: np.ndarray, longest: int) -> np.ndarray:
    """A picture with no side longer than that."""
    factor = longest / max(bgr.shape[:2])
    if factor >= 1:
        return bgr
    size = (max(1, round(bgr.shape[1] * factor)), max(1, round(bgr.shape[0] * factor)))
    return cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)


def _close_up(bgr: np.ndarray, face: FaceNote, scale: int) -> np.ndarray:
    """(CLOSE_UP, CLOSE_UP, 3): a face and a little around it."""
    reach = max(1, round(AROUND * face.size * scale / 2))
    x, y = round(face.x * scale), round(face.y * scale)
    top, bottom = max(0, reach - y), max(0, y + reach - bgr.shape[0])
    left, right = max(0, reach - x), max(0, x + reach - bgr.shape[1])
    part = bgr[max(0, y - reach) : y + reach, max(0, x - reach) : x + reach]
    if not part.size:
        return np.zeros((CLOSE_UP, CLOSE_UP, 3), np.uint8)
    square = cv2.copyMakeBorder(part, top, bottom, left, right, cv2.BORDER_REPLICATE)
    shrinks = len(square) > CLOSE_UP
    return cv2.resize(square, (CLOSE_UP, CLOSE_UP), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Restored photos</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --bad: #c0392b; }
body { font: 16px/1.45 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-weight: 600; margin-bottom: .2rem; }
.about, .told, figcaption { color: #888; font-size: .88rem; }
.counts { display: flex; flex-wrap: wrap; gap: .5rem; padding: 0; margin: 1rem 0 2rem; list-style: none; }
.counts li { background: var(--soft); border-radius: 1rem; padding: .25rem .9rem; }
article { border: 1px solid var(--line); border-radius: .6rem; padding: 1rem; margin: 0 0 1.5rem; }
article.failed { border-color: var(--bad); }
h2 { font-size: 1.05rem; margin: 0 0 .6rem; overflow-wrap: anywhere; }
.state { font-weight: 400; font-size: .85rem; background: var(--soft); border-radius: 1rem; padding: .1rem .7rem; }
.state { margin-left: .4rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .8rem; }
figure { margin: 0; min-width: 0; }
figure img { width: 100%; height: auto; border-radius: .35rem; display: block; background: var(--soft); }
.faces { display: flex; gap: .8rem; flex-wrap: wrap; margin-top: .8rem; }
.face { display: grid; grid-template-columns: 110px 110px; gap: 3px; }
.face figcaption { grid-column: 1 / 3; }
ul.told { padding-left: 1.1rem; margin: .6rem 0 0; overflow-wrap: anywhere; }
.failed ul.told { color: var(--bad); }
</style>
</head>
<body>
<h1>Restored photos</h1>
<p class="about">Faces: {{ faces }}, photos: {{ cards|length }}, {{ seconds }} s
{% for name, value in about.items() %} · {{ name }}: {{ value }}{% endfor %}</p>
<ul class="counts">{% for state, count in counts.items() %}<li>{{ count }} {{ state }}</li>{% endfor %}</ul>
{% for card in cards %}
<article class="{{ card.row.state }}">
<h2>{{ card.row.source }}<span class="state">{{ states[card.row.state] }}</span></h2>
{% if card.pair %}
<div class="pair">
<figure><a href="{{ card.source }}"><img src="{{ card.pair[0] }}" loading="lazy" alt="before"></a>
<figcaption>before</figcaption></figure>
<figure><a href="{{ card.result }}"><img src="{{ card.pair[1] }}" loading="lazy" alt="after"></a>
<figcaption>after{% if card.row.seconds %}, {{ "%.1f"|format(card.row.seconds) }} s{% endif %}</figcaption></figure>
</div>
{% endif %}
<div class="faces">
{% for face, pair in card.faces if pair %}
<figure class="face">
<img src="{{ pair[0] }}" loading="lazy" alt="face before"><img src="{{ pair[1] }}" loading="lazy" alt="face after">
<figcaption>{{ face.size }} pixels</figcaption>
</figure>
{% endfor %}
</div>
{% if card.row.lines %}
<ul class="told">{% for line in card.row.lines %}<li>{{ line }}</li>{% endfor %}</ul>
{% endif %}
</article>
{% endfor %}
</body>
</html>
"""
