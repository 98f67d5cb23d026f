"""Lighting against scipy's spherical harmonics and integrals over the sphere, pose and camera against scipy and OpenCV."""

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


def sphere_quadrature(polar=12, azimuth=24):
    """Directions (K, 3) and weights (K,) that integrate polynomials of low degree over the sphere exactly."""
    z, weight = np.polynomial.legendre.leggauss(polar)
    turn = 2 * np.pi * np.arange(azimuth) / azimuth
    z, turn = (grid.ravel() for grid in np.meshgrid(z, turn, indexing="ij"))
    radius = np.sqrt(1 - z**2)
    directions = np.stack([radius * np.cos(turn), radius * np.sin(turn), z], 1)
    return directions, np.repeat(weight, azimuth) * 2 * np.pi / azimuth


def test_basis_is_orthogonal_over_the_sphere():
    directions, weights = sphere_quadrature()
    basis = sh_basis(torch.tensor(directions)).numpy()
    expected = np.diag(np.repeat(np.square(BAND_FACTORS), [1, 3, 5]))
    np.testing.assert_allclose(basis.T @ (weights[:, None] * basis), expected, atol=2e-4)


@pytest.mark.parametrize("seed", range(3))
def test_shading_is_the_cosine_weighted_integral_of_a_smooth_environments_light(seed):
    """With each order's coefficients brought to Lambert's factors, pi, 2 pi / 3 and pi / 4 (less the ambient term)."""
    light = np.random.default_rng(seed).normal(size=9)
    degrees = [(order, degree) for order in range(3) for degree in range(-order, order + 1)]
    directions, weights = sphere_quadrature(400, 800)
    radiance = sum(c * real_harmonic(*lm, directions) for c, lm in zip(light, degrees, strict=True))
    normals = unit_vectors(seed, 6)
    expected = (np.maximum(normals @ directions.T, 0) * radiance * weights).sum(1)
    lambert = np.repeat([np.pi, 2 * np.pi / 3, np.pi / 4], [1, 3, 5]) / np.repeat(BAND_FACTORS, [1, 3, 5])
    gamma = np.tile(light * lambert - 0.8 * np.eye(9)[0], 3)
    lit = shade(torch.ones(1, 6, 3).double(), torch.tensor(normals)[None], torch.tensor(gamma)[None])
    np.testing.assert_allclose(lit[0], np.repeat(expected[:, None], 3, 1), atol=2e-4)


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


def test_lighting_rotation_and_camera_have_right_first_and_second_gradients():
    albedo, lighting = torch.rand(1, 2, 3).double(), torch.randn(1, 27).double()
    normals, angles = torch.tensor(unit_vectors(3, 2))[None], torch.randn(2, 3).double()
    cases = [(shade, (albedo, normals, lighting)), (rotation_matrix, (angles,)), (PinholeCamera().project, (albedo,))]
    for function, inputs in cases:
        inputs = [value.requires_grad_() for value in inputs]
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)
