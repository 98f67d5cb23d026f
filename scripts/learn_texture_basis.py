"""Learns the open morphable model's mean texture and texture basis from photos of faces.

python scripts/learn_texture_basis.py --data faces -o open_face_textures.safetensors --modes 40

Every photo is read by a trained regressor, and its mesh is laid on the photo, moved so that the 68 landmarks lie on the known
ones. Each vertex that the camera sees takes its colour from the photo. The light is taken out (a luminance of second-order
spherical harmonics whose constant is one, so that the skin's tone stays in the texture), hair and other strangers are left
out, each photo counts with its mirror image, and a principal component analysis that fills in what was not seen gives the
basis. Vertices that few photos show keep
the pattern that they had. All of it is a choice of ours.

A regressor belongs to its model: with the new one, it must be trained anew (options/train/shape_open.yml).
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sgpn_arch.face3d.camera import rotation_matrix
from sgpn_arch.face3d.crop224 import warp_affine
from sgpn_arch.face3d.lighting import sh_basis
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.face3d.raster.rasterizer import rasterize
from sgpn_arch.face3d.shape_prior import ShapePrior
from sgpn_data.face_dataset import FaceRestorationDataset
from sgpn_model.cli.arguments import add_data
from sgpn_model.train.shape_model import face_region
from sgpn_model.weights.checkpoint import load_checkpoint
from sgpn_model.weights.pretrained import find_weights

FACING = 0.15  # least cosine between normal and line of sight of a vertex that is read
REACH = 18.0  # pixels of 224: how far a landmark pulls its surroundings along
SEEN = 0.15  # least part of the photos (with their mirror images) that must show a vertex
OUTLIER = 4.0  # robust deviations from a vertex's median beyond which its colour is a stranger's
BAND = 12  # rounds of smoothing between learnt and painted
ROUNDS = 4  # of filling in what was not seen


# ------------------------------------------------------------------------------------------------------------
# From a photo to the colours of the vertices


@torch.no_grad()
def read_colors(
    prior: ShapePrior, photo: Tensor, coeffs: Tensor, truth: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a photo says of each vertex of the mesh that is laid on it.

    Args:
        photo: (N, 3, 224, 224) the regressor's images, 0..1. coeffs: (N, D). truth: (N, 68, 2) known landmarks in them.

    Returns:
        textures without light (N, V, 3), which vertices were seen (N, V), colours with light (N, V, 3) and the lighting's
        basis at each vertex (N, V, 9).
    """
    mesh, size = prior.mesh(coeffs), prior.camera.size
    places = _pulled(mesh.points - 0.5, prior.landmarks224(mesh), truth)
    colors, inside = (_sampled(image, places) for image in (photo, face_region(truth, size)))
    normals = prior.model.normals(mesh.shape) @ rotation_matrix(prior.split(coeffs)[3])
    seen = _visible(prior, mesh) & (normals[..., 2] > FACING) & (inside[..., 0] > 0.5)
    basis = sh_basis(normals)
    light = _light(colors, prior.model.tex_mean, basis, seen)
    return colors / light, seen, colors, basis


def regressor_view(prior: ShapePrior, images: Tensor, points5: Tensor, landmarks68: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, S, S) -> the regressor's images (N, 3, 224, 224) in 0..1 and the landmarks (N, 68, 2) in them."""
    transform = prior.transform(points5, images.shape[-1])
    truth = landmarks68 @ transform[:, :, :2].transpose(1, 2) + transform[:, :, 2].unsqueeze(1)
    return warp_affine((images + 1) / 2, transform, prior.camera.size).clamp(0, 1), truth


def _pulled(places: Tensor, found: Tensor, truth: Tensor) -> Tensor:
    """Places (N, V, 2), moved as the landmarks near them must be moved, from found to truth (N, 68, 2)."""
    distance = torch.cdist(places, found)
    weights = torch.exp(-0.5 * (distance / REACH).square())
    return places + weights @ (truth - found) / weights.sum(2, keepdim=True).clamp_min(0.2)


