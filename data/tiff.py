"""TIFF files: Pillow reads most of them; tifffile those that Pillow (13.0) reads wrong, or not at all."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ICC_PROFILE = 34675
UNSIGNED, PLANES_APART = 1, 2  # of the tags SampleFormat and PlanarConfiguration
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, CMYK = 0, 1, 2, 5  # of PhotometricInterpretation
PREMULTIPLIED, ALPHA = 1, 2  # of ExtraSamples
CUT_SHORT = "its strips or tiles do not make up the whole picture"
STRIP = 1 << 20  # numbers that are made 8-bit at once
MODES = {WHITE_IS_ZERO: "L", BLACK_IS_ZERO: "L", RGB: "RGB", CMYK: "CMYK"}

# It logs what it finds odd in a file, which Python prints where nobody has said what to do with it.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def open_tiff(path: str | Path) -> Image.Image:
    """A TIFF's first picture as Pillow opens it, or decoded already, of 8 bits.

    Raises:
        ValueError: its numbers have no known range, or its layout or compression cannot be read. And what the libraries raise.
    """
    image: Any
    try:
        image = Image.open(path)
    except UnidentifiedImageError:
        return _decode(path)
    if _is_read_right(image):
        # Else Pillow 13.0 maps it into memory with rows as long as the turned picture's: findings/pillow_tiff_orientation.sh.
        image.filename = ""
        if max((tile[1][3] for tile in image.tile), default=0) < image.tag_v2[ExifTags.Base.ImageLength]:
            raise ValueError(CUT_SHORT)
        if image.tag_v2.get(ExifTags.Base.Orientation, 1) > 4 and "dpi" in image.info:
            image.info["dpi"] = image.info["dpi"][::-1]  # loading turns the picture, but not its resolution
        return image
    image.close()
    return _decode(path)


def _is_read_right(image: Any) -> bool:
    """Whether Pillow reads a TIFF as it is meant. tests/data/test_tiff.py compares the two over all layouts."""
    tag = ExifTags.Base
    tags = image.tag_v2
    bits = tags.get(tag.BitsPerSample, (1,))
    if set(tags.get(tag.SampleFormat, (UNSIGNED,))) != {UNSIGNED} or image.info.get("compression") == "webp":
        return False
    if tags.get(tag.PlanarConfiguration) == PLANES_APART:
        return set(bits) == {8} and image.mode in ("RGB", "RGBA", "CMYK")
    return max(bits) <= 8 or (set(bits) == {16} and tags.get(tag.PhotometricInterpretation) != WHITE_IS_ZERO)


def _decode(path: str | Path) -> Image.Image:
    import tifffile

    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        bits = page.bitspersample
        if page.sampleformat != UNSIGNED or not isinstance(bits, int) or bits > 16:
            kind = {UNSIGNED: f"of {bits} bits", 2: "signed", 3: "floating-point"}.get(page.sampleformat, "unusual")
            raise ValueError(f"its numbers are {kind} and have no known range; save it with 8 or 16 bits")
        mode = MODES.get(page.photometric)
        if mode is None or page.axes not in ("YX", "YXS", "SYX"):
            raise ValueError(f"TIFF of the layout {page.axes}, {page.photometric!r}; save it as RGB of 8 bits")
        if page.imagewidth * page.imagelength > 2 * (Image.MAX_IMAGE_PIXELS or np.inf):
            raise Image.DecompressionBombError
        if math.prod(page.chunked) > len(page.dataoffsets):  # tifffile would go through all that the header declares
            raise ValueError(CUT_SHORT)
        try:
            values = page.asarray(maxworkers=1)
        except ValueError as error:
            if "imagecodecs" in str(error):
                raise ValueError("its compression needs one more package; run: pip install imagecodecs") from error
            raise
        several = len(file.pages) > 1
        profile, turn = (page.tags.valueof(tag) for tag in (ICC_PROFILE, ExifTags.Base.Orientation))
        extra = page.extrasamples[0] if page.extrasamples and mode != "CMYK" else 0
    if page.axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    mode += {PREMULTIPLIED: "a", ALPHA: "A"}.get(extra, "")
    values = values.reshape(*values.shape[:2], -1)[..., : len(mode)]
    most = 2**bits - 1
    levels = ((np.arange(most + 1) * 255 + most // 2) // most).astype(np.uint8)
    if page.photometric == WHITE_IS_ZERO:
        levels = levels[::-1]
    stored = np.empty(values.shape, np.uint8)
    rows = max(1, STRIP // stored[0].size)
    for top in range(0, len(stored), rows):
        stored[top : top + rows] = levels[values[top : top + rows].astype(np.intp)]
    image: Any = Image.frombytes(mode, values.shape[1::-1], stored.tobytes())
    image.info["icc_profile"] = profile
    image.getexif()[ExifTags.Base.Orientation] = turn or 1
    image.is_animated = several
    return image
