"""Converts ICT-FaceKit, light version (USC Institute for Creative Technologies, MIT licence), to a morphable model file.

python scripts/convert_ict_model.py ICT-FaceKit/FaceXModel -o ict.safetensors

One OBJ file of the kit holds the neutral head, one each a head moved by one identity mode or one expression; the polygons and
the numbering are the same in all of them. Its units are centimetres, y up, the face looking along +z; here decimetres.
Identity modes are multiples of the standard deviation: the kit's own sampling script draws their weights from N(0, 1). The kit
has no colours: the skin is plain and its three modes (light, yellowish, ruddy) are choices of ours, as are the painted eyes.
"""

import argparse
import json
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from sgpn_arch.face3d.morphable_model import MorphableModel

VERTICES, POLYGONS, IDENTITIES = 26719, 26384, 100
NEUTRAL, INDICES = "generic_neutral_mesh.obj", "vertex_indices.json"
DECIMETRES = 0.1  # one centimetre

# First and behind-last vertex and polygon of a part, from the tables of ICT-FaceKit's README. Of an eyeball only the
# outer shell, the "sclera" with its cornea, is taken: it hides the iris behind it, so the iris is painted on it.
PARTS = {
    "face": ((0, 9409), (0, 9230)),
    "narrow": ((0, 6706), (0, 6560)),
    "left_eye": ((21451, 22221), (21496, 22296)),
    "right_eye": ((23021, 23791), (23094, 23894)),
}
EYES = ("left_eye", "right_eye")
CROPS = {
    "face": ("face",),
    "narrow": ("narrow",),
    "face_and_eyes": ("face", *EYES),
    "narrow_and_eyes": ("narrow", *EYES),
}

# The light version has no colours. These are choices of ours, alike to those of the model that ships with the library.
SKIN = (0.74, 0.56, 0.475)
SKIN_MODES = (
    (0.112, 0.108, 0.100),  # light and dark
    (0.013, -0.002, -0.018),  # yellowish and bluish
    (0.012, -0.014, -0.010),  # ruddy and pale
)
# From the pupil's middle outwards, in centimetres: pupil, iris with a dark rim, white.
EYE_RADII = (0.20, 0.25, 0.46, 0.57, 0.66)
EYE_COLOURS = ((0.05, 0.04, 0.04), (0.30, 0.19, 0.12), (0.36, 0.24, 0.16), (0.20, 0.14, 0.11), (0.78, 0.74, 0.71))


def read_ict(directory: str | Path, crop: str = "narrow_and_eyes", identities: int = IDENTITIES) -> MorphableModel:
    """The kit's model: identity coefficients ~ N(0, 1), tex_dim 3, expression coefficients from 0 (neutral) to 1 (full).

    Args:
        directory: the kit's directory FaceXModel of OBJ files, or the one above. It takes some seconds to read.
        crop: one of CROPS. All 68 landmarks lie in each. Without the eyes there are holes between the lids; the mouth is a
            hole in all.
        identities: how many of the 100 identity modes to read, from the first (the first few are the largest).

    Raises:
        FileNotFoundError: a file is missing. ValueError: a file is not the kit's, or there are not so many identities; the
        message names it.
    """
    parts = CROPS[crop]
    if not 1 <= identities <= IDENTITIES:
        raise ValueError(f"identities is {identities}; ICT-FaceKit has 1 to {IDENTITIES}")
    directory = _model_directory(directory)
    expressions, landmarks = _read_indices(directory / INDICES)
    lines = _read_text(directory / NEUTRAL).splitlines()
    neutral = _vertices(lines, directory / NEUTRAL)
    kept = np.concatenate([np.arange(*PARTS[part][0]) for part in parts])
    polygons = _polygons(lines, directory / NEUTRAL)
    polygons = list(chain.from_iterable(polygons[slice(*PARTS[part][1])] for part in parts))
    triangles = triangulate(polygons, neutral)
    names = [f"identity{number:03d}" for number in range(identities)]
    tex_mean, tex_basis = _texture(parts, neutral)
    arrays = {
        "shape_mean": neutral[kept] * DECIMETRES,
        "id_basis": _modes(directory, names, neutral, kept),
        "exp_basis": _modes(directory, expressions, neutral, kept),
        "tex_mean": tex_mean,
        "tex_basis": tex_basis,
        "triangles": _renumber(triangles, kept, f"{directory / NEUTRAL}: a polygon of crop '{crop}'"),
        "landmarks": _renumber(landmarks, kept, f"{directory / INDICES}: a landmark"),
    }
    return MorphableModel(**{key: torch.from_numpy(value) for key, value in arrays.items()}, name=f"ict_{crop}")


