"""Compares --fidelity auto with 0 and 1 on faces larger than the network: noise, JPEG, blur, grain and none of them.

python scripts/judge_fidelity.py --data faces512 -o experiments/fidelity

The table of docs/model_card.md is of this command. Every held-back face of 512 px is degraded in each way with a fixed seed, and
restored as `sgpn restore --aligned` does it; the last rows are whole photos, in which the detector has to find the face. A
number is the PSNR against the photo before it was degraded.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from judge_levels import test_set

from sgpn_data.degradation import Degradation, add_gaussian_noise, blur_isotropic, jpeg_compress
from sgpn_data.tensors import to_images
from sgpn_model.cli.arguments import add_data
from sgpn_model.config.registries import fill_registries
from sgpn_model.restore.restorer import FaceRestorer

SIZE = 512
EQUAL = 60.0  # dB that equal pictures count as
Step = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def noise(delta: float) -> Step:
    return lambda photo, rng: add_gaussian_noise(photo, delta, rng)


def jpeg(quality: int) -> Step:
    return lambda photo, rng: jpeg_compress(photo, quality)


def blur(sigma: float) -> Step:
    return lambda photo, rng: blur_isotropic(photo, sigma, 41)


def level(preset: str) -> Step:
    return Degradation(preset, reference_size=SIZE)


def grain(delta: float, width: float) -> Step:
    """A film's: of all channels alike, softer than a pixel, strongest in middle tones."""

    def add(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        drawn = cv2.GaussianBlur(rng.standard_normal(photo.shape[:2], dtype=np.float32), (0, 0), width)
        tone = photo.mean(axis=2)
        return photo + (drawn / drawn.std() * delta / 255 * (0.5 + 2 * tone * (1 - tone)))[..., None]

    return add


def resized(factor: float) -> Step:
    shrinks = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return lambda photo, rng: cv2.resize(photo, None, fx=factor, fy=factor, interpolation=shrinks)


# Name -> steps, and whether the face is to be found in the photo. A photo that has become larger is compared with the good one
# enlarged alike.
CASES: dict[str, tuple[list[Step], bool]] = {
    "clean": ([], False),
    "mild": ([level("mild")], False),
    "medium": ([level("medium")], False),
    "severe": ([level("severe")], False),
    "noise 5": ([noise(5)], False),
    "noise 15": ([noise(15)], False),
    "noise 30": ([noise(30)], False),
    "blur 3, noise 10": ([blur(3), noise(10)], False),
    "noise 15, JPEG 50": ([noise(15), jpeg(50)], False),
    "JPEG 30": ([jpeg(30)], False),
    "JPEG 75": ([jpeg(75)], False),
    "blur 1": ([blur(1)], False),
    "grain 12": ([grain(12, 0.8)], False),
    "grain 20, coarse": ([grain(20, 1.3)], False),
    "256 px enlarged to 512, noise 15": ([resized(0.5), resized(2), noise(15)], False),
    "256 px, noise 15, enlarged to 512": ([resized(0.5), noise(15), resized(2)], False),
    "enlarged to 1024": ([resized(2)], False),
    "enlarged to 1024, noise 15": ([resized(2), noise(15)], False),
    "whole photo, clean": ([], True),
    "whole photo, noise 25": ([noise(25)], True),
}


def judge(restorer: FaceRestorer, good: np.ndarray, name: str, seed: list[int]) -> list[float]:
    """PSNR of the input (fidelity 1), of fidelity 0 and of auto, of a good photo (SIZE, SIZE, 3) uint8, degraded as named."""
    steps, whole = CASES[name]
    rng, photo = np.random.default_rng(seed), good.astype(np.float32) / 255
    for step in steps:
        photo = step(photo, rng)
    given = np.clip(np.rint(photo * 255), 0, 255).astype(np.uint8)
    truth = resized(len(given) / SIZE)(good, rng) if len(given) != SIZE else good
    prepared = restorer.prepare(given, aligned=not whole, fidelity=0)
    restorer.run(prepared.faces)
    pictures = [given, restorer.finish(prepared).image]
    for face in prepared.faces:  # what the network says is the same
        face.fidelity = "auto"
    pictures.append(restorer.finish(prepared).image)
    errors = [np.mean((picture - truth.astype(np.float32)) ** 2) for picture in pictures]
    return [min(EQUAL, float(10 * np.log10(255**2 / max(error, 1e-9)))) for error in errors]


def main() -> None:
    """Prints the table, and writes it with the values of every face."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data(parser, required=True)
    parser.add_argument("--weights", default="default")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--every", type=int, default=1, help="take every so many-th face")
    parser.add_argument("-o", "--output", default="experiments/fidelity", type=Path)
    arguments = parser.parse_args()
    fill_registries()
    dataset = test_set("mild", arguments.data, [f"datasets.test.size={SIZE}", "datasets.test.degradation.preset=clean"])
    restorer = FaceRestorer.from_pretrained(arguments.weights)
    faces = range(0, len(dataset), arguments.every)
    goods = [to_images(dataset[number]["lq"][None])[0] for number in faces]
    lines = [
        "| | input (fidelity 1) | fidelity 0 | auto | auto against the better of both means | worst face |",
        "|---|---|---|---|---|---|",
    ]
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.cases:
        place = list(CASES).index(name)
        values = np.array([judge(restorer, good, name, [face, place]) for face, good in zip(faces, goods, strict=True)])
        means, worst = values.mean(axis=0), (values[:, 2] - values[:, :2].max(axis=1)).min()
        numbers = " | ".join(f"{value:.2f}" for value in means)
        lines.append(f"| {name} | {numbers} | {means[2] - means[:2].max():+.2f} | {worst:+.2f} |")
        print(lines[-1], flush=True)
        np.savetxt(arguments.output / f"{name}.txt", values, "%.3f", header="input (fidelity 1), fidelity 0, auto")
        (arguments.output / "fidelity.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
