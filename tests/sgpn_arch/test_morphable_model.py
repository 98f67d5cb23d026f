"""The morphable model's formulas against loops, its file format and errors, and the model that ships with the library."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy.spatial import ConvexHull

from oracles import face3d as oracle
from sgpn_arch.face3d.morphable_model import FORMAT, OPEN_MODEL_FILE, MorphableModel, five_points

seeds = st.integers(0, 2**32 - 1)


def draw(seed, *sizes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, size, generator=generator) for size in sizes]


@settings(max_examples=8, deadline=None)
@given(seeds)
def test_shape_and_albedo_are_the_papers_sums(seed):
    model = oracle.toy_model(seed % 5)
    identity, expression, texture = draw(seed, *model.dims)
    shape, albedo = model.shape(identity, expression), model.albedo(texture)
    for n in range(2):
        moved = oracle.linear_combination(model.shape_mean, model.id_basis, identity[n])
        moved = oracle.linear_combination(moved, model.exp_basis, expression[n])
        np.testing.assert_allclose(shape[n], moved, atol=1e-6)
        coloured = oracle.linear_combination(model.tex_mean, model.tex_basis, texture[n])
        np.testing.assert_allclose(albedo[n], coloured, atol=1e-6)


def test_mean_is_centred_and_kept():
    rng = np.random.default_rng(3)
    model = oracle.toy_model()
    parts = {key: getattr(model, key) for key in ("id_basis", "exp_basis", "tex_mean", "tex_basis", "triangles")}
    given_mean = torch.tensor(rng.normal(5, 1, model.shape_mean.shape))
    model = MorphableModel(given_mean, landmarks=model.landmarks, **parts)
    np.testing.assert_allclose(model.shape_mean.mean(0), 0, atol=1e-6)
    offset = given_mean - model.shape_mean
    np.testing.assert_allclose(offset, offset[:1].expand_as(offset), atol=1e-5)
    np.testing.assert_array_equal(model.reference5, five_points(model.shape_mean[model.landmarks]))
    own = MorphableModel(given_mean, landmarks=model.landmarks, reference5=torch.arange(15.0).view(5, 3), **parts)
    assert own.reference5.tolist() == torch.arange(15.0).view(5, 3).tolist()
    with pytest.raises(ValueError, match=r"reference5 has shape \(5, 2\), expected \(5, 3\)"):
        MorphableModel(given_mean, landmarks=model.landmarks, reference5=torch.zeros(5, 2), **parts)
    with pytest.raises(ValueError, match="face_normals is 'angle'; it may be area or unit"):
        MorphableModel(given_mean, landmarks=model.landmarks, face_normals="angle", **parts)


def with_triangles(triangles, face_normals):
    """A model of nothing but a mesh, to take normals of."""
    model = oracle.toy_model()
    model.triangles, model.face_normals = torch.as_tensor(triangles).long(), face_normals
    return model


@settings(max_examples=8, deadline=None)
@given(seeds, st.sampled_from(["area", "unit"]))
def test_normals_are_the_normalised_sum_of_the_triangles(seed, face_normals):
    model = oracle.toy_model()
    model.face_normals = face_normals
    vertices = model.shape_mean + 0.1 * draw(seed, model.shape_mean.numel())[0].view(2, -1, 3)
    normals = model.normals(vertices)
    for n in range(2):
        expected = oracle.vertex_normals(vertices[n], model.triangles, face_normals)
        np.testing.assert_allclose(normals[n], expected, atol=2e-5)


@pytest.mark.parametrize("face_normals", ["area", "unit"])
def test_normals_of_an_ellipsoid_are_its_gradient(face_normals):
    """x^2/a^2 + y^2/b^2 + z^2/c^2 = 1 has the outward normal (x/a^2, y/b^2, z/c^2)."""
    rng, axes = np.random.default_rng(0), np.array([1.0, 1.3, 0.8])
    directions = rng.normal(size=(4000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    hull = ConvexHull(directions)
    corners = directions[hull.simplices]
    inwards = np.linalg.det(corners) < 0  # counter-clockwise from outside, which the hull's order is not
    triangles = np.where(inwards[:, None], hull.simplices[:, ::-1], hull.simplices)
    vertices = directions * axes
    normals = with_triangles(triangles, face_normals).normals(torch.tensor(vertices)[None])[0].numpy()
    expected = vertices / axes**2
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    angles = np.degrees(np.arccos((normals * expected).sum(1).clip(-1, 1)))
    assert np.median(angles) < 1.5 and angles.max() < 15


def test_large_triangles_weigh_more_only_where_the_area_counts():
    """Two triangles at right angles, one four times as large as the other, share two vertices."""
    vertices = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 4, 0], [0, 0, 1]]])
    triangles = [[0, 1, 2], [0, 3, 1]]  # normals +z with area 2 and +y with area 1/2
    by_area, equally = (with_triangles(triangles, how).normals(vertices)[0, 0] for how in ("area", "unit"))
    np.testing.assert_allclose(by_area, np.array([0, 1, 4]) / np.sqrt(17), atol=1e-6)
    np.testing.assert_allclose(equally, np.array([0, 1, 1]) / np.sqrt(2), atol=1e-6)


def test_normals_of_a_tetrahedron_point_outwards_and_loose_vertices_have_none():
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [9, 9, 9]])
    model = oracle.toy_model()
    model.triangles = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    normals = model.normals(corners[None])[0]
    middle = corners[:4].mean(0)
    assert ((normals[:4] * (corners[:4] - middle)).sum(1) > 0).all()
    np.testing.assert_allclose(normals[:4].norm(dim=1), 1, atol=1e-6)
    assert (normals[4] == 0).all()


@pytest.mark.parametrize("face_normals", ["area", "unit"])
def test_gradients_of_shape_normals_and_albedo(face_normals):
    model = oracle.toy_model(side=9).double()
    model.face_normals = face_normals
    coefficients = [value[:1].double().requires_grad_() for value in draw(1, *model.dims)]

    def outputs(identity, expression, texture):
        shape = model.shape(identity, expression)
        return shape, model.normals(shape)[:, ::7], model.albedo(texture)

    assert torch.autograd.gradcheck(outputs, coefficients)
    assert torch.autograd.gradgradcheck(lambda i, e: outputs(i, e, coefficients[2])[1], coefficients[:2])


def test_five_points_are_eye_centres_nose_and_mouth_corners():
    points = np.random.default_rng(0).normal(size=(4, 68, 2))
    expected = [points[:, 36:42].mean(1), points[:, 42:48].mean(1), points[:, 30], points[:, 48], points[:, 54]]
    np.testing.assert_allclose(five_points(torch.tensor(points)), np.stack(expected, 1))


# ------------------------------------------------------------------------------------------- the file


def write(path, model, metadata=None, **changes):
    """Writes a model file by hand: int8 bases with a power of two as scale, so that nothing is lost."""
    tensors = {key: getattr(model, key).contiguous() for key in ("shape_mean", "tex_mean")}
    tensors |= {key: getattr(model, key).int() for key in ("triangles", "landmarks")}
    for key in ("id_basis", "exp_basis", "tex_basis"):
        basis = getattr(model, key)
        tensors[key] = torch.round(basis * 512).clamp(-127, 127).to(torch.int8)
        tensors[f"{key}_scale"] = torch.full((len(basis),), 1 / 512)
    tensors = {key: value for key, value in (tensors | changes).items() if value is not None}
    save_file(tensors, path, metadata={"format": FORMAT, "name": "written"} if metadata is None else metadata)
    return tensors


def test_load_undoes_the_quantisation(tmp_path):
    tensors = write(tmp_path / "model.safetensors", oracle.toy_model())
    model = MorphableModel.load(tmp_path / "model.safetensors")
    assert model.name == "written" and model.dims == (3, 2, 2)
    for key in ("id_basis", "exp_basis", "tex_basis"):
        np.testing.assert_array_equal(getattr(model, key), tensors[key].numpy() / np.float32(512))
    assert model.triangles.dtype == torch.int64
    np.testing.assert_array_equal(model.landmarks, tensors["landmarks"])


def test_bases_may_be_stored_as_they_are(tmp_path):
    toy = oracle.toy_model()
    write(tmp_path / "plain.safetensors", toy, id_basis=toy.id_basis, id_basis_scale=None)
    np.testing.assert_array_equal(MorphableModel.load(tmp_path / "plain.safetensors").id_basis, toy.id_basis)


def test_nameless_file_is_called_by_its_file_name(tmp_path):
    write(tmp_path / "custom.safetensors", oracle.toy_model(), metadata={"format": FORMAT})
    assert MorphableModel.load(tmp_path / "custom.safetensors").name == "custom"


def test_buffers_stay_out_of_checkpoints():
    assert not oracle.toy_model().state_dict()


BAD_FILES = {
    "another format": (dict(metadata={"format": "pictures"}), "format is 'pictures'"),
    "no metadata": (dict(metadata={}), "format is None"),
    "a tensor missing": (dict(tex_basis=None, tex_basis_scale=None), "lacks tex_basis"),
    "a basis of other vertices": (dict(exp_basis=torch.zeros(2, 5, 3)), r"exp_basis has shape \(2, 5, 3\)"),
    "texture of other vertices": (dict(tex_mean=torch.zeros(5, 3)), r"tex_mean has shape \(5, 3\)"),
    "a landmark out of range": (dict(landmarks=torch.arange(68) + 60), "landmarks points outside its 81 vertices"),
    "a negative landmark": (dict(landmarks=torch.arange(68) - 1), "landmarks points outside"),
    "a triangle out of range": (dict(triangles=torch.tensor([[0, 1, 81]])), "triangles points outside"),
    "too few landmarks": (dict(landmarks=torch.arange(5)), "5 landmarks, expected 68"),
    "no landmarks": (dict(landmarks=torch.zeros(0, dtype=torch.int32)), "0 landmarks, expected 68"),
}


@pytest.mark.parametrize("changes, message", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_refused_with_a_reason(tmp_path, changes, message):
    write(tmp_path / "bad.safetensors", oracle.toy_model(), **changes)
    with pytest.raises(ValueError, match=message):
        MorphableModel.load(tmp_path / "bad.safetensors")


def test_a_file_of_another_kind_is_refused_by_name(tmp_path):
    path = tmp_path / "photo.safetensors"
    path.write_bytes(b"\x89PNG and so on, but no tensors")
    with pytest.raises(ValueError, match=re.escape(str(path))):
        MorphableModel.load(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        MorphableModel.load(tmp_path / "nowhere.safetensors")


# ------------------------------------------------------------------------------------------- the open model


@pytest.fixture(scope="module")
def open_model():
    return MorphableModel.open()


def test_open_model_is_small_finite_and_free(open_model):
    from safetensors import safe_open

    assert OPEN_MODEL_FILE.stat().st_size <= 4_000_000
    assert all(value.float().isfinite().all() for value in load_file(OPEN_MODEL_FILE).values())
    with safe_open(OPEN_MODEL_FILE, "pt") as file:
        assert file.metadata()["licence"] == "CC0-1.0"
    assert open_model.dims[0] == 80 and open_model.dims[2] == 40
    assert open_model.tex_mean.min() >= 0 and open_model.tex_mean.max() <= 1


def test_open_model_uses_every_vertex_in_proper_triangles(open_model):
    triangles = open_model.triangles
    assert torch.equal(triangles.unique(), torch.arange(len(open_model.shape_mean)))
    assert all((triangles[:, i] != triangles[:, j]).all() for i, j in ((0, 1), (1, 2), (2, 0)))
    sides = torch.cat([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    # Equally turned neighbours run along their common side in opposite directions.
    assert len(sides.unique(dim=0)) == len(sides)


def test_open_model_faces_the_viewer(open_model):
    """Of what a camera before the face sees, nearly all shows its outer side."""
    mean, triangles = open_model.shape_mean.double().numpy(), open_model.triangles.numpy()
    normals = np.cross(*(mean[triangles[:, k]] - mean[triangles[:, 0]] for k in (1, 2)))
    order, pixels = np.argsort(mean[triangles, 2].mean(1)), {}
    for triangle in order:  # painter's algorithm on the triangles' middles: the nearest one stays
        x, y = np.round(mean[triangles[triangle], :2].mean(0) / 0.05).astype(int)
        pixels[x, y] = normals[triangle, 2] > 0
    assert np.mean(list(pixels.values())) > 0.97


def test_open_model_landmarks_are_symmetric_and_in_place(open_model):
    points = open_model.shape_mean[open_model.landmarks].double().numpy()
    middle = points[27:31, 0].mean()
    pairs = (
        [(i, 16 - i) for i in range(9)] + [(i, 43 - i) for i in range(17, 22)] + [(27 + i, 27 + i) for i in range(4)]
    )
    pairs += [(31, 35), (32, 34), (33, 33), (36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46)]
    pairs += [(48, 54), (49, 53), (50, 52), (51, 51), (59, 55), (58, 56), (57, 57), (60, 64), (61, 63), (62, 62)]
    pairs += [(67, 65), (66, 66)]
    for right, left in pairs:
        flipped = points[left] * [-1, 1, 1] + [2 * middle, 0, 0]
        assert np.abs(points[right] - flipped).max() < 0.03, (right, left)
    eyes = five_points(torch.tensor(points))[:2].numpy()
    assert 0.5 < eyes[1, 0] - eyes[0, 0] < 0.7
    brows, nose, mouth, chin = points[17:27, 1].mean(), points[30, 1], points[48:60, 1].mean(), points[8, 1]
    assert brows > eyes[:, 1].max() > nose > mouth > chin
    assert points[30, 2] == points[17:, 2].max()
    assert (np.diff(points[:9, 1]) < 0).all()  # the jaw falls to the chin, and bends inwards below the mouth
    assert (np.diff(points[5:9, 0]) > 0).all() and points[:5, 0].max() < points[5, 0]


def test_open_model_modes_are_ordered_and_moderate(open_model):
    norms = open_model.id_basis.double().flatten(1).norm(dim=1)
    assert (norms[1:] <= norms[:-1] * 1.001).all()  # 1.001: int8 rounding
    assert open_model.id_basis.norm(dim=2).max() < 0.3  # no sigma moves a vertex by more than 3 cm
    for basis in (open_model.exp_basis, open_model.tex_basis):
        assert (basis.abs().amax((1, 2)) > 0).all()


def test_open_model_identity_modes_are_orthogonal(open_model):
    modes = torch.nn.functional.normalize(open_model.id_basis.double().flatten(1), dim=1)[:40]
    off_diagonal = modes @ modes.T - torch.eye(40)
    assert off_diagonal.abs().max() < 0.05  # int8 rounding
