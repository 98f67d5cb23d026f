"""``sgpn restore``: photos and folders in, restored photos and their parts out."""

import argparse
import functools
from collections.abc import Callable
from typing import NoReturn

from sgpn_model.cli.arguments import add_detector, add_device

DESCRIPTION = "Restore the faces in photos. Each result is OUT/NAME.EXT, of the photo's size and upright."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments, and what runs."""
    add = parser.add_argument
    add("inputs", nargs="*", metavar="PHOTO_OR_FOLDER", help="photos, or folders of photos (not folders inside them)")
    add("-o", "--output", default="results", metavar="OUT", help="folder for the results (default: results)")
    add("--aligned", action="store_true", help="the photos are aligned square faces; write the restored crops")
    add("--mask", metavar="MASK", help="fill the photo where this picture of its size is white; the rest stays")
    add("--weights", default="default", metavar="NAME|FILE", help="weights that ship, or a checkpoint file")
    add_device(parser, "auto")
    add_detector(parser)
    add(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="numbers that the network computes with: fp32; bf16, at most 2 of 255 grey levels off on the demo's face (PSNR "
        "against fp32: 54 dB, 64 dB in the photo); fp16 (CUDA only); auto: what the device multiplies in hardware (default)",
    )
    add(
        "--fidelity",
        type=_fidelity,
        default="auto",
        metavar="W",
        help="how much of the photo is kept: from 0, the restoration, to 1, the photo (default: auto, the restoration, and "
        "with it the finer detail of photos that are sharp)",
    )
    add("--only-largest", action="store_true", help="restore only the largest face of each photo")
    add("--save-parts", action="store_true", help="write crops, renderings, masks and sheets to OUT/parts")
    add("--ext", default="auto", choices=("auto", "png", "jpg"), help="kind of the results (default: the photo's)")
    add("--demo", action="store_true", help="degrade scikit-image's astronaut and restore it")
    parser.set_defaults(run=functools.partial(run, parser.error))


def _fidelity(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number from 0 to 1 nor auto")
    return value


def run(usage_error: Callable[[str], NoReturn], **options) -> int:
    """Restores, and returns the exit code."""
    if options["demo"] == bool(options["inputs"]):
        usage_error("give photos or folders to restore, or --demo (and not both)")
    if options["mask"] and len(options["inputs"]) != 1:
        usage_error("--mask goes with one photo: the one that it was painted on")
    from sgpn_model.restore import album

    return album.run(**options)
