"""Pasting faces back into their photo: the masks, seams, neighbours and holes of cutting out and putting back.

Needs numpy and OpenCV only. Points and matrices are those of :mod:`sgpn_data.alignment`, photos uint8 HxWx3.
"""

import functools
import math
from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np

from sgpn_data.alignment import (
    check_photo,
    corners,
    invert_similarity,
    rescale_matrix,
    similarity_scale,
    source_region,
    transform_points,
    warp,
)
from sgpn_data.detail import HALO, MEASURED, detail_of, noise_of, with_detail

# The released paste-back mask at 512 px: ones inset by 26 px, blurred twice with a Gaussian of sigma 4.
FEATHER_INSET = 26 / 512
FEATHER_SIGMA = 4 * math.sqrt(2) / 512
# Pixels of the photo that are blended at a time.
STRIP_PIXELS = 1 << 22

# Parts of the crop's size: where the low frequencies of a restored face begin to be led over into the photo's, how
# softly, and what counts as low.
SEAM_INSET, SEAM_SIGMA, SEAM_BLUR = 0.14, 0.035, 0.06
# Low frequencies are blurred at this many pixels of a crop, however large it is.
SEAM_SIZE = 128

# How sharply neighbouring faces are told apart: the width of the transition in face heights is about 1 / this.
NEIGHBOUR_STEEPNESS = 24.0
# Distances beyond which a neighbour takes nothing: by the steepness above its share is below 1e-5.
NEIGHBOUR_REACH = 0.5

# From this grey level on, a mask's pixel is white; and over how many pixels around the hole the filling fades out.
HOLE_LEVEL, HOLE_FEATHER = 128, 2
# What a network sees in the hole, as in the pictures of the paper's and of GPEN's inpainting: white.
FILL = 255
GREY = 128  # of a hole without surroundings
# Over which part of the picture's side a rendering in a hole fades in, from the border of the face.
RENDER_FEATHER = 6 / 512
# A face with a rendering in its hole is reduced so many times before it is restored; see softened.
SOFTENING = 8


class Face(Protocol):
    """What is pasted; S is the crop's size.

    Attributes:
        crop, restored: (S, S, 3) uint8, as it was cut out, and what was made of it. matrix: (2, 3), photo -> crop.
        points5: (5, 2) in the crop. fidelity: 0..1, how much stays of the photo's detail that the crop does not show;
            "auto": all but its noise. hole: (S, S) bool, what was to be filled, or None.
    """

    crop: np.ndarray
    restored: np.ndarray
    matrix: np.ndarray
    points5: np.ndarray
    fidelity: float | str
    hole: np.ndarray | None


# ---------------------------------------------------------------------------------------------------------------------
# One face


@functools.lru_cache(maxsize=16)
def feather_mask(size: int, inset: float = FEATHER_INSET, sigma: float = FEATHER_SIGMA) -> np.ndarray:
    """A (size, size) float32 mask: 1 inside, falling smoothly to 0 at the border; ``inset`` and ``sigma`` are
    parts of the size. A square convolved with a Gaussian, in closed form (error functions); the defaults are
    the release's mask. The array is kept for the next call, and read-only.
    """
    centres = (np.arange(size) + 0.5) / size
    steps = [(distance / (sigma * math.sqrt(2))) for distance in (centres - inset, 1 - inset - centres)]
    rise, fall = (0.5 + 0.5 * np.array([math.erf(value) for value in step]) for step in steps)
    profile = np.clip(rise + fall - 1, 0, 1)
    mask = np.outer(profile, profile).astype(np.float32)
    mask.flags.writeable = False
    return mask


