"""What ``sgpn export`` runs: the networks of a checkpoint as ONNX files (and PyTorch programs), checked against PyTorch.

An fp32 file holds no weights: it names their places in the checkpoint beside it, for a tensor of a safetensors file is as ONNX's
external data are, raw bytes at an offset. So a bundle is little larger than its checkpoint, which may hold them in half
precision, and what runs is what the checkpoint says.
"""

import importlib
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sgpn_arch.errors import UserError
from sgpn_arch.face3d.shape_prior import ShapePrior
from sgpn_arch.fusion_arch import mask_pictures
from sgpn_data.astronaut import real_faces
from sgpn_model.weights.bundle import FORMAT, MANIFEST, Bundle, package_version, read_bundle, stored
from sgpn_model.weights.checkpoint import load_checkpoint
from sgpn_model.weights.pretrained import build_networks, find_weights

LOGGER = logging.getLogger("sgpn")
OPSET = 20  # the first whose GridSample is of pictures and volumes alike; from 18 on all else is there
# What engines compute more slowly than PyTorch, in terms that they do not. ONNX's form of lerp compares every weight with a half.
SIMPLER = {torch.ops.aten.lerp.Tensor: lambda start, end, weight: start + weight * (end - start)}
# Which tensors of a checkpoint the names of a program's weights mean.
PREFIXES = {"network.": "network_g.", "prior.regressor.": "network_shape.", "prior.model.": "morphable_model."}
# How far a file may be from PyTorch. fp32: relative to the largest value, or to 1 where that is less.
FP32_TOLERANCE, LANDMARKS_TOLERANCE = 1e-4, 0.3
LEAST_PSNR = {"fp16": 45.0}


class ExportError(UserError, RuntimeError):
    """Networks that cannot be exported, or files that differ from them; the message names the part and the cause."""


@dataclass
class Program:
    """One part of a restoration as a module, with inputs to trace it with and the names of what goes in and out."""

    module: nn.Module
    examples: tuple[Tensor, ...]
    inputs: Sequence[str]
    outputs: Sequence[str]

    @torch.no_grad()
    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """What PyTorch makes of inputs."""
        found = self.module(*inputs)
        return [found] if isinstance(found, Tensor) else list(found)


class Regressor(nn.Module):
    """photo (N, 3, S, S) RGB in [-1, 1], points5 (N, 5, 2) -> coefficients (N, D), transform (N, 2, 3)."""

    def __init__(self, prior: ShapePrior):
        super().__init__()
        self.prior = prior
        _ = prior.pose_solver  # ONNX cannot find it

    def forward(self, photo: Tensor, points5: Tensor):
        transform = self.prior.transform(points5, photo.shape[-1])
        return self.prior.coefficients(photo, transform), transform


class Mesh(nn.Module):
    """coefficients (N, D) -> what is drawn: points (N, V, 2), depth (N, V), colours (N, V, 3), landmarks224, triangles (F, 3)."""

    def __init__(self, prior: ShapePrior):
        super().__init__()
        self.prior = ShapePrior(nn.Identity(), prior.model)  # what it needs of it

    def forward(self, coefficients: Tensor):
        mesh = self.prior.mesh(coefficients)
        triangles = self.prior.model.triangles.clone()
        return mesh.points, mesh.depth, mesh.colors, self.prior.landmarks224(mesh), triangles


class Render(nn.Module):
    """drawn (N, 4, 224, 224), landmarks224 (N, 68, 2), transform -> render (N, 3, S, S), render_mask, landmarks on the photo."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, drawn: Tensor, landmarks224: Tensor, transform: Tensor):
        return ShapePrior.place(drawn, landmarks224, transform, self.size)


class Generator(nn.Module):
    """photo, render (N, 3, S, S), coefficients (N, D) -> restored (N, 3, S, S), and the mask picture if there are masks."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, photo: Tensor, render: Tensor, coefficients: Tensor):
        restored, masks = self.network(photo, render, coefficients, return_masks=True)
        pictures = mask_pictures(masks)
        return (restored, pictures[max(pictures)]) if pictures else restored


