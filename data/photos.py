"""Reading and writing photos: upright, 8-bit BGR with the alpha beside it, whatever the file holds; atomic writes."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import ExifTags, Image

from sgpn_arch.errors import UserError
from sgpn_arch.files import write_atomically

READ_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
WRITE_SUFFIXES = (".jpg", ".jpeg", ".png")
JPEG_QUALITY = 95
# A photo whose channels differ by less than this many grey levels on average is black and white.
GREY_TOLERANCE = 2.0

# Photos of 100 megapixels exist. For good, because suspending warnings for a while is not safe with threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageError(UserError, ValueError):
    """A file that cannot be read or written as a picture; the message names it."""


@dataclass
class Photo:
    """A photo in memory.

    Attributes:
        bgr: uint8 HxWx3, upright (a rotation that EXIF asked for has been done).
        alpha: uint8 HxW, or None if the file has none.
        icc_profile: the colour profile of ``bgr``'s numbers, or None.
    """

    bgr: np.ndarray
    alpha: np.ndarray | None = None
    icc_profile: bytes | None = None


def read_photo(path: str | Path) -> Photo:
    """Reads any picture that Pillow knows: grey, 16-bit, palette, CMYK and with alpha; of an animation the first frame.

    Raises:
        ImageError: the file is missing, damaged, not a picture, or of a kind without a fixed range (floating point).
    """
    try:
        with Image.open(path) as image:
            image.load()
            return _to_photo(image, path)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: too large to read: {error}") from error
    # Pillow's decoders raise SyntaxError, struct.error and others for damaged files.
    except Exception as error:
        raise ImageError(f"{path}: cannot be read as a picture: {error}") from error


def photo_bytes(path: str | Path) -> int:
    """The bytes that a photo will take as an array, from its file's header; 0 where that cannot be read."""
    try:
        with Image.open(path) as image:
            return 3 * image.width * image.height
    except Exception:  # reading the photo will say what is wrong with it
        return 0


# A photo is converted so many rows at a time: it is large, and Pillow's copies of it need not exist as a whole.
STRIP = 256
# EXIF's orientation -> the steps from the stored rows and columns to the upright photo: transposed? then which axes reversed?
ORIENTATIONS = {
    2: (False, (1,)), 3: (False, (0, 1)), 4: (False, (0,)),
    5: (True, ()), 6: (True, (1,)), 7: (True, (0, 1)), 8: (True, (0,)),
}  # fmt: skip


def _to_photo(image: Image.Image, path) -> Photo:
    mode = image.mode
    # The profile of a CMYK or grey file does not describe the RGB numbers made from it.
    profile = image.info.get("icc_profile") if mode in ("RGB", "RGBA", "P") else None
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if mode == "F":
        raise ImageError(f"{path}: a floating-point picture has no known range; save it with 8 or 16 bits")
    if mode.startswith("I"):
        image = Image.fromarray(_from_16_bits(np.asarray(image), path))
    has_alpha = mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    stored = np.empty((image.height, image.width, 3), np.uint8)
    alpha = np.empty(stored.shape[:2], np.uint8) if has_alpha else None
    for top in range(0, image.height, STRIP):
        rows = slice(top, min(top + STRIP, image.height))
        strip = image.crop((0, top, image.width, rows.stop))
        values = np.asarray(strip.convert("RGBA" if has_alpha else "RGB"))
        stored[rows] = cv2.cvtColor(values, cv2.COLOR_RGBA2BGR if has_alpha else cv2.COLOR_RGB2BGR)
        if alpha is not None:
            alpha[rows] = values[..., 3]
    return Photo(_upright(stored, orientation), None if alpha is None else _upright(alpha, orientation), profile)


def _upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    transposed, reversed_axes = ORIENTATIONS.get(orientation, (False, ()))
    turned = np.flip(stored.swapaxes(0, 1) if transposed else stored, reversed_axes)
    return np.ascontiguousarray(turned)


def _from_16_bits(values: np.ndarray, path) -> np.ndarray:
    values = values.astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{path}: has values outside 0..65535; save it with 8 or 16 bits")
    return ((values * 255 + 32767) // 65535).astype(np.uint8)


def _to_image(bgr: np.ndarray) -> Image.Image:
    height, width = bgr.shape[:2]
    image = Image.new("RGB", (width, height))
    for top in range(0, height, STRIP):
        strip = cv2.cvtColor(np.ascontiguousarray(bgr[top : top + STRIP]), cv2.COLOR_BGR2RGB)
        image.paste(Image.fromarray(strip), (0, top))
    return image


def write_photo(path: str | Path, photo: Photo) -> None:
    """Writes a photo as PNG, or as JPEG of quality 95 without chroma subsampling, through a temporary file.

    JPEG holds no alpha: there the photo is laid over white. No EXIF is written, so no viewer turns the photo again.

    Raises:
        ImageError: the suffix is neither .png nor .jpg, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in WRITE_SUFFIXES:
        raise ImageError(f"{path}: can write {', '.join(WRITE_SUFFIXES)} only")
    jpeg = path.suffix.lower() != ".png"
    image = _to_image(photo.bgr)
    if photo.alpha is not None and jpeg:
        image = Image.composite(image, Image.new("RGB", image.size, "white"), Image.fromarray(photo.alpha))
    elif photo.alpha is not None:
        image.putalpha(Image.fromarray(photo.alpha))
    options: dict[str, Any] = {"quality": JPEG_QUALITY, "subsampling": 0} if jpeg else {}
    if photo.icc_profile:
        options["icc_profile"] = photo.icc_profile
    _save(image, path, "JPEG" if jpeg else "PNG", options)


def write_picture(path: str | Path, picture: np.ndarray) -> None:
    """Writes a uint8 BGR HxWx3 or grey HxW array; see :func:`write_photo`."""
    write_photo(path, Photo(np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 else picture))


def _save(image: Image.Image, path: Path, kind: str, options: dict) -> None:
    try:
        write_atomically(path, lambda temporary: image.save(temporary, kind, **options), durable=False)
    except OSError as error:
        raise ImageError(f"{path}: cannot be written: {error}") from error


# ---------------------------------------------------------------------------------------------------------------------
# Black and white


def is_grey(bgr: np.ndarray) -> bool:
    """Whether a photo is black and white, up to the colour noise of JPEG."""
    step = max(1, int(np.sqrt(bgr.shape[0] * bgr.shape[1] / 1e6)))  # a megapixel is enough to tell
    blue, green, red = cv2.split(np.ascontiguousarray(bgr[::step, ::step]))
    most, least = cv2.max(cv2.max(blue, green), red), cv2.min(cv2.min(blue, green), red)
    return cv2.mean(cv2.subtract(most, least))[0] < GREY_TOLERANCE


def to_grey(bgr: np.ndarray) -> np.ndarray:
    """A photo (H, W, 3) without its colours, still of three channels."""
    return cv2.cvtColor(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
