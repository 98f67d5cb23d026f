#!/usr/bin/env bash
# pillow-heif 1.8.1 gives a HEIC photo without EXIF data the entry info["exif"] = None, where Pillow's own readers leave the entry out.
#
# Seen:     info.get("exif", b"") is None for a HEIC photo that has none, and b"" for a JPEG, PNG, WebP, AVIF or TIFF. So code that goes on
#           with these bytes, as to look at their first ones, fails for such photos alone.
# Expected: no entry where there is no EXIF data.
# Ours:     data/photos.py, _orientation, which took the error for damaged EXIF data and warned of it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pillow==12.3.0" "pillow-heif==1.8.1"
"$folder/venv/bin/python" - <<'PYTHON'
import io
import sys

import PIL
import pillow_heif
from PIL import Image

pillow_heif.register_heif_opener()
found = {}
for kind in ("HEIF", "JPEG", "PNG", "WEBP", "AVIF", "TIFF"):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 100, 50)).save(file, kind)
    found[kind] = Image.open(file).info.get("exif", b"")
    print(f"Pillow {PIL.__version__}, pillow-heif {pillow_heif.__version__}: {kind} without EXIF data: {found[kind]!r}")
expected = found.pop("HEIF") is None and set(found.values()) == {b""}
sys.exit(0 if expected else "it behaves otherwise now")
PYTHON
echo "as found: None for HEIC alone"
