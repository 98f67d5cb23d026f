"""Downloading files of weights: they resume, are verified, and appear under their name only when they are whole.

While a file is on its way it is called ``.NAME.part``, beside its future place, with a note ``.NAME.part.json`` of which
version of the file it is. A lost connection is taken up again where it broke; when it stays lost, or the user stops the
download, the part stays for the next try. Whatever else goes wrong, nothing is left behind.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sgpn_model.weights.catalogue import CatalogueError, Entry, cache_folder, looks_like_html, problem_of, size_text

CHUNK = 1 << 15
RETRIES_BEFORE_FIRST_BYTE = 3
# Answers after which another try may help.
TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
FULL_DISK = {errno.ENOSPC, errno.EDQUOT}


class DownloadError(CatalogueError):
    """A download that failed; nothing of it is left on the disk."""


class DownloadInterrupted(DownloadError):
    """A download that lost its connection; what has arrived stays for the next try."""


class _Retry(Exception):
    """A try that failed and may be made again; ``answered`` says whether the server was there."""

    def __init__(self, message: str, answered: bool):
        super().__init__(message)
        self.answered = answered


@dataclass(frozen=True)
class Settings:
    """How patient a download is.

    Attributes:
        retries: tries in a row without a new byte before it gives up. timeout: seconds to connect and to wait for more
            bytes. wait: seconds before the second try; doubled for each further one, up to 30.
        progress: whether to draw a progress bar; None draws it on a terminal only.
    """

    retries: int = 5
    timeout: tuple[float, float] = (10.0, 30.0)
    wait: float = 1.0
    progress: bool | None = None


def fetch(entry: Entry, folder: str | Path | None = None, settings: Settings = Settings()) -> tuple[Path, bool]:
    """Fetches a file of weights, unless it is there already.

    Args:
        entry: what to fetch. folder: where to put it; the cache folder by default. It is made if there is none.

    Returns:
        The file, and whether it was downloaded now.

    Raises:
        DownloadError: it could not be fetched, or is not what the catalogue says; the message says what to do.
    """
    if entry.by_hand or entry.shipped:
        raise DownloadError(f"{entry.name} is not fetched: {entry.by_hand or 'it ships with this library'}")
    target = Path(folder or cache_folder()) / entry.file
    if _is_there(target, entry):
        return target, False
    with _folder_of(target), _locked(target):
        if _is_there(target, entry):  # fetched by someone else while we waited
            return target, False
        _fetch(entry, target, settings)
    return target, True


@contextlib.contextmanager
def _folder_of(target: Path) -> Iterator[None]:
    """Makes the folder where there is none, and removes it again if nothing comes to lie in it."""
    is_new = not target.parent.exists()
    _prepare_folder(target)
    try:
        yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):
                target.parent.rmdir()


def _prepare_folder(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(f"{target.parent}: cannot be made ({error.strerror}); choose a place with -o") from error
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise DownloadError(f"{target.parent}: no permission to write there; choose another place with -o")


def _is_there(target: Path, entry: Entry) -> bool:
    if target.is_dir():
        raise DownloadError(f"{target} is a folder: move it away, or choose another place with -o")
    if not target.exists():
        return False
    problem = problem_of(target, entry)
    if problem:
        raise DownloadError(f"{target} is there already, but {problem}; move it away and fetch again")
    return True


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
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        yield
    finally:
        # Removed while it is held: who waits for it finds it gone and makes a new one.
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


def _fetch(entry: Entry, target: Path, settings: Settings) -> None:
    part = Part(target)
    try:
        if entry.urls:
            _try_addresses(entry, part, settings)
        else:
            _download_from_drive(entry, part, settings)
        _publish(entry, part)
    except (DownloadInterrupted, KeyboardInterrupt) as error:
        # SIGKILL cannot be caught, and leaves the same: a part that the next call takes up.
        part.close()
        if not part.arrived():
            part.remove()
        elif isinstance(error, KeyboardInterrupt):
            print(f"{size_text(part.arrived())} of {target.name} are kept; fetch again to go on", file=sys.stderr)
        raise
    except BaseException:
        part.remove()
        raise


def _publish(entry: Entry, part: "Part") -> None:
    """Checks a whole download and gives it its name."""
    part.close()
    problem = problem_of(part.path, entry)
    if problem:
        raise DownloadError(
            f"{entry.file}: what came from {entry.address} {problem}. Nothing was kept. Try again; if it stays so, the "
            f"file at its source has changed: see {entry.source}"
        )
    try:
        with open(part.path, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part.path, part.target)
    except OSError as error:
        raise _cannot_write(part.target, error) from error
    part.remove()
    _sync_folder(part.target.parent)


def _sync_folder(folder: Path) -> None:
    """Makes the new name last through a power cut, where the platform lets folders be synchronised."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _cannot_write(path: Path, error: OSError) -> DownloadError:
    if error.errno in FULL_DISK:
        return DownloadError(
            f"{path.parent}: the disk is full ({error.strerror}). Nothing was kept. Make room, or choose another place "
            "with -o, and fetch again"
        )
    return DownloadError(f"{path}: cannot be written ({error.strerror or error}); choose another place with -o")


