"""The Basel Face Model's files and the release's shape prior, against slow float64 definitions of every step."""

import cv2
import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import nn

from oracles import rasterizer
from oracles import released_fixtures as made
from oracles import released_geometry as oracle
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.face3d.shape_prior import ShapePrior

seeds = st.integers(0, 2**32 - 1)


class Watch(nn.Module):
    """A regressor that remembers the picture it was shown."""

    coeff_dim = made.COEFFICIENTS

    def forward(self, image):
        self.image = image
        return image.new_zeros(len(image), self.coeff_dim)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return made.write_bfm(tmp_path_factory.mktemp("bfm"))


@pytest.fixture(scope="module")
def bfm(path):
    return oracle.read_bfm(path)


@pytest.fixture(scope="module")
def model(path):
    return MorphableModel.from_bfm(path)


@pytest.fixture(scope="module")
def prior(model):
    return ShapePrior(Watch(), model, rasterizer="cpu", protocol="released").eval()


def near(found, expected, relative=1e-4):
    """Within a share of the expected values' range."""
    found, expected = (np.asarray(torch.as_tensor(v).detach(), np.float64) for v in (found, expected))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= relative * np.abs(expected).max()


def seen_points(seed, size, scale=(0.6, 1.6), noise=0.01):
    """Five points (5, 2) of a turned and tilted face on a crop of that size, OpenCV pixels."""
    rng = np.random.default_rng(seed)
    turned = Rotation.from_euler("zyx", rng.uniform(-0.4, 0.4, 3)).as_matrix()[:2, :2]
    points = (oracle.TEMPLATE - 256) / 512 @ turned.T * rng.uniform(*scale) + rng.uniform(0.4, 0.6, 2)
    return (points + rng.normal(0, noise, (5, 2))) * size


# --- The oracle itself ------------------------------------------------------------------------------------------------


def test_the_oracles_rotation_turns_about_x_then_y_then_z():
    angles = [0.3, -0.5, 0.7]
    np.testing.assert_allclose(oracle.rotation(angles).T, Rotation.from_euler("xyz", angles).as_matrix(), atol=1e-12)


def test_the_oracles_light_is_even_and_grey_at_the_released_offset():
    """0.8 in the constant band alone: every colour times 0.8 * sqrt(pi) / 2, wherever its normal points."""
    normals = Rotation.random(20, random_state=0).as_matrix()[:, 0]
    colours = np.random.default_rng(0).uniform(0, 255, (20, 3))
    np.testing.assert_allclose(oracle.light(colours, normals, np.zeros(27)), colours * 0.4 * np.pi**0.5, rtol=1e-5)


def test_the_oracles_bands_are_orthogonal():
    """Real spherical harmonics, each band times its factor: integrals over the sphere of products of two."""
    count = 4000
    z = 1 - (2 * np.arange(count) + 1) / count
    turn, across = np.arange(count) * np.pi * (3 - 5**0.5), np.sqrt(1 - z**2)
    sphere = np.stack([across * np.cos(turn), across * np.sin(turn), z], 1)
    bands = np.array([oracle.spherical_harmonics(normal) for normal in sphere])
    product = bands.T @ bands / count
    # Lambert's reflection keeps pi, 2 pi / 3 and pi / 4 of the three orders (the last is 2 pi / sqrt 8 in this code).
    gains = np.repeat([np.pi, 2 * np.pi / 3**0.5, 2 * np.pi / 8**0.5], [1, 3, 5])
    np.testing.assert_allclose(product, np.diag(gains**2 / (4 * np.pi)), atol=0.01)


def test_the_oracles_z_buffer_is_the_rasterisers(bfm):
    face = oracle.mesh(bfm, made.face_coefficients(1, 3)[0])
    points = face["points"] / 7
    ids, weights = oracle.z_buffer(points, face["depth"], bfm["tri"], 32)
    expected, barycentrics, _ = rasterizer.rasterize(points, face["depth"], bfm["tri"], (32, 32))
    assert (ids >= 0).mean() > 0.3
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(weights, barycentrics, atol=1e-9)


