"""What ``sgpn bulk`` and ``sgpn align --shards`` run: photos that have no row yet go through workers on Ray Data.

What kills a worker goes alone.
"""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from sgpn_model.bulk.folders import Folder
from sgpn_model.bulk.listing import MANIFESTS, Manifest, list_photos, waiting
from sgpn_model.bulk.table import Table
from sgpn_model.bulk.worker import Work, Worker
from sgpn_model.config.device import usable_cores
from sgpn_model.restore.album import InputError

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell Ray's makers that it is used
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it calls an error how Ray Data itself starts its actors
import ray
from ray.exceptions import RayError

CHUNK = 64  # photos
ROWS = 100_000  # of a list of photos that go to Ray at once
KILLED = "its worker died while this photo was worked on, alone, too; perhaps its memory did not suffice"
# Cores, by Ray's account, of what reads a manifest; it must not wait until a worker leaves some.
LIGHT = 0.01


class BulkError(InputError):
    """The job had to stop. What is finished stays, and the next run goes on there."""


@dataclass
class Tally:
    """What a run did.

    Attributes:
        done: what was done with the faces, as users are told. before: photos that were done before. photos: that have a row
            now. failed: of those. faces: that were restored or cut out.
    """

    done: str = Worker.done
    before: int = 0
    photos: int = 0
    failed: int = 0
    faces: int = 0

    def add(self, row: Mapping[str, int]) -> None:
        """Counts what a worker says of a chunk."""
        self.before += row["before"]
        self.photos += row["photos"]
        self.failed += row["failed"]
        self.faces += row["faces"]

    def __str__(self) -> str:
        text = f"{self.done} {self.faces} faces in {self.photos - self.failed} photos"
        text += f"; {self.before} photos done before" if self.before else ""
        return text + (f"; {self.failed} photos failed" if self.failed else "")


