"""The shipped open morphable model: the asset file itself, read without the library."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

ASSET = Path(__file__).resolve().parents[2] / "sgpn_arch" / "assets" / "open_face.safetensors"
FLIP = np.array([-1.0, 1.0, 1.0])
# Mirrored iBUG landmarks, numbered from 1 as in the literature.
MIRRORED = {
    **{k: 18 - k for k in range(1, 10)},
    **{k: 45 - k for k in range(18, 23)},
    **dict(zip([28, 29, 30, 31, 32, 33, 34], [28, 29, 30, 31, 36, 35, 34], strict=True)),
    **dict(zip([37, 38, 39, 40, 41, 42], [46, 45, 44, 43, 48, 47], strict=True)),
    **dict(zip([49, 50, 51, 52, 58, 59, 60], [55, 54, 53, 52, 58, 57, 56], strict=True)),
    **dict(zip([61, 62, 63, 67, 68], [65, 64, 63, 67, 66], strict=True)),
}


@pytest.fixture(scope="module")
def metadata() -> dict[str, str]:
    with safe_open(str(ASSET), framework="numpy") as file:
        return file.metadata()


@pytest.fixture(scope="module")
def model() -> dict[str, np.ndarray]:
    with safe_open(str(ASSET), framework="numpy") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    for name in ("id_basis", "exp_basis", "tex_basis"):
        scale = tensors.pop(f"{name}_scale")
        assert tensors[name].dtype == np.int8 and scale.shape == tensors[name].shape[:1]
        tensors[name] = tensors[name] * scale.astype(np.float64)[:, None, None]
    return tensors


def marks(model, first: int, last: int) -> np.ndarray:
    """Positions of the iBUG landmarks first..last (from 1)."""
    return model["shape_mean"][model["landmarks"][first - 1 : last]]


def pieces(triangles: np.ndarray, count: int) -> np.ndarray:
    """Number of the connected piece of every vertex, by plain label spreading."""
    label = np.arange(count)
    while True:
        lowest = label.copy()
        smallest = label[triangles].min(1)
        for k in range(3):
            np.minimum.at(lowest, triangles[:, k], smallest)
        if np.array_equal(lowest, label):
            return label
        label = lowest


def test_file_is_small_and_says_what_it_is(metadata):
    assert ASSET.stat().st_size <= 4_000_000
    assert metadata["format"] == "sgpn-morphable-model"
    assert metadata["licence"].startswith("CC0")
    assert all(metadata[key] for key in ("name", "version", "source", "made_by", "units"))


def test_shapes_fit_together_and_all_is_finite(model):
    vertices = len(model["shape_mean"])
    assert 4000 <= vertices <= 7000
    for name, dims in (("id_basis", 80), ("exp_basis", 52), ("tex_basis", 40)):
        assert model[name].shape == (dims, vertices, 3)
    assert model["tex_mean"].shape == model["shape_mean"].shape == (vertices, 3)
    assert model["landmarks"].shape == (68,)
    assert all(np.isfinite(value).all() for value in model.values())


def test_every_vertex_is_used_and_no_triangle_is_degenerate(model):
    triangles = model["triangles"].astype(int)
    assert np.array_equal(np.unique(triangles), np.arange(len(model["shape_mean"])))
    a, b, c = (model["shape_mean"][triangles[:, k]].astype(np.float64) for k in range(3))
    assert (np.linalg.norm(np.cross(b - a, c - a), axis=1) > 1e-8).all()
    assert len(np.unique(np.sort(triangles, axis=1), axis=0)) == len(triangles)


def test_neighbouring_triangles_agree_in_orientation(model):
    triangles = model["triangles"].astype(int)
    directed = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    assert len(np.unique(directed, axis=0)) == len(directed), "an edge runs twice in the same direction"


def test_triangles_of_the_face_front_face_the_viewer(model):
    points, triangles = model["shape_mean"].astype(np.float64), model["triangles"].astype(int)
    corner = points[triangles]
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    # The outermost triangle on a ray from the viewer must face them: probe a grid over the face.
    eye_height, chin = marks(model, 37, 48)[:, 1].mean(), marks(model, 9, 9)[0, 1]
    facing = []
    for x in np.linspace(-0.4, 0.4, 9):
        for y in np.linspace(chin + 0.1, eye_height + 0.5, 15):
            a, b, c = (corner[:, k, :2] - [x, y] for k in range(3))
            signs = np.stack([p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0] for p, q in ((a, b), (b, c), (c, a))])
            hit = np.flatnonzero((signs > 0).all(0) | (signs < 0).all(0))
            assert len(hit), f"hole in the face at {(x, y)}"
            facing.append(normal[hit[corner[hit, :, 2].mean(1).argmax()], 2] > 0)
    assert all(facing)


def test_eyeballs_teeth_and_head_point_outwards(model):
    points, triangles = model["shape_mean"].astype(np.float64), model["triangles"].astype(int)
    label = pieces(triangles, len(points))
    assert len(np.unique(label)) >= 3  # the head and two eyeballs at least
    for piece in np.unique(label):
        t = triangles[label[triangles[:, 0]] == piece]
        centre = points[t].mean((0, 1))
        normal = np.cross(points[t[:, 1]] - points[t[:, 0]], points[t[:, 2]] - points[t[:, 0]])
        assert ((points[t].mean(1) - centre) * normal).sum() > 0


def test_mean_is_centred_upright_and_life_size(model):
    assert np.abs(model["shape_mean"].mean(0)).max() < 1e-3
    right, left = marks(model, 37, 42).mean(0), marks(model, 43, 48).mean(0)
    assert right[0] < 0 < left[0]
    assert 0.6 <= np.linalg.norm(left - right) <= 0.65
    nose, mouth, chin = marks(model, 31, 31)[0], marks(model, 49, 68).mean(0), marks(model, 9, 9)[0]
    assert right[1] > nose[1] > mouth[1] > chin[1]
    assert nose[2] > mouth[2] > right[2]


def test_landmarks_are_distinct_and_mirror_images(model):
    points, index = model["shape_mean"], model["landmarks"]
    assert len(set(index.tolist())) == 68
    for one, other in MIRRORED.items():
        np.testing.assert_allclose(points[index[one - 1]], points[index[other - 1]] * FLIP, atol=2e-3)


def test_landmarks_follow_the_ibug_order(model):
    assert (np.diff(marks(model, 1, 17)[4:13, 0]) > 0).all()  # jaw from the image's left to its right
    assert (np.diff(marks(model, 1, 9)[:, 1]) < 0).all()  # down to the chin
    assert (np.diff(marks(model, 18, 27)[:, 0]) > 0).all()
    assert (np.diff(marks(model, 28, 31)[:, 1]) < 0).all() and (np.diff(marks(model, 28, 31)[:, 2]) > 0).all()
    assert (np.diff(marks(model, 32, 36)[:, 0]) > 0).all()
    for first in (37, 43):
        ring = marks(model, first, first + 5)
        assert ring[:, 0].argmin() == 0 and ring[:, 0].argmax() == 3
        assert ring[1:3, 1].min() > ring[4:6, 1].max()  # upper lid above the lower
    assert (marks(model, 18, 22)[:, 1] > marks(model, 37, 42)[:, 1].max()).all()
    outer, inner = marks(model, 49, 60), marks(model, 61, 68)
    assert (np.diff(outer[:7, 0]) > 0).all() and (np.diff(outer[7:, 0]) < 0).all()
    assert outer[1:6, 1].min() > inner[1:4, 1].max() >= inner[1:4, 1].min() > inner[5:8, 1].max() > outer[7:, 1].max()


def test_mean_mesh_is_symmetric(model):
    points = model["shape_mean"].astype(np.float64)
    mirrored = points * FLIP
    nearest = [((points - spot) ** 2).sum(1).min() for spot in mirrored[::7]]
    assert np.sqrt(max(nearest)) < 2e-3


def test_identity_modes_are_orthogonal_and_ordered(model):
    flat = model["id_basis"].reshape(80, -1)
    norms = np.linalg.norm(flat, axis=1)
    assert (np.diff(norms) <= 1e-3 * norms[:-1]).all()
    cosine = (flat @ flat.T) / np.outer(norms, norms)
    # int8 rounding leaves a little correlation.
    assert np.abs(cosine - np.eye(80)).max() < 0.01


def test_expression_modes_are_ordered_and_lead_back_to_the_arkit_units(model, metadata):
    flat = model["exp_basis"].reshape(52, -1)
    norms = np.linalg.norm(flat, axis=1)
    assert (np.diff(norms) <= 0.01 * norms[:-1]).all()  # int8 rounding may swap near equals
    units = json.loads(metadata["exp_units"])
    assert len(units) == 52 and all(len(row) == 52 for row in units.values())
    moved = {
        name: np.tensordot(units[name], model["exp_basis"], 1) for name in ("jawOpen", "eyeBlinkLeft", "mouthSmileLeft")
    }
    index = model["landmarks"]
    assert moved["jawOpen"][index[8], 1] < -0.1  # the chin drops by more than a centimetre
    assert np.abs(moved["jawOpen"][index[[19, 24, 27]]]).max() < 0.01  # brows and nose bridge stay
    lids = moved["eyeBlinkLeft"][index[[43, 44]], 1].mean() - moved["eyeBlinkLeft"][index[[46, 47]], 1].mean()
    assert lids < -0.04
    assert np.abs(moved["eyeBlinkLeft"][index[[37, 38]]]).max() < 0.01  # the subject's right eye stays open
    assert moved["mouthSmileLeft"][index[54], 1] > 0.03 > np.abs(moved["mouthSmileLeft"][index[48], 1])


@pytest.mark.parametrize("basis", ["id_basis", "exp_basis"])
def test_two_sigma_faces_keep_their_features_in_place(model, basis):
    points, index = model["shape_mean"].astype(np.float64), model["landmarks"]
    for mode in model[basis]:
        for amount in (-2, 2):
            mark = (points + amount * mode)[index]
            right, left = mark[36:42].mean(0), mark[42:48].mean(0)
            assert 0.5 < left[0] - right[0] < 0.75
            assert right[1] > mark[30, 1] > mark[51, 1] > mark[57, 1] - 0.02 > mark[8, 1]


def test_texture_is_an_albedo_and_stays_one_at_two_sigma(model):
    mean = model["tex_mean"].astype(np.float64)
    assert mean.min() >= 0 and mean.max() <= 1
    face = model["landmarks"][[1, 15, 29, 30]]
    assert (np.diff(mean[face], axis=1) < 0).all()  # skin: red > green > blue
    eyebrow, lips = mean[model["landmarks"][[19, 24]]], mean[model["landmarks"][[57]]]
    assert eyebrow.max() < mean[face].max(0).min() + 0.05
    assert lips[0, 0] - lips[0, 1] > (mean[face][:, 0] - mean[face][:, 1]).max() - 0.05
    for mode in model["tex_basis"]:
        for amount in (-2, 2):
            changed = mean + amount * mode
            assert changed.min() > -0.15 and changed.max() < 1.1
    tone = np.linalg.norm(model["tex_basis"].reshape(40, -1), axis=1)
    assert tone.argmax() == 0
