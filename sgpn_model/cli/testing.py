"""``sgpn test``: restorers, and folders of restored pictures, measured on a fixed set of degraded faces."""

import argparse

from sgpn_model.cli.arguments import add_options, start_long_run

DESCRIPTION = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments, and what runs."""
    add_options(parser)
    add = parser.add_argument
    add("-o", "--output", metavar="OUT", help="folder for the table, plots and pictures (default: experiments/NAME)")
    add(
        "--restorer",
        dest="restorers",
        action="append",
        default=[],
        metavar="[NAME=]PLACE",
        help="one more row: weights, or a folder of pictures that another program restored from the test's inputs",
    )
    add("--save-inputs", metavar="DIR", help="write the degraded pictures, so that another program can restore them")
    parser.set_defaults(run=run)


def run(**options) -> None:
    """Measures, and writes the report."""
    start_long_run()
    from sgpn_model.evaluate import evaluate

    evaluate.run(**options)
