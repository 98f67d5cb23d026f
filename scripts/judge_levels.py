"""Scores restorers at three levels of degradation (mild, medium, severe) with fixed seeds, and prints one table.

python scripts/judge_levels.py -o experiments/levels
python scripts/judge_levels.py --restorer "mine=experiments/mine/models/mine_1400.safetensors" -o experiments/levels

For methods that are not ours: --save-inputs writes the degraded faces to OUTPUT/LEVEL/inputs; {level} in a restorer's place
stands for the level, such as --restorer "classical=experiments/levels/{level}/classical" (scripts/restore_classically.py).

Each level has its own report folder with all values and a grid of pictures; levels.md is the table of all. Metrics whose
weights or packages are missing are left out; the reports say which.
"""

import argparse
import logging
from pathlib import Path

from sgpn_model.pipeline.report import Scores, markdown, write_report
from sgpn_model.pipeline.test import evaluate, parse_restorers

LEVELS = ("mild", "medium", "severe")
OPTIONS = Path(__file__).parents[1] / "options" / "test"


def judge(level: str, restorers: dict[str, str], overrides: list[str], folder: Path, save_inputs: bool) -> Scores:
    """Scores one level and writes its report."""
    places = {name: place.replace("{level}", level) for name, place in restorers.items()}
    inputs = str(folder / level / "inputs") if save_inputs else None
    scores = evaluate(str(OPTIONS / f"open_{level}.yml"), overrides, None, places, inputs)
    write_report(folder / level, scores)
    return scores


def main() -> None:
    """Judges every level and writes the joint table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--restorer", action="append", default=[], metavar="NAME=WEIGHTS", help="one more row, repeatable"
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="a.b=c", help="options of all levels")
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=LEVELS)
    parser.add_argument("--save-inputs", action="store_true")
    parser.add_argument("-o", "--output", default="experiments/levels", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    restorers, parts = parse_restorers(arguments.restorer), []
    for level in arguments.levels:
        scores = judge(level, restorers, arguments.set, arguments.output, arguments.save_inputs)
        parts.append(f"## {level}\n\n{markdown(scores.table(), scores.labels())}")
        print(parts[-1], flush=True)
    (arguments.output / "levels.md").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