# ---------------------------------------------------------------------------------------------------------------------
# The part that has arrived


class Part:
    """The bytes that have arrived of a file, and which version of it they belong to.

    Attributes:
        target: the file's place when it is whole. path: where its part is. size: bytes that are there.
        version: {"url", "etag", "modified", "total"} of the answer that the bytes came from, or {}.
    """

    def __init__(self, target: Path):
        self.target = target
        self.path = target.with_name(f".{target.name}.part")
        self._note = target.with_name(f".{target.name}.part.json")
        self._file = None
        self.version = self._read_note()
        if not self.version:
            self.path.unlink(missing_ok=True)

    def _read_note(self) -> dict:
        try:
            version = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return version if isinstance(version, dict) and self.size else {}

    @property
    def size(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def arrived(self) -> int:
        """Bytes that are there, also those that gdown keeps."""
        return self.size + sum(path.stat().st_size for path in self.drive_parts())

    def start(self, version: dict) -> None:
        """Begins anew, with bytes of this version to come."""
        self.close()
        try:
            self._file = open(self.path, "wb", buffering=0)  # noqa: SIM115  (closed by close)
            self._note.write_text(json.dumps(version), encoding="utf-8")
        except OSError as error:
            raise _cannot_write(self.target, error) from error
        self.version = version

    def write(self, data: bytes) -> None:
        """Appends bytes.

        Raises:
            DownloadError: the disk is full or cannot be written.
        """
        try:
            if self._file is None:
                self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  (closed by close)
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise _cannot_write(self.target, error) from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        self.close()
        for path in (self.path, self._note, *self.drive_parts()):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def drive_parts(self) -> list[Path]:
        """What gdown keeps of an interrupted download of ``path``: the same name with eight more letters and .part."""
        pattern = re.compile(re.escape(self.path.name) + r".{8}\.part")
        return [path for path in self.path.parent.iterdir() if pattern.fullmatch(path.name)]


def _check_space(folder: Path, needed: int | None) -> None:
    free = shutil.disk_usage(folder).free
    if needed is not None and needed > free:
        raise DownloadError(
            f"{folder}: the disk has {size_text(free)} free, but {size_text(needed)} are needed. Make room, or choose "
            "another place with -o"
        )


# ---------------------------------------------------------------------------------------------------------------------
# From http(s) addresses


def _try_addresses(entry: Entry, part: Part, settings: Settings) -> None:
    """Tries the addresses in turn; the one that a part came from first."""
    urls = sorted(entry.urls, key=lambda url: url != part.version.get("url"))
    for url in urls:
        try:
            _Transfer(entry, url, part, settings).run()
            return
        except DownloadInterrupted:
            if url == urls[-1] or part.size:
                raise
        except DownloadError:
            if url == urls[-1]:
                raise


class _Transfer:
    """The download of one file from one address: as many answers as it takes."""

    def __init__(self, entry: Entry, url: str, part: Part, settings: Settings):
        self.entry, self.url, self.part, self.settings = entry, url, part, settings
        self.most = part.size  # the most bytes that were ever there: progress is what exceeds it

    def run(self) -> None:
        """Downloads until the part is whole.

        Raises:
            DownloadInterrupted: the connection is lost and some bytes are there. DownloadError: all other failures.
        """
        import requests

        failures = 0
        with requests.Session() as session, _bar(self.entry.file, self.settings) as bar:
            while not self._is_whole():
                try:
                    self._attempt(session, bar)
                except _Retry as error:
                    failures = 1 if self.part.size > self.most else failures + 1
                    self.most = max(self.most, self.part.size)
                    if failures > self._retries():
                        raise self._give_up(error) from error
                    time.sleep(min(30.0, self.settings.wait * 2 ** (failures - 1)))

    def _retries(self) -> int:
        """Who is offline from the start should not wait long to hear it."""
        return self.settings.retries if self.part.size else min(self.settings.retries, RETRIES_BEFORE_FIRST_BYTE)

    def _is_whole(self) -> bool:
        return bool(self.part.version.get("total")) and self.part.size == self.part.version["total"]

    def _give_up(self, error: _Retry) -> DownloadError:
        by_hand = f"or download {self.url} with a browser and put it to {self.part.target}"
        have = self.part.size
        if not have:
            return DownloadError(f"{self.url}: {error}. Check the connection and fetch again, {by_hand}")
        if error.answered:
            return DownloadError(
                f"{self.url}: {error}, and asking for the rest brought no more. Nothing was kept. Fetch again later, "
                f"{by_hand}"
            )
        return DownloadInterrupted(
            f"{self.url}: {error}. The {size_text(have)} that arrived are kept: fetch again to go on from there"
        )

    # -- one answer --

    def _attempt(self, session, bar) -> None:
        """One request and its answer.

        Raises:
            _Retry: it failed in a way that may pass. DownloadError: it failed for good.
        """
        import requests

        try:
            with session.get(self.url, headers=self._headers(), stream=True, timeout=self.settings.timeout) as answer:
                self._receive(answer, bar)
        except requests.exceptions.SSLError as error:
            raise DownloadError(f"{self.url}: the connection is not secure ({error}); a proxy or clock?") from error
        except requests.exceptions.ChunkedEncodingError as error:
            raise _Retry(f"the connection broke off ({_reason(error)})", answered=_ended_early(error)) from error
        except requests.exceptions.ContentDecodingError as error:
            raise _Retry("the answer is damaged", answered=True) from error
        except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
            raise _Retry(f"no connection ({_reason(error)})", answered=False) from error
        except requests.exceptions.RequestException as error:
            raise DownloadError(f"{self.url}: cannot be fetched ({error})") from error

    def _headers(self) -> dict[str, str]:
        # Offsets must count the file's own bytes, so no compression.
        headers = {"Accept-Encoding": "identity"}
        if self.part.size and self._may_resume():
            headers["Range"] = f"bytes={self.part.size}-"
            validator = self._validator()
            if validator:
                headers["If-Range"] = validator
        return headers

    def _validator(self) -> str | None:
        """What If-Range takes: a strong ETag, else a date."""
        etag = self.part.version.get("etag") or ""
        return etag if etag.startswith('"') else self.part.version.get("modified")

    def _may_resume(self) -> bool:
        """Bytes may be joined only when something shows that they are of the same file: a validator or the hash."""
        same_address = self.part.version.get("url") == self.url
        return same_address and bool(self._validator() or self.entry.sha256)

    def _receive(self, answer, bar) -> None:
        self._check_status(answer)
        if self.part.size and answer.status_code == 206:
            self._check_range(answer)
        content = answer.iter_content(CHUNK)
        first = next(content, b"")
        if answer.status_code != 206:
            self._begin(answer, first)
        _check_space(self.part.target.parent, self._missing())
        bar.reset(self.part.version["total"])
        bar.update(self.part.size)
        limit = self.part.version["total"] or self.entry.size
        while first:
            self.part.write(first)
            bar.update(len(first))
            if limit and self.part.size > limit:
                raise DownloadError(f"{self.url}: sends more than the {limit:,} bytes it should. Nothing was kept")
            first = next(content, b"")
        self._end(limit)

    def _missing(self) -> int | None:
        total = self.part.version["total"] or self.entry.size
        return None if total is None else total - self.part.size

    def _end(self, limit: int | None) -> None:
        """The answer ended as it should; but is that all?"""
        if limit and self.part.size < limit:
            raise _Retry(f"the server ended its answer after {self.part.size:,} of {limit:,} bytes", answered=True)
        if not self.part.size:
            raise _Retry("the server's answer is empty", answered=True)
        self.part.version["total"] = self.part.size

    def _check_status(self, answer) -> None:
        status = answer.status_code
        if status in TRANSIENT_STATUS:
            raise _Retry(f"the server answers {status} {answer.reason}", answered=False)
        if status == 416:  # what is here is not a beginning of what is there
            self.part.remove()
            self.part.version = {}
            raise _Retry("the server has no such rest of the file", answered=True)
        if status not in (200, 206) or (status == 206 and not self.part.size):
            raise DownloadError(
                f"{self.url}: the server answers {status} {answer.reason}. Nothing was kept. Has the file moved? "
                f"See {self.entry.source}"
            )
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind in ("text/html", "application/xhtml+xml"):
            raise self._web_page()

    def _web_page(self) -> DownloadError:
        message = (
            f"{self.url}: a web page came instead of weights. Is there a login page in between (as in hotels), or has "
            f"the file moved? Open the address in a browser, or see {self.entry.source}"
        )
        return DownloadInterrupted(f"{message}. What had arrived is kept") if self.part.size else DownloadError(message)

    def _check_range(self, answer) -> None:
        """Whether a partial answer goes on exactly where ours ends, in the same version of the file."""
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("Content-Range", "").strip())
        version = self.part.version
        fits = found is not None and int(found[1]) == self.part.size
        fits = fits and found[3] in ("*", str(version.get("total") or found[3]))
        etag = answer.headers.get("ETag")
        fits = fits and (not etag or not version.get("etag") or etag == version["etag"])
        if not fits:
            self.part.remove()
            self.part.version = {}
            raise _Retry("the file changed while it was being fetched", answered=True)

    def _begin(self, answer, first: bytes) -> None:
        """A whole file is coming, whatever is here already."""
        if looks_like_html(first):
            raise self._web_page()
        plain = answer.headers.get("Content-Encoding", "identity") == "identity"
        length = answer.headers.get("Content-Length", "")
        total = int(length) if plain and length.isdigit() else None
        if total is not None and self.entry.size is not None and total != self.entry.size:
            raise DownloadError(
                f"{self.url}: the server's file has {total:,} bytes, but the catalogue says {self.entry.size:,}. "
                f"Nothing was kept. Try again later; if it stays so, the file has changed: see {self.entry.source}"
            )
        headers = {"etag": answer.headers.get("ETag"), "modified": answer.headers.get("Last-Modified")}
        _check_space(self.part.target.parent, total)
        self.part.start({"url": self.url, **headers, "total": total})


