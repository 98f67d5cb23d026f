"""A face's mesh in files: read back by trimesh, it has the vertices, colours and triangles, upright and the right way round."""

import cv2
import numpy as np
import pytest
import torch
import trimesh

from sgpn_arch.face3d.camera import PinholeCamera
from sgpn_arch.face3d.face_mesh import FaceMesh, MeshError, in_grey, without_colour, write_mesh
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.face3d.raster.rasterizer_numpy import draw


@pytest.fixture(scope="module")
def mesh():
    """The open model's mean face before the camera, dark on its left."""
    model = MorphableModel.open()
    colors = model.tex_mean.numpy() * np.where(model.shape_mean.numpy()[:, :1] > 0, 0.4, 1.2)
    return FaceMesh(model.shape_mean.numpy(), colors.astype(np.float32), model.triangles.numpy())


@pytest.fixture(params=["glb", "obj"])
def read_back(mesh, request, tmp_path):
    path = tmp_path / f"face.{request.param}"
    write_mesh(path, mesh)
    (read,) = trimesh.load_scene(path, process=False, maintain_order=True).geometry.values()
    return request.param, read


def srgb(linear):
    """The light of 0..1 as a screen is told it; the curve of IEC 61966-2-1."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def colors_of(kind, read):
    visual = read.visual
    stored = visual.vertex_attributes["color"] if kind == "glb" else visual.vertex_colors
    return srgb(stored[:, :3] / 255) if kind == "glb" else stored[:, :3] / 255


def test_a_file_has_the_mesh_in_metres(mesh, read_back):
    kind, read = read_back
    np.testing.assert_allclose(read.vertices, mesh.vertices / 10, atol=1e-7)
    assert np.array_equal(read.faces, mesh.triangles)
    wanted = mesh.colors.clip(0, 1)
    assert np.abs(colors_of(kind, read) - wanted).max() < (0.03 if kind == "glb" else 0.003)  # 8 bits of linear light
    assert 0.15 < np.ptp(read.vertices[:, 1]) < 0.4  # a head's height


def test_the_face_looks_along_z_and_is_seen_from_outside(mesh, read_back):
    _, read = read_back
    nose = mesh.vertices[:, 2].argmax()
    assert read.vertices[nose, 2] == read.vertices[:, 2].max() and read.vertices[nose, 1] < read.vertices[:, 1].max()
    assert read.vertex_normals[nose, 2] > 0.5


def test_its_rendering_is_that_of_the_face(mesh, read_back):
    """What a camera a metre away sees of the file, beside what is drawn of the mesh itself."""
    kind, read = read_back
    camera = PinholeCamera()
    pictures = []
    for vertices, colors in ((mesh.vertices, mesh.colors), (read.vertices * 10, colors_of(kind, read))):
        points, depth = camera.project(torch.from_numpy(np.asarray(vertices, np.float32))[None])
        pictures.append(draw(points[0].numpy(), depth[0].numpy(), colors, mesh.triangles, (224, 224)))
    assert pictures[0][3].mean() > 0.1 and np.abs(pictures[0] - pictures[1]).max() < 0.03


def test_glb_is_shown_without_more_light(mesh, tmp_path):
    write_mesh(tmp_path / "a.glb", mesh)
    data = (tmp_path / "a.glb").read_bytes()
    assert b"KHR_materials_unlit" in data and b"COLOR_0" in data and b"NORMAL" not in data


def test_what_cannot_be_written_is_named_and_leaves_nothing(mesh, tmp_path):
    with pytest.raises(MeshError, match=r"face.stl: a mesh is written as .glb or .obj"):
        write_mesh(tmp_path / "face.stl", mesh)
    (tmp_path / "taken.glb").mkdir()
    with pytest.raises(MeshError, match=r"taken.glb: cannot be written"):
        write_mesh(tmp_path / "taken.glb", mesh)
    assert [path.name for path in tmp_path.iterdir()] == ["taken.glb"]


def test_grey_is_opencvs():
    colors = np.random.default_rng(0).uniform(-0.3, 1.4, (2, 50, 3)).astype(np.float32)
    for found in (in_grey(colors), in_grey(torch.from_numpy(colors)).numpy()):
        wanted = np.repeat(cv2.cvtColor(colors, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_crop_has_colour_by_one_pixel():
    crops = np.random.default_rng(0).uniform(-1, 1, (3, 1, 4, 4)).astype(np.float32).repeat(3, axis=1)
    crops[1, 2, 0, 0] += 0.01
    assert without_colour(crops).tolist() == without_colour(torch.from_numpy(crops)).tolist() == [True, False, True]


def test_the_camera_goes_back_from_pixels_to_vertices(mesh):
    points, depth = PinholeCamera().project(torch.from_numpy(mesh.vertices)[None])
    back = PinholeCamera().unproject(points.numpy(), depth.numpy())
    assert back.dtype == np.float32
    np.testing.assert_allclose(back[0], mesh.vertices, atol=1e-5)
