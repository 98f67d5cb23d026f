"""The scripts of this folder run, on tiny networks: what they measure is in what they print and draw."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from sgpn_model.cli import bench

TINY = ["--size", "64", "--width", "0.02", "--precision", "fp32", "--threads", "1"]


@pytest.fixture
def script(monkeypatch):
    """Loads a script of this folder. One thread; and the C library is not told to keep memory, which would be for good."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(bench, "BACKBONE", "mobilenet_v2")

    def load(name: str, *arguments: str):
        module = importlib.import_module(name)
        monkeypatch.setattr(module, "keep_freed_memory", lambda: True)
        monkeypatch.setattr(sys, "argv", [name, *arguments, *TINY])
        return module

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load
    torch.set_num_threads(threads)


def test_compare_network(script, capsys):
    script("compare_network", "--rounds", "2").main()
    lines = capsys.readouterr().out.splitlines()
    rows = {cells[1].strip(): cells[2:-1] for cells in (line.split("|") for line in lines[2:])}
    assert list(rows) == ["plain fp32", "ceiling fp32", "inference fp32"]
    assert all(float(row[0]) > 0 for row in rows.values())
    assert float(rows["inference fp32"][5].split(",")[0]) < 2e-4


def test_compare_training(script, capsys):
    script("compare_training", "--rounds", "2", "--batch", "1").main()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["plain", "ours", "ceiling"]
    assert all(float(row[1]) > 0 and float(row[2]) > 0 for row in rows) and rows[0][3] == "1.00"


@pytest.mark.parametrize(("axis", "last", "expected"), [("batch", "2", 4), ("faces", "1", 1)])
def test_growth(script, tmp_path, capsys, axis, last, expected):
    pytest.importorskip("matplotlib")
    script("growth", axis, "--last", last, "--seconds", "0.01", "-o", str(tmp_path)).main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == expected and all(float(line.split(": ")[1].split()[0]) > 0 for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == [f"performance_{axis}.png"]


def test_places_and_photo(script):
    growth = script("growth")
    assert growth.places(1, 8) == [1, 2, 4, 8] and growth.places(1, 6) == [1, 2, 4, 6] and growth.places(64, 64) == [64]
    assert growth.make_photo(0.25, 4).shape == (433, 577, 3)
