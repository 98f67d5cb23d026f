"""Where a dataset's encoded pictures lie: folders of files, LMDBs written by scripts/make_lmdb.py, or shards; and their split.

An LMDB has BasicSR's layout, so that BasicSR's tools read it and its LMDBs can be given here: a folder NAME.lmdb with
``data.mdb``, whose keys are the pictures' names without suffix and whose values are their encoded bytes, and
``meta_info.txt`` with a line ``NAME.png (HEIGHT,WIDTH,CHANNELS) LEVEL`` for each. ``landmarks68.json`` may lie beside it.

Shards have WebDataset's layout: tar files in one folder, in which what has one name up to the suffix is one sample. ``NAME.png``
is its picture, and ``NAME.json`` may hold ``landmarks68``. ``sgpn align --shards`` writes such files.
"""

import hashlib
import io
import json
import logging
import os
import re
import tarfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

LOGGER = logging.getLogger("sgpn")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
LANDMARKS_FILE = "landmarks68.json"
META_FILE = "meta_info.txt"
LMDB_SUFFIX = ".lmdb"
SHARD_SUFFIX = ".tar"
SPLITS = ("train", "val")
HELD_OUT = 0.1  # the part of a folder's pictures that is for validation
META_LINE = re.compile(r"(?P<key>.+)(?P<suffix>\.\w+) \((?P<height>\d+),(?P<width>\d+),\d+\) \S+")


