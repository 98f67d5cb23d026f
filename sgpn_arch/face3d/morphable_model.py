"""A linear 3D morphable model of the face: identity, expression and texture bases over one triangle mesh."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

OPEN_MODEL_FILE = Path(__file__).parent.parent / "assets" / "open_face.safetensors"
FORMAT = "sgpn-morphable-model"
BASES = ("id_basis", "exp_basis", "tex_basis")
TENSORS = ("shape_mean", "tex_mean", *BASES, "triangles", "landmarks")

# Five-point form of the 68 iBUG landmarks: eye centres, nose tip, mouth corners (image left to right).
FIVE_POINT_GROUPS = (range(36, 42), range(42, 48), (30,), (48,), (54,))


def five_points(landmarks68: Tensor) -> Tensor:
    """(..., 68, D) iBUG landmarks -> (..., 5, D): eye centres, nose tip, mouth corners, from left to right in the image."""
    return torch.stack([landmarks68[..., list(group), :].mean(-2) for group in FIVE_POINT_GROUPS], dim=-2)


class MorphableModel(nn.Module):
    """Shape S = mean + identity*alpha + expression*beta and albedo C = mean + texture*delta (SGPN, section 3.1).

    Vertices are in decimetres, y up, the face looking along +z; albedo is RGB in 0..1 (not clamped). The bases carry
    their standard deviations, so a plausible coefficient is drawn from N(0, 1).

    Args:
        shape_mean: (V, 3). tex_mean: (V, 3).
        id_basis: (I, V, 3). exp_basis: (E, V, 3). tex_basis: (T, V, 3).
        triangles: (F, 3) vertex indices, counter-clockwise seen from outside.
        landmarks: (68,) vertex indices in iBUG order, beginning with the jaw at the image's left.
        name: what checkpoints call this model.
    """

    def __init__(
        self,
        shape_mean: Tensor,
        id_basis: Tensor,
        exp_basis: Tensor,
        tex_mean: Tensor,
        tex_basis: Tensor,
        triangles: Tensor,
        landmarks: Tensor,
        name: str = "unnamed",
    ):
        super().__init__()
        self.name = name
        # The mesh is recentred by the mean shape's centroid, so rotation turns the head about itself.
        self.register_buffer("shape_mean", shape_mean.float() - shape_mean.float().mean(0), persistent=False)
        for key, value in (("id_basis", id_basis), ("exp_basis", exp_basis), ("tex_basis", tex_basis)):
            self.register_buffer(key, value.float(), persistent=False)
        self.register_buffer("tex_mean", tex_mean.float(), persistent=False)
        self.register_buffer("triangles", triangles.long(), persistent=False)
        self.register_buffer("landmarks", landmarks.long(), persistent=False)
        self._check()

    def _check(self) -> None:
        vertices = self.shape_mean.shape[0]
        if self.landmarks.shape != (68,):
            raise ValueError(f"morphable model '{self.name}': {self.landmarks.numel()} landmarks, expected 68")
        if self.tex_mean.shape != self.shape_mean.shape:
            shapes = f"{tuple(self.tex_mean.shape)}, shape_mean {tuple(self.shape_mean.shape)}"
            raise ValueError(f"morphable model '{self.name}': tex_mean has shape {shapes}; they must be equal")
        for key in BASES:
            shape = tuple(getattr(self, key).shape)
            if len(shape) != 3 or shape[1:] != (vertices, 3):
                raise ValueError(f"morphable model '{self.name}': {key} has shape {shape}, expected (*, {vertices}, 3)")
        for key in ("triangles", "landmarks"):
            index = getattr(self, key)
            if index.min() < 0 or index.max() >= vertices:
                raise ValueError(f"morphable model '{self.name}': {key} points outside its {vertices} vertices")

    @classmethod
    def load(cls, path: str | Path) -> "MorphableModel":
        """Reads a model file (safetensors; bases as int8 with one scale per mode).

        Raises:
            ValueError: the file is not a morphable model of this library, or its parts do not fit together.
            FileNotFoundError: there is no such file.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a morphable model file, for it is no safetensors file ({error})") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(
                f"{path}: not a morphable model file (format is {metadata.get('format')!r}, not {FORMAT!r})"
            )
        missing = [key for key in TENSORS if key not in tensors]
        if missing:
            raise ValueError(f"{path}: the morphable model lacks {', '.join(missing)}; build or convert it again")
        for key in BASES:
            scale = tensors.pop(f"{key}_scale", None)
            if scale is not None:
                tensors[key] = tensors[key].float() * scale.float().view(-1, 1, 1)
        return cls(**{key: tensors[key] for key in TENSORS}, name=metadata.get("name", Path(path).stem))

    @classmethod
    def open(cls) -> "MorphableModel":
        """The model that ships with the library, made from MakeHuman's CC0 data (see sgpn_arch/assets/README.md)."""
        return cls.load(OPEN_MODEL_FILE)

    @property
    def dims(self) -> tuple[int, int, int]:
        """Number of identity, expression and texture coefficients."""
        return self.id_basis.shape[0], self.exp_basis.shape[0], self.tex_basis.shape[0]

    def shape(self, identity: Tensor, expression: Tensor) -> Tensor:
        """(N, I), (N, E) -> vertices (N, V, 3)."""
        offset = identity @ self.id_basis.flatten(1) + expression @ self.exp_basis.flatten(1)
        return self.shape_mean + offset.unflatten(1, (-1, 3))

    def albedo(self, texture: Tensor) -> Tensor:
        """(N, T) -> RGB albedo (N, V, 3), about 0..1."""
        return self.tex_mean + (texture @ self.tex_basis.flatten(1)).unflatten(1, (-1, 3))

    def normals(self, vertices: Tensor) -> Tensor:
        """Unit vertex normals (N, V, 3): the normalised sum of the area-weighted normals of the adjoining triangles."""
        corner = vertices[:, self.triangles]
        face_normals = torch.linalg.cross(corner[:, :, 1] - corner[:, :, 0], corner[:, :, 2] - corner[:, :, 0])
        summed = torch.zeros_like(vertices)
        for k in range(3):
            summed = summed.index_add(1, self.triangles[:, k], face_normals)
        return nn.functional.normalize(summed, dim=2, eps=1e-12)

    def extra_repr(self) -> str:
        return json.dumps({"name": self.name, "vertices": len(self.shape_mean), "dims": self.dims})
