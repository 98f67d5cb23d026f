"""Turns a training checkpoint into weights that ship: half precision, with licence and provenance in the header.

python scripts/ship_weights.py experiments/sgpn_open_256/models/sgpn_open_256_2200.safetensors sgpn_open
"""

import argparse

import torch

from sgpn_model.checkpoint import load_checkpoint, save_checkpoint
from sgpn_model.restorer import WEIGHTS_FOLDER

PROVENANCE = {
    "licence": "Apache-2.0",
    "data": "about 3,500 face photos from public repositories; see docs/default_model.md",
    "backbone": "network_shape started from torchvision's ImageNet MobileNetV2 (BSD-3-Clause)",
}


def main() -> None:
    """Reads the checkpoint, adds the provenance and writes the shipped file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("name", help="what --weights will call it")
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.checkpoint)
    path = WEIGHTS_FOLDER / f"{arguments.name}.safetensors"
    save_checkpoint(path, checkpoint.weights, {**checkpoint.metadata, **PROVENANCE}, dtype=torch.float16)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
