"""``sgpn weights``: list, fetch, verify, show and convert weights."""

import argparse
import functools

DESCRIPTION = "Weights that this library can use: docs/weights.md says what is known of them."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The tasks and their arguments, and what runs."""
    tasks = parser.add_subparsers(title="tasks", metavar="TASK", required=True)
    _add_task(tasks, "list", "list_catalogue", "what there is, and whether it is on this machine")
    fetch = _add_task(tasks, "fetch", "fetch", "download weights of the list and verify them")
    fetch.add_argument("name", metavar="NAME", help="a name in the list")
    fetch.add_argument("-o", "--output", metavar="DIR", help="folder to put them into (default: the cache folder)")
    for name, told in (("verify", "whether a file is whole, safe and usable"), ("show", "what is in a file")):
        task = _add_task(tasks, name, name, told)
        task.add_argument("file", metavar="FILE", help="a file of weights, or a name in the list")
    convert = _add_task(tasks, "convert", "convert", "turn the authors' released weights into a checkpoint")
    add = convert.add_argument
    add("--sgpn", metavar="FILE", help="the authors' sgpn.pth")
    add("--d3dfr", metavar="FILE", help="the authors' d3dfr_*.pth, or Deep3DFaceRecon's epoch_20.pth")
    add("--bfm", metavar="DIR", help="folder of the Basel Face Model")
    add("--init-prior", metavar="FILE", help="a GPEN generator to start a training from, in place of --sgpn")
    add("-o", "--output", required=True, metavar="OUT", help="the checkpoint to write (.safetensors)")


def _add_task(tasks, name: str, function: str, told: str) -> argparse.ArgumentParser:
    parser = tasks.add_parser(name, help=told, description=f"Say {told}." if name in ("verify", "show") else None)
    parser.set_defaults(run=functools.partial(run, function))
    return parser


def run(task: str, **options) -> int:
    """Does the task, and returns the exit code."""
    from sgpn_model.weights import inspect

    return getattr(inspect, task)(**options)
