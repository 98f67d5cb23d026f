"""Face alignment: templates, similarity transforms, and cutting a face out of a photo.

Needs numpy and OpenCV only.

All points are OpenCV pixels (x, y): y down, a pixel's centre at whole numbers, so an image of width S spans
[-0.5, S - 0.5]. Showing an image of size A at size B therefore moves a point by x -> (x + 0.5) * B / A - 0.5,
here and everywhere in the project. Matrices are 2x3 and map points of the photo to points of the crop, unless
named inverse. Photos are uint8 HxWx3; the colour order does not matter here.
"""

import math

import cv2
import numpy as np
import numpy.typing as npt

TEMPLATE_SIZE = 512

# InsightFace's five points for crops of 96x112 px (width x height), on which GPEN's template is built.
_INSIGHTFACE = (
    (30.29459953, 51.69630051),
    (65.53179932, 51.50139999),
    (48.02519989, 71.73660278),
    (33.54930115, 92.3655014),
    (62.72990036, 92.20410156),
)

# Five points at 512 px: image-left eye, image-right eye, nose tip, image-left and image-right mouth corner.
TEMPLATES = {
    # facexlib's mean of FFHQ faces found by RetinaFace
    "ffhq": ((192.98, 239.95), (318.90, 240.19), (256.63, 314.02), (201.26, 371.41), (313.09, 371.15)),
    # GPEN's, which the authors' released SGPN weights were trained with: InsightFace's, widened to a square of 112 px and
    # by a quarter of that on each side, hence 168 px, shown at 512
    "gpen": tuple(((x + 8 + 28) * 512 / 168, (y + 28) * 512 / 168) for x, y in _INSIGHTFACE),
}

BORDERS = {"reflect": cv2.BORDER_REFLECT, "constant": cv2.BORDER_CONSTANT, "replicate": cv2.BORDER_REPLICATE}

# When a warp shrinks, the source is first area-averaged to this many pixels per target pixel, then sampled
# bilinearly: fewer would blur by sampling twice, more would alias. A choice of ours.
OVERSAMPLING = 1.25


# ------------------------------------------------------------------------------------------------------------
# Points and transforms


def scale_points(points: npt.ArrayLike, old_size: float, new_size: float) -> np.ndarray:
    """Points (..., 2) of an image of ``old_size`` pixels, where they lie when it is resized to ``new_size``."""
    return (np.asarray(points, np.float64) + 0.5) * (new_size / old_size) - 0.5


def template_points(name: str, size: int = TEMPLATE_SIZE) -> np.ndarray:
    """The (5, 2) float64 points of template ``name`` on a crop of ``size`` pixels. Raises ValueError if unknown."""
    if name not in TEMPLATES:
        raise ValueError(f"alignment: unknown template {name!r} (known: {', '.join(TEMPLATES)})")
    return scale_points(TEMPLATES[name], TEMPLATE_SIZE, size)


