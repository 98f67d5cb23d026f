#!/usr/bin/env bash
# Pillow 13.0.0 makes a photo of 16-bit grey nearly white when it is converted to 8 bits, and raises nothing.
#
# Seen:     a PNG of 16-bit grey opens in mode "I;16". convert("L") and convert("RGB") take every number above 255 for 255, so of a
#           ramp from 0 to 65535 all but the first 1/257 is white. RGB of 16 bits, in contrast, is divided when it is opened.
# Expected: number / 257, the same brightness, or an error.
# Ours:     data/photos.py, _from_16_bits, which brings the numbers to 8 bits itself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pillow==13.0.0" "numpy==2.2.6"
"$folder/venv/bin/python" - <<'PYTHON'
import io
import sys

import numpy as np
import PIL
from PIL import Image

levels = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # 0, 257, ... 65535: the 256 levels of 8 bits
file = io.BytesIO()
Image.fromarray(levels).save(file, "png")
image = Image.open(file)
white = []
for mode in ("L", "RGB"):
    white.append(int((np.asarray(image.convert(mode)).reshape(256, -1)[:, 0] == 255).sum()))
    print(f"Pillow {PIL.__version__}: {image.mode} to {mode}: {white[-1]} of 256 levels are white, expected 1")
sys.exit(0 if white == [255, 255] else "it behaves otherwise now")
PYTHON
echo "as found: everything above 255 of 65535 becomes white"
