#!/usr/bin/env bash
# One small tensor that is kept of a large file which safetensors 0.8.0 opened for PyTorch keeps the whole file in memory.
#
# Seen:     of a file of 256 MiB with 64 tensors of 4 MiB and one of 4 bytes all are read and all but the smallest are let go of. The
#           file is closed. The process stays 256 MiB larger, and the system lists the file as mapped. With a copy of the small
#           tensor in its place, the process is as small as before.
# Expected: memory that goes with the tensors that use it, as with NumPy, where each is read into its own. What get_tensor returns is
#           a view of one mapping of the file, of which its documentation says nothing; a device or a type that needs a conversion
#           hides it.
# Ours:     sgpn_model/weights/checkpoint.py, load_checkpoint, copies the tensors that outlive the networks' conversion.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "safetensors==0.8.0" "torch==2.14.1" "numpy<3"
"$folder/venv/bin/python" - "$folder/large.safetensors" <<'PYTHON'
import gc
import sys
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file

path = sys.argv[1]
save_file({f"large.{n}": torch.full((1 << 20,), float(n)) for n in range(64)} | {"small": torch.ones(1)}, path)


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20


def kept(copy: bool) -> torch.Tensor:
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    assert sum(float(tensor.sum()) for tensor in tensors.values()) > 0  # all pages are read
    return tensors["small"].clone() if copy else tensors["small"]


before = resident()
small = kept(copy=True)
with_copy, mapped_with_copy = resident() - before, path in Path("/proc/self/maps").read_text()
small = kept(copy=False)
as_it_is, mapped = resident() - before, path in Path("/proc/self/maps").read_text()
print(f"safetensors {safetensors.__version__}, torch {torch.__version__}, kept: {small.nbytes} bytes of {Path(path).stat().st_size >> 20} MiB")
print(f"as a copy:  {with_copy} MiB more than before, file mapped: {mapped_with_copy}")
print(f"as it came: {as_it_is} MiB more than before, file mapped: {mapped}")
expected = with_copy < 40 and not mapped_with_copy and as_it_is > 200 and mapped
sys.exit(0 if expected else "safetensors behaves otherwise now")
PYTHON
echo "as found: four bytes keep the file"
