"""Pasting faces back by its definition: on canvases of the whole photo, every neighbour looked at, in float64; slow and plain."""

import cv2
import numpy as np

from sgpn_data.pasting import NEIGHBOUR_STEEPNESS, SEAM_BLUR, SEAM_INSET, SEAM_SIGMA


def soft_square(size, inset, sigma):
    """A square of ones, ``inset`` of its side inside, blurred by a Gaussian: by sums over a grid ten times finer."""
    fine = (np.arange(-size * 5, size * 15) + 0.5) / (10 * size)
    square = ((fine > inset) & (fine < 1 - inset)).astype(float)
    centres = (np.arange(size) + 0.5) / size
    weights = np.exp(-((centres[:, None] - fine) ** 2) / (2 * sigma**2))
    profile = weights @ square / weights.sum(axis=1)
    return np.outer(profile, profile)


def matched(face):
    """The restored face with the crop's low frequencies towards the border."""
    size = len(face.crop)
    difference = face.crop.astype(float) - face.restored
    low = cv2.GaussianBlur(difference, (0, 0), SEAM_BLUR * size, borderType=cv2.BORDER_REPLICATE)
    outside = 1 - soft_square(size, SEAM_INSET, SEAM_SIGMA)[..., None]
    return np.clip(np.rint(face.restored + low * outside), 0, 255)


def share(face, others):
    """How much every pixel of a face's crop is its own, from the distances to all faces' middles."""
    size = len(face.crop)
    points = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).astype(float)

    def distance(other):
        linear, shift = other.matrix[:, :2], other.matrix[:, 2]
        in_photo = (points - face.matrix[:, 2]) @ np.linalg.inv(face.matrix[:, :2]).T
        there = in_photo @ linear.T + shift
        return np.linalg.norm(there - other.points5.mean(axis=0), axis=-1) / len(other.crop)

    result = np.ones((size, size))
    for other in others:
        result /= 1 + np.exp(-NEIGHBOUR_STEEPNESS * (distance(other) - distance(face)))
    return result


def paste_faces(photo, faces):
    """The photo with every face in its place, the smallest first."""
    result = photo.astype(float)
    size = photo.shape[1::-1]
    for face in reversed(faces):
        mask = soft_square(len(face.crop), 26 / 512, 4 * np.sqrt(2) / 512)
        mask *= share(face, [other for other in faces if other is not face])
        to_photo = cv2.invertAffineTransform(face.matrix)
        moved = cv2.warpAffine(matched(face), to_photo, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        weight = cv2.warpAffine(mask, to_photo, size, flags=cv2.INTER_LINEAR)[..., None]
        result = np.clip(np.rint(result + weight * (moved - result)), 0, 255)
    return result
