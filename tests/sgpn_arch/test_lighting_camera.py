"""Lighting against scipy's spherical harmonics, pose and camera against scipy and hand calculation, crops against OpenCV."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from scipy.spatial.transform import Rotation

from oracles import face3d as oracle
from sgpn_arch.face3d.camera import PinholeCamera, rotation_matrix
from sgpn_arch.face3d.crop224 import crop_to_224, invert_affine, pose_scale_translation, warp_affine
from sgpn_arch.face3d.lighting import sh_basis, shade

seeds = st.integers(0, 2**32 - 1)
# What Deep3DFaceRecon multiplies the harmonics of orders 0, 1 and 2 by.
BAND_FACTORS = (np.pi, 2 * np.pi / np.sqrt(3), 2 * np.pi / np.sqrt(8))


def unit_vectors(seed, count):
    vectors = np.random.default_rng(seed).normal(size=(count, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def complex_harmonic(order, degree, polar, azimuth):
    if hasattr(special, "sph_harm_y"):  # scipy >= 1.15
        return special.sph_harm_y(order, degree, polar, azimuth)
    return special.sph_harm(degree, order, azimuth, polar)


def real_harmonic(order, degree, directions):
    """Real spherical harmonic with the Condon-Shortley sign, degree -order..order."""
    polar, azimuth = np.arccos(directions[:, 2].clip(-1, 1)), np.arctan2(directions[:, 1], directions[:, 0])
    value = complex_harmonic(order, abs(degree), polar, azimuth)
    if degree == 0:
        return value.real
    return np.sqrt(2) * (value.real if degree > 0 else value.imag)


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_basis_is_scaled_real_harmonics(seed):
    directions = unit_vectors(seed, 20)
    expected = [
        BAND_FACTORS[order] * real_harmonic(order, degree, directions)
        for order in range(3)
        for degree in range(-order, order + 1)
    ]
    # The published factors have five decimals, and the largest polynomial they multiply is 2.
    np.testing.assert_allclose(sh_basis(torch.tensor(directions)), np.stack(expected, 1), atol=2e-5)


def test_shade_adds_ambient_light_and_keeps_colours_apart():
    rng = np.random.default_rng(0)
    albedo, normals, lighting = (
        rng.uniform(size=(2, 5, 3)),
        unit_vectors(1, 10).reshape(2, 5, 3),
        rng.normal(size=(2, 27)),
    )
    lit = shade(*(torch.tensor(value) for value in (albedo, normals, lighting)))
    basis = sh_basis(torch.tensor(normals)).numpy()
    for n in range(2):
        for vertex in range(5):
            for colour in range(3):
                gamma = lighting[n, 9 * colour : 9 * colour + 9].copy()
                gamma[0] += 0.8
                light = sum(gamma[k] * basis[n, vertex, k] for k in range(9))
                assert lit[n, vertex, colour].item() == pytest.approx(albedo[n, vertex, colour] * light)


def test_no_lighting_is_even_ambient_light():
    lit = shade(torch.ones(1, 6, 3), torch.tensor(unit_vectors(2, 6))[None].float(), torch.zeros(1, 27))
    np.testing.assert_allclose(lit, 0.8 * np.sqrt(np.pi) / 2, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_rotation_turns_about_x_then_y_then_z(seed):
    rng = np.random.default_rng(seed)
    angles, points = rng.uniform(-3, 3, (4, 3)), rng.normal(size=(4, 6, 3))
    turned = torch.tensor(points) @ rotation_matrix(torch.tensor(angles))
    for n in range(4):
        expected = Rotation.from_euler("xyz", angles[n]).apply(points[n])  # lower case: axes that stay fixed
        np.testing.assert_allclose(turned[n], expected, atol=1e-12)


def test_no_angles_no_rotation():
    assert torch.equal(rotation_matrix(torch.zeros(2, 3)), torch.eye(3).expand(2, 3, 3))


def test_projection_by_hand():
    camera = PinholeCamera()
    points = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0.3, -0.2, 2]]])
    pixels, depth = camera.project(points)
    expected = [[112, 112], [112 + 101.5, 112], [112, 112 - 101.5], [112 + 1015 * 0.3 / 8, 112 + 1015 * 0.2 / 8]]
    np.testing.assert_allclose(pixels[0], expected, atol=1e-4)
    np.testing.assert_allclose(depth[0], [10, 10, 10, 8])


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_projection_agrees_with_opencv(seed):
    """OpenCV's camera looks along +z with y down and calls a pixel by its centre."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-1.5, 1.5, (7, 3))
    camera = PinholeCamera(focal=700.0, size=320, distance=8.0)
    pixels, depth = camera.project(torch.tensor(points)[None])
    seen = points * [1, -1, -1] + [0, 0, 8]
    matrix = np.array([[700, 0, 159.5], [0, 700, 159.5], [0, 0, 1.0]])
    expected, _ = cv2.projectPoints(seen, np.zeros(3), np.zeros(3), matrix, np.zeros(4))
    np.testing.assert_allclose(pixels[0] - 0.5, expected[:, 0], atol=1e-6)
    np.testing.assert_allclose(depth[0], seen[:, 2])
    np.testing.assert_allclose(pixels[0, 0], oracle.pinhole(points[0], 700, 320, 8), atol=1e-9)


