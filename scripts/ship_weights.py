"""Turns a training checkpoint into weights that ship: half precision, with licence and provenance in the header.

python scripts/ship_weights.py experiments/sgpn_open_256/models/sgpn_open_256_2200.safetensors sgpn_open
python scripts/ship_weights.py experiments/mine/models/mine_1400.safetensors --output mine.safetensors
"""

import argparse
from pathlib import Path

import torch

from sgpn_arch.files import sha256_of
from sgpn_model.weights.catalogue import CATALOGUE_FILE
from sgpn_model.weights.checkpoint import load_checkpoint, save_checkpoint
from sgpn_model.weights.pretrained import WEIGHTS_FOLDER

PROVENANCE = {
    "licence": "Apache-2.0",
    "data": "face photos from public repositories; see docs/model_card.md",
    "backbone": "network_shape started from torchvision's ImageNet MobileNetV2 (BSD-3-Clause)",
}


def main() -> None:
    """Reads the checkpoint, adds the provenance and writes the shipped file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("name", nargs="?", help="what --weights will call it")
    parser.add_argument("--output", type=Path, help="a file of your own in place of the package's folder")
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.checkpoint)
    if (arguments.name is None) == (arguments.output is None):
        parser.error("give either a name or --output")
    path = arguments.output or WEIGHTS_FOLDER / f"{arguments.name}.safetensors"
    metadata = {**checkpoint.metadata, **PROVENANCE}
    # A morphable model that is not the one that ships goes along.
    save_checkpoint(
        path, checkpoint.weights, metadata, dtype=torch.float16, morphable_model=checkpoint.morphable_model()
    )
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    if arguments.name:
        print(f"write into {CATALOGUE_FILE.name}: size: {path.stat().st_size}, sha256: {sha256_of(path)}")


if __name__ == "__main__":
    main()
