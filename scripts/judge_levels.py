"""Scores the default weights, simple methods and other weights at three levels of degradation, with fixed seeds.

python scripts/judge_levels.py --data faces -o experiments/levels
python scripts/judge_levels.py --data faces --restorer "mine=experiments/mine/models/mine_1400.safetensors"

Every number of docs/model_card.md is of this command. Each level has a report folder with all values and a grid of
pictures; levels.md has the tables of all. Beside the default weights, and these taken back halfway to the input, there are
rows of pictures that learnt nothing: the small degraded photo enlarged by Lanczos's kernel (the input itself was
enlarged linearly), and a classical restoration (scripts/restore_classically.py). Metrics whose weights or packages are
missing are left out; the reports say which.
"""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from restore_classically import restore_folder
from torch.utils.data import Dataset

from sgpn_data.photos import write_picture
from sgpn_data.tensors import to_images
from sgpn_model.cli.arguments import add_data
from sgpn_model.config.data_folders import fill_roots
from sgpn_model.config.reading import read_options
from sgpn_model.config.registries import fill_registries
from sgpn_model.evaluate.evaluate import evaluate, parse_restorers
from sgpn_model.evaluate.report import INPUT, TRUTH, Scores, markdown, write_report
from sgpn_model.train.batches import build_dataset

LEVELS = ("mild", "medium", "severe")
OPTIONS = Path(__file__).parents[1] / "options" / "test"
BLUR = 1.5  # pixels that the classical restoration takes away


def judge(level: str, restorers: Mapping[str, Any], data: list[str], overrides: list[str], folder: Path) -> Scores:
    """Scores one level and writes its report."""
    options = str(OPTIONS / f"open_{level}.yml")
    save_inputs(test_set(level, data, overrides), folder / "inputs")
    lanczos = [*overrides, "datasets.test.degradation.upsample_kernels=lanczos"]
    save_inputs(test_set(level, data, lanczos), folder / "lanczos")
    restore_folder(folder / "inputs", folder / "classical", BLUR)
    simple = {"Lanczos": str(folder / "lanczos"), "classical": str(folder / "classical")}
    scores = evaluate(options, [*overrides, "restorers=~"], None, {**simple, **restorers}, data=data)
    write_report(folder, scores)
    return scores


def test_set(level: str, data: list[str], overrides: list[str]) -> Dataset:
    """The faces that are held back in the folders ``data``, degraded as at a level."""
    options, origins = read_options(OPTIONS / f"open_{level}.yml", overrides)
    fill_roots(options, origins, data)
    return build_dataset(options["datasets"]["test"], "test")


def save_inputs(dataset: Dataset, folder: Path) -> None:
    """Writes every degraded face of a test as FOLDER/NAME.png."""
    for number in range(len(dataset)):
        item = dataset[number]
        write_picture(folder / f"{Path(item['path']).stem}.png", to_images(item["lq"][None])[0])


def against_input(scores: Scores) -> str:
    """A table of how many faces each row has nearer to the truth than their input is, and by how much the worst is off."""
    given = np.array(scores.per_face[INPUT]["psnr"])
    lines = ["| | faces with a higher PSNR than their input | worst face, dB | best face, dB |", "|---|---|---|---|"]
    for row, columns in scores.per_face.items():
        if row not in (INPUT, TRUTH):
            gain = np.array(columns["psnr"]) - given
            lines.append(f"| {row} | {np.mean(gain > 0):.0%} | {gain.min():+.2f} | {gain.max():+.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Judges every level and writes the joint tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data(parser, required=True)
    parser.add_argument(
        "--restorer", action="append", default=[], metavar="NAME=PLACE", help="one more row, repeatable"
    )
    parser.add_argument("--weights", default="default", help="weights to judge in place of the default ones")
    parser.add_argument("--set", nargs="+", default=[], metavar="a.b=c", help="options of all levels")
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=LEVELS)
    parser.add_argument("-o", "--output", default="experiments/levels", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    fill_registries()
    restorers = {
        **{name: {"weights": place, "fidelity": 0} for name, place in parse_restorers(arguments.restorer).items()},
        "SGPN": arguments.weights,
        "SGPN, fidelity 0.5": {"weights": arguments.weights, "fidelity": 0.5},
    }
    parts = []
    for level in arguments.levels:
        scores = judge(level, restorers, arguments.data, arguments.set, arguments.output / level)
        parts.append(f"## {level}\n\n{markdown(scores.table(), scores.labels())}\n\n{against_input(scores)}\n")
        print(parts[-1], flush=True)
        (arguments.output / "levels.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
