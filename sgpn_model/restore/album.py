"""What ``sgpn restore`` runs: photos and folders in, restored photos and their parts out."""

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from sgpn_arch.errors import UserError
from sgpn_arch.files import package_folder, write_atomically
from sgpn_arch.inference.memory import keep_freed_memory, return_freed_memory
from sgpn_data.photos import (
    READ_SUFFIXES,
    WRITE_SUFFIXES,
    ImageError,
    Photo,
    photo_bytes,
    read_photo,
    write_photo,
    write_picture,
)
from sgpn_data.sheet import comparison_sheet
from sgpn_model.restore.restorer import BATCH_SIZE, FaceRestorer, PreparedPhoto, RestoredFace
from sgpn_model.restore.stream import Outcome, stream

PARTS = "parts"
LARGE = 64 << 20  # bytes of a photo whose reading leaves much memory behind
DEMO_NAME = "astronaut"
# The demonstration's degradation: a photo whose face is about 100 pixels wide, made hard but not hopeless.
DEMO_SEED = 0
DEMO_RANGES = {"blur_sigma": 1.5, "downsample": 3.0, "noise": 6.0, "jpeg": 60, "isotropic_probability": 1.0}


class InputError(UserError, ValueError):
    """Inputs and output that do not go together; the message says which."""


@dataclass(frozen=True)
class Job:
    """One photo to restore: where it lies, where its result goes, and the name that its parts begin with."""

    source: Path
    target: Path
    name: str


@dataclass
class OpenPhoto:
    """A photo that was read, and what is prepared of it."""

    photo: Photo
    prepared: PreparedPhoto

    @property
    def faces(self) -> list[RestoredFace]:
        """The faces that wait for the networks."""
        return self.prepared.faces


@dataclass(frozen=True)
class Done:
    """How many faces of a photo were restored, and how many the mask left alone."""

    faces: int
    untouched: int


