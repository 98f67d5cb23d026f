"""An album: which photos inputs mean and where their results go, and many of them restored, pasted and written at once."""

import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from sgpn_arch.errors import UserError
from sgpn_arch.face3d.face_mesh import SUFFIXES as MESH_SUFFIXES
from sgpn_arch.face3d.face_mesh import write_mesh
from sgpn_arch.inference.memory import return_freed_memory
from sgpn_data.alignment import invert_similarity, similarity_scale, transform_points
from sgpn_data.photos import (
    READ_SUFFIXES,
    WRITE_SUFFIXES,
    Photo,
    copy_photo,
    deepened,
    photo_bytes,
    read_photo,
    write_photo,
    write_picture,
)
from sgpn_data.sheet import labelled_grid
from sgpn_model.restore.album_report import AlbumReport
from sgpn_model.restore.background import SCALES
from sgpn_model.restore.record import Done, FaceNote, Record, Stamp
from sgpn_model.restore.restorer import BATCH_SIZE, FaceRestorer, PreparedPhoto, RestoredFace, RestoreResult
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
    """A photo that was read, what is prepared of it, its file as it was before, and the seconds that it took so far."""

    photo: Photo
    prepared: PreparedPhoto
    stamp: Stamp
    seconds: float

    @property
    def faces(self) -> list[RestoredFace]:
        """The faces that wait for the networks."""
        return self.prepared.faces


# ---------------------------------------------------------------------------------------------------------------------
# Which photos, and under which names


def find_photos(
    inputs: Iterable[str], recursive: bool = False, output: Path | None = None
) -> tuple[dict[Path, Path], list[str]]:
    """The photos that the inputs mean, in their order, each once; of a folder its own photos, sorted.

    Args:
        recursive: also those of the folders inside; links to folders are not followed.
        output: a folder that is never looked into: the results of an earlier run may lie there.

    Returns:
        Each photo with the folder, relative to that of the results, that its own goes to; and a line for each folder that
        holds more than photos. What is hidden in it is not spoken of.

    Raises:
        InputError: an input does not exist, is a pipe or device or cannot be looked at, or a folder holds no photo.
    """
    photos: dict[Path, tuple[Path, Path]] = {}
    passed_over = []
    for path in map(Path, inputs):
        try:
            path.stat()
            if not path.is_dir() and not path.is_file():
                raise InputError(f"{path}: is a pipe or device; save the photo to a file first")
            found, others = _photos_in(path, recursive, output) if path.is_dir() else ([path], [])
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file or folder") from error
        except InputError:
            raise
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from error
        if not found:
            where = "in the folders inside it, too" if recursive else "not in folders inside it: -r does that"
            raise InputError(f"{path}: holds no photo (looked for {', '.join(READ_SUFFIXES)}; {where})")
        if others:
            more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
            hint = "" if recursive or not any(name.endswith(os.sep) for name in others) else " (-r: folders, too)"
            passed_over.append(f"{path}: passed over what is no photo in it: {', '.join(others[:NAMED])}{more}{hint}")
        for photo in found:
            photos.setdefault(photo.resolve(), (photo, photo.parent.relative_to(path) if path.is_dir() else Path()))
    return dict(photos.values()), passed_over


def _photos_in(top: Path, recursive: bool, output: Path | None) -> tuple[list[Path], list[str]]:
    """The photos of a folder, and the names of what else is in it."""
    found: list[Path] = []
    others: list[str] = []

    def unreadable(error: OSError) -> None:
        if Path(error.filename) == top:
            raise error
        others.append(f"{os.path.relpath(error.filename, top)}{os.sep} ({error.strerror})")

    kept_out = None if output is None else output.resolve()
    for root, folders, names in os.walk(top, onerror=unreadable):
        visible = [
            name for name in sorted(folders) if not name.startswith(".") and Path(root, name).resolve() != kept_out
        ]
        folders[:] = [name for name in visible if recursive and not os.path.islink(os.path.join(root, name))]
        here = [name for name in sorted(names) if not name.startswith(".")]
        photos = [name for name in here if Path(name).suffix.lower() in READ_SUFFIXES and Path(root, name).is_file()]
        found += [Path(root, name) for name in photos]
        rest = sorted([f"{name}{os.sep}" for name in set(visible) - set(folders)] + list(set(here) - set(photos)))
        others += [
            os.path.relpath(os.path.join(root, name), top) + (os.sep if name.endswith(os.sep) else "") for name in rest
        ]
    return found, others


def plan(photos: Mapping[Path, Path], folder: Path, ext: str, save_parts: bool) -> list[Job]:
    """One job per photo. Photos of one name get different ones: the second ``a`` becomes ``a_2``.

    Args:
        photos: each with the folder inside ``folder`` that its result goes to.
        ext: "png" or "jpg"; "auto" is the photo's own where that can be written, else png.

    Raises:
        InputError: a result would overwrite an input.
    """
    together: dict[Path, list[Path]] = {}
    for photo, place in photos.items():
        together.setdefault(place, []).append(photo)
    planned = {job.source: job for place, group in together.items() for job in _plan_folder(group, folder / place, ext)}
    jobs = [planned[photo] for photo in photos]
    _spare_inputs(jobs)
    parts = {(job.target.parent / PARTS).resolve() for job in jobs} if save_parts else set()
    for path in [job.source for job in jobs] + [job.target for job in jobs]:
        if path.resolve().parent in parts:
            raise InputError(
                f"{path.parent}: holds inputs or results and would receive parts; choose another folder with -o"
            )
    return jobs


