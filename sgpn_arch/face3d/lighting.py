"""Second-order spherical-harmonic lighting of a Lambertian surface."""

import torch
from torch import Tensor

# Real spherical harmonics times pi, 2pi/sqrt(3) and 2pi/sqrt(8) for orders 0, 1 and 2, rounded as Deep3DFaceRecon and
# the released SGPN have them. A Lambertian surface's own factors are pi, 2pi/3 and pi/4 (Ramamoorthi and Hanrahan
# 2001); the difference is one of scale for each order, which the lighting coefficients take up.
_C0, _C1, _C2, _C20, _C22 = 0.88623, 1.77245, 2.42703, 0.70062, 1.21352
AMBIENT = 0.8


def sh_basis(normals: Tensor) -> Tensor:
    """Unit normals (..., 3) -> the nine basis values (..., 9), in the order of Deep3DFaceRecon."""
    x, y, z = normals.unbind(-1)
    return torch.stack(
        [
            torch.full_like(x, _C0),
            -_C1 * y,
            _C1 * z,
            -_C1 * x,
            _C2 * x * y,
            -_C2 * y * z,
            _C20 * (3 * z * z - 1),
            -_C2 * x * z,
            _C22 * (x * x - y * y),
        ],
        dim=-1,
    )


def shade(albedo: Tensor, normals: Tensor, lighting: Tensor) -> Tensor:
    """Lit colour = albedo * (basis(normal) . gamma), with an ambient term of 0.8 added to the constant band.

    Args:
        albedo: (N, V, 3) RGB. normals: (N, V, 3) unit, rotated with the head.
        lighting: (N, 27), nine coefficients for red, then green, then blue.

    Returns:
        (N, V, 3), not clamped.
    """
    gamma = lighting.unflatten(1, (3, 9))
    ambient = gamma.new_zeros(9)
    ambient[0] = AMBIENT
    return albedo * (sh_basis(normals) @ (gamma + ambient).transpose(1, 2))
