"""Pasting back: the quick way in each face's box against its definition on the whole photo, and what it costs."""

import time

import cv2
import numpy as np
import pytest

from oracles import pasting as oracle
from sgpn_data import alignment
from sgpn_data.alignment import align_face, template_points, transform_points
from sgpn_model.restore import restorer as module
from sgpn_model.restore.restorer import RestoredFace, is_grey, match_seam, ownership, paste_faces


def smooth(rng, height, width):
    return cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (0, 0), 2)


def made_face(photo, rng, centre, side, angle, size):
    """A face of `side` pixels in the photo, restored to something of other colours and details."""
    cosine, sine = side / size * np.cos(angle), side / size * np.sin(angle)
    template = template_points("ffhq", size)
    points = (template - size / 2) @ np.array([[cosine, sine], [-sine, cosine]]) + centre
    crop, matrix = align_face(photo, points, size)
    restored = np.clip(crop.astype(int) + 30 + rng.integers(-20, 20, crop.shape), 0, 255).astype(np.uint8)
    restored = cv2.GaussianBlur(restored, (0, 0), 1)
    return RestoredFace(crop, crop, restored, None, np.zeros(0), transform_points(points, matrix), matrix, None)


# centre, side in the photo, angle: alone, neighbours that overlap, over a border, far away
PLACES = [((150, 140), 150, 0.1), ((240, 150), 140, -0.3), ((20, 200), 130, 0.5), ((420, 260), 120, 0.0)]


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_boxes_hold_what_the_whole_photo_would(size, count):
    rng = np.random.default_rng(0)
    photo = smooth(rng, 300, 480)
    # Faces are not shrunk on the way back: the definition has no averaging.
    places = PLACES if size == 64 else [(centre, 2 * side, angle) for centre, side, angle in PLACES]
    faces = [made_face(photo, rng, *place, size) for place in places[:count]]
    found, expected = paste_faces(photo, faces), oracle.paste_faces(photo, faces)
    assert (found != photo).any(axis=2).mean() > 0.03
    apart = np.abs(found.astype(int) - expected)
    assert apart.max() <= 3 and (apart > 1).mean() < 2e-3, "beyond the rounding of OpenCV's warps of bytes"


def test_strips_are_the_whole_box(monkeypatch):
    rng = np.random.default_rng(6)
    photo = smooth(rng, 300, 480)
    faces = [made_face(photo, rng, *place, 64) for place in PLACES]
    expected = paste_faces(photo, faces)
    monkeypatch.setattr(alignment, "STRIP_PIXELS", 2000)
    before = photo.copy()
    apart = np.abs(paste_faces(photo, faces).astype(int) - expected)
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-2
    assert np.array_equal(photo, before)
    assert paste_faces(photo, faces, in_place=True) is photo and not np.array_equal(photo, before)


@pytest.mark.parametrize("size", [96, 250, 256, 512])
def test_low_frequencies_may_be_found_in_a_smaller_picture(size):
    rng = np.random.default_rng(1)
    crop = smooth(rng, size, size)
    restored = np.clip(crop.astype(int) + rng.integers(-60, 60, crop.shape), 0, 255).astype(np.uint8)
    difference = crop.astype(np.float32) - restored
    exact = cv2.GaussianBlur(difference, (0, 0), module.SEAM_BLUR * size, borderType=cv2.BORDER_REPLICATE)
    assert np.abs(module._low_frequencies(difference) - exact).max() < 0.25
    face = RestoredFace(crop, crop, restored, None, None, None, None, None)
    apart = np.abs(match_seam(restored, crop).astype(int) - oracle.matched(face))
    assert apart.max() <= 1 and apart.mean() < 0.05


def test_far_neighbours_take_nothing():
    rng = np.random.default_rng(2)
    photo = smooth(rng, 300, 480)
    faces = [made_face(photo, rng, *place, 64) for place in PLACES]
    for face in faces:
        others = [other for other in faces if other is not face]
        np.testing.assert_allclose(ownership(face, others), oracle.share(face, others), atol=1e-4)


def test_a_crowd_looks_at_its_neighbours_only(monkeypatch):
    """Forty faces in a row: each computes shares against those beside it."""
    rng = np.random.default_rng(3)
    photo = smooth(rng, 100, 2400)
    faces = [made_face(photo, rng, (50 + 58 * n, 50), 80, 0, 64) for n in range(40)]
    calls = []
    true = np.mgrid.__class__.__getitem__
    monkeypatch.setattr(np.mgrid.__class__, "__getitem__", lambda self, key: calls.append(1) or true(self, key))
    for face in faces:
        ownership(face, [other for other in faces if other is not face])
    assert 40 <= len(calls) <= 40 * 8


def test_the_photos_size_does_not_matter():
    """A face costs the same in a photo a hundred times larger, but for the copy of the photo."""
    rng = np.random.default_rng(4)
    costs = []
    for side in (300, 3000):
        photo = np.full((side, side, 3), 100, np.uint8)
        faces = [made_face(photo, rng, (150, 140), 150, 0.1, 128)]
        times = []
        for _ in range(7):
            start = time.perf_counter()
            paste_faces(photo, faces)
            middle = time.perf_counter()
            photo.copy()
            times.append(2 * middle - start - time.perf_counter())
        costs.append(np.median(times))
    assert costs[1] < 4 * costs[0] + 0.03


def test_grey_is_the_mean_spread_of_the_channels():
    rng = np.random.default_rng(5)
    for spread in (0, 1, 3, 6, 40):
        photo = np.clip(rng.integers(60, 200, (50, 70, 1)) + rng.integers(0, spread + 1, (50, 70, 3)), 0, 255).astype(
            np.uint8
        )
        expected = (
            np.mean([int(pixel.max()) - int(pixel.min()) for pixel in photo.reshape(-1, 3)]) < module.GREY_TOLERANCE
        )
        assert is_grey(photo) == expected
