"""What a photo's file says beside its pixels (EXIF, XMP, resolution), read so that it is true of the upright, restored photo."""

import re
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin

BASE = ExifTags.Base
# Of the first directory, what describes the photo; the rest describes how its file was laid out.
DESCRIPTIVE = (
    BASE.DocumentName, BASE.ImageDescription, BASE.Make, BASE.Model, BASE.PageName, BASE.Software, BASE.DateTime, BASE.Artist,
    BASE.HostComputer, BASE.Rating, BASE.RatingPercent, BASE.Copyright, BASE.XPTitle, BASE.XPComment, BASE.XPAuthor,
    BASE.XPKeywords, BASE.XPSubject,
)  # fmt: skip
# Of the photo's directory: the maker's note points at bytes of the old file and may hold its preview; the rest are places in
# the picture as it was stored.
LEFT_OUT = (BASE.MakerNote, BASE.ExifInteroperabilityOffset, BASE.SubjectLocation, 37396)  # the last: SubjectArea
LONGEST = 65_000  # bytes, a little less than a segment of a JPEG holds
XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:\s*=\s*[\"']|>)\s*)[2-8]")
XMP_THUMBNAILS = re.compile(rb"<xmp:Thumbnails\b.*?</xmp:Thumbnails>", re.DOTALL)
PNG_XMP = "XML:com.adobe.xmp"


@dataclass(frozen=True)
class Metadata:
    """What goes with a photo into its result.

    Attributes:
        exif: directories by their tag (the first one's is 0), each a mapping from tags to values; without orientation,
            previews, or what points at bytes of the file. xmp: an XMP packet whose orientation is upright, or None.
        dpi: pixels per inch, across and down the upright photo, or None.
    """

    exif: dict[int, dict[int, Any]]
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None

    def options(self, size: tuple[int, int], scale: int, png: bool) -> dict[str, Any]:
        """What Pillow's ``save`` takes, for a result of ``size`` (width, height), ``scale`` times the photo's."""
        options: dict[str, Any] = {}
        if self.exif:
            options["exif"] = _to_bytes(self.exif, size)
        if self.dpi is not None:  # a print stays as large as it was
            options["dpi"] = (self.dpi[0] * scale, self.dpi[1] * scale)
        if self.xmp and png:
            info = PngImagePlugin.PngInfo()
            info.add_itxt(PNG_XMP, self.xmp.decode("utf-8"))
            options["pnginfo"] = info
        elif self.xmp:
            options["xmp"] = self.xmp
        return options


def read_metadata(image: Image.Image, transposed: bool, remarks: list[str]) -> Metadata:
    """The metadata of an opened picture; what is damaged or too long is left out, with a remark.

    Args:
        transposed: whether the upright photo's rows are the stored columns. remarks: where phrases are added.
    """
    exif: dict[int, dict[int, Any]] = {}
    try:
        stored = image.getexif()
        photo = {tag: value for tag, value in stored.get_ifd(ExifTags.IFD.Exif).items() if tag not in LEFT_OUT}
        places = stored.get_ifd(ExifTags.IFD.GPSInfo)
        first = {int(tag): stored[tag] for tag in DESCRIPTIVE if tag in stored}
        found = {0: first, int(ExifTags.IFD.Exif): photo, int(ExifTags.IFD.GPSInfo): places}
        exif = {tag: dict(entries) for tag, entries in found.items() if entries}
        if exif and len(_to_bytes(exif, image.size)) > LONGEST:
            exif = {}
            remarks.append("its EXIF data is too long and was left out")
    except Exception:  # Pillow raises many kinds for values that are not what their type says
        exif = {}
        if not any("EXIF" in remark for remark in remarks):
            remarks.append("its EXIF data is damaged and was left out")
    return Metadata(exif, _xmp(image, remarks), _dpi(image, transposed))


def _to_bytes(exif: dict[int, dict[int, Any]], size: tuple[int, int]) -> bytes:
    written = Image.Exif()
    for directory, entries in exif.items():
        target: Any = written if directory == 0 else written.get_ifd(directory)
        target.update(entries)
    photo = written.get_ifd(ExifTags.IFD.Exif)
    for tag, pixels in ((BASE.ExifImageWidth, size[0]), (BASE.ExifImageHeight, size[1])):
        if tag in photo:
            photo[tag] = pixels
    return written.tobytes()


def _xmp(image: Image.Image, remarks: list[str]) -> bytes | None:
    packet = image.info.get("xmp") or image.info.get(PNG_XMP)
    if not packet:
        return None
    packet = packet.encode() if isinstance(packet, str) else bytes(packet)
    packet = XMP_THUMBNAILS.sub(b"", XMP_ORIENTATION.sub(rb"\g<1>1", packet.rstrip(b"\0")))
    try:
        packet.decode("utf-8")
    except UnicodeDecodeError:
        remarks.append("its XMP data is damaged and was left out")
        return None
    if len(packet) > LONGEST:
        remarks.append("its XMP data is too long and was left out")
        return None
    return packet


def _dpi(image: Image.Image, transposed: bool) -> tuple[float, float] | None:
    try:
        across, down = (float(value) for value in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    if not (1 <= across <= 100_000 and 1 <= down <= 100_000):  # 0 and infinity are what some scanners write
        return None
    return (down, across) if transposed else (across, down)
