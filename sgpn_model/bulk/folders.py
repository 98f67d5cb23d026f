"""Folders on any file system that fsspec knows: what is in them, and files that come there whole or not at all."""

import os
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sgpn_arch.files import UNFINISHED, write_atomically
from sgpn_model.restore.album import InputError

# Where an upload is one request that is there whole or not at all. Elsewhere a file is uploaded and then renamed.
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci"}


def open_url(url: str) -> tuple[Any, str]:
    """The file system of a URL or path, and the path on it.

    Two colons chain URLs, as in ``zip://a.jpg::s3://archive/1950.zip``; without a second URL they belong to a file's name.

    Raises:
        InputError: the URL's kind is unknown, or needs a package that is not installed.
    """
    first, _, rest = url.partition("::")
    try:
        system, path = fsspec.url_to_fs(url if "://" in rest else first)
        if rest and "://" not in rest:  # fsspec would take the name up to the colons: findings/fsspec_colons.sh
            path = system._strip_protocol(url)
    except (ValueError, ImportError) as error:
        raise InputError(f"{url}: cannot be opened: {error}") from error
    return system, path


class Folder:
    """A folder that files are written to; it can be pickled.

    Attributes:
        url: as it was given; of a folder of this machine its whole path, as workers may run elsewhere.
        system: fsspec's file system. path: of the folder on it. local: the folder, where it is one of this machine, else None.
    """

    def __init__(self, url: str):
        self.system, path = open_url(url)
        self.path = path.rstrip("/")
        self.local = Path(self.path) if isinstance(self.system, LocalFileSystem) else None
        self.url = self.path if self.local else url.rstrip("/")

    def place(self, name: str) -> str:
        """The path of a file in it."""
        return f"{self.path}/{name}"

    def told(self, name: str) -> str:
        """A file's path, or its URL, as others can open it."""
        return self.place(name) if self.local else self.system.unstrip_protocol(self.place(name))

    def write(self, name: str, write: Callable[[str], Any]) -> None:
        """Calls ``write(path of a temporary file)`` and brings that file here.

        Raises:
            Exception: whatever the file system raises; then nothing is here.
        """
        if self.local:
            write_atomically(self.local / name, write)
            return
        with tempfile.TemporaryDirectory(prefix="sgpn-") as folder:
            path = os.path.join(folder, "part")
            write(path)
            self.send(path, name)

    def send(self, path: str | Path, name: str) -> None:
        """Uploads a file."""
        target, system = self.place(name), self.system
        protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
        if protocols & OBJECT_STORES:
            system.put_file(str(path), target)
            return
        parent = target.rpartition("/")[0]
        unfinished = f"{parent}/{UNFINISHED}{uuid.uuid4().hex}"
        system.makedirs(parent, exist_ok=True)
        try:
            system.put_file(str(path), unfinished)
            system.mv(unfinished, target)
        except BaseException:
            if system.exists(unfinished):
                system.rm(unfinished)
            raise
