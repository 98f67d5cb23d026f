"""Memory: what commands free stays theirs and is used again, and a file of weights does not stay in it once they are ready."""

import subprocess
import sys
from pathlib import Path

import pytest

from sgpn_model.restore.restorer import FaceRestorer
from sgpn_model.weights.checkpoint import load_checkpoint, save_checkpoint
from sgpn_model.weights.pretrained import find_weights

PROGRAM = """
import sys, torch
from sgpn_arch.inference.memory import keep_freed_memory
def size():
    return int(open("/proc/self/statm").read().split()[1]) >> 8
def work(mib, rounds):
    before = size()
    for _ in range(rounds):
        a = torch.ones(mib << 18)
        b = a * 2
        during = size() - before
        del a, b
    return during, size() - before
kept = sys.argv[1] != "leave" and keep_freed_memory(large=sys.argv[1] == "all")
print(int(kept), *work(30, 20), *work(64, 1))
"""


def _run(how):
    out = subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True).stdout
    return [int(word) for word in out.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library is asked on Linux only")
def test_kept_memory_is_used_again():
    """MiB of the process while two tensors are there and when they are freed; not every system counts page faults."""
    kept, during, afterwards, _, afterwards_large = _run("small")
    if not kept:
        pytest.skip("this C library has no mallopt")
    assert during <= 400  # of 1,200 that were asked for in 20 rounds
    assert afterwards >= 60
    assert afterwards_large < 8  # above 32 MiB each comes and goes
    assert sum(_run("all")[2::2]) >= 120
    assert _run("leave")[4] < 8


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
