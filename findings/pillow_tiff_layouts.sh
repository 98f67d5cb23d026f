#!/usr/bin/env bash
# Pillow 13.0.0 reads valid TIFF files of some layouts wrong, and raises nothing.
#
# Seen:     RGB of 16 bits with its planes apart (PlanarConfiguration 2): the bytes of each plane are taken for pixels of 8 bits, so
#           the picture is scrambled. Grey of 16 bits where zero is white: comes out inverted. Grey of 12 bits: the numbers are not
#           brought to the 16 bits of the mode "I;16", so the picture is 16 times too dark. (RGB of 16 bits with its planes
#           together, and grey of 16 bits where zero is black, are right.)
# Expected: the picture, or an error.
# Ours:     data/tiff.py, which reads these with tifffile; tests/data/test_tiff.py goes over all layouts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pillow==13.0.0" "numpy==2.2.6"
"$folder/venv/bin/python" - <<'PYTHON'
import io
import struct
import sys

import numpy as np
import PIL
from PIL import Image


def tiff(strips, side, bits, channels, photometric, planes):
    """A little-endian TIFF of side x side pixels, uncompressed."""
    offset = 8 + 2 + 12 * 10 + 4
    wide = struct.pack(f"<{channels}H", *[bits] * channels)
    lengths = struct.pack(f"<{len(strips)}I", *map(len, strips))
    data = offset + len(wide) + 2 * len(lengths)
    places = struct.pack(f"<{len(strips)}I", *(data + sum(map(len, strips[:k])) for k in range(len(strips))))

    def entry(tag, kind, count, value, place):
        inline = count * {3: 2, 4: 4}[kind] <= 4
        return struct.pack("<HHI", tag, kind, count) + (value.ljust(4, b"\0") if inline else struct.pack("<I", place))

    short, long = (lambda number: struct.pack("<H", number)), (lambda number: struct.pack("<I", number))
    entries = [
        entry(256, 4, 1, long(side), 0),
        entry(257, 4, 1, long(side), 0),
        entry(258, 3, channels, wide, offset),
        entry(259, 3, 1, short(1), 0),
        entry(262, 3, 1, short(photometric), 0),
        entry(273, 4, len(strips), places, offset + len(wide)),
        entry(277, 3, 1, short(channels), 0),
        entry(278, 4, 1, long(side), 0),
        entry(279, 4, len(strips), lengths, offset + len(wide) + len(places)),
        entry(284, 3, 1, short(planes), 0),
    ]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(entries) + bytes(4)
    return head + wide + places + lengths + b"".join(strips)


side = 16
ramp = np.arange(side * side).reshape(side, side) * 257
rgb = np.stack([ramp, ramp.T, 65535 - ramp], axis=-1).astype("<u2")
planes = [np.ascontiguousarray(rgb[..., k]).tobytes() for k in range(3)]
digits = ((ramp // 16)[..., None] >> np.arange(11, -1, -1)) & 1
files = {
    "RGB of 16 bits, planes together": (tiff([rgb.tobytes()], side, 16, 3, 2, 1), rgb),
    "RGB of 16 bits, planes apart": (tiff(planes, side, 16, 3, 2, 2), rgb),
    "grey of 16 bits, zero is black": (tiff([planes[0]], side, 16, 1, 1, 1), ramp),
    "grey of 16 bits, zero is white": (tiff([planes[0]], side, 16, 1, 0, 1), 65535 - ramp),
    "grey of 12 bits": (tiff([np.packbits(digits.reshape(side, -1), axis=1).tobytes()], side, 12, 1, 1, 1), ramp),
}
right = {}
for name, (data, expected) in files.items():
    image = Image.open(io.BytesIO(data))
    levels = np.asarray(image).astype(float) / (257 if image.mode.startswith("I") else 1)
    error = np.abs(levels - expected / 257).mean()
    right[name] = bool(error < 1)
    print(f"Pillow {PIL.__version__}: {name}: mode {image.mode}, off by {error:.1f} of 255 levels on average")
sys.exit(0 if list(right.values()) == [True, False, True, False, False] else "it behaves otherwise now")
PYTHON
echo "as found: three layouts are read wrong, silently"
