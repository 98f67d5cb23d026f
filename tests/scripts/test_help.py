"""Every script answers ``--help`` with its usage, and says where it writes unless it is told."""

import subprocess
import sys
from pathlib import Path

import pytest

from oracles.script import load_script

FOLDER = Path(__file__).parents[2] / "scripts"
# Scripts that replace files of this project when they are not told where to write -> what --help says of it.
REPLACING = {
    "build_open_morphable_model": "sgpn_arch/assets/open_face.safetensors",
    "compare_regressors": "docs/images",
    "draw_diagrams": "docs/images/diagrams",
    "draw_model_card": "docs/images",
    "draw_morphable_model": "docs/images/morphable_model.jpg",
    "export_mobilenet_features": "the package's file",
}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_python_scripts(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        load_script(name).main()
    told = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0 and told.startswith(f"usage: {name}.py")
    assert f"default: {REPLACING[name]}" in told if name in REPLACING else "docs/" not in told


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.sh")))
def test_shell_scripts(name, tmp_path):
    done = subprocess.run(["bash", FOLDER / name, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and f"scripts/{name} FACES" in done.stdout and not done.stderr
    assert not list(tmp_path.iterdir())