def _sampled(image: Tensor, places: Tensor) -> Tensor:
    grid = ((places + 0.5) / image.shape[-1] * 2 - 1).unsqueeze(2)
    found = torch.nn.functional.grid_sample(image, grid, mode="bilinear", align_corners=False)
    return found.squeeze(3).transpose(1, 2)


def _visible(prior: ShapePrior, mesh) -> Tensor:
    """Vertices of triangles that the rasterizer draws somewhere (N, V)."""
    size, triangles = prior.camera.size, prior.model.triangles
    ids = rasterize(mesh.points, mesh.depth, triangles, (size, size), prior.rasterizer).triangle_ids
    seen = torch.zeros(mesh.points.shape[:2], dtype=torch.bool)
    for row, drawn in zip(seen, ids, strict=True):
        row[triangles[drawn[drawn >= 0].unique()].flatten()] = True
    return seen


def _light(colors: Tensor, mean: Tensor, basis: Tensor, seen: Tensor) -> Tensor:
    """Brightness of each vertex (N, V, 1), fitted to the luminance over that of the mean texture; its constant is 1."""
    ratio = colors.mean(2) / mean.mean(1).clamp_min(0.05)
    brightness = torch.ones(*ratio.shape, 1)
    for row in range(len(ratio)):
        chosen = seen[row] & (ratio[row] > 0.1) & (ratio[row] < 3)
        if chosen.sum() < 100:
            continue
        known, wanted = basis[row][chosen].double(), ratio[row][chosen].double()
        ridge = 0.02 * len(known) * torch.diag(torch.tensor([0.0] + [1.0] * 8, dtype=torch.float64))
        gamma = torch.linalg.solve(known.T @ known + ridge, known.T @ wanted).float()
        brightness[row, :, 0] = (basis[row] @ gamma) / (basis[row, 0, 0] * gamma[0]).clamp_min(0.05)
    return brightness.clamp(0.3, 3.0)


# ------------------------------------------------------------------------------------------------------------
# From colours to a basis


def mirror_of(model: MorphableModel) -> Tensor:
    """Index of each vertex's mirror image at x -> -x, by the mean shape."""
    mean = model.shape_mean
    return torch.cdist(mean * torch.tensor([-1.0, 1.0, 1.0]), mean).argmin(1)


