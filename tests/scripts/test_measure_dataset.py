"""The script that measures how fast a dataset is: it makes pictures, counts images, and says how many workers to start."""

import argparse

import cv2
import pytest

from oracles.script import load_script


@pytest.fixture(scope="module")
def script():
    return load_script("measure_dataset")


def test_generated_pictures_are_square_and_compress_as_photos_do(script, tmp_path):
    """A photo as JPEG of OpenCV's quality takes one to four bits a pixel."""
    script.generate(tmp_path, 128, ".jpg", 2)
    for path in tmp_path.iterdir():
        assert cv2.imread(str(path)).shape == (128, 128, 3)
        assert 1 < 8 * path.stat().st_size / 128**2 < 4


def test_prints_a_line_for_each_combination(script, tmp_path, capsys):
    script.generate(tmp_path, 48, ".png", 3)
    options = {"sizes": [32], "presets": ["gfpgan", "inpaint"], "workers": [1], "cache": "ram", "batch": 2}
    script.measure([str(tmp_path)], argparse.Namespace(**options, repeats=2, images=4, gpu_rate=10.0))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines] == [["32", "gfpgan"], ["32", "inpaint"]]
    assert all(len(line) == 8 and float(line[2]) > 0 and float(line[4]) > 0 for line in lines)


@pytest.mark.parametrize(("rate", "gpus", "per_worker", "wanted"), [(20, 8, 40, 4), (20, 8, 41, 4), (20, 8, 39, 5)])
def test_enough_workers_and_not_one_too_many(script, rate, gpus, per_worker, wanted):
    assert script.workers_for(rate, gpus, per_worker) == wanted
