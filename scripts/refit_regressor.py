"""Refits the last layers of a shape regressor in closed form, for another texture basis and for all levels of degradation.

python scripts/refit_regressor.py --data faces --morphable-model experiments/open_face_textures.safetensors \\
    -o experiments/regressor.safetensors

1. Identity, expression and pose are fitted to the known landmarks of every photo, the most probable ones given N(0, 1)
   coefficients and landmarks that are off by some pixels. 2. Texture and lighting are fitted to the photo's colours. 3. Ridge
   regression finds the layers that say all that from the features that the regressor's backbone, left as it is, has of the
   good photo and of degraded ones. What training by gradients needs an hour for takes minutes. All of it is a choice of ours.
"""

import argparse
from pathlib import Path

import torch
from learn_texture_basis import read_colors, regressor_view
from torch import Tensor
from tqdm import tqdm

from sgpn_arch.face3d.camera import rotation_matrix
from sgpn_arch.face3d.lighting import AMBIENT
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.face3d.shape_prior import ShapePrior
from sgpn_data.face_dataset import FaceRestorationDataset
from sgpn_model.cli.arguments import add_data
from sgpn_model.train.shape_model import LANDMARK_WEIGHTS
from sgpn_model.weights.checkpoint import load_checkpoint, save_checkpoint
from sgpn_model.weights.pretrained import find_weights

LEVELS = {"mild": 1, "medium": 2, "severe": 2}
LANDMARK_NOISE = 2.0  # pixels of 224, deviation of the known landmarks from the model's
COLOR_NOISE = 0.3  # deviation of a vertex's texture from the model's, in units that make vertices count as independent
STRANGER = 0.3  # a colour that is further from the mean texture's is hair or glasses
JITTER = 0.008  # deviation of the five points, as a part of the picture's width
HELD_OUT = 8  # every so many photos choose the ridge
RIDGES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)


# ------------------------------------------------------------------------------------------------------------
# What the coefficients should have been


def fit_landmarks(prior: ShapePrior, start: Tensor, truth: Tensor, photo: Tensor, steps: int = 300) -> Tensor:
    """The most probable identity, expression and pose of each view, given its landmarks.

    Args:
        start: (M, D) coefficients to begin with. truth: (M, 68, 2) in the regressor's image. photo: (M,) which photo a
            view is of; views of one photo share the identity.

    Returns:
        (M, D), texture and lighting as in ``start``.
    """
    model, points = prior.model, prior.model.landmarks
    identity, expression, texture, angles, lighting, translation = prior.split(start)
    first = torch.stack([identity[photo == number].mean(0) for number in range(int(photo.max()) + 1)])
    free = [value.clone().requires_grad_(True) for value in (first, expression, angles, translation)]
    mean, id_basis, exp_basis = model.shape_mean[points], model.id_basis[:, points], model.exp_basis[:, points]
    weights = LANDMARK_WEIGHTS / LANDMARK_NOISE**2
    optimizer = torch.optim.Adam(free, lr=0.03)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / steps) + 1e-4
        own = free[0][photo]
        shape = mean + torch.einsum("nk,kvc->nvc", own, id_basis) + torch.einsum("nk,kvc->nvc", free[1], exp_basis)
        found = prior.camera.project(shape @ rotation_matrix(free[2]) + free[3].unsqueeze(1))[0] - 0.5
        energy = ((found - truth).square().sum(2) * weights).sum() + free[0].square().sum() + free[1].square().sum()
        optimizer.zero_grad()
        energy.backward()
        optimizer.step()
    identity, expression, angles, translation = (value.detach() for value in free)
    return torch.cat([identity[photo], expression, texture, angles, lighting, translation], dim=1)


def fit_colors(
    prior: ShapePrior, textures: Tensor, seen: Tensor, colors: Tensor, basis: Tensor
) -> tuple[Tensor, Tensor]:
    """Texture coefficients (N, T) and lighting (N, 27) of what :func:`read_colors` read."""
    model = prior.model
    modes = model.tex_basis.flatten(1)
    texture, lighting = [], []
    for row in range(len(textures)):
        good = seen[row] & ((textures[row] - model.tex_mean).abs().amax(1) < STRANGER)
        own = modes * good.repeat_interleave(3)
        wanted = (textures[row] - model.tex_mean).flatten() / COLOR_NOISE**2
        normal = own @ own.T / COLOR_NOISE**2 + torch.eye(len(modes))
        texture.append(torch.linalg.solve(normal, own @ wanted))
        albedo = model.albedo(texture[-1][None])[0]
        lighting.append(_fit_light(albedo[good], colors[row][good], basis[row][good]))
    return torch.stack(texture), torch.stack(lighting)


def _fit_light(albedo: Tensor, colors: Tensor, basis: Tensor) -> Tensor:
    """Lighting (27,) that makes colours (V, 3) of albedo (V, 3); weakly held at none but the ambient."""
    ambient = torch.zeros(9)
    ambient[0] = AMBIENT
    found = []
    for channel in range(3):
        design = albedo[:, channel, None] * basis
        normal = design.T @ design + 0.01 * max(len(albedo), 1) * torch.eye(9)
        found.append(torch.linalg.solve(normal, design.T @ (colors[:, channel] - design @ ambient)))
    return torch.cat(found)


# ------------------------------------------------------------------------------------------------------------
# From features to coefficients


