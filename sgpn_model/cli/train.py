"""``sgpn train``: one training stage, as an option file describes it."""

import argparse

from sgpn_model.cli.arguments import add_options, start_long_run

DESCRIPTION = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments, and what runs."""
    add_options(parser)
    parser.add_argument("--auto-resume", action="store_true", help="continue this experiment where it stopped")
    parser.set_defaults(run=run)


def run(**options) -> None:
    """Trains."""
    start_long_run()
    from sgpn_model.train import loop

    loop.run(**options)
