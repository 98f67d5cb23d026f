"""Pasting back: the quick way in each face's box against its definition on the whole photo, byte by byte, and what it costs."""

import time
from dataclasses import dataclass

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles import masks as masks_oracle
from oracles import pasting as oracle
from oracles.pictures import similarity, smooth_picture
from sgpn_data import alignment as al
from sgpn_data import pasting as module
from sgpn_data.alignment import align_face, template_points, transform_points
from sgpn_data.pasting import (
    blend_hole,
    feather_mask,
    fill_hole,
    match_seam,
    ownership,
    paste_face,
    paste_faces,
    render_into_hole,
    softened,
    spread_into_hole,
)


@dataclass
class Pasted:
    """What pasting needs of a face."""

    crop: np.ndarray
    restored: np.ndarray
    matrix: np.ndarray
    points5: np.ndarray
    fidelity: float | str = 0.0
    hole: np.ndarray | None = None


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
    return Pasted(crop, restored, matrix, transform_points(points, matrix))


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
    monkeypatch.setattr(module, "STRIP_PIXELS", 2000)
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
    assert np.abs(module.low_frequencies(difference) - exact).max() < 0.25
    face = Pasted(crop, restored, np.eye(2, 3), np.zeros((5, 2)))
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


class TestPaste:
    def test_feather_is_the_blurred_square(self):
        mask = np.zeros((512, 512), np.float32)
        mask[26:-26, 26:-26] = 1
        for _ in range(2):
            mask = cv2.GaussianBlur(mask, (101, 101), 4)
        np.testing.assert_allclose(feather_mask(512), mask, atol=2e-3)
        small = feather_mask(64)
        assert small[32, 32] == pytest.approx(1, abs=1e-4) and small[0].max() < 1e-3
        np.testing.assert_array_equal(small, small[::-1, ::-1].T)

    @settings(deadline=None, max_examples=25)
    @given(
        st.floats(0.3, 3),
        st.floats(-3, 3),
        st.floats(-80, 280),
        st.floats(-80, 240),
        st.sampled_from([32, 64]),
        st.booleans(),
    )
    def test_every_byte_outside_the_face_is_kept(self, scale, angle, x, y, size, full):
        photo = np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8)
        before = photo.copy()
        to_photo = similarity(scale, angle, x, y)
        face = np.full((size, size, 3), 255, np.uint8)
        mask = np.ones((size, size)) if full else None
        result = paste_face(photo, face, al.invert_similarity(to_photo), mask=mask)
        np.testing.assert_array_equal(photo, before)
        grid = np.stack(np.meshgrid(np.arange(200), np.arange(160)), -1)
        on_face = al.transform_points(grid, al.invert_similarity(to_photo))
        reach = max(1.5, 2 / scale)  # antialiasing may touch the two photo pixels around the face's edge
        outside = np.any((on_face < -reach) | (on_face > size - 1 + reach), axis=-1)
        np.testing.assert_array_equal(result[outside], before[outside])
        middle = np.all(np.abs(on_face - (size - 1) / 2) < size / 4, axis=-1)
        assert (result[middle] >= 250).all()

    @settings(deadline=None, max_examples=25)
    @given(st.integers(0, 2**31), st.floats(0.9, 2.5))
    def test_result_is_the_blend_of_the_photo_and_the_bicubically_moved_face(self, seed, scale):
        """photo + mask * (face - photo), with OpenCV's warps of the whole face and mask onto the whole photo."""
        rng = np.random.default_rng(seed)
        photo = rng.integers(0, 256, (100, 130, 3), dtype=np.uint8)
        face = cv2.GaussianBlur(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8), (0, 0), 2)
        to_photo = similarity(scale, rng.uniform(-3, 3), *rng.uniform(0, 100, 2))
        moved = cv2.warpAffine(face, to_photo, (130, 100), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        weight = cv2.warpAffine(feather_mask(48), to_photo, (130, 100), flags=cv2.INTER_LINEAR)[..., None]
        expected = np.rint(photo + weight * (moved.astype(float) - photo))
        found = paste_face(photo, face, al.invert_similarity(to_photo))
        assert np.abs(found - expected).max() <= 2

    def test_in_place(self):
        photo = np.zeros((64, 64, 3), np.uint8)
        face = np.full((32, 32, 3), 99, np.uint8)
        assert paste_face(photo, face, similarity(1, 0, -10, -10), in_place=True) is photo
        assert photo[26, 26, 0] == 99 and photo[60, 60, 0] == 0

    @pytest.mark.parametrize("keep", [0.0, 0.4, 1.0])
    def test_detail_that_the_crop_does_not_show_is_kept(self, keep):
        """A crop put back as it was: the photo's own detail, and 1 - keep of what cutting it out has lost."""
        photo = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
        matrix = similarity(0.5, 0.1, -10, -5)
        crop = al.warp(photo, matrix, (64, 64), "reflect")
        mask = np.ones((64, 64), np.float32)
        plain = paste_face(photo, crop, matrix, mask=mask).astype(float)
        found = paste_face(photo, crop, matrix, mask=mask, crop=crop, keep=keep)
        wanted = plain + keep * (photo - plain)
        inside = (plain > 0) & (plain < 255)  # plain was clipped and rounded
        assert np.abs(found - wanted)[inside].max() <= 1
        if keep == 1:
            assert np.array_equal(found, photo)

    def test_keeping_detail_needs_the_crop(self):
        photo, face = np.zeros((32, 32, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)
        for crop in (None, np.zeros((8, 8, 3), np.uint8)):
            with pytest.raises(ValueError, match="keep needs the crop"):
                paste_face(photo, face, similarity(1, 0, 0, 0), crop=crop, keep=0.5)

    @pytest.mark.parametrize("restored_size, footprint", [(128, 350), (512, 90), (256, 256)])
    def test_round_trip_at_another_size(self, restored_size, footprint):
        """Cut at 128, 'restore' at another size (here: cut again from the photo), paste: the photo comes back."""
        _, photo = smooth_picture(500, 480, (250, 240), wavelength=40)
        to_photo = similarity(footprint / 128, 0.2, 250 - footprint / 2, 200 - footprint / 2)
        matrix = al.invert_similarity(to_photo)
        restored = al.warp(photo, al.rescale_matrix(matrix, 128, restored_size), (restored_size,) * 2)
        result = paste_face(photo, restored, matrix, crop_size=128)
        difference = np.abs(result.astype(int) - photo)
        assert difference.max() <= 5 and difference.mean() < 0.6

    def test_own_mask_weighs_the_face(self):
        photo = np.zeros((40, 40, 3), np.uint8)
        face = np.full((40, 40, 3), 200, np.uint8)
        mask = np.tile(np.linspace(0, 1, 40, dtype=np.float32), (40, 1))
        result = paste_face(photo, face, similarity(1, 0, 0, 0), mask=mask)
        np.testing.assert_array_equal(result[20, :, 1], np.rint(mask[20] * 200))

    def test_bad_shapes(self):
        photo = np.zeros((40, 40, 3), np.uint8)
        with pytest.raises(ValueError, match="square"):
            paste_face(photo, photo[:20], similarity(1, 0, 0, 0))
        with pytest.raises(ValueError, match="mask"):
            paste_face(photo, photo, similarity(1, 0, 0, 0), mask=np.ones((3, 3)))


def test_real_photo_round_trip(astronaut):
    photo = astronaut
    points = np.array([[208.0, 107], [247, 106], [228, 128], [210, 147], [247, 146]])
    crop, matrix = al.align_face(photo, points, 256)
    np.testing.assert_allclose(al.transform_points(points, matrix), al.template_points("ffhq", 256), atol=10)
    result = paste_face(photo, crop, matrix)
    assert np.abs(result.astype(int) - photo).mean() < 0.5


def test_blending_fades_over_two_pixels():
    hole = np.zeros((20, 20), bool)
    hole[0:4, 8:12] = True  # at the border, where there is no photo to fade into
    photo, filling = np.zeros((20, 20, 3), np.uint8), np.full((20, 20, 3), 90, np.uint8)
    result = blend_hole(photo, filling, hole)[..., 0].astype(int)
    assert (result[hole] == 90).all() and not photo.any()
    assert result[2, 11:16].tolist() == [90, 60, 30, 0, 0]
    assert not result[~masks_oracle.grown(hole, 2.9)].any()


def test_the_feather_is_one_where_the_face_is():
    """match_seam may change the border only: the middle of the crop, where the face lies, is the network's."""
    inner = feather_mask(128, module.SEAM_INSET, module.SEAM_SIGMA)[40:100, 32:96]
    assert inner.min() > 0.98


@pytest.mark.parametrize("dtype, white", [(np.uint8, 255), (np.float32, 1.0)])
def test_a_hole_is_filled_with_white(dtype, white):
    image, mask = np.zeros((4, 4, 3), dtype), np.zeros((4, 4), np.uint8)
    mask[1, 2] = 255
    filled = fill_hole(image, mask)
    assert (filled[1, 2] == white).all() and filled.sum() == 3 * white and not image.any()
    assert filled.dtype == dtype


@st.composite
def photo_with_hole(draw):
    """A random photo (H, W, 3) uint8 and a mask with a hole that leaves something of it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width = draw(st.integers(2, 40)), draw(st.integers(2, 40))
    photo = rng.integers(40, 200, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), np.uint8)
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    mask[top : top + draw(st.integers(1, height)), left : left + draw(st.integers(1, width))] = 255
    mask[0, 0] = 0
    return photo, mask


@given(photo_with_hole(), st.booleans())
def test_surroundings_go_on_into_a_hole(case, as_float):
    """No colour that is not around it, nothing of what was there, and the rest stays."""
    photo, mask = case
    photo = photo.astype(np.float32) / 255 if as_float else photo
    hole = mask > 0
    other = photo.copy()
    other[hole] = 0
    filled = spread_into_hole(photo, mask)
    assert filled.dtype == photo.dtype and np.array_equal(filled[~hole], photo[~hole])
    assert np.array_equal(filled, spread_into_hole(other, mask))
    if hole.any():
        known = photo[~hole]
        assert (filled[hole] >= known.min(axis=0) - 1e-5).all() and (filled[hole] <= known.max(axis=0) + 1e-5).all()


def test_a_slope_goes_on_through_a_hole():
    slope = np.repeat(np.linspace(40, 200, 128)[None], 128, axis=0)[..., None].repeat(3, axis=2).astype(np.uint8)
    mask = np.zeros((128, 128), np.uint8)
    mask[50:80, 40:70] = 255
    assert np.abs(spread_into_hole(slope, mask).astype(int) - slope).max() < 14  # of the 38 that it rises in the hole
    assert np.abs(spread_into_hole(slope, mask).astype(int) - slope).mean(where=mask[..., None] > 0) < 4


def test_a_hole_without_surroundings_is_grey():
    photo = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    everything = np.full((8, 8), 255, np.uint8)
    assert (spread_into_hole(photo, everything) == 128).all()
    assert np.allclose(spread_into_hole(photo.astype(np.float32) / 255, everything), 128 / 255)


@pytest.mark.parametrize("size", [4, 64, 70])
def test_what_is_softened_keeps_its_means_and_no_detail(size):
    picture = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    soft = softened(picture)
    assert soft.shape == picture.shape and soft.dtype == np.uint8
    assert np.abs(soft.mean(axis=(0, 1)) - picture.mean(axis=(0, 1))).max() < 4
    assert (soft.std(axis=(0, 1)) < picture.std(axis=(0, 1)) / 4).all()


class TestRenderIntoHole:
    @pytest.fixture
    def face(self):
        """(rendering, where it is): a textured disc."""
        rendering = cv2.GaussianBlur(np.random.default_rng(1).uniform(0, 255, (128, 128, 3)), (0, 0), 4)
        covered = np.zeros((128, 128), np.uint8)
        cv2.circle(covered, (64, 64), 45, 1, -1)
        return (np.clip((rendering - 127) * 6 + 127, 20, 200) * (covered[..., None] > 0)).astype(np.uint8), covered

    @pytest.mark.parametrize("dtype, scale", [(np.uint8, 1), (np.float32, 1 / 255)])
    def test_a_rendering_that_is_the_face_in_another_light_fills_it(self, face, dtype, scale):
        rendering, covered = face
        photo = rendering + np.array([30, 10, 0], np.uint8)
        mask = np.zeros((128, 128), np.uint8)
        cv2.line(mask, (40, 60), (90, 70), 255, 12)
        holed = photo.copy()
        holed[mask > 0] = 255
        drawn = (
            render_into_hole((holed * scale).astype(dtype), mask, (rendering * scale).astype(dtype), covered) / scale
        )
        assert np.abs(drawn - photo).max() < 2
        plain = spread_into_hole(holed, mask).astype(int)
        assert np.abs(plain - photo)[mask > 0].mean() > 5, "the surroundings alone would not do"

    def test_beside_the_face_the_surroundings_go_on(self, face):
        rendering, covered = face
        photo = np.full((128, 128, 3), 77, np.uint8)
        mask = np.zeros((128, 128), np.uint8)
        mask[:, :30] = mask[64, 64] = 255
        drawn = render_into_hole(photo, mask, rendering, covered)
        outside = (mask > 0) & (cv2.dilate(covered, np.ones((9, 9))) == 0)
        assert np.array_equal(drawn[mask == 0], photo[mask == 0]) and (drawn[outside] == 77).all()

    @pytest.mark.parametrize("everything", [False, True])
    def test_without_a_face_in_sight_the_surroundings_go_on(self, face, everything):
        """No face at all, or none that is not wholly in the hole."""
        rendering, covered = face
        photo = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
        mask = covered if everything else np.eye(128, dtype=np.uint8)
        drawn = render_into_hole(photo, mask, rendering, covered if everything else np.zeros_like(covered))
        assert np.array_equal(drawn, spread_into_hole(photo, mask))