def _reason(error: Exception) -> str:
    """The innermost cause of an error of requests, whose own text is long and repeats itself."""
    while error.__cause__ or error.__context__ or (error.args and isinstance(error.args[0], Exception)):
        error = error.__cause__ or error.__context__ or error.args[0]
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _ended_early(error: Exception) -> bool:
    """Whether the server closed the connection by itself, before the end of its answer."""
    return any(sign in str(error) for sign in ("IncompleteRead", "InvalidChunkLength", "prematurely"))


def _bar(name: str, settings: Settings):
    from tqdm import tqdm

    hidden = None if settings.progress is None else not settings.progress
    return tqdm(desc=name, unit="B", unit_scale=True, unit_divisor=1000, disable=hidden)


# ---------------------------------------------------------------------------------------------------------------------
# From Google Drive, through gdown


def _download_from_drive(entry: Entry, part: Part, settings: Settings) -> None:
    import gdown
    import requests

    by_hand = f"open {entry.address} in a browser, download it there and put it to {part.target}"
    try:
        _run_gdown(entry, part, settings)
    except gdown.exceptions.FileURLRetrievalError as error:
        raise DownloadError(
            f"{entry.name}: Google Drive does not hand out the file: it was asked for too often lately, or is no longer "
            f"public. Try again tomorrow, or {by_hand}"
        ) from error
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout, gdown.exceptions.DownloadError) as error:
        raise _drive_outage(entry, part, error, by_hand) from error
    except requests.exceptions.RequestException as error:
        raise DownloadError(f"{entry.name}: Google Drive refuses ({error}); {by_hand}") from error
    except OSError as error:
        raise _cannot_write(part.target, error) from error


