"""Devices: those that this machine has, and a clear word for all others."""

import pytest
import torch

from sgpn_arch.errors import OptionError
from sgpn_model import cli
from sgpn_model.config.device import choose_device


@pytest.fixture
def machine(monkeypatch):
    """Gives this machine so many CUDA devices, and perhaps Apple's."""

    def pretend(cuda=0, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


def test_apples_device_needs_autocast(machine, monkeypatch):
    """PyTorch 2.4 raises for it even where it is switched off."""
    machine(mps=True)
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda kind: kind != "mps")
    with pytest.raises(OptionError, match=r"device 'mps': needs PyTorch 2\.5 or newer"):
        choose_device("mps")


def test_those_that_are_there(machine):
    machine()
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    machine(cuda=2, mps=True)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("mps") == torch.device("mps")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "device 'cuda': PyTorch sees no CUDA device; use cpu or auto"),
        ("cuda:0", "PyTorch sees no CUDA device"),
        ("mps", "device 'mps': PyTorch sees no Apple GPU; use cpu or auto"),
        *[(name, f"cuda:NUMBER or mps, found '{name}'") for name in ("gpu", "xpu", "vulkan", "meta", "", "CPU")],
        *[(name, "cuda:NUMBER or mps, found") for name in ("cuda:-1", "cuda:\u0663", "cuda:1e9", "cpu\n")],
    ],
)  # fmt: skip
def test_those_that_are_not(machine, name, message):
    machine()
    with pytest.raises(OptionError, match=message):
        choose_device(name)


def test_a_number_too_high(machine):
    machine(cuda=2)
    with pytest.raises(OptionError, match="device 'cuda:9': PyTorch sees only cuda:0 to cuda:1"):
        choose_device("cuda:9")


def test_the_command_line_says_it_in_one_line(capsys, tiny_weights, tmp_path):
    arguments = ["restore", "--demo", "-o", str(tmp_path), "--weights", tiny_weights, "--device", "vulkan"]
    assert cli.main(arguments) != 0
    error = capsys.readouterr().err
    assert "found 'vulkan'" in error and "Traceback" not in error