def similarity_transform(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The 2x3 rotation, uniform scale and shift that best takes ``source`` (K, 2) to ``target`` (K, 2).

    In the plane a similarity is q = z*p + t over the complex numbers, so the least-squares z is a one-line
    regression of the centred points, z = sum(conj(p) q) / sum(|p|^2): the planar case of Umeyama (1991),
    reflections excluded. Raises ValueError if the points are not finite, do not match in number, or determine
    no transform.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 2 or len(source) < 2:
        raise ValueError(f"similarity_transform: expected two (K>=2, 2) arrays, got {source.shape} and {target.shape}")
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise ValueError("similarity_transform: the points must be finite")
    p, q = source @ (1, 1j), target @ (1, 1j)
    centred_p, centred_q = p - p.mean(), q - q.mean()
    spread = np.sum(np.abs(centred_p) ** 2)
    z = np.sum(centred_p.conj() * centred_q) / spread if spread > 0 else 0
    if abs(z) < 1e-12:
        raise ValueError("similarity_transform: the points coincide or cancel out, so they determine no transform")
    t = q.mean() - z * p.mean()
    return np.array([[z.real, -z.imag, t.real], [z.imag, z.real, t.imag]])


def similarity_scale(matrix: np.ndarray) -> float:
    """By how much a 2x3 similarity magnifies."""
    return math.hypot(matrix[0][0], matrix[1][0])


def invert_similarity(matrix: np.ndarray) -> np.ndarray:
    """The 2x3 inverse of a 2x3 similarity (or any invertible affine map)."""
    linear = np.linalg.inv(np.asarray(matrix, np.float64)[:, :2])
    return np.hstack([linear, -linear @ np.asarray(matrix, np.float64)[:, 2:]])


def transform_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points (..., 2) moved by a 2x3 matrix; float64."""
    matrix = np.asarray(matrix, np.float64)
    return np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]


def rescale_matrix(matrix: np.ndarray, crop_size: float, new_size: float) -> np.ndarray:
    """A photo -> crop matrix for the same crop shown at ``new_size`` instead of ``crop_size`` pixels."""
    factor = new_size / crop_size
    return np.asarray(matrix, np.float64) * factor + [[0, 0, 0.5 * factor - 0.5]]


def matrix_of_enlarged(matrix: np.ndarray, factor: float) -> np.ndarray:
    """A photo -> crop matrix for the same photo, enlarged by a factor (as OpenCV's ``resize`` does it)."""
    matrix = np.asarray(matrix, np.float64)
    shift = 0.5 / factor - 0.5
    return np.hstack([matrix[:, :2] / factor, matrix[:, 2:] + matrix[:, :2].sum(axis=1, keepdims=True) * shift])


# ------------------------------------------------------------------------------------------------------------
# Cutting out


def align_face(
    photo: np.ndarray,
    points5: np.ndarray,
    size: int = TEMPLATE_SIZE,
    template: str = "ffhq",
    border: str = "reflect",
    border_value: float = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts the face at ``points5`` (5, 2) out of ``photo`` so that it lies on ``template``.

    Returns the crop (size, size, 3) uint8 and the 2x3 matrix photo -> crop. Faces larger than the crop are
    area-averaged first (no aliasing); smaller ones are enlarged bilinearly, as the training data is. What
    lies outside the photo is its mirror image (``border`` "reflect"), its edge ("replicate") or
    ``border_value`` ("constant"). Raises ValueError for a photo that is not uint8 HxWx3, bad points, an
    unknown template or border, or a face whose crop lies outside the photo.
    """
    check_photo(photo, "align_face")
    matrix = similarity_transform(points5, template_points(template, size))
    return warp(photo, matrix, (size, size), border, border_value=border_value), matrix


def warp(
    image: np.ndarray,
    matrix: np.ndarray,
    size: tuple[int, int],
    border: str = "reflect",
    interpolation: int = cv2.INTER_LINEAR,
    border_value: float = 0,
) -> np.ndarray:
    """``image`` moved by the 2x3 similarity ``matrix`` onto a canvas of ``size`` (width, height), antialiased.

    Reads only the part of ``image`` that lands on the canvas, so it costs in proportion to that part and to
    the canvas. ``interpolation`` is OpenCV's flag. Raises ValueError if nothing lands on the canvas.
    """
    if border not in BORDERS:
        raise ValueError(f"alignment: unknown border {border!r} (known: {', '.join(BORDERS)})")
    left, top, right, bottom = source_region(image.shape, matrix, size)
    if left >= right or top >= bottom:
        raise ValueError(f"alignment: the area to cut out lies outside the image of shape {image.shape}")
    region = image[top:bottom, left:right]
    to_canvas = np.asarray(matrix, np.float64) @ _affine(1, 1, left, top)
    scale = similarity_scale(matrix)
    if scale * OVERSAMPLING < 1:
        region, to_full = _shrink(region, scale * OVERSAMPLING)
        to_canvas = to_canvas @ to_full
    value = (border_value,) * 4
    return cv2.warpAffine(
        region, to_canvas[:2], size, flags=interpolation, borderMode=BORDERS[border], borderValue=value
    )


def _shrink(image, factor):
    """``image`` area-averaged by ``factor`` < 1, and the 3x3 map from the small image's points to the large one's."""
    height, width = image.shape[:2]
    small = max(1, round(width * factor)), max(1, round(height * factor))
    across, down = width / small[0], height / small[1]
    to_full = _affine(across, down, 0.5 * across - 0.5, 0.5 * down - 0.5)
    return cv2.resize(image, small, interpolation=cv2.INTER_AREA), to_full


def _affine(scale_x, scale_y, shift_x, shift_y):
    return np.array([[scale_x, 0, shift_x], [0, scale_y, shift_y], [0, 0, 1]], np.float64)


def corners(width: int, height: int) -> np.ndarray:
    """The four corners (4, 2) of a picture."""
    return np.array([[-0.5, -0.5], [width - 0.5, -0.5], [width - 0.5, height - 0.5], [-0.5, height - 0.5]])


def source_region(shape: tuple, matrix: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) of an image of ``shape`` that a warp by ``matrix`` onto a canvas of
    ``size`` (width, height) may read; empty (left >= right or top >= bottom) if none of the image lands
    there."""
    footprint = transform_points(corners(*size), invert_similarity(matrix))
    margin = 3 + math.ceil(2 / similarity_scale(matrix))  # the interpolation's and area filter's reach
    low, high = footprint.min(axis=0) - margin, footprint.max(axis=0) + margin
    left, right = _source_span(low[0], high[0], shape[1])
    top, bottom = _source_span(low[1], high[1], shape[0])
    return left, top, right, bottom


def _source_span(low, high, length):
    low, high = math.floor(low), math.ceil(high)
    if high <= 0 or low >= length:
        return 0, 0
    # What is mirrored at one edge must itself be inside the region, however far the face sticks out.
    reach_high, reach_low = max(high, -low), min(low, 2 * length - high)
    return max(0, reach_low), min(length, reach_high)


def resize(image: np.ndarray, size: tuple[int, int], enlarge: int = cv2.INTER_CUBIC) -> np.ndarray:
    """``image`` at ``size`` (width, height): area-averaged where it shrinks, else by OpenCV's ``enlarge``."""
    shrinks = size[0] < image.shape[1] or size[1] < image.shape[0]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else enlarge)


def check_photo(photo, where: str) -> None:
    """Raises ValueError unless ``photo`` is a uint8 HxWx3 array; the message begins with ``where``."""
    if not isinstance(photo, np.ndarray):
        raise ValueError(f"{where}: expected a uint8 HxWx3 BGR array, got {type(photo).__name__}")
    if photo.ndim == 3 and photo.shape[2] == 3 and photo.dtype == np.uint8:
        return
    hint = ""
    if photo.ndim == 2 or photo.shape[2:] in ((1,), (4,)):
        kind, code = ("with alpha", "BGRA2BGR") if photo.shape[2:] == (4,) else ("grey", "GRAY2BGR")
        hint = f"; this one is {kind}: convert it with cv2.cvtColor(photo, cv2.COLOR_{code})"
    raise ValueError(f"{where}: expected a uint8 HxWx3 BGR array, got {photo.dtype} of shape {photo.shape}{hint}")
