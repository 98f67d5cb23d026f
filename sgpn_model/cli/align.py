"""``sgpn align``: photos in, a folder of aligned faces with their landmarks out, ready to train on."""

import argparse
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from sgpn_arch.ranges import Count, Template
from sgpn_model.cli.arguments import add_detector, add_device, typed

DEMO_PHOTOS = 12  # of whose names a hash holds two back for validation
DESCRIPTION = "Cut the faces out of photos, aligned, as OUT/NAME_00.png, ... and find their 68 landmarks."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments, and what runs."""
    add = parser.add_argument
    add("inputs", nargs="*", metavar="PHOTO_OR_FOLDER", help="photos, or folders of photos")
    add("-r", "--recursive", action="store_true", help="the folders inside folders, too")
    add(
        "--demo",
        action="store_true",
        help="align 12 pictures made of scikit-image's astronaut: data to try training with",
    )
    add("-o", "--output", required=True, metavar="OUT", help="folder for the faces")
    add("--size", type=typed(Annotated[int, Ge(16)]), default=512, metavar="PIXELS", help="side of the faces")
    add(
        "--template",
        type=typed(Template),
        default="ffhq",
        metavar="ffhq|gpen",
        help="where eyes, nose and mouth are placed",
    )
    add(
        "--min-pixels",
        type=typed(Count),
        metavar="PIXELS",
        help="leave out faces that cover fewer pixels of the photo (default: half of --size)",
    )
    add("--only-largest", action="store_true", help="take only the largest face of each photo")
    add("--no-landmarks", dest="landmarks", action="store_false", help="do not look for the 68 landmarks")
    add_device(parser, "auto")
    add_detector(parser)
    parser.set_defaults(run=functools.partial(run, parser.error))


def run(usage_error: Callable[[str], None], demo: bool, **options) -> int:
    """Cuts out, and returns the exit code."""
    from sgpn_model.restore import aligner

    if demo == bool(options["inputs"]):
        usage_error("give photos or folders to align, or --demo (and not both)")
    if not demo:
        return aligner.run(**options)
    with tempfile.TemporaryDirectory() as folder:
        write_demo_photos(Path(folder))
        # Its face is 220 pixels wide, less than half of the usual size.
        return aligner.run(**{**options, "inputs": [folder], "min_pixels": options["min_pixels"] or 1})


def write_demo_photos(folder: Path) -> None:
    """Writes scikit-image's astronaut as pictures, stretched and lit, every other one mirrored."""
    import cv2
    import numpy as np

    from sgpn_data.astronaut import NAME, astronaut
    from sgpn_data.photos import write_picture

    rng, photo = np.random.default_rng(0), astronaut()
    size = photo.shape[0]
    for number in range(DEMO_PHOTOS):
        stretch = np.eye(2) + rng.uniform(-0.08, 0.08, (2, 2))
        matrix = np.column_stack([stretch, (np.eye(2) - stretch) @ [size / 2, size / 2]])
        picture = cv2.warpAffine(photo, matrix, (size, size), borderMode=cv2.BORDER_REFLECT)
        lit = (picture / 255) ** rng.uniform(0.75, 1.33) * rng.uniform(0.85, 1.1, 3) * 255
        lit = np.clip(np.rint(lit), 0, 255).astype(np.uint8)
        write_picture(folder / f"{NAME}_{number:02d}.png", lit[:, ::-1] if number % 2 else lit)