def principal_components(
    textures: np.ndarray, seen: np.ndarray, modes: int, rounds: int = ROUNDS
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and basis of textures (N, V, 3) of which only ``seen`` (N, V) counts.

    What was not seen starts as the mean and is then filled in with what the basis says of the rest, again and again.

    Returns:
        mean (V, 3), basis (modes, V, 3) that carries its standard deviations.
    """
    weight = seen[..., None].astype(np.float32)
    mean = (textures * weight).sum(0) / np.maximum(weight.sum(0), 1)
    data = np.where(seen[..., None], textures, mean).reshape(len(textures), -1).astype(np.float32)
    known = np.repeat(seen, 3, axis=1)
    original = data.copy()
    for round_number in range(rounds):
        center = data.mean(0)
        values, vectors = np.linalg.eigh((data - center) @ (data - center).T)
        left = vectors[:, ::-1][:, :modes]
        basis = left.T @ (data - center)
        if round_number < rounds - 1:
            data = np.where(known, original, left @ basis + center)
    basis = basis / np.sqrt(len(data) - 1)
    return center.reshape(-1, 3), basis.reshape(modes, -1, 3)


def without_strangers(textures: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """``seen`` less the colours that are far from their vertex's median: hair, glasses, highlights, background."""
    values = np.where(seen[..., None], textures, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # vertices that no photo shows
        median = np.nanmedian(values, axis=0)
        spread = 1.4826 * np.nanmedian(np.abs(values - median), axis=0)
        return seen & (np.abs(textures - median) <= OUTLIER * np.maximum(spread, 0.02)).all(2)


def learn(model: MorphableModel, textures: Tensor, seen: Tensor, modes: int) -> MorphableModel:
    """The model with mean texture and basis learnt from textures (N, V, 3); vertices that are seldom seen keep their pattern."""
    mirror = mirror_of(model)
    textures = torch.cat([textures, textures[:, mirror]]).numpy()
    seen = without_strangers(textures, torch.cat([seen, seen[:, mirror]]).numpy())
    mean, basis = principal_components(textures, seen, modes)
    mean, basis = torch.from_numpy(mean).float(), torch.from_numpy(basis).float()
    # From the painted texture to the learnt one over a band of vertices, so that no seam shows.
    share = smoothed(torch.from_numpy(seen.mean(0) > SEEN).float()[:, None], model.triangles)
    share = share * torch.from_numpy(np.clip(seen.mean(0) / SEEN, 0, 1).astype(np.float32))[:, None]
    parts = model.tensors()
    sure = share[:, 0] > 0.9
    skin = mean[sure].mean(0)
    # Where no photo shows the skin it has the painted pattern, in the tone of the face.
    elsewhere = parts["tex_mean"] / parts["tex_mean"][sure].mean(0)
    parts["tex_mean"] = torch.lerp(elsewhere * skin, mean, share)
    parts["tex_basis"] = torch.lerp(elsewhere * basis[:, sure].mean(1, keepdim=True), basis, share)
    return MorphableModel(**parts, name=f"{model.name} with learnt textures")


def smoothed(values: Tensor, triangles: Tensor, rounds: int = BAND) -> Tensor:
    """Values (V, C), taken ``rounds`` times as the mean over each vertex's triangles."""
    count = torch.zeros(len(values), 1).index_add_(0, triangles.flatten(), torch.ones(triangles.numel(), 1))
    for _ in range(rounds):
        means = values[triangles].mean(1).repeat_interleave(3, 0)
        values = torch.zeros_like(values).index_add_(0, triangles.flatten(), means) / count.clamp_min(1)
    return values


def main() -> None:
    """Reads the photos, learns, and writes the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data(parser, required=True)
    parser.add_argument("--min-size", type=int, default=1, metavar="PIXELS", help="leave smaller photos out")
    parser.add_argument("-o", "--output", required=True, type=Path)
    parser.add_argument("--weights", default="default", help="whose regressor reads the photos")
    parser.add_argument("--modes", type=int, default=40)
    parser.add_argument("--every", type=int, default=1, help="take every n-th photo only")
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(find_weights(arguments.weights))
    prior = ShapePrior(checkpoint.network("network_shape"), checkpoint.morphable_model()).eval()
    photos = {"dataroot": arguments.data, "split": "train", "min_size": arguments.min_size, "size": 256}
    dataset = FaceRestorationDataset({**photos, "degradation": None, "use_hflip": False, "phase": "test"})
    textures, seen = [], []
    chosen = torch.utils.data.Subset(dataset, range(0, len(dataset), arguments.every))
    for batch in tqdm(torch.utils.data.DataLoader(chosen, 16), desc="reading", unit="batch"):
        known = torch.isfinite(batch["landmarks68"]).all(dim=(1, 2))
        if known.any():
            photo, truth = regressor_view(prior, *(batch[key][known] for key in ("hq", "points5", "landmarks68")))
            with torch.no_grad():
                found = read_colors(prior, photo, prior.regressor(photo), truth)
            textures.append(found[0])
            seen.append(found[1])
    count = 2 * sum(map(len, textures))  # with their mirror images
    if count <= arguments.modes:
        parser.error(
            f"--modes {arguments.modes}: {count // 2} photos with known landmarks are too few; give more, or fewer modes"
        )
    model = learn(prior.model, torch.cat(textures), torch.cat(seen), arguments.modes)
    model.save(arguments.output, dtype=torch.float16)
    share = model.tex_basis.square().sum((1, 2))
    print(
        f"{arguments.output}: modes 1-5 of {arguments.modes} hold {(share[:5].sum() / share.sum()).item():.0%} of the variance"
    )


if __name__ == "__main__":
    main()
