"""Learns the open morphable model's texture, and where its landmarks are, from photos of faces.

python scripts/learn_texture_basis.py --data faces -o open_face_textures.safetensors --modes 40

Every photo is read by a trained regressor, and shape and pose are fitted to the 68 known landmarks; then each landmark of brows,
lips and jaw goes to the vertex that lies nearest to it on average. The mesh is laid on the photo, moved so that its landmarks
lie on the known ones, and each vertex that the camera sees takes its colour from the photo. The light is taken out (a luminance
of second-order spherical harmonics whose constant is one, so that the skin's tone stays in the texture). Above the brows and
beside the eyes only colours like those of the same photo's cheeks count, so that no hair gets in; elsewhere strangers are left
out. Each photo counts with its mirror image, and a principal component analysis that fills in what was not seen gives the basis.
Vertices that few photos show keep the pattern that they had. All of it is a choice of ours.

A regressor belongs to its model: with the new one, it must be trained anew (options/train/shape_open.yml).
"""

import argparse
import warnings
from collections.abc import Callable
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
from sgpn_data.face_dataset import MIRROR_68, FaceRestorationDataset
from sgpn_model.cli.arguments import add_data
from sgpn_model.train.shape_model import LANDMARK_WEIGHTS, face_region
from sgpn_model.weights.checkpoint import load_checkpoint
from sgpn_model.weights.pretrained import find_weights

LANDMARK_NOISE = 2.0  # pixels of 224, deviation of the known landmarks from the model's
PLACINGS = 2  # times that landmarks are fitted and their vertices chosen anew
NEAR = 120  # vertices around a landmark's that may take its place
FACING = 0.15  # least cosine between normal and line of sight of a vertex that is read
REACH = 18.0  # pixels of 224: how far a landmark pulls its surroundings along
SEEN = 0.15  # least part of the photos (with their mirror images) that must show a vertex
SKIN = ((0.75, 1.35), 0.12)  # brightness and colour beside the cheeks' (as factors) of what is skin above the brows
OUTLIER = 4.0  # robust deviations from a vertex's median beyond which its colour is a stranger's
BAND = 12  # rounds of smoothing between learnt and painted
ROUNDS = 4  # of filling in what was not seen


# ------------------------------------------------------------------------------------------------------------
# From landmarks to the shape


def fit_landmarks(prior: ShapePrior, start: Tensor, truth: Tensor, photo: Tensor, steps: int = 300) -> Tensor:
    """The most probable identity, expression and pose of each view, given its landmarks.

    Args:
        start: (M, D) coefficients to begin with. truth: (M, 68, 2) in the regressor's image. photo: (M,) which photo a
            view is of; views of one photo share identity and expression.

    Returns:
        (M, D), texture and lighting as in ``start``.
    """
    landmarks = landmark_model(prior)
    identity, expression, texture, angles, lighting, translation = prior.split(start)
    count = torch.bincount(photo)[:, None]
    own, calm = (torch.zeros(len(count), v.shape[1]).index_add_(0, photo, v) / count for v in (identity, expression))
    free = [value.clone().requires_grad_(True) for value in (own, calm, angles, translation)]
    weights = LANDMARK_WEIGHTS / LANDMARK_NOISE**2
    optimizer = torch.optim.Adam(free, lr=0.03)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / steps) + 1e-4
        found = landmarks(free[0], free[1], photo, free[2], free[3])
        energy = ((found - truth).square().sum(2) * weights).sum() + free[0].square().sum() + free[1].square().sum()
        optimizer.zero_grad()
        energy.backward()
        optimizer.step()
    identity, expression, angles, translation = (value.detach() for value in free)
    return torch.cat([identity[photo], expression[photo], texture, angles, lighting, translation], dim=1)


