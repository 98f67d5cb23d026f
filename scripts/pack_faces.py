"""Packs folders of aligned faces into one small folder of WebP pictures, for training on another machine.

python scripts/pack_faces.py ../shared/faces512/train ../shared/faces256/train -o faces256pack --size 256 --megabytes 45

Pictures are brought to one size as the dataset does it (area averaging; smaller ones bicubically) and compressed at the highest
quality that fits, found on a sample and checked on all. Landmarks are scaled along. What the compression costs is printed.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from sgpn_data.alignment import scale_points
from sgpn_data.sources import LANDMARKS_FILE, Folder, decode, fault

SAMPLE = 150  # pictures that the quality is chosen on
QUALITIES = range(98, 39, -2)


def read_faces(root: Path, size: int) -> list[tuple[str, np.ndarray, list | None]]:
    """(name, uint8 BGR (size, size, 3), 68 landmarks or None) of each usable picture of a folder."""
    source, file = Folder(root), root / LANDMARKS_FILE
    known = json.loads(file.read_text()) if file.is_file() else {}
    faces = []
    for path in source.paths:
        image, name = decode(source.encoded(path)), path.relative_to(root).as_posix()
        if fault(image):
            print(f"{path} is left out: {fault(image)}")
            continue
        points = known.get(name)
        if points is not None:
            points = scale_points(np.array(points, np.float64), image.shape[0], size).round(3).tolist()
        faces.append((name, _resized(image, size), points))
    return faces


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    if image.shape[0] == size:
        return image
    kernel = cv2.INTER_AREA if image.shape[0] > size else cv2.INTER_CUBIC
    return cv2.resize(image, (size, size), interpolation=kernel)


def encode(image: np.ndarray, quality: int) -> bytes:
    """A picture as WebP."""
    return cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()


def best_quality(images: list[np.ndarray], budget: float) -> int:
    """The highest quality at which pictures take ``budget`` bytes each on the average.

    Raises:
        SystemExit: not even the lowest does.
    """
    for quality in QUALITIES:
        if np.mean([len(encode(image, quality)) for image in images]) <= budget:
            return quality
    raise SystemExit(f"pictures do not fit into {budget / 1e3:.1f} kB each; raise --megabytes or lower --size")


def psnr(images: list[np.ndarray], quality: int) -> float:
    """Mean PSNR in dB of the compressed pictures."""
    pairs = ((image, cv2.imdecode(np.frombuffer(encode(image, quality), np.uint8), 1)) for image in images)
    return float(np.mean([cv2.PSNR(image, other) for image, other in pairs]))


def main() -> None:
    """Reads the folders, chooses the quality and writes pictures and landmarks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("-o", "--output", required=True, type=Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--megabytes", type=float, default=45)
    arguments = parser.parse_args()
    faces = [face for folder in arguments.folders for face in read_faces(folder, arguments.size)]
    sample = [image for _, image, _ in faces[:: max(1, len(faces) // SAMPLE)]]
    quality = best_quality(sample, 0.97e6 * arguments.megabytes / len(faces))  # the rest is for the landmarks
    arguments.output.mkdir(parents=True)
    landmarks, total = {}, 0
    for number, (_, image, points) in enumerate(tqdm(faces, desc="packing")):
        name, data = f"{number:05d}.webp", encode(image, quality)
        (arguments.output / name).write_bytes(data)
        total += len(data)
        if points is not None:
            landmarks[name] = points
    text = json.dumps(landmarks, separators=(",", ":"))
    (arguments.output / LANDMARKS_FILE).write_text(text)
    size = (total + len(text)) / 1e6
    print(
        f"{len(faces)} faces, WebP quality {quality}, {psnr(sample, quality):.1f} dB, {size:.1f} MB in {arguments.output}"
    )
    if size > arguments.megabytes:
        print(f"more than {arguments.megabytes} MB: the sample was kinder than the whole; lower --megabytes a little")


if __name__ == "__main__":
    main()
