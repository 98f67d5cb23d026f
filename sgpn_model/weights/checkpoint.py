"""Every read and write of weights: safetensors files that describe themselves, written atomically, read without code.

Other people's weights are pickles; :func:`read_pickle` reads those that hold tensors and plain containers only.
"""

import contextlib
import hashlib
import inspect
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Predicate
from pydantic import ConfigDict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sgpn_arch import UnknownArch, build_network, described_by_file, find_arch, package_of
from sgpn_arch.by_name import options_of
from sgpn_arch.errors import OptionError
from sgpn_arch.face3d.morphable_model import TENSORS, MorphableModel
from sgpn_arch.files import write_tensors
from sgpn_arch.ranges import Told, Whole
from sgpn_arch.registry import ARCH_REGISTRY
from sgpn_arch.schema import Options
from sgpn_arch.state_dicts import build_for, is_finite, load_strictly, tensors_in
from sgpn_data.masks import Fill
from sgpn_model.weights.formats import CHECKPOINT_FORMAT as FORMAT
from sgpn_model.weights.formats import KINDS, CheckpointError, kind_of

MODEL_PREFIX = "morphable_model"
CHECKSUM = "sha256"  # where a file keeps the digest of its content
DEEPEST = 20  # containers in each other in metadata or a pickle; weights have three or four
# Where checkpoints that hold more than a state dict keep it: EMA first, as that is what inference uses.
STATE_KEYS = ("g_ema", "params_ema", "params", "state_dict")
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how PyTorch's files began before they were zip files


class _Described(Options):
    model_config = ConfigDict(extra="allow")


class ArchOptions(_Described):
    """One of ``archs``: the network, and whatever its constructor takes, which is checked when it is built."""

    type: str
    """Name in ARCH_REGISTRY."""


class ModelFacts(_Described):
    """``morphable_model``: the one that the weights go with."""

    name: str = "unnamed"
    """What it is called."""
    fingerprint: str
    """Its :meth:`MorphableModel.fingerprint`."""
    embedded: bool = False
    """Whether it is in the file; otherwise it ships."""
    face_normals: str = "area"
    """See :class:`MorphableModel`."""


NetworkName = Annotated[
    str,
    Predicate(lambda name: re.fullmatch(r"\w+", name) is not None and name != MODEL_PREFIX),
    Told(f"a name of letters, digits and _, other than {MODEL_PREFIX}"),
]


class Metadata(_Described):
    """What the header of a checkpoint says about it, beside what its writer added."""

    archs: dict[NetworkName, ArchOptions]
    """The networks that it holds."""
    template: str | None = None
    """How faces are aligned for it."""
    protocol: str = "open"
    """How a crop is brought to the regressor, see :class:`ShapePrior`."""
    task: str = "restore"
    """What it was trained for: "restore", "inpaint", or "restore and inpaint"."""
    hole: Fill = "white"
    """What its networks see in a hole, see :class:`.MaskOptions`."""
    morphable_model: ModelFacts | None = None
    """The model that its coefficients are of."""
    step: Whole | None = None
    """Training steps."""


@dataclass
class Checkpoint:
    """Weights per network, and the metadata that says how to rebuild and use them.

    Attributes:
        path: where it was read from, for messages.
        weights: network name -> state dict (float32).
        metadata: as :class:`Metadata` has it, and ``licence``, ``version``, ``packages`` (name of a plugin's architecture -> the
            package that brings it) and what the writer added.
        model_tensors: the morphable model's, where the file brings its own.
    """

    path: Path
    weights: dict[str, dict[str, Tensor]]
    metadata: dict[str, Any]
    model_tensors: dict[str, Tensor]

    def network(self, name: str) -> torch.nn.Module:
        """Builds the network ``name`` around its weights, whose memory it shares.

        Only networks of this library and of its plugins are built, and those that the user allows; see
        :func:`sgpn_arch.described_by_file`. Layers and memory are bounded by the weights.

        Raises:
            CheckpointError: there is none of this name, it may not be built, or weights and description do not fit together.
        """
        if name not in self.weights:
            raise CheckpointError(f"{self.path}: holds no '{name}' (it has {', '.join(self.weights) or 'no network'})")
        options, state = self.metadata["archs"][name], self.weights[name]
        try:
            with described_by_file(options):
                _check_arguments(options, f"archs.{name}")
                return build_for(state, lambda: build_network(options))
        except UnknownArch as error:
            raise CheckpointError(f"{self.path}: {name}: {self._where_from(error.name)}") from error
        except OptionError as error:
            raise _told(self.path, error) from error
        except Exception as error:  # a constructor of somebody else's raises whatever it likes
            raise CheckpointError(f"{self.path}: {name}: {error or type(error).__name__}") from error

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
        return self.metadata.get(MODEL_PREFIX) is not None

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
                "name": about.get("name", "unnamed"),
                "face_normals": about.get("face_normals", "area"),
            }
            try:
                return MorphableModel(**{**self.model_tensors, **arguments})
            except (TypeError, ValueError) as error:
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
        CheckpointError: ``archs`` lacks a network, metadata could not be read again, or a tensor is not finite (in ``dtype``).
            Nothing is written.
        OSError: the file cannot be written; what was there before is untouched.
    """
    unnamed = set(weights) - set(metadata.get("archs", {}))
    if unnamed:
        raise CheckpointError(f"{path}: metadata 'archs' does not describe {', '.join(sorted(unnamed))}")
    _check_metadata(metadata, path, "not written, for ")
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
        if not is_finite(value):
            raise CheckpointError(f"{path}: not written, for '{key}' holds NaN or infinity in {value.dtype}")
    header = {"format": FORMAT, "metadata": json.dumps(metadata)}
    write_tensors(path, tensors, {**header, CHECKSUM: digest_of([header["metadata"], tensors])})


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
        CheckpointError: no such file, not safetensors, damaged, or not a checkpoint of this library; the message names the key.
    """
    path = Path(path).expanduser()
    with opened(path) as file:
        header = file.metadata() or {}
        if header.get("format") != FORMAT:
            raise CheckpointError(f"{path}: not a checkpoint of this library (format {header.get('format')!r})")
        metadata = read_metadata(path, header)
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    # Hashing takes a millisecond for each MB. Files from before there were checksums are read as they are.
    if CHECKSUM in header and header[CHECKSUM] != digest_of([header["metadata"], tensors]):
        raise CheckpointError(
            f"{path}: is damaged: its tensors or its metadata are not those that were written, for its {CHECKSUM} is another; "
            "get it again"
        )
    weights: dict[str, dict[str, Tensor]] = {network: {} for network in metadata["archs"]}
    model_tensors: dict[str, Tensor] = {}
    groups = {**weights, MODEL_PREFIX: model_tensors}
    for key, value in tensors.items():
        group, _, name = key.partition(".")
        if group not in groups:
            raise CheckpointError(f"{path}: tensor '{key}' belongs to no network that the metadata describes")
        # A tensor that is not converted is a part of the mapped file, which it keeps in memory as a whole. Networks are converted
        # for inference, or need most of the file; the model would keep all of it for a small part.
        kept = group == MODEL_PREFIX or not value.is_floating_point()
        groups[group][name] = value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=kept)
    return Checkpoint(path, weights, metadata, model_tensors)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An open safetensors file.

    Raises:
        CheckpointError: there is none, or it is damaged; also from within the block.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file of weights")
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}); is the copy complete?") from error


