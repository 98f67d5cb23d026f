"""A linear 3D morphable model of the face: identity, expression and texture bases over one triangle mesh."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sgpn_arch.face3d.normals import vertex_normals
from sgpn_arch.files import write_tensors

OPEN_MODEL_FILE = Path(__file__).parent.parent / "assets" / "open_face.safetensors"
FORMAT = "sgpn-morphable-model"
BASES = ("id_basis", "exp_basis", "tex_basis")
FACE_NORMALS = ("area", "unit")
TENSORS = ("shape_mean", "tex_mean", *BASES, "triangles", "landmarks")


# Of the 68 iBUG landmarks, the six points around each eye, from left to right in the image.
EYES = (slice(36, 42), slice(42, 48))


def five_points(landmarks68):
    """(..., 68, D) iBUG landmarks -> (..., 5, D): eye centres, nose tip, mouth corners, from left to right in the image.

    Of PyTorch or NumPy. An eye's centre is the mean of its six points.
    """
    points = landmarks68[..., [36, 42, 30, 48, 54], :]
    points[..., 0, :], points[..., 1, :] = (landmarks68[..., eye, :].mean(-2) for eye in EYES)
    return points


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
        reference5: (5, 3) decimetres, the five points that align a photo with the model; None takes them from the
            landmarks of the mean shape (a choice of ours; the Basel model brings its own).
        face_normals: how triangles add up to a vertex normal: "area", weighted by their areas (the released SGPN), or
            "unit", equally (Deep3DFaceRecon).

    Raises:
        ValueError: the parts do not fit together; the message names the part.
    """

    shape_mean: Tensor
    id_basis: Tensor
    exp_basis: Tensor
    tex_mean: Tensor
    tex_basis: Tensor
    triangles: Tensor
    landmarks: Tensor
    reference5: Tensor

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
        reference5: Tensor | None = None,
        face_normals: str = "area",
    ):
        super().__init__()
        self.name = name
        self.face_normals = face_normals
        given = dict(
            shape_mean=shape_mean, tex_mean=tex_mean, id_basis=id_basis, exp_basis=exp_basis, tex_basis=tex_basis
        )
        if reference5 is not None:
            given["reference5"] = reference5
        self._check(given, {"triangles": triangles, "landmarks": landmarks})
        # Recentred, the mean's last digits depend on the machine; files and fingerprints must not.
        self._given = {"shape_mean": shape_mean.float(), "reference5": reference5}
        # The mesh is recentred by the mean shape's centroid, so rotation turns the head about itself.
        self.register_buffer("shape_mean", shape_mean.float() - shape_mean.float().mean(0), persistent=False)
        for key in ("tex_mean", *BASES):
            self.register_buffer(key, given[key].float(), persistent=False)
        self.register_buffer("triangles", triangles.long(), persistent=False)
        self.register_buffer("landmarks", landmarks.long(), persistent=False)
        if reference5 is None:
            reference5 = five_points(self.shape_mean[self.landmarks])
        self.register_buffer("reference5", reference5.float(), persistent=False)

    def _check(self, values: Mapping[str, Tensor], indices: Mapping[str, Tensor]) -> None:
        """Types, shapes, ranges and finiteness of what the model is made of."""

        def wrong(what: str) -> ValueError:
            return ValueError(f"morphable model '{self.name}': {what}")

        if self.face_normals not in FACE_NORMALS:
            raise wrong(f"face_normals is {self.face_normals!r}; it may be {' or '.join(FACE_NORMALS)}")
        mean = values["shape_mean"]
        if mean.ndim != 2 or mean.shape[1] != 3 or not len(mean):
            raise wrong(f"shape_mean has shape {tuple(mean.shape)}, expected (vertices, 3)")
        if values["tex_mean"].shape != mean.shape:
            shapes = f"{tuple(values['tex_mean'].shape)}, shape_mean {tuple(mean.shape)}"
            raise wrong(f"tex_mean has shape {shapes}; they must be equal")
        for key in BASES:
            shape = tuple(values[key].shape)
            if len(shape) != 3 or shape[1:] != tuple(mean.shape):
                raise wrong(f"{key} has shape {shape}, expected (*, {len(mean)}, 3)")
        if "reference5" in values and values["reference5"].shape != (5, 3):
            raise wrong(f"reference5 has shape {tuple(values['reference5'].shape)}, expected (5, 3)")
        for key, value in values.items():
            if value.is_complex() or not torch.isfinite(value.float()).all():
                raise wrong(f"{key} holds NaN, infinity or complex numbers")
        if indices["landmarks"].shape != (68,):
            raise wrong(f"{indices['landmarks'].numel()} landmarks, expected 68")
        triangles = tuple(indices["triangles"].shape)
        if len(triangles) != 2 or triangles[1] != 3 or not triangles[0]:
            raise wrong(f"triangles has shape {triangles}, expected (triangles, 3)")
        for key, index in indices.items():
            if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
                raise wrong(f"{key} are {index.dtype}, expected whole numbers")
            if index.long().min() < 0 or index.long().max() >= len(mean):
                raise wrong(f"{key} points outside its {len(mean)} vertices")

    def faults(self) -> list[str]:
        """What is wrong with the mean face though the parts fit together; a mesh that is no face can still be drawn."""
        corners = self.shape_mean[self.triangles].double()
        sides = corners[:, 1:] - corners[:, :1]
        # Beside the square of the longest side, so that the unit does not matter.
        area, longest = torch.linalg.cross(sides[:, 0], sides[:, 1]).norm(dim=1), sides.square().sum(2).amax(1)
        flat = (area <= 1e-6 * longest).nonzero().flatten().tolist()
        found = (
            [f"has {len(flat)} triangles without area in its mean shape, the first is number {flat[0]}"] if flat else []
        )
        eye_left, eye_right, nose, mouth_left, mouth_right = five_points(self.shape_mean[self.landmarks])
        upright = min(eye_left[1], eye_right[1]) > nose[1] > max(mouth_left[1], mouth_right[1])
        if not (eye_left[0] < nose[0] < eye_right[0] and mouth_left[0] < mouth_right[0] and upright):
            found.append(
                "has landmarks that are no face: eyes, nose and mouth are not where they should be in the mean shape"
            )
        return found

    @classmethod
    def load(cls, path: str | Path) -> "MorphableModel":
        """Reads a model file (safetensors; bases in floating point, or as int8 with one scale per mode).

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
                if tensors[key].shape[:1] != (scale.numel(),):
                    raise ValueError(f"{path}: {key} has shape {tuple(tensors[key].shape)}, but {scale.numel()} scales")
                tensors[key] = tensors[key].float() * scale.float().view(-1, 1, 1)
        return cls(
            **{key: tensors[key] for key in TENSORS},
            name=metadata.get("name", Path(path).stem),
            reference5=tensors.get("reference5"),
            face_normals=metadata.get("face_normals", "area"),
        )

    def save(
        self, path: str | Path, dtype: torch.dtype = torch.float32, metadata: Mapping[str, str] | None = None
    ) -> None:
        """Writes a model file for ``load``, with the name and ``face_normals``. It appears only when it is whole.

        Args:
            dtype: of the bases. float16 halves the file; a vertex that a mode moves by 1 cm is then up to 2.5 micrometres off.
            metadata: more of it, such as ``exp_units`` (see sgpn_arch/assets/README.md).

        Raises:
            OSError: the file cannot be written; nothing is left behind.
        """
        tensors = self.tensors()
        tensors |= {key: tensors[key].to(dtype) for key in BASES}
        tensors |= {key: tensors[key].int() for key in ("triangles", "landmarks")}
        own = {"format": FORMAT, "name": self.name, "face_normals": self.face_normals}
        write_tensors(path, tensors, {**(metadata or {}), **own})

    def tensors(self) -> dict[str, Tensor]:
        """What the model was made of, by the names of the constructor's arguments (``reference5`` only if it was given)."""
        given = {key: value for key, value in self._given.items() if value is not None}
        return {**{key: getattr(self, key) for key in TENSORS}, **given}

    @classmethod
    def read(cls, path: str | Path) -> "MorphableModel":
        """A model in either form that this library knows: a file of ``save``, or a Basel model (its file or directory).

        Raises:
            FileNotFoundError: there is nothing. ValueError: what there is, is none; the message says which form was tried.
        """
        path = Path(path).expanduser()
        return cls.from_bfm(path) if path.suffix == ".mat" or path.is_dir() else cls.load(path)

    @classmethod
    def open(cls) -> "MorphableModel":
        """The model that ships with the library, made from MakeHuman's CC0 data (see sgpn_arch/assets/README.md)."""
        return cls.load(OPEN_MODEL_FILE)

    @classmethod
    def from_bfm(cls, path: str | Path, face_normals: str = "area") -> "MorphableModel":
        """The Basel Face Model 2009 with FaceWarehouse's expressions, as the authors and Deep3DFaceRecon prepare it.

        Its licence forbids passing it on, so the files are the user's to bring.

        Args:
            path: ``BFM09_model_info.mat`` or ``BFM_model_front.mat``, or the directory that holds one. The alignment
                points come from ``similarity_Lm3D_all.mat`` beside it where there is one, else from its published values.
            face_normals: see the class; "unit" for Deep3DFaceRecon's own weights.

        Raises:
            FileNotFoundError: no such file. ValueError: it is not that model; the message names the part.
        """
        from sgpn_arch.face3d.readers.bfm import read_bfm

        return cls(**read_bfm(path), face_normals=face_normals)

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
        """Unit vertex normals (N, V, 3): the normalised sum of the adjoining triangles' normals (see ``face_normals``)."""
        return vertex_normals(vertices, self.triangles, self.face_normals == "unit")

    def fingerprint(self) -> str:
        """SHA-256 of everything that the model's results depend on: two models with one fingerprint are the same."""
        digest = hashlib.sha256(self.face_normals.encode())
        for key, value in sorted(self.tensors().items()):
            digest.update(f"{key}{tuple(value.shape)}".encode())
            value = value.float() if value.is_floating_point() else value
            digest.update(value.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def extra_repr(self) -> str:
        return json.dumps({"name": self.name, "vertices": len(self.shape_mean), "dims": self.dims})
