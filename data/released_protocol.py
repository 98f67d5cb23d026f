"""How the authors' inference code cuts faces out of a photo and pastes them back, for their weights and comparisons with them.

Our own way is in :mod:`sgpn_data.alignment`: it does not alias, mirrors the photo at its border, and leads colours over
at the seam. All points are OpenCV pixels, photos uint8 HxWx3.
"""

import cv2
import numpy as np

from sgpn_data.alignment import similarity_transform, template_points

# The paste-back mask: ones between these pixels of the crop, softened twice.
MASK_INSET, BLUR_SIZE, BLUR_SIGMA = 26, 101, 4


def cut_out(photo: np.ndarray, points5: np.ndarray, size: int, template: str) -> tuple[np.ndarray, np.ndarray]:
    """The face at points5 (5, 2), bicubically and with a black border: the crop (size, size, 3), and photo -> crop (2, 3).

    Raises:
        ValueError: the points determine no transform, or the template is unknown.
    """
    matrix = similarity_transform(points5, template_points(template, size))
    return cv2.warpAffine(photo, matrix, (size, size), flags=cv2.INTER_CUBIC), matrix


def mask_of(size: int) -> np.ndarray:
    """The paste-back mask of a crop of ``size`` pixels: (size, size) float32, 1 on the face, 0 towards the border."""
    mask = np.zeros((size, size), np.float32)
    # Both ends belong to the rectangle that the authors draw, so the mask is a pixel wider at the right and below.
    mask[MASK_INSET : size - MASK_INSET + 1, MASK_INSET : size - MASK_INSET + 1] = 1
    for _ in range(2):
        mask = cv2.GaussianBlur(mask, (BLUR_SIZE, BLUR_SIZE), BLUR_SIGMA)
    return mask


def paste_back(photo: np.ndarray, face: np.ndarray, crop: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """A copy of the photo with a restored face in place of its crop.

    Args:
        face, crop: (S, S, 3) uint8. matrix: (2, 3), photo -> crop.

    The blend is rounded to grey levels where the authors cut it off, which darkens theirs by half a level on average.
    """
    weight = mask_of(len(crop))[..., None]
    blended = np.rint(face * weight + crop * (1 - weight)).astype(np.uint8)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    height, width = photo.shape[:2]
    return cv2.warpAffine(
        blended, matrix, (width, height), dst=photo.copy(), flags=flags, borderMode=cv2.BORDER_TRANSPARENT
    )
