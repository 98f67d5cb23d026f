"""``sgpn restore``: photos and folders in, restored photos and their parts out."""

import argparse
import functools
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from sgpn_arch.ranges import Fraction
from sgpn_model.cli.arguments import add_detector, add_device, add_engine, typed

if TYPE_CHECKING:
    import numpy as np

    from sgpn_model.restore.album import Done, Job
    from sgpn_model.restore.stream import Outcome

DESCRIPTION = "Restore the faces in photos. Writes OUT/NAME.EXT for each photo, upright and at the photo's size."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments, and what runs."""
    add = parser.add_argument
    add("inputs", nargs="*", metavar="PHOTO_OR_FOLDER", help="photos, or folders of photos (not folders inside them)")
    add("-o", "--output", default="results", metavar="OUT", help="folder for the results")
    add("--aligned", action="store_true", help="the photos are aligned square faces; write the restored crops")
    add(
        "--mask",
        metavar="MASK",
        help="fill the photo where this picture of the same size is white; the rest stays unchanged",
    )
    add("--weights", default="default", metavar="NAME|FILE", help="name of weights that ship, or a checkpoint file")
    add_device(parser, "auto")
    add_engine(parser)
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
        type=typed(Fraction | Literal["auto"]),
        default="auto",
        metavar="W",
        help="how much of the photo to keep, from 0 (the restoration) to 1 (the photo); auto, the default, is the restoration "
        "with the photo's finer detail, but not its noise",
    )
    add("--only-largest", action="store_true", help="restore only the largest face of each photo")
    add("--save-parts", action="store_true", help="write crops, renderings, masks and sheets to OUT/parts")
    add("--ext", default="auto", choices=("auto", "png", "jpg"), help="format of the results (default: the photo's)")
    add("--demo", action="store_true", help="degrade scikit-image's astronaut and restore it")
    add("-v", "--verbose", action="store_true", help="tell which engine runs, and why")
    parser.set_defaults(run=functools.partial(run, parser.error))


def run(
    usage_error: Callable[[str], NoReturn],
    inputs: Sequence[str],
    output: str,
    mask: str | None,
    save_parts: bool,
    ext: str,
    demo: bool,
    aligned: bool,
    only_largest: bool,
    verbose: bool,
    threads: int | None,
    **building,
) -> int:
    """Restores photos and returns the exit code: 0 if all went well, 1 if a photo or a face failed.

    Args:
        inputs: photos, and folders whose photos (not those of folders inside them) are restored.
        output: the folder for results; ``output/parts`` gets the parts.
        mask: a picture of the one photo's size, white where it is to be filled; see ``FaceRestorer.restore``.
        save_parts: write crops, renderings, masks and sheets too. ext: of the results, see :func:`.album.plan`.
        demo: restore a degraded picture of the astronaut that comes with scikit-image; there are no inputs then.
        verbose: tell on stderr which engine runs. threads: of the networks; None is as many as cores are free.
        aligned, only_largest: of ``FaceRestorer.restore``. building: what ``FaceRestorer.from_pretrained`` takes.

    Raises:
        InputError: before any work: no photos, a missing one, a mask for several, or a result that would overwrite an input.
        ImageError: the mask cannot be read.
        CheckpointError, DetectorError, OptionError: the restorer cannot be built.
    """
    if demo == bool(inputs):
        usage_error("give photos or folders to restore, or --demo (and not both)")
    if mask and len(inputs) != 1:
        usage_error("--mask goes with one photo: the one that it was painted on")
    from sgpn_model.config.device import FreeCores

    free = FreeCores()
    if verbose:
        logging.basicConfig(level=logging.WARNING, format="sgpn: %(message)s")
        logging.getLogger("sgpn").setLevel(logging.INFO)
    from tqdm import tqdm

    from sgpn_arch.inference.memory import keep_freed_memory, return_freed_memory
    from sgpn_data.photos import take_large_photos
    from sgpn_model.restore.album import InputError, find_photos, plan, restore_jobs
    from sgpn_model.restore.restorer import FaceRestorer

    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; -o takes a folder")
    photos, passed_over = find_photos(inputs)
    for line in passed_over:
        print(f"sgpn: warning: {line}", file=sys.stderr)
    take_large_photos()
    jobs = plan(photos, folder, ext, save_parts)
    hole = None if mask is None else _read_mask(mask, jobs)
    restorer = FaceRestorer.from_pretrained(**building, threads=threads or free.count())
    return_freed_memory()
    keep_freed_memory()
    if demo:
        jobs = [_demo_job(folder, ext)]
    summary = Summary(done="restored" if mask is None else "filled")
    outcomes = restore_jobs(restorer, jobs, save_parts, aligned=aligned, only_largest=only_largest, mask=hole)
    hidden = len(jobs) == 1 or None
    for outcome in tqdm(outcomes, total=len(jobs), desc="restoring", unit="photo", disable=hidden, file=sys.stderr):
        for line in summary.add(jobs[outcome.index].source, outcome):
            tqdm.write(f"sgpn: {line}", file=sys.stderr)
    print(f"{summary}: results in {folder}" if summary.failed < len(jobs) else f"{summary}: no results")
    return 1 if summary.failed or summary.failed_faces else 0


@dataclass
class Summary:
    """What became of the photos."""

    faces: int = 0
    restored: int = 0
    without_face: int = 0
    failed: int = 0
    failed_faces: int = 0
    done: str = "restored"

    def add(self, source: Path, outcome: "Outcome[Done]") -> list[str]:
        """Counts what became of a photo; returns what the user should know of it, line by line."""
        from sgpn_data.photos import ImageError

        error = outcome.error
        if error is not None:  # a photo that breaks something must not cost the user the rest of the album
            self.failed += 1
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            return [f"error: {error}" if isinstance(error, ImageError) else f"error: {source}: {kind}{error}"]
        lines = [f"warning: {source}: {remark}" for remark in outcome.result.remarks]
        lines += [
            f"error: {source}: the face around ({x}, {y}) stays as it was, as the networks make NaN or infinity of it, in "
            "fp32 too; check the weights with sgpn weights verify"
            for x, y in outcome.result.failed
        ]
        faces, untouched = outcome.result.faces, outcome.result.untouched
        self.failed_faces += len(outcome.result.failed)
        self.faces += faces
        self.restored += bool(faces)
        if faces or outcome.result.failed:
            return lines
        self.without_face += 1
        why = "no face found"
        if untouched:
            why = f"the mask touches none of the {_count(untouched, 'face')} found"
        elif self.done == "filled":  # the detector sees the photo with the hole in it
            why += " beside the hole; a crop of the face can be filled with --aligned"
        return lines + [f"warning: {source}: {why}; copied as it is"]

    def __str__(self) -> str:
        text = f"{self.done} {_count(self.faces, 'face')} in {_count(self.restored, 'photo')}"
        if self.without_face:
            why = "without a face" if self.done == "restored" else "without a face to fill"
            text += f"; {_count(self.without_face, 'photo')} {why} copied"
        if self.failed_faces:
            text += f"; {_count(self.failed_faces, 'face')} failed"
        return text + (f"; {self.failed} failed" if self.failed else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _read_mask(path: str, jobs: "Sequence[Job]") -> "np.ndarray":
    """A mask (H, W) uint8, white where the photo is to be filled; what is transparent in it is not."""
    import numpy as np

    from sgpn_data.photos import read_photo
    from sgpn_model.restore.album import InputError

    if len(jobs) != 1:
        raise InputError(f"--mask goes with one photo, the one that it was painted on; here are {len(jobs)}")
    if jobs[0].target.resolve() == Path(path).resolve():
        raise InputError(f"{path}: the result would overwrite the mask; choose another folder with -o")
    photo = read_photo(path)
    for remark in photo.remarks:
        print(f"sgpn: warning: {path}: {remark}", file=sys.stderr)
    levels = photo.bgr.min(axis=2)
    return levels if photo.alpha is None else np.minimum(levels, photo.alpha)


# ---------------------------------------------------------------------------------------------------------------------
# The demonstration


def _demo_job(folder: Path, ext: str) -> "Job":
    from sgpn_data.astronaut import NAME, degraded_astronaut
    from sgpn_data.photos import write_picture
    from sgpn_model.restore.album import Job

    source = folder / f"{NAME}_degraded.png"
    write_picture(source, degraded_astronaut())
    return Job(source, folder / f"{NAME}.{'png' if ext == 'auto' else ext}", NAME)
