"""Files: written whole or not at all, the one way to write tensors, SHA-256, and the folders of caches and packages."""

import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def write_atomically(path: str | Path, write: Callable[[str], Any], durable: bool = True) -> None:
    """Calls ``write(temporary path)`` and renames the result to ``path``; whatever goes wrong, no half file is left.

    The folder is made where there is none. ``durable`` flushes to the disk first, so that the file outlives a power cut.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(temporary)
        if durable:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp, and safetensors too, make files that only their owner may read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