def read_metadata(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    """What the header of a checkpoint's file says about it, checked as :class:`Metadata`.

    Raises:
        CheckpointError: it does not describe networks; the message names every key that is wrong.
    """
    try:
        metadata = json.loads(header["metadata"])
        check_depth(metadata)
    except KeyError as error:
        raise CheckpointError(f"{path}: its metadata does not describe networks: there is none") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its metadata does not describe networks: {error}") from error
    _check_metadata(metadata, path, "its metadata does not describe networks: ")
    return metadata


def _check_metadata(metadata: Any, path: str | Path, what: str) -> None:
    try:
        Metadata.read(metadata)
    except OptionError as error:
        raise _told(path, error, what) from error


def _check_arguments(options: Mapping[str, Any], where: str) -> None:
    """Checks what a network's constructor would be given against its types and ranges.

    Defaults are written out in metadata, and are what they are, whatever type stands beside them.
    """
    network = find_arch(options["type"])
    known = inspect.signature(network).parameters

    def is_default(name: str, value: Any) -> bool:
        default = known[name].default if name in known else inspect.Parameter.empty
        return value == (list(default) if isinstance(default, tuple) else default)

    model = options_of(network)
    if model is not None:
        given = {name: value for name, value in options.items() if name != "type" and not is_default(name, value)}
        model.read(given, where)


def _told(path: str | Path, error: OptionError, what: str = "") -> CheckpointError:
    return CheckpointError("\n".join(f"{path}: {what}{problem}" for problem in error.problems))


def check_depth(content: Any) -> None:
    """Raises ValueError where containers are nested deeper than those of any weights; they may even contain themselves."""
    level = [content]
    for _ in range(DEEPEST):
        # Each once: there may be billions of ways to one and the same.
        containers = {id(value): value for value in level if isinstance(value, Mapping | list | tuple)}.values()
        level = [part for each in containers for part in (each.values() if isinstance(each, Mapping) else each)]
    if any(isinstance(value, Mapping | list | tuple) for value in level):
        raise ValueError(f"it is nested more than {DEEPEST} deep, or contains itself")


def digest_of(content: Any) -> str:
    """SHA-256 of tensors and plain values in any containers: of their places, types, shapes and values, in lower-case digits.

    The order in which a mapping was filled does not matter.
    """
    digest = hashlib.sha256()

    def add(place: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key in sorted(value, key=str):
                add(f"{place}.{key}", value[key])
        elif isinstance(value, list | tuple):
            for index, part in enumerate(value):
                add(f"{place}.{index}", part)
        elif isinstance(value, Tensor):
            digest.update(f"{place} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(f"{place} {value!r}\n".encode())

    add("", content)
    return digest.hexdigest()


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
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file of weights")
    _check_container(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of tensors that are refused below
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
        check_depth(content)
    except ValueError as error:
        raise CheckpointError(f"{path}: refused, for {error}; these are no weights") from error
    _check_sizes(content, path)
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
    """Tensors must be plain arrays with all their numbers in the file: a repeated one can claim any shape."""
    for name, value in tensors_in(content):
        plain = (
            value.layout == torch.strided and not (value.is_nested or value.is_quantized) and value.device.type == "cpu"
        )
        if not plain:
            raise CheckpointError(f"{path}: refused, for '{name}' is no plain array of numbers")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path}: refused, for '{name}' of shape {tuple(value.shape)} claims more numbers than the file holds"
            )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