@settings(max_examples=5, deadline=None)
@given(seeds)
def test_the_oracles_warp_is_opencvs(seed):
    rng = np.random.default_rng(seed)
    picture = cv2.GaussianBlur(rng.uniform(-1, 1, (96, 96, 3)), (0, 0), 2)
    matrix = np.array([[1.3, 0.2, -9.0], [-0.2, 1.3, 4.5]]) + rng.uniform(-0.1, 0.1, (2, 3))
    found, expected = (warp(picture, matrix, 120) for warp in (oracle.bilinear, oracle.bilinear_cv2))
    # Older versions of OpenCV round positions to 1/32 pixel.
    np.testing.assert_allclose(found, expected, atol=0.02)


# --- The file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_shape_and_albedo_are_the_files(model, bfm, seed):
    coefficients = made.face_coefficients(1, seed)
    parts = oracle.split(coefficients[0])
    identity, expression, texture = (
        torch.tensor(parts[name], dtype=torch.float32)[None] for name in ("identity", "expression", "texture")
    )
    near(model.shape(identity, expression)[0], oracle.shape(bfm, parts["identity"], parts["expression"]))
    colours = oracle.albedo(bfm, parts["texture"])
    assert colours.min() > 0 and colours.max() < 255
    near(model.albedo(texture)[0], colours / 255)


def test_the_mean_face_is_centred(model, bfm):
    assert np.abs(bfm["meanshape"].reshape(-1, 3).mean(0)).min() > 0.05
    near(model.shape(torch.zeros(1, 80), torch.zeros(1, 64))[0].mean(0) + 1, np.ones(3))


def test_triangles_landmarks_and_alignment_points(model, bfm):
    assert model.landmarks.tolist() == bfm["keypoints"][0].tolist()
    ours, files = ({tuple(np.roll(t, -t.argmin())) for t in np.asarray(a)} for a in (model.triangles, bfm["tri"]))
    assert ours == files  # in any order, but with the sense of rotation
    near(model.reference5, oracle.five_of(bfm["lm"]))


@pytest.mark.parametrize("seed", [0, 1])
def test_normals_are_weighted_by_area(model, bfm, seed):
    rng = np.random.default_rng(seed)
    vertices = bfm["meanshape"].reshape(-1, 3) + rng.normal(0, 0.03, (400, 3))  # triangles of very unlike areas
    expected = oracle.normals(bfm, vertices)
    near(model.normals(torch.tensor(vertices, dtype=torch.float32)[None])[0], expected)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-9)
    front = model.normals(model.shape(torch.zeros(1, 80), torch.zeros(1, 64)))
    assert (front[..., 2] > 0).all()


@pytest.mark.parametrize("name", ["BFM_model_front.mat", "BFM09_model_info.mat"])
def test_directory_and_file_are_the_same_model(tmp_path, name):
    path = made.write_bfm(tmp_path, vertices=225, name=name)
    first, second = (MorphableModel.from_bfm(where).state_dict() for where in (path, str(path.parent)))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_indices_stored_as_doubles_are_read_too(tmp_path):
    def as_doubles(arrays):
        for name in ("tri", "point_buf", "keypoints", "meanshape", "idBase"):
            arrays[name] = arrays[name].astype(np.float64)

    plain = MorphableModel.from_bfm(made.write_bfm(tmp_path / "plain", vertices=225))
    doubles = MorphableModel.from_bfm(made.write_bfm(tmp_path / "doubles", vertices=225, change=as_doubles))
    assert torch.equal(plain.triangles, doubles.triangles) and torch.equal(plain.landmarks, doubles.landmarks)
    torch.testing.assert_close(plain.id_basis, doubles.id_basis)


@pytest.mark.parametrize("name", ["meanshape", "meantex", "idBase", "exBase", "texBase", "tri", "keypoints"])
def test_a_missing_array_is_named(tmp_path, name):
    path = made.write_bfm(tmp_path, vertices=225, change=lambda arrays: arrays.pop(name))
    with pytest.raises(ValueError, match=name):
        MorphableModel.from_bfm(path)