def _plan_folder(photos: Sequence[Path], folder: Path, ext: str) -> list[Job]:
    suffixes = []
    for photo in photos:
        own = photo.suffix.lower() if photo.suffix.lower() in WRITE_SUFFIXES else ".png"
        suffixes.append(own if ext == "auto" else f".{ext}")
    names = distinct_names(photos, suffixes)
    parts = _distinct(names, LONGEST_NAME - ROOM_FOR_PARTS)
    return [
        Job(photo, folder / (name + suffix), part)
        for photo, name, suffix, part in zip(photos, names, suffixes, parts, strict=True)
    ]


def plan_file(photos: Mapping[Path, Path], target: Path, ext: str) -> list[Job]:
    """The job of one photo whose result is to be a given file.

    Raises:
        InputError: there are several photos, the file's suffix is none that can be written or not that of ``ext``, or the
            result would overwrite the input.
    """
    if len(photos) != 1:
        raise InputError(f"{target}: -o takes a folder for several photos, and the name of a photo only for one")
    if target.suffix.lower() not in WRITE_SUFFIXES:
        raise InputError(f"{target}: can write {', '.join(WRITE_SUFFIXES)} only")
    if ext != "auto" and (target.suffix.lower() == ".png") != (ext == "png"):
        raise InputError(f"{target}: -o asks for another format than --ext {ext}; leave one of them out")
    jobs = [Job(next(iter(photos)), target, _cut(target.stem, LONGEST_NAME - ROOM_FOR_PARTS))]
    _spare_inputs(jobs)
    return jobs


def _spare_inputs(jobs: Sequence[Job]) -> None:
    taken = {job.source.resolve() for job in jobs}
    for job in jobs:
        if job.target.resolve() in taken:
            raise InputError(f"{job.target}: the result would overwrite an input; choose another folder with -o")


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


class Stopped(Exception):
    """The work on a photo was given up, because the whole run stops."""


def scale_for(size: tuple[int, int], scale: int, min_size: int) -> int:
    """How many times a photo of ``size`` is enlarged: ``scale``, or as much as brings its longer side to ``min_size``."""
    enough = [factor for factor in SCALES if factor >= scale and max(size) * factor >= min_size]
    return min(enough, default=max(SCALES))


class Watcher:
    """What is told of the work as it goes on, by several threads; this one does not listen."""

    def prepared(self, job: Job, faces: int) -> None:
        """A photo was searched, or cannot be, and has so many faces for the networks."""

    def restored(self, faces: int) -> None:
        """The networks have restored so many faces more."""

    def enlarged(self, job: Job, part: float) -> None:
        """So much of a photo's background is made, 0..1."""

    def pasted(self, job: Job, faces: Sequence[RestoredFace]) -> None:
        """These faces of a photo are restored, and its result is written."""


