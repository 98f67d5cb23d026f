"""Photo in, photo out: detect faces, align them, run the shape prior and the network, and paste the results back."""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from sgpn_arch.errors import OptionError
from sgpn_arch.face3d.shape_prior import ShapePrior, ShapeResult
from sgpn_arch.fusion_arch import mask_pictures
from sgpn_data import released_protocol
from sgpn_data.alignment import (
    align_face,
    feather_mask,
    invert_similarity,
    paste_face,
    similarity_scale,
    template_points,
    transform_points,
    warp,
)
from sgpn_data.detection import Detection, Detector, build_detector
from sgpn_data.masks import fill_hole
from sgpn_data.tensors import to_images, to_tensor
from sgpn_model.config.device import choose_device
from sgpn_model.restore.fidelity import checked_fidelity, taken_back
from sgpn_model.restore.stream import stream
from sgpn_model.weights.checkpoint import load_checkpoint
from sgpn_model.weights.pretrained import build_networks, find_weights

LOGGER = logging.getLogger("sgpn")

BATCH_SIZE = 4

# A photo whose channels differ by less than this many grey levels on average is black and white, and stays so.
GREY_TOLERANCE = 2.0
# Parts of the crop's size: where the low frequencies of a restored face begin to be led over into the photo's, how
# softly, and what counts as low.
SEAM_INSET, SEAM_SIGMA, SEAM_BLUR = 0.14, 0.035, 0.06
# How sharply neighbouring faces are told apart: the width of the transition in face heights is about 1 / this.
NEIGHBOUR_STEEPNESS = 24.0
# How far from square a crop may be that is said to be aligned.
ALIGNED_TOLERANCE = 0.05
# Distances beyond which a neighbour takes nothing: by the steepness above its share is below 1e-5.
NEIGHBOUR_REACH = 0.5
# Low frequencies are blurred at this many pixels of a crop, however large it is.
SEAM_SIZE = 128
# From this grey level on, a mask's pixel is white; and over how many pixels around the hole the filling fades out.
HOLE_LEVEL, HOLE_FEATHER = 128, 2


@dataclass
class RestoredFace:
    """One face, and everything that was computed for it; S is the network's size.

    Attributes:
        crop: (S, S, 3) uint8 BGR, the degraded face, aligned. render: the same of the 3D rendering, black outside.
        restored: (S, S, 3) uint8 BGR. mask: (S, S) uint8, the paper's mask picture (channel mean of the finest AFFB
            mask; white trusts the photo, black the rendering), or None for a fusion without masks.
        coefficients: (D,) float32 of the shape prior. points5: (5, 2) OpenCV pixels of the crop.
        matrix: (2, 3) from OpenCV pixels of the photo to the crop's.
        detection: where the face was found, or None where an aligned crop was taken on trust.
        hole: (S, S) bool, where the crop was cut out to be filled, and is white; None for a restoration.
        keep: 0..1, how much of the photo's detail finer than the network's pixels stays.
    """

    crop: np.ndarray
    render: np.ndarray
    restored: np.ndarray
    mask: np.ndarray | None
    coefficients: np.ndarray
    points5: np.ndarray
    matrix: np.ndarray
    detection: Detection | None
    hole: np.ndarray | None = None
    keep: float = 0.0


@dataclass
class RestoreResult:
    """The restored photo (uint8 HxWx3 BGR; a copy of the input where there is no face) and its faces, largest first.

    Attributes:
        untouched: how many faces were found that the mask does not touch, and that are therefore not among ``faces``.
    """

    image: np.ndarray
    faces: list[RestoredFace]
    untouched: int = 0


@dataclass
class PreparedPhoto:
    """A photo whose faces are found and cut out, and wait for the networks.

    Attributes:
        bgr: the photo. faces: largest first; what the networks say is not in them yet.
        aligned: whether the photo is one aligned face. grey: whether it is black and white.
        hole: (H, W) bool, what is to be filled; None for a restoration. untouched: faces that it leaves alone.
    """

    bgr: np.ndarray
    faces: list[RestoredFace] = field(default_factory=list)
    aligned: bool = False
    grey: bool = False
    hole: np.ndarray | None = None
    untouched: int = 0


