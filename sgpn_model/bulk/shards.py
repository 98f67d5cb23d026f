"""A worker that cuts out faces to train on: each chunk of photos becomes a tar file of WebDataset's layout."""

import hashlib
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import cv2

from sgpn_data.photos import read_photo
from sgpn_data.sources import SHARD_SUFFIX
from sgpn_model.bulk.folders import Folder
from sgpn_model.bulk.listing import result_name
from sgpn_model.bulk.table import Table, digests
from sgpn_model.bulk.worker import TRANSFERS, Photo, Trouble, Worker, ahead, fetch, told
from sgpn_model.restore.aligner import Aligner

SHARD = "faces-"


class NoFace(Exception):
    """A chunk without a face makes no shard."""


class AlignWorker(Worker):
    """As :class:`Worker`; a row's destination is the shard that the photo's faces are in, none where it has no face.

    A sample is ``NAME_00.png``, a face, and ``NAME_00.json``: ``source``, ``template`` and, where they are looked for,
    ``landmarks68`` in pixels of the face. NAME is the photo's, with ``%2E`` for dots.
    """

    doing, done = "aligning", "cut out"

    def build(self) -> None:
        """Makes the aligner ready."""
        self.aligner = Aligner.build(**self.work.building)

    def work_on(self, photos: Sequence[Photo], rows: list[dict]) -> None:
        """Writes a shard, and adds a row for each photo.

        Raises:
            Trouble: the other photos have no rows.
        """
        name = hashlib.sha256(digests(photo.source for photo in photos).tobytes()).hexdigest()[:16]
        shard, found = f"{SHARD}{self.work.run:06}-{name}{SHARD_SUFFIX}", []

        def fill(path: str) -> None:
            with (
                tarfile.open(path, "w") as tar,
                tempfile.TemporaryDirectory(prefix="sgpn-") as folder,
                ThreadPoolExecutor(TRANSFERS) as pool,
            ):
                for photo, fetching in ahead(pool, lambda photo: fetch(photo, Path(folder)), photos):
                    found.append(self._add(tar, photo, fetching.result, Path(folder)))
            if not any(row["faces"] for row in found):
                raise NoFace

        try:
            if photos:
                self.destination.write(shard, fill)
        except NoFace:
            pass
        except Trouble:
            raise
        except Exception as error:
            raise Trouble(f"{self.destination.told(shard)}: cannot be written: {told(error)}") from error
        rows += [{**row, "destination": self.destination.told(shard) if row["faces"] else None} for row in found]

    def _add(self, tar: tarfile.TarFile, photo: Photo, fetched, folder: Path) -> dict:
        """Adds a photo's faces; its row."""
        began, source = time.perf_counter(), None
        try:
            source = fetched()
            read = read_photo(source)
            faces, too_small = self.aligner(read.bgr)
        except Exception as error:
            return self.failed(photo, error, str(source or photo.source))
        finally:
            if source is not None and source.parent == folder:
                source.unlink(missing_ok=True)
        # WebDataset takes what is in front of the first dot for a sample's name.
        own = photo.source.removeprefix(self.work.prefix)
        path = PurePosixPath(result_name(own, PurePosixPath(own).suffix[1:].lower()))
        base = path.with_name(path.name.replace("%", "%25").replace(".", "%2E"))
        for number, (crop, landmarks) in enumerate(faces):
            about = {"source": photo.source, "template": self.aligner.template}
            if landmarks is not None:
                about["landmarks68"] = landmarks.round(2).tolist()
            encoded = cv2.imencode(".png", crop)[1].tobytes()
            for suffix, data in (("png", encoded), ("json", json.dumps(about).encode())):
                entry = tarfile.TarInfo(f"{base}_{number:02d}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        remarks = list(read.remarks)
        if too_small:
            remarks.append(f"{too_small} faces are smaller than --min-pixels, and were left out")
        seconds = round(time.perf_counter() - began, 3)
        return {"source": photo.source, "faces": len(faces), "remarks": remarks, "seconds": seconds}

    @staticmethod
    def settle(destination: Folder, table: Table) -> None:
        """Removes shards that no row names: those of workers that died before they wrote the rows."""
        system, named = destination.system, set(table.read("destination")["destination"].to_pylist())
        system.invalidate_cache()
        for path in system.find(destination.path, maxdepth=1):
            name = path.rpartition("/")[2]
            if name.startswith(SHARD) and name.endswith(SHARD_SUFFIX) and destination.told(name) not in named:
                system.rm(path)
