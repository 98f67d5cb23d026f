"""``sgpn bench engines``: a row for each engine, measured in a process of its own."""

import importlib.metadata
import json

import numpy as np

from sgpn_model import cli
from sgpn_model.cli.bench_engines import agreement, installed_mb
from sgpn_model.restore.engines import choosing


def test_every_engine_has_a_row(bundle, tmp_path, capsys):
    arguments = ["--weights", str(bundle.folder), "--precision", "fp32", "--seconds", "0.1", "--threads", "1"]
    assert cli.main(["bench", "engines", *arguments, "-o", str(tmp_path / "out.json")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["engine"] for row in rows] == choosing.able(bundle.weights, "cpu", "fp32")
    for row in rows:
        assert row["precision"] == "fp32" and row["most_levels"] <= 1 and row["runs"] >= 5
        assert row["start_s"] > row["face_ms"] / 1e3 > 0 and row["peak_mib"] > 50
    printed = capsys.readouterr().out
    assert all(row["engine"] in printed for row in rows) and "agreement is with torch in fp32" in printed


def test_options_of_networks_are_refused(capsys):
    assert cli.main(["bench", "engines", "--size", "64"]) == 1
    assert "one face of weights on the CPU" in capsys.readouterr().err


def test_agreement_is_in_grey_levels():
    picture = np.zeros((1, 3, 2, 2), np.float32)
    other = picture.copy()
    other[0, 0, 0, 0] = 10 / 127.5
    found = agreement(other, picture)
    assert found["most_levels"] == 10
    np.testing.assert_allclose(found["psnr_db"], 10 * np.log10(255**2 / (100 / 12)))
    assert "psnr_db" not in agreement(picture, picture)


def test_the_size_of_a_package_includes_what_it_requires():
    alone = sum(each.size or 0 for each in importlib.metadata.files("pydantic")) / 1e6
    assert installed_mb("pydantic") > 1.5 * alone > 0  # pydantic-core
    assert installed_mb("no-such-package") == 0
