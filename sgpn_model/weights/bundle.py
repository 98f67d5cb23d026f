"""Bundles: the networks of a checkpoint as ONNX files beside it, and a manifest of what a restoration needs. Needs no PyTorch."""

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from sgpn_arch.errors import OptionError
from sgpn_arch.files import sha256_of
from sgpn_arch.schema import Options
from sgpn_data.masks import Fill
from sgpn_model.weights.formats import CheckpointError

FORMAT = "sgpn-bundle"
MANIFEST = "manifest.json"
#: What a bundle's ONNX files compute, in the order of a restoration. The mesh is drawn between the second and the third.
PARTS = ("regressor", "mesh", "render", "generator")


class StoredFile(Options):
    """A file of a bundle."""

    file: str
    """Its name."""
    sha256: str
    """Of its bytes."""


class Manifest(Options):
    """What ``manifest.json`` says."""

    model_config = ConfigDict(extra="ignore")

    format: Literal["sgpn-bundle"]
    """Always this."""
    version: str
    """Of sgpn, which wrote it."""
    weights: StoredFile
    """The checkpoint; fp32 files read their weights from it."""
    parts: dict[Literal["regressor", "mesh", "render", "generator"], StoredFile]
    """The ONNX files."""
    precision: Literal["fp32", "fp16"]
    """Of the generator; the others are fp32."""
    size: int
    """Side of crops and pictures, pixels."""
    template: str
    """How faces are aligned."""
    protocol: Literal["open", "released"]
    """How they are cut out and pasted back, see :class:`ShapePrior`."""
    task: str
    """What the weights were trained for: "restore", "inpaint" or "restore and inpaint"."""
    hole: Fill = "white"
    """What the networks see in a hole, see :class:`.MaskOptions`."""
    uses_render: bool
    """Whether the generator takes the rendering."""
    licence: str | None = None
    """Of the weights."""
    agreement: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Part -> measure -> how far its file is from PyTorch, as the export measured it."""


@dataclass(frozen=True)
class Bundle:
    """A folder of ONNX files, and its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def weights(self) -> Path:
        """The checkpoint in it."""
        return self.folder / self.manifest.weights.file

    def part(self, name: str) -> Path:
        """The ONNX file of one of :data:`PARTS`."""
        return self.folder / self.manifest.parts[name].file  # type: ignore[index]

    def check(self) -> None:
        """Whether its files are those that were exported.

        Raises:
            CheckpointError: one is missing or another; the message names it.
        """
        for stored in (self.manifest.weights, *self.manifest.parts.values()):
            path = self.folder / stored.file
            if not path.is_file() or sha256_of(path) != stored.sha256:
                what = "is not the file that was exported" if path.is_file() else "is missing"
                raise CheckpointError(f"{path}: {what}; export the bundle again with sgpn export")


def read_bundle(folder: str | Path) -> Bundle:
    """Reads a bundle's manifest.

    Raises:
        CheckpointError: there is none, or it is damaged; the message names the file and the key.
    """
    path = Path(folder).expanduser() / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        manifest = Manifest.read(content)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: is a folder, and no bundle, for it has no {MANIFEST}; give a file, or make one with sgpn export"
        ) from error
    except OptionError as error:
        raise CheckpointError("\n".join(f"{path}: {problem}" for problem in error.problems)) from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is damaged ({error}); export the bundle again with sgpn export") from error
    missing = [part for part in PARTS if part not in manifest.parts]
    names = [stored.file for stored in (manifest.weights, *manifest.parts.values())]
    strange = [name for name in names if Path(name).name != name]
    if missing or strange:
        wrong = f"parts: lacks {', '.join(missing)}" if missing else f"{strange[0]!r} lies outside of the bundle"
        raise CheckpointError(f"{path}: {wrong}; export the bundle again with sgpn export")
    return Bundle(path.parent, manifest)


def bundle_of(weights: Path) -> Bundle | None:
    """The bundle beside a checkpoint, if there is one of it.

    Raises:
        CheckpointError: there is a manifest, but it is damaged.
    """
    if not (weights.parent / MANIFEST).is_file():
        return None
    bundle = read_bundle(weights.parent)
    return bundle if bundle.weights.name == weights.name else None


def package_version() -> str:
    """Of sgpn, as it is installed; "unknown" where it is run from its folder."""
    try:
        return importlib.metadata.version("sgpn")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def stored(path: Path) -> Mapping[str, Any]:
    """The entry of a file in a manifest."""
    return {"file": path.name, "sha256": sha256_of(path)}
