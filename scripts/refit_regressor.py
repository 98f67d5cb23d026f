"""Refits the last layers of a shape regressor, for another texture basis and for all levels of degradation.

python scripts/refit_regressor.py --data faces --morphable-model experiments/open_face_textures.safetensors \\
    -o experiments/regressor.safetensors

1. Identity, expression and pose are fitted to the known landmarks of every photo, the most probable ones given N(0, 1)
   coefficients and landmarks that are off by some pixels. 2. Texture and lighting are fitted to the photo's colours. 3. Ridge
   regression finds the heads that say all that from the features that the regressor's backbone has of the good photo and of
   degraded ones. 4. The backbone's layers of 7x7 places are trained on with the heads, towards landmarks, coefficients and
   colours. The layers before stay, so that they see each view once, which is most of the work; what training the whole network
   needs an hour for takes minutes. One photo in six is seen grey, and fitted as such. All of it is a choice of ours.
"""

import argparse
import math
from pathlib import Path

import torch
from learn_texture_basis import fit_landmarks, landmark_model, read_colors, regressor_view
from torch import Tensor, nn
from tqdm import tqdm

from sgpn_arch.d3dfr_arch import D3DFR, MobileNetV2
from sgpn_arch.face3d.camera import rotation_matrix
from sgpn_arch.face3d.lighting import AMBIENT, shade
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.face3d.shape_prior import ShapePrior
from sgpn_data.face_dataset import FaceRestorationDataset
from sgpn_model.cli.arguments import add_data
from sgpn_model.train.losses import landmark_error
from sgpn_model.weights.checkpoint import load_checkpoint, save_checkpoint
from sgpn_model.weights.pretrained import find_weights

LEVELS = {"mild": 1, "medium": 2, "severe": 2}
COLOR_NOISE = 0.3  # deviation of a vertex's texture from the model's, in units that make vertices count as independent
STRANGER = 0.3  # a colour that is further from the mean texture's is hair or glasses
JITTER = 0.008  # deviation of the five points, as a part of the picture's width
HELD_OUT = 8  # every so many photos choose the ridge
GREY = 6  # one photo in so many
LATE = 15  # the block of MobileNetV2 that training begins with, the second of those with 7x7 places
LUMA = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
VERTICES = 400  # whose colours are compared
RIDGES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)


# ------------------------------------------------------------------------------------------------------------
# What the coefficients should have been


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
# Training the layers before the heads


def set_heads(regressor: D3DFR, weights: Tensor, bias: Tensor) -> None:
    """Writes the linear map (D, K), (D,) into the regressor's heads."""
    sizes = [len(head.bias) for head in regressor.final_layers]
    for head, weight, value in zip(regressor.final_layers, weights.split(sizes), bias.split(sizes), strict=True):
        head.weight.data.copy_(weight[:, :, None, None])
        head.bias.data.copy_(value)


