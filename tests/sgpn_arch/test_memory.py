"""Memory: what commands keep costs no page faults, and a file of weights does not stay in it once they are ready."""

import subprocess
import sys
from pathlib import Path

import pytest

from sgpn_model.restore.restorer import FaceRestorer
from sgpn_model.weights.checkpoint import load_checkpoint, save_checkpoint
from sgpn_model.weights.pretrained import find_weights

PROGRAM = """
import resource, sys, torch
from sgpn_arch.inference.memory import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
def work():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (16, 12, 8, 4):
        a = torch.ones(size << 18)
        b = a * 2
        c = torch.cat([a, b])
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(5):
    work()
# The median: where blocks come to lie is chance, and now and then one of them needs room that is new.
print(kept, sorted(work() for _ in range(11))[5])
"""


def _run(how):
    out = subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True).stdout
    kept, faults = out.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library is asked on Linux only")
def test_kept_memory_is_not_paid_for_again():
    kept, faults = _run("keep")
    if not kept:
        pytest.skip("this C library has no mallopt")
    assert _run("leave")[1] > 10 * max(faults, 1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library is asked on Linux only")
def test_freed_memory_is_returned():
    """Blocks between ones that stay, as the copies of converted weights are: the process gets smaller."""
    program = """
import numpy as np
from sgpn_arch.inference.memory import keep_freed_memory, return_freed_memory
def size():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
kept = keep_freed_memory()
blocks = [np.ones(1 << 17) for _ in range(200)]
del blocks[::2]
before = size()
print(kept and return_freed_memory(), before - size())
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    returned, fewer = done.stdout.split()
    if returned != "True":
        pytest.skip("this C library has no malloc_trim")
    assert int(fewer) > 80 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mapped files are listed on Linux only")
def test_the_file_of_weights_is_not_kept_in_memory(tmp_path):
    """The default weights in full precision, which need no conversion and so could stay mapped."""
    checkpoint = load_checkpoint(find_weights("default"))
    path = tmp_path / "in_full.safetensors"
    model = checkpoint.morphable_model()
    model.tex_mean += 1e-5  # not exact in half precision, in which the file would hold it otherwise
    save_checkpoint(path, checkpoint.weights, checkpoint.metadata, None, model)
    restorer = FaceRestorer.from_pretrained(path, "cpu", engine="torch")
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert str(path) not in mapped
    assert restorer.size == 512
