"""The catalogue of weights: what there is, where it is, whether a file is what it should be, and fetching it."""

import contextlib
import errno
import glob
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from sgpn_arch.errors import UserError, nearest
from sgpn_arch.files import cache_folder, sha256_of
from sgpn_model.weights.formats import damage_of, kind_of

CATALOGUE_FILE = Path(__file__).parent / "catalogue.yml"


class CatalogueError(UserError, ValueError):
    """A name that is not in the catalogue, or a catalogue that cannot be read."""


class DownloadError(CatalogueError):
    """Weights that could not be fetched; nothing lies under their name."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Entry:
    """What is known of one file of weights; docs/weights.md explains the fields.

    Exactly one of ``url``, ``by_hand`` and ``shipped`` says where the file is from.

    Attributes:
        name: what ``sgpn weights fetch`` calls it. what: what it is for. licence, source: as its owners state them.
        use: the command or function that takes it. file: its name on disk.
        url: http(s) address; Google Drive's of a file, or of a folder with a file of this name, is one too.
        by_hand: how a person gets it. shipped: the folder that it ships in, beginning with a package's name.
        size: bytes. sha256: lower-case hexadecimal, whole or a prefix of as many digits as in torchvision's file names.
        hash_from: who computed them. home: the library that looks for it in its own folder, see :func:`home`.
    """

    name: str
    what: str
    licence: str
    source: str
    use: str
    file: Annotated[str, Field(pattern=r"^[^./\\][^/\\]*$")]
    url: Annotated[str, Field(pattern="^https?://")] | None = None
    by_hand: str | None = None
    shipped: str | None = None
    size: Annotated[int, Field(gt=0)] | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")] | None = None
    hash_from: str | None = None
    home: Literal["facexlib", "torch"] | None = None

    @model_validator(mode="after")
    def _check(self) -> "Entry":
        if sum(map(bool, (self.url, self.by_hand, self.shipped))) != 1:
            raise ValueError("needs exactly one of url, by_hand and shipped")
        if (self.size or self.sha256) and not self.hash_from:
            raise ValueError("a size or sha256 needs hash_from: who computed it")
        return self


def load_catalogue(path: str | Path = CATALOGUE_FILE) -> dict[str, Entry]:
    """Reads a catalogue: name -> entry, in the file's order.

    Raises:
        CatalogueError: the file cannot be read, or an entry is incomplete, has an unknown key or a wrong value.
    """
    entries = {}
    try:
        for name, values in yaml.safe_load(Path(path).read_text(encoding="utf-8")).items():
            entries[name] = Entry(**{"name": name, **values})
    except ValidationError as error:
        told = error.errors()[0]
        raise CatalogueError(f"{path}: {'.'.join(map(str, (name, *told['loc'])))}: {told['msg']}") from error
    except (OSError, AttributeError, TypeError, ValueError, yaml.YAMLError) as error:
        raise CatalogueError(f"{path}: cannot be read as names with keys and values: {error}") from error
    return entries


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
    places = [cache_folder(), home(entry)]
    if entry.shipped:
        package, _, rest = entry.shipped.partition("/")
        folder = _package_folder(package)
        places = [folder / rest if folder else None]
    return next((place / entry.file for place in places if place and (place / entry.file).is_file()), None)


def problem_of(path: str | Path, entry: Entry) -> str | None:
    """Why a file is not the entry's, or None: by size and SHA-256 where they are known, else by its format."""
    size = Path(path).stat().st_size
    if kind_of(path) == "html":
        return "is a web page, not weights"
    if entry.size is not None and size != entry.size:
        return f"has {size:,} bytes, but should have {entry.size:,}"
    if entry.sha256 is None:
        return damage_of(path)
    digest = sha256_of(path)
    if not digest.startswith(entry.sha256):
        return f"has SHA-256 {digest}, but should have {entry.sha256}{'...' if len(entry.sha256) < 64 else ''}"
    return None


def size_text(size: float | None) -> str:
    """A number of bytes for people."""
    if size is None:
        return "not known"
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


# ---------------------------------------------------------------------------------------------------------------------
# Fetching, through gdown: it knows Google Drive, and goes on where a connection broke


def fetch(
    entry: Entry, folder: str | Path | None = None, retries: int = 3, timeout: tuple[float, float] = (10.0, 30.0)
) -> tuple[Path, bool]:
    """Fetches a file of weights, unless it is there already. It appears under its name only when it is whole and verified.

    What arrived before a connection was lost, or before the process was killed, is ``.NAME*.part``; the next call goes on
    from there where the catalogue knows the SHA-256, which shows that old and new bytes are of one file.

    Args:
        folder: where to put it; the cache folder by default. It is made if there is none.
        retries: further tries in all after a lost connection. timeout: seconds to connect, and to wait for more bytes.

    Returns:
        The file, and whether it was downloaded now.

    Raises:
        DownloadError: it could not be fetched, or is not what the catalogue says; the message says what to do.
    """
    if not entry.url:
        raise DownloadError(f"{entry.name} is not fetched: {entry.by_hand or 'it ships with this library'}")
    target = Path(folder or cache_folder()) / entry.file
    if _is_there(target, entry):
        return target, False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target):
            if _is_there(target, entry):  # fetched by another process while this one waited
                return target, False
            _fetch(entry, entry.url, target, retries, timeout)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full: make room" if full else "cannot be written"
        raise DownloadError(f"{target}: {what} ({error.strerror or error}), or choose another place with -o") from error
    return target, True


