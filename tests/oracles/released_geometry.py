"""The release's face model, light, camera, 224-pixel crop, drawing, cut-out and paste-back, in slow float64 numpy.

Pictures here are height x width x channels. Continuous pixels put a pixel's centre at +0.5, OpenCV pixels at +0.
"""

import functools
import math
from pathlib import Path

import cv2
import numpy as np
import scipy.io
from skimage.transform import SimilarityTransform

TARGET, TARGET_SCALE, DISTANCE, FOCAL = 224, 102.0, 10.0, 1015.0
TEMPLATE_96_112 = [
    (30.29459953, 51.69630051),
    (65.53179932, 51.50139999),
    (48.02519989, 71.73660278),
    (33.54930115, 92.3655014),
    (62.72990036, 92.20410156),
]
TEMPLATE = (np.array(TEMPLATE_96_112) + [8 + 28, 28]) * 512 / 168
PARTS = dict(identity=80, expression=64, texture=80, angles=3, lighting=27, translation=3)


# --- The face model ---------------------------------------------------------------------------------------------------


def read_bfm(path):
    """{array: values} of a model file, indices counted from 0; ``lm`` too, from the file beside it."""
    path = Path(path)
    bfm = {name: value for name, value in scipy.io.loadmat(path).items() if not name.startswith("__")}
    for name in ("meanshape", "meantex", "idBase", "exBase", "texBase"):
        bfm[name] = bfm[name].astype(np.float64)
    for name in ("tri", "point_buf", "keypoints"):
        bfm[name] = bfm[name].astype(np.int64) - 1
    bfm["lm"] = scipy.io.loadmat(path.with_name("similarity_Lm3D_all.mat"))["lm"].astype(np.float64)
    return bfm


def shape(bfm, identity, expression):
    """(V, 3) decimetres, the mean shape's centroid at the origin."""
    mean = bfm["meanshape"].reshape(-1)
    flat = np.array([
        mean[row] + bfm["idBase"][row] @ identity + bfm["exBase"][row] @ expression for row in range(len(mean))
    ])  # fmt: skip
    centroid = mean.reshape(-1, 3).mean(0)
    return np.array([vertex - centroid for vertex in flat.reshape(-1, 3)])


def albedo(bfm, texture):
    """(V, 3) RGB, 0-255 but for what the coefficients overshoot."""
    mean = bfm["meantex"].reshape(-1)
    return np.array([mean[row] + bfm["texBase"][row] @ texture for row in range(len(mean))]).reshape(-1, 3)


def normals(bfm, vertices):
    """(V, 3): the sum of a vertex' listed triangles' normals, each as long as twice its area; then of unit length."""
    faces = []
    for a, b, c in vertices[bfm["tri"]]:
        (ux, uy, uz), (vx, vy, vz) = a - b, b - c
        faces.append([uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx])
    faces.append([0.0, 0.0, 0.0])  # what the index after the last one stands for
    result = []
    for listed in bfm["point_buf"]:
        total = sum(np.array(faces[number]) for number in listed)
        result.append(total / max(math.sqrt((total**2).sum()), 1e-12))
    return np.array(result)


def rotation(angles):
    """The matrix R (3, 3) that vertices are multiplied with from the right, from turns about x, y and z in radians."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return (about_z @ about_y @ about_x).T


def spherical_harmonics(normal):
    """The nine bands at a unit normal."""
    x, y, z = normal
    first = [0.88623, -1.77245 * y, 1.77245 * z, -1.77245 * x]
    second = [2.42703 * x * y, -2.42703 * y * z, 0.70062 * (3 * z * z - 1), -2.42703 * x * z, 1.21352 * (x * x - y * y)]
    return np.array(first + second)


def light(colours, unit_normals, lighting):
    """albedo (V, 3) and lighting (27,), nine bands for each of R, G, B -> lit colours, not clamped."""
    bands = np.asarray(lighting, np.float64).reshape(3, 9).copy()
    bands[:, 0] += 0.8
    lit = np.zeros_like(colours)
    for vertex, normal in enumerate(unit_normals):
        basis = spherical_harmonics(normal)
        for colour in range(3):
            lit[vertex, colour] = colours[vertex, colour] * (basis @ bands[colour])
    return lit


def split(coefficients):
    """{part: values} of one face's 257 coefficients."""
    ends = np.cumsum(list(PARTS.values()))
    pieces = np.split(np.asarray(coefficients, np.float64), ends[:-1])
    return dict(zip(PARTS, pieces, strict=True))


