"""How the authors' inference code cuts faces out of a photo and pastes them back, for their weights and comparisons with them.

Our own way is in :mod:`sgpn_data.alignment`: it does not alias, mirrors the photo at its border, and leads colours over
at the seam. All points are OpenCV pixels, photos uint8 HxWx3.
"""

import functools

import cv2
import numpy as np

from sgpn_data.alignment import invert_similarity, similarity_transform, template_points, transform_points

# The paste-back mask: ones between these pixels of the crop, softened twice.
MASK_INSET, BLUR_SIZE, BLUR_SIGMA = 26, 101, 4


def cut_out(photo: np.ndarray, points5: np.ndarray, size: int, template: str) -> tuple[np.ndarray, np.ndarray]:
    """The face at points5 (5, 2), bicubically and with a black border: the crop (size, size, 3), and photo -> crop (2, 3).

    Raises:
        ValueError: the points determine no transform, or the template is unknown.
    """
    matrix = similarity_transform(points5, template_points(template, size))
    return cv2.warpAffine(photo, matrix, (size, size), flags=cv2.INTER_CUBIC), matrix


@functools.cache
def mask_of(size: int) -> np.ndarray:
    """The paste-back mask of a crop of ``size`` pixels: (size, size) float32, 1 on the face, 0 towards the border."""
    mask: np.ndarray = np.zeros((size, size), np.float32)
    # Both ends belong to the rectangle that the authors draw, so the mask is a pixel wider at the right and below.
    mask[MASK_INSET : size - MASK_INSET + 1, MASK_INSET : size - MASK_INSET + 1] = 1
    for _ in range(2):
        mask = cv2.GaussianBlur(mask, (BLUR_SIZE, BLUR_SIZE), BLUR_SIGMA)
    mask.flags.writeable = False  # it is kept, and given to everybody
    return mask


def aligned_crop(picture: np.ndarray, size: int) -> np.ndarray:
    """A face that is aligned already, as the network takes it: resized bilinearly, whatever its shape."""
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_LINEAR)


def paste_back(
    photo: np.ndarray, face: np.ndarray, crop: np.ndarray, matrix: np.ndarray, in_place: bool = False
) -> np.ndarray:
    """A copy of the photo (or the photo itself, when ``in_place``) with a restored face in place of its crop.

    Args:
        face, crop: (S, S, 3) uint8. matrix: (2, 3), photo -> crop.

    The blend is rounded to grey levels where the authors cut it off, which darkens theirs by half a level on average.
    """
    weight = mask_of(len(crop))[..., None]
    blended = np.rint(face * weight + crop * (1 - weight)).astype(np.uint8)
    result = photo if in_place else photo.copy()
    left, top, right, bottom = _box(matrix, photo.shape, len(crop))
    if left < right and top < bottom:
        to_crop = np.array(matrix, np.float64)
        to_crop[:, 2] = transform_points(np.array([left, top]), matrix)
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        canvas = (right - left, bottom - top)
        moved = cv2.warpAffine(blended, to_crop, canvas, flags=flags, borderMode=cv2.BORDER_REFLECT_101)
        inside = _inside(to_crop, canvas, len(crop))
        result[top:bottom, left:right][inside] = moved[inside]
    return result


def _box(matrix: np.ndarray, shape: tuple, size: int) -> tuple[int, int, int, int]:
    """The part of a photo (left, top, right, bottom) that holds a crop of ``size`` pixels."""
    corners = np.array([[-1, -1], [size, -1], [-1, size], [size, size]])
    corners = transform_points(corners, invert_similarity(matrix))
    left, top = np.maximum(np.floor(corners.min(axis=0)), 0).astype(int)
    right, bottom = np.minimum(np.ceil(corners.max(axis=0)) + 1, (shape[1], shape[0])).astype(int)
    return int(left), int(top), int(right), int(bottom)


def _inside(to_crop: np.ndarray, canvas: tuple[int, int], size: int) -> np.ndarray:
    """The pixels (height, width) that fall on the crop: those that OpenCV 4 changes with a transparent border.

    OpenCV 5 also changes pixels around it. Coordinates are in steps of 1/32 pixel, as OpenCV's tables are.
    """
    x, y = np.meshgrid(np.arange(canvas[0]), np.arange(canvas[1]))
    points = transform_points(np.stack([x, y], axis=-1), to_crop)
    points = np.floor(np.rint(points * 32) / 32)
    return ((points >= 0) & (points < size)).all(axis=-1)
