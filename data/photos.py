"""Reading and writing photos: upright, 8-bit BGR with the alpha beside it, whatever the file holds; atomic writes."""

import functools
import io
import logging
import os
import shutil
import stat
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from sgpn_arch.errors import UserError
from sgpn_arch.files import write_atomically
from sgpn_data import tiff
from sgpn_data.metadata import Metadata, read_metadata

READ_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".heic", ".heif", ".hif", ".tif", ".tiff", ".bmp",
    ".dib", ".gif", ".jp2", ".j2k", ".jpx", ".tga", ".psd", ".pcx", ".qoi", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
WRITE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png")
DEEP_SUFFIXES = (".png", ".tif", ".tiff")  # of the files that may have 16 bits
JPEG_QUALITY = 95
JPEG_SIDE = 65_500  # the longest that libjpeg writes
# A photo whose channels differ by less than this many grey levels on average is black and white.
GREY_TOLERANCE = 2.0
# Toned pictures. The curve of colours over grey levels is smoothed by so many levels. What lies beside it is averaged over a
# grid of parts, and may be so many levels (channels against each other): root mean square, and all but the worst hundredth.
# Of 3,655 training photos these limits take the seven toned ones and one that is nearly grey, and none of 600 degraded ones.
TONE_SIGMA, TONE_PARTS, TONE_SPREAD, TONE_LARGEST = 4, 32, 3.2, 9.0
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# Of the machine's memory: twice what restoring takes (100 megapixels: 2.1 GiB, docs/performance.md), for it has other work, too.
BYTES_PER_PIXEL = 48
LONGEST_SIDE = 1_000_000
# What is large has no more pixels than so many times its file's bytes, even a blank page of one bit.
LARGE_PIXELS, DENSEST = 100_000_000, 10_000

# What Pillow warns of (odd metadata, photos of 90 megapixels) is nothing that a user could act on; what matters is in
# ``Photo.remarks``. For good, because suspending warnings for a while is not safe with threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Python prints what it logs, too


class ImageError(UserError, ValueError):
    """A file that cannot be read or written as a picture; the message names it."""


@dataclass
class Photo:
    """A photo in memory.

    Attributes:
        bgr: uint8 HxWx3, upright (a rotation that EXIF asked for has been done).
        alpha: uint8 HxW, or None if the file has none.
        icc_profile: the colour profile of ``bgr``'s numbers, or None.
        remarks: what a user should know of how the file was read, a phrase each, such as "its EXIF data is damaged".
        metadata: what else the file says of the photo. scale: how many times larger than that file's ``bgr`` is.
        deep: uint16 HxWx3, the same photo in 16 bits, where that was asked for and the file has them; else None.
    """

    bgr: np.ndarray
    alpha: np.ndarray | None = None
    icc_profile: bytes | None = None
    remarks: list[str] = field(default_factory=list)
    metadata: Metadata = field(default_factory=lambda: Metadata({}))
    scale: int = 1
    deep: np.ndarray | None = None


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_photo(path: str | Path, deep: bool = False) -> Photo:
    """Reads any picture that Pillow knows: grey, 16-bit, palette, CMYK and with alpha; of several the first.

    Args:
        deep: also read the 16 bits of a PNG or TIFF that has them.

    Raises:
        ImageError: the file is missing, damaged, not a picture, or of a kind without a fixed range (floating point).
    """
    try:
        with _open(path) as image:
            if max(image.size) > LONGEST_SIDE:  # before it costs gigabytes for the addresses of its rows
                raise ImageError(
                    f"{path}: is {image.width}x{image.height} pixels; no photo has a side of over {LONGEST_SIDE}"
                )
            pixels, size = image.width * image.height, os.path.getsize(path)
            if pixels > max(LARGE_PIXELS, DENSEST * size):
                raise ImageError(
                    f"{path}: its header says {image.width}x{image.height} pixels, far too many for a file of {size} bytes"
                )
            image.load()
            photo = _to_photo(image)
        if deep:
            photo.deep = _read_deep(path, photo)
        return photo
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise ImageError(
            f"{path}: has more than {most} megapixels, the most that are taken here; make it smaller"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{path}: cannot be read as a picture: it is of no known kind, or its header is damaged"
        ) from error
    # Pillow's decoders raise SyntaxError, struct.error and others for damaged files.
    except Exception as error:
        raise ImageError(f"{path}: cannot be read as a picture: {error}") from error


def photo_bytes(path: str | Path) -> int:
    """The bytes that a photo will take as an array, from its file's header; 0 where that cannot be read."""
    try:
        with _open(path, decode=False) as image:
            return 3 * image.width * image.height
    except Exception:  # reading the photo will say what is wrong with it
        return 0