def mesh(bfm, coefficients):
    """One face: posed vertices (V, 3), lit colours (V, 3) 0-255 not clamped, continuous pixels (V, 2), depth (V,)."""
    parts = split(coefficients)
    still = shape(bfm, parts["identity"], parts["expression"])
    turn = rotation(parts["angles"])
    posed = still @ turn + parts["translation"]
    colours = light(albedo(bfm, parts["texture"]), normals(bfm, still) @ turn, parts["lighting"])
    points = np.array([project(vertex) for vertex in posed])
    return {"vertices": posed, "colours": colours, "points": points, "depth": DISTANCE - posed[:, 2]}


def project(vertex):
    """Continuous pixel of a point; the camera stands at (0, 0, 10), looks down -z, and rows run down."""
    x, y, z = vertex
    return [TARGET / 2 + FOCAL * x / (DISTANCE - z), TARGET / 2 - FOCAL * y / (DISTANCE - z)]


def landmarks(bfm, face):
    """(68, 2) continuous pixels of the 224 picture."""
    return face["points"][bfm["keypoints"][0]]


def render(bfm, face, size=TARGET):
    """Picture (size, size, 3) 0-255, black outside, and alpha (size, size) 0 or 1, by a z-buffer."""
    ids, barycentrics = z_buffer(face["points"], face["depth"], bfm["tri"], size)
    picture = np.zeros((size, size, 3))
    for row, column in np.argwhere(ids >= 0):
        corners = face["colours"][bfm["tri"][ids[row, column]]]
        picture[row, column] = barycentrics[row, column] @ corners
    return picture.clip(0, 255), (ids >= 0).astype(np.float64)


def z_buffer(points, depth, triangles, size):
    """ids (size, size), -1 outside, and perspective-correct weights (size, size, 3), one triangle at a time."""
    ids, weights_of = np.full((size, size), -1), np.zeros((size, size, 3))
    nearest = np.full((size, size), np.inf)
    for index, triangle in enumerate(triangles):
        a, b, c = points[triangle]
        low, high = (np.array([f(a, f(b, c))]).astype(int)[0].clip(0, size) for f in (np.minimum, np.maximum))
        columns, rows = np.meshgrid(
            np.arange(low[0], min(high[0] + 1, size)), np.arange(low[1], min(high[1] + 1, size))
        )
        centres = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], 1)
        area = cross(b - a, c - a)
        if area == 0:
            continue
        parts = np.stack([cross(c - b, centres - b), cross(a - c, centres - c), cross(b - a, centres - a)], 1) / area
        for x, y, weights in zip(columns.flat, rows.flat, parts, strict=True):
            here = 1 / (weights / depth[triangle]).sum() if weights.min() >= 0 else np.inf
            if here < nearest[y, x]:
                ids[y, x], nearest[y, x] = index, here
                weights_of[y, x] = weights / depth[triangle] * here
    return ids, weights_of


def cross(a, b):
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


# --- The 224-pixel crop -----------------------------------------------------------------------------------------------


def five_of(lm):
    """(68, 3) -> (5, 3): the middles between the eyes' corners, the nose's tip, the mouth's corners."""
    point = {number: lm[number - 1] for number in (31, 37, 40, 43, 46, 49, 55)}
    return np.stack([(point[37] + point[40]) / 2, (point[43] + point[46]) / 2, point[31], point[49], point[55]])


def pose_from_points(flat, solid):
    """Scale and translation (2,) of the scaled-orthographic camera that maps solid (K, 3) to flat (K, 2), y up."""
    count = len(flat)
    system, target = np.zeros((2 * count, 8)), np.zeros(2 * count)
    for i in range(count):
        system[2 * i, 0:4] = [*solid[i], 1]
        system[2 * i + 1, 4:8] = [*solid[i], 1]
        target[2 * i : 2 * i + 2] = flat[i]
    solved = np.linalg.lstsq(system, target, rcond=None)[0]
    scale = (np.linalg.norm(solved[0:3]) + np.linalg.norm(solved[4:7])) / 2
    return scale, solved[[3, 7]]


def crop_matrix(points5, reference5, crop_size):
    """(2, 3): OpenCV pixels of the crop -> of the 224 picture."""
    points5 = np.asarray(points5, np.float64)
    upward = np.stack([points5[:, 0], crop_size - 1 - points5[:, 1]], 1)
    scale, translation = pose_from_points(upward, reference5)
    zoom = TARGET_SCALE / scale
    resized = int(crop_size * zoom)
    moved = (upward - translation + crop_size / 2) * zoom - (resized / 2 - TARGET / 2)
    downward = np.stack([moved[:, 0], TARGET - 1 - moved[:, 1]], 1)
    return umeyama(points5, downward)


def umeyama(source, target):
    """(2, 3): the least-squares similarity."""
    return SimilarityTransform.from_estimate(np.asarray(source, np.float64), np.asarray(target, np.float64)).params[:2]


