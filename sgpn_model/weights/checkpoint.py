"""Every read and write of weights: safetensors files that describe themselves, written atomically, read without code.

Other people's weights are pickles; :func:`read_pickle` reads those that hold tensors and plain containers only.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sgpn_arch import UnknownArch, build_network, package_of
from sgpn_arch.errors import UserError
from sgpn_arch.face3d.morphable_model import TENSORS, MorphableModel
from sgpn_arch.files import write_tensors
from sgpn_arch.registry import ARCH_REGISTRY
from sgpn_arch.state_dicts import build_for, load_strictly
from sgpn_model.weights.formats import KINDS, kind_of

FORMAT = "sgpn-checkpoint"
MODEL_PREFIX = "morphable_model"
# Where checkpoints that hold more than a state dict keep it: EMA first, as that is what inference uses.
STATE_KEYS = ("g_ema", "params_ema", "params", "state_dict")
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how PyTorch's files began before they were zip files


class CheckpointError(UserError, ValueError):
    """A file of weights that cannot be used; the message names the file and the cause."""


@dataclass
class Checkpoint:
    """Weights per network, and the metadata that says how to rebuild and use them.

    Attributes:
        path: where it was read from, for messages.
        weights: network name -> state dict (float32).
        metadata: ``archs`` (network name -> {type, arguments}), ``template``, ``protocol``, ``morphable_model``, ``step``,
            ``licence``, ``version``, ``packages`` (name of a plugin's architecture -> the package that brings it), and what the
            writer added.
        model_tensors: the morphable model's, where the file brings its own.
    """

    path: Path
    weights: dict[str, dict[str, Tensor]]
    metadata: dict[str, Any]
    model_tensors: dict[str, Tensor]

    def network(self, name: str) -> torch.nn.Module:
        """Builds the network ``name`` around its weights, whose memory it shares.

        Raises:
            CheckpointError: there is none of this name, or weights and description do not fit together.
        """
        if name not in self.weights:
            raise CheckpointError(f"{self.path}: holds no '{name}' (it has {', '.join(self.weights) or 'no network'})")
        options, state = self.metadata["archs"][name], self.weights[name]
        try:
            return build_for(state, lambda: build_network(options))
        except UnknownArch as error:
            raise CheckpointError(f"{self.path}: {name}: {self._where_from(error.name)}") from error
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{self.path}: {name}: {error}") from error

    def _where_from(self, arch: str) -> str:
        """What to do about an architecture that nothing installed here registers."""
        packages = self.metadata.get("packages")
        maker = str(packages.get(arch)) if isinstance(packages, dict) else ""
        if re.fullmatch(r"[\w.-]+==[\w.+!-]+", maker):
            return (
                f"'{arch}' comes from the package {maker}, which is not installed; if you trust it: pip install {maker}"
            )
        return (
            f"'{arch}' is registered by nothing installed here; a plugin is missing: install the package that brings it, "
            "or import its module before"
        )

    @property
    def names_morphable_model(self) -> bool:
        """Whether the file says which morphable model its weights were trained with."""
        return isinstance(self.metadata.get(MODEL_PREFIX), dict)

    def morphable_model(self) -> MorphableModel:
        """The morphable model that the weights were trained with: the file's own, or the one that ships.

        Raises:
            CheckpointError: the file names none, its tensors do not fit together, or the one that ships has changed since.
        """
        if not self.names_morphable_model:
            raise CheckpointError(f"{self.path}: its metadata describes no morphable model")
        about = self.metadata[MODEL_PREFIX]
        if about.get("embedded"):
            missing = [key for key in TENSORS if key not in self.model_tensors]
            if missing:
                raise CheckpointError(f"{self.path}: the morphable model lacks {', '.join(missing)}")
            arguments: dict[str, Any] = {
                "name": str(about.get("name")),
                "face_normals": about.get("face_normals", "area"),
            }
            try:
                return MorphableModel(**{**self.model_tensors, **arguments})
            except (TypeError, ValueError, RuntimeError, IndexError) as error:
                raise CheckpointError(f"{self.path}: {MODEL_PREFIX}: {error}") from error
        model = MorphableModel.open()
        if model.fingerprint() != about.get("fingerprint"):
            raise CheckpointError(
                f"{self.path}: was trained with another version of the morphable model '{about.get('name')}' than the one "
                "that ships with this version of sgpn; use the version of sgpn that wrote it, or train again"
            )
        return model


def save_checkpoint(
    path: str | Path,
    weights: Mapping[str, Mapping[str, Tensor]],
    metadata: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    morphable_model: MorphableModel | None = None,
) -> None:
    """Writes networks and their description into one safetensors file.

    Args:
        weights: network name -> state dict. metadata: anything JSON can hold; ``archs`` must name every network.
        dtype: stores floating-point tensors of networks in this type (float16 for weights that ship).
        morphable_model: the one that they go with. It is written into the file, unless it is the one that ships.

    Raises:
        CheckpointError: ``archs`` lacks a network, or a tensor is not finite (in ``dtype``). Nothing is written.
    """
    unnamed = set(weights) - set(metadata.get("archs", {}))
    if unnamed:
        raise CheckpointError(f"{path}: metadata 'archs' does not describe {', '.join(sorted(unnamed))}")
    tensors = {
        f"{network}.{key}": _stored(value, dtype) for network, state in weights.items() for key, value in state.items()
    }
    metadata = dict(metadata)
    packages = {**metadata.get("packages", {}), **_packages(metadata.get("archs", {}))}
    if packages:
        metadata["packages"] = packages
    if morphable_model is not None:
        fingerprint = morphable_model.fingerprint()
        metadata[MODEL_PREFIX] = {
            "name": morphable_model.name,
            "fingerprint": fingerprint,
            "embedded": fingerprint != MorphableModel.open().fingerprint(),
            "face_normals": morphable_model.face_normals,
        }
        if metadata[MODEL_PREFIX]["embedded"]:
            own = morphable_model.tensors().items()
            tensors.update({f"{MODEL_PREFIX}.{key}": _stored(value, _smallest_type(value)) for key, value in own})
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: not written, for '{key}' holds NaN or infinity in {value.dtype}")
    write_tensors(path, tensors, {"format": FORMAT, "metadata": json.dumps(metadata)})


def _packages(options: Any) -> dict[str, str]:
    """Registered name -> "package==version" that brings it, of all names in networks' options that are not this library's."""
    if isinstance(options, Mapping):
        return {name: maker for value in options.values() for name, maker in _packages(value).items()}
    if isinstance(options, str) and options in ARCH_REGISTRY:
        maker = package_of(ARCH_REGISTRY.get(options).__module__)
        return {options: maker} if maker else {}
    return {}


def _smallest_type(value: Tensor) -> torch.dtype | None:
    """Half precision for what is not changed by it, as the bases of a model that was saved so."""
    exact = value.is_floating_point() and torch.equal(value.half().to(value.dtype), value)
    return torch.float16 if exact else None


def _stored(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    return value.to(dtype) if dtype is not None and value.is_floating_point() else value


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
    metadata = read_metadata(path, header)
    weights: dict[str, dict[str, Tensor]] = {network: {} for network in metadata["archs"]}
    model_tensors: dict[str, Tensor] = {}
    groups = {**weights, MODEL_PREFIX: model_tensors}
    for key, value in tensors.items():
        group, _, name = key.partition(".")
        if group not in groups:
            raise CheckpointError(f"{path}: tensor '{key}' belongs to no network that the metadata describes")
        # A tensor that is not converted is a part of the mapped file, which it would keep in memory as a whole.
        groups[group][name] = value.float() if value.is_floating_point() else value.clone()
    return Checkpoint(path, weights, metadata, model_tensors)


def read_metadata(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    """What the header of a checkpoint's file says about it.

    Raises:
        CheckpointError: it does not describe networks.
    """
    try:
        metadata = json.loads(header["metadata"])
        dict.keys(metadata["archs"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its metadata does not describe networks ({error!r})") from error
    return metadata


def load_weights(network: torch.nn.Module, state: Mapping[str, Tensor], where: str | Path) -> None:
    """Loads a complete state dict.

    Raises:
        CheckpointError: names the first tensor that is missing, left over or of another shape, or is not finite.
    """
    try:
        load_strictly(network, state)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error


# ---------------------------------------------------------------------------------------------------------------------
# Pickles


def read_pickle(path: str | Path) -> Any:
    """Reads a file that ``torch.save`` wrote, if it holds tensors and plain containers only. No code of it runs.

    Returns:
        What was saved, tensors on the CPU.

    Raises:
        CheckpointError: no such file; not a PyTorch file; damaged; it asks for code to be run; or it would unpack to
            more than it holds.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file of weights")
    _check_container(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        what = f"asks for {named[1]}" if named else "holds more than tensors and plain containers"
        raise CheckpointError(
            f"{path}: refused, for it {what}; weights need no code. Nothing of it was run. Save its state dict alone, on a "
            "machine where you trust it"
        ) from error
    except Exception as error:  # PyTorch raises whatever the damage happens to lead to
        raise CheckpointError(f"{path}: is damaged or incomplete ({_first_line(error)}); get it again") from error
    try:
        _check_sizes(content, path)
    except RecursionError as error:
        raise CheckpointError(f"{path}: refused, for it contains itself") from error
    return content


def read_state_dict(path: str | Path) -> Any:
    """The tensors of other people's checkpoint by name, also where it keeps them beside other things.

    Raises:
        CheckpointError: as :func:`read_pickle`.
    """
    content = read_pickle(path)
    for key in STATE_KEYS if isinstance(content, Mapping) else ():
        if isinstance(content.get(key), Mapping):
            return content[key]
    return content


def _check_container(path: Path) -> None:
    """PyTorch never compresses: what is unpacked cannot be larger than the file, unless it is meant to fill the memory."""
    kind = kind_of(path)
    if kind not in ("zip", "pytorch"):
        with open(path, "rb") as file:
            if file.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC:
                return
        raise CheckpointError(f"{path}: is {KINDS[kind]}, not a file that PyTorch wrote; get it again")
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise CheckpointError(f"{path}: is damaged or incomplete ({error}); get it again") from error
    unpacked = sum(entry.file_size for entry in entries)
    compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if compressed or unpacked > path.stat().st_size:
        raise CheckpointError(
            f"{path}: refused as a zip bomb: its {path.stat().st_size} bytes would unpack to {unpacked}; PyTorch's files are "
            "not compressed"
        )


def _check_sizes(content: Any, path: Path) -> None:
    """Tensors must have all their numbers in the file: a repeated one can claim any shape."""
    for name, value in _walk(content):
        if value.layout != torch.strided or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path}: refused, for '{name}' of shape {tuple(value.shape)} claims more numbers than the file holds"
            )


def _walk(content: Any, name: str = ""):
    if isinstance(content, Tensor):
        yield name or "tensor", content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _walk(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, list | tuple):
        for index, value in enumerate(content):
            yield from _walk(value, f"{name}[{index}]")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
