"""pytest-benchmark of a training step of the joint stage on noise: ordinary, with R1, and on CUDA without our kernels.

``SIZE=256 WIDTH=0.25 BATCH=2 PRECISION=bf16 pytest tests/benchmarks/test_training_speed.py --benchmark-enable`` measures, by
default at the paper's size; otherwise each kind of step is made once, on tiny networks.
"""

import contextlib
import os

import pytest
import torch

from sgpn_arch.ops import plain_operations
from sgpn_data.alignment import template_points
from sgpn_model.config.registries import fill_registries
from sgpn_model.train.joint_model import SGPNModel

ADAM = {"type": "Adam", "lr": 1e-5}  # so small that a thousand steps change little


def build_model(size: int, width: float, precision: str, backbone: str, device: str) -> SGPNModel:
    """The joint stage on random networks, as ``sgpn train`` would build it."""
    fill_registries()
    torch.manual_seed(0)
    options = {
        "name": "bench",
        "model_type": "SGPNModel",
        "precision": precision,
        "datasets": {"train": {"type": "FaceRestorationDataset", "dataroot": "noise", "size": size}},  # never opened
        "network_g": {"type": "SGPN", "coeff_dim": 205, "size": size, "width": width},
        "network_d": {"type": "SGPNDiscriminator", "size": size, "width": width},
        "network_shape": {"type": "D3DFR", "id_dim": 80, "exp_dim": 52, "tex_dim": 40, "backbone": backbone},
        "train": {
            "total_iter": 1000,
            "losses": {"pixel": {"type": "L1Loss"}, "perceptual": {"type": "MobileNetPerceptualLoss"}},
            **dict.fromkeys(("optim_g", "optim_d", "optim_shape"), ADAM),
        },
    }
    return SGPNModel(options, torch.device(device))


def noise(batch: int, size: int) -> dict:
    """A batch as the data set gives it: pictures of noise, and points where an aligned face has them."""
    lq, hq = (torch.rand(batch, 3, size, size) * 2 - 1 for _ in range(2))
    points = torch.tensor(template_points("ffhq", size), dtype=torch.float32).repeat(batch, 1, 1)
    landmarks = torch.full((batch, 68, 2), torch.nan)
    return {"lq": lq, "hq": hq, "points5": points, "landmarks68": landmarks, "path": [""] * batch}


@pytest.fixture(scope="module")
def step(measuring):
    """A function that makes the step of a number; steps 0, 16, ... have R1."""
    given = os.environ if measuring else {"SIZE": "64", "WIDTH": "0.02"}
    size, batch = int(given.get("SIZE", 512)), int(given.get("BATCH", 1))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = "resnet50" if measuring else "mobilenet_v2"
    precision = given.get("PRECISION", "fp32")
    model, data = build_model(size, float(given.get("WIDTH", 1)), precision, backbone, device), noise(batch, size)

    def train(number: int) -> SGPNModel:
        model.train_step([data], number)
        if device == "cuda":
            torch.cuda.synchronize()
        return model

    threads = torch.get_num_threads()
    torch.set_num_threads(threads if measuring else 1)
    yield train
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", ["ordinary", "with R1", "kernels off"])
def test_step(benchmark, step, kind):
    if kind == "kernels off" and not torch.cuda.is_available():
        pytest.skip("a CPU has no kernels of ours")
    benchmark.group = "training step"
    with plain_operations() if kind == "kernels off" else contextlib.nullcontext():
        model = benchmark(step, 0 if kind == "with R1" else 1)
    assert all(value.isfinite().all() for value in model.networks["network_g"].parameters())
