#!/usr/bin/env bash
# opencv 4.14.0 moves pictures by whole steps of 1/32 pixel; 5.0.0 by what it was asked for.
#
# Seen:     warpAffine with INTER_LINEAR of a ramp that rises by 1 a pixel, in float32: moved by 0.010 px it comes back as it was,
#           moved by 0.020 px it has moved by 0.031. 5.0.0 moves it by 0.010 and by 0.020. So the same program gives other
#           pictures with the two versions. Reference pictures that were made with one need a tolerance with the other.
# Expected: a picture in float32 moved by as much as the float64 matrix says, in both versions.
# Ours:     both versions are allowed. data/released_protocol.py, _inside, finds the pixels that version 4 changes, with which the
#           authors' code ran.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"

for version in 4.14.0.94 5.0.0.93; do
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "opencv-python-headless==$version" "numpy==2.2.6"
    "$folder/venv/bin/python" - <<'PYTHON'
import sys

import cv2
import numpy as np

ramp = np.tile(np.arange(256, dtype=np.float32), (8, 1))
found = []
for shift in (0.010, 0.020):
    moved = cv2.warpAffine(ramp, np.float64([[1, 0, shift], [0, 1, 0]]), (256, 8), flags=cv2.INTER_LINEAR)
    found.append(float((ramp - moved)[4, 100:200].mean()))
    print(f"OpenCV {cv2.__version__}: asked to move by {shift:.3f} px, moved by {found[-1]:.5f}")
expected = [0.0, 1 / 32] if cv2.__version__.startswith("4.") else [0.010, 0.020]
sys.exit(0 if np.allclose(found, expected, atol=1e-4) else f"OpenCV {cv2.__version__} behaves otherwise now")
PYTHON
done
echo "as found: version 4 rounds the places to 1/32 pixel, version 5 does not"
