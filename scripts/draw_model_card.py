"""Draws the pictures of docs/model_card.md: renderings of the same faces at every level, and restorations side by side.

python scripts/draw_model_card.py --data faces --levels-folder experiments/levels -o docs/images \\
    --restorer "variant A=experiments/compare_variant_a_128/models/compare_variant_a_128_300.safetensors"

Faces whose licence lets them be shown: CC0, public domain, and CC-BY (the Face Research Lab London Set); of other data the first
five. Lanczos's and the
classical pictures are those that scripts/judge_levels.py left in the levels' folder.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from judge_levels import LEVELS, test_set

from sgpn_data.alignment import resize
from sgpn_data.sheet import labelled_grid, write_page_picture
from sgpn_data.tensors import to_images
from sgpn_model.cli.arguments import add_data
from sgpn_model.config.registries import fill_registries
from sgpn_model.evaluate.evaluate import FolderRestorer, WeightsRestorer, parse_restorers

SHAPE_LEVELS = ("clean", *LEVELS)
SHAPE_FACES = (
    "faker_3e48c2a2c676",
    "london_5a8f71271805",
    "pif_88e06e08f9e3",
    "london_a86d7629f25f",
    "pif_0258466c5470",
)


def chosen_faces(data: list[str]) -> tuple[str, ...]:
    """The names of the faces to show: the card's, or the first five of other data."""
    there = [Path(path).stem for path in test_set("mild", data, []).paths]
    return SHAPE_FACES if set(SHAPE_FACES) <= set(there) else tuple(there[:5])


def items(data: list[str], level: str, names: tuple[str, ...]) -> dict:
    """A batch of the named faces at a level, with the seed of the tests."""
    dataset = test_set("mild", data, [f"datasets.test.degradation.preset={level}"])
    places = {Path(path).stem: number for number, path in enumerate(dataset.paths)}
    chosen = [dataset[places[name]] for name in names]
    return {key: torch.stack([item[key] for item in chosen]) for key in ("lq", "hq", "points5", "landmarks68")}


def draw_shapes(restorer: WeightsRestorer, data: list[str], faces: tuple[str, ...]) -> dict[str, list]:
    """Columns: for every level the photo, and its rendering laid on it."""
    columns = {}
    for level in SHAPE_LEVELS:
        batch = items(data, level, faces)
        shown = restorer(batch, faces).faces
        photos = [
            resize(photo, face.render.shape[1::-1]) for photo, face in zip(to_images(batch["lq"]), shown, strict=True)
        ]
        columns[level] = photos
        columns[f"{level}: rendering"] = [
            np.where(face.render_mask[..., None] > 0, face.render, photo)
            for photo, face in zip(photos, shown, strict=True)
        ]
    return columns


def draw_restorations(
    restorers: dict, data: list[str], shown: tuple[str, ...], folder: Path
) -> tuple[dict[str, list], list[str]]:
    """Columns: the input, each method and the truth; rows: faces, from mild to severe."""
    columns: dict[str, list] = {}
    names = []
    for level, faces in zip(LEVELS, (shown[:2], shown[1:4] or shown, shown[-3:]), strict=True):
        batch = items(data, level, faces)
        simple = {name: FolderRestorer(folder / level / name) for name in ("lanczos", "classical")}
        columns.setdefault("input", []).extend(to_images(batch["lq"]))
        for name, restorer in {**simple, **restorers}.items():
            columns.setdefault(name, []).extend(to_images(restorer(batch, faces).images))
        columns.setdefault("truth", []).extend(to_images(batch["hq"]))
        names += [level] * len(faces)
    return columns, names


def main() -> None:
    """Draws both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data(parser, required=True)
    parser.add_argument(
        "--restorer", action="append", default=[], metavar="NAME=WEIGHTS", help="one more column, repeatable"
    )
    parser.add_argument("--weights", default="default", metavar="NAME|FILE", help="ours (default: default)")
    parser.add_argument(
        "--levels-folder",
        type=Path,
        default="experiments/levels",
        help="what scripts/judge_levels.py left (default: experiments/levels)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default="docs/images", metavar="OUT", help="folder (default: docs/images)"
    )
    arguments = parser.parse_args()
    fill_registries()
    ours = WeightsRestorer(arguments.weights, "cpu")
    faces = chosen_faces(arguments.data)
    shapes = labelled_grid(draw_shapes(ours, arguments.data, faces), [""] * len(faces))
    write_page_picture(arguments.output / "open_shapes.jpg", shapes)
    others = {
        name: WeightsRestorer(place, "cpu", 0) for name, place in parse_restorers(arguments.restorer).items()
    }  # as judged
    columns, names = draw_restorations({**others, "SGPN": ours}, arguments.data, faces, arguments.levels_folder)
    write_page_picture(arguments.output / "open_levels.jpg", labelled_grid(columns, names))


if __name__ == "__main__":
    main()
