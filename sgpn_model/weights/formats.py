"""What kind of file a file of weights is, by its first bytes, and whether it is whole; nothing in it runs or is unpacked."""

import zipfile
import zlib
from pathlib import Path

from sgpn_arch.errors import UserError

CHECKPOINT_FORMAT = "sgpn-checkpoint"  # what a checkpoint's header says


class CheckpointError(UserError, ValueError):
    """A file of weights that cannot be used; the message names the file and the cause."""


# How files begin -> their kind. A PyTorch file is a zip archive (since 1.6) or a pickle.
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
HTML = (b"<!doctype html", b"<html", b"<head", b"<script", b"<!--", b"<?xml", b"<title")
# What to call a kind.
KINDS = {
    "safetensors": "a safetensors file",
    "pytorch": "a PyTorch file",
    "pickle": "a PyTorch file of the old format",
    "matlab": "a MATLAB file",
    "hdf5": "an HDF5 file",
    "zip": "a zip archive",
    "gzip": "a gzip archive",
    "7z": "a 7z archive",
    "rar": "an RAR archive",
    "html": "a web page, not weights",
    "empty": "an empty file",
    "unknown": "a file of no format of weights that is known here",
}


def kind_of(path: str | Path) -> str:
    """A key of KINDS: "pytorch" is a zip archive with pickled tensors."""
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return "empty"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(HTML):
        return "html"
    # The length of its header comes first, and may look like the beginning of another kind.
    if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") <= 100 << 20:
        return "safetensors"
    kind = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), "unknown")
    if kind == "zip":
        try:
            with zipfile.ZipFile(path) as archive:
                return "pytorch" if any(Path(name).name == "data.pkl" for name in archive.namelist()) else "zip"
        except (OSError, zipfile.BadZipFile):
            return "zip"
    return kind


def damage_of(path: str | Path) -> str | None:
    """What is wrong with a file of weights as far as its format tells, or None; the words go on from the file's name."""
    kind = kind_of(path)
    if kind in ("html", "empty", "unknown"):
        return f"is {KINDS[kind]}"
    if kind in ("zip", "pytorch"):
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        # A zip archive's table of contents stands at its end, so one that was cut off has none.
        except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            return f"is an archive that was cut off or damaged ({error})"
        return f"is a damaged archive: '{damaged}' in it has another checksum" if damaged else None
    if kind == "safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="np"):
                return None
        except (OSError, SafetensorError) as error:
            return f"is not a whole safetensors file ({error})"
    return None
