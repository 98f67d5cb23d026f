"""What lies finished in a folder of results: one line of JSON each, by which the next run goes on where the last one stopped."""

import hashlib
import json
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sgpn_arch.files import sha256_of

RECORD = ".sgpn-record.jsonl"
LOGGER = logging.getLogger("sgpn")


@dataclass(frozen=True)
class FaceNote:
    """A restored face: its middle and the longer side of its box in pixels of the photo, and the detector's score, if any."""

    x: int
    y: int
    size: int
    score: float | None = None


@dataclass(frozen=True)
class Done:
    """What became of a photo.

    Attributes:
        faces: those restored, largest first. untouched: how many the mask left alone. left_out: how many were not chosen.
        remarks: what else a user should know. failed: where those lie that a network failed on (pixels of the photo).
        seconds: that this photo took, of reading, searching, networks, pasting and writing.
    """

    faces: list[FaceNote]
    untouched: int = 0
    left_out: int = 0
    remarks: list[str] = field(default_factory=list)
    failed: list[tuple[int, int]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Stamp:
    """An input as it was before it was read."""

    bytes: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        """The stamp of a file, which is read once for it."""
        status = os.stat(path)
        return cls(status.st_size, status.st_mtime_ns, sha256_of(path))

    def is_of(self, path: Path) -> bool:
        """Whether a file is the same: by size and time, or else by content, as of a copy."""
        try:
            status = os.stat(path)
            same_time = status.st_mtime_ns == self.mtime_ns
            return status.st_size == self.bytes and (same_time or sha256_of(path) == self.sha256)
        except OSError:
            return False


@dataclass(frozen=True)
class Entry:
    """One line: a result, what it was made of and how, and what became of it."""

    target: str
    settings: str
    source: Stamp
    bytes: int
    done: Done


ENTRY = TypeAdapter(Entry)


class Record:
    """The record of a folder of results. Lines are only ever added, and the last one of a result counts.

    A line that cannot be read, as of a run that was killed, costs that photo's being done again, and nothing else.

    Args:
        folder: of the results. settings: everything besides the input that results depend on.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder = folder
        self.settings = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        try:
            data = (folder / RECORD).read_bytes()
        except OSError:
            data = b""
        self._starts_new_line = not data or data.endswith(b"\n")
        for line in data.splitlines():
            try:
                entry = ENTRY.validate_json(line)
            except ValidationError:
                continue
            self._entries[entry.target] = entry

    def find(self, source: Path, target: Path) -> Done | None:
        """What became of a photo, if its result was made of the same input with the same settings and still lies there."""
        entry = self._entries.get(self._name(target))
        if entry is None or entry.settings != self.settings or not entry.source.is_of(source):
            return None
        try:
            size = target.stat().st_size
        except OSError:
            return None
        if not size:
            return None  # a power cut may leave an empty file
        return entry.done

    def is_changed(self, target: Path) -> bool:
        """Whether a result has another size than when it was written."""
        return target.stat().st_size != self._entries[self._name(target)].bytes

    def add(self, stamp: Stamp, target: Path, done: Done) -> None:
        """Notes a result that lies where it belongs; called by several threads."""
        entry = Entry(self._name(target), self.settings, stamp, target.stat().st_size, done)
        line = json.dumps(asdict(entry)) + "\n"
        with self._lock:
            try:
                # One write each, so that two runs into one folder do not mix their lines.
                with open(self.folder / RECORD, "ab", buffering=0) as file:
                    file.write(("" if self._starts_new_line else "\n").encode() + line.encode())
                self._starts_new_line = True
            except OSError as error:
                LOGGER.warning("%s: cannot be written, so the next run will do this again: %s", RECORD, error)

    def _name(self, target: Path) -> str:
        return os.fsencode(target.relative_to(self.folder).as_posix()).decode(errors="backslashreplace")