def arkit_units(directory: str | Path) -> dict[str, list[float]]:
    """ARKit's name of each expression -> the coefficients that make it, in the order of the model's ``exp_basis``.

    Raises:
        FileNotFoundError, ValueError: as ``read_ict``.
    """
    names = _read_indices(_model_directory(directory) / INDICES)[0]
    rows = np.eye(len(names)).tolist()
    sides = {"_L": "Left", "_R": "Right"}
    return {
        name[:-2] + sides[name[-2:]] if name[-2:] in sides else name: row for name, row in zip(names, rows, strict=True)
    }


def triangulate(polygons: list[list[int]], vertices: np.ndarray) -> np.ndarray:
    """Triangles and quads -> triangles (F, 3), turned as they were.

    Quads are cut along the shorter diagonal, so a symmetric mesh stays symmetric.
    """
    triangles = np.array([p for p in polygons if len(p) == 3], np.int64).reshape(-1, 3)
    quads = np.array([p for p in polygons if len(p) == 4], np.int64).reshape(-1, 4)
    first, second = (np.linalg.norm(vertices[quads[:, i]] - vertices[quads[:, i + 2]], axis=1) for i in (0, 1))
    # Where the second diagonal is clearly shorter, begin at the second corner; else the first corner's is taken.
    quads = np.where((second < first * (1 - 1e-6))[:, None], np.roll(quads, -1, axis=1), quads)
    return np.concatenate([triangles, quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def _model_directory(directory: str | Path) -> Path:
    """The directory of the OBJ files, given it or the one above it."""
    directory = Path(directory)
    inside = directory / "FaceXModel"
    return inside if inside.is_dir() else directory


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; give ICT-FaceKit's directory FaceXModel, which holds {NEUTRAL}, {INDICES}, "
            f"identity000.obj to identity{IDENTITIES - 1:03d}.obj and an OBJ file for each expression"
        )
    return path.read_text(encoding="latin-1")  # numbers and keywords are ASCII; comments may be anything


def _read_indices(path: Path) -> tuple[list[str], np.ndarray]:
    """Names of the expressions, and the 68 landmarks' vertices."""
    try:
        content = json.loads(_read_text(path))
        expressions, landmarks = content["expressions"], content["idx_to_landmark_verts"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected JSON with 'expressions' and 'idx_to_landmark_verts', as in ICT-FaceKit ({error!r})"
        ) from error
    # A name becomes a file's name, so it must not lead to another directory.
    named = isinstance(expressions, list) and all(isinstance(n, str) and n.isidentifier() for n in expressions)
    if not named or not expressions:
        raise ValueError(f"{path}: 'expressions' must be a list of names such as jawOpen")
    if not isinstance(landmarks, list) or len(landmarks) != 68 or any(type(i) is not int for i in landmarks):
        raise ValueError(f"{path}: 'idx_to_landmark_verts' must be a list of 68 vertex numbers")
    return expressions, np.array(landmarks)


def _vertices(lines: list[str], path: Path) -> np.ndarray:
    """(VERTICES, 3) float64 centimetres from the lines ``v x y z`` of an OBJ file."""
    found = [line for line in lines if line.startswith("v ")]
    if len(found) != VERTICES:
        raise ValueError(f"{path}: {len(found)} vertices, ICT-FaceKit's topology has {VERTICES}; fetch the file again")
    try:
        vertices = np.loadtxt(found, usecols=(1, 2, 3), comments=None)
    except ValueError as error:
        raise ValueError(f"{path}: a vertex line is not 'v x y z' ({error}, counted over the vertices)") from error
    bad = np.flatnonzero(~np.isfinite(vertices).all(1))
    if len(bad):
        raise ValueError(f"{path}: vertex {bad[0]} is not finite ('{found[bad[0]]}'); fetch the file again")
    return vertices


def _polygons(lines: list[str], path: Path) -> list[list[int]]:
    """Vertex numbers, from 0, of each of the POLYGONS polygons, from the lines ``f v/vt v/vt v/vt [v/vt]``."""
    found = [line for line in lines if line.startswith("f ")]
    if len(found) != POLYGONS:
        raise ValueError(f"{path}: {len(found)} polygons, ICT-FaceKit's topology has {POLYGONS}; fetch the file again")
    return [_polygon(line, path) for line in found]


def _polygon(line: str, path: Path) -> list[int]:
    try:
        corners = [int(corner.split("/", 1)[0]) - 1 for corner in line.split()[1:]]
    except ValueError:
        corners = []
    if len(corners) not in (3, 4) or min(corners) < 0 or max(corners) >= VERTICES:
        raise ValueError(f"{path}: '{line[:80]}' is not a triangle or quad of vertices 1 to {VERTICES}")
    return corners


def _modes(directory: Path, names: list[str], neutral: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """(len(names), len(kept), 3) float32 decimetres: how far each file moves the vertices kept."""
    modes = np.empty((len(names), len(kept), 3), np.float32)
    for mode, name in zip(modes, names, strict=True):
        path = directory / f"{name}.obj"
        mode[:] = (_vertices(_read_text(path).splitlines(), path) - neutral)[kept] * DECIMETRES
    return modes


def _renumber(index: np.ndarray, kept: np.ndarray, what: str) -> np.ndarray:
    """Vertex numbers of the whole head -> numbers among the vertices kept."""
    number = np.full(VERTICES, -1)
    number[kept] = np.arange(len(kept))
    bad = index[(index < 0) | (index >= VERTICES)]
    outside = bad if bad.size else index[number[index] < 0]
    if outside.size:
        raise ValueError(f"{what} is at vertex {outside.flat[0]}, which is not in the crop")
    return number[index]


def _texture(parts: tuple[str, ...], neutral: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean albedo (V, 3) and the modes (3, V, 3), which change the skin alone."""
    colours, skin = [], []
    for part in parts:
        points = neutral[slice(*PARTS[part][0])]
        eye = part in EYES
        colours.append(_eye_colours(points) if eye else np.tile(SKIN, (len(points), 1)))
        skin.append(np.full(len(points), 0.0 if eye else 1.0))
    modes = np.array(SKIN_MODES)[:, None, :] * np.concatenate(skin)[None, :, None]
    return np.concatenate(colours).astype(np.float32), modes.astype(np.float32)


def _eye_colours(shell: np.ndarray) -> np.ndarray:
    """Colours (V, 3) of an eyeball (V, 3) that looks along +z."""
    middle = (shell.min(0) + shell.max(0)) / 2
    radius = np.hypot(*(shell - middle)[:, :2].T)
    painted = np.stack([np.interp(radius, EYE_RADII, channel) for channel in np.transpose(EYE_COLOURS)], axis=1)
    return np.where((shell[:, 2] > middle[2])[:, None], painted, EYE_COLOURS[-1])


def main() -> None:
    """Reads the kit and writes the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("directory", type=Path, help="ICT-FaceKit's directory FaceXModel, or the one above it")
    add("-o", "--output", required=True, type=Path, metavar="FILE", help="the model file, e.g. ict.safetensors")
    add("--crop", default="narrow_and_eyes", choices=CROPS, help="part of the head (default: narrow_and_eyes)")
    add("--identities", type=int, default=IDENTITIES, metavar="N", help="identity modes, from the first (default: all)")
    add("--half", action="store_true", help="bases in half precision: half the size, at most some micrometres off")
    arguments = parser.parse_args()
    try:
        model = read_ict(arguments.directory, arguments.crop, arguments.identities)
        units = json.dumps(arkit_units(arguments.directory))
        model.save(arguments.output, torch.float16 if arguments.half else torch.float32, {"exp_units": units})
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    print(f"{arguments.output}: {len(model.shape_mean)} vertices, {model.dims} coefficients")


if __name__ == "__main__":
    main()
