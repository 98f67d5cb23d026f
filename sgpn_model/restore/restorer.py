"""Photo in, photo out: detect faces, align them, run the shape prior and the network, and paste the results back."""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from sgpn_arch.face3d.face_mesh import FaceMesh
from sgpn_data import released_protocol
from sgpn_data.alignment import (
    align_face,
    check_photo,
    matrix_of_enlarged,
    resize,
    template_points,
    transform_points,
    warp,
)
from sgpn_data.detection import Detection, Detector, FaceChoice, build_detector
from sgpn_data.pasting import (
    FIRST_FILLS,
    aligned_at_size_of,
    blend_hole,
    hole_of,
    match_hole,
    paste_faces,
    render_into_hole,
    softened,
)
from sgpn_data.photos import to_grey, tone_of, toned
from sgpn_data.tensors import to_pictures, to_planes
from sgpn_model.restore.background import SCALES, Background, resized
from sgpn_model.restore.engines import Engine
from sgpn_model.restore.engines.choosing import open_engine
from sgpn_model.restore.fidelity import blend, checked_fidelity
from sgpn_model.restore.stream import Outcome, stream
from sgpn_model.weights.pretrained import WEIGHTS_FOLDER, find_weights

if TYPE_CHECKING:
    import torch

    from sgpn_arch.face3d.shape_prior import ShapePrior

LOGGER = logging.getLogger("sgpn")

BATCH_SIZE = 4
# How far from square a crop may be that is said to be aligned.
ALIGNED_TOLERANCE = 0.05
# In an aligned face the detector's points are better than the template's where it is as sure as this; where it is not, it
# sees little, and the template is better (docs/model_card.md has the numbers).
SURE = 0.994


def _no_picture() -> np.ndarray:
    return np.zeros((0, 0, 3), np.uint8)


@dataclass
class RestoredFace:
    """One face, and everything that was computed for it; S is the network's size.

    Attributes:
        crop: (S, S, 3) uint8 BGR, the degraded face, aligned. points5: (5, 2) OpenCV pixels of the crop.
        matrix: (2, 3) from OpenCV pixels of the photo to the crop's.
        detection: where the face was found; None where the points were given, or are the template's.
        hole: (S, S) bool, where the crop was cut out to be filled, and is white; None for a restoration.
        fidelity: 0..1 or "auto", as asked for; 0 where a hole is filled.
        person: (D,) float32, coefficients that count in place of the crop's own, NaN where the crop's own do; None: nowhere.
        tone: (256, 3) uint8, the colours of a monochrome crop's grey levels (see :func:`.tone_of`); None for one in colours.
        restored: (S, S, 3) uint8 BGR.
        render: (S, S, 3) uint8 BGR, the 3D rendering, black outside.
        render_mask: (S, S) uint8, how much of each pixel the mesh of the rendering covers.
        mask: (S, S) uint8, the paper's mask picture (channel mean of the finest AFFB mask; white trusts the photo, black the
            rendering), or None for a fusion without masks.
        coefficients: (D,) float32 of the shape prior. landmarks: (68, 2) float32 of its mesh, OpenCV pixels of the crop.
        mesh: what the rendering shows; :func:`.write_mesh` writes it to a file.
        failed: whether a network made NaN or infinity of it; ``restored`` is the crop then.
    """

    crop: np.ndarray
    points5: np.ndarray
    matrix: np.ndarray
    detection: Detection | None = None
    hole: np.ndarray | None = None
    fidelity: float | str = "auto"
    tone: np.ndarray | None = None
    person: np.ndarray | None = None
    # What the networks say.
    restored: np.ndarray = field(default_factory=_no_picture)
    render: np.ndarray = field(default_factory=_no_picture)
    render_mask: np.ndarray = field(default_factory=_no_picture)
    mask: np.ndarray | None = None
    coefficients: np.ndarray = field(default_factory=_no_picture)
    landmarks: np.ndarray = field(default_factory=_no_picture)
    mesh: FaceMesh | None = None
    failed: bool = False