class PhotoGenerator(Generator):
    """The same of a network that uses no rendering."""

    def forward(self, photo: Tensor, coefficients: Tensor):  # type: ignore[override]
        return super().forward(photo, None, coefficients)  # type: ignore[arg-type]


def programs(network: nn.Module, prior: ShapePrior, photos: Tensor, points5: Tensor) -> dict[str, Program]:
    """The parts of a restoration, with what each is given for these photos (N, 3, S, S) and points (N, 5, 2)."""
    for each in (network, prior):
        each.eval().requires_grad_(False)
    size = photos.shape[-1]
    with torch.no_grad():
        transform = prior.transform(points5, size)
        coefficients = prior.coefficients(photos, transform)
        mesh = prior.mesh(coefficients)
        drawn, landmarks = torch.cat(prior.render224(mesh), dim=1), prior.landmarks224(mesh)
        render, *_ = prior.place(drawn, landmarks, transform, size)
    uses_render = getattr(network, "uses_render", True)
    generator = (Generator if uses_render else PhotoGenerator)(network).eval()
    given = (photos, render, coefficients) if uses_render else (photos, coefficients)
    names = ["photo", "render", "coefficients"] if uses_render else ["photo", "coefficients"]
    return {
        "regressor": Program(
            Regressor(prior).eval(), (photos, points5), ["photo", "points5"], ["coefficients", "transform"]
        ),
        "mesh": Program(
            Mesh(prior).eval(),
            (coefficients,),
            ["coefficients"],
            ["points", "depth", "colors", "landmarks224", "triangles"],
        ),
        "render": Program(
            Render(size).eval(),
            (drawn, landmarks, transform),
            ["drawn", "landmarks224", "transform"],
            ["render", "render_mask", "landmarks"],
        ),
        "generator": Program(generator, given, names, ["restored", "mask"]),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def export(weights: str | Path, folder: str | Path, precision: str = "fp32", pt2: bool = False) -> Bundle:
    """Writes a bundle, and checks it; an earlier one in the folder is replaced.

    Args:
        weights: a name or a path, as for :func:`.find_weights`.
        precision: of the generator, "fp32" or "fp16" (for GPUs); the other files are fp32, for half precision moves vertices
            by whole pixels.
        pt2: also write ``torch.export`` programs, NAME.pt2, which hold their weights.

    Raises:
        CheckpointError: the weights cannot be used.
        ExportError: a package is missing, a network cannot be exported, or a file differs too much from it; nothing is left
            in the folder then.
    """
    _require_onnx()
    source, folder = find_weights(weights), Path(folder)
    checkpoint = load_checkpoint(source)
    network, prior, template = build_networks(checkpoint)
    photos, points5 = map(torch.from_numpy, real_faces(network.size, template))  # type: ignore[arg-type]
    parts = programs(network, prior, photos, points5)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".sgpn-export-", dir=folder) as place:
        unfinished = Path(place)
        copy = unfinished / source.name
        shutil.copyfile(source, copy)
        for number, (name, program) in enumerate(parts.items(), 1):
            LOGGER.info("writing %s.onnx (%d of %d)", name, number, len(parts))
            traced = _traced(name, program)
            if pt2:
                torch.export.save(traced, unfinished / f"{name}.pt2")
            half = name == "generator" and precision == "fp16"
            _write_onnx(name, traced, program, unfinished / f"{name}.onnx", None if half else copy)
            if half:
                _halve(unfinished / f"{name}.onnx")
        LOGGER.info("comparing the files with PyTorch")
        agreement = {name: _check(name, parts[name], unfinished / f"{name}.onnx", prior, precision) for name in parts}
        manifest = {
            "format": FORMAT,
            "version": package_version(),
            "weights": stored(copy),
            "parts": {name: stored(unfinished / f"{name}.onnx") for name in parts},
            "precision": precision,
            "size": network.size,
            "template": template,
            "protocol": prior.protocol,
            "task": checkpoint.metadata.get("task", "restore"),
            "hole": checkpoint.metadata.get("hole", "white"),
            "uses_render": getattr(network, "uses_render", True),
            "licence": checkpoint.metadata.get("licence"),
            "agreement": agreement,
        }
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        # The manifest last: until then the folder is no bundle, or one whose files are found not to be its own.
        for path in sorted(unfinished.iterdir(), key=lambda path: path.name == MANIFEST):
            target = folder / path.name
            if path != copy or not (target.exists() and target.samefile(source)):
                path.replace(target)
    return read_bundle(folder)