def paste_face(
    photo: np.ndarray,
    face: np.ndarray,
    matrix: np.ndarray,
    crop_size: int | None = None,
    mask: np.ndarray | None = None,
    in_place: bool = False,
    crop: np.ndarray | None = None,
    keep: float | str = 0.0,
    seen: np.ndarray | None = None,
) -> np.ndarray:
    """Puts ``face`` (F, F, 3) uint8 back where ``align_face`` took it from.

    ``matrix`` maps the photo to a crop of ``crop_size`` pixels (default F), so a face restored at another
    size than it was cut at fits too. ``mask`` (F, F) float in 0..1 weighs the face (default
    ``feather_mask(F)``). Where the face is magnified it is interpolated bicubically (bilinear would soften
    the restoration); where it shrinks, area-averaged. Only the face's bounding box is read and written: every
    other byte of the photo is unchanged.

    ``keep``, from 0 to 1, says how much stays of what the photo shows and ``crop`` (F, F, 3), which was cut out
    of it there, does not: the detail of a photo that is larger; "auto" is all of it but noise. It is looked for in
    ``seen``, of the photo's shape (default: the photo). Returns a copy, or ``photo`` itself when ``in_place``. A face
    wholly outside the photo changes nothing. Raises ValueError for bad shapes.
    """
    check_photo(photo, "paste_face: photo")
    check_photo(face, "paste_face: face")
    size = face.shape[0]
    mask = feather_mask(size) if mask is None else np.asarray(mask, np.float32)
    if face.shape[:2] != (size, size) or mask.shape != (size, size):
        raise ValueError(f"paste_face: face and mask must be square and equal, got {face.shape} and {mask.shape}")
    if keep and (crop is None or crop.shape != face.shape):
        raise ValueError("paste_face: keep needs the crop that the face was made of, of the face's shape")
    if seen is not None and seen.shape != photo.shape:
        raise ValueError(f"paste_face: seen must have the photo's shape {photo.shape}, got {seen.shape}")
    result = photo if in_place else photo.copy()
    seen = result if seen is None else seen
    to_photo = invert_similarity(rescale_matrix(matrix, crop_size or size, size))
    reached = transform_points(corners(size, size), to_photo)
    left, top = np.maximum(np.floor(reached.min(axis=0)), 0).astype(int).tolist()
    right, bottom = np.minimum(np.ceil(reached.max(axis=0)) + 1, photo.shape[1::-1]).astype(int).tolist()
    if left >= right or top >= bottom:
        return result
    # A face that fills a huge photo is blended strip by strip, for that is done in float32. What damps noise looks at rows
    # above and below a strip, and must see the photo's.
    noise: list[float] = []
    if keep == "auto" and crop is not None:
        noise = _noise_under(seen, (left, top, right, bottom), to_photo, crop, mask)
    halo = HALO << len(noise) if any(noise) else 0
    rows = max(1, STRIP_PIXELS // (right - left) >> len(noise)) << len(noise)
    above = seen[top:top, left:right]
    for start in range(top, bottom, rows):
        stop = min(start + rows, bottom)
        strip = np.concatenate([above, seen[start : min(stop + halo, bottom), left:right]])
        first, ours = start - len(above), np.s_[len(above) : len(above) + stop - start]
        above = strip[: len(above) + stop - start][-halo or len(strip) :]
        to_strip = to_photo - [[0, 0, left], [0, 0, first]]
        canvas = strip.shape[1::-1]
        source = source_region(face.shape, to_strip, canvas)
        if source[0] >= source[2] or source[1] >= source[3]:
            continue  # the corner of the box that the photo shows is not covered by the tilted face
        move = functools.partial(warp, matrix=to_strip, size=canvas, border="replicate", interpolation=cv2.INTER_CUBIC)
        moved = with_detail(face, crop, keep, strip, move, noise)[ours].astype(np.float32)
        weight = warp(mask, to_strip, canvas, "constant")[ours, :, None]
        behind = result[start:stop, left:right]
        result[start:stop, left:right] = to_levels(behind + weight * (moved - behind))
    return result


def _noise_under(
    photo: np.ndarray, box: tuple[int, int, int, int], to_photo: np.ndarray, crop: np.ndarray, mask: np.ndarray
) -> list[float]:
    """The noise of the photo finer than the crop, measured in the middle of the box; see :func:`noise_of`."""
    left, top, right, bottom = box
    left, top = left + max(0, right - left - MEASURED) // 2, top + max(0, bottom - top - MEASURED) // 2
    part = photo[top : min(bottom, top + MEASURED), left : min(right, left + MEASURED)]
    to_part = to_photo - [[0, 0, left], [0, 0, top]]
    source = source_region(crop.shape, to_part, part.shape[1::-1])
    if source[0] >= source[2] or source[1] >= source[3]:
        return []
    move = functools.partial(
        warp, matrix=to_part, size=part.shape[1::-1], border="replicate", interpolation=cv2.INTER_CUBIC
    )
    inside = warp(mask, to_part, part.shape[1::-1], "constant") > 0.5
    return noise_of(detail_of(part, crop, move), part, similarity_scale(to_photo), inside)


def to_levels(picture: np.ndarray) -> np.ndarray:
    """Grey levels as numbers -> uint8, rounded and clipped."""
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def aligned_at_size_of(face: Face, photo: np.ndarray) -> np.ndarray:
    """A restored aligned face at the size of the photo that it was, or at its own where that is larger."""
    height, width = photo.shape[:2]
    if max(height, width) <= len(face.restored):
        return face.restored
    move = functools.partial(cv2.resize, dsize=(width, height), interpolation=cv2.INTER_CUBIC)
    noise = []
    if face.fidelity == "auto":
        noise = noise_of(detail_of(photo, face.crop, move), photo, max(height, width) / len(face.crop))
    return to_levels(with_detail(face.restored.astype(np.float32), face.crop, face.fidelity, photo, move, noise))


# ---------------------------------------------------------------------------------------------------------------------
# Seams and neighbours


def paste_faces(
    photo: np.ndarray, faces: Sequence[Face], in_place: bool = False, seen: np.ndarray | None = None
) -> np.ndarray:
    """A copy of the photo (or the photo itself, when ``in_place``) with every restored face, or its filling, in its place.

    Pixels outside the crops are the photo's own.

    Near its border a restored face takes the photo's low frequencies, so no seam shows where the network shifts colours;
    and where two crops overlap each pixel belongs to the nearer face, so that no face is covered by a neighbour's
    background. Both are choices of ours. A filled face is pasted as a whole: :func:`blend_hole` takes the hole out of it.

    ``seen``, of the photo's shape, is where faces' finer detail is looked for (default: the photo).
    """
    result = photo if in_place else photo.copy()
    # The smallest first: what little two faces still share goes to the larger.
    for face in reversed(faces):
        mask = feather_mask(len(face.crop)) * ownership(face, [other for other in faces if other is not face])
        seamless = match_seam(face.restored, face.crop) if face.hole is None else match_hole(face)
        keep = face.fidelity if face.hole is None else 0
        paste_face(result, seamless, face.matrix, mask=mask, in_place=True, crop=face.crop, keep=keep, seen=seen)
    return result


def match_seam(restored: np.ndarray, crop: np.ndarray) -> np.ndarray:
    """A restored face (S, S, 3) that has the crop's low frequencies towards the border, and its own inside."""
    difference = crop.astype(np.float32) - restored
    outside = 1 - feather_mask(len(crop), SEAM_INSET, SEAM_SIGMA)[..., None]
    return to_levels(restored + low_frequencies(difference) * outside)


def low_frequencies(picture: np.ndarray) -> np.ndarray:
    """A float32 picture (S, S, 3) blurred by SEAM_BLUR of its size, replicated at its border.

    A large one is blurred at about SEAM_SIZE pixels: the blur leaves nothing that those cannot show, and costs in
    proportion to the number of pixels and to its own width.
    """
    size = len(picture)
    sigma, factor = SEAM_BLUR * size, max(1, size // SEAM_SIZE)
    if factor == 1:
        return cv2.GaussianBlur(picture, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    margin = factor * math.ceil(4 * sigma / factor)
    rest = -size % factor
    padded = cv2.copyMakeBorder(picture, margin, margin + rest, margin, margin + rest, cv2.BORDER_REPLICATE)
    small = cv2.resize(padded, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
    low = cv2.GaussianBlur(small, (0, 0), sigma / factor, borderType=cv2.BORDER_REPLICATE)
    low = cv2.resize(low, padded.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return low[margin : margin + size, margin : margin + size]


def ownership(face: Face, others: Sequence[Face]) -> np.ndarray:
    """How much each pixel of a face's crop belongs to it rather than to a neighbour: (S, S) float32 in 0..1.

    Distances are measured from the middle of a face's five points, in sides of its crop. Neighbours too far away to take
    anything are passed over, so a crowd costs each face its own neighbours only.
    """
    size = face.crop.shape[0]
    own = face.points5.mean(axis=0)
    ends = np.array([[0, 0], [size, 0], [0, size], [size, size]])
    reach = np.linalg.norm(ends - own, axis=1).max() / size
    share = np.ones((size, size), np.float32)
    for other in others:
        centre = transform_points(
            transform_points(other.points5.mean(axis=0), invert_similarity(other.matrix)), face.matrix
        )
        side = other.crop.shape[0] * similarity_scale(face.matrix) / similarity_scale(other.matrix)
        outside = np.hypot(*(np.clip(centre, 0, size) - centre))
        if outside / side - reach > NEIGHBOUR_REACH:
            continue
        y, x = np.mgrid[:size, :size].astype(np.float32)
        nearer = np.hypot(x - centre[0], y - centre[1]) / side - np.hypot(x - own[0], y - own[1]) / size
        share *= 1 / (1 + np.exp(-NEIGHBOUR_STEEPNESS * nearer))
    return share


# ---------------------------------------------------------------------------------------------------------------------
# Holes


def hole_of(mask: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """(H, W) bool, true where a mask of the photo is white.

    Raises:
        ValueError: the mask is not uint8, has another size than the photo, or no white.
    """
    if not (isinstance(mask, np.ndarray) and mask.dtype == np.uint8 and mask.ndim in (2, 3)):
        raise ValueError(f"restore: expected a uint8 HxW or HxWx3 mask, found {getattr(mask, 'dtype', type(mask))}")
    if mask.shape[:2] != photo.shape[:2]:
        (height, width), (photo_height, photo_width) = mask.shape[:2], photo.shape[:2]
        raise ValueError(
            f"the mask is {width}x{height}, the photo {photo_width}x{photo_height} (upright): paint the mask on the photo "
            "and save it at the photo's size"
        )
    hole = (mask if mask.ndim == 2 else mask.min(axis=2)) >= HOLE_LEVEL
    if not hole.any():
        raise ValueError("the mask has no white: paint white what is to be filled, and leave the rest black")
    return hole


def fill_hole(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy of ``image`` (H, W, 3), uint8 or float in [0, 1], that is white where ``mask`` (H, W) is not 0."""
    white = np.full_like(image, FILL if image.dtype == np.uint8 else FILL / 255)
    return cv2.copyTo(white, (mask > 0).astype(np.uint8), image.copy())


def spread_into_hole(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy of ``image`` (H, W, 3), uint8 or float, whose colours go on smoothly where ``mask`` (H, W) is not 0.

    Pull-push (Gortler et al., The Lumigraph, 1996): averages of what is known, coarser and coarser, until there are no gaps;
    then each gap is filled from the next coarser level. Only the surroundings of the hole count, as far as it is wide. What
    is a hole altogether becomes grey.
    """
    left, top, width, height = cv2.boundingRect((mask > 0).astype(np.uint8))
    box = np.s_[max(top - height, 0) : top + 2 * height, max(left - width, 0) : left + 2 * width]
    known = (mask[box] == 0).astype(np.float32)
    result = image.copy()
    if known.any():
        filled = _pull_push(image[box].astype(np.float32), known)
        cv2.copyTo(_of_type(filled, image.dtype), 1 - known.astype(np.uint8), result[box])
    elif known.size:
        result[:] = GREY if image.dtype == np.uint8 else GREY / 255
    return result


# What is put into a hole at first, by what networks learnt to see there (sgpn_data.masks.MaskOptions.fill).
FIRST_FILLS = {"white": fill_hole, "rendering": spread_into_hole}


def _pull_push(image, weight):
    height, width = weight.shape
    if weight.min() == 1 or max(height, width) == 1:
        return image
    half = max(width // 2, 1), max(height // 2, 1)
    mean = cv2.resize(weight, half, interpolation=cv2.INTER_AREA)
    coarse = (
        cv2.resize(image * weight[..., None], half, interpolation=cv2.INTER_AREA) / np.maximum(mean, 1e-6)[..., None]
    )
    # A place of which a quarter is known is as good as known: only true gaps are asked of the next level.
    coarse = _pull_push(coarse, np.minimum(4 * mean, 1))
    behind = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return behind + weight[..., None] * (image - behind)


def render_into_hole(image: np.ndarray, mask: np.ndarray, render: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """A copy of ``image`` (S, S, 3), uint8 or float in [0, 1], that shows a rendering where ``mask`` (S, S) is not 0.

    The colours of the ``render`` are led over into the photo's: what the photo differs by beside the hole goes on smoothly
    into it. Where the hole is not ``covered`` (S, S, 0 or not) by the rendered face, the surroundings go on alone. A choice
    of ours: a generator then has less to invent, and the shape prior decides where an eye or a mouth belongs.
    """
    size = len(mask)
    hole, face = mask > 0, covered > 0
    result = spread_into_hole(image, mask).astype(np.float32)
    beside = (hole | ~face).astype(np.uint8)
    if beside.all():
        return _of_type(result, image.dtype)
    drawn = render.astype(np.float32)
    drawn += spread_into_hole(image.astype(np.float32) - drawn, beside)
    inside = cv2.GaussianBlur(
        face.astype(np.float32), (0, 0), RENDER_FEATHER / 2 * size, borderType=cv2.BORDER_REPLICATE
    )
    share = (np.clip(2 * inside - 1, 0, 1) * hole)[..., None]
    return _of_type(result + share * (drawn - result), image.dtype)


def softened(picture: np.ndarray) -> np.ndarray:
    """A picture (S, S, 3) reduced SOFTENING times by averaging, and enlarged again.

    A generator takes a soft rendering in a sharp photo for what it is, and leaves it soft. Where all is soft, it draws eyes and
    lips anew. Of what it draws only the hole is used, so the photo loses nothing. A choice of ours, made by eye.
    """
    size = len(picture)
    small = cv2.resize(picture, (max(1, size // SOFTENING),) * 2, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR)


def _of_type(picture, dtype):
    return to_levels(picture) if dtype == np.uint8 else picture.astype(dtype)


def match_hole(face: Face) -> np.ndarray:
    """A filled face (S, S, 3) with the photo's low frequencies around its hole, so that no edge shows where the two meet.

    The difference between photo and filling is known outside the hole only; its weighted mean goes on into the hole. This
    is a choice of ours, as for the seams of restored faces.
    """
    assert face.hole is not None
    known = (~face.hole).astype(np.float32)
    difference = (face.crop.astype(np.float32) - face.restored) * known[..., None]
    sigma = SEAM_BLUR * len(known)
    weight = cv2.GaussianBlur(known, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    low = cv2.GaussianBlur(difference, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    # Deep in a large hole, where hardly anything is known, the filling is left as it is.
    low /= np.maximum(weight, 0.02)[..., None]
    return to_levels(face.restored + low)


def blend_hole(photo: np.ndarray, filling: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The photo with ``filling`` in the hole, fading out over HOLE_FEATHER pixels around it; the rest is untouched."""
    result = photo.copy()
    left, top, width, height = cv2.boundingRect(hole.astype(np.uint8))
    reach = HOLE_FEATHER + 1
    box = np.s_[max(top - reach, 0) : top + height + reach, max(left - reach, 0) : left + width + reach]
    # A rim of photo around the box: where there is no photo pixel at all, distances mean nothing.
    outside = np.pad((~hole[box]).astype(np.uint8), reach, constant_values=1)
    distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[reach:-reach, reach:-reach]
    weight = np.clip(1 - distance / reach, 0, 1)[..., None]
    result[box] = np.rint(photo[box] + weight * (filling[box].astype(np.float32) - photo[box]))
    return result
