"""Reads the Basel Face Model 2009 from the MATLAB files that SGPN's authors and Deep3DFaceRecon prepare."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.io import loadmat

MODEL_FILES = ("BFM09_model_info.mat", "BFM_model_front.mat")
ALIGNMENT_FILE = "similarity_Lm3D_all.mat"
BASES = {"idBase": "id_basis", "exBase": "exp_basis", "texBase": "tex_basis"}
NEEDED = ("meanshape", "meantex", *BASES, "tri", "keypoints")

# What the alignment file's 68 points come to, for where it is missing: eye centres, nose tip, mouth corners, decimetres.
REFERENCE5 = (
    (-0.31148657, 0.29036078, 0.13377953),
    (0.30979887, 0.28972036, 0.13179526),
    (0.0032535, -0.04617932, 0.55244243),
    (-0.25216928, -0.38133916, 0.22405732),
    (0.2484662, -0.38128236, 0.22235769),
)
# Of an eye, the release averages the two corners, not all six points.
EYE_POINTS = ((36, 39), (42, 45))


def read_bfm(path: str | Path) -> dict:
    """The parts of a MorphableModel, by the names of its constructor's arguments.

    The files count from 1, hold albedo as 0..255, and bases that already carry their standard deviations.

    Args:
        path: the model's file, or the directory that holds it under one of its two usual names.

    Raises:
        FileNotFoundError: no such file. ValueError: it is not that model; the message names the part.
    """
    file = _find(Path(path))
    values = _load(file, NEEDED)
    vertices = _vertices(values["meanshape"], file)
    if values["tri"].ndim != 2 or values["tri"].shape[1] != 3:
        raise ValueError(f"{file}: tri has shape {values['tri'].shape}, expected (triangles, 3)")
    parts: dict[str, Any] = {
        "name": file.stem,
        "shape_mean": _floats(values["meanshape"], vertices, "meanshape", file),
        "tex_mean": _floats(values["meantex"], vertices, "meantex", file) / 255,
        "triangles": _indices(values["tri"], vertices, "tri", file),
        "landmarks": _indices(values["keypoints"].ravel(), vertices, "keypoints", file),
        "reference5": _reference5(file.with_name(ALIGNMENT_FILE)),
    }
    for key, ours in BASES.items():
        basis = values[key]
        if basis.ndim != 2 or basis.shape[0] != 3 * vertices:
            raise ValueError(f"{file}: {key} has shape {basis.shape}, expected ({3 * vertices}, modes)")
        parts[ours] = _floats(np.ascontiguousarray(basis.T), vertices, key, file, modes=True)
    parts["tex_basis"] /= 255
    return parts


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    for name in MODEL_FILES:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(
        f"{path}: holds no Basel Face Model ({' or '.join(MODEL_FILES)}); ask for BFM 2009 at faces.dmi.unibas.ch and "
        "prepare it as Deep3DFaceRecon's instructions say (ICT-FaceKit: convert it with scripts/convert_ict_model.py)"
    )


def _load(file: Path, needed: tuple[str, ...]) -> dict:
    try:
        values = loadmat(file)
    except NotImplementedError as error:
        raise ValueError(f"{file}: is a MATLAB 7.3 file; save it as version 7 or older (save ... -v7)") from error
    except Exception as error:  # SciPy raises whatever the damage happens to lead to
        raise ValueError(f"{file}: is not a readable MATLAB file ({error}); is the copy complete?") from error
    missing = [key for key in needed if key not in values]
    if missing:
        raise ValueError(f"{file}: lacks {', '.join(missing)}; it is not a prepared Basel Face Model")
    for key in needed:  # a sparse matrix has a type of numbers too
        if not isinstance(values[key], np.ndarray) or values[key].dtype.kind not in "fiu":
            raise ValueError(f"{file}: {key} is no array of numbers")
    return values


def _vertices(mean: np.ndarray, file: Path) -> int:
    if mean.size == 0 or mean.size % 3:
        raise ValueError(f"{file}: meanshape has {mean.size} numbers, which are not three for each vertex")
    return mean.size // 3


def _floats(values: np.ndarray, vertices: int, key: str, file: Path, modes: bool = False) -> torch.Tensor:
    if not modes and values.size != 3 * vertices:
        raise ValueError(f"{file}: {key} has {values.size} numbers, expected {3 * vertices}")
    if not np.isfinite(values).all():
        raise ValueError(f"{file}: {key} holds NaN or infinity")
    tensor = torch.from_numpy(values.astype(np.float32))
    return tensor.reshape(-1, vertices, 3) if modes else tensor.reshape(vertices, 3)


def _indices(values: np.ndarray, vertices: int, key: str, file: Path) -> torch.Tensor:
    indices = values.astype(np.int64) - 1
    if indices.size == 0 or indices.min() < 0 or indices.max() >= vertices:
        raise ValueError(f"{file}: {key} points outside the {vertices} vertices (it counts from 1)")
    return torch.from_numpy(indices)


def _reference5(file: Path) -> torch.Tensor:
    if not file.is_file():
        return torch.tensor(REFERENCE5)
    points = _load(file, ("lm",))["lm"]
    if points.shape != (68, 3) or not np.isfinite(points).all():
        raise ValueError(f"{file}: lm has shape {points.shape}, expected 68 points in decimetres")
    eyes = [points[list(pair)].mean(axis=0) for pair in EYE_POINTS]
    return torch.from_numpy(np.stack([*eyes, *points[[30, 48, 54]]]).astype(np.float32))
