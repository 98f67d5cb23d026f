"""``sgpn web``: a page in the browser that restores photos."""

import argparse
import functools
import signal
import threading

from sgpn_arch.ranges import Count
from sgpn_model.cli.arguments import add_detector, add_device, add_engine, typed

DESCRIPTION = (
    "Serve a page that restores photos to this computer's browser. Nothing is sent anywhere, and pictures are "
    "deleted when they are old or when the page ends (Ctrl-C)."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments, and what runs."""
    add = functools.partial(parser.add_argument, type=typed(Count), metavar="N")
    parser.add_argument("--weights", default="default", metavar="NAME|FILE", help="weights that ship, or a checkpoint")
    add("--port", help="of the address http://127.0.0.1:N (default: the first free one from 7860 on)")
    add("--max-megabytes", default=50, help="largest file that is taken")
    add("--max-megapixels", default=64, help="largest photo that comes out")
    add("--max-seconds", default=300, help="longest time for the photos that are dropped at once")
    add("--max-queue", default=20, help="how many requests may wait for their turn")
    add("--keep", default=30, metavar="MINUTES", help="when pictures are deleted")
    add_device(parser, "auto")
    add_engine(parser)
    add_detector(parser)
    parser.set_defaults(run=run)


def run(
    port: int | None,
    max_megabytes: int,
    max_megapixels: int,
    max_seconds: int,
    max_queue: int,
    keep: int,
    **building,
) -> int:
    """Serves the page until Ctrl-C."""
    import gradio  # noqa: F401  (before the networks are loaded: without it there is no page)

    from sgpn_model.restore.restorer import FaceRestorer
    from sgpn_model.web.page import Limits, serving

    restorer = FaceRestorer.from_pretrained(**building)
    limits = Limits(max_megabytes, max_megapixels, max_seconds, max_queue, keep)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that no picture is left behind
    with serving(restorer, limits, port) as address:
        print(f"restoring photos at {address} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()
    return 0
