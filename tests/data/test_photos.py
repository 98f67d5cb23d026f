"""Reading and writing photos: every kind of file comes back upright, 8-bit and in the right colours."""

import io
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from oracles.colour_profiles import cmyk_profile, grey_profile
from oracles.tiff import write_tiff
from sgpn_data.photos import (
    READ_SUFFIXES,
    ImageError,
    Photo,
    deepened,
    photo_bytes,
    read_photo,
    srgb_profile,
    take_large_photos,
    to_8_bits,
    write_photo,
)


@pytest.fixture
def rgb():
    y, x = np.mgrid[:20, :30]
    return np.stack([x * 8, y * 12, 255 - x * 4], axis=-1).astype(np.uint8)


def test_bgr_order(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    assert np.array_equal(photo.bgr, rgb[..., ::-1])
    assert photo.alpha is None


# What each EXIF orientation asks a viewer to do with the stored rows and columns.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", sorted(UPRIGHT))
def test_exif_orientation(tmp_path, rgb, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif)
    photo = read_photo(tmp_path / "a.png")
    assert np.array_equal(photo.bgr, UPRIGHT[orientation](rgb)[..., ::-1])
    write_photo(tmp_path / "b.png", photo)
    assert Image.open(tmp_path / "b.png").getexif().get(274) is None


@pytest.mark.parametrize("orientation", sorted(UPRIGHT))
@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_orientation_that_the_format_has_besides_exif_is_done_once(tmp_path, orientation, kind):
    """These files say how to turn them twice, in EXIF and in boxes of their own."""
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    else:
        pytest.importorskip("PIL.AvifImagePlugin")
    y, x = np.mgrid[:64, :128]
    smooth = np.stack([x * 2, y * 4, 0 * x], axis=-1).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(smooth).save(tmp_path / "a", kind, exif=exif.tobytes(), quality=95)
    expected = UPRIGHT[orientation](smooth).astype(int)
    assert np.abs(read_photo(tmp_path / "a").bgr[..., ::-1] - expected).mean() < 3


@pytest.mark.parametrize("height", [255, 256, 515])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "CMYK"])
def test_strips_are_the_whole_picture(tmp_path, monkeypatch, height, mode):
    """Photos are converted strip by strip; Pillow's conversion of the whole is the definition."""
    monkeypatch.setattr("sgpn_data.photos.STRIP", 256 * 7)
    noise = np.random.default_rng(0).integers(0, 256, (height, 7, 4), dtype=np.uint8)
    picture = Image.fromarray(noise)
    picture = picture if mode == "RGBA" else picture.convert("RGB").convert(mode)
    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture.save(path, exif=exif)
    photo = read_photo(path)
    turned = picture.transpose(Image.Transpose.ROTATE_270)
    expected = np.asarray(turned.convert("RGBA" if mode == "RGBA" else "RGB"))
    assert np.array_equal(photo.bgr, expected[..., 2::-1])
    assert mode != "RGBA" or np.array_equal(photo.alpha, expected[..., 3])
    write_photo(tmp_path / "b.png", photo)
    assert np.array_equal(read_photo(tmp_path / "b.png").bgr, photo.bgr)