def is_picture_name(name: str) -> bool:
    """Whether a file of this name is taken for a picture."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def open_source(root: Path) -> "Folder | Lmdb | Shards":
    """The pictures of a folder and its subfolders, of a folder whose name ends in .lmdb, or of the .tar files in a folder.

    Raises FileNotFoundError if there is none, ValueError if it holds no picture, or is not a whole LMDB or shard.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"dataset: dataroot {root} is not a folder; check the path")
    is_sharded = any(root.glob("*" + SHARD_SUFFIX))
    source = Lmdb(root) if root.suffix == LMDB_SUFFIX else Shards(root) if is_sharded else Folder(root)
    if not source.paths:
        raise ValueError(f"dataset: {root} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return source


def open_split(root: Path, split: str) -> "list[Folder | Lmdb | Shards]":
    """The pictures of a folder, LMDB or folder of shards that are to train on (``split`` "train"), or those that measure ("val").

    A folder with train/ or val/ inside has them there, and may lack one. Of any other, :func:`split_of` takes them.

    Returns:
        One source, or none where the folder has no such pictures.

    Raises:
        FileNotFoundError, ValueError: as :func:`open_source`.
    """
    if any((root / name).is_dir() for name in SPLITS):
        return [open_source(root / split)] if (root / split).is_dir() else []
    source = open_source(root)
    source.paths = [path for path in source.paths if split_of(path.relative_to(root)) == split]
    return [source] if source.paths else []


def split_of(name: Path) -> str:
    """ "val" for one in ten pictures, else "train", by a hash of the name without its suffix.

    So a picture stays where it is when others are added or removed, when the folder moves and when it becomes an LMDB.
    """
    digest = hashlib.sha256(f"sgpn/{name.with_suffix('').as_posix()}".encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") < HELD_OUT * 2**64 else "train"


def _more(found: list[str]) -> str:
    """What a warning that names the first says of the others."""
    return f" ({len(found) - 1} more like it)" if len(found) > 1 else ""


class Folder:
    """Files in a folder and its subfolders; ``paths`` is sorted. What cannot be one of them is named in a warning.

    Raises ValueError if the folder itself cannot be read.
    """

    def __init__(self, root: Path):
        self.root = root
        self.paths: list[Path] = []
        others: list[str] = []
        closed: list[OSError] = []
        for folder, folders, files in os.walk(root, onerror=closed.append):
            named = [Path(folder, name) for name in (*folders, *files) if is_picture_name(name)]
            self.paths += [path for path in named if path.is_file()]
            others += [f"{path} is no file" for path in named if not path.is_file()]
        self.paths.sort()
        if closed and closed[0].filename == str(root):
            raise ValueError(f"dataset: {root} cannot be read: {closed[0].strerror}")
        for found in (others, [f"{error.filename} cannot be read ({error.strerror})" for error in closed]):
            if found:
                LOGGER.warning("dataset: %s, so it is left out%s", found[0], _more(found))

    def encoded(self, path: Path) -> np.ndarray | None:
        """A file's bytes (uint8), None where it cannot be read."""
        try:
            return np.fromfile(path, np.uint8)
        except OSError:
            return None

    def stored_size(self, path: Path) -> int:
        """The shorter side, from the file's header where it can be read; an unreadable file passes, to be named later."""
        return _stored_size(path)

    def landmarks(self, path: Path) -> np.ndarray | None:
        """None: a file of pixels says nothing of them."""
        return None


def _stored_size(file: Path | io.BytesIO) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                return min(image.size)
    except Exception:  # Pillow's readers raise of every kind for damaged headers
        return np.iinfo(np.int64).max


class Lmdb:
    """The pictures of an LMDB, in the order of its meta_info.txt; a picture's path is ROOT/NAME.

    The database is opened when it is first read, in each process anew, for LMDB does not survive a fork.
    """

    def __init__(self, root: Path):
        self.root = root
        file = root / META_FILE
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"dataset: {file} is missing; make the LMDB with scripts/make_lmdb.py, or give a folder of images"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"dataset: {file} cannot be read: {error}; {_remedy(root)}") from error
        self.paths, self._sides = [], {}
        for line in filter(str.strip, lines):
            found = META_LINE.fullmatch(line.strip())
            if not found:
                expected = "'NAME.png (HEIGHT,WIDTH,CHANNELS) LEVEL'"
                raise ValueError(f"dataset: {file}: expected {expected}, found {line!r}; {_remedy(root)}")
            self.paths.append(root / (found["key"] + found["suffix"]))
            self._sides[self.paths[-1]] = min(int(found["height"]), int(found["width"]))
        held = open_environment(root).stat()["entries"]
        close_environment(root)  # a worker that is forked now need not inherit it
        if held < len(self.paths):
            named = f"its {META_FILE} names {len(self.paths)}"
            raise ValueError(f"dataset: {root} holds {held} images, {named}; {_remedy(root)}")

    def encoded(self, path: Path) -> np.ndarray | None:
        """A picture's bytes (uint8), None where the database lacks it or the page is damaged."""
        import lmdb

        key = path.relative_to(self.root).with_suffix("").as_posix().encode()
        try:
            with open_environment(self.root).begin() as transaction:
                value = transaction.get(key)
        except lmdb.Error:
            return None
        return None if value is None else np.frombuffer(value, np.uint8)

    def stored_size(self, path: Path) -> int:
        """The shorter side, as meta_info.txt has it."""
        return self._sides[path]

    def landmarks(self, path: Path) -> np.ndarray | None:
        """None: the database says nothing of them."""
        return None


class Shards:
    """The pictures of the tar files in a folder, sorted by name; a picture's path is ROOT/NAME, whichever file holds it.

    Only the headers are read at first. Each picture is then read where it lies, so that any order costs the same, and a
    training can go on in the middle of an epoch as with single files.

    Raises ValueError if a file is not a tar file, or not a whole one.
    """

    def __init__(self, root: Path):
        self.root = root
        self._files = sorted(root.glob("*" + SHARD_SUFFIX))
        self._places: dict[str, tuple[int, int, int]] = {}  # name -> file, first byte, bytes
        twice: list[str] = []
        for number, file in enumerate(self._files):
            for name, first, size in _members(file):
                if name in self._places:
                    twice.append(name)
                else:
                    self._places[name] = number, first, size
        self.paths = [root / name for name in sorted(self._places) if is_picture_name(name)]
        if twice:
            LOGGER.warning("dataset: %s is there twice, of which the first is used%s", root / twice[0], _more(twice))

    def _read(self, name: str) -> bytes | None:
        if name not in self._places:
            return None
        number, first, size = self._places[name]
        try:
            with open(self._files[number], "rb") as file:
                file.seek(first)
                return file.read(size)
        except OSError:
            return None

    def encoded(self, path: Path) -> np.ndarray | None:
        """A picture's bytes (uint8), None where they cannot be read."""
        data = self._read(path.relative_to(self.root).as_posix())
        return None if data is None else np.frombuffer(data, np.uint8)

    def stored_size(self, path: Path) -> int:
        """The shorter side, from the picture's header where it can be read; another picture passes, to be named later."""
        return _stored_size(io.BytesIO(self._read(path.relative_to(self.root).as_posix()) or b""))

    def landmarks(self, path: Path) -> np.ndarray | None:
        """What the sample's .json says, (68, 2) float64 in the stored picture's pixels; None where it says nothing.

        Raises ValueError if they are no such points.
        """
        data = self._read(path.relative_to(self.root).with_suffix(".json").as_posix())
        if data is None:
            return None
        try:
            about = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its .json cannot be read: {error}") from error
        points = about.get("landmarks68") if isinstance(about, Mapping) else None
        return None if points is None else points68(points)


def _members(file: Path) -> list[tuple[str, int, int]]:
    """Name, first byte and bytes of each file in a tar file."""
    try:
        with tarfile.open(file, "r:") as tar:
            found = [(os.path.normpath(one.name), one.offset_data, one.size) for one in tar if one.isfile()]
        end = file.stat().st_size
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"dataset: {file} cannot be read as a tar file: {error}") from error
    for name, first, size in found:
        if first + size > end:
            raise ValueError(f"dataset: {file} was cut short in {name}; copy or make it again")
    return found


