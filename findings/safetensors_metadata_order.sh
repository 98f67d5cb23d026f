#!/usr/bin/env bash
# safetensors writes metadata of more than one entry in an order that differs from call to call, so files have no stable checksum.
#
# Seen:     the same tensors and the same six entries of metadata, saved 32 times in one process, give many different byte
#           strings of one length; only the order of the entries in the header differs. Tensors are sorted, metadata are not.
#           It has been reported: github.com/safetensors/safetensors/issues/584.
# Expected: the same bytes for the same content, so that files can be compared and cached by their checksums.
# Ours:     sgpn_arch/files.py, write_tensors, sorts the metadata of the header after safetensors has written it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"

for version in 0.4.5 0.7.0 0.8.0; do
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "safetensors==$version" "numpy==2.2.6"
    "$folder/venv/bin/python" - "$version" <<'PYTHON'
import json
import sys

import numpy as np
import safetensors
from safetensors.numpy import save

tensors, metadata = {"array": np.zeros(3, np.float32)}, {key: "1" for key in "abcdef"}
files = {save(tensors, metadata) for _ in range(32)}
headers = [json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")]) for file in files]
print(f"safetensors {safetensors.__version__}: {len(files)} different files of {set(map(len, files))} bytes in 32 calls")
assert safetensors.__version__ == sys.argv[1]
assert all(header == headers[0] for header in headers), "they differ in more than an order"
sys.exit(0 if len(files) > 1 else f"safetensors {sys.argv[1]} writes one order now")
PYTHON
done
echo "as found: the order of the metadata is not stable"
