"""scripts/pack_faces.py: small pictures of one size, with their landmarks."""

import json
import sys

import cv2
import numpy as np
import pytest
from skimage.data import astronaut

from oracles.script import load_script
from sgpn_data.face_dataset import FaceRestorationDataset


@pytest.fixture
def script():
    return load_script("pack_faces")


@pytest.fixture
def folder(tmp_path):
    face = astronaut()[:256, 96:352, ::-1]
    root = tmp_path / "faces" / "train"
    root.mkdir(parents=True)
    (root.parent / "val").mkdir()
    cv2.imwrite(str(root.parent / "val" / "held.png"), face)
    for number, size in enumerate((256, 128, 64)):
        cv2.imwrite(str(root / f"{number}.png"), cv2.resize(face, (size, size), interpolation=cv2.INTER_AREA))
    points = {"0.png": [[10.0, 20.0]] * 68, "2.png": [[2.0, 4.5]] * 68}
    (root / "landmarks68.json").write_text(json.dumps(points))
    return root


def packed(script, monkeypatch, folder, megabytes, output):
    arguments = ["--data", str(folder.parent), "-o", str(output), "--size", "128", "--megabytes", str(megabytes)]
    monkeypatch.setattr(sys, "argv", ["pack_faces.py", *arguments])
    script.main()
    return FaceRestorationDataset(
        {"dataroot": str(output), "split": "train", "size": 128, "degradation": None, "phase": "test"}
    )


def test_the_pack_is_a_dataset_of_the_wanted_size(script, monkeypatch, folder, tmp_path):
    small, large = (packed(script, monkeypatch, folder, size, tmp_path / f"p{size}") for size in (0.014, 1))
    sizes = [sum(path.stat().st_size for path in (tmp_path / f"p{size}").rglob("*.*")) for size in (0.014, 1)]
    assert sizes[0] < 0.0145e6 < sizes[1]
    assert [path.name for path in (tmp_path / "p1" / "val").glob("*.webp")] == ["00000.webp"]
    original = cv2.imread(str(folder / "1.png"))[:, :, ::-1].astype(np.float32) / 127.5 - 1
    errors = [np.abs(pack[1]["hq"].permute(1, 2, 0).numpy() - original).mean() for pack in (small, large)]
    assert errors[1] < errors[0] < 0.1


def test_landmarks_go_along(script, monkeypatch, folder, tmp_path):
    pack = packed(script, monkeypatch, folder, 1, tmp_path / "pack")
    assert pack[0]["landmarks68"][5].tolist() == pytest.approx([10.5 / 2 - 0.5, 20.5 / 2 - 0.5], abs=1e-3)
    assert pack[1]["landmarks68"].isnan().all()
    assert pack[2]["landmarks68"][0].tolist() == pytest.approx([2.5 * 2 - 0.5, 5 * 2 - 0.5], abs=1e-3)


def test_a_size_that_cannot_be_reached_is_said(script, monkeypatch, folder, tmp_path):
    with pytest.raises(SystemExit, match="do not fit"):
        packed(script, monkeypatch, folder, 0.001, tmp_path / "pack")