def test_photo_bytes(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_text("not a picture")
    assert photo_bytes(tmp_path / "a.png") == rgb.nbytes
    os.mkfifo(tmp_path / "pipe.png")
    assert all(photo_bytes(tmp_path / name) == 0 for name in ("b.jpg", "missing.png", "pipe.png"))


def test_grey_16_bit(tmp_path):
    levels = np.array([[0, 128 * 257, 65535, 300]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    assert read_photo(tmp_path / "a.png").bgr[0].tolist() == [[v] * 3 for v in (0, 128, 255, 1)]


def test_other_modes(tmp_path, rgb):
    picture = Image.fromarray(rgb)
    picture.convert("L").save(tmp_path / "grey.png")
    picture.convert("CMYK").save(tmp_path / "cmyk.tif")
    picture.quantize(256).save(tmp_path / "palette.png")
    picture.convert("1").save(tmp_path / "bits.png")
    assert np.ptp(read_photo(tmp_path / "grey.png").bgr, axis=2).max() == 0
    assert np.abs(read_photo(tmp_path / "cmyk.tif").bgr.astype(int) - rgb[..., ::-1]).max() <= 2
    assert np.abs(read_photo(tmp_path / "palette.png").bgr.astype(int) - rgb[..., ::-1]).max() <= 24
    assert set(np.unique(read_photo(tmp_path / "bits.png").bgr)) <= {0, 255}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_survives(tmp_path, rgb, mode):
    alpha = np.where(np.arange(30) < 15, 255, 0).astype(np.uint8) * np.ones((20, 1), np.uint8)
    picture = Image.fromarray(rgb)
    picture.putalpha(Image.fromarray(alpha))
    picture.convert(mode).save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    assert np.array_equal(photo.alpha, alpha)
    write_photo(tmp_path / "b.png", photo)
    again = read_photo(tmp_path / "b.png")
    assert np.array_equal(again.alpha, alpha) and np.array_equal(again.bgr, photo.bgr)


def test_jpeg_lays_alpha_over_white(tmp_path):
    write_photo(tmp_path / "a.jpg", Photo(np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)))
    assert read_photo(tmp_path / "a.jpg").bgr.min() > 250


def as_a_viewer_shows_it(image):
    """An image, through its own profile, on a screen of sRGB: littleCMS over the whole picture."""
    own, screen = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"])), ImageCms.createProfile("sRGB")
    return np.asarray(ImageCms.profileToProfile(image, own, screen, outputMode="RGB")).astype(int)


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.jpg", "cmyk.jpg", "cmyk.tif"])
def test_a_photo_in_grey_or_cmyk_looks_the_same_afterwards(tmp_path, rgb, name):
    grey = name.startswith("grey")
    profile = grey_profile(1.0) if grey else cmyk_profile()
    picture = Image.fromarray(rgb).convert("L" if grey else "CMYK")
    picture.save(tmp_path / name, icc_profile=profile)
    photo = read_photo(tmp_path / name)
    write_photo(tmp_path / "after.png", photo)
    before = as_a_viewer_shows_it(Image.open(tmp_path / name))
    assert np.abs(as_a_viewer_shows_it(Image.open(tmp_path / "after.png")) - before).max() <= 1
    assert np.abs(np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int) - before).mean() > 10
    assert photo.remarks == []


def test_alpha_beside_grey_with_a_profile(tmp_path, rgb):
    picture = Image.fromarray(rgb).convert("LA")
    picture.putalpha(Image.fromarray(rgb[..., 1]))
    picture.save(tmp_path / "a.png", icc_profile=grey_profile(1.0))
    picture.convert("L").save(tmp_path / "b.png", icc_profile=grey_profile(1.0))
    photo = read_photo(tmp_path / "a.png")
    assert np.array_equal(photo.alpha, rgb[..., 1]) and np.array_equal(photo.bgr, read_photo(tmp_path / "b.png").bgr)


def test_a_profile_of_rgb_is_kept_and_one_that_does_not_fit_is_left_out(tmp_path, rgb):
    profile = srgb_profile()
    Image.fromarray(rgb).save(tmp_path / "a.png", icc_profile=profile)
    write_photo(tmp_path / "b.jpg", read_photo(tmp_path / "a.png"))
    assert Image.open(tmp_path / "b.jpg").info["icc_profile"] == profile
    Image.fromarray(rgb).convert("L").save(tmp_path / "grey.png", icc_profile=profile)
    Image.fromarray(rgb).save(tmp_path / "a.jpg", icc_profile=cmyk_profile())
    for name in ("grey.png", "a.jpg"):
        assert read_photo(tmp_path / name).icc_profile is None and read_photo(tmp_path / name).remarks == []
    damaged = cmyk_profile()[:200]
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "cmyk.tif", icc_profile=damaged)
    photo = read_photo(tmp_path / "cmyk.tif")
    assert photo.icc_profile is None and photo.remarks == ["its colour profile is damaged and was left out"]
    assert np.abs(photo.bgr[..., ::-1].astype(int) - rgb).max() <= 2


DAMAGED_EXIF = {
    "no TIFF": b"Exif\0\0XX*\0\x08\0\0\0",
    "cut in its header": b"Exif\0\0II*\0",
    "cut in its directory": b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0",
    "points nowhere": b"Exif\0\0II*\0\xff\xff\0\0",
}


@pytest.mark.parametrize("damage", DAMAGED_EXIF)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_costs_no_photo(tmp_path, rgb, damage, kind):
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    Image.fromarray(rgb).save(tmp_path / "a", kind, exif=DAMAGED_EXIF[damage], **options)
    photo = read_photo(tmp_path / "a")
    assert photo.remarks == ["its EXIF data is damaged, so it may not be upright"]
    turned = np.rot90(photo.bgr) if damage == "cut in its directory" else photo.bgr  # the entry that is whole is used
    assert np.abs(turned.astype(int) - rgb[..., ::-1]).mean() < 3


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
def test_of_several_pictures_the_first_is_read_and_the_others_are_remarked(tmp_path, rgb, kind):
    if kind == "AVIF":
        pytest.importorskip("PIL.AvifImagePlugin")
    first, second = Image.fromarray(rgb), Image.fromarray(255 - rgb)
    options = {"lossless": True} if kind == "WEBP" else {}
    first.save(tmp_path / "several", kind, save_all=True, append_images=[second], **options)
    first.save(tmp_path / "one", kind, **options)
    photo = read_photo(tmp_path / "several")
    assert photo.remarks == ["holds several pictures; only the first was read"]
    assert read_photo(tmp_path / "one").remarks == []
    assert np.abs(photo.bgr.astype(int) - rgb[..., ::-1]).mean() < 12


