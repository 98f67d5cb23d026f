"""Takes the grid out of an SGPN whose places make squares of 2 x 2 pixels, by a linear regression of its last layer.

python scripts/even_out_patches.py WEIGHTS --data faces -o evened.safetensors

The finest ToRGB makes four pixels of each place. Trained adversarially, it gives them offsets of their own where the features
say "iris": a grid of two pixels' period. Averaged over a window, how the four differ (across, down and diagonally) is such a
grid, or a slope. On degraded training faces these means are fitted to the true pictures': the change of the layer's weights is
the ridge regression of the remaining error on the means of the modulated features. Some of the faces are good ones with noise of
their own resolution, or the change would let such noise pass. (A choice of ours.) The mean of the four pixels stays as it is.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judge_levels import LEVELS, test_set
from torch import Tensor
from torch.nn import functional as F

from sgpn_arch.face3d.morphable_model import EYES
from sgpn_arch.ranges import Count
from sgpn_data.masks import hull_mask
from sgpn_model.cli.arguments import add_data, typed
from sgpn_model.config.registries import fill_registries
from sgpn_model.train.initialise import WITHIN
from sgpn_model.weights.checkpoint import load_checkpoint, save_checkpoint
from sgpn_model.weights.pretrained import build_networks, find_weights

LOGGER = logging.getLogger("sgpn")
WINDOW = 8  # places in a row, every fourth of which a window begins at
# Windows with eyes or lips are few, and a grid is seen there first. The ridge is this part of the features' energy at places.
WEIGHT, RIDGE = 30.0, 0.003
NOISE = 25.0  # grey levels, sigma


class Sums:
    """The normal equations: what was collected of the windows so far."""

    def __init__(self, channels: int):
        self.weight, self.faces = 0.0, 0
        self.features = torch.zeros(channels, channels, dtype=torch.float64)
        self.errors = torch.zeros(channels, 9, dtype=torch.float64)
        self.energy = torch.zeros(channels, channels, dtype=torch.float64)

    def add(self, features: Tensor, missing: Tensor, eyes_and_lips: Tensor) -> None:
        """One face: features (1, C, r, r), what the picture lacks (1, 3, 2r, 2r) and the region (2r, 2r) in 0..1."""
        within = torch.einsum("ap,ncphw->ncahw", WITHIN / 4, F.pixel_unshuffle(missing, 2).unflatten(1, (3, 4)))
        error, mean = (
            F.avg_pool2d(maps, WINDOW, WINDOW // 2)[0].flatten(1).double() for maps in (within.flatten(1, 2), features)
        )
        region = F.avg_pool2d(eyes_and_lips[None, None], 2 * WINDOW, WINDOW)[0, 0].flatten()
        weight = torch.where(region > 0.2, WEIGHT, 1.0).double()
        self.features += (mean * weight) @ mean.T
        self.errors += (mean * weight) @ error.T
        self.weight += float(weight.sum())
        places = features[0].flatten(1)[:, ::37].double()
        self.energy += places @ places.T / places.shape[1]
        self.faces += 1

    def change(self) -> Tensor:
        """(12, C): what to add to the weights of the twelve values, colour by colour and row by row of the square."""
        ridge = RIDGE * self.energy / self.faces
        # Not solve: features that are always 0 have no equation, and get no change.
        found = torch.linalg.pinv(self.features / self.weight + ridge, hermitian=True) @ (self.errors / self.weight)
        return torch.einsum("cai,ap->cpi", found.T.unflatten(0, (3, 3)), WITHIN.double()).flatten(0, 1)


def region(landmarks: Tensor, size: int) -> Tensor:
    """(68, 2) -> (size, size): 1 on the eyes and the mouth."""
    parts = [hull_mask(landmarks[part].numpy(), (size, size)) for part in (*EYES, slice(48, 60))]
    return torch.from_numpy(np.max(parts, axis=0))


@torch.no_grad()
def even_out(network: Any, prior: Any, data: list[str], count: int) -> float:
    """Changes the network, by ``count`` training faces of each level; returns how far, relative to the weights."""
    network.eval()
    prior.eval()
    to_rgb = network.decoder.to_rgbs[-1].conv
    seen: list[Tensor] = []
    hook = to_rgb.register_forward_pre_hook(
        lambda layer, given: seen.append(given[0] * layer.modulation(given[1])[:, :, None, None])
    )
    sums, noise = Sums(to_rgb.weight.shape[1]), torch.Generator().manual_seed(7)
    size = network.size
    changes = ["datasets.test.split=train", f"datasets.test.size={size}", f"datasets.test.min_size={size}"]
    for level in LEVELS:
        faces = test_set(level, data, changes)
        for number in torch.randperm(len(faces), generator=torch.Generator().manual_seed(7))[:count].tolist():
            face = faces[number]
            photo, truth, points5 = face["lq"][None], face["hq"][None], face["points5"][None]
            noisy = (truth + torch.randn(truth.shape, generator=noise) * NOISE / 127.5).clamp(-1, 1)
            for given in (photo, noisy) if level == LEVELS[0] else (photo,):
                shape = prior(given, points5)
                missing = truth - network(given, shape.render, shape.coeffs)
                sums.add(seen.pop(), missing, region(face["landmarks68"], size))
        LOGGER.info("%s: %d faces", level, min(count, len(faces)))
    hook.remove()
    before = to_rgb.weight.clone()
    to_rgb.weight += (sums.change() / to_rgb.scale).float()[:, :, None, None]
    return float((to_rgb.weight - before).norm() / before.norm())


def main() -> None:
    """Reads weights, evens them out and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", help="a checkpoint of `sgpn train`, or a name")
    add_data(parser, required=True)
    parser.add_argument("--faces", type=typed(Count), default=40, metavar="N", help="of each level (default: 40)")
    parser.add_argument("-o", "--output", required=True, type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    fill_registries()
    checkpoint = load_checkpoint(find_weights(arguments.weights))
    network, prior, _ = build_networks(checkpoint)
    if getattr(network, "patch", 1) != 2:
        parser.error(f"{arguments.weights}: holds no SGPN with network_g.patch: 2")
    LOGGER.info("weights changed by %.3f of themselves", even_out(network, prior, arguments.data, arguments.faces))
    weights = {"network_g": network.state_dict(), "network_shape": prior.regressor.state_dict()}
    save_checkpoint(arguments.output, weights, checkpoint.metadata, morphable_model=prior.model)


if __name__ == "__main__":
    main()
