#!/usr/bin/env bash
# Pillow 13.0.0 does not find the transparent colour of PNG files whose numbers have 2, 4 or 16 bits.
#
# Seen:     a PNG may name one colour as transparent (its chunk tRNS), in the numbers of the file. Pillow makes the pixels 8-bit
#           but leaves that colour as it is, so convert("RGBA") compares 8 (of 15) with 136 (of 255): with grey of 2 and 4 bits
#           and RGB of 16 bits that colour comes out opaque, or another transparent. With 1 and 8 bits it is right.
# Expected: alpha 0 where a pixel has that colour.
# Ours:     data/photos.py, _open, which brings the colour to 8 bits.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pillow==13.0.0"
"$folder/venv/bin/python" - <<'PYTHON'
import io
import struct
import sys
import zlib

import PIL
from PIL import Image


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def two_pixels(bits, colours):
    """A PNG of a black pixel beside one of half the brightness, which is transparent."""
    half = 2 ** (bits - 1)
    numbers = [0] * colours + [half] * colours
    if bits < 8:
        row = bytes([(numbers[0] << (8 - bits)) | (numbers[1] << (8 - 2 * bits))])
    else:
        row = b"".join(number.to_bytes(bits // 8, "big") for number in numbers)
    header = struct.pack(">IIBBBBB", 2, 1, bits, 2 if colours == 3 else 0, 0, 0, 0)
    data = [(b"IHDR", header), (b"tRNS", struct.pack(f">{colours}H", *[half] * colours))]
    data += [(b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in data)


wrong = []
for bits, colours in ((1, 1), (2, 1), (4, 1), (8, 1), (8, 3), (16, 3)):
    image = Image.open(io.BytesIO(two_pixels(bits, colours))).convert("RGBA")
    alpha = list(image.getchannel("A").tobytes())
    print(f"Pillow {PIL.__version__}: {'RGB' if colours == 3 else 'grey'} of {bits} bits: alpha {alpha}, expected [255, 0]")
    if alpha != [255, 0]:
        wrong.append((bits, colours))
sys.exit(0 if wrong == [(2, 1), (4, 1), (16, 3)] else "it behaves otherwise now")
PYTHON
echo "as found: the transparent colour is not found with 2, 4 and 16 bits"
