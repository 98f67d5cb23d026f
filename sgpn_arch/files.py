"""Files: written whole or not at all, the one way to write tensors, SHA-256, and the folders of caches and packages."""

import functools
import glob
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


# Unfinished files lie in hidden folders of this name, beside what they will be.
UNFINISHED = ".sgpn-unfinished-"


def write_atomically(path: str | Path, write: Callable[[str], Any], durable: bool = True) -> None:
    """Calls ``write(temporary path)`` and renames the result to ``path``; whatever goes wrong, no half file is left.

    The folder is made where there is none. ``durable`` flushes to the disk first, so that the file outlives a power cut.
    What a process that was killed left behind in the folder is removed (not on Windows, where folders have no locks).

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent.absolute())  # the working folder may change
    folder, lock = _unfinished_folder(path.parent)
    temporary = os.path.join(folder, "part")
    try:
        write(temporary)
        if durable:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # safetensors makes files that only their owner may read
        os.replace(temporary, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _unfinished_folder(parent: Path) -> tuple[str, int | None]:
    """A new folder, and the lock on it that tells other processes that this one lives."""
    while True:
        folder = tempfile.mkdtemp(prefix=UNFINISHED, dir=parent)
        lock = _lock(folder, wait=True)
        if os.path.exists(folder):  # else another process took it for a leftover before it was locked
            return folder, lock
        if lock is not None:
            os.close(lock)


def _lock(folder: str, wait: bool) -> int | None:
    """Locks a folder for as long as the descriptor is open; None if somebody else holds it, or where folders have no locks."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@functools.lru_cache(maxsize=256)
def _remove_leftovers(parent: Path) -> None:
    """Removes the unfinished folders that nobody holds, once for each parent folder and process."""
    for folder in glob.glob(os.path.join(glob.escape(str(parent)), UNFINISHED + "*")):
        lock = _lock(folder, wait=False)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def write_tensors(path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, atomically. The same tensors and metadata give the same bytes.

    Args:
        tensors: name -> torch tensor or numpy array, of any memory layout.

    Raises:
        OSError: the file cannot be written.
    """
    import numpy as np
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def own(value: Any) -> torch.Tensor:
        # safetensors.numpy of 0.8.0 writes arrays that are not contiguous in a wrong order; safetensors.torch refuses them,
        # and tensors that share memory.
        if isinstance(value, np.ndarray):
            return torch.from_numpy(np.array(value, order="C"))
        return value.detach().cpu().clone(memory_format=torch.contiguous_format)

    def write(temporary: str) -> None:
        try:
            save_file({key: own(value) for key, value in tensors.items()}, temporary, metadata=dict(metadata))
        except SafetensorError as error:  # its own, also for a full disk
            raise OSError(f"{path}: cannot be written ({error})") from error
        # safetensors writes the metadata in an order that changes from call to call.
        with open(temporary, "rb+") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
            if len(text) > size:
                raise RuntimeError(f"{path}: not written, for its header would not fit: {len(text)} > {size} bytes")
            file.seek(8)
            file.write(text.ljust(size))

    write_atomically(path, write)


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file, in lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where downloads and compiled kernels go: the environment variable SGPN_HOME, or this platform's folder for caches."""
    if os.environ.get("SGPN_HOME"):
        return Path(os.environ["SGPN_HOME"]).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("sgpn", appauthor=False))


def package_folder(name: str) -> Path | None:
    """The folder of an installed package, found without importing it; None where it is not installed."""
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
