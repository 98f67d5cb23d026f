"""A random morphable model of any size, for benchmarks and tests where the Basel model, which is not free, may not be."""

import numpy as np
import torch

from sgpn_arch.face3d.morphable_model import MorphableModel

# Of the Basel Face Model 2009 with FaceWarehouse's expressions, as SGPN's authors prepare it: 70,789 triangles.
BFM_VERTICES, BFM_DIMS = 35709, (80, 64, 80)
RADII = (0.85, 1.2)  # of the outline, decimetres
WAVES = 24


def synthetic_model(
    vertices: int = BFM_VERTICES, dims: tuple[int, int, int] = BFM_DIMS, seed: int = 0
) -> MorphableModel:
    """A mask of a face's size with a nose, in smooth random modes: as expensive as a real model, and as random as its seed.

    Vertices lie on a square grid within an oval, row by row, so that neighbours lie near each other in memory as they do
    in a scanned face; there are slightly less than two triangles for each. Of the landmarks, those that align a photo lie
    where they do in a face (the Basel model's), the others at random.

    Args:
        vertices: at least 1000. dims: number of identity, expression and texture modes.
    """
    rng = np.random.default_rng(seed)
    cells, inside = _grid(vertices)
    x, y = (cells[inside] * [1, -1] * RADII).T
    nose = np.exp(-(x**2 + (y + 0.05) ** 2) / 0.03)
    mean = np.stack([x, y, 0.1 - 0.7 * x**2 - 0.2 * y**2 + 0.4 * nose], 1)
    bases = [_smooth_modes(rng, mean, count, size) for count, size in zip(dims, (0.03, 0.02, 0.05), strict=True)]
    values = {
        "shape_mean": mean,
        "id_basis": bases[0],
        "exp_basis": bases[1],
        "tex_mean": np.array([0.75, 0.55, 0.45]) + 0.1 * nose[:, None],
        "tex_basis": bases[2],
        "triangles": _triangles(inside),
        "landmarks": _landmarks(rng, mean),
    }
    return MorphableModel(**{key: torch.tensor(value) for key, value in values.items()}, name=f"synthetic-{vertices}")


def _grid(vertices: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (R, R, 2) of a grid, and which of them (R, R) are the vertices: those nearest to its middle."""
    side = int(np.ceil(np.sqrt(vertices * 4 / np.pi))) + 3
    axis = np.linspace(-1, 1, side)
    points = np.stack(np.meshgrid(axis, axis), -1)
    order = np.argsort((points**2).sum(-1).ravel(), kind="stable")
    inside = np.zeros(side * side, bool)
    inside[order[:vertices]] = True
    return points, inside.reshape(side, side)


def _triangles(inside: np.ndarray) -> np.ndarray:
    """(F, 3): each square of four vertices cut in two, and the triangles where one corner is missing."""
    index = np.where(inside, inside.cumsum().reshape(inside.shape) - 1, -1)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    # Rows run downwards, so that these are counter-clockwise seen from the front.
    halves = np.stack([np.stack([a, c, b], -1), np.stack([b, c, d], -1)], 2)
    whole = (np.stack([a, b, c, d]) >= 0).all(0)
    corners = [np.stack(three, -1) for three in ((a, c, b), (b, c, d), (a, c, d), (a, d, b))]
    lone = [three[((three >= 0).all(-1)) & ~whole] for three in corners]
    return np.concatenate([halves[whole].reshape(-1, 3), *lone])


def _smooth_modes(rng: np.random.Generator, points: np.ndarray, count: int, size: float) -> np.ndarray:
    """(count, V, 3): sums of random waves, of a standard deviation that falls from `size` to a tenth of it."""
    waves = np.cos(points @ rng.normal(0, 3, (3, WAVES)) + rng.uniform(0, 2 * np.pi, WAVES)).astype(np.float32)
    strength = size * np.geomspace(1, 0.1, count) * np.sqrt(2 / WAVES)
    weights = rng.normal(size=(count, 3, WAVES)) * strength[:, None, None]
    return np.einsum("vw,mcw->mvc", waves, weights.astype(np.float32), optimize=True)


def _landmarks(rng: np.random.Generator, mean: np.ndarray) -> np.ndarray:
    """(68,) vertices in iBUG order."""
    chosen = rng.permutation(len(mean))[:68]
    places = {30: (0, -0.05), 48: (-0.25, -0.38), 54: (0.25, -0.38)}
    places |= dict.fromkeys(range(36, 42), (-0.31, 0.29)) | dict.fromkeys(range(42, 48), (0.31, 0.29))
    for number, place in places.items():
        chosen[number] = ((mean[:, :2] - place) ** 2).sum(1).argmin()
    return chosen
