"""Trains a shape regressor on photos, for another texture basis and for all levels of degradation.

python scripts/refit_regressor.py --data faces --morphable-model experiments/open_face_textures.safetensors \\
    -o experiments/regressor.safetensors

1. Every photo and its mirror image is seen good and degraded, cut out by its own five points, which are moved a little, or by the
   template's, as a restoration cuts it out. One photo in six is seen grey.
2. Identity, expression and pose are fitted to the known landmarks, the most probable ones given N(0, 1) coefficients and
   landmarks that are off by some pixels. Texture and lighting are fitted to the good photo's colours.
3. The whole regressor is trained towards landmarks, coefficients and colours. All renderings that this needs were made before,
   so a step costs no more than the regressor itself. All of it is a choice of ours.
"""

import argparse
import math
from pathlib import Path

import torch
from learn_texture_basis import fit_landmarks, landmark_model, read_colors, regressor_view
from torch import Tensor, nn
from tqdm import tqdm

from sgpn_arch.face3d.camera import rotation_matrix
from sgpn_arch.face3d.face_mesh import in_grey
from sgpn_arch.face3d.lighting import AMBIENT, shade
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.face3d.shape_prior import ShapePrior
from sgpn_data.alignment import template_points
from sgpn_data.face_dataset import FaceRestorationDataset, mirror_points
from sgpn_model.cli.arguments import add_data
from sgpn_model.train.losses import landmark_error
from sgpn_model.weights.checkpoint import load_checkpoint, save_checkpoint
from sgpn_model.weights.pretrained import find_weights

LEVELS = {"mild": 1, "medium": 2, "severe": 2}
COLOR_NOISE = 0.3  # deviation of a vertex's texture from the model's, in units that make vertices count as independent
STRANGER = 0.3  # a colour that is further from the mean texture's is hair or glasses
JITTER = 0.008  # deviation of the five points of good views, as a part of the picture's width
MOST_JITTER = 0.03  # at most of degraded ones
TEMPLATE = 0.25  # part of the degraded views that the template's points cut out
GREY = 6  # one photo in so many
WORKERS = 2  # processes that degrade photos
VERTICES = 400  # whose colours are compared


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
# Training


