"""What ``sgpn align`` runs: photos in, a folder of aligned faces with their landmarks out, ready to train on."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from sgpn_arch.face3d.shape_prior import ShapePrior
from sgpn_arch.files import write_atomically
from sgpn_data.alignment import align_face, similarity_scale, transform_points
from sgpn_data.detection import Detector, build_detector
from sgpn_data.face_dataset import LANDMARKS_FILE
from sgpn_data.photos import ImageError, read_photo, take_large_photos, write_picture
from sgpn_data.tensors import to_tensor
from sgpn_model.config.device import choose_device
from sgpn_model.restore.album import InputError, distinct_names, find_photos
from sgpn_model.weights.pretrained import load_networks


@dataclass
class Aligner:
    """Finds the faces of a photo and cuts them out.

    Attributes:
        size: of the crops, pixels. template: name of the alignment template. min_pixels: a crop that shows fewer pixels of
            the photo on its side is left out. prior: what finds the 68 landmarks on the crops; None leaves them out.
    """

    detector: Detector
    size: int
    template: str
    min_pixels: int
    only_largest: bool
    prior: ShapePrior | None

    def __call__(self, bgr: np.ndarray) -> tuple[list[tuple[np.ndarray, np.ndarray | None]], int]:
        """uint8 HxWx3 BGR -> (crop (size, size, 3), landmarks (68, 2) or None) of each face, and how many were too small."""
        found = self.detector.detect(bgr)[: 1 if self.only_largest else None]
        faces, too_small = [], 0
        for detection in found:
            crop, matrix = align_face(bgr, detection.points5, self.size, self.template)
            if self.size / similarity_scale(matrix) < self.min_pixels:
                too_small += 1
            else:
                faces.append((crop, self._landmarks(crop, transform_points(detection.points5, matrix))))
        return faces, too_small

    @classmethod
    def build(
        cls,
        size: int,
        template: str,
        detector: str,
        allow_download: bool,
        only_largest: bool,
        min_pixels: int | None,
        landmarks: bool,
        device: str,
    ) -> "Aligner":
        """Its parts by name; see :func:`run`."""
        place = choose_device(device)
        prior = load_networks("default")[1].eval().to(place) if landmarks else None
        least = size // 2 if min_pixels is None else min_pixels
        return cls(build_detector(detector, str(place), allow_download), size, template, least, only_largest, prior)

    @torch.inference_mode()
    def _landmarks(self, crop: np.ndarray, points5: np.ndarray) -> np.ndarray | None:
        if self.prior is None:
            return None
        device = self.prior.model.shape_mean.device
        tensors = to_tensor(crop), torch.from_numpy(points5.astype(np.float32))
        return self.prior(*(tensor[None].to(device) for tensor in tensors)).landmarks[0].cpu().numpy()


@dataclass
class Summary:
    """What became of the photos."""

    faces: int = 0
    too_small: int = 0
    without: list[Path] = field(default_factory=list)
    failed: int = 0

    def __str__(self) -> str:
        parts = [f"{self.faces} faces"]
        if self.too_small:
            parts.append(f"{self.too_small} smaller faces left out")
        if self.without:
            parts.append(f"{len(self.without)} photos without a face to use")
        return "; ".join(parts + [f"{self.failed} photos failed"] * bool(self.failed))


def run(
    inputs: Sequence[str],
    output: str,
    size: int = 512,
    template: str = "ffhq",
    detector: str = "auto",
    allow_download: bool = False,
    only_largest: bool = False,
    min_pixels: int | None = None,
    landmarks: bool = True,
    device: str = "auto",
    recursive: bool = False,
) -> int:
    """Writes OUT/NAME_00.png, ... and OUT/landmarks68.json; returns 1 if a photo failed or there is no face at all.

    Args:
        inputs: photos, and folders whose photos are searched. recursive: those of the folders inside, too.
        output: the folder for the faces; landmarks of faces that lie there already are kept.
        size: of the faces, pixels. template: "ffhq" or "gpen". detector, allow_download: of ``build_detector``.
        only_largest: take one face a photo. min_pixels: a face is left out if its cut-out shows fewer pixels of the photo on
            its side (default: half of ``size``), as it would be more enlarged than shown.
        landmarks: find the 68 landmarks with the shape regressor that ships. They are guesses; see docs/training.md.

    Raises:
        InputError, ValueError: before any work: an argument is wrong. DetectorError: the detector cannot be used.
    """
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; -o takes a folder")
    found_photos, passed_over = find_photos(inputs, recursive, folder)
    photos = list(found_photos)
    for line in passed_over:
        print(f"sgpn: warning: {line}", file=sys.stderr)
    take_large_photos()
    if any(photo.resolve().parent == folder.resolve() for photo in photos):
        raise InputError(f"{folder}: holds photos to align and would receive the faces; choose another folder with -o")
    aligner = Aligner.build(size, template, detector, allow_download, only_largest, min_pixels, landmarks, device)
    summary, known = Summary(), _known_landmarks(folder) if landmarks else {}
    names = distinct_names(photos, [".png"] * len(photos), room=len("_0000"))
    for photo, name in zip(
        tqdm(photos, desc="aligning", unit="photo", disable=None, file=sys.stderr), names, strict=True
    ):
        known.update(_align_one(aligner, photo, name, folder, summary))
    if landmarks and known:
        text = json.dumps(known)
        write_atomically(folder / LANDMARKS_FILE, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))
    print(f"{summary}: {folder}" if summary.faces else f"{summary}: nothing written")
    return 1 if summary.failed or not summary.faces else 0


def _known_landmarks(folder: Path) -> dict[str, list]:
    """Landmarks of an earlier run into the same folder, of the faces that are still there."""
    file = folder / LANDMARKS_FILE
    if not file.is_file():
        return {}
    try:
        known = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{file}: cannot be read, and would be overwritten: {error}; move it away") from error
    return {name: points for name, points in known.items() if (folder / name).is_file()}


def _align_one(aligner: Aligner, photo: Path, name: str, folder: Path, summary: Summary) -> dict[str, list]:
    """Writes the faces of one photo; returns their landmarks, where those are looked for."""
    try:
        read = read_photo(photo)
        for remark in read.remarks:
            tqdm.write(f"sgpn: warning: {photo}: {remark}", file=sys.stderr)
        faces, too_small = aligner(read.bgr)
        for number, (crop, _) in enumerate(faces):
            write_picture(folder / f"{name}_{number:02d}.png", crop)
    except Exception as error:  # a photo that breaks something must not cost the user the rest of the album
        summary.failed += 1
        named = str(error) if isinstance(error, ImageError) else f"{photo}: {type(error).__name__}: {error}"
        tqdm.write(f"sgpn: error: {named}", file=sys.stderr)
        return {}
    summary.faces += len(faces)
    summary.too_small += too_small
    if not faces:
        summary.without.append(photo)
        why = f"its {too_small} faces are smaller than --min-pixels" if too_small else "no face found"
        tqdm.write(f"sgpn: warning: {photo}: left out: {why}", file=sys.stderr)
    known = {f"{name}_{number:02d}.png": points for number, (_, points) in enumerate(faces) if points is not None}
    return {name: points.round(2).tolist() for name, points in known.items()}
