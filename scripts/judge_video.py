"""Compares `sgpn video` with restoring frame by frame, on films made of photos: flicker, jitter, spread of identity, PSNR, time.

python scripts/judge_video.py -o experiments/video
python scripts/judge_video.py --photos faces/val --count 4 -o experiments/video

A virtual camera moves over a photo, so the true film and its movement are known. Every frame is degraded alike, with noise of
its own. Both ways write a film with the same encoder, and both films are looked at with the true points:

- flicker: mean absolute difference of the face to the frame before, moved along as the camera moved; grey levels.
- jitter: mean length of the second difference of 68 landmarks that the shape prior finds; pixels of a face of 256 px.
- identity spread: root mean square over frames of the identity coefficients' deviation from their mean.
- PSNR of the face against the true film, dB. Time: of the restoration alone, first film left out if there are several.
"""

import argparse
import time
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch
from skimage import data

from sgpn_data.alignment import align_face, invert_similarity, transform_points
from sgpn_data.degradation import Degradation
from sgpn_data.films import PartWriter, Video, join
from sgpn_data.photos import read_photo
from sgpn_data.tensors import to_tensor
from sgpn_model.restore.restorer import FaceRestorer
from sgpn_model.restore.video import restore_video

WIDTH, HEIGHT = 480, 360
FACE = 200  # pixels of the aligned face in the film
DEGRADATION = Degradation(blur_sigma=2.0, downsample=3.0, noise=8.0, jpeg=60, isotropic_probability=1.0)
CRF = 10


def camera(photo: np.ndarray, points5: np.ndarray, frames: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pictures of a camera that sways, nears and turns, and the matrices (2, 3) from the photo to each."""
    side = np.linalg.norm(points5[1] - points5[0]) / 0.25  # of the aligned face, about
    (x, y), pictures, matrices = points5.mean(0), [], []
    for number in range(frames):
        scale = FACE / side * (1 + 0.08 * np.sin(number / 17))
        matrix = cv2.getRotationMatrix2D((x, y), 6 * np.sin(number / 14), scale)
        sway = 14 * np.sin(number / 9), 8 * np.cos(number / 11)
        matrix[:, 2] += WIDTH / 2 - x + sway[0], HEIGHT / 2 - y + sway[1]
        flags = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        pictures.append(cv2.warpAffine(photo, matrix, (WIDTH, HEIGHT), flags=flags, borderMode=cv2.BORDER_REFLECT))
        matrices.append(matrix)
    return pictures, matrices


def write(path: Path, pictures: list[np.ndarray]) -> None:
    """A film of pictures at 25 a second."""
    import av

    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=25, options={"crf": str(CRF)})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))


def frame_by_frame(restorer: FaceRestorer, source: Path, target: Path) -> None:
    """What `sgpn restore` would make of every frame, in a film."""
    film, part = Video(source), target.with_suffix(".nut")
    with film.open() as container:
        writer = None
        for bgr, frame in film.frames():
            writer = writer or PartWriter(part, frame, container.streams.video[0], "libx264", CRF)
            writer.write(restorer.restore(bgr).image, frame)
        assert writer is not None
        writer.close()
    join([part], film, target)
    part.unlink()


@torch.inference_mode()
def judged(restorer: FaceRestorer, path: Path, truth: list[np.ndarray], matrices, points5) -> dict[str, float]:
    """The numbers of a film."""
    pictures = [bgr.astype(np.float32) for bgr, _ in Video(path).frames()]
    places = [transform_points(points5, matrix) for matrix in matrices]
    flicker, errors, landmarks, identities = [], [], [], []
    for number, (picture, points) in enumerate(zip(pictures, places, strict=True)):
        crop, matrix = align_face(picture.round().astype(np.uint8), points, 256, "ffhq")
        inside = (
            cv2.warpAffine(
                np.ones((160, 128), np.float32), invert_similarity(matrix) @ _corner(64, 64), (WIDTH, HEIGHT)
            )
            > 0.99
        )
        errors.append(np.square(picture - truth[number])[inside].mean())
        if number:
            moved = matrices[number] @ np.vstack([invert_similarity(matrices[number - 1]), [0, 0, 1]])
            before = cv2.warpAffine(pictures[number - 1], moved, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC)
            flicker.append(np.abs(picture - before)[inside].mean())
        shape = restorer.engine.prior(
            to_tensor(crop)[None], torch.from_numpy(transform_points(points, matrix)[None]).float()
        )
        landmarks.append(shape.landmarks[0].numpy())
        identities.append(restorer.engine.prior.split(shape.coeffs)[0][0].numpy())
    return {
        "flicker": float(np.mean(flicker)),
        "jitter": float(np.linalg.norm(np.diff(np.stack(landmarks), 2, axis=0), axis=2).mean()),
        "identity spread": float(np.sqrt(np.stack(identities).var(axis=0).mean())),
        "PSNR": float(np.mean(10 * np.log10(255**2 / np.array(errors)))),
    }


def _corner(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def main() -> None:
    """Makes the films, restores them in both ways and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, help="folder of photos; without it, scikit-image's astronaut")
    parser.add_argument("--count", type=int, default=1, help="photos to take, spread over the folder")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--weights", default="default")
    parser.add_argument("-o", "--output", type=Path, default=Path("experiments/video"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    restorer = FaceRestorer.from_pretrained(arguments.weights, engine="torch")
    if arguments.photos:
        paths = sorted(path for path in arguments.photos.iterdir() if path.suffix in (".jpg", ".png"))
        photos = [read_photo(path).bgr for path in paths[:: max(1, len(paths) // arguments.count)][: arguments.count]]
    else:
        photos = [np.ascontiguousarray(data.astronaut()[..., ::-1])]
    rows: dict[str, list[dict[str, float]]] = {}
    for number, photo in enumerate(photos):
        found = restorer.detector.detect(photo)
        if not found:
            continue
        truth, matrices = camera(photo, found[0].points5, arguments.frames)
        rng = np.random.default_rng(number)
        degraded = [DEGRADATION(picture.astype(np.float32) / 255, rng) for picture in truth]
        paths = {
            name: arguments.output / f"{number}_{name}.mp4" for name in ("true", "degraded", "frame by frame", "video")
        }
        write(paths["true"], truth)
        write(paths["degraded"], [(picture * 255).round().astype(np.uint8) for picture in degraded])
        start = time.perf_counter()
        frame_by_frame(restorer, paths["degraded"], paths["frame by frame"])
        middle = time.perf_counter()
        restore_video(restorer, paths["degraded"], paths["video"], crf=CRF)
        seconds = {"frame by frame": middle - start, "video": time.perf_counter() - middle}
        for name, path in paths.items():
            scores = judged(restorer, path, truth, matrices, found[0].points5)
            rows.setdefault(name, []).append({**scores, "seconds": seconds.get(name, float("nan"))})
    print("| | flicker | jitter | identity spread | PSNR, dB | seconds |\n|---|---|---|---|---|---|")
    for name, each in rows.items():
        means = {
            key: np.mean([row[key] for row in (each[1:] or each if key == "seconds" else each)]) for key in each[0]
        }
        print(f"| {name} | " + " | ".join("" if np.isnan(value) else f"{value:.3g}" for value in means.values()) + " |")


if __name__ == "__main__":
    main()
