"""Every example runs as it stands, in a folder of its own, and leaves or says what it promises; the notebooks' cells too."""

import json
import re
import runpy
from pathlib import Path

import cv2
import pytest
import torch

from sgpn_arch.registry import ARCH_REGISTRY, LOSS_REGISTRY
from sgpn_data.astronaut import degraded_astronaut
from sgpn_data.degradation import DEGRADATIONS

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture
def ran(tmp_path, tmp_path_factory, monkeypatch, capsys):
    """Runs an example in a fresh folder and returns that folder and what was printed; registered parts are forgotten after."""
    # Which engine is fastest is measured once for all, and kept outside the user's home.
    monkeypatch.setenv("SGPN_HOME", str(tmp_path_factory.getbasetemp() / "home"))
    monkeypatch.chdir(tmp_path)
    threads, state = cv2.getNumThreads(), torch.get_rng_state()

    def run(name: str) -> tuple[Path, str]:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        return tmp_path, capsys.readouterr().out

    yield run
    for parts in (ARCH_REGISTRY._obj_map, LOSS_REGISTRY._obj_map, DEGRADATIONS):
        for name in [name for name, part in parts.items() if part.__module__ == "__main__"]:
            del parts[name]
    cv2.setNumThreads(threads)
    torch.set_rng_state(state)


def test_restore_in_five_lines(ran, astronaut):
    folder, told = ran("restore_in_five_lines")
    restored = cv2.imread(str(folder / "restored.png"))
    assert "1 face" in told and restored.shape == astronaut.shape
    bad, around = degraded_astronaut(), (slice(20, 230), slice(110, 330))  # the face
    assert cv2.PSNR(restored[around], astronaut[around]) > cv2.PSNR(bad[around], astronaut[around]) + 0.2


def test_serve_with_threads(ran):
    folder, told = ran("serve_with_threads")
    answers = [cv2.imread(str(folder / f"answer_{number}.png")) for number in range(4)]
    assert "four photos" in told and all(answer.shape == (512, 512, 3) for answer in answers)
    assert (answers[0] != answers[3]).any()


@pytest.mark.slow
def test_own_parts(ran):
    folder, _ = ran("own_parts")
    said = (folder / "experiments/own/log/train.jsonl").read_text()
    assert "contrast" in said and (folder / "experiments/own/models/own_2.safetensors").is_file()


def test_swap_the_regressor(ran):
    _, told = ran("swap_the_regressor")
    assert re.search(r"ours: [\d,]+ weights, 205 coefficients, 68 landmarks", told)


def test_turn_a_face(ran):
    import trimesh

    folder, _ = ran("turn_a_face")
    views = cv2.imread(str(folder / "turned.png"))
    left, front, right = (views[:, 256 * k : 256 * (k + 1)].astype(int) for k in (1, 3, 5))
    assert views.shape == (256, 6 * 256, 3) and abs(left - front).mean() > 5 < abs(right - front).mean()
    mesh = trimesh.load(folder / "face.glb", force="mesh")
    assert len(mesh.faces) > 1000 and 0.1 < mesh.extents[1] < 0.4  # metres


def test_nearly_lost_face(ran):
    folder, _ = ran("nearly_lost_face")
    picture = cv2.imread(str(folder / "nearly_lost.jpg"))
    assert picture.shape[1] > 4 * 256 and picture.std() > 40


def test_enlarge_four_times(ran):
    folder, told = ran("enlarge_four_times")
    bicubic, restored = (float(found) for found in re.findall(r"([\d.]+) dB", told))
    assert 15 < bicubic < 50 and 15 < restored < 50 and (folder / "enlarged.png").is_file()


def test_fill_a_hole(ran):
    folder, told = ran("fill_a_hole")
    changed = int(re.search(r"filled.jpg: (\d+) of", told)[1])
    assert 1200 < changed < 3600  # the scratch and the blot, and two pixels around them
    assert cv2.imread(str(folder / "filled.jpg")).shape[1] > 4 * 200


@pytest.mark.slow
def test_compare_with_another_restorer(ran):
    folder, told = ran("compare_with_another_restorer")
    assert "| median" in told and "default weights" in told
    assert {path.name for path in (folder / "other").iterdir()} == {p.name for p in (folder / "inputs").glob("*.png")}


def test_gfpgan_in_our_place(ran):
    pytest.importorskip("gfpgan", reason="pip install --no-deps gfpgan")
    _, told = ran("gfpgan_in_our_place")
    assert "GFPGANv1Clean: (1, 3, 64, 64)" in told


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks(path, ran, monkeypatch):
    """The cells, one after the other in one namespace, as a kernel would run them."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict = {}
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "notebooks are kept without outputs"
            exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), names)
    assert len(names) > 5


def test_every_example_is_tested_and_listed():
    tests = Path(__file__).read_text(encoding="utf-8")
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in FOLDER.glob("*.py"):
        assert f'ran("{path.stem}")' in tests and f"]({path.name})" in listed
    assert all(f"]({path.name})" in listed for path in FOLDER.glob("*.ipynb"))
