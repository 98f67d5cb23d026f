"""The option files come with the package: they are found from any folder, listed, and in what is built to be installed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sgpn_arch.errors import OptionError
from sgpn_model import cli
from sgpn_model.config.reading import read_options, shipped_files

ROOT = Path(__file__).parents[3]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["options/train/shape_open.yml", "train/shape_open.yml"])
def test_a_shipped_file_is_found_by_name(elsewhere, name):
    options, origins = read_options(name)
    assert options["name"] == "shape_open"
    assert Path(origins.at(["name"])) == ROOT / "options" / "train" / "shape_open.yml"
    assert cli.main(["options", "check", name]) == 0


def test_ones_own_file_inherits_from_it(elsewhere):
    (elsewhere / "deep").mkdir()
    (elsewhere / "deep" / "mine.yml").write_text("_base_: options/task/inpaint.yml\nname: mine\n")
    options, _ = read_options("deep/mine.yml")
    assert options["name"] == "mine" and options["datasets"]["train"]["inpaint"]  # of its base, and of the base's base
    assert options["network_g"]["fusion"] == "AFFB"


def test_a_file_that_is_there_wins(elsewhere):
    (elsewhere / "train").mkdir()
    (elsewhere / "train" / "shape_open.yml").write_text("name: mine\n")
    assert read_options("train/shape_open.yml")[0] == {"name": "mine"}
    assert read_options("options/train/shape_open.yml")[0]["name"] == "shape_open"
    with pytest.raises(OptionError, match="^train/shape_opn.yml: no such option file"):
        read_options("train/shape_opn.yml")


def test_they_are_listed_with_what_they_are_for(elsewhere, capsys):
    assert cli.main(["options", "list"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == sorted(
        path.relative_to(ROOT / "options").as_posix() for path in (ROOT / "options").glob("*/*")
    )
    assert lines["task/inpaint.yml"].startswith("Inpainting: a hole of free-form brush strokes")


def test_they_are_in_what_is_built(tmp_path):
    """As a wheel is built, without the weights and the downloading of setuptools."""
    source, built = tmp_path / "source", tmp_path / "built"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "sgpn.py"):
        shutil.copy(ROOT / name, source)
    for name in ("data", "options", "sgpn_arch", "sgpn_model"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(built)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {path.relative_to(built / "sgpn_options").as_posix() for path in (built / "sgpn_options").glob("*/*")}
    assert found == set(shipped_files()) and len(found) > 30
    assert (built / "sgpn_options" / "__init__.py").is_file() and (built / "sgpn_data" / "sources.py").is_file()