def _require_onnx() -> None:
    """Before the first minute of work, and before there is a folder."""
    for package in ("onnx", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ExportError(
                f'export needs the packages onnx and onnxscript ({error}); run: pip install "sgpn[onnx]"'
            ) from error


def _traced(name: str, program: Program) -> torch.export.ExportedProgram:
    """The part as a program for any batch."""
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    try:
        return torch.export.export(
            program.module, program.examples, dynamic_shapes=tuple({0: batch} for _ in program.examples), strict=False
        )
    except Exception as error:  # of many kinds, from code of anybody's
        raise _cannot(name, program, error) from error


def _cannot(name: str, program: Program, error: Exception) -> ExportError:
    inner = getattr(program.module, "network", None) or getattr(program.module, "prior", program.module)
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ExportError(f"{name}: {type(inner).__name__} cannot be exported: {first.strip()}")


def _write_onnx(
    name: str, traced: torch.export.ExportedProgram, program: Program, path: Path, weights: Path | None
) -> None:
    """Writes an ONNX file; with ``weights``, a checkpoint in the same folder, it reads from there what it can."""
    import onnx
    from onnx.inliner import inline_selected_functions

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names of dimensions
            found = torch.onnx.export(
                traced.run_decompositions(SIMPLER),
                input_names=list(program.inputs),
                output_names=list(program.outputs)[: len(program(program.examples))],
                opset_version=OPSET,
                dynamo=True,
                optimize=False,  # which would make other tensors of the weights; engines do it when they load the file
                verbose=False,
            )
            assert found is not None
            found.save(path)
    except Exception as error:
        raise _cannot(name, program, error) from error
    # onnxruntime (1.32) does not see that what such a cast makes of a constant is one, and so does not lay out the weights anew.
    model = inline_selected_functions(onnx.load(path), [("", "CastLike")], inline_schema_functions=True)
    for graph in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.functions):
        del graph.metadata_props[:]  # lines and paths of the machine that wrote it
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.doc_string = ""
    if weights is not None:
        _link(model, weights)
    onnx.save(model, path)


def _link(model: Any, weights: Path) -> None:
    """Takes weights out of a model that the checkpoint holds with the same values, perhaps as float16, and names their places."""
    from onnx import TensorProto, helper, numpy_helper
    from safetensors import safe_open

    kinds = {"F16": TensorProto.FLOAT16, "F32": TensorProto.FLOAT, "I64": TensorProto.INT64}
    places = _places(weights)
    casts, kept = [], []
    with safe_open(str(weights), framework="np") as file:
        for tensor in model.graph.initializer:
            prefix = next((prefix for prefix in PREFIXES if tensor.name.startswith(prefix)), "")
            key = PREFIXES.get(prefix, "") + tensor.name.removeprefix(prefix)
            kind, offset, length = places.get(key, ("", 0, 0))
            values = numpy_helper.to_array(tensor)
            if kind not in kinds or not np.array_equal(file.get_tensor(key).astype(values.dtype), values):
                kept.append(tensor)
                continue
            cast = kinds[kind] != tensor.data_type
            name = f"{tensor.name}.stored" if cast else tensor.name
            linked = TensorProto(name=name, dims=tensor.dims, data_type=kinds[kind])
            linked.data_location = TensorProto.EXTERNAL
            for word, value in {"location": weights.name, "offset": offset, "length": length}.items():
                linked.external_data.add(key=word, value=str(value))
            kept.append(linked)
            if cast:
                casts.append(helper.make_node("Cast", [name], [tensor.name], to=tensor.data_type))
    nodes = [*casts, *model.graph.node]
    for field, messages in ((model.graph.initializer, kept), (model.graph.node, nodes)):
        del field[:]
        field.extend(messages)