def _is_there(target: Path, entry: Entry) -> bool:
    if target.is_dir():
        raise DownloadError(f"{target} is a folder: move it away, or choose another place with -o")
    problem = problem_of(target, entry) if target.exists() else None
    if problem:
        raise DownloadError(f"{target} is there already, but {problem}; move it away and fetch again")
    return target.exists()


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Only one process at a time downloads to a place; the others wait for it."""
    from filelock import FileLock, Timeout

    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{target.name} is being fetched by another process; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # while it is held: who waits for it finds it gone and makes a new one
            os.unlink(lock.lock_file)
        lock.release()


def _fetch(entry: Entry, url: str, target: Path, retries: int, timeout: tuple[float, float]) -> None:
    import gdown
    import requests

    staged = target.with_name(f".{target.name}")

    def remove_parts() -> None:
        for path in (staged, *_parts(staged)):
            path.unlink(missing_ok=True)

    def download() -> None:
        _download(entry, url, staged, retries, timeout)
        problem = problem_of(staged, entry)
        if problem:
            raise DownloadError(
                f"{entry.name}: what came from {url} {problem}. Is there a login page in between (as in hotels)? Try "
                f"again; if it stays so, the file has moved or changed: see {entry.source}"
            )

    if not entry.sha256 or len(_parts(staged)) > 1:
        remove_parts()
    resumed = bool(_parts(staged))
    keep = False
    by_hand = f"open {url} in a browser and put the file to {target}"
    try:
        try:
            download()
        except (DownloadError, gdown.exceptions.DownloadError) as error:
            if not resumed or error.__cause__ or isinstance(error, gdown.exceptions.FileURLRetrievalError):
                raise
            remove_parts()  # what was there and what came now are not of one file
            download()
        with open(staged, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(staged, target)
    except gdown.exceptions.FileURLRetrievalError as error:
        raise DownloadError(
            f"{entry.name}: Google Drive does not hand out the file: it was asked for too often lately, or is no longer "
            f"public. Try again tomorrow, or {by_hand}"
        ) from error
    except requests.HTTPError as error:
        answer: Any = error.response
        keep = bool(entry.sha256) and answer.status_code >= 500
        raise DownloadError(
            f"{entry.name}: {url} answers {answer.status_code} {answer.reason}. Try again later; has the file moved? See "
            f"{entry.source}"
        ) from error
    except (requests.RequestException, gdown.exceptions.DownloadError, KeyboardInterrupt) as error:
        keep = bool(entry.sha256)
        kept = sum(part.stat().st_size for part in _parts(staged)) if keep else 0
        told = (
            f"The {size_text(kept)} that arrived are kept: fetch again to go on from there" if kept else "Fetch again"
        )
        if isinstance(error, KeyboardInterrupt):
            print(f"{entry.name}: stopped. {told}", file=sys.stderr)
            raise
        raise DownloadError(
            f"{entry.name}: the download from {url} failed ({_reason(error)}). Check the connection. {told}, or {by_hand}"
        ) from error
    finally:
        if not keep:
            remove_parts()


def _parts(staged: Path) -> list[Path]:
    """What gdown keeps of an interrupted download to ``staged``."""
    return list(staged.parent.glob(f"{glob.escape(staged.name)}{'?' * 8}.part"))


def _download(entry: Entry, url: str, staged: Path, retries: int, timeout: tuple[float, float]) -> None:
    """Lets gdown fill ``staged``, going on from what is there of it."""
    import gdown
    from tqdm import tqdm

    options: dict[str, Any] = dict(quiet=True, use_cookies=False, timeout=timeout)
    if "/drive/folders/" in url:
        files: Any = gdown.download_folder(url, skip_download=True, **options)
        found = [file.id for file in files if Path(file.path).name == entry.file]
        if not found:
            raise DownloadError(f"{entry.name}: the folder {url} holds no {entry.file}; look there with a browser")
        url = f"https://drive.google.com/uc?id={found[0]}"

    with tqdm(desc=entry.file, unit="B", unit_scale=True, disable=None) as bar:

        def watch(done: int, total: int | None) -> None:
            size = done if total is None else total
            if entry.size is not None and (done > entry.size or total not in (None, entry.size)):
                raise DownloadError(
                    f"{entry.name}: {url} sends {size:,} bytes, but the catalogue says {entry.size:,}. Try again "
                    f"later; if it stays so, the file has changed: see {entry.source}"
                )
            free, needed = shutil.disk_usage(staged.parent).free, size - done
            if needed > free:
                raise OSError(errno.ENOSPC, f"{size_text(free)} free, {size_text(needed)} needed")
            bar.total = total
            bar.update(done - bar.n)

        options.update(output=str(staged), retries=retries, resume=bool(entry.sha256), progress=watch)
        gdown.download(url, **options)


def _reason(error: BaseException) -> str:
    """The innermost cause of an error of requests, whose own text is long and repeats itself."""
    while error.__cause__ or error.__context__ or (error.args and isinstance(error.args[0], Exception)):
        error = error.__cause__ or error.__context__ or error.args[0]
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