# ------------------------------------------------------------------------------------------- the regressor's crop


def scaled_orthographic(points, rotation, scale, shift):
    return scale * rotation.apply(points)[:, :2] * [1, -1] + shift


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(1, 300))
def test_pose_is_recovered_exactly(seed, scale):
    rng = np.random.default_rng(seed)
    points, shift = rng.normal(size=(6, 3)), rng.uniform(-500, 500, 2)
    seen = scaled_orthographic(points, Rotation.random(random_state=seed), scale, shift)
    found_scale, found_shift = pose_scale_translation(torch.tensor(seen)[None], torch.tensor(points))
    assert found_scale.item() == pytest.approx(scale, rel=1e-6)
    np.testing.assert_allclose(found_shift[0], shift, atol=1e-6 * (500 + scale))


@settings(max_examples=20, deadline=None)
@given(seeds, st.floats(20, 400))
def test_crop_puts_the_origin_in_the_middle_at_102_pixels_per_decimetre(seed, scale):
    rng = np.random.default_rng(seed)
    reference, shift = rng.normal(size=(5, 3)), rng.uniform(0, 512, 2)
    seen = scaled_orthographic(reference, Rotation.random(random_state=seed), scale, shift)
    matrix = crop_to_224(torch.tensor(seen)[None], torch.tensor(reference))[0].numpy()
    np.testing.assert_allclose(matrix @ [*shift, 1], [112, 112], atol=1e-4)
    np.testing.assert_allclose(matrix[:, :2], np.eye(2) * 102 / scale, rtol=1e-5, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_inverse_map(seed):
    matrix = np.random.default_rng(seed).normal(size=(3, 2, 3)) + np.eye(2, 3) * 3
    inverse = invert_affine(torch.tensor(matrix))
    for n in range(3):
        np.testing.assert_allclose(inverse[n], cv2.invertAffineTransform(matrix[n]), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(invert_affine(inverse), matrix, rtol=1e-6, atol=1e-8)


def smooth_picture(seed, size):
    """Colours 0..255 that change by no more than some grey levels from pixel to pixel."""
    noise = np.random.default_rng(seed).uniform(0, 255, (size, size, 3)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX)


def to_tensor(picture):
    return torch.from_numpy(picture).permute(2, 0, 1)[None]


@pytest.mark.parametrize("seed", range(6))
def test_warp_agrees_with_opencv(seed):
    rng = np.random.default_rng(seed)
    picture = smooth_picture(seed, 60)
    matrix = cv2.getRotationMatrix2D((30, 30), rng.uniform(-30, 30), rng.uniform(0.6, 1.8))
    matrix[:, 2] += rng.choice([-1, 1], 2) * rng.uniform(20, 30, 2)
    warped = warp_affine(to_tensor(picture), torch.from_numpy(matrix).float()[None], 64)[0].permute(1, 2, 0).numpy()
    expected = cv2.warpAffine(picture, matrix, (64, 64), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    covered = cv2.warpAffine(np.ones_like(picture), matrix, (64, 64), flags=cv2.INTER_LINEAR)
    error = np.abs(warped - expected)
    # OpenCV may round positions to 1/32 pixel, which shows where the picture falls to black within one pixel.
    within = (covered == 1) | (covered == 0)
    assert error[within].max() < 1 and error.max() < 255 / 32
    assert (covered == 1).mean() > 0.1 and (covered == 0).any()


def test_warp_by_whole_pixels_is_a_shift_and_the_border_is_black():
    picture = torch.rand(1, 2, 5, 5)
    shifted = warp_affine(picture, torch.tensor([[[1.0, 0, 2], [0, 1, 1]]]), 5)
    expected = torch.zeros_like(picture)
    expected[..., 1:, 2:] = picture[..., :4, :3]
    np.testing.assert_allclose(shifted, expected, atol=1e-5)


def test_warp_there_and_back():
    picture = to_tensor(smooth_picture(9, 64))
    matrix = torch.from_numpy(cv2.getRotationMatrix2D((32, 32), 20, 1.7)).float()[None]
    matrix[:, :, 2] += 30
    there = warp_affine(picture, matrix, 128)
    back = warp_affine(there, invert_affine(matrix), 64)
    inner = (slice(None), slice(None), slice(16, 48), slice(16, 48))
    assert (back - picture)[inner].abs().max() < 4


def test_warp_has_gradients():
    picture = torch.rand(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    matrix = torch.tensor([[[1.1, 0.2, 0.37], [-0.2, 0.9, 0.61]]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p, m: warp_affine(p, m, 5), (picture, matrix))
