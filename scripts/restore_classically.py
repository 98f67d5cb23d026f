"""Restores a folder of degraded faces without learning: non-local means against noise, Wiener's filter against blur.

python scripts/restore_classically.py experiments/levels/medium/inputs -o experiments/levels/medium/classical

The noise is estimated; the blur is taken for a Gaussian of --sigma pixels (a choice of ours: nothing here knows the true one).
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from skimage.restoration import estimate_sigma, wiener

from sgpn_data.degradation import gaussian_kernel
from sgpn_data.photos import read_photo, write_picture

NOISE_TO_STRENGTH = 0.8  # of the non-local means' filter, in units of the noise's deviation
BALANCE = 0.05  # Wiener's regularisation, at no noise
BORDER = 24  # pixels that are mirrored around the picture, for the filter's spectrum is periodic


def restore(image: np.ndarray, sigma: float) -> np.ndarray:
    """uint8 BGR (H, W, 3) -> the same, denoised and sharpened."""
    noise = float(np.mean(estimate_sigma(image, channel_axis=2)))
    if noise > 0.5:
        strength = NOISE_TO_STRENGTH * noise
        image = cv2.fastNlMeansDenoisingColored(image, None, strength, strength, 5, 15)
    framed = cv2.copyMakeBorder(image, *[BORDER] * 4, cv2.BORDER_REFLECT_101).astype(np.float64) / 255
    kernel = gaussian_kernel(2 * int(np.ceil(4 * sigma)) + 1, sigma).astype(np.float64)
    balance = BALANCE * (1 + noise / 5)
    sharp = np.stack([wiener(framed[..., c], kernel, balance, clip=False) for c in range(3)], axis=2)
    return np.rint(np.clip(sharp[BORDER:-BORDER, BORDER:-BORDER], 0, 1) * 255).astype(np.uint8)


def restore_folder(folder: Path, output: Path, sigma: float) -> int:
    """Restores every PNG of a folder; returns how many there were."""
    pictures = sorted(folder.glob("*.png"))
    for path in pictures:
        write_picture(output / path.name, restore(read_photo(path).bgr, sigma))
    return len(pictures)


def main() -> None:
    """Restores the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", required=True, type=Path)
    parser.add_argument("--sigma", type=float, default=1.5, help="of the blur, pixels (default: 1.5)")
    arguments = parser.parse_args()
    print(f"{restore_folder(arguments.folder, arguments.output, arguments.sigma)} pictures in {arguments.output}")


if __name__ == "__main__":
    main()