def _drive_outage(entry: Entry, part: Part, error: Exception, by_hand: str) -> DownloadError:
    have = part.arrived()
    if not have:
        return DownloadError(
            f"{entry.name}: no connection to Google Drive ({_reason(error)}). Check it and fetch again, or {by_hand}"
        )
    return DownloadInterrupted(
        f"{entry.name}: the connection to Google Drive is lost ({_reason(error)}). The {size_text(have)} that arrived "
        f"are kept: fetch again to go on from there, or {by_hand}"
    )


def _run_gdown(entry: Entry, part: Part, settings: Settings) -> None:
    """Lets gdown fill ``part.path``, going on from where an earlier call stopped."""
    import gdown

    if len(part.drive_parts()) > 1:  # gdown cannot choose between them
        part.remove()
    number = entry.drive or _drive_number(entry, settings)
    resumed = bool(part.drive_parts())
    with _bar(entry.file, settings) as bar:
        retries = settings.retries if resumed else min(settings.retries, RETRIES_BEFORE_FIRST_BYTE)
        options = dict(output=str(part.path), quiet=True, use_cookies=False, resume=True, retries=retries)
        options |= dict(timeout=settings.timeout, progress=_drive_progress(part, bar))
        try:
            gdown.download(id=number, **options)
        except gdown.exceptions.DownloadError as error:
            if not resumed or isinstance(error, gdown.exceptions.FileURLRetrievalError):
                raise
            part.remove()  # the rest does not fit to what was there
            gdown.download(id=number, **options)


def _drive_progress(part: Part, bar):
    def show(done: int, total: int | None) -> None:
        if bar.n == 0:
            _check_space(part.target.parent, total and total - done)
            bar.reset(total)
        bar.update(done - bar.n)

    return show


def _drive_number(entry: Entry, settings: Settings) -> str:
    """Google Drive's id of the entry's file, which lies in a folder there."""
    import gdown

    retries = min(settings.retries, RETRIES_BEFORE_FIRST_BYTE)
    patience = dict(use_cookies=False, timeout=settings.timeout, retries=retries)
    try:
        files = gdown.download_folder(id=entry.drive_folder, skip_download=True, quiet=True, **patience) or []
    except gdown.exceptions.FileURLRetrievalError:
        raise
    except gdown.exceptions.DownloadError as error:
        raise gdown.exceptions.FileURLRetrievalError(str(error)) from error
    found = [file.id for file in files if Path(file.path).name == entry.file]
    if not found:
        raise DownloadError(
            f"{entry.name}: the folder {entry.address} on Google Drive holds no {entry.file}; look there with a browser"
        )
    return found[0]
