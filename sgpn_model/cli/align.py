"""``sgpn align``: photos in, a folder of aligned faces with their landmarks out, ready to train on."""

import argparse
import functools
import tempfile
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from sgpn_arch.ranges import Count, Template
from sgpn_model.cli.arguments import CLUSTER, add_cluster, add_detector, add_device, typed

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
    many = parser.add_argument_group("many photos, on many workers (extra bulk)")
    many.add_argument(
        "--shards",
        action="store_true",
        help="write the faces into .tar files of WebDataset's layout, with Ray Data, and a table of the photos to OUT/table. The "
        "one input is a folder (with those inside it), URL or manifest, as of sgpn bulk. Runs again do only what is missing",
    )
    add_cluster(many)
    parser.set_defaults(run=functools.partial(run, parser))


def run(parser: argparse.ArgumentParser, demo: bool, shards: bool, **options) -> int:
    """Cuts out, and returns the exit code."""
    usage_error = parser.error
    if demo == bool(options["inputs"]):
        usage_error("give photos or folders to align, or --demo (and not both)")
    cluster = {name: options.pop(name) for name in CLUSTER}
    if shards:
        if demo or len(options["inputs"]) != 1:
            usage_error("--shards takes one folder, URL or manifest")
        return _write_shards(cluster, **options)
    given = [f"--{name.replace('_', '-')}" for name in CLUSTER if cluster[name] != parser.get_default(name)]
    if given:
        usage_error(f"{', '.join(given)}: only with --shards")
    from sgpn_model.restore import aligner

    if not demo:
        return aligner.run(**options)
    with tempfile.TemporaryDirectory() as folder:
        write_demo_photos(Path(folder))
        # Its face is 220 pixels wide, less than half of the usual size.
        return aligner.run(**{**options, "inputs": [folder], "min_pixels": options["min_pixels"] or 1})


def _write_shards(cluster: dict, inputs: list[str], output: str, recursive: bool, **building) -> int:
    from sgpn_model.bulk.job import Bulk
    from sgpn_model.bulk.shards import AlignWorker

    settings = {name: value for name, value in building.items() if name not in ("device", "allow_download")}
    tally = Bulk(
        inputs[0], output, building=building, settings={"aligned": True, **settings}, worker=AlignWorker, **cluster
    ).run()
    print(f"{tally}: shards in {output}")
    return 1 if tally.failed else 0


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
