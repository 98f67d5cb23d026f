"""A film in, a film out: faces are followed, a person's shape is one through a track, and what moves is restored steadily.

Three passes keep memory bounded and make nothing lag behind: faces are followed through the whole film; their points are
smoothed, and identity, texture and lighting averaged over each track; then every frame is restored. The last pass writes
parts, each complete or not there, so that a run that was stopped goes on where it was.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from sgpn_arch.errors import OptionError
from sgpn_arch.face3d.shape_prior import ShapePrior
from sgpn_data.alignment import align_face, transform_points
from sgpn_data.films import PartWriter, Video, VideoError, join
from sgpn_data.photos import tone_of
from sgpn_data.tensors import to_tensor
from sgpn_model.restore.engines.torch_engine import TorchEngine
from sgpn_model.restore.restorer import BATCH_SIZE, FaceRestorer, PreparedPhoto, RestoredFace
from sgpn_model.restore.tracking import Track, Tracker

PART = 200  # frames
SAMPLES = 16  # crops of a track that its person is averaged over
SAMPLE_SIZE = 256  # pixels of their sides
# How much of the frame before, moved along, is in the restored face where both photos show the same; choices of ours.
STEADINESS = 0.75
# Grey levels of difference at which that falls to 1 / e; twice the median difference where that is more, as in a noisy film.
SAME_LEVELS = 10.0
COMPARED = 256  # pixels of the sides of the crops that are compared for it


@dataclass
class VideoResult:
    """What became of a film.

    Attributes:
        frames: of the film. tracks: faces that were followed. searches: frames in which faces were searched. restored: faces
            restored, over all frames. failed: of which a network made NaN. resumed: frames that an earlier run had done.
        left_out: what of the source the new file cannot hold, such as a kind of subtitles.
    """

    frames: int = 0
    tracks: int = 0
    searches: int = 0
    restored: int = 0
    failed: int = 0
    resumed: int = 0
    left_out: list[str] = field(default_factory=list)


def restore_video(
    restorer: FaceRestorer,
    source: str | Path,
    target: str | Path,
    codec: str = "libx264",
    crf: int = 18,
    every: int = 5,
    progress: Callable[[str, int, int], None] = lambda step, done, of: None,
) -> VideoResult:
    """Restores the faces of a film.

    Args:
        restorer: whose weights restore. source, target: files; the target's suffix says its kind.
        codec: FFmpeg's name of the encoder. crf: its constant quality, smaller is better.
        every: frames from one search for faces to the next.
        progress: called with the step ("follow" or "restore"), frames done and frames in all as far as known.

    Returns:
        what was done. Time stamps, sound and subtitles are the source's; the pictures are upright.

    Raises:
        VideoError: the source cannot be read or the target not be written; what is done so far stays for the next run.
        OptionError: PyAV is not installed, or has no such codec; or the restorer's engine is not torch.
    """
    if not isinstance(restorer.engine, TorchEngine):
        raise OptionError(f"engine: films need the engine torch, and this is {restorer.engine.name}")
    source, target = Path(source), Path(target)
    if target.exists() and source.resolve() == target.resolve():
        raise VideoError(f"{target}: is the film itself; write to another file")
    film = Video(source)
    folder = _work_folder(restorer, source, target, codec, crf, every)
    followed = _followed(restorer, film, folder, every, progress)
    result = VideoResult(followed.frames, len(followed.tracks), followed.searches)
    parts = _parts(restorer, film, followed, folder, codec, crf, result, progress)
    result.left_out = join(parts, film, target)
    shutil.rmtree(folder)
    return result


def _work_folder(restorer, source, target, codec, crf, every) -> Path:
    """The hidden folder beside the target for what is not finished, emptied where it is of another film or other settings."""
    about = source.stat()
    wanted = {
        "source": [str(source.resolve()), about.st_size, about.st_mtime_ns],
        "restorer": repr(restorer),
        "settings": [codec, crf, every, PART],
    }
    digest = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()
    folder = target.with_name(f".{target.name}.parts")
    record = folder / "record.txt"
    if folder.exists() and not (record.exists() and record.read_text() == digest):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(digest)
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Following


@dataclass
class Followed:
    """What is known of a film's faces before any is restored.

    Attributes:
        frames: of the film. searches: frames that were searched. tracks: start and smoothed points (frames, 5, 2) of each.
        persons: per track (D,) float32, NaN where each frame's own coefficient counts. tones: per track (256, 3) uint8 or None.
    """

    frames: int
    searches: int
    tracks: list[tuple[int, np.ndarray]]
    persons: list[np.ndarray]
    tones: list[np.ndarray | None]

    def at(self, number: int) -> Iterator[tuple[int, np.ndarray]]:
        """Which tracks are in a frame, and where."""
        for index, (start, points) in enumerate(self.tracks):
            if start <= number < start + len(points):
                yield index, points[number - start]


def _followed(restorer, film, folder, every, progress) -> Followed:
    path = folder / "followed.npz"
    if path.exists():
        return _read(path)
    prior = restorer.engine.prior
    tracker = Tracker(lambda bgr: [face.points5 for face in restorer.detector.detect(bgr)], every)
    samples: dict[int, Samples] = {}
    count = 0
    for number, (bgr, _) in enumerate(film.frames()):
        for track, points in tracker.add(bgr):
            samples.setdefault(id(track), Samples()).offer(bgr, points, number - track.start, restorer.template)
        count = number + 1
        progress("follow", count, max(film.count, count))
    tracks = tracker.finish()
    seen = [samples[id(track)] for track in tracks]
    persons = [person_of(prior, each, track) for each, track in zip(seen, tracks, strict=True)]
    places = [(track.start, track.smoothed()) for track in tracks]
    followed = Followed(count, tracker.searches, places, persons, [each.tone() for each in seen])
    _write(path, followed)
    return followed


class Samples:
    """Crops of a track, spread evenly over it however long it becomes: (frame of the track, crop, points5 in the crop)."""

    def __init__(self):
        self.kept: list[tuple[int, np.ndarray, np.ndarray]] = []
        self.stride = 1

    def offer(self, bgr: np.ndarray, points5: np.ndarray, place: int, template: str) -> None:
        """Takes a frame's face if its turn has come."""
        if place % self.stride:
            return
        crop, matrix = align_face(bgr, points5, SAMPLE_SIZE, template)
        self.kept.append((place, crop, transform_points(points5, matrix)))
        if len(self.kept) > SAMPLES:
            self.stride *= 2
            self.kept = [sample for sample in self.kept if sample[0] % self.stride == 0]

    def tone(self) -> np.ndarray | None:
        """The colours of a monochrome track's grey levels, if most crops are monochrome."""
        tones = [tone for tone in (tone_of(crop) for _, crop, _ in self.kept) if tone is not None]
        return tones[len(tones) // 2] if 2 * len(tones) > len(self.kept) else None


@torch.inference_mode()
def person_of(prior: ShapePrior, samples: Samples, track: Track) -> np.ndarray:
    """(D,) the mean identity, texture and lighting of a track's crops; NaN for expression, angles and translation."""
    device, rows = prior.model.shape_mean.device, []
    kept = [sample for sample in samples.kept if sample[0] < len(track.points5)]
    for start in range(0, len(kept), BATCH_SIZE):
        group = kept[start : start + BATCH_SIZE]
        crops = torch.stack([to_tensor(crop) for _, crop, _ in group]).to(device)
        points = torch.tensor(np.stack([each for _, _, each in group]), dtype=torch.float32, device=device)
        rows.append(prior.coefficients(crops, prior.transform(points, SAMPLE_SIZE)).float())
    mean = torch.cat(rows).mean(0, keepdim=True)
    identity, expression, texture, angles, lighting, translation = prior.split(mean)
    moving = [torch.full_like(part, torch.nan) for part in (expression, angles, translation)]
    return torch.cat([identity, moving[0], texture, moving[1], lighting, moving[2]], dim=1)[0].cpu().numpy()


def _write(path: Path, followed: Followed) -> None:
    arrays: dict[str, Any] = {"about": np.array([followed.frames, followed.searches, len(followed.tracks)])}
    for index, (start, points) in enumerate(followed.tracks):
        tone = followed.tones[index]
        arrays |= {
            f"start{index}": np.array(start),
            f"points{index}": points,
            f"person{index}": followed.persons[index],
        }
        arrays[f"tone{index}"] = np.zeros((0, 3), np.uint8) if tone is None else tone
    _save(path, arrays)


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a .npz file, which appears when it is complete."""
    with open(path.with_suffix(".unfinished"), "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    os.replace(path.with_suffix(".unfinished"), path)


def _read(path: Path) -> Followed:
    with np.load(path, allow_pickle=False) as file:
        frames, searches, count = (int(value) for value in file["about"])
        tones = [file[f"tone{index}"] for index in range(count)]
        return Followed(
            frames,
            searches,
            [(int(file[f"start{index}"]), file[f"points{index}"]) for index in range(count)],
            [file[f"person{index}"] for index in range(count)],
            [tone if len(tone) else None for tone in tones],
        )


# ---------------------------------------------------------------------------------------------------------------------
# Restoring


@dataclass
class Before:
    """A track's face in the frame before, with what is needed to move it along."""

    number: int
    crop: np.ndarray
    restored: np.ndarray


def _parts(restorer, film, followed, folder, codec, crf, result, progress) -> list[Path]:
    """Writes all parts that are not there yet; the paths of all."""
    paths = [folder / f"{index:06}.nut" for index in range(-(-followed.frames // PART))]
    # The last frame's faces by track; kept beside each part, for the next run to go on with.
    steady: dict[int, Before] = {}
    frames = enumerate(film.frames())
    with film.open() as container:
        stream = container.streams.video[0]
        for index, path in enumerate(paths):
            group = islice(frames, min(PART, followed.frames - index * PART))
            if path.exists():
                result.resumed += sum(1 for _ in group)
                steady = _read_steady(path.with_suffix(".npz"))
                continue
            writer = None
            try:
                for number, bgr, frame in _restored(restorer, followed, group, steady, result):
                    writer = writer or PartWriter(path, frame, stream, codec, crf)
                    writer.write(bgr, frame)
                    progress("restore", number + 1, followed.frames)
            except BaseException:
                if writer:
                    writer.abandon()
                raise
            if writer is None:
                raise VideoError(f"{film.path}: ended before frame {index * PART}, which it had when it was first read")
            last = min((index + 1) * PART, followed.frames) - 1
            _save(path.with_suffix(".npz"), _steady_arrays(steady, last))
            writer.close()  # only now, so that each part that is there has its faces beside it
    return paths


def _steady_arrays(steady: dict[int, Before], last: int) -> dict[str, np.ndarray]:
    """The faces of the frame ``last``; those of earlier ones are of no more use."""
    return {
        f"{track}_{before.number}": np.stack([before.crop, before.restored])
        for track, before in steady.items()
        if before.number == last
    }


def _read_steady(path: Path) -> dict[int, Before]:
    with np.load(path, allow_pickle=False) as file:
        places = [(name, *map(int, name.split("_"))) for name in file.files]
        return {track: Before(number, *file[name]) for name, track, number in places}


def _restored(restorer, followed, group, steady, result) -> Iterator[tuple]:
    """(number, restored picture, frame) of each of the frames; the networks take faces of several frames at once."""
    waiting: list[tuple] = []

    def run():
        restorer.run([face for _, _, photo, _ in waiting for face in photo.faces])
        for number, frame, photo, indices in waiting:
            for index, face in zip(indices, photo.faces, strict=True):
                result.failed += face.failed
                result.restored += not face.failed
                if not face.failed:
                    face.restored = steadied(face, number, steady.get(index))
                    steady[index] = Before(number, face.crop, face.restored)
            yield number, restorer.finish(photo, in_place=True).image, frame
        waiting.clear()

    for number, (bgr, frame) in group:
        indices, faces = [], []
        for index, points in followed.at(number):
            crop, matrix = align_face(bgr, points, restorer.size, restorer.template)
            face = RestoredFace(crop, transform_points(points, matrix), matrix, fidelity=restorer.fidelity)
            face.person, face.tone = followed.persons[index], followed.tones[index]
            indices.append(index)
            faces.append(face)
        waiting.append((number, frame, PreparedPhoto(bgr, faces), indices))
        if sum(len(photo.faces) for _, _, photo, _ in waiting) >= BATCH_SIZE or len(waiting) >= 4 * BATCH_SIZE:
            yield from run()
    yield from run()


def steadied(face: RestoredFace, number: int, before: Before | None) -> np.ndarray:
    """The restored face, mixed with that of the frame before, moved along, where both photos show the same.

    The photos' noise makes a network draw each frame a little differently; what the photos do not tell apart, the film should
    not show as movement. Where something does move or change, the frame's own restoration stands.
    """
    if before is None or before.number != number - 1:
        return face.restored
    # Movement and differences are looked at in smaller pictures, which takes a quarter of the time.
    size, small = len(face.crop), (COMPARED, COMPARED)
    now, past = (cv2.resize(crop, small, interpolation=cv2.INTER_AREA) for crop in (face.crop, before.crop))
    dense = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)  # type: ignore[attr-defined]
    flow = dense.calc(*(cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY) for crop in (now, past)), None)
    then = moved_along(past, flow, cv2.INTER_LINEAR)
    off = cv2.GaussianBlur(now.astype(np.float32) - then, (0, 0), COMPARED / 128)
    off = np.sqrt(np.einsum("hwc,hwc->hw", off, off))
    weight = STEADINESS * np.exp(-np.square(off / max(SAME_LEVELS, 2 * float(np.median(off)))))
    weight, flow = (cv2.resize(field, (size, size), interpolation=cv2.INTER_LINEAR) for field in (weight, flow))
    drawn = moved_along(before.restored, flow * np.float32(size / COMPARED), cv2.INTER_CUBIC)
    return cv2.blendLinear(drawn, face.restored, weight, 1 - weight)


def moved_along(picture: np.ndarray, flow: np.ndarray, kernel: int) -> np.ndarray:
    """A picture (H, W, 3) looked up at each place plus ``flow`` (H, W, 2) pixels; beyond its border it is mirrored."""
    height, width = flow.shape[:2]
    grid = np.stack(np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)), axis=2)
    places = grid + flow
    return cv2.remap(picture, places[..., 0], places[..., 1], kernel, borderMode=cv2.BORDER_REFLECT)
