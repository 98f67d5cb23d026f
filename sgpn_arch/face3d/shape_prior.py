"""The shape prior: from a face crop and its five points to coefficients, a lit mesh and its rendering on the crop."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sgpn_arch.face3d.camera import PinholeCamera, rotation_matrix
from sgpn_arch.face3d.crop224 import crop_to_224, invert_affine, pose_solver, released_crop_to_224, warp_affine
from sgpn_arch.face3d.face_mesh import in_grey, without_colour
from sgpn_arch.face3d.lighting import shade
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.face3d.raster.rasterizer import interpolate, rasterize

PROTOCOLS = ("open", "released")


@dataclass
class Mesh:
    """A posed, lit mesh.

    Attributes:
        shape: (N, V, 3) before the head's pose, decimetres. albedo: (N, V, 3) unlit RGB 0..1.
        vertices: (N, V, 3) posed. colors: (N, V, 3) lit RGB 0..1.
        points: (N, V, 2) continuous pixels of the camera's image. depth: (N, V) decimetres along the view axis.
    """

    shape: Tensor
    albedo: Tensor
    vertices: Tensor
    colors: Tensor
    points: Tensor
    depth: Tensor


@dataclass
class ShapeResult:
    """What the shape prior says about a batch of crops of size S.

    Attributes:
        coeffs: (N, D). mesh: the mesh behind the rendering.
        render: (N, 3, S, S) RGB in [-1, 1], -1 (black) outside the face. mask: (N, 1, S, S) in 0..1, 1 on the face.
        landmarks: (N, 68, 2) OpenCV pixels of the crop.
        transform: (N, 2, 3) from the crop to the regressor's 224x224 image.
    """

    coeffs: Tensor
    mesh: Mesh
    render: Tensor
    mask: Tensor
    landmarks: Tensor
    transform: Tensor


class ShapePrior(nn.Module):
    """Regressor, morphable model, lighting, camera and rasteriser in one differentiable module.

    Under autocast, only the regressor is computed in half precision, which would move vertices by whole pixels.

    Args:
        regressor: maps (N, 3, 224, 224) RGB in [0, 1] to coefficients ordered identity, expression, texture,
            angles (3), lighting (27), translation (3).
        model: the morphable model; its dimensions must be the regressor's.
        rasterizer: "auto", "cpu", "torch" or "nvdiffrast"; see :func:`sgpn_arch.face3d.raster.rasterizer.rasterize`.
        protocol: how a crop is brought to the regressor's image. "released" follows the authors' code to the fraction of
            a pixel, and shows grey outside the crop; "open" leaves out its roundings, and shows black.

    Raises:
        ValueError: the regressor does not fit the model, or the protocol is unknown.
    """

    def __init__(self, regressor: nn.Module, model: MorphableModel, rasterizer: str = "auto", protocol: str = "open"):
        super().__init__()
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol is {protocol!r}; it may be {' or '.join(PROTOCOLS)}")
        self.protocol = protocol
        self.regressor = regressor
        self.model = model
        self.camera = PinholeCamera()
        self.rasterizer = rasterizer
        self._sizes = [*model.dims, 3, 27, 3]
        found = getattr(regressor, "coeff_dim", sum(self._sizes))
        if found != sum(self._sizes):
            raise ValueError(
                f"the regressor gives {found} coefficients, but the morphable model '{model.name}' with dimensions "
                f"{model.dims} needs {sum(self._sizes)}: choose the regressor's id_dim, exp_dim and tex_dim to match"
            )

    @property
    def coeff_dim(self) -> int:
        """Length of the coefficient vector."""
        return sum(self._sizes)

    def for_inference(self, precision: str = "auto") -> "ShapePrior":
        """The same prior for inference: called alike, with a faster copy of the regressor, which cannot be trained.

        A regressor without a method ``for_inference``, such as a plugin's, is used as it is.

        Args:
            precision: of the regressor; the geometry is float32. "auto" is "fp16" where the regressor is on CUDA, and "fp32"
                on a CPU. "bf16" must be asked for: with it, landmarks on a crop of 512 move by some tenths of a pixel, and
                of some faces the rendering's PSNR to that of float32 falls below 45 dB.

        Raises:
            ValueError: the precision is unknown.
        """
        faster = getattr(self.regressor, "for_inference", None)
        regressor = self.regressor if faster is None else faster(precision)
        return ShapePrior(regressor, self.model, self.rasterizer, self.protocol).eval()

    def forward(self, crop: Tensor, points5: Tensor, persons: Tensor | None = None) -> ShapeResult:
        """crop (N, 3, S, S) RGB in [-1, 1] and points5 (N, 5, 2) OpenCV pixels in it -> ShapeResult.

        ``persons`` (N, D) are coefficients that count in place of the regressor's, NaN where the regressor's do. The mesh and
        the rendering of a crop whose channels are equal are grey, but not by the released protocol.
        """
        transform = self.transform(points5, crop.shape[-1])
        coeffs = self.coefficients(crop, transform)
        if persons is not None:
            coeffs = torch.where(persons.isnan(), coeffs, persons.to(coeffs.dtype))
        grey = without_colour(crop) if self.protocol == "open" else None
        return self.draw(coeffs, transform, crop.shape[-1], grey)

    def transform(self, points5: Tensor, crop_size: int) -> Tensor:
        """(N, 5, 2) -> (N, 2, 3): from the crop to the regressor's image."""
        with _full_precision(points5):
            if self.protocol == "released":
                return released_crop_to_224(
                    points5, self.model.reference5, crop_size, self.camera.size, self.pose_solver
                )
            return crop_to_224(points5, self.model.reference5, self.camera.size, self.pose_solver)

    @functools.cached_property
    def pose_solver(self) -> Tensor:
        """What :func:`.pose_solver` makes of the model's five points: a constant, which exported programs hold as one."""
        return pose_solver(self.model.reference5)

    def coefficients(self, crop: Tensor, transform: Tensor) -> Tensor:
        """The regressor's coefficients (N, D) for crops (N, 3, S, S) in [-1, 1]."""
        with _full_precision(crop):
            # The warp's border is 0: grey in [-1, 1], black in [0, 2].
            if self.protocol == "released":
                image = (warp_affine(crop, transform, self.camera.size) + 1) / 2
            else:
                image = (warp_affine(crop + 1, transform, self.camera.size) / 2).clamp(0, 1)
        coeffs = self.regressor(image)
        return coeffs.to(torch.promote_types(coeffs.dtype, torch.float32))

    def split(self, coeffs: Tensor) -> tuple[Tensor, ...]:
        """(N, D) -> identity, expression, texture, angles, lighting, translation."""
        return coeffs.split(self._sizes, dim=1)

    def mesh(self, coeffs: Tensor) -> Mesh:
        """Coefficients (N, D) -> the posed and lit mesh."""
        with _full_precision(coeffs):
            return self._mesh(coeffs)

    def _mesh(self, coeffs: Tensor) -> Mesh:
        identity, expression, texture, angles, lighting, translation = self.split(coeffs)
        shape = self.model.shape(identity, expression)
        albedo = self.model.albedo(texture)
        rotation = rotation_matrix(angles)
        vertices = shape @ rotation + translation.unsqueeze(1)
        colors = shade(albedo, self.model.normals(shape) @ rotation, lighting)
        points, depth = self.camera.project(vertices)
        return Mesh(shape, albedo, vertices, colors, points, depth)

    def render224(self, mesh: Mesh) -> tuple[Tensor, Tensor]:
        """The mesh in the regressor's image: (N, 3, 224, 224) RGB in 0..1, black outside, and mask (N, 1, 224, 224)."""
        size = self.camera.size
        fragments = rasterize(mesh.points, mesh.depth, self.model.triangles, (size, size), self.rasterizer)
        image = interpolate(mesh.colors, fragments, self.model.triangles).clamp(0, 1)
        mask = (fragments.triangle_ids >= 0).to(image.dtype)
        return image.permute(0, 3, 1, 2), mask.unsqueeze(1)

    def draw(self, coeffs: Tensor, transform: Tensor, size: int, grey: Tensor | None = None) -> ShapeResult:
        """Renders given coefficients onto a crop of the given size, those in grey that ``grey`` (N,) bool says."""
        with _full_precision(coeffs):
            return self._draw(coeffs, transform, size, grey)

    def _draw(self, coeffs: Tensor, transform: Tensor, size: int, grey: Tensor | None) -> ShapeResult:
        mesh = self._mesh(coeffs)
        if grey is not None:
            mesh.colors = torch.where(grey[:, None, None], in_grey(mesh.colors), mesh.colors)
        image, mask = self.render224(mesh)
        render, mask, landmarks = self.place(torch.cat([image, mask], dim=1), self.landmarks224(mesh), transform, size)
        return ShapeResult(coeffs, mesh, render, mask, landmarks, transform)

    @staticmethod
    def place(drawn: Tensor, landmarks224: Tensor, transform: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Brings what is drawn in the regressor's image onto the crop: render, mask and landmarks of :class:`ShapeResult`.

        Args:
            drawn: (N, 4, 224, 224) RGB and mask of :meth:`render224`. landmarks224: (N, 68, 2). size: of the crop.
        """
        back = invert_affine(transform)
        warped = warp_affine(drawn, back, size)
        landmarks = landmarks224 @ back[:, :, :2].transpose(1, 2) + back[:, :, 2].unsqueeze(1)
        mask = warped[:, 3:]
        # The warped mask multiplies the warped picture, as in the released inference code: picture * mask * 2 - 1.
        render = torch.addcmul(-torch.ones_like(mask[:1, :, :1, :1]), warped[:, :3], mask, value=2)
        return render, mask, landmarks

    def landmarks224(self, mesh: Mesh) -> Tensor:
        """The 68 landmarks (N, 68, 2) in OpenCV pixels of the regressor's image."""
        return mesh.points[:, self.model.landmarks] - 0.5


def _full_precision(tensor: Tensor):
    """Autocast switched off for the tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False)
