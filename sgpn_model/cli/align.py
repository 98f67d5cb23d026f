"""``sgpn align``: photos in, a folder of aligned faces with their landmarks out, ready to train on."""

import argparse

from sgpn_model.cli.arguments import add_detector, add_device

DESCRIPTION = "Cut the faces out of photos, aligned, as OUT/NAME_00.png, ... and find their 68 landmarks."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments, and what runs."""
    add = parser.add_argument
    add("inputs", nargs="+", metavar="PHOTO_OR_FOLDER", help="photos, or folders of photos (not folders inside them)")
    add("-o", "--output", required=True, metavar="OUT", help="folder for the faces")
    add("--size", type=int, default=512, metavar="PIXELS", help="side of the faces (default: 512)")
    add("--template", default="ffhq", metavar="ffhq|gpen", help="where eyes, nose and mouth lie (default: ffhq)")
    add("--min-pixels", type=int, metavar="PIXELS", help="leave out faces that show fewer (default: half of --size)")
    add("--only-largest", action="store_true", help="take only the largest face of each photo")
    add("--no-landmarks", dest="landmarks", action="store_false", help="do not look for the 68 landmarks")
    add_device(parser, "auto")
    add_detector(parser)
    parser.set_defaults(run=run)


def run(**options) -> int:
    """Cuts out, and returns the exit code."""
    from sgpn_model.restore import aligner

    return aligner.run(**options)