@pytest.mark.parametrize(
    "name, cut",
    [
        ("meanshape", np.s_[:, :-1]),
        ("meantex", np.s_[:, :-3]),
        ("idBase", np.s_[:-3]),
        ("exBase", np.s_[:-1]),
        ("texBase", np.s_[3:]),
        ("tri", np.s_[:, :2]),
        ("tri", np.s_[:-2, :2]),  # 780 numbers, as 260 triangles have, but that they are not
        ("keypoints", np.s_[:, :67]),
    ],
)
def test_a_wrong_shape_is_named(tmp_path, name, cut):
    def change(arrays):
        arrays[name] = arrays[name][cut]

    with pytest.raises(ValueError, match=f"{name}|[0-9]+ landmarks"):
        MorphableModel.from_bfm(made.write_bfm(tmp_path, vertices=225, change=change))


@pytest.mark.parametrize("name", ["tri", "idBase", "exBase", "texBase"])
def test_a_transposed_array_is_refused(tmp_path, name):
    def change(arrays):
        arrays[name] = arrays[name].T

    with pytest.raises(ValueError, match=name):
        MorphableModel.from_bfm(made.write_bfm(tmp_path, vertices=225, change=change))


@pytest.mark.parametrize("name", ["tri", "keypoints"])
@pytest.mark.parametrize("index", [0, -1, 226, 2**31 - 1])
def test_an_index_out_of_range_is_named(tmp_path, name, index):
    def change(arrays):
        arrays[name][-1, -1] = index

    with pytest.raises(ValueError, match=name):
        MorphableModel.from_bfm(made.write_bfm(tmp_path, vertices=225, change=change))


@pytest.mark.parametrize("name", ["meanshape", "texBase"])
def test_numbers_that_are_not_finite_are_named(tmp_path, name):
    def change(arrays):
        arrays[name][-1, -1] = np.nan

    with pytest.raises(ValueError, match=name):
        MorphableModel.from_bfm(made.write_bfm(tmp_path, vertices=225, change=change))