def take_large_photos() -> None:
    """Lets photos be read that fit this machine's memory, in this whole process; else 179 megapixels are the most."""
    if hasattr(os, "sysconf") and Image.MAX_IMAGE_PIXELS:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        # Pillow refuses what has more than twice its number.
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, memory // BYTES_PER_PIXEL // 2)


def _open(path: str | Path, decode: bool = True) -> Image.Image:
    """A file as Pillow opens it; with ``decode``, a TIFF that Pillow reads wrong is decoded by other means."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device might never end
        raise ImageError(
            f"{path}: is a {'folder' if stat.S_ISDIR(status.st_mode) else 'pipe or device'}, not a picture file"
        )
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        raise ImageError(f"{path}: is empty")
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS and b"avif" not in head:
        try:
            from pillow_heif import register_heif_opener
        except ImportError as error:
            raise ImageError(f"{path}: HEIC photos need one more package; run: pip install pillow-heif") from error
        register_heif_opener()
    if decode and head.startswith(tiff.MAGIC):
        return tiff.open_tiff(path)
    image = Image.open(path)
    transparent = image.info.get("transparency")
    if image.format == "PNG" and transparent is not None:
        # Pillow compares pixels of 8 bits with a colour of as many as the file has: findings/pillow_png_transparency.sh.
        bits = head[24]
        if image.mode == "L" and bits < 8:
            image.info["transparency"] = transparent * 255 // (2**bits - 1)
        elif image.mode == "RGB" and bits == 16:
            image.info["transparency"] = tuple(value >> 8 for value in transparent)
    return image


# A photo is converted so many pixels at a time: it is large, and Pillow's copies of it need not exist as a whole.
STRIP = 1 << 20
# EXIF's orientation -> the steps from the stored rows and columns to the upright photo: transposed? then which axes reversed?
ORIENTATIONS = {
    2: (False, (1,)), 3: (False, (0, 1)), 4: (False, (0,)),
    5: (True, ()), 6: (True, (1,)), 7: (True, (0, 1)), 8: (True, (0,)),
}  # fmt: skip


def _to_photo(opened: Image.Image) -> Photo:
    image, remarks = opened, list[str]()
    orientation = _orientation(image, remarks)
    profile, to_rgb = _colours(image, remarks)
    has_alpha = image.has_transparency_data
    if image.mode in ("F", "LAB"):
        kind = "a floating-point picture has no known range" if image.mode == "F" else "its colours are CIE L*a*b*"
        raise ValueError(f"{kind}; save it as RGB of 8 or 16 bits")
    if image.mode.startswith("I"):
        transparent = image.info.get("transparency")
        levels = np.asarray(image)
        values = _from_16_bits(levels)
        image = Image.fromarray(values)
        if has_alpha:
            image.putalpha(Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8)))
    stored = np.empty((image.height, image.width, 3), np.uint8)
    alpha = np.empty(stored.shape[:2], np.uint8) if has_alpha else None
    height = max(1, STRIP // image.width)
    for top in range(0, image.height, height):
        rows = slice(top, min(top + height, image.height))
        strip = image.crop((0, top, image.width, rows.stop))
        strip = strip.convert("LA") if strip.mode == "La" else strip
        if alpha is not None:
            values = np.asarray(strip.convert("RGBA"))
            alpha[rows] = values[..., 3]
        else:
            values = np.asarray(strip.convert("RGB"))
        if to_rgb is not None:
            values = np.asarray(to_rgb(strip))
        stored[rows] = cv2.cvtColor(values, cv2.COLOR_RGBA2BGR if values.shape[2] == 4 else cv2.COLOR_RGB2BGR)
    # What else a JPEG from a camera holds is previews and depths, and what a PSD holds is layers.
    if opened.format not in ("MPO", "PSD") and _is_several(opened):
        remarks.append("holds several pictures; only the first was read")
    return Photo(
        _upright(stored, orientation),
        None if alpha is None else _upright(alpha, orientation),
        profile,
        remarks,
        read_metadata(opened, ORIENTATIONS.get(orientation, (False, ()))[0], remarks),
    )


def _read_deep(path: str | Path, photo: Photo) -> np.ndarray | None:
    """The 16 bits of a photo, where its file has them and they are of the same colours."""
    if Path(path).suffix.lower() not in DEEP_SUFFIXES:
        return None
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if stored is None or stored.dtype != np.uint16:
        return None
    stored = np.repeat(stored[..., None], 3, axis=2) if stored.ndim == 2 else stored[..., :3]
    with Image.open(path) as image:
        upright = _upright(stored, _orientation(image, []))
    # A grey or unusual picture whose colours were converted, or that the two libraries read differently, has no 16 bits here.
    same = upright.shape == photo.bgr.shape and np.abs(to_8_bits(upright).astype(int) - photo.bgr).max() <= 1
    if not same:
        photo.remarks.append("its 16 bits cannot be kept, as its colours were converted")
    return upright if same else None


def to_8_bits(deep: np.ndarray) -> np.ndarray:
    """uint16 -> uint8, rounded."""
    return ((deep.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8)


def deepened(deep: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """A photo in 16 bits, changed as its 8 bits were: every pixel that did not change keeps its 16 bits, and the others keep what
    these say finer than a grey level.

    Args:
        deep: uint16 HxWx3. before, after: uint8 HxWx3.
    """
    change = 257 * (after.astype(np.int32) - before)
    return np.clip(deep + change, 0, 65535).astype(np.uint16)


def _upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    transposed, reversed_axes = ORIENTATIONS.get(orientation, (False, ()))
    turned = np.flip(stored.swapaxes(0, 1) if transposed else stored, reversed_axes)
    return np.ascontiguousarray(turned)


def _from_16_bits(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("it has values outside 0..65535; save it with 8 or 16 bits")
    return to_8_bits(values)


def _orientation(image: Image.Image, remarks: list[str]) -> int:
    """How a picture is to be turned, from its EXIF data, as far as these can be read."""
    orientation = 1
    try:
        data = image.info.get("exif") or b""  # pillow-heif says None where there is none: findings/pillow_heif_exif.sh
        while data.startswith(b"Exif\0\0"):
            data = data[6:]
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        # Pillow takes what it finds of a directory that was cut short.
        if data:
            order = {b"II": "<", b"MM": ">"}[data[:2]]
            (start,) = struct.unpack(f"{order}I", data[4:8])
            (entries,) = struct.unpack(f"{order}H", data[start : start + 2])
            if start + 2 + 12 * entries > len(data):
                raise ValueError
    except Exception:
        remarks.append("its EXIF data is damaged, so it may not be upright")
    return orientation


def _colours(
    image: Image.Image, remarks: list[str]
) -> tuple[bytes | None, Callable[[Image.Image], Image.Image] | None]:
    """The profile of the RGB numbers that a picture is converted to, and what converts it where its own profile must."""
    profile = image.info.get("icc_profile")
    mode = {"CMYK": "CMYK", "L": "L", "LA": "L", "La": "L", "1": "L"}.get(
        image.mode, "L" if image.mode[0] == "I" else "RGB"
    )
    # A profile of other colours than the picture's says nothing about them.
    if not profile or profile[16:20] != {"CMYK": b"CMYK", "L": b"GRAY", "RGB": b"RGB "}[mode]:
        return None, None
    if mode == "RGB":
        return profile, None
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(own, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        remarks.append("its colour profile is damaged and was left out")
        return None, None
    return srgb_profile(), lambda strip: transform.apply(strip if strip.mode == mode else strip.convert(mode))


@functools.cache
def srgb_profile() -> bytes:
    """The colour profile of sRGB, always the same bytes: littleCMS writes the time into its own."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    return bytes(profile)


