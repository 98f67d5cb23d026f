"""``sgpn options``: what an option file means, and whether it is right."""

import argparse
import functools

from sgpn_model.cli.arguments import add_set

DESCRIPTION = "Show and check option files."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The tasks and their arguments, and what runs."""
    tasks = parser.add_subparsers(title="tasks", metavar="TASK", required=True)
    task = tasks.add_parser("show", help="print what an option file means, with all that it inherits")
    task.add_argument("file", metavar="FILE", help="an option file")
    task.add_argument("--origin", action="store_true", help="say behind each option in which file it was written")
    task.set_defaults(run=functools.partial(run, "show"))
    add_set(task)
    task = tasks.add_parser("list", help="name the option files that ship, each with what it is for")
    task.set_defaults(run=functools.partial(run, "listing"))
    task = tasks.add_parser("check", help="check option files as the commands that they are for would")
    task.add_argument("files", nargs="+", metavar="FILE", help="option files")
    task.set_defaults(run=functools.partial(run, "check"))
    add_set(task)


def run(task: str, **options) -> int:
    """Shows or checks, and returns the exit code."""
    from sgpn_model.config import checking

    return getattr(checking, task)(**options)