def test_the_preview_beside_a_jpeg_is_not_another_picture(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.fromarray(rgb[::2, ::2])])
    assert Image.open(tmp_path / "a.jpg").n_frames == 2 and read_photo(tmp_path / "a.jpg").remarks == []


def png(width, height, bits, colour, transparent=b"", rows=b""):
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    written = (
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks if d or k != b"tRNS"
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


@pytest.mark.parametrize(("bits", "colours"), [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (8, 3), (16, 3)])
def test_the_colour_that_a_png_says_is_transparent(tmp_path, bits, colours):
    """Pillow compares it with pixels of another number of bits."""
    most = 2**bits - 1
    hidden = 2 ** (bits - 1)
    pixels = np.array([0, hidden, most, hidden], np.uint16)
    if bits < 8:
        row = np.packbits(((pixels[:, None] >> np.arange(bits - 1, -1, -1)) & 1).astype(np.uint8)).tobytes()
    else:
        row = pixels.repeat(colours).astype(f">u{bits // 8}").tobytes()
    transparent = struct.pack(f">{colours}H", *[hidden] * colours)
    (tmp_path / "a.png").write_bytes(png(4, 1, bits, 2 if colours == 3 else 0, transparent, b"\0" + row))
    photo = read_photo(tmp_path / "a.png")
    assert np.array_equal(photo.alpha[0], np.where(pixels == hidden, 0, 255))
    assert np.abs(photo.bgr[0, :, 0] - pixels / most * 255).max() < 1


def test_16_bit_grey_keeps_what_is_transparent(tmp_path):
    levels = np.array([[0, 300, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png", transparency=300)
    photo = read_photo(tmp_path / "a.png")
    assert photo.alpha.tolist() == [[255, 0, 255]] and photo.bgr[0, :, 0].tolist() == [0, 1, 255]


@pytest.mark.parametrize("suffix", [".jpe", ".jfif", ".apng", ".avif", ".jp2", ".tga", ".heic", ".pcx", ".qoi", ".pbm"])
def test_kinds_that_folders_hold(tmp_path, suffix):
    """By name and, for HEIC as phones rename it, by content; the error without pillow-heif says what to install."""
    assert suffix in READ_SUFFIXES
    y, x = np.mgrid[:64, :80]
    smooth = np.stack([x * 3, y * 3, 255 - x * 2], axis=-1).astype(np.uint8)
    if suffix == ".heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    if suffix == ".avif":
        pytest.importorskip("PIL.AvifImagePlugin")
    if suffix == ".pbm":
        smooth = np.where(smooth[..., :1] > 100, 255, 0).astype(np.uint8).repeat(3, axis=2)
    kinds = {".jpe": "JPEG", ".jfif": "JPEG", ".apng": "PNG", ".heic": "HEIF", ".jp2": "JPEG2000", ".pbm": "PPM"}
    picture = Image.fromarray(smooth)
    (picture.convert("1") if suffix == ".pbm" else picture).save(
        tmp_path / f"a{suffix}", kinds.get(suffix, suffix[1:].upper())
    )
    os.replace(tmp_path / f"a{suffix}", tmp_path / "renamed.jpg")
    photo = read_photo(tmp_path / "renamed.jpg")
    assert np.abs(photo.bgr[..., ::-1].astype(int) - smooth).mean() < 3
    assert not [remark for remark in photo.remarks if "EXIF" in remark]  # there is none, so it cannot be damaged


def test_heic_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"a\.jpg: .*pip install pillow-heif"):
        read_photo(tmp_path / "a.jpg")


def test_sizes_that_no_photo_has_are_refused_at_once(tmp_path, monkeypatch):
    """A file of 69 bytes cost half a minute and gigabytes."""
    (tmp_path / "line.png").write_bytes(png(1, 178_956_970, 8, 2))
    (tmp_path / "large.png").write_bytes(png(20_000, 20_000, 8, 2))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_478_485)  # Pillow's own
    start = time.perf_counter()
    with pytest.raises(ImageError, match=r"line\.png: is 1x178956970 pixels"):
        read_photo(tmp_path / "line.png")
    with pytest.raises(ImageError, match=r"large\.png: has more than 178 megapixels"):
        read_photo(tmp_path / "large.png")
    assert time.perf_counter() - start < 1
    monkeypatch.setattr(os, "sysconf", lambda _: 200_000)  # 40 GB of memory
    take_large_photos()
    assert photo_bytes(tmp_path / "large.png") == 3 * 20_000**2
    with pytest.raises(
        ImageError, match=r"large\.png: its header says 20000x20000 pixels, far too many for a file of \d+ b"
    ):
        read_photo(tmp_path / "large.png")
    assert time.perf_counter() - start < 1


def test_nothing_but_remarks_is_said(tmp_path, rgb):
    """Neither Pillow's warnings nor what tifffile logs reaches the user. (What libtiff itself prints of cut files does.)"""
    Image.fromarray(rgb).save(tmp_path / "a.jpg", exif=DAMAGED_EXIF["cut in its directory"])
    palette = Image.fromarray(rgb).quantize(8)
    palette.save(tmp_path / "palette.png", transparency=bytes(range(8)))
    tags = [(65000, 7, 40, bytes(40), True), (282, 5, 2, (1, 1, 2, 1), True)]
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb", compression="deflate", extratags=tags, metadata=None)
    write_tiff(tmp_path / "apart.tif", np.zeros((9, 9, 3), int), 16, "RGB", apart=True)
    write_tiff(tmp_path / "many.tif", np.zeros((9, 9, 9), int), 8, "RGB", extra=0)
    (tmp_path / "apart_cut.tif").write_bytes((tmp_path / "apart.tif").read_bytes()[:-90])
    code = (
        "import sys\nfrom sgpn_data.photos import read_photo\nfor path in sys.argv[1:]:\n"
        "    try:\n        read_photo(path)\n    except ValueError:\n        pass"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *map(str, tmp_path.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_errors_name_the_file(tmp_path, rgb):
    (tmp_path / "text.jpg").write_text("not a picture")
    Image.fromarray(np.tile(rgb, (9, 9, 1))).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "empty.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("text.jpg", "half.jpg", "float.tif", "missing.png", "empty.png", "pipe.png", "folder.png"):
        with pytest.raises(ImageError, match=name):
            read_photo(tmp_path / name)
    with pytest.raises(ImageError, match=r"long\.jpg: a JPEG has sides of 65500 pixels at most"):
        write_photo(tmp_path / "long.jpg", Photo(np.zeros((65501, 1, 3), np.uint8)))
    with pytest.raises(ImageError, match=r"a\.gif: can write \.jpg"):
        write_photo(tmp_path / "a.gif", Photo(rgb))


def test_a_failed_write_leaves_nothing(tmp_path, rgb, monkeypatch):
    def fail(self, file, *args, **kwargs):
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    (tmp_path / "a.png").write_bytes(b"old")
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(ImageError, match=r"a\.png: cannot be written: disk full"):
        write_photo(tmp_path / "a.png", Photo(rgb))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"old"


# ---------------------------------------------------------------------------------------------------------------------
# 16 bits


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_kept_where_that_is_asked_for(tmp_path, suffix, channels):
    levels = np.random.default_rng(1).integers(0, 65536, (20, 30, channels), np.uint16)
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), levels)
    photo = read_photo(tmp_path / f"a.{suffix}", deep=True)
    assert np.array_equal(photo.deep, np.broadcast_to(levels, (20, 30, 3)))
    assert (
        np.array_equal(to_8_bits(photo.deep), photo.bgr)
        or np.abs(to_8_bits(photo.deep) - photo.bgr.astype(int)).max() == 1
    )
    photo.icc_profile, photo.alpha = srgb_profile(), np.full((20, 30), 9, np.uint8)
    write_photo(tmp_path / "b.png", photo)
    again = cv2.imread(str(tmp_path / "b.png"), cv2.IMREAD_UNCHANGED)
    assert again.dtype == np.uint16 and np.array_equal(again[..., :3], photo.deep) and (again[..., 3] == 9 * 257).all()
    assert read_photo(tmp_path / "b.png").icc_profile == srgb_profile()
    assert read_photo(tmp_path / f"a.{suffix}").deep is None


def test_what_did_not_change_keeps_its_16_bits():
    deep = np.random.default_rng(1).integers(0, 65536, (20, 30, 3), np.uint16)
    before = to_8_bits(deep)
    after = before.copy()
    after[5:9] = 200
    changed = deepened(deep, before, after)
    assert np.array_equal(np.delete(changed, slice(5, 9), 0), np.delete(deep, slice(5, 9), 0))
    assert np.abs(changed[5:9] - 200 * 257.0).max() <= 129  # half a grey level, which is 257 of 65535


def test_8_bits_have_no_16(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png", deep=True)
    assert photo.deep is None and photo.remarks == []