@dataclass
class RestoreResult:
    """The restored photo (uint8 HxWx3 BGR; without a face the input, enlarged as asked) and its faces, largest first.

    Attributes:
        faces: their matrices and detections are in pixels of the input, also where the result is larger.
        untouched: how many faces were found that the mask does not touch, and that are therefore not among ``faces``.
        failed: faces that stay as they were, because a network made NaN or infinity of them; not among ``faces``.
    """

    image: np.ndarray
    faces: list[RestoredFace]
    untouched: int = 0
    failed: list[RestoredFace] = field(default_factory=list)


@dataclass
class PreparedPhoto:
    """A photo whose faces are found and cut out, and wait for the networks.

    Attributes:
        bgr: the photo. faces: largest first; what the networks say is not in them yet.
        aligned: whether the photo is one aligned face. hole: (H, W) bool, what is to be
            filled; None for a restoration. untouched: faces that it leaves alone. left_out: faces that were not chosen.
        scale: how many times larger the result is.
    """

    bgr: np.ndarray
    faces: list[RestoredFace] = field(default_factory=list)
    aligned: bool = False
    hole: np.ndarray | None = None
    untouched: int = 0
    left_out: int = 0
    scale: int = 1


class FaceRestorer:
    """Restores the faces of photos; :meth:`from_pretrained` builds one from a file of weights.

    A restoration has three steps: :meth:`prepare` (detect and cut out), :meth:`run` (the networks) and :meth:`finish`
    (paste back). :meth:`restore` does them for one photo; :meth:`restore_many` lets those of several photos overlap.

    Several threads may use one restorer at once, with the same results as one after the other: they search and paste side
    by side, and the network takes turns. A restorer from :meth:`from_pretrained` can be pickled, for other processes: it is
    built again there from its weights' name or path.

    Args:
        network: an SGPN: called with photo, rendering and coefficients; has ``size``. If it has a method ``for_inference``, as
            SGPN has, what that returns takes its place.
        prior: the shape prior: called with crops and five points.
        template: name of the alignment template that the network was trained on.
        detector: finds faces. The prior's ``protocol`` says how they are cut out and pasted back: "released" as the
            authors do it (but each from the untouched photo, so that the order of the faces does not matter).
        device: where the networks run.
        task: what the weights were trained for: "restore", "inpaint", that is to fill holes, or "restore and inpaint".
        hole: what they see in a hole: "white" or "rendering", see :class:`sgpn_data.masks.MaskOptions`.
        precision: "fp32", "bf16", "fp16" (CUDA only) or "auto", which is what the device multiplies in hardware; see
            :func:`.choose_precision`. A network without ``for_inference`` keeps its own. On the demonstration's
            face bf16 and fp32 differ by at most 2 of 255 grey levels (PSNR 54 dB; 64 dB in the photo). "fp32" is the prior's too.
        fidelity: from 0, the restoration as it is, to 1, the photo as it is: how much of each face is taken back to the photo,
            large forms first (:func:`sgpn_model.restore.fidelity.blend`), and that part of what the photo shows finer than the
            network's pixels. "auto" is 0 for what the network's pixels can show, and keeps finer detail without the photo's
            noise (:mod:`sgpn_data.detail`); by the authors' protocol it is 0. Holes are filled as if it were 0.

    Raises:
        OptionError: precision or fidelity is none of these, or the device cannot do it.
    """

    def __init__(
        self,
        network: "torch.nn.Module",
        prior: "ShapePrior",
        template: str,
        detector: Detector,
        device: "torch.device | str" = "cpu",
        task: str = "restore",
        precision: str = "auto",
        fidelity: float | str = "auto",
        background: str = "lanczos",
        hole: str = "white",
    ):
        from sgpn_model.restore.engines.torch_engine import TorchEngine

        self._take(TorchEngine(network, prior, device, precision), template, detector, task, hole, fidelity, background)

    def _take(
        self,
        engine: Engine,
        template: str,
        detector: Detector,
        task: str,
        hole: str,
        fidelity: float | str,
        background: str,
    ) -> None:
        #: What runs the networks.
        self.engine = engine
        self.template = template
        self.detector = detector
        self.task = task
        self.hole = hole
        self.fidelity = checked_fidelity(fidelity)
        self.background = Background(background, engine.device)
        self._recipe: dict | None = None

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path = "default",
        device: str = "auto",
        detector: str = "auto",
        allow_download: bool = False,
        precision: str = "auto",
        fidelity: float | str = "auto",
        engine: str = "auto",
        threads: int | None = None,
        background: str = "lanczos",
    ) -> "FaceRestorer":
        """Builds a restorer from weights that ship with the library or from a checkpoint file.

        Args:
            weights: a name in :func:`available_weights`, "default", or the path of a checkpoint or a bundle (docs/deploy.md).
            device: "auto" (CUDA where there is any), "cpu" or "cuda".
            detector: "auto" or a name in ``sgpn_data.detection.DETECTORS``.
            allow_download: whether the detector may fetch its weights.
            precision, fidelity, background: see the class.
            engine: what runs the networks: "torch", "openvino", "onnxruntime", or "auto", see :func:`.open_engine`.
            threads: of the engine; None is its own choice. PyTorch's are those of the whole process.

        Raises:
            CheckpointError, DetectorError, OptionError, BackgroundError: the message says what to do.
        """
        path = find_weights(weights)
        opened = open_engine(engine, path, device, precision, threads)
        restorer = cls.__new__(cls)
        finder = build_detector(detector, opened.engine.device, allow_download)
        restorer._take(opened.engine, opened.template, finder, opened.task, opened.hole, fidelity, background)
        restorer._recipe = {
            "weights": str(weights if path.parent == WEIGHTS_FOLDER else path.resolve()),
            "device": device,
            "detector": detector,
            "allow_download": allow_download,
            "precision": precision,
            "engine": opened.engine.name,
            "threads": threads,
            "background": background,
        }
        return restorer

    def __reduce__(self):
        if self._recipe is None:
            raise TypeError(
                "this FaceRestorer was built from networks, of which it keeps only what inference needs, so it cannot be "
                "pickled: save them as a checkpoint, and build it with FaceRestorer.from_pretrained"
            )
        return functools.partial(type(self).from_pretrained, **self._recipe, fidelity=self.fidelity), ()

    def __repr__(self) -> str:
        parts = {
            "weights": self._recipe["weights"] if self._recipe else self.engine.network_name,
            "size": self.size,
            "template": self.template,
            "task": self.task,
            "detector": self.detector.name,
            "engine": self.engine.name,
            "device": self.engine.device,
            "precision": self.engine.precision,
            "fidelity": self.fidelity,
            "background": self.background.name,
        }
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in parts.items())})"

    @property
    def size(self) -> int:
        """Side of the crops, in pixels."""
        return self.engine.size

    @property
    def as_released(self) -> bool:
        """Whether faces are cut out and pasted back as in the authors' code."""
        return self.engine.protocol == "released"

    def restore(
        self,
        bgr: np.ndarray,
        aligned: bool = False,
        only_largest: bool = False,
        mask: np.ndarray | None = None,
        points5: np.ndarray | None = None,
        fidelity: float | str | None = None,
        choice: FaceChoice | None = None,
        scale: int = 1,
    ) -> RestoreResult:
        """Restores a photo, or fills a hole in it.

        Args:
            bgr: uint8 HxWx3 BGR.
            aligned: the photo is one face, already aligned to the template. The result keeps the photo's size where
                that is larger than the network's, and otherwise has the network's, so that nothing is lost. The face's
                points are the detector's where that is sure of them, else the template's.
            only_largest: restore only the largest face; ignored when ``aligned`` or with ``points5``.
            mask: uint8 HxW or HxWx3, white (from 128 on, in all channels) where the photo is to be filled. The networks
                and the detector see white there, or the surroundings' colours and then the face's rendering, as in training;
                if it finds no face so, it looks at the photo as it is.
                Only the hole is replaced, softened over two pixels around it: the rest of the photo stays as it is, its
                size too, and so does what of the hole lies outside the faces' crops. Faces that the hole does not touch are
                left alone.
            points5: (N, 5, 2), or (5, 2) for one face: where the faces are, in OpenCV pixels of the photo, in the order of
                :class:`sgpn_data.detection.Detection`. Nothing is searched then.
            fidelity: of this photo; None is the restorer's own.
            choice: which of the faces found are restored; ignored when ``aligned`` or with ``points5``.
            scale: 1, 2 or 4, how many times larger the result is; faces are pasted at that size.

        Raises:
            ValueError: not a uint8 HxWx3 array; or not nearly square though ``aligned``; or the mask has another size or
                no white; or the points are of another shape or not finite; or the scale is another, or goes with a mask.
            OptionError: fidelity is neither a number from 0 to 1 nor "auto".
        """
        photo = self.prepare(bgr, aligned, only_largest, mask, points5, fidelity, choice, scale)
        self.run(photo.faces)
        return self.finish(photo)

    def restore_many(
        self,
        photos: Iterable[np.ndarray],
        aligned: bool = False,
        only_largest: bool = False,
        fidelity: float | str | None = None,
        scale: int = 1,
    ) -> Iterator[Outcome[RestoreResult]]:
        """Restores photos one after the other, as :meth:`restore` does, faster: while the networks run on some, the next
        are searched and finished ones are pasted, and faces of different photos share a batch.

        Args:
            photos: uint8 HxWx3 BGR each; may be a generator, which then runs in a thread of its own. Only a few photos
                are in memory at a time, however many there are.
            aligned, only_largest, fidelity, scale: as in :meth:`restore`.

        Yields:
            One outcome for each photo, in order, with the photo's ``index``: ``outcome.result`` is its RestoreResult, or
            raises what went wrong with it; ``outcome.error`` is that exception, or None. A photo that fails costs no other
            photo anything. None is held back until there are enough faces for a batch.

        Raises:
            OptionError: fidelity is neither a number from 0 to 1 nor "auto". And what iterating over ``photos`` raises, when
                all earlier photos have been yielded.
        """
        wanted = self.fidelity if fidelity is None else checked_fidelity(fidelity)
        return stream(
            photos,
            prepare=lambda bgr: self.prepare(bgr, aligned, only_largest, fidelity=wanted, scale=scale),
            run=self.run,
            finish=lambda _, photo: self.finish(photo),
            weigh=lambda bgr: getattr(bgr, "nbytes", 0) * scale**2,
            batch=BATCH_SIZE,
        )

    def prepare(
        self,
        bgr: np.ndarray,
        aligned: bool = False,
        only_largest: bool = False,
        mask: np.ndarray | None = None,
        points5: np.ndarray | None = None,
        fidelity: float | str | None = None,
        choice: FaceChoice | None = None,
        scale: int = 1,
    ) -> PreparedPhoto:
        """Finds the faces of a photo and cuts them out; arguments and errors are those of :meth:`restore`."""
        check_photo(bgr, "restore")
        if bgr.size == 0:
            raise ValueError("restore: the photo is empty")
        if scale not in SCALES:
            raise ValueError(f"restore: scale must be one of {', '.join(map(str, SCALES))}, found {scale!r}")
        if mask is not None and scale != 1:
            raise ValueError("restore: a hole is filled at the photo's own size; enlarge the result in a second step")
        wanted = self.fidelity if fidelity is None else checked_fidelity(fidelity)
        hole = None if mask is None else hole_of(mask, bgr)
        if hole is not None and "inpaint" not in self.task:
            LOGGER.warning(
                "these weights were not trained to fill holes, so expect little of it; train some with options/task/inpaint.yml"
            )
        fill = FIRST_FILLS[self.hole]
        seen = bgr if hole is None else fill(bgr, hole)
        places = None if points5 is None else _checked_points(points5, aligned)
        detections, left_out = [], 0
        if not aligned and places is None:
            everyone = self.detector.detect(seen)
            if hole is not None and not everyone:  # a broad brush hides a face that the damaged photo may still show
                everyone = self.detector.detect(bgr)
            detections = (choice or FaceChoice()).of(everyone)[: 1 if only_largest else None]
            left_out = len(everyone) - len(detections)
        found = [self._aligned_face(seen, places)] if aligned else self._cut_out(seen, detections, places)
        for face in found:
            face.fidelity = wanted if hole is None else 0.0
            if hole is not None:
                # Every pixel that the hole has part in, so that none mixes the photo and the hole.
                levels, size = hole.astype(np.uint8) * 255, (self.size, self.size)
                border = "constant" if self.as_released else "reflect"
                face.hole = (resize(levels, size) if aligned else warp(levels, face.matrix, size, border)) > 0
                face.crop = fill(face.crop, face.hole)
        faces = [face for face in found if face.hole is None or face.hole.any()]
        if not self.as_released:
            for face in faces:
                face.tone = tone_of(face.crop, None if face.hole is None else ~face.hole)
        return PreparedPhoto(bgr, faces, aligned, hole, len(found) - len(faces), left_out, scale)

    def _cut_out(
        self, bgr: np.ndarray, detections: Sequence[Detection], places: np.ndarray | None
    ) -> list[RestoredFace]:
        cut_out = released_protocol.cut_out if self.as_released else align_face
        faces = []
        for points, detection in (
            [(p, None) for p in places] if places is not None else [(d.points5, d) for d in detections]
        ):
            crop, matrix = cut_out(bgr, points, self.size, self.template)
            faces.append(RestoredFace(crop, transform_points(points, matrix), matrix, detection))
        return faces

    def _aligned_face(self, bgr: np.ndarray, places: np.ndarray | None) -> RestoredFace:
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
        else:
            crop = resize(bgr, (self.size, self.size), cv2.INTER_LINEAR)
        if places is not None:
            return RestoredFace(crop, transform_points(places[0], matrix), matrix)
        if self.as_released:
            found = self.detector.detect(crop)[:1]
            points5 = [face.points5 for face in found]
        else:
            found = [face for face in self.detector.detect(bgr)[:1] if face.score >= SURE]
            points5 = [transform_points(face.points5, matrix) for face in found]
        if not found:
            return RestoredFace(crop, template_points(self.template, self.size), matrix)
        return RestoredFace(crop, points5[0], matrix, found[0])

    def run(self, faces: Sequence[RestoredFace], shape_only: bool = False) -> None:
        """Lets the networks restore faces, of one photo or several; fills in what they say.

        With ``shape_only`` the generator does not run: ``restored`` stays empty and ``mask`` None, and there is nothing to
        :meth:`finish`.

        A face of which a network makes NaN or infinity is tried again in fp32 where that was half precision; if that does
        not help, ``failed`` is set.
        """
        for start in range(0, len(faces), BATCH_SIZE):
            batch = faces[start : start + BATCH_SIZE]
            if self.hole == "rendering" and not shape_only:
                self._draw_into_holes(batch)
            failed = self._restore_batch(batch, shape_only)
            if failed and self._in_full_precision is not None:
                self._in_full_precision._restore_batch(failed, shape_only)

    def _draw_into_holes(self, faces: Sequence[RestoredFace]) -> None:
        """Puts the renderings of faces that have holes into these, once the shape prior has made them."""
        holes = [(face, face.hole) for face in faces if face.hole is not None]
        if holes:
            self._restore_batch([face for face, _ in holes], shape_only=True)
        for face, hole in holes:
            face.crop = render_into_hole(face.crop, hole, face.render, face.render_mask > 127)

    @functools.cached_property
    def _in_full_precision(self) -> "FaceRestorer | None":
        """The same networks in fp32; None where these are, or where the weights are not at hand."""
        if self._recipe is None or self.engine.all_fp32:
            return None
        return type(self).from_pretrained(**{**self._recipe, "precision": "fp32", "background": "lanczos"})

    def _restore_batch(self, faces: Sequence[RestoredFace], shape_only: bool = False) -> list[RestoredFace]:
        """Fills in what the networks say; returns the faces of which some number is not finite."""
        photos = np.stack([to_planes(face.crop) for face in faces])
        crops = photos.copy()
        for number, face in enumerate(faces):
            seen = face.crop if face.tone is None else to_grey(face.crop)
            if face.hole is not None and self.hole == "rendering" and not shape_only:
                seen = softened(seen)
            if seen is not face.crop:
                crops[number] = to_planes(seen)
        persons = [face.person for face in faces]
        given = None
        if any(person is not None for person in persons):
            length = max(len(person) for person in persons if person is not None)
            unknown = np.full(length, np.nan, np.float32)
            given = np.stack([unknown if person is None else person for person in persons])
        said = self.engine(crops, np.stack([face.points5 for face in faces]).astype(np.float32), given, shape_only)
        sound = np.ones(len(faces), bool)
        for part in (said.restored, said.coefficients, said.render):
            if part is not None:
                sound &= np.isfinite(part).reshape(len(faces), -1).all(axis=1)
        results = zip(
            sound.tolist(),
            to_pictures(np.nan_to_num(said.render)),
            to_grey_pictures(np.nan_to_num(said.render_mask), self.size),
            [None] * len(faces) if said.mask is None else to_grey_pictures(np.nan_to_num(said.mask), self.size),
            said.coefficients,
            said.landmarks,
            said.vertices,
            said.colors,
            strict=True,
        )
        for face, (finite, render, render_mask, mask, coefficients, landmarks, vertices, colors) in zip(
            faces, results, strict=True
        ):
            face.failed = not finite
            face.render, face.render_mask, face.mask = render, render_mask, mask
            face.coefficients, face.landmarks = coefficients, landmarks
            face.mesh = FaceMesh(vertices, colors, said.triangles)
        if said.restored is not None:
            self._take_restored(faces, photos, np.where(sound[:, None, None, None], said.restored, photos))
        return [face for face in faces if face.failed]

    @staticmethod
    def _take_restored(faces: Sequence[RestoredFace], photos: np.ndarray, images: np.ndarray) -> None:
        """Gives faces their restored pictures: those of the network, in the photo's tone, as faithful as was asked for."""
        for number, face in enumerate(faces):
            if face.tone is not None:
                images[number] = to_planes(toned(to_pictures(images[number : number + 1])[0], face.tone))
        for fidelity in {face.fidelity for face in faces}:
            group = [number for number, face in enumerate(faces) if face.fidelity == fidelity]
            wanted = blend(images[group], photos[group], 0 if fidelity == "auto" else float(fidelity))
            for number, picture in zip(group, to_pictures(wanted), strict=True):
                faces[number].restored = picture

    def finish(
        self, photo: PreparedPhoto, in_place: bool = False, tell: Callable[[float], None] = lambda part: None
    ) -> RestoreResult:
        """The photo with its restored faces in place.

        Args:
            in_place: the photo's array may be changed and returned, which saves the memory of a copy.
            tell: is told how much of the background is done, 0..1, and may raise to stop.
        """
        bgr, faces = photo.bgr, [face for face in photo.faces if not face.failed]
        if photo.hole is not None and faces:
            filling = resize(match_hole(faces[0]), bgr.shape[1::-1]) if photo.aligned else paste_faces(bgr, faces)
            image = blend_hole(bgr, filling, photo.hole)
        elif photo.aligned and faces:
            image = (
                resized(faces[0].restored, photo.scale)
                if self.as_released
                else aligned_at_size_of(faces[0], resized(bgr, photo.scale))
            )
        elif photo.hole is None and (photo.scale > 1 or self.background.is_network):
            image = self.background.enlarge(bgr, photo.scale, tell)
            # What a network makes up is no detail that faces should keep.
            seen = resized(bgr, photo.scale) if self.background.is_network else None
            self._paste(
                image, [replace(face, matrix=matrix_of_enlarged(face.matrix, photo.scale)) for face in faces], seen
            )
        else:
            image = bgr if in_place else bgr.copy()
            self._paste(image, faces)
        return RestoreResult(image, faces, photo.untouched, [face for face in photo.faces if face.failed])

    def _paste(self, image: np.ndarray, faces: Sequence[RestoredFace], seen: np.ndarray | None = None) -> None:
        if not self.as_released:
            paste_faces(image, faces, in_place=True, seen=seen)
        for face in faces if self.as_released else ():
            released_protocol.paste_back(image, face.restored, face.crop, face.matrix, in_place=True)


def _checked_points(points5: np.ndarray, aligned: bool) -> np.ndarray:
    """Five points of each face (N, 5, 2) as they were given, or ValueError."""
    points = np.asarray(points5, np.float64)
    points = points[None] if points.ndim == 2 else points
    if points.ndim != 3 or points.shape[1:] != (5, 2) or not np.isfinite(points).all():
        raise ValueError(f"restore: points5 must be finite and of shape (N, 5, 2) or (5, 2), found {np.shape(points5)}")
    if aligned and len(points) != 1:
        raise ValueError(f"restore: an aligned photo has one face, but there are points5 of {len(points)}")
    return points


def to_grey_pictures(planes: np.ndarray, size: int) -> list[np.ndarray]:
    """(N, 1, r, r) float in [0, 1] -> uint8 pictures (size, size), enlarged bilinearly."""
    enlarged = [cv2.resize(plane[0], (size, size), interpolation=cv2.INTER_LINEAR) for plane in planes]
    return [np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8) for picture in enlarged]