def _places(path: Path) -> dict[str, tuple[str, int, int]]:
    """Name -> type, offset and length in bytes of every tensor of a safetensors file."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: Mapping[str, Any] = json.loads(file.read(size))
    entries = ((key, entry) for key, entry in header.items() if key != "__metadata__")
    return {
        key: (entry["dtype"], 8 + size + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for key, entry in entries
    }


def _halve(path: Path) -> None:
    """Makes a file compute in float16; what goes in and out stays float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxscript import optimizer

    # Weights are multiplied by their scales first, so that each is rounded once.
    model = optimizer.optimize(onnx.load(path), input_size_limit=1 << 30, output_size_limit=1 << 30)
    onnx.save(convert_float_to_float16(model, keep_io_types=True), path)


# ---------------------------------------------------------------------------------------------------------------------
# Checking


def _check(name: str, program: Program, path: Path, prior: ShapePrior, precision: str) -> dict[str, float]:
    """How far a file is from PyTorch on real faces, one at a time and all at once.

    Raises:
        ExportError: too far.
    """
    measured: dict[str, float] = {}
    expected = program(program.examples)
    for inputs, wanted in _batches(program.examples, expected):
        found = _run(path, program.inputs, inputs)
        for output, ours, theirs in zip(program.outputs, found, wanted, strict=False):
            if ours.shape != tuple(theirs.shape) or not np.isfinite(ours).all():
                raise ExportError(
                    f"{path.name}: {output} is of shape {ours.shape}, or not finite; PyTorch's is {tuple(theirs.shape)}"
                )
            for measure, value in _distances(name, output, ours, theirs.numpy(), prior, inputs, precision).items():
                worst = min if measure.endswith("_db") else max
                measured[measure] = worst(measured.get(measure, value), value)
    for measure, value in measured.items():
        _judge(path.name, measure, value, precision)
    return {measure: float(f"{value:.3g}") for measure, value in measured.items()}


def _batches(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """All faces at once, and each alone; what has no batch, as the triangles, stays whole."""
    count = len(inputs[0])
    yield list(inputs), list(outputs)
    for n in range(count):
        yield [x[n : n + 1] for x in inputs], [y[n : n + 1] if len(y) == count else y for y in outputs]


def _run(path: Path, names: Sequence[str], inputs: Sequence[Tensor]) -> list[np.ndarray]:
    from sgpn_data.detection import silent_onnxruntime

    onnxruntime = silent_onnxruntime()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})


def _distances(
    part: str, output: str, ours: np.ndarray, theirs: np.ndarray, prior: ShapePrior, inputs, precision: str
) -> dict[str, float]:
    if part == "generator" and precision != "fp32":
        error = float(np.mean((ours.astype(np.float64) - theirs) ** 2))
        span = 2.0 if output == "restored" else 1.0
        return {f"{output}_db": 10 * np.log10(span**2 / max(error, 1e-20))}
    found = {output: float(np.abs(ours.astype(np.float64) - theirs).max() / max(1.0, float(np.abs(theirs).max())))}
    if output == "coefficients":
        with torch.no_grad():
            points = [prior.landmarks224(prior.mesh(torch.from_numpy(np.array(each)))) for each in (ours, theirs)]
        found["landmarks_px"] = float((points[0] - points[1]).norm(dim=-1).max())
    return found


def _judge(file: str, measure: str, value: float, precision: str) -> None:
    if measure.endswith("_db"):
        limit, good = LEAST_PSNR[precision], value >= LEAST_PSNR[precision]
    else:
        limit = LANDMARKS_TOLERANCE if measure == "landmarks_px" else FP32_TOLERANCE
        good = value <= limit
    if not good:
        raise ExportError(
            f"{file}: not exported, for on a real face its {measure} is {value:.3g} from PyTorch, and {limit:g} is allowed"
        )
