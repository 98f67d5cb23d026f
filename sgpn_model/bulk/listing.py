"""Which photos a source means: those of a folder or bucket, which is listed, or the rows of a manifest."""

import hashlib
import posixpath
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.dataset

from sgpn_data.photos import READ_SUFFIXES, WRITE_SUFFIXES
from sgpn_model.bulk.folders import Folder
from sgpn_model.bulk.table import digests
from sgpn_model.restore.album import InputError

MANIFESTS = (".parquet", ".csv")
PATHS, BYTES = ("path", "url", "source", "file"), ("bytes", "content", "image")  # columns that are looked for


def list_photos(source: Folder, destination: Folder) -> pa.Table:
    """The paths or URLs of the photos of a folder and the folders in it (``source``), sorted; not of what is hidden, nor results.

    Raises:
        InputError: there is no such folder, or no photo in it, or it would receive the results.
    """
    same = type(source.system) is type(destination.system)
    if same and source.path == destination.path:
        raise InputError(f"{source.url}: is the source and the destination; choose another one with -o")
    if not source.system.exists(source.path):
        raise InputError(f"{source.url}: no such folder")
    found = []
    for path in sorted(source.system.find(source.path)):
        inside = path.removeprefix(source.path).lstrip("/")
        hidden = any(part.startswith(".") for part in inside.split("/"))
        result = same and path.startswith(destination.path + "/")
        if inside and not hidden and not result and PurePosixPath(path).suffix.lower() in READ_SUFFIXES:
            found.append(source.told(inside))
    if not found:
        raise InputError(f"{source.url}: holds no photo (looked for {', '.join(READ_SUFFIXES)})")
    return pa.table({"source": found})


def result_name(source: str, ext: str) -> str:
    """The name of a photo's result, with its folders; no two sources have the same.

    Args:
        source: a path or URL, or its part inside the listed folder. ext: "png" or "jpg"; "auto" is the photo's own where that
            can be written, else png.

    Returns:
        the source's own path, where its suffix is the result's, else with ``.restored`` and the suffix behind it. Parts that
        would lead elsewhere (``..``) are written as a percent sign and their length.
    """
    path = source.partition("://")[2] or source
    own = PurePosixPath(path).suffix.lower()
    wanted = f".{ext}" if ext != "auto" else own if own in WRITE_SUFFIXES else ".png"
    added = f".restored{wanted}"
    if own != wanted or path.lower().endswith(added):
        path += added
    parts = path.lstrip("/").split("/")
    return "/".join(f"%{len(part)}" if part in ("", ".", "..") else part for part in parts)


class Manifest:
    """A table of photos, in a Parquet or CSV file, or in a folder of such files whose name ends like theirs.

    Attributes:
        url: of it. files: its files, by name. column: of the paths or bytes. has_bytes: which of both it is.
        columns: those that are read.

    Raises:
        InputError: it cannot be read, or has no such column.
    """

    def __init__(self, url: str, column: str | None = None):
        place = Folder(url)
        self.url, self.system, path = place.url, place.system, place.path
        suffix = PurePosixPath(path).suffix
        try:
            folder = self.system.isdir(path)
            self.files = sorted(p for p in self.system.find(path) if p.endswith(suffix)) if folder else [path]
            self._data = pyarrow.dataset.dataset(self.files, filesystem=self.system, format=suffix[1:])
        except (OSError, ValueError) as error:
            raise InputError(f"{self.url}: cannot be read as a manifest: {error}") from error
        names = self._data.schema.names
        found = [name for name in ([column] if column else BYTES + PATHS) if name in names]
        if not found:
            looked_for = f"column {column}" if column else f"column {' or '.join(BYTES + PATHS)}"
            raise InputError(f"{self.url}: has no {looked_for}, but {', '.join(names)}; name one with --column")
        self.column = found[0]
        kind = self._data.schema.field(self.column).type
        self.has_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        if not self.has_bytes and not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
            raise InputError(
                f"{self.url}: column {self.column} holds neither paths nor bytes, but {kind}; see --column"
            )
        paths = next((name for name in PATHS if name in names), None) if self.has_bytes else self.column
        self.columns = [self.column] + ([paths] if paths and self.has_bytes else [])
        self._paths = paths
        self._base = posixpath.dirname(self.url)

    def count(self) -> int:
        """Rows."""
        return self._data.count_rows()

    def photos(self, rows: pa.Table | None = None) -> pa.Table:
        """The photos of rows (by default of all): ``source``, and ``content`` where the manifest has the bytes.

        Relative paths count from the manifest's folder. Bytes without a path are named after their checksum. Rows that are
        null are left out.
        """
        rows = self._data.to_table(columns=self.columns) if rows is None else rows
        paths = rows[self._paths].to_pylist() if self._paths else [None] * len(rows)
        if not self.has_bytes:
            distinct = dict.fromkeys(self._absolute(path) for path in paths if path)
            return pa.table({"source": pa.array(distinct, pa.string())})
        contents = rows[self.column].to_pylist()
        kept = [(path, content) for path, content in zip(paths, contents, strict=True) if content is not None]
        sources = [path or f"sha256/{hashlib.sha256(content).hexdigest()}" for path, content in kept]
        return pa.table(
            {
                "source": pa.array(sources, pa.string()),
                "content": pa.array([content for _, content in kept], pa.large_binary()),
            }
        )

    def _absolute(self, path: str) -> str:
        return path if "://" in path or path.startswith("/") else posixpath.join(self._base, path)

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_data"}


def waiting(photos: pa.Table, done: np.ndarray) -> pa.Table:
    """Those of the photos whose digest is not among ``done``, which are sorted."""
    if not len(done) or not len(photos):
        return photos
    own = digests(photos["source"].to_pylist())
    places = np.minimum(np.searchsorted(done, own), len(done) - 1)
    return photos.filter(pa.array(done[places] != own))
