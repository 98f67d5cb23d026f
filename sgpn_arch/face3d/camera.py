"""Head pose and the pinhole camera that looks at it. The camera needs no PyTorch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def rotation_matrix(angles: "Tensor") -> "Tensor":
    """Euler angles (N, 3) in radians about x, y, z -> R (N, 3, 3) to be applied as ``vertices @ R``.

    R is the transpose of Rz Ry Rx, since vertices are rows.
    """
    import torch

    cos, sin = angles.cos(), angles.sin()
    one, zero = torch.ones_like(cos[:, 0]), torch.zeros_like(cos[:, 0])

    def matrix(*rows: tuple) -> "Tensor":
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    cx, cy, cz = cos.unbind(1)
    sx, sy, sz = sin.unbind(1)
    rot_x = matrix((one, zero, zero), (zero, cx, -sx), (zero, sx, cx))
    rot_y = matrix((cy, zero, sy), (zero, one, zero), (-sy, zero, cy))
    rot_z = matrix((cz, -sz, zero), (sz, cz, zero), (zero, zero, one))
    return (rot_z @ rot_y @ rot_x).transpose(1, 2)


@dataclass(frozen=True)
class PinholeCamera:
    """A camera on the z axis at ``distance`` decimetres, looking down -z at the head.

    Attributes:
        focal: focal length in pixels of the image. size: width and height of the image in pixels.
        distance: of the camera from the origin, decimetres.
    """

    focal: float = 1015.0
    size: int = 224
    distance: float = 10.0

    def project(self, vertices: "Tensor") -> "tuple[Tensor, Tensor]":
        """World vertices (N, V, 3) -> continuous pixels (N, V, 2), y down, and depth (N, V) along the view axis.

        Continuous pixels: pixel i covers [i, i+1), so OpenCV's coordinates are these minus 0.5.
        """
        depth = self.distance - vertices[..., 2]
        flipped = vertices[..., :2] * vertices.new_tensor([1.0, -1.0])
        return self.focal * flipped / depth.unsqueeze(-1) + self.size / 2, depth

    def unproject(self, points: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """The vertices (N, V, 3) that :meth:`project` shows at pixels (N, V, 2) and depth (N, V); in NumPy."""
        across = (points - self.size / 2) * (depth[..., None] / self.focal) * np.array([1, -1], np.float32)
        return np.concatenate([across, self.distance - depth[..., None]], axis=-1)
