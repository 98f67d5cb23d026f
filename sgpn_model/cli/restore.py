"""``sgpn restore``: photos and folders in, restored photos and their parts out."""

import argparse
import functools
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sgpn_model.cli.arguments import add_restoring, add_results, face_choice, settings_of

if TYPE_CHECKING:
    import numpy as np

    from sgpn_model.restore.album import InputError, Job
    from sgpn_model.restore.record import Done
    from sgpn_model.restore.stream import Outcome

DESCRIPTION = "Restore the faces in photos. Writes OUT/NAME.EXT for each photo, upright and at the photo's size."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments, and what runs."""
    add = parser.add_argument
    add("inputs", nargs="*", metavar="PHOTO_OR_FOLDER", help="photos, or folders of photos")
    add(
        "-r", "--recursive", action="store_true", help="restore the folders inside folders, too, into folders like them"
    )
    add(
        "-o",
        "--output",
        default="results",
        metavar="OUT",
        help="folder for the results (default: results); for one photo also the name of its result, such as photo.jpg",
    )
    add("--overwrite", action="store_true", help="also restore what an earlier run has finished with these settings")
    add("--dry-run", action="store_true", help="only say what would be done")
    add(
        "-v",
        "--verbose",
        action="store_true",
        help="tell the engine, and of each photo its faces, their sizes, seconds",
    )
    add(
        "--mask",
        metavar="MASK",
        help="fill the photo where this picture of the same size is white; the rest stays unchanged",
    )
    add_restoring(parser)
    add("--save-parts", action="store_true", help="write crops, renderings, masks, sheets and 3D meshes to OUT/parts")
    add(
        "--shape-only",
        action="store_true",
        help="restore nothing; write only crops, renderings and 3D meshes to OUT/parts",
    )
    add(
        "--report",
        type=Path,
        metavar="FILE",
        help="also write what became of each photo: a page (.html) with each before and after, or .json",
    )
    add_results(parser)
    add("--demo", action="store_true", help="degrade scikit-image's astronaut and restore it")
    parser.set_defaults(run=functools.partial(run, parser.error))


def run(
    usage_error: Callable[[str], NoReturn],
    inputs: Sequence[str],
    recursive: bool,
    output: str,
    overwrite: bool,
    dry_run: bool,
    verbose: bool,
    mask: str | None,
    faces: int | None,
    min_face: int,
    max_face: int | None,
    min_score: float,
    scale: int,
    min_size: int,
    save_parts: bool,
    shape_only: bool,
    report: Path | None,
    depth: int,
    ext: str,
    demo: bool,
    aligned: bool,
    only_largest: bool,
    threads: int | None,
    **building,
) -> int:
    """Restores photos and returns the exit code: 0 if all went well, 1 if a photo or a face failed.

    Args:
        inputs: photos, and folders whose photos are restored. recursive: those of the folders inside, too.
        output: the folder for results, or the one result's file; ``parts`` inside the folder gets the parts.
        overwrite: do again what a record in ``output`` says is finished. dry_run: only print what would be done.
        verbose: print a line for each photo, and tell which engine runs.
        mask: a picture of the one photo's size, white where it is to be filled; see ``FaceRestorer.restore``.
        faces, min_face, max_face, min_score: see :class:`sgpn_data.detection.FaceChoice`.
        scale, min_size: see :func:`sgpn_model.restore.album.scale_for`.
        save_parts: write crops, renderings, masks, sheets and meshes too. shape_only: of these the shape's, and nothing else.
        report: see :class:`sgpn_model.restore.album_report.AlbumReport`.
        depth: bits of results. ext: of the results, see :func:`.album.plan`.
        demo: restore a degraded picture of the astronaut that comes with scikit-image; there are no inputs then.
        threads: of the networks; None is as many as cores are free.
        aligned, only_largest: of ``FaceRestorer.restore``. building: what ``FaceRestorer.from_pretrained`` takes.

    Raises:
        InputError: before any work: no photos, a missing one, a mask for several or for weights that cannot fill holes, or a
            result that would overwrite an input.
        ImageError: the mask cannot be read.
        CheckpointError, DetectorError, OptionError: the restorer cannot be built.
    """
    if demo == bool(inputs):
        usage_error("give photos or folders to restore, or --demo (and not both)")
    if mask and len(inputs) != 1:
        usage_error("--mask goes with one photo: the one that it was painted on")
    if mask and shape_only:
        usage_error("--mask fills holes, and --shape-only restores nothing: leave one of them out")
    if (mask or shape_only) and (scale > 1 or min_size or building["background"] != "lanczos"):
        usage_error(
            "--scale, --min-size and --background go neither with --mask (enlarge the filled photo in a second step) nor with "
            "--shape-only"
        )
    if report is not None and (shape_only or report.suffix.lower() not in (".html", ".json")):
        usage_error("--report takes the name of a .html or .json file, and goes without --shape-only")
    choice = face_choice(usage_error, faces, min_face, max_face, min_score)
    from sgpn_model.config.device import FreeCores

    free = FreeCores()
    if verbose:
        logging.basicConfig(level=logging.WARNING, format="sgpn: %(message)s")
        logging.getLogger("sgpn").setLevel(logging.INFO)
    from tqdm import tqdm

    from sgpn_arch.files import sha256_of
    from sgpn_arch.inference.memory import keep_freed_memory, return_freed_memory
    from sgpn_data.photos import take_large_photos
    from sgpn_model.cli.progress import Progress
    from sgpn_model.restore.album import restore_jobs
    from sgpn_model.restore.album_report import AlbumReport
    from sgpn_model.restore.record import Record
    from sgpn_model.restore.restorer import FaceRestorer

    if shape_only:
        import trimesh  # noqa: F401  (before any work: it is what writes them)
    folder, jobs = _plan(inputs, recursive, Path(output), ext, save_parts, shape_only)
    take_large_photos()
    hole = None if mask is None else _read_mask(mask, jobs)
    settings = settings_of(
        building, choice, scale, min_size, depth, aligned=aligned, only_largest=only_largest, save_parts=save_parts
    )
    settings |= {"version": version("sgpn"), "mask": mask and sha256_of(mask)}
    enlarges = scale > 1 or min_size > 0 or building["background"] not in ("lanczos", "none")
    summary = Summary(
        "modelled" if shape_only else "restored" if mask is None else "filled", verbose, enlarges=enlarges
    )
    record = Record(folder, settings)
    waiting, finished = [], []
    for job in jobs:
        done = None if overwrite or shape_only else record.find(job.source, job.target)
        if done is None:
            waiting.append(job)
            continue
        summary.before += 1
        finished.append((job, done))
        if record.is_changed(job.target):
            print(f"sgpn: warning: {job.target}: was changed since it was restored; left as it is", file=sys.stderr)
        if verbose or dry_run:
            print(f"sgpn: {job.source}: done before: {job.target}", file=sys.stderr)
    if dry_run:
        for job in waiting:
            print(f"sgpn: {job.source}: would be {summary.done} to {summary.place(job)}", file=sys.stderr)
        what = "model the faces of" if shape_only else "restore"
        print(f"would {what} {_count(len(waiting), 'photo')}; {summary.before} done before: nothing was written")
        return 0
    if demo:
        waiting = [_demo_job(folder, ext)]
    told = None
    if report is not None:
        _keep_apart(report, inputs, recursive, folder)
        told = AlbumReport(
            report, [(job.source, job.target) for job in (waiting if demo else jobs)], {"weights": building["weights"]}
        )
        for job, done in finished:
            told.add(job.target, "before", [f"warning: {remark}" for remark in done.remarks], done)
    if not waiting:
        if told is not None:
            told.write()
        print(f"{_count(len(jobs), 'photo')} done before (--overwrite does them again): results in {folder}")
        return 0
    restorer = FaceRestorer.from_pretrained(**building, threads=threads or free.count())
    if hole is not None and "inpaint" not in restorer.task:
        raise _cannot_fill(building["weights"], restorer.task)
    return_freed_memory()
    # Networks of backgrounds, and of plugins that have no form for inference, make many large maps.
    keep_freed_memory(large=restorer.background.is_network or restorer.engine.precision == "as given")
    # A network for the background takes so long that it is shown for a single photo, too.
    progress = Progress(
        waiting, len(waiting) == 1 and not restorer.background.is_network, restorer.background.is_network
    )
    options: dict[str, Any] = dict(aligned=aligned, only_largest=only_largest, mask=hole, choice=choice)
    options |= dict(scale=scale, min_size=min_size, report=told, deep=depth == 16)
    try:
        noted = None if demo or shape_only else record
        for outcome in restore_jobs(restorer, waiting, save_parts, noted, progress, shape_only, **options):
            job = waiting[outcome.index]
            lines = summary.add(job, outcome)
            for line in lines:
                tqdm.write(f"sgpn: {line}", file=sys.stderr)
            if told is not None:
                lines = [
                    line for line in lines if line.startswith(("warning", "error"))
                ]  # the rest is on the page anyway
                done = None if outcome.error else outcome.result
                told.add(
                    job.target, "failed" if done is None else "restored" if done.faces else "unchanged", lines, done
                )
            progress.finished(job)
    finally:
        progress.close()
        if told is not None:
            told.write()
            print(f"report: {told.path}")
    has_results = summary.before or summary.failed < len(waiting)
    print(f"{summary}: results in {folder}" if has_results else f"{summary}: no results")
    return 1 if summary.failed or summary.failed_faces else 0


def _plan(
    inputs: Sequence[str], recursive: bool, output: Path, ext: str, save_parts: bool, shape_only: bool
) -> "tuple[Path, list[Job]]":
    """The folder of the results, and a job for each photo."""
    from sgpn_model.restore.album import InputError, find_photos, plan, plan_file

    is_file = bool(output.suffix) and not output.is_dir() and len(inputs) == 1 and Path(inputs[0]).is_file()
    if output.exists() and not output.is_dir() and not is_file:
        raise InputError(f"{output}: is a file; -o takes a folder, or for one photo the name of its result")
    if is_file and shape_only:
        raise InputError(f"{output}: --shape-only writes several files, so -o takes a folder")
    photos, passed_over = find_photos(inputs, recursive, output)
    for line in passed_over:
        print(f"sgpn: warning: {line}", file=sys.stderr)
    if is_file:
        return output.parent, plan_file(photos, output, ext)
    return output, plan(photos, output, ext, save_parts or shape_only)


def _keep_apart(report: Path, inputs: Sequence[str], recursive: bool, results: Path) -> None:
    """Refuses a report whose pictures the next run would take for photos."""
    from sgpn_model.restore.album import InputError

    place = report.resolve().parent
    if recursive and results.resolve() not in (place, *place.parents):
        for folder in (Path(path).resolve() for path in inputs if Path(path).is_dir()):
            if folder in (place, *place.parents):
                raise InputError(f"{report}: lies inside {folder}, where -r would find its pictures; put it elsewhere")


def _cannot_fill(weights: str, task: str) -> "InputError":
    """Weights that were not trained to fill holes, and which ones were."""
    from sgpn_model.restore.album import InputError
    from sgpn_model.weights.checkpoint import load_checkpoint
    from sgpn_model.weights.pretrained import available_weights, find_weights

    able = [
        name
        for name in available_weights()
        if "inpaint" in load_checkpoint(find_weights(name)).metadata.get("task", "restore")
    ]
    advice = f"use --weights {' or '.join(able)}" if able else "train some with options/task/inpaint.yml"
    return InputError(f"--mask: the weights {weights} cannot fill holes (their task is '{task}'); {advice}")


@dataclass
class Summary:
    """What became of the photos."""

    done: str = "restored"
    verbose: bool = False
    faces: int = 0
    restored: int = 0
    without_face: int = 0
    failed: int = 0
    failed_faces: int = 0
    before: int = 0
    enlarges: bool = False

    def place(self, job: "Job") -> Path:
        """Where what is made of a photo goes."""
        from sgpn_model.restore.album import PARTS

        return job.target.parent / PARTS if self.done == "modelled" else job.target

    def add(self, job: "Job", outcome: "Outcome[Done]") -> list[str]:
        """Counts what became of a photo; returns what the user should know of it, line by line."""
        from sgpn_data.photos import ImageError

        error, source = outcome.error, job.source
        if error is not None:  # a photo that breaks something must not cost the user the rest of the album
            self.failed += 1
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            return [f"error: {error}" if isinstance(error, ImageError) else f"error: {source}: {kind}{error}"]
        result = outcome.result
        lines = [f"warning: {source}: {remark}" for remark in result.remarks]
        lines += [
            f"error: {source}: the face around ({x}, {y}) stays as it was, as the networks make NaN or infinity of it, in "
            "fp32 too; check the weights with sgpn weights verify"
            for x, y in result.failed
        ]
        faces = len(result.faces)
        self.failed_faces += len(result.failed)
        self.faces += faces
        self.restored += bool(faces)
        if self.verbose:
            sizes = f" of {', '.join(str(face.size) for face in result.faces)} pixels" if faces else ""
            others = f", {result.left_out} not chosen" if result.left_out else ""
            lines.append(f"{source}: {_count(faces, 'face')}{sizes}{others}, {result.seconds:.1f} s: {self.place(job)}")
        if faces or result.failed:
            return lines
        self.without_face += 1
        why = "no face found"
        if result.untouched:
            why = f"the mask touches none of the {_count(result.untouched, 'face')} found"
        elif result.left_out:
            why = f"none of the {_count(result.left_out, 'face')} found was chosen"
        elif self.done == "filled":  # the detector sees the photo with the hole in it
            why += " beside the hole; a crop of the face can be filled with --aligned"
        otherwise = "" if self.done == "modelled" else "; enlarged only" if self.enlarges else "; copied as it is"
        return lines + [f"warning: {source}: {why}{otherwise}"]

    def __str__(self) -> str:
        text = f"{self.done} {_count(self.faces, 'face')} in {_count(self.restored, 'photo')}"
        if self.without_face:
            why = "without a face to fill" if self.done == "filled" else "without a face"
            otherwise = "" if self.done == "modelled" else " enlarged" if self.enlarges else " copied"
            text += f"; {_count(self.without_face, 'photo')} {why}{otherwise}"
        if self.failed_faces:
            text += f"; {_count(self.failed_faces, 'face')} failed"
        if self.before:
            text += f"; {_count(self.before, 'photo')} done before"
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
