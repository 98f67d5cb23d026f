"""Reading and writing photos: every kind of file comes back upright, 8-bit and in the right colours."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from sgpn_data.photos import ImageError, Photo, photo_bytes, read_photo, write_photo


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
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGBA" if mode == "RGBA" else "RGB"))
    assert np.array_equal(photo.bgr, expected[..., 2::-1])
    assert mode != "RGBA" or np.array_equal(photo.alpha, expected[..., 3])
    write_photo(tmp_path / "b.png", photo)
    assert np.array_equal(read_photo(tmp_path / "b.png").bgr, photo.bgr)


def test_photo_bytes(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_text("not a picture")
    assert photo_bytes(tmp_path / "a.png") == rgb.nbytes
    assert photo_bytes(tmp_path / "b.jpg") == photo_bytes(tmp_path / "missing.png") == 0


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


def test_profile_is_kept_for_rgb_only(tmp_path, rgb):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(rgb).save(tmp_path / "a.png", icc_profile=profile)
    Image.fromarray(rgb).convert("L").save(tmp_path / "grey.png", icc_profile=profile)
    write_photo(tmp_path / "b.jpg", read_photo(tmp_path / "a.png"))
    assert Image.open(tmp_path / "b.jpg").info["icc_profile"] == profile
    assert read_photo(tmp_path / "grey.png").icc_profile is None


def test_errors_name_the_file(tmp_path, rgb):
    (tmp_path / "text.jpg").write_text("not a picture")
    Image.fromarray(np.tile(rgb, (9, 9, 1))).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    for name in ("text.jpg", "half.jpg", "float.tif", "missing.png"):
        with pytest.raises(ImageError, match=name):
            read_photo(tmp_path / name)
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
