"""The conversion of ICT-FaceKit against directories written by hand, each way such a directory may be broken, and the real kit.

The real kit is read where the environment variable SGPN_ICT names its directory FaceXModel.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from oracles.script import load_script
from sgpn_arch.face3d.morphable_model import MorphableModel, five_points

ict = load_script("convert_ict_model")

# Vertices and polygons of the parts, [first, behind last), counted by hand in the kit's README.
FACE, NARROW = ((0, 9409), (0, 9230)), ((0, 6706), (0, 6560))
EYES = [((21451, 22221), (21496, 22296)), ((23021, 23791), (23094, 23894))]
CROPS = {"face": [FACE], "narrow": [NARROW], "face_and_eyes": [FACE, *EYES], "narrow_and_eyes": [NARROW, *EYES]}
EXPRESSIONS = ["jawOpen", "eyeBlink_L", "eyeBlink_R"]
SHAPES = ["identity000", "identity001", *EXPRESSIONS]


class Kit:
    """A small ICT-FaceKit: random heads, of which every polygon lies in one part."""

    def __init__(self, directory, seed=0):
        rng = np.random.default_rng(seed)
        self.directory = directory
        self.heads = {"generic_neutral_mesh": rng.normal(size=(26719, 3)).round(4)}
        for name in SHAPES:
            self.heads[name] = (self.heads["generic_neutral_mesh"] + 0.1 * rng.normal(size=(26719, 3))).round(4)
        self.polygons = [self.polygon(rng, number) for number in range(26384)]
        self.landmarks = [97 * i for i in range(68)]
        self.write()

    @staticmethod
    def polygon(rng, number):
        parts = [NARROW, ((6706, 9409), (6560, 9230)), *EYES]
        inside = [vertices for vertices, (first, last) in parts if first <= number < last]
        first, last = inside[0] if inside else (0, 26719)
        return [int(i) for i in first + rng.choice(last - first, 3 + number % 2, replace=False)]

    def write(self):
        corners = (" ".join(f"{i + 1}/{k + 1}" for k, i in enumerate(polygon)) for polygon in self.polygons)
        faces = "".join(f"f {line}\n" for line in corners)
        for name, points in self.heads.items():
            # Some of the kit's files have more text than others: groups, materials, comments, and Latin-1 letters.
            text = "# a head, sir\nmtllib x.mtl\n" + "".join(f"v {x:.4f} {y:.4f} {z:.4f}\n" for x, y, z in points)
            text += "vt 0.5 0.5\ng \xe9\nusemtl M_Face\n" + (faces if name == "generic_neutral_mesh" else "")
            (self.directory / f"{name}.obj").write_text(text, encoding="latin-1")
        content = {"expressions": EXPRESSIONS, "idx_to_landmark_verts": self.landmarks, "incompatibilities": []}
        (self.directory / "vertex_indices.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    return Kit(tmp_path_factory.mktemp("FaceXModel"))


@pytest.fixture
def broken(kit, tmp_path):
    """A copy that a test may break: (directory, replace(file, old, new))."""
    directory = tmp_path / "kit"
    shutil.copytree(kit.directory, directory)

    def replace(name, old, new):
        text = (directory / name).read_text(encoding="latin-1")
        assert old in text
        (directory / name).write_text(text.replace(old, new, 1), encoding="latin-1")

    return directory, replace


def read(directory, crop="face", identities=2):
    return ict.read_ict(directory, crop, identities)


@pytest.mark.parametrize("crop", CROPS)
def test_shapes_are_the_crops_vertices_in_decimetres(kit, crop):
    model, parts = read(kit.directory, crop), CROPS[crop]
    kept = [i for vertices, _ in parts for i in range(*vertices)]
    assert model.dims == (2, 3, 3) and model.name == f"ict_{crop}"
    neutral = kit.heads["generic_neutral_mesh"][kept] / 10
    np.testing.assert_allclose(model.shape_mean, neutral - neutral.mean(0), atol=1e-6)
    for basis, names in ((model.id_basis, SHAPES[:2]), (model.exp_basis, EXPRESSIONS)):
        for mode, name in zip(basis, names, strict=True):
            np.testing.assert_allclose(mode, kit.heads[name][kept] / 10 - neutral, atol=1e-6)


@pytest.mark.parametrize("crop", CROPS)
def test_triangles_are_the_crops_polygons(kit, crop):
    model, parts = read(kit.directory, crop, identities=1), CROPS[crop]
    new_number = {old: new for new, old in enumerate(i for vertices, _ in parts for i in range(*vertices))}
    polygons = [kit.polygons[n] for _, numbers in parts for n in range(*numbers)]
    # However quads are cut, they leave their sides, each in its direction, and two opposite runs of the cut.
    sides = {
        (new_number[p[k]], new_number[p[(k + 1) % len(p)]]) for p in polygons for k in range(len(p)) if len(p) == 4
    }
    sides |= {(new_number[p[k]], new_number[p[(k + 1) % 3]]) for p in polygons for k in range(3) if len(p) == 3}
    assert len(model.triangles) == sum(len(p) - 2 for p in polygons)
    found = {(int(t[k]), int(t[(k + 1) % 3])) for t in model.triangles for k in range(3)}
    assert sides <= found
    assert all((b, a) in found for a, b in found - sides)
    assert model.landmarks.tolist() == [new_number[i] for i in kit.landmarks]


def test_quads_are_cut_along_the_shorter_diagonal_and_keep_their_turn():
    corners = np.array([[0.0, 0, 0], [3, 0, 0], [4, 1, 0], [0, 1, 0], [9, 9, 9]])
    triangles = ict.triangulate([[0, 1, 2, 3], [2, 3, 0, 1], [4, 0, 1]], corners)
    as_sets = [frozenset(t) for t in triangles.tolist()]
    assert as_sets.count({0, 1, 3}) == as_sets.count({1, 2, 3}) == 2 and as_sets.count({0, 1, 4}) == 1
    a, b, c = (corners[triangles[triangles.max(1) < 4, k]] for k in range(3))
    assert (np.cross(b - a, c - a)[:, 2] > 0).all()


def test_equal_diagonals_and_no_quads():
    square = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    assert ict.triangulate([[0, 1, 2, 3]], square).tolist() == [[0, 1, 2], [0, 2, 3]]
    assert ict.triangulate([[2, 1, 0]], square).tolist() == [[2, 1, 0]]


def test_texture_modes_change_the_skin_and_not_the_eyes(kit):
    model = read(kit.directory, "narrow_and_eyes", identities=1)
    skin, eyes = model.tex_basis[:, :6706], model.tex_basis[:, 6706:]
    assert (eyes == 0).all() and (skin == skin[:, :1]).all()
    assert torch.linalg.matrix_rank(skin[:, 0]) == 3  # brightness and two tints, independent of each other
    assert (skin[0] > 0).all()
    assert model.tex_mean.min() > 0 and model.tex_mean.max() < 1
    assert (model.tex_mean[:6706] == model.tex_mean[0]).all()


def test_eyes_are_painted_from_a_dark_pupil_to_a_light_white():
    rng = np.random.default_rng(1)
    ball = rng.normal(size=(4000, 3))
    ball = 1.5 * ball / np.linalg.norm(ball, axis=1, keepdims=True) + [3.1, 3.6, 8.0]
    colours = ict._eye_colours(ball)
    radius, front = np.hypot(ball[:, 0] - 3.1, ball[:, 1] - 3.6), ball[:, 2] > 8.05
    assert colours[front & (radius < 0.15)].max() < 0.1
    iris = colours[front & (radius > 0.3) & (radius < 0.5)]
    assert (iris[:, 0] > iris[:, 2]).all() and iris.min() > 0.1 and iris.max() < 0.4
    assert colours[(radius > 0.75) | ~(ball[:, 2] > 7.95)].min() > 0.7


def test_the_directory_above_will_do(kit, tmp_path):
    (tmp_path / "FaceXModel").symlink_to(kit.directory)
    assert torch.equal(read(tmp_path, identities=1).shape_mean, read(kit.directory, identities=1).shape_mean)


def test_units_are_in_the_order_of_the_basis_and_have_arkits_names(kit):
    units = ict.arkit_units(kit.directory)
    assert list(units) == ["jawOpen", "eyeBlinkLeft", "eyeBlinkRight"]
    assert list(units.values()) == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


# ------------------------------------------------------------------------------------------- our own file


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 0.0), (torch.float16, 2**-11)])
def test_saved_model_is_read_back(kit, tmp_path, dtype, tolerance):
    model = read(kit.directory, "narrow_and_eyes")
    points = model.reference5 + 0.25
    model = MorphableModel(**model.tensors(), name=model.name, reference5=points, face_normals="unit")
    model.save(tmp_path / "ict.safetensors", dtype)
    again = MorphableModel.load(tmp_path / "ict.safetensors")
    assert (again.name, again.face_normals, again.dims) == ("ict_narrow_and_eyes", "unit", model.dims)
    assert again.tensors().keys() == model.tensors().keys() and "reference5" in model.tensors()
    for key, value in model.tensors().items():
        # The constructor takes the centroid off once more, which is not quite zero after rounding.
        absolute = {"shape_mean": 1e-6}.get(key, 2**-25 if tolerance and key.endswith("basis") else 0)
        relative = tolerance if key.endswith("basis") else 0
        np.testing.assert_allclose(again.tensors()[key], value, rtol=relative, atol=absolute)
        assert again.tensors()[key].dtype == value.dtype
    assert [path.name for path in tmp_path.iterdir()] == ["ict.safetensors"]


def test_the_constructor_takes_tensors_back(kit):
    model = read(kit.directory, "narrow", identities=1)
    again = MorphableModel(**model.tensors())
    for key, value in model.tensors().items():
        np.testing.assert_allclose(again.tensors()[key], value, rtol=0, atol=1e-6)


def test_failed_saving_leaves_nothing_and_keeps_the_old_file(kit, tmp_path, monkeypatch):
    model = read(kit.directory, "narrow", identities=1)
    with pytest.raises(OSError):
        model.save("/dev/null/ict.safetensors")
    path = tmp_path / "ict.safetensors"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        model.save(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_bytes() == b"old"


# ------------------------------------------------------------------------------------------- errors


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["convert_ict_model.py", *map(str, arguments)])
    ict.main()


def test_the_command_writes_a_file_that_is_read(kit, tmp_path, monkeypatch, capsys):
    path = tmp_path / "ict.safetensors"
    run(monkeypatch, kit.directory, "-o", path, "--crop", "narrow", "--identities", 2, "--half")
    assert "6706 vertices, (2, 3, 3) coefficients" in capsys.readouterr().out
    expected, found = read(kit.directory, "narrow"), MorphableModel.read(path)
    torch.testing.assert_close(found.exp_basis, expected.exp_basis, rtol=2**-11, atol=2**-25)
    assert (found.name, found.dims) == (expected.name, expected.dims)
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["exp_units"]) == ict.arkit_units(kit.directory)


@pytest.mark.parametrize("crop", ["Face", ""])
def test_unknown_crop(kit, crop, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, kit.directory, "-o", tmp_path / "x", "--crop", crop)
    assert "narrow_and_eyes" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_command_tells_errors_without_a_traceback(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="1"):
        run(monkeypatch, tmp_path, "-o", tmp_path / "x")
    assert "vertex_indices.json: no such file; give ICT-FaceKit's directory" in capsys.readouterr().err


def test_reading_the_directory_itself_says_how_to_convert_it(kit):
    with pytest.raises(FileNotFoundError, match="convert it with scripts/convert_ict_model.py"):
        MorphableModel.read(kit.directory)


@pytest.mark.parametrize("identities", [0, 101, -1])
def test_impossible_number_of_identities(kit, identities):
    with pytest.raises(ValueError, match=f"identities is {identities}; ICT-FaceKit has 1 to 100"):
        read(kit.directory, identities=identities)


@pytest.mark.parametrize(
    "name", ["vertex_indices.json", "generic_neutral_mesh.obj", "identity001.obj", "eyeBlink_R.obj"]
)
def test_missing_file_is_named(broken, name):
    (broken[0] / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: no such file; give ICT-FaceKit's directory"):
        read(broken[0])


def test_missing_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.*no such file"):
        read(tmp_path / "nowhere")


BAD_OBJ = {
    "a vertex too few": ("identity001.obj", "\nv ", "\n# ", "identity001.obj: 26718 vertices, .* 26719"),
    "a vertex too many": ("jawOpen.obj", "\nv ", "\nv 1 2 3\nv ", "jawOpen.obj: 26720 vertices"),
    "a word for a number": ("identity000.obj", "\nv ", "\nv one ", "identity000.obj: a vertex line is not 'v x y z'"),
    "not a number": ("jawOpen.obj", "\nv ", "\nv nan ", "jawOpen.obj: vertex 0 is not finite"),
    "infinite": ("generic_neutral_mesh.obj", "\nv ", "\nv 1e999 ", "generic_neutral_mesh.obj: vertex 0 is not finite"),
    "a polygon too few": ("generic_neutral_mesh.obj", "\nf ", "\n# ", "neutral_mesh.obj: 26383 polygons, .* 26384"),
    "a pentagon": ("generic_neutral_mesh.obj", "\nf ", "\nf 5/5 6/6 ", "is not a triangle or quad"),
    "vertex zero": ("generic_neutral_mesh.obj", "\nf ", "\nf 0/1 ", "is not a triangle or quad"),
    "a vertex from the end": ("generic_neutral_mesh.obj", "\nf ", "\nf -1/1 ", "is not a triangle or quad"),
    "a vertex behind the last": ("generic_neutral_mesh.obj", "\nf ", "\nf 26720/1 ", "of vertices 1 to 26719"),
    "a word for a corner": ("generic_neutral_mesh.obj", "\nf ", "\nf a/1 ", "is not a triangle or quad"),
    "another part's vertex": (
        "generic_neutral_mesh.obj",
        "\nf ",
        "\nf 20000/1 ",
        "polygon of crop 'face' is at vertex 1",
    ),
}


@pytest.mark.parametrize("name, old, new, message", BAD_OBJ.values(), ids=BAD_OBJ)
def test_bad_obj_file_is_named_with_what_is_wrong(broken, name, old, new, message):
    directory, replace = broken
    replace(name, old, new)
    with pytest.raises(ValueError, match=message):
        read(directory)


def test_short_vertex_line(broken):
    directory, replace = broken
    text = (directory / "jawOpen.obj").read_text(encoding="latin-1").splitlines(keepends=True)
    first = next(i for i, line in enumerate(text) if line.startswith("v "))
    text[first + 7] = "v 1.0 2.0\n"
    (directory / "jawOpen.obj").write_text("".join(text), encoding="latin-1")
    with pytest.raises(ValueError, match=r"jawOpen.obj: a vertex line is not 'v x y z' \(.*row"):
        read(directory)


def test_colours_behind_the_coordinates_are_passed_over(broken):
    directory, _ = broken
    path, before = directory / "jawOpen.obj", read(directory, identities=1).exp_basis
    lines = path.read_text(encoding="latin-1").splitlines()
    path.write_text("\n".join(f"{x} 0.5 0.5 0.5" if x.startswith("v ") else x for x in lines), encoding="latin-1")
    assert torch.equal(read(directory, identities=1).exp_basis, before)


BAD_JSON = {
    "no JSON": ("{", "expected JSON with 'expressions' and 'idx_to_landmark_verts'"),
    "a list": ("[]", "expected JSON with"),
    "deeply nested": ("[" * 100_000, "expected JSON with"),
    "no landmarks": ('{"expressions": ["jawOpen"]}', "expected JSON with .*idx_to_landmark_verts"),
    "no expressions": (dict(expressions=[]), "'expressions' must be a list of names"),
    "a path for a name": (dict(expressions=["../jawOpen"]), "'expressions' must be a list of names"),
    "a number for a name": (dict(expressions=[3]), "'expressions' must be a list of names"),
    "67 landmarks": (dict(idx_to_landmark_verts=[0] * 67), "must be a list of 68 vertex numbers"),
    "a fraction": (dict(idx_to_landmark_verts=[0.5] * 68), "must be a list of 68 vertex numbers"),
    "outside the crop": (
        dict(idx_to_landmark_verts=[*range(67), 9409]),
        "a landmark is at vertex 9409, .* not in the crop",
    ),
    "outside the head": (dict(idx_to_landmark_verts=[*range(67), 30000]), "a landmark is at vertex 30000"),
    "before the head": (dict(idx_to_landmark_verts=[*range(67), -1]), "a landmark is at vertex -1"),
}


@pytest.mark.parametrize("content, message", BAD_JSON.values(), ids=BAD_JSON)
def test_bad_indices_file_is_named_with_what_is_wrong(broken, content, message):
    path = broken[0] / "vertex_indices.json"
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content)
    path.write_text(content)
    with pytest.raises(ValueError, match=f"vertex_indices.json.*{message}"):
        read(broken[0], identities=1)


# ------------------------------------------------------------------------------------------- the real kit

real = pytest.mark.skipif(
    not os.environ.get("SGPN_ICT"), reason="SGPN_ICT does not name ICT-FaceKit's directory FaceXModel"
)


@pytest.fixture(scope="module")
def real_models():
    directory = Path(os.environ["SGPN_ICT"])
    return {crop: ict.read_ict(directory, crop) for crop in ("face", "narrow_and_eyes")}


@real
def test_real_counts_and_expressions(real_models):
    for crop, vertices, triangles in (("face", 9409, 2 * 9230), ("narrow_and_eyes", 8246, 2 * 6560 + 2 * 1536)):
        model = real_models[crop]
        assert model.dims == (100, 53, 3) and model.shape_mean.shape == (vertices, 3)
        assert model.triangles.shape == (triangles, 3)
        assert torch.equal(model.triangles.unique(), torch.arange(vertices))
        assert all(value.isfinite().all() for value in model.tensors().values())
        assert (model.exp_basis.abs().amax((1, 2)) > 0.01).all()
    names = list(ict.arkit_units(os.environ["SGPN_ICT"]))
    jaw = real_models["face"].exp_basis[names.index("jawOpen"), real_models["face"].landmarks]
    assert jaw[8, 1] < -0.2 and jaw[27:31].abs().max() < 0.01  # the chin falls, the nose stays


@real
def test_real_mesh_is_symmetric_and_its_sides_run_against_each_other(real_models):
    from scipy.spatial import cKDTree

    for model in real_models.values():
        mean, triangles = model.shape_mean.double().numpy(), model.triangles
        assert cKDTree(mean).query(mean * [-1, 1, 1])[0].max() < 1e-3
        sides = torch.cat([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
        assert len(sides.unique(dim=0)) == len(sides)


@real
def test_real_normals_point_outwards(real_models):
    """Of what a camera before the face sees, nearly all shows its outer side; the nose's tip looks forward."""
    for model in real_models.values():
        mean, triangles = model.shape_mean.double().numpy(), model.triangles.numpy()
        normals = np.cross(*(mean[triangles[:, k]] - mean[triangles[:, 0]] for k in (1, 2)))
        pixels = {}
        for triangle in np.argsort(mean[triangles, 2].mean(1)):  # painter's algorithm: the nearest one stays
            x, y = np.round(mean[triangles[triangle], :2].mean(0) / 0.05).astype(int)
            pixels[x, y] = normals[triangle, 2] > 0
        assert np.mean(list(pixels.values())) > 0.97
        assert model.normals(model.shape_mean[None])[0, model.landmarks[30], 2] > 0.95