def regressor_input(crop, matrix):
    """crop (S, S, 3) in [-1, 1] -> (224, 224, 3) in [0, 1], grey where it lies outside the crop."""
    return bilinear(crop, matrix, TARGET) * 0.5 + 0.5


def on_crop(picture, alpha, matrix, crop_size):
    """picture 0-255 and alpha of 224 pixels -> rendering (S, S, 3) in [-1, 1] and mask (S, S) in [0, 1]."""
    back = invert(matrix)
    colours = bilinear(picture / 255, back, crop_size)
    mask = bilinear((alpha > 0).astype(np.float64), back, crop_size)
    return colours * mask[..., None] * 2 - 1, mask


def draw(bfm, coefficients, matrix, crop_size):
    return on_crop(*render(bfm, mesh(bfm, coefficients)), matrix, crop_size)


def invert(matrix):
    linear = np.linalg.inv(matrix[:, :2])
    return np.concatenate([linear, -linear @ matrix[:, 2:]], 1)


def bilinear(picture, matrix, size):
    """The picture moved by a matrix (source -> target pixels), as cv2.warpAffine does it: zeros outside, bilinear."""
    picture = np.asarray(picture, np.float64)
    back = invert(np.asarray(matrix, np.float64))
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    sx, sy = (row[0] * x + row[1] * y + row[2] for row in back)
    left, top = np.floor(sx).astype(int), np.floor(sy).astype(int)
    out = 0
    for dy in (0, 1):
        for dx in (0, 1):
            weight = (1 - abs(sx - left - dx)) * (1 - abs(sy - top - dy))
            value = _pixels_or_zero(picture, top + dy, left + dx)
            out = out + (weight[..., None] if picture.ndim == 3 else weight) * value
    return out


def _pixels_or_zero(picture, rows, columns):
    height, width = picture.shape[:2]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    found = picture[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return np.where(inside[..., None] if picture.ndim == 3 else inside, found, 0)


def bilinear_cv2(picture, matrix, size):
    """The same by OpenCV, in float32."""
    moved = cv2.warpAffine(
        np.asarray(picture, np.float32),
        np.asarray(matrix, np.float64),
        (size, size),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    return moved.astype(np.float64)


# --- Cut-out and paste-back -------------------------------------------------------------------------------------------


def cut_out(photo, points5):
    """uint8 photo -> uint8 crop (512, 512, 3), matrix (2, 3) photo -> crop."""
    matrix = umeyama(points5, TEMPLATE)
    return cv2.warpAffine(photo, matrix, (512, 512), flags=cv2.INTER_CUBIC), matrix


@functools.cache
def paste_mask():
    """(512, 512): 1 from 26 to 486 in both directions, blurred twice."""
    mask = np.zeros((512, 512), np.float32)
    mask[26:487, 26:487] = 1
    for _ in range(2):
        mask = cv2.GaussianBlur(mask, (101, 101), 4)
    return mask.astype(np.float64)


def blend(face, crop, truncate=True):
    """uint8 pictures of 512 pixels -> the one that is pasted: the face inside the mask, the crop outside."""
    mask = paste_mask()[..., None]
    inside, outside = ((picture.astype(np.float64) / 127.5 - 1) for picture in (face, crop))
    mixed = (mask * inside.clip(-1, 1) + (1 - mask) * outside) * 127.5 + 127.5
    # A thousandth absorbs float64's own error where a whole number is cut off.
    mixed = np.floor(mixed + 1e-3) if truncate else np.round(mixed)
    return mixed.clip(0, 255).astype(np.uint8)


def paste_back(photo, face, crop, matrix, truncate=True):
    """A new photo with the blended face over it, moved back by the inverse of the matrix.

    The release leaves to OpenCV's BORDER_TRANSPARENT what is written here, as OpenCV 4 does it: a pixel of the photo
    is written if it falls into the crop, 0 <= x < 512, and what the bicubic filter needs beyond the border is
    mirrored. (OpenCV 5.0 also smears up to eight pixels of the photo beside the crop.)
    """
    moved = cv2.warpAffine(
        blend(face, crop, truncate),
        np.asarray(matrix, np.float64),
        photo.shape[1::-1],
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return np.where((into_crop(photo, matrix) >= 0)[..., None], moved, photo)


def into_crop(photo, matrix, size=512):
    """How far every pixel (H, W) of the photo falls inside the crop's square [0, size), in the crop's pixels."""
    y, x = np.indices(photo.shape[:2])
    sx, sy = (row[0] * x + row[1] * y + row[2] for row in np.asarray(matrix, np.float64))
    end = np.nextafter(size, 0)  # the far sides are outside
    return np.minimum.reduce([sx, sy, end - sx, end - sy])
