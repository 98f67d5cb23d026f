"""One worker: it holds a restorer, and takes a chunk of photos from their sources to their results and their rows."""

import errno
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from sgpn_arch.inference.memory import keep_freed_memory
from sgpn_data.photos import take_large_photos
from sgpn_model.bulk.folders import Folder, open_url
from sgpn_model.bulk.listing import result_name, waiting
from sgpn_model.bulk.table import Table, digests
from sgpn_model.restore.album import Job, Watcher, restore_jobs
from sgpn_model.restore.record import Done
from sgpn_model.restore.restorer import FaceRestorer, RestoredFace

TRANSFERS = 8  # photos that are fetched and sent at once, where they lie elsewhere
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # what the destination says and a photo is not to blame for


@dataclass(frozen=True)
class Work:
    """What workers are told.

    Attributes:
        destination: folder or URL. run: number of this run. prefix: what the sources begin with and names of results do not.
        ext: of results, see :func:`.result_name`. building: what ``FaceRestorer.from_pretrained`` takes.
        options: what :func:`.restore_jobs` takes. folder: the listed folder; "" for a manifest. done: sorted digests of the
            photos that are to be left out.
    """

    destination: str
    run: int
    prefix: str = ""
    ext: str = "auto"
    building: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    folder: str = ""
    done: np.ndarray = field(default_factory=lambda: digests([]))


class Trouble(Exception):
    """The source or the destination is at fault, and not a photo: the whole job had better stop."""


@dataclass
class Photo:
    """A photo on its way.

    Attributes:
        source: its path or URL. name: of its result. content: its bytes, where the manifest has them. faces: those restored.
    """

    source: str
    name: str
    content: bytes | None
    faces: Sequence[RestoredFace] = ()


