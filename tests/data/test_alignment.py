"""Tests of sgpn_data.alignment: transforms against scikit-image, warps against analytic pictures."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import SimilarityTransform

from oracles.pictures import similarity, smooth_picture
from sgpn_data import alignment as al


class TestTransforms:
    @settings(deadline=None, max_examples=50)
    @given(st.integers(0, 2**31), st.integers(2, 8))
    def test_least_squares_as_scikit_image(self, seed, count):
        rng = np.random.default_rng(seed)
        source, target = rng.normal(size=(count, 2)) * 100, rng.normal(size=(count, 2)) * 50 + 200
        reference = SimilarityTransform.from_estimate(source, target)
        np.testing.assert_allclose(al.similarity_transform(source, target), reference.params[:2], rtol=1e-6, atol=1e-6)

    def test_recovers_an_exact_transform(self):
        matrix = similarity(0.4, 0.6, 30, -12)
        points = al.template_points("gpen")
        found = al.similarity_transform(points, al.transform_points(points, matrix))
        np.testing.assert_allclose(found, matrix, atol=1e-10)
        assert al.similarity_scale(found) == pytest.approx(0.4)
        back = al.transform_points(al.transform_points(points, matrix), al.invert_similarity(matrix))
        np.testing.assert_allclose(back, points, atol=1e-9)

    @pytest.mark.parametrize(
        "source, target",
        [
            (np.ones((5, 2)), np.eye(5)[:, :2]),
            (np.zeros((1, 2)), np.zeros((1, 2))),
            (np.full((5, 2), np.nan), np.eye(5)[:, :2]),
            (np.zeros((4, 2)), np.zeros((5, 2))),
        ],
    )
    def test_refuses_points_that_decide_nothing(self, source, target):
        with pytest.raises(ValueError, match="similarity_transform"):
            al.similarity_transform(source, target)

    def test_half_pixel_convention_is_that_of_resizing(self):
        ramp = np.repeat(np.arange(64, dtype=np.float32)[None], 64, axis=0)
        half = cv2.resize(ramp, (32, 32), interpolation=cv2.INTER_AREA)  # its values are the x they came from
        at = al.scale_points([10.0, 0.0], 32, 64)[0]
        assert half[0, 10] == pytest.approx(at)
        np.testing.assert_allclose(al.template_points("ffhq", 256), (np.array(al.TEMPLATES["ffhq"]) + 0.5) / 2 - 0.5)

    def test_rescaled_matrix_is_the_resized_crop(self):
        matrix, point = similarity(0.7, 0.2, 5, 9), np.array([[40.0, 60.0]])
        expected = al.scale_points(al.transform_points(point, matrix), 512, 128)
        np.testing.assert_allclose(al.transform_points(point, al.rescale_matrix(matrix, 512, 128)), expected)

    def test_templates_are_the_published_points(self):
        gpen = [(202.04, 242.88), (309.43, 242.29), (256.08, 303.96), (211.96, 366.83), (300.89, 366.34)]
        ffhq = [(192.98, 239.95), (318.90, 240.19), (256.63, 314.02), (201.26, 371.41), (313.09, 371.15)]
        np.testing.assert_allclose(al.template_points("gpen"), gpen, atol=0.006)
        np.testing.assert_array_equal(al.template_points("ffhq"), ffhq)

    def test_unknown_template(self):
        with pytest.raises(ValueError, match="ffhq"):
            al.template_points("arcface")


class TestAlign:
    @pytest.mark.parametrize("scale", [0.15, 0.45, 0.8, 1.0, 2.5])
    def test_crop_shows_the_photo_at_the_mapped_points(self, scale):
        value, photo = smooth_picture(900, 800, (450, 400), wavelength=6 / min(scale, 1))
        matrix = al.invert_similarity(similarity(1 / scale, 0.3, 450 - 80 / scale, 400 - 128 / scale))
        points = al.transform_points(al.template_points("ffhq", 128), al.invert_similarity(matrix))
        crop, found = al.align_face(photo, points, 128, "ffhq")
        np.testing.assert_allclose(found, matrix, atol=1e-6)
        at = al.transform_points(np.stack(np.meshgrid(np.arange(128), np.arange(128)), -1), al.invert_similarity(found))
        inside = np.all((at > 2) & (at < np.array([897, 797])), axis=-1)
        error = np.abs(crop - value(at[..., 0], at[..., 1]))[inside]
        assert inside.mean() > 0.2
        assert error.max() < 2

    def test_shrinking_does_not_alias(self):
        noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), dtype=np.uint8)
        matrix = similarity(0.1, 0.4, 40, -30)
        points = al.transform_points(al.template_points("ffhq", 96), al.invert_similarity(matrix))
        crop, _ = al.align_face(noise, points, 96)
        naive = cv2.warpAffine(noise, matrix, (96, 96), flags=cv2.INTER_LINEAR)
        inside = (slice(40, 56),) * 2
        assert crop[inside].std() < 0.25 * naive[inside].std()  # each pixel averages about 100 independent ones
        assert crop[inside].mean() == pytest.approx(127.5, abs=3)

    @pytest.mark.parametrize("shift", [(-150, 0), (0, -150), (150, 150)])
    @pytest.mark.parametrize("scale", [0.2, 1.0])
    def test_mirrors_what_sticks_out(self, shift, scale):
        _, photo = smooth_picture(220, 220, (110, 110), wavelength=30)
        matrix = similarity(scale, 0.0, *(-np.array(shift) * scale))
        size = int(220 * scale)
        padded = cv2.copyMakeBorder(photo, 220, 220, 220, 220, cv2.BORDER_REFLECT)
        shifted = similarity(scale, 0.0, *(-(np.array(shift) + 220) * scale))
        expected = al.warp(padded, shifted, (size, size)).astype(int)
        assert np.abs(al.warp(photo, matrix, (size, size)) - expected).max() <= 3

    def test_constant_border(self):
        photo = np.full((50, 50, 3), 200, np.uint8)
        crop = al.warp(photo, similarity(1, 0, 25, 0), (50, 50), "constant", border_value=7)
        assert (crop[:, :24] == 7).all() and (crop[:, 26:] == 200).all()

    def test_refuses_a_face_outside_and_wrong_inputs(self):
        photo = np.zeros((50, 50, 3), np.uint8)
        far = al.template_points("ffhq", 64) + 500
        with pytest.raises(ValueError, match="outside"):
            al.align_face(photo, far, 64)
        with pytest.raises(ValueError, match="float64"):
            al.align_face(photo.astype(float), far, 64)
        with pytest.raises(ValueError, match="border"):
            al.warp(photo, similarity(1, 0, 0, 0), (8, 8), "wrap")

    @settings(deadline=None, max_examples=40)
    @given(
        seed=st.integers(0, 2**31),
        scale=st.floats(0.85, 3),
        border=st.sampled_from(sorted(al.BORDERS)),
        interpolation=st.sampled_from([cv2.INTER_LINEAR, cv2.INTER_CUBIC]),
    )
    def test_reading_only_a_part_changes_nothing(self, seed, scale, border, interpolation):
        """OpenCV's warp of the whole photo, where nothing shrinks by so much that it is averaged first."""
        rng = np.random.default_rng(seed)
        photo = cv2.GaussianBlur(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8), (0, 0), 2)
        to_photo = similarity(1 / scale, rng.uniform(-3, 3), *rng.uniform(10, 80, 2))
        matrix = al.invert_similarity(to_photo)
        options = {"borderMode": al.BORDERS[border], "borderValue": (9,) * 4}
        expected = cv2.warpAffine(photo, matrix, (70, 50), flags=interpolation, **options).astype(int)
        found = al.warp(photo, matrix, (70, 50), border, interpolation, border_value=9)
        assert np.abs(found - expected).max() <= 1


def test_importing_alignment_stays_light():
    code = "import sys, sgpn_data.alignment, sgpn_data.degradation; print({'torch', 'basicsr'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
