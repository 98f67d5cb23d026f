"""An album: which photos inputs mean and where their results go, and many of them restored, pasted and written at once."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from sgpn_arch.errors import UserError
from sgpn_arch.inference.memory import return_freed_memory
from sgpn_data.alignment import invert_similarity, transform_points
from sgpn_data.photos import (
    READ_SUFFIXES,
    WRITE_SUFFIXES,
    Photo,
    copy_photo,
    photo_bytes,
    read_photo,
    write_photo,
    write_picture,
)
from sgpn_data.sheet import labelled_grid
from sgpn_model.restore.restorer import BATCH_SIZE, FaceRestorer, PreparedPhoto, RestoredFace
from sgpn_model.restore.stream import Outcome, stream

PARTS = "parts"
TITLES = {"crop": "input", "render": "3D rendering", "mask": "mask (white: photo)", "restored": "restored"}
SHEET_CELL = 384  # least side of a picture in a face's sheet, in pixels
LARGE = 64 << 20  # bytes of a photo whose reading leaves much memory behind
LONGEST_NAME = 255  # bytes that file systems allow; the parts' names need some for NUMBER_PART.png
ROOM_FOR_PARTS = 32
NAMED = 5  # of the files that are passed over


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
    """How many faces of a photo were restored, how many the mask left alone, where those lie that a network failed on (pixels of
    the photo), and what else a user should know."""

    faces: int
    untouched: int
    remarks: Sequence[str] = ()
    failed: Sequence[tuple[int, int]] = ()


# ---------------------------------------------------------------------------------------------------------------------
# Which photos, and under which names


def find_photos(inputs: Iterable[str]) -> tuple[list[Path], list[str]]:
    """The photos that the inputs mean, in their order, each once; of a folder its own photos, sorted.

    Returns:
        The photos, and a line for each folder that holds more than photos; what is hidden in it is not spoken of.

    Raises:
        InputError: an input does not exist, is a pipe or device or cannot be looked at, or a folder holds no photo.
    """
    photos: dict[Path, Path] = {}
    passed_over = []
    for path in map(Path, inputs):
        try:
            path.stat()
            entries = sorted(path.iterdir()) if path.is_dir() else []
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file or folder") from error
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from error
        if not path.is_dir():
            if not path.is_file():
                raise InputError(f"{path}: is a pipe or device; save the photo to a file first")
            photos[path.resolve()] = path
            continue
        entries = [entry for entry in entries if not entry.name.startswith(".")]
        found = [entry for entry in entries if entry.suffix.lower() in READ_SUFFIXES and entry.is_file()]
        if not found:
            known = ", ".join(READ_SUFFIXES)
            raise InputError(f"{path}: holds no photo (looked for {known}; not in folders inside it)")
        others = [f"{entry.name}{os.sep if entry.is_dir() else ''}" for entry in sorted(set(entries) - set(found))]
        if others:
            more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
            named = ", ".join(others[:NAMED]) + more
            passed_over.append(f"{path}: passed over what is no photo in it: {named}")
        photos.update((photo.resolve(), photo) for photo in found)
    return list(photos.values()), passed_over


def plan(photos: Sequence[Path], folder: Path, ext: str, save_parts: bool) -> list[Job]:
    """One job per photo. Photos of one name get different ones: the second ``a`` becomes ``a_2``.

    Args:
        ext: "png" or "jpg"; "auto" is the photo's own where that can be written, else png.

    Raises:
        InputError: a result would overwrite an input.
    """
    suffixes = []
    for photo in photos:
        own = photo.suffix.lower() if photo.suffix.lower() in WRITE_SUFFIXES else ".png"
        suffixes.append(own if ext == "auto" else f".{ext}")
    names = distinct_names(photos, suffixes)
    parts = _distinct(names, LONGEST_NAME - ROOM_FOR_PARTS)
    jobs = [
        Job(photo, folder / (name + suffix), part)
        for photo, name, suffix, part in zip(photos, names, suffixes, parts, strict=True)
    ]
    taken = {photo.resolve() for photo in photos}
    for job in jobs:
        if job.target.resolve() in taken:
            raise InputError(f"{job.target}: the result would overwrite an input; choose another folder with -o")
    if save_parts and any(path.parent == (folder / PARTS).resolve() for path in taken):
        raise InputError(f"{folder / PARTS}: holds inputs and would receive parts; choose another folder with -o")
    return jobs


def distinct_names(photos: Sequence[Path], suffixes: Sequence[str], room: int = 0) -> list[str]:
    """The photos' stems, a repeated one numbered. A photo whose own suffix is that of its result comes first, so that the
    result ``a.png`` is of ``a.png`` and not of ``a.bmp`` or ``a.PNG``.

    Args:
        suffixes: of the photos' results. room: bytes that a result's name needs besides its stem and suffix.
    """
    differ = [(photo.suffix.lower() != own, photo.suffix != own) for photo, own in zip(photos, suffixes, strict=True)]
    order = sorted(range(len(photos)), key=differ.__getitem__)
    longest = LONGEST_NAME - room - max(map(len, suffixes), default=0)
    names = dict(zip(order, _distinct([photos[k].stem for k in order], longest), strict=True))
    return [names[k] for k in range(len(photos))]


def _distinct(stems: Sequence[str], longest: int) -> list[str]:
    """Stems of at most so many bytes; a repeated one (file systems may ignore case) is numbered, avoiding every other."""
    stems = [_cut(stem, longest) for stem in stems]
    reserved = {stem.lower() for stem in stems}
    used: set[str] = set()
    names = []
    for stem in stems:
        name, number = stem, 1
        while name.lower() in used or (number > 1 and name.lower() in reserved):
            number += 1
            name = _cut(stem, longest - len(f"_{number}")) + f"_{number}"
        used.add(name.lower())
        names.append(name)
    return names


def _cut(stem: str, longest: int) -> str:
    encoded = os.fsencode(stem)
    return stem if len(encoded) <= longest else encoded[:longest].decode(errors="ignore")


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
        remarks = opened.photo.remarks + _write(job, opened.photo, result.image, bool(result.faces))
        if save_parts:
            save_faces(result.faces, job.target.parent / PARTS, job.name)
        middles = [
            transform_points(face.points5.mean(axis=0), invert_similarity(face.matrix)) for face in result.failed
        ]
        failed = [(round(x), round(y)) for x, y in middles]
        return Done(len(result.faces), result.untouched, remarks, failed)

    return stream(jobs, prepare, restorer.run, finish, lambda job: photo_bytes(job.source), BATCH_SIZE)


def _write(job: Job, photo: Photo, image: np.ndarray, changed: bool) -> list[str]:
    """Writes a photo's result; returns what was lost."""
    if not changed and job.source.suffix.lower() == job.target.suffix:
        copy_photo(job.source, job.target)
        return []
    alpha = photo.alpha
    if alpha is not None and alpha.shape != image.shape[:2]:  # an aligned crop that grew
        alpha = cv2.resize(alpha, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    write_photo(job.target, Photo(image, alpha, photo.icc_profile))
    if alpha is not None and job.target.suffix != ".png" and alpha.min() < 255:
        return ["is transparent in places, which a JPEG cannot be: laid over white (--ext png keeps it)"]
    return []


def save_faces(faces: Sequence[RestoredFace], folder: Path, name: str) -> None:
    """Writes NAME_00_crop.png, _render, _mask (where there is one), _restored and _sheet for each face."""
    for number, face in enumerate(faces):
        parts = {part: getattr(face, part) for part in TITLES if getattr(face, part) is not None}
        sheet = labelled_grid({TITLES[part]: [picture] for part, picture in parts.items()}, [""], SHEET_CELL)
        for part, picture in {**parts, "sheet": sheet}.items():
            write_picture(folder / f"{name}_{number:02d}_{part}.png", picture)