class FaceRestorer:
    """Restores the faces of photos; :meth:`from_pretrained` builds one from a file of weights.

    A restoration has three steps: :meth:`prepare` (detect and cut out), :meth:`run` (the networks) and :meth:`finish`
    (paste back). :meth:`restore` does them for one photo; :meth:`restore_many` lets those of several photos overlap.

    Args:
        network: an SGPN: called with photo, rendering and coefficients; has ``size``. If it has a method ``for_inference``, as
            SGPN has, what that returns takes its place.
        prior: the shape prior: called with crops and five points.
        template: name of the alignment template that the network was trained on.
        detector: finds faces. The prior's ``protocol`` says how they are cut out and pasted back: "released" as the
            authors do it (but each from the untouched photo, so that the order of the faces does not matter).
        device: where the networks run.
        task: what the weights were trained for: "restore", or "inpaint", that is to fill holes.
        precision: "fp32", "bf16", "fp16" (CUDA only) or "auto", which is what the device multiplies in hardware; see
            :func:`.choose_precision`. A network without ``for_inference`` keeps its own. On the demonstration's
            face bf16 and fp32 differ by at most 2 of 255 grey levels (PSNR 54 dB; 64 dB in the photo).
        fidelity: from 0, the restoration as it is, to 1, the photo as it is: how much of each face is taken back to the photo,
            large forms first (:func:`sgpn_model.restore.fidelity.blend`), and that part of what the photo shows finer than the
            network's pixels. "auto" is 0 for what the network's pixels can show, and keeps finer detail as far as the
            photo is sharp; by the authors' protocol it is 0. Holes are filled as if it were 0.

    Raises:
        OptionError: precision or fidelity is none of these, or the device cannot do it.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        prior: ShapePrior,
        template: str,
        detector: Detector,
        device: torch.device | str = "cpu",
        task: str = "restore",
        precision: str = "auto",
        fidelity: float | str = "auto",
    ):
        self.device = torch.device(device)
        self.network = _ready(network, self.device, precision)
        self.prior = prior.eval().to(self.device).for_inference()
        self.template = template
        self.detector = detector
        self.task = task
        self.fidelity = checked_fidelity(fidelity)

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path = "default",
        device: str = "auto",
        detector: str = "auto",
        allow_download: bool = False,
        precision: str = "auto",
        fidelity: float | str = "auto",
    ) -> "FaceRestorer":
        """Builds a restorer from weights that ship with the library or from a checkpoint file.

        Args:
            weights: a name in :func:`available_weights`, "default", or a path.
            device: "auto" (CUDA where there is any), "cpu" or "cuda".
            detector: "auto" or a name in ``sgpn_data.detection.DETECTORS``.
            allow_download: whether the detector may fetch its weights.
            precision, fidelity: see the class.

        Raises:
            CheckpointError, DetectorError, OptionError: the message says what to do.
        """
        place = choose_device(device)
        checkpoint = load_checkpoint(find_weights(weights))
        network, prior, template = build_networks(checkpoint)
        task = checkpoint.metadata.get("task", "restore")
        del checkpoint  # the last that holds the weights as they were stored
        finder = build_detector(detector, str(place), allow_download)
        return cls(network, prior, template, finder, place, task, precision, fidelity)

    @property
    def size(self) -> int:
        """Side of the crops, in pixels."""
        return self.network.size

    @property
    def as_released(self) -> bool:
        """Whether faces are cut out and pasted back as in the authors' code."""
        return self.prior.protocol == "released"

    def restore(
        self, bgr: np.ndarray, aligned: bool = False, only_largest: bool = False, mask: np.ndarray | None = None
    ) -> RestoreResult:
        """Restores a photo, or fills a hole in it.

        Args:
            bgr: uint8 HxWx3 BGR.
            aligned: the photo is one face, already aligned to the template. The result keeps the photo's size where
                that is larger than the network's, and otherwise has the network's, so that nothing is lost.
            only_largest: restore only the largest face; ignored when ``aligned``.
            mask: uint8 HxW or HxWx3, white (from 128 on, in all channels) where the photo is to be filled. The networks
                and the detector see white there, as in training. Only the hole is replaced, softened over two pixels
                around it: the rest of the photo stays as it is, its size too, and so does what of the hole lies outside
                the faces' crops. Faces that the hole does not touch are left alone.

        Raises:
            ValueError: not a uint8 HxWx3 array; or not nearly square though ``aligned``; or the mask has another size or
                no white.
        """
        photo = self.prepare(bgr, aligned, only_largest, mask)
        self.run(photo.faces)
        return self.finish(photo)

    def restore_many(
        self, photos: Iterable[np.ndarray], aligned: bool = False, only_largest: bool = False
    ) -> Iterator[RestoreResult]:
        """Restores photos one after the other, as :meth:`restore` does, faster: while the networks run on some, the next
        are searched and finished ones are pasted, and faces of different photos share a batch.

        Args:
            photos: uint8 HxWx3 BGR each; may be a generator, which then runs in a thread of its own. Only a few photos
                are in memory at a time, however many there are.
            aligned, only_largest: as in :meth:`restore`.

        Yields:
            The results, in order; a photo is not held back until there are enough faces for a batch.

        Raises:
            ValueError: as :meth:`restore`, when all earlier photos have been yielded.
        """
        outcomes = stream(
            photos,
            prepare=lambda bgr: self.prepare(bgr, aligned, only_largest),
            run=self.run,
            finish=lambda _, photo: self.finish(photo),
            weigh=lambda bgr: getattr(bgr, "nbytes", 0),
            batch=BATCH_SIZE,
        )
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
            yield outcome.result

    def prepare(
        self, bgr: np.ndarray, aligned: bool = False, only_largest: bool = False, mask: np.ndarray | None = None
    ) -> PreparedPhoto:
        """Finds the faces of a photo and cuts them out; arguments and errors are those of :meth:`restore`.

        Several threads may do this at once.
        """
        if not (isinstance(bgr, np.ndarray) and bgr.dtype == np.uint8 and bgr.ndim == 3 and bgr.shape[2] == 3):
            raise ValueError(f"restore: expected a uint8 HxWx3 BGR photo, found {getattr(bgr, 'dtype', type(bgr))}")
        if bgr.size == 0:
            raise ValueError("restore: the photo is empty")
        if mask is not None:
            return self._prepare_hole(bgr, hole_of(mask, bgr), aligned, only_largest)
        faces = self._cut_out(bgr, aligned, only_largest)
        return PreparedPhoto(bgr, faces, aligned, bool(faces) and is_grey(bgr))

    def _prepare_hole(self, bgr: np.ndarray, hole: np.ndarray, aligned: bool, only_largest: bool) -> PreparedPhoto:
        """The faces of a photo with a hole (H, W) bool in it that the hole touches."""
        if self.task != "inpaint":
            LOGGER.warning(
                "these weights were not trained to fill holes, so expect little of it; train some with options/task/inpaint.yml"
            )
        holed = fill_hole(bgr, hole)
        found = self._cut_out(holed, aligned, only_largest)
        for face in found:
            face.hole = self._hole_in_crop(hole, face.matrix, aligned)
            face.crop = fill_hole(face.crop, face.hole)
        faces = [face for face in found if face.hole.any()]
        return PreparedPhoto(bgr, faces, aligned, bool(faces) and is_grey(holed), hole, len(found) - len(faces))

    def run(self, faces: Sequence[RestoredFace]) -> None:
        """Lets the networks restore faces, of one photo or several; fills in what they say."""
        for start in range(0, len(faces), BATCH_SIZE):
            self._restore_batch(faces[start : start + BATCH_SIZE])

    def finish(self, photo: PreparedPhoto, in_place: bool = False) -> RestoreResult:
        """The photo with its restored faces in place; of a black-and-white photo they are made so too.

        Several threads may do this at once.

        Args:
            in_place: the photo's array may be changed and returned, which saves the memory of a copy.
        """
        if photo.grey and not self.as_released:
            for face in photo.faces:
                face.restored = _to_grey(face.restored)
        return RestoreResult(self._finished(photo, in_place), photo.faces, photo.untouched)

    def _finished(self, photo: PreparedPhoto, in_place: bool) -> np.ndarray:
        bgr, faces = photo.bgr, photo.faces
        if not faces:
            return bgr if in_place else bgr.copy()
        if photo.hole is not None:
            filling = _resized(match_hole(faces[0]), bgr.shape) if photo.aligned else paste_fillings(bgr, faces)
            return blend_hole(bgr, filling, photo.hole)
        if photo.aligned:
            return faces[0].restored if self.as_released else _resize_like(faces[0], bgr)
        return self._paste(bgr if in_place else bgr.copy(), faces)

    def _hole_in_crop(self, hole: np.ndarray, matrix: np.ndarray, aligned: bool) -> np.ndarray:
        """(S, S) bool: every pixel that the hole has part in, so that none mixes the photo and the hole."""
        levels = hole.astype(np.uint8) * 255
        if aligned:
            return _resized(levels, (self.size, self.size)) > 0
        return warp(levels, matrix, (self.size, self.size), "constant" if self.as_released else "reflect") > 0

    def _cut_out(self, bgr: np.ndarray, aligned: bool, only_largest: bool) -> list[RestoredFace]:
        if aligned:
            return [self._aligned_face(bgr)]
        detections = self.detector.detect(bgr)
        cut_out = released_protocol.cut_out if self.as_released else align_face
        faces = []
        for detection in detections[:1] if only_largest else detections:
            crop, matrix = cut_out(bgr, detection.points5, self.size, self.template)
            faces.append(_new_face(crop, transform_points(detection.points5, matrix), matrix, detection))
        return faces

    def _paste(self, image: np.ndarray, faces: Sequence[RestoredFace]) -> np.ndarray:
        if not self.as_released:
            return paste_faces(image, faces, in_place=True)
        for face in faces:
            released_protocol.paste_back(image, face.restored, face.crop, face.matrix, in_place=True)
        return image

    def _aligned_face(self, bgr: np.ndarray) -> RestoredFace:
        height, width = bgr.shape[:2]
        if abs(height - width) > ALIGNED_TOLERANCE * max(height, width):
            raise ValueError(
                f"an aligned face must be square, but the picture is {width}x{height}: restore it as a whole photo "
                "(without 'aligned') or crop it"
            )
        x, y = self.size / width, self.size / height
        matrix = np.array([[x, 0, 0.5 * x - 0.5], [0, y, 0.5 * y - 0.5]])
        if self.as_released:
            crop = released_protocol.aligned_crop(bgr, self.size)
            found = self.detector.detect(crop)
            points5 = found[0].points5 if found else None
        else:
            crop = _resized(bgr, (self.size, self.size), cv2.INTER_LINEAR)
            found = self.detector.detect(bgr)
            points5 = transform_points(found[0].points5, matrix) if found else None
        if points5 is None:
            points5 = template_points(self.template, self.size)
        return _new_face(crop, points5, matrix, found[0] if found else None)

    @torch.inference_mode()
    def _restore_batch(self, faces: Sequence[RestoredFace]) -> None:
        """Fills in what the networks say about the faces."""
        crops = torch.stack([to_tensor(face.crop) for face in faces]).to(self.device, memory_format=torch.channels_last)
        points = torch.tensor(np.stack([face.points5 for face in faces]), dtype=torch.float32, device=self.device)
        shape = self.prior(crops, points)
        images, pictures = self._through_network(crops, shape)
        if all(face.hole is None for face in faces):
            images = self._taken_back(images, crops, faces)
        finest = [None] * len(faces) if pictures is None else to_grey_images(pictures, self.size)
        results = zip(
            to_images(images), to_images(shape.render), finest, shape.coeffs.float().cpu().numpy(), strict=True
        )
        for face, (restored, render, mask, coefficients) in zip(faces, results, strict=True):
            face.restored, face.render, face.mask, face.coefficients = restored, render, mask, coefficients

    def _taken_back(self, images: Tensor, crops: Tensor, faces: Sequence[RestoredFace]) -> Tensor:
        images, kept = taken_back(images, crops, self.fidelity)
        for face, share in zip(faces, kept.tolist(), strict=True):
            face.keep = share
        return images

    def _through_network(self, crops: Tensor, shape: ShapeResult) -> tuple[Tensor, Tensor | None]:
        """The restored crops, and the mask pictures (N, 1, r, r) of the finest scale that has any."""
        if hasattr(self.network, "with_mask_picture"):
            return self.network.with_mask_picture(crops, shape.render, shape.coeffs)
        images, masks = self.network(crops, shape.render, shape.coeffs, return_masks=True)
        pictures = mask_pictures(masks)
        return images, pictures[max(pictures)] if pictures else None


