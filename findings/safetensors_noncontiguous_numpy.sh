#!/usr/bin/env bash
# safetensors 0.8.0 writes numpy arrays that are not C-contiguous with their numbers in another order, and raises nothing.
#
# Seen:     a 2x3 array's transpose comes back as [[0, 1], [2, 3], [4, 5]] in place of [[0, 3], [1, 4], [2, 5]]: the bytes are
#           written as they lie in memory, under the shape of the transpose. 0.8.0 takes an array's pointer and length;
#           up to 0.7.0 it took its bytes in C order. It has been reported: github.com/safetensors/safetensors/issues/825.
# Expected: the same numbers, as before, or an error, as safetensors.torch raises for tensors that are not contiguous. (The
#           documentation asks for contiguous arrays; nothing says so when they are not.)
# Ours:     sgpn_arch/files.py, write_tensors: the one way in which this library writes safetensors.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"

for version in 0.7.0 0.8.0; do
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "safetensors==$version" "numpy==2.2.6"
    "$folder/venv/bin/python" - "$version" <<'PYTHON'
import sys

import numpy as np
import safetensors
from safetensors.numpy import load, save

array = np.arange(6, dtype=np.float32).reshape(2, 3).T
found = load(save({"array": array}))["array"]
same = np.array_equal(array, found)
print(f"safetensors {safetensors.__version__}, numpy {np.__version__}: {array.tolist()} came back as {found.tolist()}")
assert safetensors.__version__ == sys.argv[1]
sys.exit(0 if same == (sys.argv[1] == "0.7.0") else f"safetensors {sys.argv[1]} behaves otherwise now")
PYTHON
done
echo "as found: 0.8.0 writes a transposed array in another order, silently; 0.7.0 did not"
