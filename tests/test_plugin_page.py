"""docs/plugins.md, done as it says: its package, found by its entry point, its option file, and its training command."""

import json
import os
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors import safe_open
from skimage import data

from sgpn_data.sheet import GAP, SMALLEST_CELL

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w/.]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = re.search(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[1].splitlines()
LAUNCHER = "import sys\nfrom sgpn_model.cli import main\nsys.exit(main())\n"
# So that two steps take seconds.
SMALL = [
    "--set", "train.total_iter=2", "val.save_images=1", "num_threads=1", "device=cpu", "logger.use_tb_logger=false",
    "network_g.size=64", "network_g.width=0.02", "network_d.size=64", "network_d.width=0.02",
    "datasets.train.size=64", "datasets.train.batch_size_per_gpu=2", "datasets.train.num_worker_per_gpu=0",
    "datasets.val.size=64", "datasets.val.batch_size_per_gpu=2",
]  # fmt: skip


def install(pyproject: Path, site: Path) -> None:
    """What ``pip install -e`` does, without the network: the package on the path, its entry points in a dist-info."""
    parser = ConfigParser()
    parser.read_string(pyproject.read_text())
    name, version = (parser["project"][key].strip('"') for key in ("name", "version"))
    about = site / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        f"{name} = {value.strip(chr(34))}" for name, value in parser['project.entry-points."sgpn.plugins"'].items()
    ]
    (about / "entry_points.txt").write_text("\n".join(["[sgpn.plugins]", *lines]))


def write_faces(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        crop = data.astronaut()[30:158, 160 + 3 * number : 288 + 3 * number, ::-1]
        cv2.imwrite(str(folder / f"{number}.png"), cv2.resize(crop, (64, 64), interpolation=cv2.INTER_AREA))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder like the repository's root in which the page was followed."""
    root = tmp_path_factory.mktemp("checkout")
    for name, text in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    (root / "options").symlink_to(ROOT / "options")
    (root / "sgpn_model").mkdir()
    (root / "sgpn_model" / "weights").symlink_to(ROOT / "sgpn_model" / "weights")
    write_faces(root / "faces" / "train", 4)
    write_faces(root / "faces" / "val", 2)
    install(root / "film" / "pyproject.toml", root / "site")
    (root / "bin").mkdir()
    (root / "bin" / "sgpn.py").write_text(LAUNCHER)
    paths = [ROOT, root / "film", root / "site", os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    for command in COMMANDS:
        program, *arguments = command.split()
        if program == "sgpn":
            done = subprocess.run(
                [sys.executable, str(root / "bin" / "sgpn.py"), *arguments, *SMALL],
                cwd=root,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stdout + done.stderr
    return root


def test_the_page_has_what_the_test_looks_for():
    assert list(FILES) == ["film/pyproject.toml", "film/sgpn_film.py", "film.yml"]
    assert COMMANDS == ["pip install -e film", "sgpn options check film.yml", "sgpn train film.yml --data faces"]


def test_the_fusion_is_in_the_network_and_learns(trained):
    with safe_open(trained / "experiments/film/models/film_2.safetensors", "np") as file:
        assert json.loads(file.metadata()["metadata"])["packages"] == {"ChannelFusion": "sgpn-film==1.0"}
        gates = [file.get_tensor(key) for key in file.keys() if key.endswith("fusion.gate")]  # noqa: SIM118 (no mapping)
    assert len(gates) == 8  # two at each scale from 8 to 64
    assert any(np.abs(gate).max() > 0 for gate in gates)


def test_the_loss_is_in_the_log_beside_the_inherited_ones(trained):
    lines = [json.loads(line) for line in (trained / "experiments/film/log/train.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["phase"] == "train"][-1]
    assert last["step"] == 2 and last["l_edges"] > 0 and {"l_pixel", "l_perceptual"} <= set(last)


def test_the_degradation_made_the_input_grey(trained):
    (sheet,) = (trained / "experiments/film/visualization").glob("2.*")
    picture = cv2.imread(str(sheet)).astype(float)
    # A row of five pictures; titles above them, its number at the left.
    top, left = picture.shape[0] - (SMALLEST_CELL + GAP), picture.shape[1] - 5 * (SMALLEST_CELL + GAP)
    degraded = picture[top : top + SMALLEST_CELL, left : left + SMALLEST_CELL]
    truth = picture[top : top + SMALLEST_CELL, -(SMALLEST_CELL + GAP) : -GAP]
    assert np.ptp(degraded, axis=2).mean() < 4 < np.ptp(truth, axis=2).mean()
    assert np.std(degraded - truth.mean(axis=2, keepdims=True)) > 5
