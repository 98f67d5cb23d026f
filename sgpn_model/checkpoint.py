"""Every read and write of weights: safetensors files that describe themselves, written atomically, read without code."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "sgpn-checkpoint"


class CheckpointError(ValueError):
    """A file of weights that cannot be used; the message names the file and the cause."""


@dataclass
class Checkpoint:
    """Weights per network, and the metadata that says how to rebuild and use them.

    Attributes:
        weights: network name -> state dict (float32).
        metadata: ``archs`` (network name -> {type, arguments}), ``template``, ``morphable_model``, ``step``,
            ``licence``, ``version``, and what the writer added.
    """

    weights: dict[str, dict[str, Tensor]]
    metadata: dict[str, Any]


def write_atomically(path: str | Path, write: Callable[[str], None]) -> None:
    """Calls ``write(temporary path)``, flushes the file to disk and renames it to ``path``; leaves no half file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save_checkpoint(
    path: str | Path,
    weights: Mapping[str, Mapping[str, Tensor]],
    metadata: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> None:
    """Writes networks and their description into one safetensors file.

    Args:
        weights: network name -> state dict. metadata: anything JSON can hold; ``archs`` must name every network.
        dtype: stores floating-point tensors in this type (float16 for weights that ship).

    Raises:
        CheckpointError: ``archs`` lacks a network, or a tensor is not finite (in ``dtype``). Nothing is written.
    """
    unnamed = set(weights) - set(metadata.get("archs", {}))
    if unnamed:
        raise CheckpointError(f"{path}: metadata 'archs' does not describe {', '.join(sorted(unnamed))}")
    tensors = {
        f"{network}.{key}": _stored(value, dtype) for network, state in weights.items() for key, value in state.items()
    }
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: not written, for '{key}' holds NaN or infinity in {value.dtype}")
    header = {"format": FORMAT, "metadata": json.dumps(dict(metadata))}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=header))


def _stored(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    value = value.detach().cpu()
    if dtype is not None and value.is_floating_point():
        value = value.to(dtype)
    return value.clone(memory_format=torch.contiguous_format)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint of this library; floating-point tensors come back as float32.

    Raises:
        CheckpointError: no such file, not safetensors, or not a checkpoint of this library.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file of weights")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise CheckpointError(f"{path}: not a checkpoint of this library (format {header.get('format')!r})")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}); is the copy complete?") from error
    try:
        metadata = json.loads(header["metadata"])
        weights: dict[str, dict[str, Tensor]] = {network: {} for network in metadata["archs"]}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its metadata does not describe networks ({error!r})") from error
    for key, value in tensors.items():
        network, _, name = key.partition(".")
        if network not in weights:
            raise CheckpointError(f"{path}: tensor '{key}' belongs to no network that the metadata describes")
        weights[network][name] = value.float() if value.is_floating_point() else value
    return Checkpoint(weights, metadata)


def load_weights(network: torch.nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Loads a complete state dict.

    Raises:
        CheckpointError: names the first tensor that is missing, left over or of another shape, or is not finite.
    """
    own = network.state_dict()
    problems = [f"'{key}' is missing" for key in own if key not in state]
    problems += [f"'{key}' is not part of {type(network).__name__}" for key in state if key not in own]
    problems += [
        f"'{key}' has shape {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems += [f"'{key}' holds NaN or infinity" for key, value in state.items() if not torch.isfinite(value).all()]
    if problems:
        raise CheckpointError(f"{where}: {problems[0]}" + (f" (and {len(problems) - 1} more)" if problems[1:] else ""))
    network.load_state_dict(dict(state))
