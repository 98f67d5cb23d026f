"""An album: which photos inputs mean and where their results go, and many of them restored, pasted and written at once."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from sgpn_arch.errors import UserError
from sgpn_arch.files import write_atomically
from sgpn_arch.inference.memory import return_freed_memory
from sgpn_data.photos import READ_SUFFIXES, WRITE_SUFFIXES, Photo, photo_bytes, read_photo, write_photo, write_picture
from sgpn_data.sheet import labelled_grid
from sgpn_model.restore.restorer import BATCH_SIZE, FaceRestorer, PreparedPhoto, RestoredFace
from sgpn_model.restore.stream import Outcome, stream

PARTS = "parts"
TITLES = {"crop": "input", "render": "3D rendering", "mask": "mask (white: photo)", "restored": "restored"}
SHEET_CELL = 384  # least side of a picture in a face's sheet, in pixels
LARGE = 64 << 20  # bytes of a photo whose reading leaves much memory behind


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
        found = [path]
        if path.is_dir():
            files = (file for file in path.iterdir() if file.suffix.lower() in READ_SUFFIXES and file.is_file())
            found = sorted(file for file in files if not file.name.startswith("."))
            if not found:
                known = ", ".join(READ_SUFFIXES)
                raise InputError(f"{path}: holds no photo (looked for {known}; not in folders inside it)")
        photos.update((photo.resolve(), photo) for photo in found)
    return list(photos.values())


def plan(photos: Sequence[Path], folder: Path, ext: str, save_parts: bool) -> list[Job]:
    """One job per photo. Photos of one name get different ones: the second ``a`` becomes ``a_2``.

    Args:
        ext: "png" or "jpg"; "auto" is the photo's own where that can be written, else png.

    Raises:
        InputError: a result would overwrite an input.
    """
    jobs = []
    for photo, name in zip(photos, distinct_names(photos), strict=True):
        own = photo.suffix.lower() if photo.suffix.lower() in WRITE_SUFFIXES else ".png"
        jobs.append(Job(photo, folder / f"{name}{own if ext == 'auto' else f'.{ext}'}", name))
    taken = {photo.resolve() for photo in photos}
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


# ---------------------------------------------------------------------------------------------------------------------
# Restoring them


def restore_jobs(
    restorer: FaceRestorer, jobs: Iterable[Job], save_parts: bool = False, **options
) -> Iterator[Outcome[Done]]:
    """Restores and writes photos, several at a time; yields an outcome for each, in order.

    Args:
        save_parts: also write each face's pictures, into a folder ``parts`` beside the results. options: as of
            ``FaceRestorer.prepare``.
    """

    def prepare(job: Job) -> OpenPhoto:
        photo = read_photo(job.source)
        if photo.bgr.nbytes > LARGE:
            # What reading took lies in this thread's part of the memory, where no other thread can use it.
            return_freed_memory()
        return OpenPhoto(photo, restorer.prepare(photo.bgr, **options))

    def finish(job: Job, opened: OpenPhoto) -> Done:
        result = restorer.finish(opened.prepared, in_place=True)
        _write(job, opened.photo, result.image, bool(result.faces))
        if save_parts:
            save_faces(result.faces, job.target.parent / PARTS, job.name)
        return Done(len(result.faces), result.untouched)

    return stream(jobs, prepare, restorer.run, finish, lambda job: photo_bytes(job.source), BATCH_SIZE)


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
        parts = {part: getattr(face, part) for part in TITLES if getattr(face, part) is not None}
        sheet = labelled_grid({TITLES[part]: [picture] for part, picture in parts.items()}, [""], SHEET_CELL)
        for part, picture in {**parts, "sheet": sheet}.items():
            write_picture(folder / f"{name}_{number:02d}_{part}.png", picture)
