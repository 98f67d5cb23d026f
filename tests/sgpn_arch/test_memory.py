"""Memory: what commands free stays theirs and is used again, and a file of weights does not stay in it once they are ready."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sgpn_model.restore.restorer import FaceRestorer
from sgpn_model.weights.checkpoint import load_checkpoint, save_checkpoint
from sgpn_model.weights.pretrained import find_weights

PROGRAM = """
import os, sys, torch
from sgpn_arch.inference.memory import keep_freed_memory
def size():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
def left(mib, rounds=1):
    before = size()
    for _ in range(rounds):
        a = torch.ones(mib << 18)
        b = a * 2
        del a, b
    return size() - before
kept = sys.argv[1] != "leave" and keep_freed_memory(large=sys.argv[1] == "all")
print(int(kept), left(30), left(64), left(30, rounds=20))
"""


def _run(how):
    """Whether memory is kept, and the MiB that are left of twice 30, twice 64, and of twenty times twice 30."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRE"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        check=True,
        capture_output=True,
        text=True,
        env={**ours, "OMP_NUM_THREADS": "1"},  # where blocks come to lie depends on the threads
    )
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library is asked on Linux only")
def test_kept_memory_is_used_again():
    """Told by the process's size; not every system counts page faults."""
    kept, small, large, again = _run("small")
    if not kept:
        pytest.skip("this C library has no mallopt")
    assert small >= 45
    assert large < 32
    assert again <= 400  # of 1,200
    _, small, large, _ = _run("all")
    assert small >= 45
    assert large >= 60  # one of the two may fit into what the smaller ones left
    _, small, large, _ = _run("leave")
    assert small < 30
    assert large < 32


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library is asked on Linux only")
def test_freed_memory_is_returned():
    """Blocks between ones that stay, as the copies of converted weights are: the process gets smaller."""
    program = """
import os
import numpy as np
from sgpn_arch.inference.memory import keep_freed_memory, return_freed_memory
def size():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
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