def _is_several(image: Image.Image) -> bool:
    try:
        return getattr(image, "is_animated", False)
    except Exception:  # something follows the first picture, but is damaged
        return True


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def _to_image(bgr: np.ndarray) -> Image.Image:
    height, width = bgr.shape[:2]
    image = Image.new("RGB", (width, height))
    rows = max(1, STRIP // width)
    for top in range(0, height, rows):
        strip = cv2.cvtColor(np.ascontiguousarray(bgr[top : top + rows]), cv2.COLOR_BGR2RGB)
        image.paste(Image.fromarray(strip), (0, top))
    return image


def write_photo(path: str | Path, photo: Photo) -> None:
    """Writes a photo as PNG, or as JPEG of quality 95 without chroma subsampling, through a temporary file.

    JPEG holds no alpha: there the photo is laid over white. The photo's metadata is written, but for its orientation and
    previews: the photo is upright, and they would show it as it was.

    Raises:
        ImageError: the suffix is neither .png nor .jpg, the photo too long for a JPEG, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in WRITE_SUFFIXES:
        raise ImageError(f"{path}: can write {', '.join(WRITE_SUFFIXES)} only")
    jpeg = path.suffix.lower() != ".png"
    if jpeg and max(photo.bgr.shape) > JPEG_SIDE:
        raise ImageError(f"{path}: a JPEG has sides of {JPEG_SIDE} pixels at most; write PNG (--ext png)")
    image = _to_image(photo.bgr)
    if photo.alpha is not None and jpeg:
        image = Image.composite(image, Image.new("RGB", image.size, "white"), Image.fromarray(photo.alpha))
    elif photo.alpha is not None:
        image.putalpha(Image.fromarray(photo.alpha))
    options: dict[str, Any] = {"quality": JPEG_QUALITY, "subsampling": 0} if jpeg else {}
    if photo.icc_profile:
        options["icc_profile"] = photo.icc_profile
    options.update(photo.metadata.options(image.size, photo.scale, png=not jpeg))
    if photo.deep is not None and not jpeg:
        _write(path, lambda temporary: Path(temporary).write_bytes(_deep_png(photo, options)))
    else:
        _write(path, lambda temporary: image.save(temporary, "JPEG" if jpeg else "PNG", **options))


def _deep_png(photo: Photo, options: dict[str, Any]) -> bytes:
    """A PNG of 16 bits, as Pillow cannot write one in colours: OpenCV's, with what Pillow says beside the pixels."""
    assert photo.deep is not None
    pixels = photo.deep
    if photo.alpha is not None:
        pixels = np.dstack([pixels, photo.alpha.astype(np.uint16) * 257])
    done, encoded = cv2.imencode(".png", pixels)
    if not done:
        raise OSError("OpenCV cannot write a PNG of 16 bits")
    with io.BytesIO() as small:
        Image.new("RGB", (1, 1)).save(small, "PNG", **options)
        said = small.getvalue()
    data = encoded.tobytes()
    head = 8 + 25  # the signature and the chunk IHDR
    return data[:head] + said[head : said.index(b"IDAT") - 4] + data[head:]


def write_picture(path: str | Path, picture: np.ndarray) -> None:
    """Writes a uint8 BGR HxWx3 or grey HxW array; see :func:`write_photo`."""
    write_photo(path, Photo(np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 else picture))


def copy_photo(source: str | Path, target: str | Path) -> None:
    """Copies a file as it is.

    Raises:
        ImageError: it cannot be copied; the message names the target.
    """
    _write(Path(target), lambda temporary: shutil.copyfile(source, temporary))


def _write(path: Path, write: Callable[[str], Any]) -> None:
    try:
        write_atomically(path, write, durable=False)
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


def tone_of(bgr: np.ndarray, known: np.ndarray | None = None) -> np.ndarray | None:
    """What colour each grey level has in a picture (H, W, 3) of one tone, such as sepia: (256, 3) uint8; None for one in colours.

    Of a black-and-white picture these are the grey levels themselves. A picture is toned where its colours lie on a curve over
    their lightness, but for what JPEG and noise add, which the mean of a small part takes away.

    Args:
        known: (H, W) bool, the pixels that count; None is all.
    """
    known = np.ones(bgr.shape[:2], bool) if known is None else known
    if not known.any():
        return None
    levels = np.arange(256, dtype=np.float32)
    if is_grey(bgr[known][None]):
        return np.repeat(levels[:, None].astype(np.uint8), 3, axis=1)
    grey = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)
    colour = bgr - grey[..., None].astype(np.float32)
    sums = np.array([np.bincount(grey[known], weights, 256) for weights in (None, *colour[known].T)], float)
    count, *smooth = cv2.GaussianBlur(sums, (8 * TONE_SIGMA + 1, 1), TONE_SIGMA, borderType=cv2.BORDER_CONSTANT)
    seen = count > 1e-6 * count.max()
    curve = np.stack([np.interp(levels, levels[seen], (row[seen] / count[seen])) for row in smooth], axis=1)
    apart = (colour - curve[grey].astype(np.float32)) * known[..., None]
    parts = min(TONE_PARTS, *grey.shape)
    mean = cv2.resize(apart, (parts, parts), interpolation=cv2.INTER_AREA)
    share = cv2.resize(known.astype(np.float32), (parts, parts), interpolation=cv2.INTER_AREA)
    spread = (
        np.ptp(mean[share > 0.5] / share[share > 0.5][:, None], axis=1) if (share > 0.5).any() else np.array([np.inf])
    )
    if np.sqrt(np.mean(spread**2)) > TONE_SPREAD or np.quantile(spread, 0.99) > TONE_LARGEST:
        return None
    return np.clip(np.rint(levels[:, None] + curve), 0, 255).astype(np.uint8)


def toned(bgr: np.ndarray, tone: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) in the colours (256, 3) that :func:`tone_of` found for its grey levels."""
    return cv2.LUT(to_grey(bgr), tone[None])