def landmark_model(prior: ShapePrior) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Where the prior's 68 landmarks (M, 68, 2) fall in the regressor's image, without the rest of the mesh.

    What it gives is called with identity (N, I) and expression (N, E) of faces, which face each of M views is of (M,), and
    the views' angles (M, 3) and translations (M, 3).
    """
    model, points = prior.model, prior.model.landmarks
    mean = model.shape_mean[points].flatten()
    bases = torch.cat([model.id_basis[:, points], model.exp_basis[:, points]]).flatten(1)

    def landmarks(identity: Tensor, expression: Tensor, face: Tensor, angles: Tensor, translation: Tensor) -> Tensor:
        shape = torch.addmm(mean, torch.cat([identity, expression], 1), bases).unflatten(1, (-1, 3))[face]
        return prior.camera.project(shape @ rotation_matrix(angles) + translation.unsqueeze(1))[0] - 0.5

    return landmarks


def placed_landmarks(prior: ShapePrior, coeffs: Tensor, truth: Tensor, views: int = 400) -> Tensor:
    """For each landmark the vertex (68,) that lies nearest to it on average over some of the views; mirrored pairs stay so.

    The points that align a photo (eyes, nose tip, corners of the mouth) and the lines that are in the middle stay.

    Args:
        coeffs: (M, D) fitted to truth (M, 68, 2).
    """
    model = prior.model
    mirror, old = mirror_of(model), model.landmarks
    near = (
        torch.cdist(model.shape_mean[old], model.shape_mean)
        .topk(min(NEAR, len(model.shape_mean)), largest=False)
        .indices
    )
    cost = torch.zeros(near.shape)
    for rows in torch.arange(len(coeffs))[:: max(1, len(coeffs) // views)].split(32):
        found = prior.mesh(coeffs[rows]).points - 0.5
        cost += (found[:, near] - truth[rows].unsqueeze(2)).norm(dim=3).sum(0)
    new = old.clone()
    for point in (*range(8), *range(17, 22), 49, 50, 59, 58, 60, 61, 67):
        other = int(MIRROR_68[point])
        # What each candidate costs on both sides; the mirror of a candidate must be one of the other point's.
        same = mirror[near[point]][:, None] == near[other]
        both = cost[point] + torch.where(same, cost[other], torch.inf).amin(1)
        new[point] = near[point][both.argmin()]
        new[other] = mirror[new[point]]
    return new


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
        textures without light (N, V, 3), which vertices were seen and are not hair (N, V), colours with light (N, V, 3) and
        the lighting's basis at each vertex (N, V, 9).
    """
    mesh, size = prior.mesh(coeffs), prior.camera.size
    places = _pulled(mesh.points - 0.5, prior.landmarks224(mesh), truth)
    colors, inside = (_sampled(image, places) for image in (photo, face_region(truth, size)))
    normals = prior.model.normals(mesh.shape) @ rotation_matrix(prior.split(coeffs)[3])
    seen = _visible(prior, mesh) & (normals[..., 2] > FACING) & (inside[..., 0] > 0.5)
    basis = sh_basis(normals)
    light = _light(colors, prior.model.tex_mean, basis, seen)
    textures = colors / light
    return textures, own_skin(prior.model, textures, seen), colors, basis


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
    """Brightness of each vertex (N, V, 1), fitted to the luminance over that of the mean texture; its constant is 1.

    Fitted twice: vertices that the first light is far from, such as dark hair, do not count in the second.
    """
    ratio = colors.mean(2) / mean.mean(1).clamp_min(0.05)
    brightness = torch.ones(*ratio.shape, 1)
    ridge = torch.diag(torch.tensor([0.0] + [0.02] * 8, dtype=torch.float64))
    for row in range(len(ratio)):
        chosen = seen[row] & (ratio[row] > 0.1) & (ratio[row] < 3)
        for _ in range(2):
            if chosen.sum() < 100:
                break
            known, wanted = basis[row][chosen].double(), ratio[row][chosen].double()
            gamma = torch.linalg.solve(known.T @ known + len(known) * ridge, known.T @ wanted).float()
            light = basis[row] @ gamma
            brightness[row, :, 0] = light / (basis[row, 0, 0] * gamma[0]).clamp_min(0.05)
            chosen = chosen & ((ratio[row] / light.clamp_min(0.05) - 1).abs() < 0.3)
    return brightness.clamp(0.3, 3.0)