def _ready(network: torch.nn.Module, device: torch.device, precision: str) -> torch.nn.Module:
    """The network on its device, prepared for inference if it knows how."""
    network = network.eval().to(device)
    if not hasattr(network, "for_inference"):
        return network.to(memory_format=torch.channels_last)
    try:
        return network.for_inference(precision)
    except ValueError as error:
        raise OptionError(str(error)) from error


def _new_face(crop, points5, matrix, detection) -> RestoredFace:
    nothing = np.zeros_like(crop)
    return RestoredFace(crop, nothing, nothing, None, np.zeros(0, np.float32), points5, matrix, detection)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures and tensors


def to_grey_images(batch: Tensor, size: int) -> list[np.ndarray]:
    """(N, 1, r, r) in [0, 1] -> uint8 pictures (size, size)."""
    resized = torch.nn.functional.interpolate(batch.float(), size=(size, size), mode="bilinear", align_corners=False)
    return list((resized[:, 0].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def is_grey(bgr: np.ndarray) -> bool:
    """Whether a photo is black and white, up to the colour noise of JPEG."""
    step = max(1, int(np.sqrt(bgr.shape[0] * bgr.shape[1] / 1e6)))  # a megapixel is enough to tell
    blue, green, red = cv2.split(np.ascontiguousarray(bgr[::step, ::step]))
    most, least = cv2.max(cv2.max(blue, green), red), cv2.min(cv2.min(blue, green), red)
    return cv2.mean(cv2.subtract(most, least))[0] < GREY_TOLERANCE


def _to_grey(bgr: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)


def _resize_like(face: RestoredFace, bgr: np.ndarray) -> np.ndarray:
    """A restored aligned crop at the size of its photo, or at its own where that is larger."""
    height, width = bgr.shape[:2]
    if max(height, width) <= len(face.restored):
        return face.restored
    change = face.restored - np.float32(face.keep) * face.crop  # as paste_face does it
    resized = cv2.resize(change, (width, height), interpolation=cv2.INTER_CUBIC) + np.float32(face.keep) * bgr
    return np.clip(np.rint(resized), 0, 255).astype(np.uint8)


def _resized(image: np.ndarray, shape: tuple[int, ...], enlarge: int = cv2.INTER_CUBIC) -> np.ndarray:
    """``image`` at the (height, width) of ``shape``: area-averaged where it shrinks, else by OpenCV's ``enlarge``."""
    height, width = shape[:2]
    shrinks = height < image.shape[0] or width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else enlarge)


# ---------------------------------------------------------------------------------------------------------------------
# Filling holes


def hole_of(mask: np.ndarray, bgr: np.ndarray) -> np.ndarray:
    """(H, W) bool, true where a mask of the photo ``bgr`` is white.

    Raises:
        ValueError: the mask is not uint8, has another size than the photo, or no white.
    """
    if not (isinstance(mask, np.ndarray) and mask.dtype == np.uint8 and mask.ndim in (2, 3)):
        raise ValueError(f"restore: expected a uint8 HxW or HxWx3 mask, found {getattr(mask, 'dtype', type(mask))}")
    if mask.shape[:2] != bgr.shape[:2]:
        (height, width), (photo_height, photo_width) = mask.shape[:2], bgr.shape[:2]
        raise ValueError(
            f"the mask is {width}x{height}, the photo {photo_width}x{photo_height} (upright): paint the mask on the photo "
            "and save it at the photo's size"
        )
    hole = (mask if mask.ndim == 2 else mask.min(axis=2)) >= HOLE_LEVEL
    if not hole.any():
        raise ValueError("the mask has no white: paint white what is to be filled, and leave the rest black")
    return hole


def match_hole(face: RestoredFace) -> np.ndarray:
    """A filled face (S, S, 3) with the photo's low frequencies around its hole, so that no edge shows where the two meet.

    The difference between photo and filling is known outside the hole only; its weighted mean goes on into the hole. This
    is a choice of ours, as for the seams of restored faces.
    """
    known = (~face.hole).astype(np.float32)
    difference = (face.crop.astype(np.float32) - face.restored) * known[..., None]
    sigma = SEAM_BLUR * len(known)
    weight = cv2.GaussianBlur(known, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    low = cv2.GaussianBlur(difference, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    # Deep in a large hole, where hardly anything is known, the filling is left as it is.
    low /= np.maximum(weight, 0.02)[..., None]
    return np.clip(np.rint(face.restored + low), 0, 255).astype(np.uint8)


def paste_fillings(bgr: np.ndarray, faces: Sequence[RestoredFace]) -> np.ndarray:
    """The photo with every filled face in its place, as a whole; where crops overlap, the nearer face's counts."""
    result = bgr.copy()
    for face in reversed(faces):
        others = [other for other in faces if other is not face]
        mask = feather_mask(face.crop.shape[0]) * ownership(face, others)
        paste_face(result, match_hole(face), face.matrix, mask=mask, in_place=True)
    return result


def blend_hole(bgr: np.ndarray, filling: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The photo with ``filling`` in the hole, fading out over HOLE_FEATHER pixels around it; the rest is untouched."""
    result = bgr.copy()
    left, top, width, height = cv2.boundingRect(hole.astype(np.uint8))
    reach = HOLE_FEATHER + 1
    box = np.s_[max(top - reach, 0) : top + height + reach, max(left - reach, 0) : left + width + reach]
    # A rim of photo around the box: where there is no photo pixel at all, distances mean nothing.
    outside = np.pad((~hole[box]).astype(np.uint8), reach, constant_values=1)
    distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[reach:-reach, reach:-reach]
    weight = np.clip(1 - distance / reach, 0, 1)[..., None]
    result[box] = np.rint(bgr[box] + weight * (filling[box].astype(np.float32) - bgr[box]))
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Pasting back


def paste_faces(bgr: np.ndarray, faces: Sequence[RestoredFace], in_place: bool = False) -> np.ndarray:
    """A copy of the photo (or the photo itself, when ``in_place``) with every restored face in its place.

    Pixels outside the crops are the photo's own.

    Near its border a face takes the photo's low frequencies, so no seam shows where the network shifts colours; and
    where two crops overlap each pixel belongs to the nearer face, so that no face is covered by a neighbour's
    background. Both are choices of ours.
    """
    result = bgr if in_place else bgr.copy()
    # The smallest first: what little two faces still share goes to the larger.
    for face in reversed(faces):
        others = [other for other in faces if other is not face]
        mask = feather_mask(face.crop.shape[0]) * ownership(face, others)
        seamless = match_seam(face.restored, face.crop)
        paste_face(result, seamless, face.matrix, mask=mask, in_place=True, crop=face.crop, keep=face.keep)
    return result


def match_seam(restored: np.ndarray, crop: np.ndarray) -> np.ndarray:
    """A restored face (S, S, 3) that has the crop's low frequencies towards the border, and its own inside."""
    size = crop.shape[0]
    difference = crop.astype(np.float32) - restored
    outside = 1 - feather_mask(size, SEAM_INSET, SEAM_SIGMA)[..., None]
    return np.clip(np.rint(restored + _low_frequencies(difference) * outside), 0, 255).astype(np.uint8)


def _low_frequencies(picture: np.ndarray) -> np.ndarray:
    """A float32 picture (S, S, 3) blurred by SEAM_BLUR of its size, replicated at its border.

    A large one is blurred at about SEAM_SIZE pixels: the blur leaves nothing that those cannot show, and costs in
    proportion to the number of pixels and to its own width.
    """
    size = len(picture)
    sigma, factor = SEAM_BLUR * size, max(1, size // SEAM_SIZE)
    if factor == 1:
        return cv2.GaussianBlur(picture, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    margin = factor * math.ceil(4 * sigma / factor)
    rest = -size % factor
    padded = cv2.copyMakeBorder(picture, margin, margin + rest, margin, margin + rest, cv2.BORDER_REPLICATE)
    small = cv2.resize(padded, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
    low = cv2.GaussianBlur(small, (0, 0), sigma / factor, borderType=cv2.BORDER_REPLICATE)
    low = cv2.resize(low, padded.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return low[margin : margin + size, margin : margin + size]


def ownership(face: RestoredFace, others: Sequence[RestoredFace]) -> np.ndarray:
    """How much each pixel of a face's crop belongs to it rather than to a neighbour: (S, S) float32 in 0..1.

    Distances are measured from the middle of a face's five points, in sides of its crop. Neighbours too far away to take
    anything are passed over, so a crowd costs each face its own neighbours only.
    """
    size = face.crop.shape[0]
    own = face.points5.mean(axis=0)
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]])
    reach = np.linalg.norm(corners - own, axis=1).max() / size
    share = np.ones((size, size), np.float32)
    for other in others:
        centre = transform_points(
            transform_points(other.points5.mean(axis=0), invert_similarity(other.matrix)), face.matrix
        )
        side = other.crop.shape[0] * similarity_scale(face.matrix) / similarity_scale(other.matrix)
        outside = np.hypot(*(np.clip(centre, 0, size) - centre))
        if outside / side - reach > NEIGHBOUR_REACH:
            continue
        y, x = np.mgrid[:size, :size].astype(np.float32)
        nearer = np.hypot(x - centre[0], y - centre[1]) / side - np.hypot(x - own[0], y - own[1]) / size
        share *= 1 / (1 + np.exp(-NEIGHBOUR_STEEPNESS * nearer))
    return share
