"""What a photo's file says beside its pixels goes into its result, and is true of it."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from sgpn_data.photos import Photo, read_photo, write_photo

BASE, IFD = ExifTags.Base, ExifTags.IFD
XMP = (
    b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description tiff:Orientation="6" '
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="5">'
    b"<xmp:Thumbnails><rdf:Alt>old</rdf:Alt></xmp:Thumbnails></rdf:Description></rdf:RDF></x:xmpmeta>"
)


def exif_of_a_phone(orientation: int = 6) -> Image.Exif:
    """EXIF data as a phone writes them, with a maker's note; a preview is added by :func:`with_preview`."""
    exif = Image.Exif()
    exif[BASE.Orientation], exif[BASE.Make], exif[BASE.Copyright] = orientation, "Maker", "© A. Person"
    exif.get_ifd(IFD.Exif).update(
        {
            BASE.DateTimeOriginal: "1999:12:31 23:59:59",
            BASE.ExposureTime: IFDRational(1, 125),
            BASE.ExifImageWidth: 30,
            BASE.ExifImageHeight: 20,
            BASE.MakerNote: b"note" * 10,
        }
    )
    exif.get_ifd(IFD.GPSInfo).update({1: "N", 2: (52.0, 30.0, 15.0), 3: "E", 4: (13.0, 24.0, 0.0)})
    return exif


def write_original(path, kind: str, exif=None) -> None:
    picture = Image.fromarray(np.arange(1800, dtype=np.uint8).reshape(20, 30, 3))
    exif = exif_of_a_phone() if exif is None else exif
    options = {"xmp": XMP} if kind in ("JPEG", "WEBP") else {}
    if kind == "TIFF":
        exif[BASE.XMLPacket] = XMP
        for directory in (IFD.Exif, IFD.GPSInfo):  # else Pillow writes none of them into a TIFF
            exif[directory] = dict(exif.get_ifd(directory))
    picture.save(path, kind, exif=exif, dpi=(300, 150), **options)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_metadata_goes_with_the_photo_and_it_is_upright_there(tmp_path, kind, suffix):
    write_original(tmp_path / "a", kind)
    photo = read_photo(tmp_path / "a")
    assert photo.remarks == [] and photo.bgr.shape == (30, 20, 3)
    write_photo(tmp_path / f"b.{suffix}", photo)
    with Image.open(tmp_path / f"b.{suffix}") as written:
        written.load()
        exif = written.getexif()
        assert exif.get(BASE.Orientation, 1) == 1
        assert exif[BASE.Make] == "Maker" and "A. Person" in exif[BASE.Copyright]
        details = exif.get_ifd(IFD.Exif)
        assert details[BASE.DateTimeOriginal] == "1999:12:31 23:59:59" and float(details[BASE.ExposureTime]) == 1 / 125
        assert (details[BASE.ExifImageWidth], details[BASE.ExifImageHeight]) == (20, 30)
        assert BASE.MakerNote not in details
        assert exif.get_ifd(IFD.GPSInfo)[2] == (52.0, 30.0, 15.0)
        if kind != "WEBP":  # which has no resolution
            assert written.info["dpi"] == pytest.approx((150, 300), abs=0.1)
        if kind in ("JPEG", "WEBP", "TIFF"):
            xmp = written.info["xmp"]
            xmp = xmp if isinstance(xmp, bytes) else xmp.encode()
            assert b'Orientation="6"' not in xmp and b'xmp:Rating="5"' in xmp and b"Thumbnails" not in xmp
    assert read_photo(tmp_path / f"b.{suffix}").bgr.shape == (30, 20, 3)  # no viewer turns it again


def test_a_result_that_is_larger_prints_at_the_same_size(tmp_path):
    write_original(tmp_path / "a", "JPEG", exif_of_a_phone(1))
    photo = read_photo(tmp_path / "a")
    larger = Photo(np.repeat(np.repeat(photo.bgr, 2, 0), 2, 1), metadata=photo.metadata, scale=2)
    write_photo(tmp_path / "b.jpg", larger)
    with Image.open(tmp_path / "b.jpg") as written:
        assert written.info["dpi"] == (600, 300)
        assert written.getexif().get_ifd(IFD.Exif)[BASE.ExifImageWidth] == 60


def test_the_preview_of_the_old_photo_is_left_out(tmp_path):
    # A preview is a JPEG in EXIF's second directory: here one made by hand, as no writer of these makes it.
    preview = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(preview, "JPEG")
    exif = exif_of_a_phone()
    exif.get_ifd(IFD.IFD1).update({BASE.Compression: 6, BASE.JpegIFOffset: 0, BASE.JpegIFByteCount: 10})
    write_original(tmp_path / "a", "JPEG", exif)
    write_photo(tmp_path / "b.jpg", read_photo(tmp_path / "a"))
    with Image.open(tmp_path / "b.jpg") as written:
        assert not written.getexif().get_ifd(IFD.IFD1)


def test_metadata_too_long_for_a_jpeg_costs_no_photo(tmp_path):
    exif = Image.Exif()
    exif[BASE.ImageDescription] = "x" * 70_000
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", exif=exif)
    photo = read_photo(tmp_path / "a.png")
    assert photo.remarks == ["its EXIF data is too long and was left out"]
    write_photo(tmp_path / "b.jpg", photo)
    assert not read_photo(tmp_path / "b.jpg").metadata.exif


def test_a_resolution_that_means_nothing_is_left_out(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.tif", dpi=(0, 0))
    photo = read_photo(tmp_path / "a.tif")
    assert photo.metadata.dpi is None and photo.remarks == []
    write_photo(tmp_path / "b.png", photo)
