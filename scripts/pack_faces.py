"""Packs folders of aligned faces into one small folder of WebP pictures, for training on another machine.

python scripts/pack_faces.py --data faces -o faces256pack --size 256 --megabytes 45

What is to train on goes into train/, what is held back into val/, so that the pack is what --data takes there.
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
from sgpn_data.sources import LANDMARKS_FILE, SPLITS, Folder, Lmdb, decode, fault, open_split
from sgpn_model.cli.arguments import add_data

SAMPLE = 150  # pictures that the quality is chosen on
QUALITIES = range(98, 39, -2)


def read_faces(source: Folder | Lmdb, size: int) -> list[tuple[np.ndarray, list | None]]:
    """(uint8 BGR (size, size, 3), 68 landmarks or None) of each usable picture of a source."""
    file = source.root / LANDMARKS_FILE
    known = json.loads(file.read_text()) if file.is_file() else {}
    faces = []
    for path in source.paths:
        image = decode(source.encoded(path), path)
        if fault(image):
            print(f"{path} is left out: {fault(image)}")
            continue
        points = known.get(path.relative_to(source.root).as_posix())
        if points is not None:
            points = scale_points(np.array(points, np.float64), image.shape[0], size).round(3).tolist()
        faces.append((_resized(image, size), points))
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
    add_data(parser, required=True)
    parser.add_argument("-o", "--output", required=True, type=Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--megabytes", type=float, default=45)
    arguments = parser.parse_args()
    faces = {
        split: [
            face
            for root in arguments.data
            for source in open_split(Path(root), split)
            for face in read_faces(source, arguments.size)
        ]
        for split in SPLITS
    }
    images = [image for part in faces.values() for image, _ in part]
    sample = images[:: max(1, len(images) // SAMPLE)]
    quality = best_quality(sample, 0.97e6 * arguments.megabytes / len(images))  # the rest is for the landmarks
    total = sum(write_faces(arguments.output / split, part, quality) for split, part in faces.items() if part) / 1e6
    print(
        f"{len(images)} faces, WebP quality {quality}, {psnr(sample, quality):.1f} dB, {total:.1f} MB in {arguments.output}"
    )
    if total > arguments.megabytes:
        print(f"more than {arguments.megabytes} MB: the sample was kinder than the whole; lower --megabytes a little")


def write_faces(folder: Path, faces: list[tuple[np.ndarray, list | None]], quality: int) -> int:
    """Writes pictures and their landmarks into a new folder; returns the bytes that they take."""
    folder.mkdir(parents=True)
    landmarks, total = {}, 0
    for number, (image, points) in enumerate(tqdm(faces, desc=f"packing {folder.name}")):
        name, data = f"{number:05d}.webp", encode(image, quality)
        (folder / name).write_bytes(data)
        total += len(data)
        if points is not None:
            landmarks[name] = points
    text = json.dumps(landmarks, separators=(",", ":"))
    (folder / LANDMARKS_FILE).write_text(text)
    return total + len(text)


if __name__ == "__main__":
    main()
