"""``sgpn ablate``: variants of a model trained and tested alike, and compared."""

import argparse

from sgpn_arch.ranges import Whole
from sgpn_model.cli.arguments import add_data, add_device, add_set, start_long_run, typed

DESCRIPTION = (
    "Train every option file with every seed, test all of them, and write a comparison. Finished runs are skipped."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments, and what runs."""
    add = parser.add_argument
    add("options_paths", nargs="+", metavar="OPTIONS", help="option files; the others are compared with the first")
    add("-o", "--output", default="experiments/ablation", metavar="OUT", help="folder")
    add("--seeds", nargs="+", type=typed(Whole), default=[0, 1, 2], metavar="SEED", help="seeds of the trainings")
    add_data(parser)
    add_set(parser)
    add_device(parser, None)
    parser.set_defaults(run=run)


def run(**options) -> None:
    """Trains, tests and compares."""
    start_long_run()
    from sgpn_model.evaluate import variants

    variants.run(**options)
