"""Files: a failed write leaves the old file alone, tensors of any layout are written as they are, and always alike."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from sgpn_arch.files import UNFINISHED, sha256_of, write_atomically, write_tensors

RAMP = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
LAYOUTS = {
    "transposed": RAMP.T,
    "fortran": np.asfortranarray(RAMP),
    "every second": RAMP[:, :, ::2],
    "reversed": RAMP[::-1],
    "repeated": np.broadcast_to(np.int16(3), (2, 2)),
    "scalar": np.array(2.5),
}


class TestTensors:
    @pytest.mark.parametrize("name", LAYOUTS)
    def test_an_array_of_any_layout_is_written_as_it_is(self, tmp_path, name):
        array = LAYOUTS[name]
        write_tensors(tmp_path / "a.safetensors", {"a": array}, {"format": "test"})
        found = load_file(tmp_path / "a.safetensors")["a"]
        assert found.dtype == array.dtype and np.array_equal(found, array)

    def test_tensors_that_share_memory_and_those_with_gradients(self, tmp_path):
        weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last))
        tensors = {"weight": weight, "again": weight, "turned": weight[0, 0].T}
        write_tensors(tmp_path / "a.safetensors", tensors, {"format": "test"})
        with safe_open(tmp_path / "a.safetensors", "pt") as file:
            assert all(torch.equal(file.get_tensor(key), value) for key, value in tensors.items())

    def test_the_same_tensors_give_the_same_bytes(self, tmp_path):
        """With eight entries of metadata, chance alone would give one order out of 40,320."""
        tensors = {"b": torch.arange(5.0), "a": torch.ones(2, 3).half(), "ä": torch.tensor(7)}
        metadata = {key: f'{key}\n"ü"\\\x01' for key in "hgfedcba"}
        paths = [tmp_path / f"{i}.safetensors" for i in range(4)]
        for path in paths:
            write_tensors(path, tensors, metadata)
        assert len({path.read_bytes() for path in paths}) == 1
        with safe_open(paths[0], "pt") as file:
            assert file.metadata() == metadata
            assert all(torch.equal(file.get_tensor(key), value) for key, value in tensors.items())

    def test_a_full_disk_is_an_error_of_the_system(self, tmp_path, monkeypatch):
        """safetensors raises one of its own, which commands would show as a bug."""

        def full(*_, **__):
            raise SafetensorError("I/O error: No space left on device (os error 28)")

        monkeypatch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(OSError, match=r"a\.safetensors: cannot be written .*No space left"):
            write_tensors(tmp_path / "a.safetensors", {"a": RAMP}, {})
        assert not list(tmp_path.iterdir())


class TestAtomicity:
    def test_a_failing_write_leaves_the_old_file_and_nothing_else(self, tmp_path):
        path = tmp_path / "file"
        path.write_text("old")

        def write(temporary):
            with open(temporary, "w") as file:
                file.write("half of the new")
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            write_atomically(path, write)
        assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]

    @pytest.mark.parametrize("durable", [True, False])
    def test_the_old_file_stands_until_the_new_one_is_whole(self, tmp_path, durable):
        path = tmp_path / "file"
        path.write_text("old")

        def write(temporary):
            with open(temporary, "w") as file:
                file.write("new")
            assert path.read_text() == "old"

        write_atomically(path, write, durable)
        assert path.read_text() == "new" and os.listdir(tmp_path) == ["file"]
        assert path.stat().st_mode & 0o777 == 0o644

    def test_a_name_as_long_as_names_can_be(self, tmp_path):
        path = tmp_path / ("n" * 251 + ".png")
        write_atomically(path, lambda temporary: Path(temporary).write_text("new"))
        assert path.read_text() == "new"

    def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(self, tmp_path):
        code = (
            "import sys, time\nfrom sgpn_arch.files import write_atomically\n"
            "def write(temporary):\n    open(temporary, 'w').close()\n    print(temporary, flush=True)\n    input()\n"
            "write_atomically(sys.argv[1], write)"
        )

        def start(name):
            arguments = [sys.executable, "-c", code, str(tmp_path / name)]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            process = subprocess.Popen(
                arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
            return process, Path(process.stdout.readline().strip())

        killed, left = start("a.png")
        killed.kill()
        killed.wait()
        assert left.exists()
        living, kept = start("b.png")
        assert not left.parent.exists()
        write_atomically(tmp_path / "c.png", lambda temporary: Path(temporary).write_text("c"))
        assert kept.exists()
        living.communicate("\n")
        assert living.returncode == 0 and sorted(os.listdir(tmp_path)) == ["b.png", "c.png"]

    def test_leftovers_are_looked_for_in_each_working_folder(self, tmp_path, monkeypatch):
        """A process that changes its working folder writes into another "out"."""
        for name in "ab":
            (tmp_path / name / "out" / f"{UNFINISHED}1").mkdir(parents=True)
            monkeypatch.chdir(tmp_path / name)
            write_atomically("out/c.png", lambda temporary: Path(temporary).write_text("c"))
            assert os.listdir("out") == ["c.png"]


def test_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_nothing_else_writes_safetensors():
    """Whoever calls the package itself meets its faults again: findings/safetensors_*.sh."""
    root = Path(__file__).parents[2]
    files = [
        path for folder in ("sgpn_arch", "data", "sgpn_model", "scripts") for path in (root / folder).rglob("*.py")
    ]
    pattern = re.compile(
        r"safetensors\.numpy|safetensors\.torch import .*\bsave|safetensors import .*\bserialize|safetensors\.torch\.save"
    )
    assert [path.name for path in files if pattern.search(path.read_text(encoding="utf-8"))] == ["files.py"]
