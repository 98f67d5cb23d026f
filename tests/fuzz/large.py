"""What is large: a photo of 100 megapixels, 200 faces in one photo, 3,000 photos in one folder; with the weights that ship."""

import resource
import threading
import time
from pathlib import Path

import cv2
import numpy as np
from skimage.data import astronaut

from fuzz.trying import fault, run

FACES, ROW = 200, 20
PHOTOS = 3000
HEAD = np.s_[0:256, 96:352]  # the astronaut's head and shoulders (rows, columns)


class Large:
    """Three commands that take minutes, one after the other, whatever the random numbers."""

    NAME = "large"
    COUNT = 3
    LIMIT = 1800

    def __init__(self, folder: Path):
        self.cases = [self._hundred_megapixels, self._many_faces, self._many_photos]

    def attempt(self, rng: np.random.Generator, case: Path) -> tuple[str, str | None]:
        """Tries one of the three in the empty folder ``case``; what was tried with what it took, and what is wrong."""
        number = int(case.name.rpartition("_")[2])
        began = time.monotonic()
        what, wrong = self.cases[number % len(self.cases)](case, rng)
        return f"{what} ({time.monotonic() - began:.0f} s)", wrong

    def _hundred_megapixels(self, case: Path, rng: np.random.Generator) -> tuple[str, str | None]:
        photo = cv2.resize(rng.integers(60, 200, (12, 16, 3), np.uint8), (11547, 8660), interpolation=cv2.INTER_CUBIC)
        head = cv2.resize(astronaut()[HEAD][..., ::-1], (1024, 1024), interpolation=cv2.INTER_CUBIC)
        photo[1000:2024, 2000:3024] = head
        cv2.imwrite(str(case / "photo.png"), photo)
        return self._restored(case, "a photo of 100 megapixels", photo, 1, np.s_[3500:, :])

    def _many_faces(self, case: Path, rng: np.random.Generator) -> tuple[str, str | None]:
        head = np.ascontiguousarray(astronaut()[HEAD][..., ::-1])
        photo = np.tile(head, (FACES // ROW, ROW, 1))
        photo = np.vstack([photo, cv2.resize(rng.integers(60, 200, (2, 40, 3), np.uint8), (photo.shape[1], 600))])
        cv2.imwrite(str(case / "photo.png"), photo)
        return self._restored(case, f"{FACES} faces in one photo", photo, FACES, np.s_[-300:, :])

    def _restored(
        self, case: Path, what: str, photo: np.ndarray, faces: int, far: tuple[slice, slice]
    ) -> tuple[str, str | None]:
        memory = Memory()
        said = run("restore", case / "photo.png", "-o", case / "out", "--device", "cpu")
        what = f"{what}: at most {memory.stop()[1]} MB"
        if fault(said) or said.code:
            return what, fault(said, codes=(0,))
        result = cv2.imread(str(case / "out" / "photo.png"))
        if result.shape != photo.shape or (result[far] != photo[far]).any():
            return what, "the photo is another one far from its faces"
        found = int(said.text.split("restored ")[1].split()[0])
        return what, None if found == faces else f"{found} faces of {faces} were found"

    def _many_photos(self, case: Path, rng: np.random.Generator) -> tuple[str, str | None]:
        (case / "in").mkdir()
        head = np.ascontiguousarray(astronaut()[HEAD][..., ::-1])
        for number in range(PHOTOS):
            photo = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (480, 360), interpolation=cv2.INTER_CUBIC)
            photo[50 : 50 + len(head), 100 : 100 + len(head)] = head
            picture = photo if number % 20 == 0 else photo[:40, :60]  # so that it takes minutes, not hours
            cv2.imwrite(str(case / "in" / f"{number:04}.jpg"), picture)
        memory = Memory()
        said = run("restore", case / "in", "-o", case / "out", "--device", "cpu")
        after_a_tenth, most = memory.stop()
        results = len(list((case / "out").glob("*.jpg")))
        what = f"{PHOTOS} photos in one folder: {after_a_tenth} MB after a tenth of the time, at most {most} MB"
        if fault(said) or said.code:
            return what, fault(said, codes=(0,))
        if results != PHOTOS:
            return what, f"{results} results"
        return what, None if most < 1.25 * after_a_tenth + 100 else "memory grows"


class Memory:
    """Looks at this process's memory ten times a second, from when it is made until it is stopped."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.seen.append(pages * resource.getpagesize() >> 20)

    def stop(self) -> tuple[int, int]:
        """Megabytes: the most of the first tenth of the time, and of all of it."""
        self._ended.set()
        self._thread.join()
        return max(self.seen[: max(1, len(self.seen) // 10)], default=0), max(self.seen, default=0)
