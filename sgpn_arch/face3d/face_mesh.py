"""One face's mesh in NumPy, its colours where a photo has none, and the files that it is written to: GLB and OBJ."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sgpn_arch.colour import LUMA
from sgpn_arch.files import write_atomically

SUFFIXES = (".glb", ".obj")
METRES = 0.1  # a decimetre
# Vertex colours of glTF are linear and multiply the material's, and the light of the photo is in them already.
MATERIAL = {"doubleSided": True, "extensions": {"KHR_materials_unlit": {}}}


class MeshError(ValueError):
    """A mesh that cannot be written; the message names the file."""


@dataclass(frozen=True)
class FaceMesh:
    """A posed, lit mesh, as a camera sees it that stands on the z axis and shows the aligned crop.

    Attributes:
        vertices: (V, 3) float32 decimetres: x to the right in the picture, y up, z towards the camera (right-handed).
        colors: (V, 3) float32 RGB, about 0..1 (sRGB, as in the rendering, the photo's light in them).
        triangles: (F, 3) vertex indices, counter-clockwise seen from outside.
    """

    vertices: np.ndarray
    colors: np.ndarray
    triangles: np.ndarray


def without_colour(crops: Any) -> Any:
    """Which of the crops (N, 3, S, S) have three equal channels: (N,) bool. Of PyTorch or NumPy."""
    return (crops == crops[:, :1]).reshape(len(crops), -1).all(1)


def in_grey(colors: Any) -> Any:
    """RGB (..., 3) -> the grey of the same lightness, thrice (Rec. 601, as OpenCV's). Of PyTorch or NumPy.

    What is seen of a face is albedo times light, and the model's albedo has the colours of skin. A regressor can only
    answer a photo without colours by a light of the opposite colour, which never fits everywhere; their product as the
    photo would show it does.
    """
    return sum(weight * colors[..., [i, i, i]] for i, weight in enumerate(LUMA))


def write_mesh(path: str | Path, mesh: FaceMesh) -> None:
    """Writes GLB or OBJ, whichever the suffix says, with trimesh; in metres, y up, the camera on +z.

    A GLB is unlit, its colours linear as glTF wants them; an OBJ has sRGB colours behind its vertices, as MeshLab and
    Blender read them. No half file is left.

    Raises:
        MeshError: another suffix, or the file cannot be written. ModuleNotFoundError: trimesh is not installed.
    """
    import trimesh

    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise MeshError(f"{path}: a mesh is written as {' or '.join(SUFFIXES)}; choose one of them")
    colors = np.clip(mesh.colors, 0, 1)
    glb = path.suffix.lower() == ".glb"
    if glb:
        colors = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)  # IEC 61966-2-1
    shape = trimesh.Trimesh(
        mesh.vertices * METRES,
        mesh.triangles,
        vertex_colors=np.rint(colors * 255).astype(np.uint8),
        process=False,  # which would merge and reorder vertices
    )
    if glb:
        data = trimesh.exchange.gltf.export_glb(shape, include_normals=False, tree_postprocessor=_make_unlit)
    else:
        data = trimesh.exchange.obj.export_obj(shape, include_normals=False, header="in metres").encode()
    try:
        write_atomically(path, lambda part: Path(part).write_bytes(data), durable=False)
    except OSError as error:
        raise MeshError(f"{path}: cannot be written: {error}") from error


def _make_unlit(tree: dict) -> None:
    tree["materials"] = [MATERIAL]
    tree["extensionsUsed"] = list(MATERIAL["extensions"])  # type: ignore[call-overload]
    for mesh in tree["meshes"]:
        for primitive in mesh["primitives"]:
            primitive["material"] = 0
