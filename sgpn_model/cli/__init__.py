"""The command ``sgpn``: which commands there are, and what all of them do with errors. One file per command."""

import argparse
import importlib
import os
import sys
from collections.abc import Iterable, Sequence

from sgpn_arch.errors import OptionError, UserError, nearest

# Command -> its file, which has add_arguments(parser) and run(**options). Files import what they run when it runs.
COMMANDS = {
    "restore": ("restore", "restore the faces in photos"),
    "bulk": ("bulk", "restore the photos of an archive, on many machines"),
    "video": ("film", "restore the faces in a film"),
    "web": ("web", "restore photos on a page in the browser"),
    "align": ("align", "cut the faces out of photos, to train on them"),
    "train": ("train", "train what an option file describes"),
    "test": ("testing", "measure what an option file describes, and write a report"),
    "ablate": ("ablate", "train and test variants of a model in the same way, and compare them"),
    "bench": ("bench", "measure how fast this machine restores"),
    "export": ("export", "write networks as ONNX files, for engines other than PyTorch"),
    "options": ("options", "show and check option files"),
    "weights": ("weights", "list, fetch, verify, show and convert weights"),
}


def _have_bars_drawn() -> None:
    """tqdm, which reads this when it is imported, draws nothing on a terminal that does not say its height.

    findings/tqdm_no_rows.sh shows it.
    """
    if sys.stderr.isatty() and not os.get_terminal_size(sys.stderr.fileno()).lines:
        os.environ.setdefault("TQDM_NROWS", "20")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code: 0 all went well, 1 something failed, 2 wrong usage."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    _have_bars_drawn()
    # Only the file of the command that runs is imported.
    options = vars(build_parser(name for name in COMMANDS if name in arguments[:1]).parse_args(arguments))
    command = options.pop("run")
    try:
        code = command(**options) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("sgpn: interrupted", file=sys.stderr)
        return 130
    except OptionError as error:
        print("\n".join(f"sgpn: error: {problem}" for problem in error.problems), file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "sgpn").partition(".")[0]
        if package.startswith("sgpn"):
            raise
        print(
            f"sgpn: error: this needs the package {package}, which is not installed: pip install {package}",
            file=sys.stderr,
        )
        return 1
    except BrokenPipeError:  # whoever reads, such as `head`, has seen enough; nothing may be written when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (UserError, OSError, FloatingPointError) as error:
        print(f"sgpn: error: {error}", file=sys.stderr)
        return 1


class Help(argparse.HelpFormatter):
    """Tells every default, so that it is written once; where the help says something of it, that."""

    def _get_help_string(self, action):
        text, default = action.help or "", action.default
        plain = isinstance(default, str | int | float | list) and not isinstance(default, bool)
        if not plain or default in ([], argparse.SUPPRESS) or "default" in text or not action.option_strings:
            return text
        value = " ".join(map(str, default)) if isinstance(default, list) else default
        return f"{text} (default: {value})"


class Parser(argparse.ArgumentParser):
    """A parser that answers a misspelt flag with the nearest one of its own; argparse leaves the flag to ``sgpn`` itself."""

    def __init__(self, **settings):
        super().__init__(**{"formatter_class": Help, **settings})

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's, but nothing may be left over."""
        namespace, rest = super().parse_known_args(args, namespace)
        flags = [each.partition("=")[0] for each in rest if each.startswith("-")]
        if flags:
            self.error(f"unknown argument {flags[0]}{nearest(flags[0], self._option_string_actions)}")
        return namespace, rest


def build_parser(commands: Iterable[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The parser of the whole command line, with the arguments of these ``commands``."""
    wanted = set(commands)
    parser = Parser(prog="sgpn", description="Restore degraded faces with a 3D shape prior (SGPN).")
    parser.add_argument("--version", action=_Version)
    parsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (file, told) in COMMANDS.items():
        command = parsers.add_parser(name, help=told)
        if name in wanted:
            module = importlib.import_module(f"sgpn_model.cli.{file}")
            command.description = module.DESCRIPTION
            module.add_arguments(command)
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