def train(
    prior: ShapePrior, pictures: Tensor, coeffs: Tensor, truth: Tensor, steps: int, batch: int = 64, rate: float = 1e-3
) -> list[float]:
    """Trains the prior's regressor, in place.

    The loss is the landmarks' distance in % of that of the eyes' outer corners, half the coefficients' squared error in
    units of their deviation, and thirty times the difference of lit colours on some vertices.

    Args:
        pictures: (M, 3, 224, 224) uint8, what the regressor sees. coeffs: (M, D) wanted. truth: (M, 68, 2).
        steps: of Adam. batch: views per step. rate: of learning, falling to 0 as a cosine.

    Returns:
        The landmarks' part of the loss at each step.
    """
    regressor, model = prior.regressor, prior.model
    regressor.train().requires_grad_(True).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(regressor.parameters(), lr=rate)
    scale = coeffs.std(0).clamp_min(0.01)
    landmarks = landmark_model(prior)
    chosen = torch.randperm(len(model.shape_mean))[:VERTICES]
    normals = model.normals(model.shape_mean[None])[:, chosen]
    albedo_mean, albedo_basis = model.tex_mean[chosen], model.tex_basis[:, chosen]

    def lit(parts: tuple[Tensor, ...]) -> Tensor:
        albedo = albedo_mean + torch.einsum("nk,kvc->nvc", parts[2], albedo_basis)
        return shade(albedo, normals @ rotation_matrix(parts[3]), parts[4])

    errors = []
    progress = tqdm(range(steps), desc="training", unit="step")
    for step in progress:
        optimizer.param_groups[0]["lr"] = (
            rate * min(1, (step + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        )
        rows = torch.randint(len(pictures), (batch,))
        seen = (pictures[rows].float() / 255).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            found = regressor(seen)
        found = found.float()
        parts, wanted = prior.split(found), coeffs[rows]
        places = landmarks(parts[0], parts[1], torch.arange(batch), parts[3], parts[5])
        distance = landmark_error(places, truth[rows]).mean()
        loss = distance + 0.5 * ((found - wanted) / scale).square().mean()
        loss = loss + 30 * (lit(parts) - lit(prior.split(wanted))).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(regressor.parameters(), 20.0)
        optimizer.step()
        errors.append(distance.item())
        if step % 20 == 19:
            progress.set_postfix_str(f"landmarks {sum(errors[-20:]) / 20:.2f} %")
    regressor.eval().requires_grad_(False)
    return errors


# ------------------------------------------------------------------------------------------------------------
# The command


@torch.no_grad()
def look(prior: ShapePrior, dataset: FaceRestorationDataset, rounds: int, every: int) -> dict[str, Tensor]:
    """Views of each photo, as they are in even rounds and mirrored in odd ones.

    Returns:
        ``pictures`` (M, 3, 224, 224) uint8, ``truth`` (M, 68, 2), ``photo`` (M,) which photo or mirror image a view is of, and
        ``start`` (M, D) coefficients of the good view. The good views come first, one of each, in order of ``photo``.
    """
    good: dict[str, list[Tensor]] = {key: [] for key in ("pictures", "truth", "photo", "start")}
    degraded: dict[str, list[Tensor]] = {key: [] for key in good}
    regressor = prior.for_inference().regressor
    count = 0  # photos with known landmarks

    def add(views: dict[str, list[Tensor]], crop: Tensor, points5: Tensor, landmarks: Tensor, photo: Tensor) -> None:
        picture, truth = regressor_view(prior, crop, points5, landmarks)
        grey = (photo % GREY == 0)[:, None, None, None]
        picture = torch.where(grey, in_grey(picture.movedim(1, -1)).movedim(-1, 1), picture)
        views["pictures"].append((picture * 255).round().to(torch.uint8))
        views["truth"].append(truth)
        views["photo"].append(photo)
        if views is good:
            views["start"].append(regressor(picture))

    chosen = torch.utils.data.Subset(dataset, range(0, len(dataset), every))
    for number in range(rounds):
        dataset.set_epoch(number)
        at = number % 2 * count
        for batch in tqdm(torch.utils.data.DataLoader(chosen, 16, num_workers=WORKERS), desc="looking", unit="batch"):
            known = torch.isfinite(batch["landmarks68"]).all(dim=(1, 2))
            hq, lq, points5, landmarks = (batch[key][known] for key in ("hq", "lq", "points5", "landmarks68"))
            size = hq.shape[-1]
            if number % 2:
                hq, lq = hq.flip(3), lq.flip(3)
                points5, landmarks = (
                    torch.from_numpy(mirror_points(points.numpy(), size)).to(points) for points in (points5, landmarks)
                )
            photo = torch.arange(at, at + len(hq))
            at += len(hq)
            moved = points5 + JITTER * size * torch.randn_like(points5)
            if number < 2:
                add(good, hq, moved, landmarks, photo)
            template = torch.from_numpy(template_points(dataset.template, size)).to(moved)
            guessed = (torch.rand(len(hq)) < TEMPLATE)[:, None, None]
            moved = points5 + MOST_JITTER * size * torch.rand(len(hq), 1, 1) * torch.randn_like(points5)
            add(degraded, lq, torch.where(guessed, template, moved), landmarks, photo)
        if number == 0:
            count = at
    start = torch.cat(good["start"])
    degraded["start"] = [start[photo] for photo in degraded["photo"]]
    return {key: torch.cat([*values, *degraded[key]]) for key, values in good.items()}


def main() -> None:
    """Looks, fits, trains and writes the regressor with its morphable model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data(parser, required=True)
    parser.add_argument("--min-size", type=int, default=1, metavar="PIXELS", help="leave smaller photos out")
    parser.add_argument("-o", "--output", required=True, type=Path)
    parser.add_argument("--weights", default="default", help="whose regressor it begins with")
    parser.add_argument("--morphable-model", type=Path, help="another model with the same dimensions")
    parser.add_argument("--every", type=int, default=1, help="take every n-th photo only")
    parser.add_argument(
        "--rounds",
        type=int,
        default=4,
        help="degraded views of each photo, half of them mirrored (150 KB of memory each)",
    )
    parser.add_argument("--steps", type=int, default=1800, help="of training, with 64 views each")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    checkpoint = load_checkpoint(find_weights(arguments.weights))
    regressor = checkpoint.network("network_shape").eval().requires_grad_(False)
    path = arguments.morphable_model
    prior = ShapePrior(regressor, MorphableModel.read(path) if path else checkpoint.morphable_model()).eval()
    degradation = {"type": "DegradationMixture", "presets": LEVELS, "reference_size": 512}
    photos = {"dataroot": arguments.data, "split": "train", "min_size": arguments.min_size, "size": 256}
    dataset = FaceRestorationDataset({**photos, "phase": "train", "use_hflip": False, "degradation": degradation})
    views = look(prior, dataset, arguments.rounds, arguments.every)

    coeffs = fit_landmarks(prior, views["start"], views["truth"], views["photo"])
    parts = list(prior.split(coeffs))
    count = int(views["photo"].max()) + 1
    fitted = []
    for rows in tqdm(torch.arange(count).split(16), desc="colours", unit="batch"):
        picture = views["pictures"][rows].float() / 255
        fitted.append(fit_colors(prior, *read_colors(prior, picture, coeffs[rows], views["truth"][rows])))
    parts[2], parts[4] = (torch.cat(values)[views["photo"]] for values in zip(*fitted, strict=True))
    train(prior, views["pictures"], torch.cat(parts, dim=1), views["truth"], arguments.steps)
    about = {**checkpoint.metadata, "archs": {"network_shape": checkpoint.metadata["archs"]["network_shape"]}}
    save_checkpoint(arguments.output, {"network_shape": regressor.state_dict()}, about, None, prior.model)
    identity = parts[0][:count]
    print(f"{arguments.output}: {count} photos; fitted identities have deviation {identity.std(0).mean():.2f} per mode")


if __name__ == "__main__":
    main()
