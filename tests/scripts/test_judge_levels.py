"""scripts/judge_levels.py: its rows at small size, and that each is about the same degraded faces."""

import json
import sys

import cv2
import numpy as np
import pytest

from oracles.script import load_script


@pytest.fixture(scope="module")
def script():
    return load_script("judge_levels")


@pytest.fixture(scope="module")
def judged(script, astronaut, tiny_weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("levels")
    faces = folder / "faces" / "val"
    faces.mkdir(parents=True)
    for number in range(3):
        x = 150 + 5 * number
        cv2.imwrite(str(faces / f"{number}.png"), cv2.resize(astronaut[30:170, x : x + 140], (96, 96)))
    small = ["datasets.test.size=64", f"judge={tiny_weights}", "metrics=[psnr]"]
    arguments = [
        "judge_levels.py",
        "--data",
        str(faces.parent),
        "--weights",
        str(tiny_weights),
        "--restorer",
        f"other={tiny_weights}",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", [*arguments, "--levels", "mild", "severe", "-o", str(folder / "out"), "--set", *small]
        )
        script.main()
    return folder / "out"


ROWS = ["degraded input", "Lanczos", "classical", "other", "SGPN", "SGPN, fidelity 0.5", "ground truth"]


def test_every_level_has_all_rows(judged):
    for level in ("mild", "severe"):
        report = json.loads((judged / level / "report.json").read_text())
        assert list(report["table"]) == ROWS
        assert report["table"]["other"] == report["table"]["SGPN"]
        assert (judged / level / "grid.jpg").is_file()


def test_lanczos_enlarges_the_same_small_photo(judged):
    """Sharper than the linearly enlarged input where that lost pixels, and the same photo with the same noise."""
    for level, least in (("mild", 30), ("severe", 25)):
        for path in (judged / level / "inputs").glob("*.png"):
            given, other = (
                cv2.imread(str(judged / level / kind / path.name)).astype(float) for kind in ("inputs", "lanczos")
            )
            assert 10 * np.log10(255**2 / np.mean((given - other) ** 2)) > least
            if level == "severe":
                detail = [np.abs(np.diff(picture, axis=1)).mean() for picture in (given, other)]
                assert detail[1] > detail[0]


def test_the_joint_page_counts_the_faces_that_gained(judged):
    text = (judged / "levels.md").read_text()
    report = json.loads((judged / "severe" / "report.json").read_text())
    gains = np.subtract(report["values"]["classical"]["psnr"], report["values"]["degraded input"]["psnr"])
    assert "## mild" in text
    severe = text.split("## severe")[1]
    assert f"| classical | {np.mean(gains > 0):.0%} | {gains.min():+.2f} | {gains.max():+.2f} |" in severe