@dataclass
class Summary:
    """What became of the photos."""

    faces: int = 0
    restored: int = 0
    without_face: int = 0
    failed: int = 0
    done: str = "restored"

    def __str__(self) -> str:
        text = f"{self.done} {_count(self.faces, 'face')} in {_count(self.restored, 'photo')}"
        if self.without_face:
            why = "without a face" if self.done == "restored" else "without a face to fill"
            text += f"; {_count(self.without_face, 'photo')} {why} copied"
        return text + (f"; {self.failed} failed" if self.failed else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def run(
    inputs: Sequence[str],
    output: str = "results",
    aligned: bool = False,
    weights: str = "default",
    device: str = "auto",
    detector: str = "auto",
    only_largest: bool = False,
    save_parts: bool = False,
    ext: str = "auto",
    demo: bool = False,
    allow_download: bool = False,
    mask: str | None = None,
    precision: str = "auto",
    fidelity: float | str = "auto",
) -> int:
    """Restores photos and returns the exit code: 0 if all went well, 1 if a photo failed.

    Args:
        inputs: photos, and folders whose photos (not those of folders inside them) are restored.
        output: the folder for results; ``output/parts`` gets the parts.
        aligned: the photos are aligned faces. weights, device, detector, allow_download, precision,
            fidelity: of ``FaceRestorer``.
        only_largest: restore one face a photo. save_parts: write crops, renderings, masks and sheets too.
        ext: "png" or "jpg"; "auto" is the photo's own where that can be written, else png.
        demo: restore a degraded picture of the astronaut that comes with scikit-image, ``inputs`` is not looked at.
        mask: a picture of the one photo's size, white where it is to be filled; see ``FaceRestorer.restore``.

    Raises:
        InputError: before any work: no photos, a missing one, a mask for several, or a result that would overwrite an input.
        ImageError: the mask cannot be read.
        CheckpointError, DetectorError, OptionError: the restorer cannot be built.
    """
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; -o takes a folder")
    jobs = [] if demo else plan(find_photos(inputs), folder, ext, save_parts)
    hole = None if mask is None else _read_mask(mask, jobs)
    restorer = FaceRestorer.from_pretrained(weights, device, detector, allow_download, precision, fidelity)
    return_freed_memory()
    keep_freed_memory()
    if demo:
        jobs = [_demo_job(folder, ext)]
    summary = Summary(done="restored" if mask is None else "filled")
    outcomes = restore_jobs(restorer, jobs, save_parts, aligned=aligned, only_largest=only_largest, mask=hole)
    hidden = len(jobs) == 1 or None
    for outcome in tqdm(outcomes, total=len(jobs), desc="restoring", unit="photo", disable=hidden, file=sys.stderr):
        _count_in(summary, outcome, hole is not None)
    print(f"{summary}: results in {folder}")
    return 1 if summary.failed else 0


# ---------------------------------------------------------------------------------------------------------------------
# Which photos, and under which names


def find_photos(inputs: Iterable[str]) -> list[Path]:
    """The photos that the inputs mean, in their order, each once; of a folder its own photos, sorted.

    Raises:
        InputError: an input does not exist, or a folder holds no photo.
    """
    photos: dict[Path, Path] = {}
    for path in map(Path, inputs):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        photos.update((photo.resolve(), photo) for photo in (_photos_in(path) if path.is_dir() else [path]))
    return list(photos.values())


def _photos_in(folder: Path) -> list[Path]:
    photos = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in READ_SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
    if not photos:
        raise InputError(f"{folder}: holds no photo (looked for {', '.join(READ_SUFFIXES)}; not in folders inside it)")
    return photos


def plan(photos: Sequence[Path], folder: Path, ext: str, save_parts: bool) -> list[Job]:
    """One job per photo. Photos of one name get different ones: the second ``a`` becomes ``a_2``.

    Raises:
        InputError: a result would overwrite an input.
    """
    taken = set()
    jobs = []
    for photo, name in zip(photos, distinct_names(photos), strict=True):
        jobs.append(Job(photo, folder / f"{name}{_suffix(photo, ext)}", name))
        taken.add(photo.resolve())
    for job in jobs:
        if job.target.resolve() in taken:
            raise InputError(f"{job.target}: the result would overwrite an input; choose another folder with -o")
    if save_parts and any(path.parent == (folder / PARTS).resolve() for path in taken):
        raise InputError(f"{folder / PARTS}: holds inputs and would receive parts; choose another folder with -o")
    return jobs


def distinct_names(photos: Sequence[Path]) -> list[str]:
    """The photos' stems; a repeated one (file systems may ignore case) is numbered, avoiding every other stem."""
    reserved = {photo.stem.lower() for photo in photos}
    used: set[str] = set()
    names = []
    for photo in photos:
        name, number = photo.stem, 1
        while name.lower() in used or (number > 1 and name.lower() in reserved):
            number += 1
            name = f"{photo.stem}_{number}"
        used.add(name.lower())
        names.append(name)
    return names


def _suffix(photo: Path, ext: str) -> str:
    if ext != "auto":
        return f".{ext}"
    own = photo.suffix.lower()
    return own if own in WRITE_SUFFIXES else ".png"


def _read_mask(path: str, jobs: Sequence[Job]) -> np.ndarray:
    """A mask (H, W) uint8, white where the photo is to be filled; what is transparent in it is not."""
    if len(jobs) != 1:
        raise InputError(f"--mask goes with one photo, the one that it was painted on; here are {len(jobs)}")
    if jobs[0].target.resolve() == Path(path).resolve():
        raise InputError(f"{path}: the result would overwrite the mask; choose another folder with -o")
    photo = read_photo(path)
    levels = photo.bgr.min(axis=2)
    return levels if photo.alpha is None else np.minimum(levels, photo.alpha)


# ---------------------------------------------------------------------------------------------------------------------
# The photos


def restore_jobs(
    restorer: FaceRestorer, jobs: Iterable[Job], save_parts: bool = False, mask: np.ndarray | None = None, **options
) -> Iterator[Outcome]:
    """Restores and writes photos, several at a time; yields an outcome for each, in order, whose result is :class:`Done`.

    Args:
        mask, options: as of ``FaceRestorer.prepare``.
    """

    def prepare(job: Job) -> OpenPhoto:
        photo = read_photo(job.source)
        if photo.bgr.nbytes > LARGE:
            # What reading took lies in this thread's part of the memory, where no other thread can use it.
            return_freed_memory()
        return OpenPhoto(photo, restorer.prepare(photo.bgr, mask=mask, **options))

    def finish(job: Job, opened: OpenPhoto) -> Done:
        result = restorer.finish(opened.prepared, in_place=True)
        _write(job, opened.photo, result.image, bool(result.faces))
        if save_parts:
            save_faces(result.faces, job.target.parent / PARTS, job.name)
        return Done(len(result.faces), result.untouched)

    return stream(jobs, prepare, restorer.run, finish, lambda job: photo_bytes(job.source), BATCH_SIZE)


def _count_in(summary: Summary, outcome: Outcome, masked: bool) -> None:
    """Counts what became of a photo, and says what the user should know of it."""
    source, done = outcome.item.source, outcome.result
    if outcome.error is not None:  # a photo that breaks something must not cost the user the rest of the album
        summary.failed += 1
        _warn(f"error: {_describe(outcome.error, source)}")
        return
    summary.faces += done.faces
    summary.restored += bool(done.faces)
    if not done.faces:
        summary.without_face += 1
        _warn(f"warning: {source}: {_why_nothing(done.untouched, masked)}; copied as it is")


def _why_nothing(untouched: int, masked: bool) -> str:
    if untouched:
        return f"the mask touches none of the {_count(untouched, 'face')} found"
    # The detector sees the photo with the hole in it.
    return "no face found" + (" beside the hole; a crop of the face can be filled with --aligned" if masked else "")


def _describe(error: Exception, source: Path) -> str:
    if isinstance(error, ImageError):  # names its file
        return str(error)
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return f"{source}: {kind}{error}"


def _write(job: Job, photo: Photo, image: np.ndarray, changed: bool) -> None:
    if not changed and job.source.suffix.lower() == job.target.suffix:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(job.target, lambda temporary: shutil.copyfile(job.source, temporary))
        return
    alpha = photo.alpha
    if alpha is not None and alpha.shape != image.shape[:2]:  # an aligned crop that grew
        alpha = cv2.resize(alpha, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    write_photo(job.target, Photo(image, alpha, photo.icc_profile))


def save_faces(faces: Sequence[RestoredFace], folder: Path, name: str) -> None:
    """Writes NAME_00_crop.png, _render, _mask (where there is one), _restored and _sheet for each face."""
    for number, face in enumerate(faces):
        all_parts = {"crop": face.crop, "render": face.render, "mask": face.mask, "restored": face.restored}
        parts = {part: picture for part, picture in all_parts.items() if picture is not None}
        sheet = comparison_sheet({_TITLES[part]: picture for part, picture in parts.items()})
        for part, picture in {**parts, "sheet": sheet}.items():
            write_picture(folder / f"{name}_{number:02d}_{part}.png", picture)


_TITLES = {"crop": "input", "render": "3D rendering", "mask": "mask (white: photo)", "restored": "restored"}


def _warn(text: str) -> None:
    tqdm.write(f"sgpn: {text}", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------------------
# The demonstration


def degraded_astronaut() -> np.ndarray:
    """scikit-image's astronaut (NASA, public domain), degraded with a fixed seed: uint8 512x512x3 BGR."""
    from sgpn_data.degradation import Degradation

    # Its file is read as any photo: importing scikit-image takes longer than restoring it.
    package = package_folder("skimage")
    if package is None:
        raise InputError("--demo takes its photo from the package scikit-image; run: pip install scikit-image")
    photo = read_photo(package / "data" / f"{DEMO_NAME}.png")
    clean = photo.bgr.astype(np.float32) / 255
    degraded = Degradation("gfpgan", **DEMO_RANGES)(clean, np.random.default_rng(DEMO_SEED))
    return np.clip(np.rint(degraded * 255), 0, 255).astype(np.uint8)


def _demo_job(folder: Path, ext: str) -> Job:
    source = folder / f"{DEMO_NAME}_degraded.png"
    write_picture(source, degraded_astronaut())
    return Job(source, folder / f"{DEMO_NAME}{_suffix(source, ext)}", DEMO_NAME)
