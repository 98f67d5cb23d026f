"""The regressor's crop: POS against stacked least squares, both protocols step by step, warps against scipy and OpenCV."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from skimage.transform import SimilarityTransform

from oracles import face3d as oracle
from sgpn_arch.face3d.crop224 import (
    crop_to_224,
    invert_affine,
    pose_scale_translation,
    released_crop_to_224,
    warp_affine,
)

seeds = st.integers(0, 2**32 - 1)
# Five points of a face in decimetres, y up: eyes, nose tip, corners of the mouth.
FACE = np.array([[-0.31, 0.29, 0.13], [0.31, 0.29, 0.13], [0, -0.05, 0.55], [-0.25, -0.38, 0.22], [0.25, -0.38, 0.22]])


def seen_face(seed, size, noise):
    """FACE as a turned head shows it on a crop (5, 2), OpenCV pixels, its points found with some error."""
    rng = np.random.default_rng(seed)
    turned = Rotation.from_euler("xyz", rng.uniform(-0.4, 0.4, 3)).apply(FACE)[:, :2] * [1, -1]
    points = turned * rng.uniform(0.1, 0.4) * size + rng.uniform(0.4, 0.6, 2) * size
    return points + noise * rng.normal(size=(5, 2))


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(0, 30))
def test_pose_is_the_least_squares_of_the_stacked_system(seed, noise):
    points = seen_face(seed, 512, noise)
    scale, shift = pose_scale_translation(torch.tensor(points)[None], torch.tensor(FACE))
    expected_scale, expected_shift = oracle.pose_scale_translation(points, FACE)
    assert scale.item() == pytest.approx(expected_scale, rel=1e-9)
    np.testing.assert_allclose(shift[0], expected_shift, rtol=1e-9)


@settings(max_examples=20, deadline=None)
@given(seeds, st.floats(20, 400))
def test_pose_of_an_exact_view_is_its_scale_and_where_the_origin_falls(seed, scale):
    rng = np.random.default_rng(seed)
    points, shift = rng.normal(size=(6, 3)), rng.uniform(-500, 500, 2)
    seen = scale * Rotation.random(random_state=seed).apply(points)[:, :2] * [1, -1] + shift
    found_scale, found_shift = pose_scale_translation(torch.tensor(seen)[None], torch.tensor(points))
    assert found_scale.item() == pytest.approx(scale, rel=1e-6)
    np.testing.assert_allclose(found_shift[0], shift, atol=1e-6 * (500 + scale))


@settings(max_examples=20, deadline=None)
@given(seeds, st.sampled_from([224, 160]))
def test_crop_puts_the_origin_in_the_middle_at_102_pixels_per_decimetre(seed, size):
    points = np.stack([seen_face(seed, 300, 3.0), seen_face(seed + 1, 300, 3.0)])
    matrices = crop_to_224(torch.tensor(points), torch.tensor(FACE), size).numpy()
    for matrix, seen in zip(matrices, points, strict=True):
        scale, shift = oracle.pose_scale_translation(seen, FACE)
        np.testing.assert_allclose(matrix @ [*shift, 1], [size / 2, size / 2], atol=1e-7)
        np.testing.assert_allclose(matrix[:, :2], np.eye(2) * 102 / scale, rtol=1e-7, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from([512, 256, 300]))
def test_released_crop_is_the_fit_to_points_moved_as_the_release_moves_them(seed, size):
    """Rows counted from below, a crop enlarged to a whole number of pixels, its middle cut out, and Umeyama's fit."""
    points = seen_face(seed, size, 2.0)
    upwards = points * [1, -1] + [0, size - 1]
    scale, shift = oracle.pose_scale_translation(upwards, FACE)
    zoom = 102 / scale
    whole = int(size * zoom)
    moved = (upwards - shift + size / 2) * zoom - (whole / 2 - 112)
    expected = SimilarityTransform.from_estimate(points, moved * [1, -1] + [0, 223]).params[:2]
    matrix = released_crop_to_224(torch.tensor(points)[None], torch.tensor(FACE), size)[0]
    np.testing.assert_allclose(matrix, expected, atol=1e-7)
    # The open protocol differs by no more than these roundings.
    plain = crop_to_224(torch.tensor(points)[None], torch.tensor(FACE))[0]
    assert (matrix - plain).abs().max() <= 1.5 + 1e-9


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_inverse_map(seed):
    matrix = np.random.default_rng(seed).normal(size=(3, 2, 3)) + np.eye(2, 3) * 3
    inverse = invert_affine(torch.tensor(matrix))
    for n in range(3):
        np.testing.assert_allclose(inverse[n], cv2.invertAffineTransform(matrix[n]), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(invert_affine(inverse), matrix, rtol=1e-6, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from([(9, 14), (14, 9), (12, 12)]), st.integers(6, 20))
def test_warp_is_bilinear_interpolation_at_the_inverse_of_each_pixel(seed, extent, size):
    """Each pixel's four neighbours in float64, on pictures that are not square, with those beyond the border black."""
    rng = np.random.default_rng(seed)
    pictures = rng.uniform(-1, 1, (2, 3, *extent))
    matrices = rng.normal(scale=[0.4, 0.4, 3], size=(2, 2, 3)) + np.eye(2, 3) * rng.uniform(0.7, 2)
    if np.abs(np.linalg.det(matrices[..., :2])).min() < 0.1:
        return
    warped = warp_affine(torch.tensor(pictures), torch.tensor(matrices), size)
    for n in range(2):
        np.testing.assert_allclose(warped[n], oracle.warp(pictures[n], matrices[n], size), atol=1e-9)


def smooth_picture(seed, size):
    """Colours 0..255 that change by no more than some grey levels from pixel to pixel."""
    noise = np.random.default_rng(seed).uniform(0, 255, (size, size, 3)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX)


@pytest.mark.parametrize("seed", range(6))
def test_warp_agrees_with_opencv(seed):
    rng = np.random.default_rng(seed)
    picture = smooth_picture(seed, 60)
    tensor = torch.from_numpy(picture).permute(2, 0, 1)[None]
    matrix = cv2.getRotationMatrix2D((30, 30), rng.uniform(-30, 30), rng.uniform(0.6, 1.8))
    matrix[:, 2] += rng.choice([-1, 1], 2) * rng.uniform(20, 30, 2)
    warped = warp_affine(tensor, torch.from_numpy(matrix).float()[None], 64)[0].permute(1, 2, 0).numpy()
    expected = cv2.warpAffine(picture, matrix, (64, 64), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    covered = cv2.warpAffine(np.ones_like(picture), matrix, (64, 64), flags=cv2.INTER_LINEAR)
    error = np.abs(warped - expected)
    # OpenCV may round positions to 1/32 pixel, which shows where the picture falls to black within one pixel.
    within = (covered == 1) | (covered == 0)
    assert error[within].max() < 1 and error.max() < 255 / 32
    assert (covered == 1).mean() > 0.1 and (covered == 0).any()


def test_crop_and_warp_have_right_first_and_second_gradients():
    picture = torch.rand(1, 1, 6, 5, dtype=torch.float64, requires_grad=True)
    matrix = torch.tensor([[[1.1, 0.2, 0.37], [-0.2, 0.9, 0.61]]], dtype=torch.float64, requires_grad=True)
    points = torch.tensor(seen_face(0, 512, 3.0))[None].requires_grad_()
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda p, m: warp_affine(p, m, 5), (picture, matrix))
        assert check(lambda p: crop_to_224(p, torch.tensor(FACE)), points)