@dataclass
class Bulk:
    """A job.

    Attributes:
        source: a folder, a URL, or a manifest (.parquet, .csv). destination: a folder or URL. column: of the manifest.
        ext: see :func:`.result_name`. retry_failed: do again what failed in an earlier run.
        building: what ``FaceRestorer.from_pretrained`` takes, or ``Aligner.build``. options: what :func:`.restore_jobs` takes.
        settings: what results depend on besides their photos.
        workers: how many; None is as many as fit. cores: of each worker that has no GPU. chunk: photos that a worker takes at
            once, and rows of a file of the table. address: of a Ray cluster; None is this machine alone.
        worker: the class of the workers.
    """

    source: str
    destination: str
    column: str | None = None
    ext: str = "auto"
    retry_failed: bool = False
    building: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    workers: int | None = None
    cores: int = 1
    chunk: int = CHUNK
    address: str | None = None
    worker: type[Worker] = Worker

    def run(self) -> Tally:
        """Restores what is not done yet, and leaves one row for each photo.

        Raises:
            InputError: before any work: there is no such source, it has no photo, or the destination holds other results.
            BulkError: the source vanished, the manifest is damaged, or the destination cannot be written.
        """
        destination, tally = Folder(self.destination), Tally(self.worker.done)
        table = Table(destination)
        photos, prefix, folder = self._photos(destination)
        table.agree(self.settings)
        run = table.next_run()
        failed_from = run if self.retry_failed else 0
        work = Work(destination.url, run, prefix, self.ext, self.building, self.options, folder)
        for chunk in (self.chunk, 1):
            if self._pass(photos, replace(work, done=table.done(failed_from)), chunk, tally):
                break
        else:
            for rest in self._left(photos, table.done(failed_from)):
                table.add(run, [{"source": source, "faces": 0, "error": KILLED} for source in rest])
                tally.photos, tally.failed = tally.photos + len(rest), tally.failed + len(rest)
        table.settle()
        self.worker.settle(destination, table)
        return tally

    def _photos(self, destination: Folder) -> tuple[pa.Table | Manifest, str, str]:
        """The photos, what their sources begin with, and the folder that they were listed from, if they were.

        Photos whose bytes are in the manifest stay there; all others are known by name from the beginning.
        """
        if self.source.rstrip("/").endswith(MANIFESTS):
            manifest = Manifest(self.source, self.column)
            return manifest if manifest.has_bytes else manifest.photos(), "", ""
        folder = Folder(self.source)
        return list_photos(folder, destination), folder.told(""), folder.url

    def _pass(self, photos: pa.Table | Manifest, work: Work, chunk: int, tally: Tally) -> bool:
        """Sends what is not done to the workers, in chunks; whether all of it came back."""
        came, count = 0, photos.count() if isinstance(photos, Manifest) else len(photos)
        if isinstance(photos, pa.Table):
            photos = waiting(photos, work.done)
            came = count - len(photos)
            tally.before = came - tally.photos
        if came == count:
            return True
        self._connect()
        pool, resources = self._pool(work)
        results = (
            _dataset(photos, errors=-1)
            .repartition(target_num_rows_per_block=chunk)
            .map_batches(
                self.worker,
                fn_constructor_args=(work,),
                batch_size=chunk,
                batch_format="pyarrow",
                compute=pool,
                max_restarts=-1,  # of a worker that died
                max_task_retries=0,  # of what it worked on: that goes alone
                **resources,
            )
        )
        bar = tqdm(desc=self.worker.doing, unit="photo", total=count, initial=came, disable=None, file=sys.stderr)
        try:
            with bar:
                for batch in results.iter_batches(batch_size=None, batch_format="pyarrow"):
                    for row in batch.to_pylist():
                        came += row["rows"]
                        bar.update(row["rows"])
                        tally.add(row)
                        if row["trouble"]:
                            raise BulkError(
                                f"{row['trouble']}; what is finished stays, and the same command goes on there"
                            )
        except RayError as error:
            raise BulkError(f"{self.source}: the workers cannot work: {_cause(error)}") from error
        return came >= count

    def _left(self, photos: pa.Table | Manifest, done: np.ndarray) -> Iterator[list[str]]:
        """The sources of the photos that are not done, some at a time."""
        try:
            for batch in _dataset(photos, errors=0).iter_batches(batch_size=CHUNK, batch_format="pyarrow"):
                rest = waiting(batch, done)["source"].to_pylist()
                if rest:
                    yield rest
        except RayError as error:
            raise BulkError(f"{self.source}: cannot be read: {_cause(error)}") from error

    def _connect(self) -> None:
        """Joins the cluster, or begins one on this machine."""
        if ray.is_initialized():
            return
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if not self.address:
            # One core more by Ray's account, so that what goes to the workers need not wait for them.
            cores = max(usable_cores(), (self.workers or 0) * self.cores) + 1
            quiet |= {"num_cpus": cores, "include_dashboard": False}
        try:
            ray.init(self.address or "local", **quiet)
        except Exception as error:  # it raises that itself
            where = f"cannot join the cluster {self.address}" if self.address else "cannot start on this machine"
            raise BulkError(f"Ray {where}: {error}") from error
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)

    def _pool(self, work: Work) -> tuple[ray.data.ActorPoolStrategy, dict[str, float]]:
        """How many workers there are, and what each takes."""
        has = ray.cluster_resources()
        device = work.building.get("device", "auto")
        gpu = device.startswith("cuda") or (device == "auto" and has.get("GPU", 0) >= 1)
        fit = has.get("GPU", 0) if gpu else (has.get("CPU", 1) - 1) // self.cores
        workers = self.workers or max(1, int(fit))
        pool = ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1)
        return pool, {"num_gpus": 1} if gpu else {"num_cpus": self.cores}


def _dataset(photos: pa.Table | Manifest, errors: int) -> ray.data.Dataset:
    """The photos as Ray Data streams them; so many blocks may be lost (-1: any number)."""
    context = ray.data.DataContext.get_current()
    context.max_errored_blocks, context.enable_progress_bars = errors, False
    if isinstance(photos, pa.Table):
        return ray.data.from_arrow([photos.slice(first, ROWS) for first in range(0, len(photos), ROWS)])
    rows = ray.data.read_parquet(photos.files, filesystem=photos.system, columns=photos.columns, num_cpus=LIGHT)
    return rows.map_batches(photos.photos, batch_format="pyarrow", num_cpus=LIGHT)


def _cause(error: BaseException) -> BaseException:
    """What made a task of Ray's fail."""
    return getattr(error, "cause", None) or error.__cause__ or error
