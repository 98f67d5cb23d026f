"""How far an album has come, by the work that its photos are: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from sgpn_data.photos import photo_bytes
from sgpn_model.restore.album import Job, Watcher

# The work of a face and of a photo, in seconds of one core as they were measured with the weights that ship.
SECONDS_PER_FACE, SECONDS_PER_PHOTO, SECONDS_PER_MEGAPIXEL = 1.1, 0.1, 0.6
SECONDS_PER_MEGAPIXEL_OF_NETWORK = 800.0  # Real-ESRGAN
BEFORE = 0.5  # of a photo's own work is done when it is searched, the rest when it is written
SECONDS_BETWEEN_LINES = 15
BAR = "{desc}: {percentage:3.0f}%|{bar}| {postfix} [{elapsed}<{remaining}]"


class Progress(Watcher):
    """Counts work: what photos and faces take. How many faces the photos still hold is guessed from those so far.

    Args:
        jobs: all of them. hidden: whether nothing is shown, as for a single photo. enlarging: whether a network makes the
            background.
    """

    def __init__(self, jobs: Sequence[Job], hidden: bool, enlarging: bool = False):
        self._works = {
            job.target: SECONDS_PER_PHOTO + SECONDS_PER_MEGAPIXEL * photo_bytes(job.source) / 3e6
            for job in ([] if hidden else jobs)
        }
        self._backgrounds = {
            job.target: SECONDS_PER_MEGAPIXEL_OF_NETWORK * photo_bytes(job.source) / 3e6 for job in jobs if enlarging
        }
        self._enlarged: dict[Path, float] = {}
        self._total, self._photos = sum(self._works.values()) + sum(self._backgrounds.values()), len(jobs)
        self._worked = 0.0
        self._prepared = self._found = self._restored = self._finished = 0
        self._lock = threading.Lock()
        self._start = self._told = time.monotonic()
        self._plain = not hidden and not sys.stderr.isatty()
        self._bar = tqdm(
            total=1.0, desc="restoring", bar_format=BAR, smoothing=0, disable=hidden or self._plain, file=sys.stderr
        )

    def prepared(self, job: Job, faces: int) -> None:
        """A photo was searched."""
        with self._lock:
            self._worked += BEFORE * self._works.get(job.target, 0)
            self._prepared += 1
            self._found += faces
            self._show()

    def restored(self, faces: int) -> None:
        """Faces were restored."""
        with self._lock:
            self._restored += faces
            self._show()

    def enlarged(self, job: Job, part: float) -> None:
        """A part of a background is made."""
        with self._lock:
            self._enlarged[job.target] = part * self._backgrounds.get(job.target, 0)
            self._show()

    def finished(self, job: Job) -> None:
        """A photo was written, or has failed."""
        with self._lock:
            self._worked += (1 - BEFORE) * self._works.get(job.target, 0)
            self._enlarged[job.target] = self._backgrounds.get(job.target, 0)
            self._finished += 1
            self._show()

    @property
    def part(self) -> float:
        """How much of the work is done, 0..1, as far as can be told."""
        waiting = self._photos - self._prepared
        faces = self._found + waiting * (self._found + 1) / (self._prepared + 1)
        done = self._worked + SECONDS_PER_FACE * self._restored + sum(self._enlarged.values())
        return done / max(self._total + SECONDS_PER_FACE * faces, done, SECONDS_PER_PHOTO)

    def _show(self) -> None:
        counts = f"{self._finished} of {self._photos} photos, {self._restored} faces"
        self._bar.n = self.part
        self._bar.set_postfix_str(counts)
        now = time.monotonic()
        if self._plain and now - self._told >= SECONDS_BETWEEN_LINES and self._finished < self._photos:
            self._told = now
            left = (now - self._start) * (1 / self.part - 1) if self.part else 0
            told = f", about {tqdm.format_interval(left)} left" if self.part else ""
            print(f"sgpn: {counts}, {self.part:.0%}{told}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()
