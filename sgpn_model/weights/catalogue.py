"""The catalogue of weights: what there is, where it is, what is known of it, and whether a file is what it should be."""

import hashlib
import importlib.util
import os
import re
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from sgpn_arch.errors import UserError, nearest

CATALOGUE_FILE = Path(__file__).parent / "catalogue.yml"
# What a prefix of a SHA-256 must have at least to count as known: as many digits as in torchvision's file names.
SHORTEST_PREFIX = 8
CHUNK = 1 << 20

# How files of weights begin. A PyTorch file is a zip archive (since 1.6) or a pickle.
MAGIC = {
    b"PK\x03\x04": "zip",
    b"\x80\x02": "pickle",
    b"\x80\x03": "pickle",
    b"\x80\x04": "pickle",
    b"\x80\x05": "pickle",
    b"\x1f\x8b": "gzip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
    b"MATLAB 5.0": "matlab",
    b"\x89HDF": "hdf5",
}


class CatalogueError(UserError, ValueError):
    """A name that is not in the catalogue, weights that cannot be fetched, or a catalogue that cannot be read."""


@dataclass(frozen=True)
class Entry:
    """What is known of one file of weights; docs/weights.md explains the fields.

    Exactly one of ``urls``, ``drive``, ``drive_folder``, ``by_hand`` and ``shipped`` says where the file is from.

    Attributes:
        name: what ``sgpn weights fetch`` calls it. what: what it is for. licence, source: as its owners state them.
        use: the command or function that takes it. file: its name on disk.
        urls: http(s) addresses, the first preferred. drive: Google Drive's id of the file. drive_folder: that of a
            folder which holds it. by_hand: how a person gets it. shipped: its path, beginning with a package's name.
        size: bytes, or None where not known. sha256: lower-case hexadecimal, whole or a prefix, or None where not
            known. hash_from: who computed it. home: the library that looks for it in its own folder, see :func:`home`.
    """

    name: str
    what: str
    licence: str
    source: str
    use: str
    file: str
    urls: tuple[str, ...] = ()
    drive: str | None = None
    drive_folder: str | None = None
    by_hand: str | None = None
    shipped: str | None = None
    size: int | None = None
    sha256: str | None = None
    hash_from: str | None = None
    home: str | None = None

    @property
    def address(self) -> str:
        """Where a person finds the file with a browser."""
        if self.drive:
            return f"https://drive.google.com/file/d/{self.drive}/view"
        if self.drive_folder:
            return f"https://drive.google.com/drive/folders/{self.drive_folder}"
        return self.urls[0] if self.urls else self.source


def load_catalogue(path: str | Path = CATALOGUE_FILE) -> dict[str, Entry]:
    """Reads a catalogue: name -> entry, in the file's order.

    Raises:
        CatalogueError: the file cannot be read, or an entry is incomplete, has an unknown key or a wrong value.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CatalogueError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CatalogueError(f"{path}: expected a mapping of names to entries")
    return {name: _read_entry(str(name), values, f"{path}: {name}") for name, values in content.items()}


def _read_entry(name: str, values: dict, where: str) -> Entry:
    if not isinstance(values, dict):
        raise CatalogueError(f"{where}: expected a mapping")
    known = {field.name for field in fields(Entry)} - {"name"}
    for key in values:
        if key not in known:
            raise CatalogueError(f"{where}.{key}: unknown key{nearest(str(key), known)}")
    values = {**values, "urls": tuple(values.get("urls", ()))}
    if "shipped" in values:
        values.setdefault("file", Path(values["shipped"]).name)
    try:
        entry = Entry(name, **values)
    except TypeError as error:
        raise CatalogueError(f"{where}: a key is missing ({error})") from error
    problem = _problem_of(entry)
    if problem:
        raise CatalogueError(f"{where}: {problem}")
    return entry


def _problem_of(entry: Entry) -> str | None:
    sources = entry.urls, entry.drive, entry.drive_folder, entry.by_hand, entry.shipped
    if sum(map(bool, sources)) != 1:
        return "needs exactly one of urls, drive, drive_folder, by_hand and shipped"
    if any(not re.match("https?://", url) for url in entry.urls):
        return "urls begin with http:// or https://"
    if not entry.file or Path(entry.file).name != entry.file or entry.file.startswith("."):
        return f"file {entry.file!r} must be a plain file name"
    digits = entry.sha256 if isinstance(entry.sha256, str) else ""
    if entry.sha256 is not None and not re.fullmatch(f"[0-9a-f]{{{SHORTEST_PREFIX},64}}", digits):
        return f"sha256 must be {SHORTEST_PREFIX} to 64 lower-case hexadecimal digits, quoted if they are all decimal"
    if entry.size is not None and not (isinstance(entry.size, int) and entry.size > 0):
        return "size must be a positive number of bytes"
    if (entry.size or entry.sha256) and not entry.hash_from:
        return "a size or sha256 needs hash_from: who computed it"
    if entry.home not in (None, *HOMES):
        return f"home must be one of {', '.join(HOMES)}"
    return None


def find_entry(name: str, catalogue: dict[str, Entry] | None = None) -> Entry:
    """The entry called ``name``.

    Raises:
        CatalogueError: there is none; the message names the nearest.
    """
    catalogue = load_catalogue() if catalogue is None else catalogue
    if name not in catalogue:
        raise CatalogueError(f"weights '{name}' are not in the catalogue{nearest(name, catalogue)}")
    return catalogue[name]


# ---------------------------------------------------------------------------------------------------------------------
# Places


def cache_folder() -> Path:
    """Where downloads go: the environment variable SGPN_HOME, or this platform's folder for caches."""
    if os.environ.get("SGPN_HOME"):
        return Path(os.environ["SGPN_HOME"]).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("sgpn", appauthor=False))