class Worker(Watcher):
    """Called with chunks of photos, by Ray Data; each call writes the results, and then the rows as one file."""

    doing, done = "restoring", "restored"  # as users are told

    def __init__(self, work: Work):
        keep_freed_memory()
        take_large_photos()
        self.work = work
        self.destination = Folder(work.destination)
        self.table = Table(self.destination)
        self._photos: dict[Path, Photo] = {}  # target -> those under way
        self.build()

    def build(self) -> None:
        """Makes what works on the photos ready."""
        self.restorer = FaceRestorer.from_pretrained(**self.work.building)

    def __call__(self, chunk: pa.Table) -> pa.Table:
        """Restores a chunk.

        Args:
            chunk: ``source``, and ``content`` where the photos themselves are at hand.

        Returns:
            One row of counts: rows of the chunk, those that were done before, photos, failed, faces; and ``trouble``, why the
            job should stop, or null.
        """
        came, chunk = len(chunk), waiting(chunk, self.work.done)
        contents = chunk["content"].to_pylist() if "content" in chunk.column_names else [None] * len(chunk)
        photos = {  # a manifest may name a photo twice
            source: Photo(source, result_name(source.removeprefix(self.work.prefix), self.work.ext), content)
            for source, content in zip(chunk["source"].to_pylist(), contents, strict=True)
        }
        rows: list[dict] = []
        trouble = None
        try:
            self.work_on(list(photos.values()), rows)
        except Trouble as error:
            trouble = str(error)
        try:
            if rows:
                self.table.add(self.work.run, rows)
        except Exception as error:
            trouble, rows = trouble or f"{self.work.destination}: the table cannot be written: {told(error)}", []
        counts = {
            "rows": came,
            "before": came - len(chunk),
            "photos": len(rows),
            "failed": sum(row.get("error") is not None for row in rows),
            "faces": sum(row["faces"] for row in rows),
        }
        return pa.table(
            {**{name: [count] for name, count in counts.items()}, "trouble": pa.array([trouble], pa.string())}
        )

    @staticmethod
    def settle(destination: Folder, table: Table) -> None:
        """Removes what a worker that died left behind; called when the job has ended."""

    def pasted(self, job: Job, faces: Sequence[RestoredFace]) -> None:
        """Keeps what the table says of a photo's faces."""
        self._photos[job.target].faces = faces

    def work_on(self, photos: Sequence[Photo], rows: list[dict]) -> None:
        """Restores photos, and adds a row for each whose result is where it belongs, or that failed.

        Raises:
            Trouble: the other photos have no rows.
        """
        coming: list[tuple[Photo, Job]] = []
        sending: list[tuple[Future, dict]] = []
        with tempfile.TemporaryDirectory(prefix="sgpn-") as folder, ThreadPoolExecutor(TRANSFERS) as pool:

            def jobs() -> Iterator[Job]:
                for photo, fetching in ahead(pool, lambda photo: self._fetch(photo, Path(folder)), photos):
                    try:
                        coming.append((photo, fetching.result()))
                    except Exception as error:
                        rows.append(self.failed(photo, error, photo.source))
                        continue
                    yield coming[-1][1]

            try:
                for outcome in restore_jobs(self.restorer, jobs(), watcher=self, **self.work.options):
                    photo, job = coming[outcome.index]
                    if outcome.error is not None:
                        rows.append(self.failed(photo, outcome.error, str(job.source)))
                    else:
                        row = self._done(photo, outcome.result)
                        sending.append((pool.submit(self._send, job, photo, Path(folder)), row))
                    self._photos.pop(job.target, None)
                    photo.faces = ()
            finally:
                rows += [row for sent, row in sending if sent.exception() is None]
        for sent, row in sending:
            if sent.exception() is not None:
                raise Trouble(f"{row['destination']}: cannot be written: {told(sent.exception())}")

    def _done(self, photo: Photo, done: Done) -> dict:
        """The row of a restored photo."""
        faces = photo.faces
        found = [face.detection for face in faces]
        many = len(done.failed)
        return {
            "source": photo.source,
            "destination": self.destination.told(photo.name),
            "faces": len(faces),
            "boxes": [None if each is None else each.box.tolist() for each in found],
            "scores": [None if each is None else each.score for each in found],
            "coefficients": [face.coefficients.tolist() for face in faces],
            "remarks": done.remarks,
            "seconds": done.seconds,
            "error": f"the networks make NaN or infinity of {many} faces, which stay as they were" if many else None,
        }

    def failed(self, photo: Photo, error: Exception, path: str) -> dict:
        """The row of a photo that cannot be restored.

        Raises:
            Trouble: not for a reason of its own.
        """
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and cause.errno in FULL:
            raise Trouble(f"{self.work.destination}: cannot be written: {cause.strerror}")
        if isinstance(cause, FileNotFoundError) and self.work.folder:
            system, folder = open_url(self.work.folder)
            system.invalidate_cache()
            if not system.exists(folder):
                raise Trouble(f"{self.work.folder}: is not there any more")
        return {"source": photo.source, "faces": 0, "error": told(error).replace(path, photo.source)}

    def _fetch(self, photo: Photo, folder: Path) -> Job:
        """A photo as a file of this machine, and where its result is to be made."""
        source = fetch(photo, folder)
        target = folder / f"out-{id(photo):x}{PurePosixPath(photo.name).suffix}"
        if self.destination.local:
            target = self.destination.local / photo.name
            if target.resolve() == source.resolve():
                raise ValueError("the result would overwrite the photo; choose another destination with -o")
        self._photos[target] = photo
        return Job(source, target, target.stem)

    def _send(self, job: Job, photo: Photo, folder: Path) -> None:
        """Brings a result to its place for good, and removes what is not needed here any more."""
        if self.destination.local:
            with open(job.target, "rb") as file:
                os.fsync(file.fileno())
        else:
            self.destination.send(job.target, photo.name)
            job.target.unlink()
        if job.source.parent == folder:
            job.source.unlink()


def fetch(photo: Photo, folder: Path) -> Path:
    """A photo as a file of this machine; in ``folder``, unless it is one already."""
    source = folder / f"in-{id(photo):x}{PurePosixPath(photo.source).suffix}"
    if photo.content is not None:
        source.write_bytes(photo.content)
        photo.content = None
        return source
    system, path = open_url(photo.source)
    if isinstance(system, LocalFileSystem):
        return Path(path)
    system.get_file(path, str(source))
    return source


def ahead(
    pool: ThreadPoolExecutor, do: Callable[[Photo], Any], photos: Sequence[Photo]
) -> Iterator[tuple[Photo, Future]]:
    """Each photo with the future of its job; a few are begun before their turn."""
    begun: deque[Future] = deque()
    for number, photo in enumerate(photos):
        for next_one in photos[number + len(begun) : number + TRANSFERS]:
            begun.append(pool.submit(do, next_one))
        yield photo, begun.popleft()


def told(error: BaseException | None) -> str:
    """What a row says of an error."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