@real
def test_real_landmarks_are_in_place(real_models):
    for model in real_models.values():
        points = model.shape_mean[model.landmarks].double().numpy()
        pairs = [(i, 16 - i) for i in range(9)] + [(i, 43 - i) for i in range(17, 22)] + [(i, i) for i in range(27, 31)]
        pairs += [(31, 35), (32, 34), (33, 33), (36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46)]
        pairs += [(48, 54), (49, 53), (50, 52), (51, 51), (59, 55), (58, 56), (57, 57), (60, 64), (61, 63), (62, 62)]
        for right, left in [*pairs, (67, 65), (66, 66)]:
            assert np.abs(points[right] - points[left] * [-1, 1, 1]).max() < 0.01, (right, left)
        eyes = five_points(torch.tensor(points))[:2].numpy()
        assert 0.55 < eyes[1, 0] - eyes[0, 0] < 0.7  # adults' eyes are 6.3 cm apart, give or take half a centimetre
        brows, nose, mouth, chin = points[17:27, 1].mean(), points[30, 1], points[48:60, 1].mean(), points[8, 1]
        assert brows > eyes[:, 1].max() > nose > mouth > chin
        assert points[30, 2] == points[:, 2].max() and (np.diff(points[:9, 1]) < 0).all()


@real
def test_real_eyes_fill_the_lids(real_models):
    """Before the middle of an eye's landmarks there is the eyeball, and it is dark: the pupil or the iris."""
    model = real_models["narrow_and_eyes"]
    for group in (slice(36, 42), slice(42, 48)):
        middle = model.shape_mean[model.landmarks[group]].mean(0)
        ball = torch.arange(6706, 8246)
        distance = (model.shape_mean[ball] - middle).norm(dim=1)
        assert distance.min() < 0.06
        assert model.tex_mean[ball[distance < 0.06]].mean() < 0.45
