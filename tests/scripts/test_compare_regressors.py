"""scripts/compare_regressors.py: the picture, the table and the share of faces that are recognised."""

import json
import sys

import cv2
import pytest
import torch

from oracles.script import load_script
from sgpn_data.tensors import to_tensor


@pytest.fixture(scope="module")
def script():
    return load_script("compare_regressors")


def test_who_is_nearest_counts(script):
    """First all three are nearest to themselves, then two have changed places."""
    known = torch.tensor([[2.0, 0.0], [-1.0, 2.0], [-1.0, -2.0]])
    asked = torch.tensor([[1.9, 0.2], [-1.0, 1.5], [-0.9, -1.7]])
    assert script.rank_one(known, asked) == 1.0
    assert abs(script.rank_one(known, asked[[1, 0, 2]]) - 1 / 3) < 1e-6


def test_picture_and_table(script, astronaut, tmp_path, monkeypatch, capsys):
    """Landmarks are those that the regressor finds in the good photo: there its error is 0, in a degraded one it is not."""
    prior, restorer = script.load_prior("default"), script.FaceRestorer.from_pretrained("default", "cpu")
    (tmp_path / "val").mkdir()
    face = cv2.resize(astronaut[30:170, 150:290], (512, 512))
    cv2.imwrite(str(tmp_path / "val" / "face.png"), face)
    with torch.inference_mode():
        places = prior(to_tensor(face)[None], script.found_points(restorer, face)).landmarks[0]
    (tmp_path / "val" / "landmarks68.json").write_text(json.dumps({"face.png": places.tolist()}))
    monkeypatch.setattr(script, "LEVELS", ("clean", "severe"))
    monkeypatch.setattr(sys, "argv", ["compare", "a=default", "--data", str(tmp_path), "-o", str(tmp_path)])
    script.main()
    clean, severe = (line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:])
    assert clean[:3] == ["| clean", "a", "0.00"] and clean[4] == "– |"
    assert 0.5 < float(severe[2]) < 20 and 5 < float(clean[3]) < 60
    assert cv2.imread(str(tmp_path / "regressors.jpg")).shape[0] > 3 * 200
