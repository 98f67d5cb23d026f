"""The table of results: Parquet files in a folder, one row for each photo, with what became of it."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet

from sgpn_model.bulk.folders import Folder
from sgpn_model.restore.album import InputError

TABLE = "table"
SETTINGS = f"{TABLE}/settings.json"
# A photo that failed has an error and no destination; one of whose faces a network made NaN has both. Boxes are left, top, right
# and bottom in pixels of the photo; seconds those of reading, searching, networks, pasting and writing.
SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("destination", pa.string()),
        ("faces", pa.int32()),
        ("boxes", pa.list_(pa.list_(pa.float32()))),
        ("scores", pa.list_(pa.float32())),
        ("coefficients", pa.list_(pa.list_(pa.float32()))),
        ("remarks", pa.list_(pa.string())),
        ("seconds", pa.float32()),
        ("error", pa.string()),
    ]
)
FILE = "__filename"  # pyarrow's column of the file that a row comes from


def digests(sources: Iterable[str]) -> np.ndarray:
    """(N,) of 16 bytes each, which stand for the sources."""
    found = [hashlib.blake2b(source.encode(errors="surrogatepass"), digest_size=16).digest() for source in sources]
    return np.array(found, "S16")


class Table:
    """The table at a destination. Each run adds a partition ``run=NUMBER``, and each chunk of photos is one file of it.

    A file's name is derived from its photos, so that a chunk that is done twice is there once. Of a photo that several runs
    have done the last row counts, until :meth:`settle` removes the others.
    """

    def __init__(self, destination: Folder):
        self.folder = destination

    def files(self) -> list[str]:
        """The table's files, those of the first run first."""
        system, root = self.folder.system, self.folder.place(TABLE)
        system.invalidate_cache()
        return sorted(path for path in system.find(root) if path.endswith(".parquet")) if system.exists(root) else []

    def next_run(self) -> int:
        """The number of the run that begins."""
        files = self.files()
        return 1 + (_run_of(files[-1]) if files else 0)

    def add(self, run: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the rows of a chunk as one file."""
        name = hashlib.sha256(digests(row["source"] for row in rows).tobytes()).hexdigest()[:32]
        full = [{**dict.fromkeys(SCHEMA.names), **row} for row in rows]
        self._write(f"{TABLE}/run={run:06}/{name}.parquet", pa.Table.from_pylist(full, SCHEMA))

    def _write(self, name: str, rows: pa.Table) -> None:
        self.folder.write(name, lambda path: pyarrow.parquet.write_table(rows, path))

    def read(self, *columns: str) -> pa.Table:
        """The rows, in the order of the files; all columns or these."""
        data = pyarrow.dataset.dataset(self.files(), schema=SCHEMA, filesystem=self.folder.system, format="parquet")
        return data.to_table(columns=list(columns or SCHEMA.names))

    def done(self, failed_from: int = 0) -> np.ndarray:
        """Digests, sorted, of the photos that are done: restored, or failed in the run ``failed_from`` or a later one."""
        rows = self.read("source", "error", FILE)
        own, places = _last(rows)
        rows = rows.take(places)
        runs = np.array([_run_of(file) for file in rows[FILE].to_pylist()], int)
        return own[np.array(rows["error"].is_null()) | (runs >= failed_from)]

    def settle(self) -> int:
        """Removes every row that does not count; returns how many."""
        rows = self.read("source", FILE)
        counts = np.zeros(len(rows), bool)
        counts[_last(rows)[1]] = True
        files = np.array(rows[FILE].to_pylist(), object)
        for file in sorted(set(files[~counts])):
            data = pyarrow.dataset.dataset([file], schema=SCHEMA, filesystem=self.folder.system, format="parquet")
            left = data.to_table().filter(pa.array(counts[files == file]))
            if len(left):
                self._write(os.path.relpath(file, self.folder.path), left)
            else:
                self.folder.system.rm(file)
        return int((~counts).sum())

    def agree(self, settings: Mapping[str, Any]) -> None:
        """Notes what the results are made with, or compares it with what is noted.

        Raises:
            InputError: the destination holds results that were made otherwise.
        """
        path = self.folder.place(SETTINGS)
        if not self.folder.system.exists(path):
            text = json.dumps(dict(settings), indent=1)
            self.folder.write(SETTINGS, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))
            return
        noted = json.loads(self.folder.system.cat_file(path))
        differ = [name for name in settings if noted.get(name) != settings[name]]
        if differ:
            raise InputError(
                f"{self.folder.url}: holds results that were made with other {', '.join(differ)}; choose another destination"
            )


def _last(rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Digests of the photos, sorted, and the place of the row of each that counts, which is the last."""
    own, places = np.unique(digests(rows["source"].to_pylist())[::-1], return_index=True)
    return own, len(rows) - 1 - places


def _run_of(file: str) -> int:
    return int(file.rpartition("run=")[2].partition("/")[0])