def restore_jobs(
    restorer: FaceRestorer,
    jobs: Iterable[Job],
    save_parts: bool = False,
    record: Record | None = None,
    watcher: Watcher | None = None,
    shape_only: bool = False,
    scale: int = 1,
    min_size: int = 0,
    report: AlbumReport | None = None,
    deep: bool = False,
    **options,
) -> Iterator[Outcome[Done]]:
    """Restores and writes photos, several at a time; yields an outcome for each, in order.

    Args:
        save_parts: also write each face's pictures and mesh, into a folder ``parts`` beside the results.
        shape_only: write only what :func:`save_faces` writes of a face's shape, and restore nothing.
        record: where each result is noted as soon as it is written. watcher: is told of the work.
        scale, min_size: see :func:`scale_for`. report: gets the pictures. deep: results that are
            PNGs keep the 16 bits of photos that have them. options: as of ``FaceRestorer.prepare``.
    """
    watcher = watcher or Watcher()
    stopped = threading.Event()  # making a background takes minutes, which nobody waits for who has stopped
    seconds_of: dict[int, float] = {}  # face -> its part of its batch's time

    def prepare(job: Job) -> OpenPhoto:
        start = time.perf_counter()
        faces = 0
        try:
            stamp = Stamp.of(job.source)
            photo = read_photo(job.source, deep)
            if photo.bgr.nbytes > LARGE:
                # What reading took lies in this thread's part of the memory, where no other thread can use it.
                return_freed_memory()
            prepared = restorer.prepare(photo.bgr, scale=scale_for(photo.bgr.shape[:2], scale, min_size), **options)
            faces = len(prepared.faces)
        finally:
            watcher.prepared(job, faces)
        return OpenPhoto(photo, prepared, stamp, time.perf_counter() - start)

    def run(faces: Sequence[RestoredFace]) -> None:
        for first in range(0, len(faces), BATCH_SIZE):
            start, batch = time.perf_counter(), faces[first : first + BATCH_SIZE]
            restorer.run(batch, shape_only)
            share = (time.perf_counter() - start) / len(batch)
            seconds_of.update((id(face), share) for face in batch)
            watcher.restored(len(batch))

    def finish(job: Job, opened: OpenPhoto) -> Done:
        start = time.perf_counter()
        seconds = opened.seconds + sum(seconds_of.pop(id(face), 0) for face in opened.faces)

        def tell(part: float) -> None:
            if stopped.is_set():
                raise Stopped
            watcher.enlarged(job, part)

        if shape_only:
            sound = [face for face in opened.faces if not face.failed]
            result = RestoreResult(opened.photo.bgr, sound, failed=[face for face in opened.faces if face.failed])
            remarks = opened.photo.remarks
        else:
            if report is not None:
                notes = [note_of(face) for face in opened.faces if not face.failed]
                report.picture(job.target, "before", opened.photo.bgr, notes)
            kept = opened.photo.deep if job.target.suffix.lower() == ".png" else None
            result = restorer.finish(opened.prepared, in_place=kept is None, tell=tell)
            if kept is not None:
                kept = _kept_16_bits(kept, opened.photo.bgr, result.image)
            if report is not None:
                report.picture(job.target, "after", result.image, notes, opened.prepared.scale)
            photo = replace(opened.photo, bgr=result.image, scale=opened.prepared.scale, deep=kept)
            changed = bool(result.faces) or opened.prepared.scale > 1 or restorer.background.is_network
            remarks = photo.remarks + _write(job, photo, changed)
        watcher.pasted(job, result.faces)
        if save_parts or shape_only:
            save_faces(result.faces, job.target.parent / PARTS, job.name)
        failed = [(note.x, note.y) for note in map(note_of, result.failed)]
        notes = [note_of(face) for face in result.faces]
        seconds = round(seconds + time.perf_counter() - start, 3)
        done = Done(notes, result.untouched, opened.prepared.left_out, remarks, failed, seconds)
        if record is not None and not failed:
            record.add(opened.stamp, job.target, done)
        return done

    def weigh(job: Job) -> int:
        stored = photo_bytes(job.source)
        side = math.isqrt(stored // 3)
        return stored * scale_for((side, side), scale, min_size) ** 2

    return stream(jobs, prepare, run, finish, weigh, BATCH_SIZE, stopped.set)


def _kept_16_bits(deep: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """A photo's 16 bits, changed and enlarged as its 8 bits were."""
    if before.shape != after.shape:
        size = after.shape[1::-1]
        deep, before = (cv2.resize(picture, size, interpolation=cv2.INTER_LANCZOS4) for picture in (deep, before))
    return deepened(deep, before, after)


def note_of(face: RestoredFace) -> FaceNote:
    """Where a face lies in its photo, and how large it is there."""
    back = invert_similarity(face.matrix)
    x, y = transform_points(face.points5.mean(axis=0), back)
    if face.detection is None:
        return FaceNote(round(x), round(y), round(len(face.crop) / 2 / similarity_scale(face.matrix)))
    return FaceNote(round(x), round(y), round(face.detection.size), round(float(face.detection.score), 3))


def _write(job: Job, photo: Photo, changed: bool) -> list[str]:
    """Writes a photo's result; returns what was lost."""
    if not changed and job.source.suffix.lower() == job.target.suffix.lower():
        copy_photo(job.source, job.target)
        return []
    alpha = photo.alpha
    if alpha is not None and alpha.shape != photo.bgr.shape[:2]:
        photo = replace(photo, alpha=cv2.resize(alpha, photo.bgr.shape[1::-1], interpolation=cv2.INTER_LINEAR))
    write_photo(job.target, photo)
    if alpha is not None and job.target.suffix.lower() != ".png" and alpha.min() < 255:
        return ["is transparent in places, which a JPEG cannot be: laid over white (--ext png keeps it)"]
    return []


def save_faces(faces: Sequence[RestoredFace], folder: Path, name: str) -> None:
    """Writes NAME_00_crop.png, _render, _mask, _restored and _sheet for each face, as far as there are such pictures, and its
    mesh as _mesh.glb and _mesh.obj where trimesh is installed."""
    for number, face in enumerate(faces):
        pictures = {part: getattr(face, part) for part in TITLES}
        parts = {part: picture for part, picture in pictures.items() if picture is not None and picture.size}
        sheet = labelled_grid({TITLES[part]: [picture] for part, picture in parts.items()}, [""], SHEET_CELL)
        for part, picture in {**parts, "sheet": sheet}.items():
            write_picture(folder / f"{name}_{number:02d}_{part}.png", picture)
        if face.mesh is not None and find_spec("trimesh"):
            for suffix in MESH_SUFFIXES:
                write_mesh(folder / f"{name}_{number:02d}_mesh{suffix}", face.mesh)
