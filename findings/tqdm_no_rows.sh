#!/usr/bin/env bash
# tqdm 4.70.1 shows no progress at all on a terminal that does not say how many lines it has.
#
# Seen:     such terminals report a height of 0 (a container's before it is told its size, `script`, a serial line). tqdm takes one off for
#           its own use, comes to -1 lines, and so has room for no bar: an empty line is all that is written. With 24 lines it draws.
# Expected: a bar, as where the height cannot be found out at all; then tqdm reckons with 20 lines.
# Ours:     sgpn_model/cli/__init__.py sets TQDM_NROWS=20 for terminals without a height, before tqdm is imported.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "tqdm==4.70.1"
"$folder/venv/bin/python" - <<'PYTHON'
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

CODE = "from tqdm import tqdm; [None for _ in tqdm(range(3), mininterval=0)]"


def written(lines):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, 80, 0, 0))
    subprocess.run([sys.executable, "-c", CODE], stderr=theirs, check=True)
    text = os.read(ours, 100_000).decode()
    os.close(theirs)
    return text


from importlib.metadata import version

found = {lines: written(lines) for lines in (0, 24)}
for lines, text in found.items():
    print(f"tqdm {version('tqdm')}, a terminal of {lines} lines: {text.strip()[-40:]!r}")
expected = "3/3" not in found[0] and "3/3" in found[24]
sys.exit(0 if expected else "it behaves otherwise now")
PYTHON
echo "as found: no bar where the height is 0"