def test_what_is_no_such_file_is_named(tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match="nothing"):
        MorphableModel.from_bfm(tmp_path / "nothing.mat")
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match="empty"):
        MorphableModel.from_bfm(tmp_path / "empty")
    for name, content in (("text.mat", b"no face\n" * 40), ("short.mat", b""), ("cut.mat", b"MATLAB 5.0 MAT-file")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            MorphableModel.from_bfm(tmp_path / name)
    scipy.io.savemat(tmp_path / "other.mat", {"lm": np.zeros((68, 3))})
    with pytest.raises(ValueError, match=r"other\.mat"):
        MorphableModel.from_bfm(tmp_path / "other.mat")


def test_a_file_that_ends_early_is_named(tmp_path):
    path = made.write_bfm(tmp_path, vertices=225)
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(ValueError, match=path.name):
        MorphableModel.from_bfm(path)


# --- The 224-pixel crop -----------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from([512, 256, 300]))
def test_transform_is_the_releases(prior, bfm, seed, size):
    points = np.stack([seen_points(seed, size), seen_points(seed + 1, size)])
    matrices = prior.transform(torch.tensor(points), size).double().numpy()
    corners = np.array([[0, 0, 1], [size - 1, 0, 1], [0, size - 1, 1], [size - 1, size - 1, 1]])
    for matrix, five in zip(matrices, points, strict=True):
        expected = oracle.crop_matrix(five, oracle.five_of(bfm["lm"]), size)
        assert np.abs(expected).max() > 1
        np.testing.assert_allclose(corners @ matrix.T, corners @ expected.T, atol=1e-3)


@pytest.mark.parametrize("size", [512, 256])
def test_the_regressor_sees_the_crop_the_release_shows_it(prior, bfm, size):
    rng = np.random.default_rng(size)
    crop = cv2.GaussianBlur(rng.uniform(-1, 1, (size, size, 3)), (0, 0), 1.5).astype(np.float32)
    points = seen_points(3, size, (1.4, 1.6)) + [0.15 * size, -0.2 * size]  # some of the picture lies beyond the crop
    transform = prior.transform(torch.tensor(points)[None], size)
    prior.coefficients(torch.tensor(crop).permute(2, 0, 1)[None], transform.float())
    matrix = oracle.crop_matrix(points, oracle.five_of(bfm["lm"]), size)
    expected = oracle.regressor_input(crop, matrix)
    beyond = (expected == 0.5).all(-1)
    assert 0.01 < beyond.mean() < 0.6
    image = prior.regressor.image[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(image, expected, atol=1e-3)
    np.testing.assert_allclose(image, oracle.bilinear_cv2(crop, matrix, 224) * 0.5 + 0.5, atol=0.01)


# --- Mesh, light and camera -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
@torch.no_grad()
def test_mesh_and_landmarks_are_the_releases(prior, bfm, seed):
    coefficients = made.face_coefficients(1, seed)
    face, expected = prior.mesh(coefficients), oracle.mesh(bfm, coefficients[0])
    colours = expected["colours"]
    assert colours.min() > 0 and colours.max() < 255 and colours.std() > 10
    near(face.vertices[0], expected["vertices"])
    near(face.colors[0], colours / 255)
    near(face.points[0], expected["points"])
    near(face.depth[0], expected["depth"])
    near(prior.landmarks224(face)[0], oracle.landmarks(bfm, expected) - 0.5)


@torch.no_grad()
def test_every_light_coefficient_lights_its_own_band_and_colour(prior, bfm):
    """One at a time, so that no two of the 27 can be exchanged."""
    lit = made.face_coefficients(27, 5)
    lit[:, made.LIGHTING] = 0.3 * torch.eye(27)
    lit[:, : made.LIGHTING.start] = lit[0, : made.LIGHTING.start].clone()
    lit[:, made.LIGHTING.stop :] = lit[0, made.LIGHTING.stop :].clone()
    parts = oracle.split(lit[0])
    still = oracle.shape(bfm, parts["identity"], parts["expression"])
    normals = oracle.normals(bfm, still) @ oracle.rotation(parts["angles"])
    colours = oracle.albedo(bfm, parts["texture"])
    for number, found in enumerate(prior.mesh(lit).colors):
        expected = oracle.light(colours, normals, lit[number, made.LIGHTING]) / 255
        unclamped = (expected > 0) & (expected < 1)
        assert unclamped.mean() > 0.9
        np.testing.assert_allclose(np.asarray(found)[unclamped], expected[unclamped], atol=1e-4)


# --- The drawing ------------------------------------------------------------------------------------------------------


def silhouette_band(alpha, matrix, size):
    """Which pixels of the crop take from a 224 pixel next to one on the other side of the silhouette, (S, S) bool."""
    kernel = np.ones((3, 3))
    band = cv2.dilate(alpha, kernel) != cv2.erode(alpha, kernel)
    return oracle.bilinear(band.astype(float), oracle.invert(matrix), size) > 0


@pytest.mark.parametrize("seed, size, light", [(0, 512, 0.06), (1, 256, 0.06), (2, 300, 1.0)])
@torch.no_grad()
def test_drawing_is_the_releases(prior, bfm, seed, size, light):
    coefficients = made.face_coefficients(1, seed, light)
    points = seen_points(seed, size, (1.1, 1.6))
    transform = prior.transform(torch.tensor(points)[None], size).float()
    result = prior.draw(coefficients, transform, size)
    matrix = oracle.crop_matrix(points, oracle.five_of(bfm["lm"]), size)
    face = oracle.mesh(bfm, coefficients[0])
    picture, alpha = oracle.render(bfm, face)
    if light == 1.0:  # Much is too bright or too dark: limited after, not before, it is interpolated.
        early = {**face, "colours": face["colours"].clip(0, 255)}
        assert np.abs(oracle.render(bfm, early)[0] - picture).max() > 10
    render, mask = oracle.on_crop(picture, alpha, matrix, size)
    sure = ~silhouette_band(alpha, matrix, size)
    assert 0.2 < mask.mean() < 0.9 and sure.mean() > 0.85
    found, found_mask = result.render[0].permute(1, 2, 0).numpy(), result.mask[0, 0].numpy()
    assert result.render.shape == (1, 3, size, size) and result.mask.shape == (1, 1, size, size)
    assert np.abs(found - render)[sure].max() * 127.5 <= 1
    assert np.abs(found_mask - mask)[sure].max() < 1e-3
    assert np.abs(found_mask - mask).mean() < 1e-3  # nor does the silhouette move as a whole
    assert np.abs(found[(mask == 0) & sure] + 1).max() < 1e-6
