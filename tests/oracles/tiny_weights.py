"""A checkpoint of random weights, small enough to restore in milliseconds: SGPN at 64 pixels, a regressor, a dome as face."""

from pathlib import Path

import torch

import oracles.tiny_regressor  # noqa: F401  (registers it)
from sgpn_arch import build_network
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_model.weights.checkpoint import save_checkpoint

GRID = 24


def dome_model() -> dict[str, torch.Tensor]:
    """A dome with a nose that faces +z, with 68 landmarks on it: enough of a face for the camera and the rasteriser."""
    y, x = torch.meshgrid(torch.linspace(1, -1, GRID), torch.linspace(-0.8, 0.8, GRID), indexing="ij")
    # Without a nose the five points would be nearly flat, and no pose could be found from them.
    depth = torch.sqrt(1.4 - x**2 - y**2 / 2) + 0.3 * torch.exp(-(x**2 + (y + 0.05) ** 2) / 0.02)
    vertices = torch.stack([x, y, depth], dim=-1).reshape(-1, 3)
    corner = (torch.arange(GRID - 1)[:, None] * GRID + torch.arange(GRID - 1)).reshape(-1)
    upper = torch.stack([corner, corner + GRID, corner + 1], dim=1)
    lower = torch.stack([corner + 1, corner + GRID, corner + GRID + 1], dim=1)
    places = torch.zeros(68, 2)
    places[36:42] = torch.tensor([-0.3, 0.3])
    places[42:48] = torch.tensor([0.3, 0.3])
    places[30] = torch.tensor([0.0, -0.05])
    places[48], places[54] = torch.tensor([-0.25, -0.4]), torch.tensor([0.25, -0.4])
    generator = torch.Generator().manual_seed(0)
    noise = {"id_basis": 4, "exp_basis": 3, "tex_basis": 5}
    return {
        "shape_mean": vertices,
        "tex_mean": torch.tensor([0.7, 0.5, 0.4]).expand_as(vertices).contiguous(),
        "triangles": torch.cat([upper, lower]).int(),
        "landmarks": torch.cdist(places, vertices[:, :2]).argmin(dim=1).int(),
        **{name: torch.randn(n, len(vertices), 3, generator=generator) * 0.01 for name, n in noise.items()},
    }


def write_tiny_weights(
    path: str | Path, backbone: str = "resnet18", task: str = "restore and inpaint", hole: str = "white"
) -> str:
    """Writes the checkpoint and returns its path."""
    archs = {
        "network_g": {"type": "SGPN", "size": 64, "width": 0.02, "max_channels": 16, "style_dim": 16, "latent_dim": 8},
        "network_shape": {"type": "D3DFR", "id_dim": 4, "exp_dim": 3, "tex_dim": 5, "backbone": backbone},
    }
    archs["network_g"]["coeff_dim"] = 4 + 3 + 5 + 3 + 27 + 3
    torch.manual_seed(0)
    states = {name: build_network(opt).state_dict() for name, opt in archs.items()}
    metadata = {"archs": archs, "template": "ffhq", "step": 0, "version": "0.1.0", "task": task, "hole": hole}
    model = MorphableModel(**dome_model(), name="dome")
    save_checkpoint(path, states, metadata, morphable_model=model)
    return str(path)
