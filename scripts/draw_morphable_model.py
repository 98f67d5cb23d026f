"""Draws docs/images/morphable_model.png: the open morphable model's mean, identities, expressions and textures.

    python scripts/draw_morphable_model.py

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
from sgpn_arch.face3d.rasterizer import interpolate, rasterize

OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "images" / "morphable_model.png"
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
    """Expression coefficients of the full ARKit units, from the model file's metadata."""
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
    if "exp_units" not in metadata:
        raise KeyError(f"{path}: the metadata has no 'exp_units'; build the file with build_open_morphable_model.py")
    return {name: torch.tensor(row) for name, row in json.loads(metadata["exp_units"]).items()}


def sheet(path: Path, size: int) -> np.ndarray:
    """The whole picture: seven faces a row."""
    model = MorphableModel.load(path)
    artist, units, (ids, _, textures) = Portraitist(model, size), unit_table(path), model.dims
    generator = torch.Generator().manual_seed(7)
    rows = [[artist.draw(turn=turn, caption=f"mean, {turn} degrees") for turn in (-90, -40, 0, 40)]]
    rows[0] += [artist.draw(turn=turn, caption="68 landmarks", landmarks=True) for turn in (0, 50, 90)]
    for value in (2.0, -2.0):
        faces = [artist.draw(unit(ids, k, value), caption=f"identity {k + 1}, {value:+.0f} sigma") for k in range(7)]
        rows.append(faces)
    faces = [artist.draw(caption="neutral")]
    for name, strengths in EXPRESSIONS.items():
        code = sum(strength * units[unit_name] for unit_name, strength in strengths.items())
        faces.append(artist.draw(expression=code, caption=name))
    rows.append(faces)
    for value in (2.0, -2.0):
        rows.append(
            [
                artist.draw(texture=unit(textures, k, value), caption=f"{name}, {value:+.0f} sigma")
                for k, name in TEXTURES
            ]
        )
    for _ in range(2):
        codes = [[torch.randn(n, generator=generator) for n in model.dims] for _ in range(7)]
        rows.append([artist.draw(*code, turn=15.0 * (k - 3), caption="random N(0, 1)") for k, code in enumerate(codes)])
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the open morphable model.")
    parser.add_argument("--model", type=Path, default=OPEN_MODEL_FILE)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--size", type=int, default=200, help="pixels of one face")
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(args.output), sheet(args.model, args.size))


if __name__ == "__main__":
    main()
