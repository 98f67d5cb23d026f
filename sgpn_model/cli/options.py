"""``sgpn options``: what an option file means, and whether it is right."""

import argparse
import itertools
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from sgpn_arch.errors import OptionError
from sgpn_model.cli.arguments import add_set

if TYPE_CHECKING:
    from sgpn_model.config.origins import Origins

DESCRIPTION = "Show and check option files."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The tasks and their arguments, and what runs."""
    tasks = parser.add_subparsers(title="tasks", metavar="TASK", required=True)
    task = tasks.add_parser("show", help="print an option file with everything that it inherits")
    task.add_argument("file", metavar="FILE", help="an option file")
    task.add_argument("--origin", action="store_true", help="show the file that each option comes from")
    task.set_defaults(run=show)
    add_set(task)
    task = tasks.add_parser("list", help="list the option files that ship, with what each is for")
    task.set_defaults(run=listing)
    task = tasks.add_parser("docs", help="print docs/options.md: every option with its allowed values and its default")
    task.set_defaults(run=docs)
    task = tasks.add_parser("check", help="check option files as the commands that use them do")
    task.add_argument("files", nargs="+", metavar="FILE", help="option files")
    task.add_argument(
        "--no-files", dest="look", action="store_false", help="do not check that the data and weights in them exist"
    )
    task.set_defaults(run=check)
    add_set(task)


def listing() -> int:
    """Prints the names of the shipped option files, each with the first sentence of the comment that it opens with."""
    from sgpn_model.config.reading import shipped_files

    for name, path in shipped_files().items():
        comment = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
        text = " ".join(line.removeprefix("#").strip() for line in comment)
        print(f"{name:32} {text.partition('. ')[0].rstrip('.')}")
    return 0


def docs() -> int:
    """Prints the page of all options."""
    from sgpn_model.cli.options_page import page

    print(page(), end="")
    return 0


def show(file: str, overrides: Iterable[str] = (), origin: bool = False) -> int:
    """Prints the merged options as YAML, with ``origin`` each with the file it was written in; 1 if they are wrong."""
    from sgpn_model.config.reading import read_options
    from sgpn_model.config.strict_yaml import dump

    options, origins = read_options(file, overrides)
    if origin:
        print("\n".join(_lines_with_origin(options, origins)))
    else:
        print(dump(options), end="")
    return 0 if _is_right(file, overrides, look=False) else 1


def check(files: Iterable[str], overrides: Iterable[str] = (), look: bool = True) -> int:
    """Checks files as the commands that they are for would; prints a line for each that is right, returns 1 if one is wrong."""
    right = [_is_right(file, overrides, look) for file in files]
    for file in (file for file, fine in zip(files, right, strict=True) if fine):
        print(f"{file}: all right")
    return 0 if all(right) else 1


def _is_right(file: str, overrides: Iterable[str], look: bool) -> bool:
    from sgpn_model.config.checking import checked_options

    try:
        checked_options(file, overrides, files=look)
    except OptionError as error:
        for problem in error.problems:
            print(f"sgpn: error: {problem}", file=sys.stderr)
        return False
    return True


def _lines_with_origin(options: Mapping, origins: "Origins", parents: tuple[str, ...] = ()) -> Iterable[str]:
    from sgpn_model.config.strict_yaml import dump

    for key, value in options.items():
        start = "  " * len(parents) + dump(key, inline=True) + ":"
        if isinstance(value, Mapping) and value:
            yield start
            yield from _lines_with_origin(value, origins, (*parents, str(key)))
        else:
            yield f"{start} {dump(value, inline=True)}  # {origins.at([*parents, str(key)])}"