def cheeks(model: MorphableModel) -> Tensor:
    """Vertices between the lower lids and the upper lip, down to which beards seldom grow: bool (V,)."""
    place, points = model.shape_mean, model.shape_mean[model.landmarks]
    across = place[:, 0].abs() < points[[36, 45], 0].abs().mean()
    return across & (place[:, 1] < points[[40, 41, 46, 47], 1].min()) & (place[:, 1] > points[33, 1])


def own_skin(model: MorphableModel, textures: Tensor, seen: Tensor) -> Tensor:
    """``seen`` (N, V) less what, above the brows or beside the eyes, has not the colour of the cheeks in textures (N, V, 3)."""
    place, points = model.shape_mean, model.shape_mean[model.landmarks]
    outside = (place[:, 1] > points[17:27, 1].mean()) | (place[:, 0].abs() > points[[36, 45], 0].abs().mean())
    sure, kept = cheeks(model), seen.clone()
    for texture, row in zip(textures, kept, strict=True):
        known = row & sure
        if known.sum() < 20:
            row[outside] = False
            continue
        ratio = texture.clamp_min(1e-3) / texture[known].median(0).values.clamp_min(1e-3)
        brightness = ratio.mean(1)
        (least, most), colour = SKIN
        alike = (brightness > least) & (brightness < most) & ((ratio / brightness[:, None] - 1).abs().amax(1) < colour)
        row &= alike | ~outside
    return kept


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
        basis, left = _strongest(data - center, modes)
        if round_number < rounds - 1:
            data = np.where(known, original, left @ basis + center)
    basis = basis / np.sqrt(len(data) - 1)
    return center.reshape(-1, 3), basis.reshape(modes, -1, 3)


def _strongest(data: np.ndarray, modes: int) -> tuple[np.ndarray, np.ndarray]:
    """The strongest modes of data (N, K): basis (modes, K) that carries their strength, and (N, modes) orthonormal."""
    torch.manual_seed(
        0
    )  # it begins at random, and comes close to the whole decomposition, which thousands of photos forbid
    left, strength, right = torch.svd_lowrank(torch.from_numpy(data), min(modes + 20, *data.shape), niter=4)
    return (strength[:modes, None] * right.T[:modes]).numpy(), left[:, :modes].numpy()


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
    pictures, truth, coeffs = [], [], []
    chosen = torch.utils.data.Subset(dataset, range(0, len(dataset), arguments.every))
    for batch in tqdm(torch.utils.data.DataLoader(chosen, 16), desc="reading", unit="batch"):
        known = torch.isfinite(batch["landmarks68"]).all(dim=(1, 2))
        if known.any():
            photo, places = regressor_view(prior, *(batch[key][known] for key in ("hq", "points5", "landmarks68")))
            with torch.no_grad():
                coeffs.append(prior.regressor(photo))
            pictures.append((photo * 255).round().to(torch.uint8))
            truth.append(places)
    count = 2 * sum(map(len, pictures))  # with their mirror images
    if count <= arguments.modes:
        parser.error(
            f"--modes {arguments.modes}: {count // 2} photos with known landmarks are too few; give more, or fewer modes"
        )
    pictures, truth, coeffs = map(torch.cat, (pictures, truth, coeffs))
    for _ in range(PLACINGS):
        coeffs = fit_landmarks(prior, coeffs, truth, torch.arange(len(coeffs)))
        with torch.no_grad():
            prior.model.landmarks.copy_(placed_landmarks(prior, coeffs, truth))
    coeffs = fit_landmarks(prior, coeffs, truth, torch.arange(len(coeffs)))
    textures, seen = [], []
    for rows in tqdm(torch.arange(len(coeffs)).split(16), desc="colours", unit="batch"):
        found = read_colors(prior, pictures[rows].float() / 255, coeffs[rows], truth[rows])
        textures.append(found[0])
        seen.append(found[1])
    model = learn(prior.model, torch.cat(textures), torch.cat(seen), arguments.modes)
    model.save(arguments.output, dtype=torch.float16)
    share = model.tex_basis.square().sum((1, 2))
    print(
        f"{arguments.output}: modes 1-5 of {arguments.modes} hold {(share[:5].sum() / share.sum()).item():.0%} of the variance"
    )


if __name__ == "__main__":
    main()