def train_late(
    prior: ShapePrior, maps: Tensor, coeffs: Tensor, truth: Tensor, steps: int, batch: int = 64, rate: float = 1e-3
) -> list[float]:
    """Trains the late layers and the heads of the prior's regressor, in place; batch norms keep their statistics.

    The loss is the landmarks' distance in % of that of the eyes' outer corners, half the coefficients' squared error in
    units of their deviation, and thirty times the difference of lit colours on some vertices.

    Args:
        maps: (M, 160, 7, 7) what the layers before made of each view. coeffs: (M, D) wanted. truth: (M, 68, 2).
        steps: of Adam. batch: views per step. rate: of learning, falling to 0 as a cosine.

    Returns:
        The landmarks' part of the loss at each step.
    """
    regressor, model = prior.regressor, prior.model
    late = nn.Sequential(*regressor.backbone.features[LATE:]).eval()
    parameters = [*late.parameters(), *regressor.final_layers.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, lr=rate)
    scale = coeffs.std(0).clamp_min(0.01)
    landmarks = landmark_model(prior)
    chosen = torch.randperm(len(model.shape_mean))[:VERTICES]
    normals = model.normals(model.shape_mean[None])[:, chosen]
    albedo_mean, albedo_basis = model.tex_mean[chosen], model.tex_basis[:, chosen]

    def lit(parts: tuple[Tensor, ...]) -> Tensor:
        albedo = albedo_mean + torch.einsum("nk,kvc->nvc", parts[2], albedo_basis)
        return shade(albedo, normals @ rotation_matrix(parts[3]), parts[4])

    errors = []
    for step in tqdm(range(steps), desc="training", unit="step"):
        optimizer.param_groups[0]["lr"] = (
            rate * min(1, (step + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        )
        rows = torch.randint(len(maps), (batch,))
        features = regressor.backbone.avgpool(late(maps[rows].float()))[:, :, None, None]
        found = torch.cat([head(features) for head in regressor.final_layers], dim=1).flatten(1)
        parts, wanted = prior.split(found), coeffs[rows]
        places = landmarks(parts[0], parts[1], torch.arange(batch), parts[3], parts[5])
        distance = landmark_error(places, truth[rows]).mean()
        loss = distance + 0.5 * ((found - wanted) / scale).square().mean()
        loss = loss + 30 * (lit(parts) - lit(prior.split(wanted))).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 20.0)
        optimizer.step()
        errors.append(distance.item())
    return errors


# ------------------------------------------------------------------------------------------------------------
# The command


@torch.no_grad()
def look(prior: ShapePrior, dataset: FaceRestorationDataset, every: int) -> dict[str, Tensor]:
    """A good and a degraded view of each photo: maps, features, first coefficients and landmarks, and the good one's picture."""
    keys = ("maps", "features", "coeffs", "truth", "photo", "picture")
    found: dict[str, list[Tensor]] = {key: [] for key in keys}
    regressor = prior.regressor
    chosen, number = torch.utils.data.Subset(dataset, range(0, len(dataset), every)), 0
    for batch in tqdm(torch.utils.data.DataLoader(chosen, 16), desc="looking", unit="batch"):
        known = torch.isfinite(batch["landmarks68"]).all(dim=(1, 2))
        count = int(known.sum())
        for name in ("hq", "lq"):
            points5 = batch["points5"][known]
            points5 = points5 + JITTER * batch["hq"].shape[-1] * torch.randn_like(points5)
            picture, truth = regressor_view(prior, batch[name][known], points5, batch["landmarks68"][known])
            photo = torch.arange(number, number + count)
            grey = (photo % GREY == 0)[:, None, None, None]
            picture = torch.where(grey, (picture * LUMA).sum(1, keepdim=True), picture)
            maps = regressor.backbone.features[:LATE]((picture - regressor.mean) / regressor.std)
            features = regressor.backbone.avgpool(regressor.backbone.features[LATE:](maps))
            heads = regressor.final_layers
            coeffs = torch.cat([head(features[:, :, None, None]) for head in heads], dim=1).flatten(1)
            view = {"maps": maps.half(), "features": features, "coeffs": coeffs, "truth": truth, "photo": photo}
            if name == "hq":
                view["picture"] = (picture * 255).round().to(torch.uint8)
            for key, value in view.items():
                found[key].append(value)
        number += count
    # Good views of all photos first, in order, then the degraded ones.
    stacked = {key: torch.cat([*values[::2], *values[1::2]]) for key, values in found.items() if key != "picture"}
    return {**stacked, "picture": torch.cat(found["picture"])}


def main() -> None:
    """Looks, fits, solves and writes the regressor with its morphable model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data(parser, required=True)
    parser.add_argument("--min-size", type=int, default=1, metavar="PIXELS", help="leave smaller photos out")
    parser.add_argument("-o", "--output", required=True, type=Path)
    parser.add_argument("--weights", default="default", help="whose regressor it is")
    parser.add_argument("--morphable-model", type=Path, help="another model with the same dimensions")
    parser.add_argument("--every", type=int, default=1, help="take every n-th photo only")
    parser.add_argument(
        "--steps", type=int, default=1000, help="of training the late layers; 0: heads in closed form only"
    )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    checkpoint = load_checkpoint(find_weights(arguments.weights))
    regressor = checkpoint.network("network_shape").eval().requires_grad_(False)
    if not isinstance(getattr(regressor, "backbone", None), MobileNetV2) or not regressor.imagenet_normalisation:
        parser.error(
            f"--weights {arguments.weights}: its regressor must be a D3DFR on an ImageNet-normalised mobilenet_v2"
        )
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
    wanted = torch.cat(parts, dim=1)
    set_heads(regressor, *chosen_ridge(views["features"], wanted, views["photo"]))
    train_late(prior, views["maps"], wanted, views["truth"], arguments.steps)
    about = {**checkpoint.metadata, "archs": {"network_shape": checkpoint.metadata["archs"]["network_shape"]}}
    save_checkpoint(arguments.output, {"network_shape": regressor.state_dict()}, about, None, prior.model)
    identity = parts[0][:count]
    print(f"{arguments.output}: {count} photos; fitted identities have deviation {identity.std(0).mean():.2f} per mode")


if __name__ == "__main__":
    main()
