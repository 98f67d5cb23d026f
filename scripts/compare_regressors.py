"""Compares shape regressors on degraded faces: a picture of the astronaut with their renderings, and a table of their errors.

python scripts/compare_regressors.py "original=default" "adapted=experiments/regressor.safetensors" --data faces -o docs/images

The paper's figure of the original regressor against the adapted one. The picture (regressors.jpg) has scikit-image's astronaut
at every level of degradation, with the face that each regressor fits to it. The table is of the faces of ``--data`` that are held
back, degraded as in every test, with the points that ``sgpn restore --aligned`` takes: landmarks in % of the distance of the
eyes' outer corners, the rendering against the good photo in grey levels, and of how many faces the identity in the degraded
picture is nearer to that of the same face at mild degradation than to anybody else's.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from judge_levels import LEVELS, test_set
from skimage.data import astronaut
from torch import Tensor
from tqdm import tqdm

from sgpn_arch.face3d.shape_prior import ShapePrior
from sgpn_data.alignment import align_face
from sgpn_data.degradation import build_degradation
from sgpn_data.sheet import labelled_grid, write_page_picture
from sgpn_data.tensors import to_images, to_tensor
from sgpn_model.cli.arguments import add_data
from sgpn_model.config.registries import fill_registries
from sgpn_model.evaluate.evaluate import parse_restorers
from sgpn_model.evaluate.metrics import rendering_error
from sgpn_model.restore.restorer import FaceRestorer
from sgpn_model.train.losses import landmark_error
from sgpn_model.weights.checkpoint import load_checkpoint
from sgpn_model.weights.pretrained import find_weights

SIZE = 256
SEED = 2022


def load_prior(weights: str) -> ShapePrior:
    """The shape prior of a file of weights, which may hold nothing else."""
    checkpoint = load_checkpoint(find_weights(weights))
    protocol = checkpoint.metadata.get("protocol", "open")
    return ShapePrior(checkpoint.network("network_shape"), checkpoint.morphable_model(), protocol=protocol).eval()


def found_points(restorer: FaceRestorer, picture: np.ndarray) -> Tensor:
    """The five points (1, 5, 2) that the restorer takes in an aligned face."""
    face = restorer.prepare(picture, aligned=True).faces[0]
    return torch.tensor(face.points5[None] * (picture.shape[0] / restorer.size), dtype=torch.float32)


@torch.inference_mode()
def draw_astronaut(priors: dict[str, ShapePrior], restorer: FaceRestorer) -> np.ndarray:
    """Rows: levels. Columns: the degraded photo, and each prior's rendering laid on it."""
    photo = np.ascontiguousarray(astronaut()[:, :, ::-1])
    good, _ = align_face(photo, restorer.detector.detect(photo)[0].points5, SIZE)
    columns: dict[str, list] = {"photo": [], **{name: [] for name in priors}}
    for level in ("clean", *LEVELS):
        degradation = build_degradation({"preset": level, "reference_size": 512})
        picture = degradation(good.astype(np.float32) / 255, np.random.default_rng(SEED))
        crop = to_tensor(picture)[None]
        shown = to_images(crop)[0]
        columns["photo"].append(shown)
        for name, prior in priors.items():
            result = prior(crop, found_points(restorer, shown))
            columns[name].append(to_images(torch.lerp(crop, result.render, result.mask))[0])
    return labelled_grid(columns, ["clean", *LEVELS])


@torch.inference_mode()
def table(priors: dict[str, ShapePrior], restorer: FaceRestorer, data: list[str], every: int) -> str:
    """Markdown: a row per level and regressor."""
    lines = ["| level | regressor | landmarks, % | rendering, grey levels | right person |", "|---|---|---|---|---|"]
    first: dict[str, Tensor] = {}
    for level in LEVELS:
        dataset = test_set("mild", data, [f"datasets.test.degradation.preset={level}"])
        values: dict[str, list] = {name: [] for name in priors}
        for number in tqdm(range(0, len(dataset), every), desc=level, unit="face"):
            item = dataset[number]
            crop, truth = item["lq"][None], to_images(item["hq"][None])[0]
            points = found_points(restorer, to_images(crop)[0])
            for name, prior in priors.items():
                result = prior(crop, points)
                mask = (result.mask[0, 0] * 255).round().to(torch.uint8).numpy()
                values[name].append(
                    (
                        landmark_error(result.landmarks, item["landmarks68"][None]).item(),
                        rendering_error(to_images(result.render)[0], mask, truth),
                        prior.split(result.coeffs)[0][0],
                    )
                )
        for name, rows in values.items():
            landmarks, rendering, identities = zip(*rows, strict=True)
            stacked = torch.stack(identities)
            right = rank_one(first.setdefault(name, stacked), stacked)
            means = f"{np.nanmean(landmarks):.2f} | {np.nanmean(rendering):.1f}"
            lines.append(f"| {level} | {name} | {means} | {'–' if level == LEVELS[0] else f'{right:.0%}'} |")
    return "\n".join(lines)


def rank_one(known: Tensor, asked: Tensor) -> float:
    """Part of ``asked`` (N, K) whose own row of ``known`` (N, K) is the nearest by cosine, both about their means."""
    similarity = torch.nn.functional.cosine_similarity(
        (asked - asked.mean(0))[:, None], (known - known.mean(0))[None], dim=2
    )
    return (similarity.argmax(1) == torch.arange(len(asked))).float().mean().item()


def main() -> None:
    """Draws and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("regressors", nargs="+", metavar="NAME=WEIGHTS", help="weights with a network_shape")
    add_data(parser)
    parser.add_argument("--every", type=int, default=1, help="take every n-th face of the table only")
    parser.add_argument(
        "-o", "--output", type=Path, default="docs/images", metavar="OUT", help="folder (default: docs/images)"
    )
    arguments = parser.parse_args()
    fill_registries()
    priors = {name: load_prior(place) for name, place in parse_restorers(arguments.regressors).items()}
    restorer = FaceRestorer.from_pretrained("default", "cpu")  # for its points only
    write_page_picture(arguments.output / "regressors.jpg", draw_astronaut(priors, restorer))
    if arguments.data:
        print(table(priors, restorer, arguments.data, arguments.every))


if __name__ == "__main__":
    main()
