"""TIFF: every layout is read as the specification has it, or refused in words; never scrambled."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from oracles.tiff import write_tiff
from sgpn_data.photos import ImageError, read_photo

# What a file is -> its channels, its photometric interpretation, and what the channel beyond the colours is.
KINDS = {
    "white is zero": (1, "white is zero", None),
    "black is zero": (1, "black is zero", None),
    "grey and alpha": (2, "black is zero", 2),
    "grey, premultiplied": (2, "black is zero", 1),
    "grey and something": (2, "black is zero", 0),
    "palette": (1, "palette", None),
    "RGB": (3, "RGB", None),
    "RGB and alpha": (4, "RGB", 2),
    "RGB, premultiplied": (4, "RGB", 1),
    "RGB and something": (4, "RGB", 0),
    "CMYK": (4, "CMYK", None),
    "YCbCr": (3, "YCbCr", None),
    "LAB": (3, "LAB", None),
}
COLOURS = {"white is zero": 1, "black is zero": 1, "RGB": 3, "CMYK": 4}
MUST_BE_READ = {"white is zero", "black is zero", "grey and alpha", "RGB", "RGB and alpha", "RGB and something", "CMYK"}
SHAPE = 9, 7


def meaning(values, bits, kind, palette=None):
    """uint8 values as the specification has them: RGB (H, W, 3) and alpha (H, W) or None, as numbers in 0..255."""
    _, photometric, extra = KINDS[kind]
    if photometric == "palette":
        return palette[values[..., 0]].astype(float), None
    levels = values / (2.0**bits - 1) * 255
    colours = levels[..., : COLOURS[photometric]]
    alpha = levels[..., -1] if extra else None
    if extra == 1:
        colours = np.divide(colours * 255, alpha[..., None], out=np.zeros_like(colours), where=alpha[..., None] > 0)
    if photometric == "CMYK":
        colours = 255 - np.minimum(255, colours[..., :3] + colours[..., 3:])
        # Pillow multiplies instead; both are without a profile, so only what both agree on is compared.
    if photometric == "white is zero":
        colours = 255 - colours
    return np.broadcast_to(colours, (*values.shape[:2], 3)), alpha


def some_values(bits, kind):
    rng = np.random.default_rng(bits)
    values = rng.integers(0, 2**bits, (*SHAPE, KINDS[kind][0]))
    if kind == "CMYK":
        values[..., 3] = 0
    if KINDS[kind][2] == 1:  # colours that were multiplied by an alpha that is not small
        values[..., -1] = values[..., -1] // 2 + 2 ** (bits - 1)
        values[..., :-1] = values[..., :-1] * values[..., -1:] // (2**bits - 1)
    return values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
def test_every_layout_is_right_or_refused(tmp_path, kind, apart):
    read = set()
    for order, bits in itertools.product("<>", (1, 2, 4, 6, 8, 10, 12, 14, 16, 32)):
        values = some_values(bits, kind)
        palette = np.random.default_rng(0).integers(0, 256, (2**bits, 3)) if kind == "palette" and bits <= 16 else None
        path = tmp_path / f"{order == '<'}_{bits}.tif"
        write_tiff(path, values, bits, KINDS[kind][1], order, apart, KINDS[kind][2], palette=palette)
        try:
            photo = read_photo(path)
        except ImageError as error:
            assert path.name in str(error)
            continue
        rgb, alpha = meaning(values, bits, kind, palette) if kind not in ("YCbCr", "LAB") else (None, None)
        tolerance = 3 if KINDS[kind][2] == 1 else 2  # Pillow divides by the alpha of 8 bits
        assert rgb is None or np.abs(photo.bgr[..., ::-1] - rgb).max() <= tolerance, (order, bits)
        assert (photo.alpha is None) == (alpha is None), (order, bits)
        assert alpha is None or np.abs(photo.alpha - alpha).max() <= 1, (order, bits)
        read.add(bits)
    assert read >= ({8, 16} if kind in MUST_BE_READ else set())
    assert 32 not in read


@pytest.mark.parametrize(("numbers", "dtype"), [("signed", "i1"), ("signed", "i2"), ("float", "f2"), ("float", "f4")])
@pytest.mark.parametrize(("kind", "apart"), [("black is zero", False), ("RGB", False), ("RGB", True)])
def test_numbers_without_a_known_range_are_refused(tmp_path, numbers, dtype, kind, apart):
    values = np.full((*SHAPE, KINDS[kind][0]), 1, dtype)
    write_tiff(tmp_path / "a.tif", values, 8 * values.dtype.itemsize, KINDS[kind][1], apart=apart, numbers=numbers)
    with pytest.raises(ImageError, match=r"a\.tif: .*(no known range|floating-point); save it"):
        read_photo(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "compression", ["none", "deflate", "lzw", "zstd", "packbits", "lzma", "webp", "jpeg", "jpeg2000"]
)
def test_every_compression_is_right_or_refused(tmp_path, compression):
    """In strips and tiles, with and without a predictor, little and big endian; tifffile's numbers are the definition."""
    pytest.importorskip("imagecodecs")
    y, x = np.mgrid[:40, :56]
    smooth = np.stack([x * 4, y * 6, 255 - 2 * (x + y), x + y], axis=-1)
    read = 0
    for order, dtype, apart, tile, predictor, channels in itertools.product(
        "<>", ("u1", "u2"), (False, True), (None, (16, 16)), (None, True), (1, 3, 4)
    ):
        values = (smooth[..., :channels] * (257 if dtype == "u2" else 1)).astype(dtype)
        values = values[..., 0] if channels == 1 else np.moveaxis(values, -1, 0) if apart else values
        options = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
        options.update({"planarconfig": "separate" if apart else "contig"} if channels > 1 else {})
        try:
            tifffile.imwrite(
                tmp_path / "a.tif",
                values,
                byteorder=order,
                photometric="rgb" if channels > 1 else "minisblack",
                compression=None if compression == "none" else compression,
                tile=tile,
                predictor=predictor if compression in ("deflate", "lzw", "zstd") else None,
                metadata=None,
                **options,
            )
        except (ValueError, RuntimeError, NotImplementedError):
            continue  # there is no such file
        stored = tifffile.imread(tmp_path / "a.tif")
        expected = (np.moveaxis(stored, 0, -1) if apart and channels > 1 else stored.reshape(40, 56, -1)) / (
            257 if dtype == "u2" else 1
        )
        try:
            photo = read_photo(tmp_path / "a.tif")
        except ImageError as error:
            assert "save it as RGB of 8 bits" in str(error)
            continue
        assert np.abs(photo.bgr[..., ::-1] - expected[..., :3]).max() <= 2, (
            order,
            dtype,
            apart,
            tile,
            predictor,
            channels,
        )
        assert channels < 4 or np.abs(photo.alpha - expected[..., 3]).max() <= 1
        read += 1
    assert read >= 12


