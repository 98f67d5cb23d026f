#!/usr/bin/env bash
# fsspec 2026.9.0 opens another file than the one it was asked for where a name has two colons in it.
#
# Seen:     with the files "a.txt" and "a.txt::b.txt" in a folder, fsspec.open of the second's path reads the first, without an error,
#           and so do url_to_fs and a URL that begins with file://. The file system itself, filesystem("file"), reads the second. Two
#           colons chain URLs ("zip://x.txt::s3://bucket/y.zip"), but here no second URL follows.
# Expected: the file of that name, or an error that says that such names cannot be opened.
# Ours:     sgpn_model/bulk/folders.py, open_url, takes two colons for a chain only where a URL follows them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "fsspec==2026.9.0"
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import fsspec

folder = Path(sys.argv[1])
for name in ("a.txt", "a.txt::b.txt"):
    (folder / name).write_text(f"the content of {name}")
path = str(folder / "a.txt::b.txt")
with fsspec.open(path, "rt") as file:
    opened = file.read()
system, place = fsspec.url_to_fs(f"file://{path}")
print(f"fsspec {fsspec.__version__}, asked for {Path(path).name}")
print(f"fsspec.open reads: {opened}")
print(f"fsspec.url_to_fs means: {Path(place).name}")
print(f"filesystem('file').cat reads: {system.cat(path).decode()}")
expected = opened == "the content of a.txt" and Path(place).name == "a.txt" and b"b.txt" in system.cat(path)
sys.exit(0 if expected else f"fsspec {fsspec.__version__} behaves otherwise now")
PYTHON
echo "as found: the name is cut at the two colons"