def points68(value: Any) -> np.ndarray:
    """Landmarks (68, 2) float64 of lists.

    Raises ValueError if they are no such points.
    """
    try:
        points = np.asarray(value, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"its landmarks are no 68 x [x, y]: {error}") from error
    if points.shape != (68, 2):
        raise ValueError(f"its landmarks have the shape {points.shape}, expected (68, 2)")
    if not np.isfinite(points).all():
        raise ValueError("its landmarks have a point that is not finite; leave them out if they are unknown")
    return points


def decode(encoded: np.ndarray | None, path: Path) -> np.ndarray | None:
    """The picture HxWx3 BGR in encoded bytes, None where these are no picture; uint8, or float32 where it is stored so.

    Of 16 bits a channel the upper 8 are taken, and a warning names the ``path`` of the first such picture.
    """
    if encoded is None or not encoded.size:
        return None
    try:
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error:  # the header says more pixels than there can be
        return None
    if image is None or image.dtype != np.uint16:
        return image
    if not _DEEP:
        _DEEP.append(path)
        LOGGER.warning("dataset: %s has 16 bits a channel, of which the upper 8 are used, as of others like it", path)
    return np.right_shift(image, 8, dtype=np.uint16).astype(np.uint8)


_DEEP: list[Path] = []  # the picture that was named


def fault(image: np.ndarray | None) -> str | None:
    """Why a decoded image cannot be used as an aligned face, None if it can."""
    if image is None:
        return "it cannot be read as an image"
    if image.dtype != np.uint8:
        return f"it holds numbers of type {image.dtype}; save it with 8 bits a channel"
    if image.shape[0] != image.shape[1]:
        return f"it is {image.shape[1]}x{image.shape[0]}, not square; align it first"
    return None


# ------------------------------------------------------------------------------------------------------------
# LMDB

# Path -> (process, environment): a process may open a database only once, whoever reads it there.
_OPEN: dict[str, tuple[int, Any]] = {}


def open_environment(root: Path):
    """The database of a folder, opened for reading in this process.

    Raises ValueError if the package lmdb is missing, or the file is not a database, or not a whole one.
    """
    path = os.path.realpath(root)
    process, environment = _OPEN.get(path, (None, None))
    if process == os.getpid():
        return environment
    if environment is not None:
        environment.close()  # the parent's, inherited by a fork: closed for this process only
    try:
        import lmdb
    except ImportError as error:
        raise ValueError(
            f"dataset: reading {root} needs the package lmdb: pip install lmdb, or give a folder of images"
        ) from error
    try:
        environment = lmdb.open(path, readonly=True, lock=False, readahead=False, meminit=False)
        # LMDB maps its file into memory: reading past the end of one cut short would kill the process.
        wanted = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        found = (root / "data.mdb").stat().st_size
        if found < wanted:
            environment.close()
            raise OSError(f"data.mdb has {found} bytes of {wanted}, so it was cut short")
    except (lmdb.Error, OSError) as error:
        raise ValueError(f"dataset: {root} cannot be read as an LMDB: {error}; {_remedy(root)}") from error
    _OPEN[path] = os.getpid(), environment
    return environment


def close_environment(root: Path) -> None:
    """Closes the database of a folder in this process, if it is open."""
    path = os.path.realpath(root)
    if path in _OPEN:
        _OPEN.pop(path)[1].close()


def _remedy(root) -> str:
    return f"make it again: python scripts/make_lmdb.py FOLDER {root}"