def _package_folder(package: str) -> Path | None:
    found = importlib.util.find_spec(package)
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def _facexlib_folder() -> Path | None:
    package = _package_folder("facexlib")
    return package / "weights" if package else None


def _torch_folder() -> Path:
    """torch.hub's folder of checkpoints, found without importing torch."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TORCH_HOME") or Path(cache) / "torch").expanduser() / "hub" / "checkpoints"


HOMES = {"facexlib": _facexlib_folder, "torch": _torch_folder}


def home(entry: Entry) -> Path | None:
    """The folder in which another library looks for this file by itself, or None."""
    return HOMES[entry.home]() if entry.home else None


def find_file(entry: Entry) -> Path | None:
    """The entry's file on this machine: shipped, in the cache folder or in its home; None where there is none."""
    if entry.shipped:
        package, _, rest = entry.shipped.partition("/")
        places = [_package_folder(package)]
        name = rest
    else:
        places = [cache_folder(), home(entry)]
        name = entry.file
    return next((place / name for place in places if place and (place / name).is_file()), None)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file, in lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def looks_like_html(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a web page."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return text.startswith((b"<!doctype html", b"<html", b"<head", b"<script", b"<!--", b"<?xml", b"<title"))


def kind_of(path: str | Path) -> str:
    """What a file's first bytes say it is.

    Returns:
        "safetensors", "pytorch" (a zip archive with pickled tensors), "pickle", "zip", "gzip", "7z", "rar", "matlab",
        "hdf5", "html", "empty" or "unknown".
    """
    path = Path(path)
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return "empty"
    if looks_like_html(head):
        return "html"
    kind = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)
    if kind == "zip":
        return "pytorch" if _is_pytorch(path) else "zip"
    if kind is None and head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") <= 100 << 20:
        return "safetensors"
    return kind or "unknown"


def _is_pytorch(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") or name == "data.pkl" for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def structure_problem(path: str | Path) -> str | None:
    """What is wrong with a file of weights as far as its format tells, or None; runs and unpacks nothing."""
    path = Path(path)
    kind = kind_of(path)
    if kind in ("html", "empty", "unknown"):
        meaning = {"html": "a web page", "empty": "an empty file", "unknown": "no format of weights that is known here"}
        return f"is {meaning[kind]}"
    if kind in ("zip", "pytorch"):
        return _zip_problem(path)
    return _safetensors_problem(path) if kind == "safetensors" else None


def _zip_problem(path: Path) -> str | None:
    """A zip archive's table of contents stands at its end, so an archive that was cut off has none."""
    try:
        with zipfile.ZipFile(path) as archive:
            archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        return f"is an archive without its end: it was cut off ({error})"
    return None


def _safetensors_problem(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np"):
            return None
    except (OSError, SafetensorError) as error:
        return f"is not a whole safetensors file ({error})"


def problem_of(path: str | Path, entry: Entry) -> str | None:
    """Why a file is not the entry's, or None: by size and SHA-256 where they are known, else by its format."""
    path = Path(path)
    size = path.stat().st_size
    if kind_of(path) == "html":
        return "is a web page, not weights"
    if entry.size is not None and size != entry.size:
        return f"has {size:,} bytes, but should have {entry.size:,}"
    if entry.sha256 is None:
        return structure_problem(path)
    digest = sha256_of(path)
    if not digest.startswith(entry.sha256):
        more = "..." if len(entry.sha256) < 64 else ""
        return f"has SHA-256 {digest}, but should have {entry.sha256}{more}"
    return None


def size_text(size: int | None) -> str:
    """A number of bytes for people."""
    if size is None:
        return "not known"
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