def ridge(features: Tensor, targets: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Weights (D, K) and biases (D,) of the regularised linear map from features (M, K) to targets (M, D)."""
    features, targets = features.double(), targets.double()
    center, middle = features.mean(0), targets.mean(0)
    own = features - center
    normal = own.T @ own
    normal += strength * normal.diagonal().mean() * torch.eye(len(normal), dtype=normal.dtype)
    weights = torch.linalg.solve(normal, own.T @ (targets - middle)).T
    return weights.float(), (middle - weights @ center).float()


def chosen_ridge(features: Tensor, targets: Tensor, photo: Tensor) -> tuple[Tensor, Tensor]:
    """The map of the strength that predicts photos best which it has not seen, fitted to all."""
    held = photo % HELD_OUT == 0
    scale = targets.std(0).clamp_min(1e-6)
    errors = {}
    for strength in RIDGES:
        weights, bias = ridge(features[~held], targets[~held], strength)
        errors[strength] = (((features[held] @ weights.T + bias - targets[held]) / scale).square().mean()).item()
    best = min(errors, key=errors.get)
    print(f"ridge {best:g}: {1 - errors[best]:.1%} of the variance of unseen photos' coefficients is explained")
    return ridge(features, targets, best)


# ------------------------------------------------------------------------------------------------------------
# The command


@torch.no_grad()
def look(prior: ShapePrior, dataset: FaceRestorationDataset, every: int) -> dict[str, Tensor]:
    """Features, first coefficients and landmarks of a good and a degraded view of each photo, and the good view's picture."""
    found: dict[str, list[Tensor]] = {"features": [], "coeffs": [], "truth": [], "photo": [], "picture": []}
    chosen, number = torch.utils.data.Subset(dataset, range(0, len(dataset), every)), 0
    for batch in tqdm(torch.utils.data.DataLoader(chosen, 16), desc="looking", unit="batch"):
        known = torch.isfinite(batch["landmarks68"]).all(dim=(1, 2))
        count = int(known.sum())
        for name in ("hq", "lq"):
            points5 = batch["points5"][known]
            points5 = points5 + JITTER * batch["hq"].shape[-1] * torch.randn_like(points5)
            picture, truth = regressor_view(prior, batch[name][known], points5, batch["landmarks68"][known])
            features = _features(prior.regressor, picture)
            heads = prior.regressor.final_layers
            coeffs = torch.cat([head(features[:, :, None, None]) for head in heads], dim=1).flatten(1)
            view = {"features": features, "coeffs": coeffs, "truth": truth}
            view["photo"] = torch.arange(number, number + count)
            if name == "hq":
                view["picture"] = (picture * 255).round().to(torch.uint8)
            for key, value in view.items():
                found[key].append(value)
        number += count
    # Good views of all photos first, in order, then the degraded ones.
    stacked = {key: torch.cat([*values[::2], *values[1::2]]) for key, values in found.items() if key != "picture"}
    return {**stacked, "picture": torch.cat(found["picture"])}


def _features(regressor: torch.nn.Module, picture: Tensor) -> Tensor:
    if regressor.imagenet_normalisation:
        picture = (picture - regressor.mean) / regressor.std
    return regressor.backbone(picture)


def main() -> None:
    """Looks, fits, solves and writes the regressor with its morphable model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data(parser, required=True)
    parser.add_argument("--min-size", type=int, default=1, metavar="PIXELS", help="leave smaller photos out")
    parser.add_argument("-o", "--output", required=True, type=Path)
    parser.add_argument("--weights", default="default", help="whose regressor it is")
    parser.add_argument("--morphable-model", type=Path, help="another model with the same dimensions")
    parser.add_argument("--every", type=int, default=1, help="take every n-th photo only")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    checkpoint = load_checkpoint(find_weights(arguments.weights))
    regressor = checkpoint.network("network_shape").eval().requires_grad_(False)
    path = arguments.morphable_model
    prior = ShapePrior(regressor, MorphableModel.read(path) if path else checkpoint.morphable_model()).eval()
    degradation = {"type": "DegradationMixture", "presets": LEVELS, "reference_size": 512}
    photos = {"dataroot": arguments.data, "split": "train", "min_size": arguments.min_size, "size": 256}
    dataset = FaceRestorationDataset({**photos, "phase": "train", "degradation": degradation})
    views = look(prior, dataset, arguments.every)

    coeffs = fit_landmarks(prior, views["coeffs"], views["truth"], views["photo"])
    parts = list(prior.split(coeffs))
    count = len(views["picture"])
    fitted = []
    for rows in tqdm(torch.arange(count).split(16), desc="colours", unit="batch"):
        picture = views["picture"][rows].float() / 255
        fitted.append(fit_colors(prior, *read_colors(prior, picture, coeffs[rows], views["truth"][rows])))
    texture, lighting = (torch.cat(values).repeat(2, 1) for values in zip(*fitted, strict=True))
    parts[2], parts[4] = texture, lighting
    weights, bias = chosen_ridge(views["features"], torch.cat(parts, dim=1), views["photo"])
    start = 0
    for head in regressor.final_layers:
        size = len(head.bias)
        head.weight.copy_(weights[start : start + size, :, None, None])
        head.bias.copy_(bias[start : start + size])
        start += size
    about = {**checkpoint.metadata, "archs": {"network_shape": checkpoint.metadata["archs"]["network_shape"]}}
    save_checkpoint(arguments.output, {"network_shape": regressor.state_dict()}, about, None, prior.model)
    identity = parts[0][:count]
    print(f"{arguments.output}: {count} photos; fitted identities have deviation {identity.std(0).mean():.2f} per mode")


if __name__ == "__main__":
    main()
