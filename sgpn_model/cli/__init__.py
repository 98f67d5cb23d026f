"""The command ``sgpn``: which commands there are, and what all of them do with errors. One file per command."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from sgpn_arch.errors import UserError

# Command -> its file, which has add_arguments(parser) and run(**options). Files import what they run when it runs.
COMMANDS = {
    "restore": ("restore", "restore the faces in photos"),
    "align": ("align", "cut the faces out of photos, to train on them"),
    "train": ("train", "train what an option file describes"),
    "test": ("testing", "measure what an option file describes, and write a report"),
    "ablate": ("ablate", "train and test variants of a model alike, and compare them"),
    "bench": ("bench", "measure how fast this machine restores"),
    "options": ("options", "show and check option files"),
    "weights": ("weights", "list, fetch, verify, show and convert weights"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code: 0 all went well, 1 something failed, 2 wrong usage."""
    options = vars(build_parser().parse_args(arguments))
    command = options.pop("run")
    try:
        return command(**options) or 0
    except KeyboardInterrupt:
        print("sgpn: interrupted", file=sys.stderr)
        return 130
    except (UserError, OSError, FloatingPointError) as error:
        print(f"sgpn: error: {error}", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="sgpn", description="Restore degraded faces with a 3D shape prior (SGPN).")
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (file, told) in COMMANDS.items():
        module = importlib.import_module(f"sgpn_model.cli.{file}")
        module.add_arguments(commands.add_parser(name, help=told, description=module.DESCRIPTION))
    return parser


class _Version(argparse.Action):
    def __init__(self, option_strings, dest, **_):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="show the version and exit")

    def __call__(self, parser, namespace, values, option_string=None):
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"sgpn {version('sgpn')}")
        except PackageNotFoundError:
            print("sgpn (not installed: run from its folder)")
        parser.exit()