def test_a_missing_codec_is_named(tmp_path):
    pytest.importorskip("imagecodecs")
    values = np.zeros((3, 8, 8), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", planarconfig="separate", compression="lzw")
    code = (
        "import sys\nsys.modules['imagecodecs'] = None\nfrom sgpn_data.photos import read_photo\n"
        "try:\n    read_photo(sys.argv[1])\nexcept ValueError as error:\n    print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path / "a.tif")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "a.tif" in done.stdout and "pip install imagecodecs" in done.stdout and not done.stderr


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("photometric", "dtype", "apart"),
    [("rgb", "u2", False), ("rgb", "u2", True), ("rgb", "u1", False), ("minisblack", "u1", False),
     ("minisblack", "u2", False), ("miniswhite", "u2", False), ("rgba", "u1", False), ("separated", "u1", False)],
)  # fmt: skip
def test_orientation_is_done_once(tmp_path, orientation, photometric, dtype, apart):
    """Also where Pillow maps the file into memory: findings/pillow_tiff_orientation.sh."""
    channels = {"rgb": 3, "rgba": 4, "separated": 4}.get(photometric, 1)
    values = np.random.default_rng(0).integers(0, 256, (6, 5, channels), dtype=np.uint8)
    values[..., 3:] = 0 if photometric == "separated" else 255
    stored = values.astype(dtype) * (257 if dtype == "u2" else 1)
    stored = stored[..., 0] if channels == 1 else np.moveaxis(stored, -1, 0) if apart else stored
    options = {"planarconfig": "separate" if apart else "contig"} if channels > 1 else {}
    options |= {"extrasamples": ["unassalpha"]} if photometric == "rgba" else {}
    tags = [(274, 3, 1, orientation, True)]
    kind = photometric.removesuffix("a")
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric=kind, extratags=tags, metadata=None, **options)
    turned = np.rot90(values, {3: 2, 4: 2, 5: 3, 6: 3, 7: 1, 8: 1}.get(orientation, 0))
    upright = (turned[:, ::-1] if orientation in (2, 4, 5, 7) else turned)[..., :3]
    upright = 255 - upright if photometric in ("miniswhite", "separated") else upright
    assert np.array_equal(
        read_photo(tmp_path / "a.tif").bgr[..., ::-1], np.broadcast_to(upright, (*upright.shape[:2], 3))
    )


@pytest.mark.parametrize(("dtype", "rows"), [("u1", 2), ("u2", 2), ("u1", 20), ("u2", 20)])
def test_strips_that_do_not_make_up_the_picture_are_refused(tmp_path, dtype, rows):
    """A header that says that a strip has fewer rows than it has: Pillow leaves the rest black, tifffile counts to millions."""
    values = np.full((40, 30), 200, dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite", rowsperstrip=rows, metadata=None)
    assert read_photo(tmp_path / "a.tif").bgr.shape == (40, 30, 3)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        file.pages[0].tags["RowsPerStrip"].overwrite(1)
    with pytest.raises(ImageError, match="do not make up the whole picture"):
        read_photo(tmp_path / "a.tif")


@pytest.mark.parametrize("apart", [False, True])
def test_a_file_cut_short_is_refused_and_several_pages_are_remarked(tmp_path, apart):
    values = np.random.default_rng(0).integers(0, 65536, (2, 3, 40, 30), dtype=np.uint16)
    values = values if apart else np.moveaxis(values, 1, -1)
    options = {"photometric": "rgb", "planarconfig": "separate" if apart else "contig", "metadata": None}
    tifffile.imwrite(tmp_path / "two.tif", values, **options)
    assert read_photo(tmp_path / "two.tif").remarks == ["holds several pictures; only the first was read"]
    tifffile.imwrite(tmp_path / "one.tif", values[0], **options)
    assert read_photo(tmp_path / "one.tif").remarks == []
    whole = (tmp_path / "one.tif").read_bytes()
    for part in (0.3, 0.9, 0.99):
        (tmp_path / "cut.tif").write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(ImageError, match=r"cut\.tif"):
            read_photo(tmp_path / "cut.tif")


def test_a_declared_size_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    write_tiff(tmp_path / "a.tif", np.zeros((50, 50, 3), int), 16, "RGB", apart=True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"a\.tif: has more than"):
        read_photo(tmp_path / "a.tif")
