"""Draws docs/images/morphable_model.jpg: the open morphable model's mean, identities, expressions and textures.

    python scripts/draw_morphable_model.py
    python scripts/draw_morphable_model.py --model ict.safetensors --output ict.jpg

Every face goes through the library's own camera, spherical-harmonic lighting and rasteriser.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from sgpn_arch.face3d.camera import PinholeCamera, rotation_matrix
from sgpn_arch.face3d.lighting import shade
from sgpn_arch.face3d.morphable_model import OPEN_MODEL_FILE, MorphableModel
from sgpn_arch.face3d.raster.rasterizer import interpolate, rasterize
from sgpn_data.sheet import write_page_picture

OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "images" / "morphable_model.jpg"
FINER = 3  # faces are drawn this many times finer and averaged down
BACKGROUND = 235
# A little light from above and before the face beside the ambient term, in the nine bands of every colour.
KEY_LIGHT = [0.05, -0.10, 0.16, 0.05, 0, 0, 0, 0, 0]
EXPRESSIONS = {
    "jawOpen": {"jawOpen": 0.8},
    "smile": {"mouthSmileLeft": 0.9, "mouthSmileRight": 0.9, "cheekSquintLeft": 0.5, "cheekSquintRight": 0.5},
    "blink": {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0},
    "brows up": {"browInnerUp": 0.9, "browOuterUpLeft": 0.9, "browOuterUpRight": 0.9},
    "pucker": {"mouthPucker": 0.9},
    "cheekPuff": {"cheekPuff": 0.9},
}
TEXTURES = [(0, "tone"), (1, "hue"), (3, "scalp"), (4, "brows"), (5, "beard"), (6, "lips"), (8, "iris")]


class Portraitist:
    """Draws one face per call, as uint8 BGR pictures of `size` pixels."""

    def __init__(self, model: MorphableModel, size: int, zoom: float = 0.84):
        self.model, self.size = model, size
        self.camera = PinholeCamera(focal=1015 / 224 * size * FINER * zoom, size=size * FINER)
        self.lighting = torch.tensor(KEY_LIGHT).repeat(3)[None]

    def draw(
        self,
        identity: Tensor | None = None,
        expression: Tensor | None = None,
        texture: Tensor | None = None,
        turn: float = 0.0,
        caption: str = "",
        landmarks: bool = False,
    ) -> np.ndarray:
        """Coefficient vectors (None: zero), `turn` to the side in degrees -> picture (size, size, 3)."""
        model = self.model
        given = (identity, expression, texture)
        codes = [torch.zeros(1, n) if c is None else c[None] for c, n in zip(given, model.dims, strict=True)]
        vertices = model.shape(codes[0], codes[1])
        rotation = rotation_matrix(torch.tensor([[0.0, float(np.deg2rad(turn)), 0.0]]))
        colours = shade(model.albedo(codes[2]), model.normals(vertices) @ rotation, self.lighting).clamp(0, 1)
        points, depth = self.camera.project(vertices @ rotation)
        side = self.camera.size
        fragments = rasterize(points, depth, model.triangles, (side, side), backend="cpu")
        picture = interpolate(colours, fragments, model.triangles)[0].numpy() * 255
        picture[(fragments.triangle_ids[0] < 0).numpy()] = BACKGROUND
        picture = cv2.resize(picture[..., ::-1].astype(np.uint8), (self.size, self.size), interpolation=cv2.INTER_AREA)
        if landmarks:
            mark_landmarks(picture, points[0, model.landmarks].numpy() / FINER)
        cv2.putText(picture, caption, (5, self.size - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (40, 40, 40), 1, cv2.LINE_AA)
        return picture


def mark_landmarks(picture: np.ndarray, points: np.ndarray) -> None:
    """Draws points (68, 2), continuous pixels, into the picture."""
    for x, y in points:
        cv2.circle(picture, (round(float(x) - 0.5), round(float(y) - 0.5)), 1, (60, 160, 20), -1, cv2.LINE_AA)


def unit(count: int, index: int, value: float) -> Tensor:
    """(count,) with `value` at `index`, else zero."""
    code = torch.zeros(count)
    code[index] = value
    return code


def unit_table(path: Path) -> dict[str, Tensor]:
    """Expression coefficients of the full ARKit units, from a model file's metadata; empty where it has none."""
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
    return {name: torch.tensor(row) for name, row in json.loads(metadata.get("exp_units", "{}")).items()}


def expressions(path: Path, model: MorphableModel) -> dict[str, Tensor]:
    """Six expressions by name: put together from the ARKit units, or else the first modes at 1."""
    units = unit_table(path)
    # ARKit has these in one, ICT-FaceKit for each side.
    for name in {"browInnerUp", "cheekPuff"} - units.keys():
        if f"{name}Left" in units:
            units[name] = units[f"{name}Left"] + units[f"{name}Right"]
    if not units:
        return {f"expression {k + 1}, +1": unit(model.dims[1], k, 1.0) for k in range(min(6, model.dims[1]))}
    return {name: sum(s * units[part] for part, s in parts.items()) for name, parts in EXPRESSIONS.items()}


def sheet(path: Path, size: int) -> np.ndarray:
    """The whole picture: seven faces a row."""
    model = MorphableModel.load(path)
    artist, (ids, _, count) = Portraitist(model, size), model.dims
    textures = TEXTURES if path == OPEN_MODEL_FILE else [(k, f"texture {k + 1}") for k in range(min(7, count))]
    generator = torch.Generator().manual_seed(7)
    rows = [[artist.draw(turn=turn, caption=f"mean, {turn} degrees") for turn in (-90, -40, 0, 40)]]
    rows[0] += [artist.draw(turn=turn, caption="68 landmarks", landmarks=True) for turn in (0, 50, 90)]
    for value in (2.0, -2.0):
        faces = [artist.draw(unit(ids, k, value), caption=f"identity {k + 1}, {value:+.0f} sigma") for k in range(7)]
        rows.append(faces)
    faces = [artist.draw(caption="neutral")]
    faces += [artist.draw(expression=code, caption=name) for name, code in expressions(path, model).items()]
    rows.append(faces)
    for value in (2.0, -2.0):
        rows.append(
            [artist.draw(texture=unit(count, k, value), caption=f"{name}, {value:+.0f} sigma") for k, name in textures]
        )
    # Expressions of an ICT model are strengths from 0 to 1, not drawn from N(0, 1).
    spread = (1.0, 0.0 if model.name.startswith("ict_") else 1.0, 1.0)
    for _ in range(2):
        codes = [
            [s * torch.randn(n, generator=generator) for n, s in zip(model.dims, spread, strict=True)] for _ in range(7)
        ]
        rows.append([artist.draw(*code, turn=15.0 * (k - 3), caption="random N(0, 1)") for k, code in enumerate(codes)])
    return stack(rows, size)


def stack(rows: list[list[np.ndarray]], size: int) -> np.ndarray:
    """One picture of the rows, short ones filled up with the background."""
    blank = np.full((size, size, 3), BACKGROUND, np.uint8)
    longest = max(map(len, rows))
    return np.concatenate([np.concatenate(row + [blank] * (longest - len(row)), axis=1) for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a morphable model.")
    parser.add_argument("--model", type=Path, default=OPEN_MODEL_FILE, help="a model file (default: the open model's)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=OUTPUT,
        help="a JPEG; default: docs/images/morphable_model.jpg of this project",
    )
    parser.add_argument("--size", type=int, default=200, help="pixels of one face (default: 200)")
    args = parser.parse_args()
    write_page_picture(args.output, sheet(args.model, args.size))


if __name__ == "__main__":
    main()
