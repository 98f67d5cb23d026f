"""``sgpn bench`` on tiny networks: what it writes is what it measured and printed; GFLOP; what is refused."""

import json
import time

import cv2
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sgpn_arch.inference import memory
from sgpn_arch.inference.network import InferenceSGPN
from sgpn_arch.sgpn_arch import SGPN
from sgpn_model import cli
from sgpn_model.cli import bench

FLAGS = ["--seconds", "0.01", "--threads", "1", "--device", "cpu"]
STEPS = ["read", "detect", "cut out", "shape prior", "network", "paste back", "write", "other"]


@pytest.fixture(autouse=True)
def harmless(monkeypatch):
    """One thread, as other tests may run beside; and the C library is not told to keep memory, which would be for good."""
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_row_is_what_was_measured():
    calls = []
    table = bench.Table(torch.device("cpu"), 1, 0.2)
    row = table.measure("sleep", lambda: (calls.append(torch.get_num_threads()), time.sleep(0.02)), gflop=3.0)
    assert 20 <= row["ms"] < 60 and row["gflop_per_second"] == pytest.approx(3e3 / row["ms"])
    assert table.rows == [row] and set(calls) == {1}
    assert 3 <= row["runs"] < len(calls)  # the first calls do not count


def test_writes_what_it_measures_and_prints(tiny_weights, astronaut, tmp_path, monkeypatch, capsys):
    """The network sleeps 0.1 s: its own rows and its share of the restoration show that."""
    plain = InferenceSGPN.with_mask_picture
    monkeypatch.setattr(InferenceSGPN, "with_mask_picture", lambda *args: (time.sleep(0.1), plain(*args))[1])
    cv2.imwrite(str(tmp_path / "photo.png"), astronaut)
    report = tmp_path / "made" / "bench.json"
    flags = ["--weights", tiny_weights, "--photo", str(tmp_path / "photo.png"), "--precision", "fp32", *FLAGS]
    assert cli.main(["bench", *flags, "-o", str(report)]) == 0
    found = json.loads(report.read_text())
    network, whole, *steps = found["rows"]
    assert (network["what"], whole["what"]) == ("network, fp32", "restoration, fp32: 512x512 pixels, faces: 1")
    assert network["gflop"] > 0 and network["gflop_per_second"] == pytest.approx(1e3 * network["gflop"] / network["ms"])
    assert [row["what"].strip() for row in steps] == STEPS
    assert sum(row["share"] for row in steps) == pytest.approx(1)
    assert sum(row["ms"] for row in steps) == pytest.approx(whole["ms"])
    own = steps[STEPS.index("network")]
    assert own["ms"] >= 100 and network["ms"] < own["ms"] < whole["ms"]
    assert all(row["ms"] > 0 for row in steps)
    assert found["threads"] == 1 and found["versions"]["torch"] == torch.__version__.split("+")[0]
    printed = capsys.readouterr().out
    assert all(f"{row['what']}  " in printed and f"{row['ms']:.4g}" in printed for row in found["rows"])


def test_random_networks_in_each_precision(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "BACKBONE", "mobilenet_v2")
    monkeypatch.setattr(
        "sgpn_arch.inference.network.choose_precision", lambda name, _: {"auto": "bf16"}.get(name, name)
    )
    assert cli.main(["bench", "--size", "64", "--width", "0.02", *FLAGS, "-o", str(tmp_path / "bench.json")]) == 0
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["networks"] == "SGPN-64 of random weights, width 0.02, batch 1"
    assert [row["what"].partition(":")[0] for row in found["rows"][:3]] == [
        "network, fp32",
        "network, bf16",
        "restoration, bf16",
    ]


class Plugin(torch.nn.Module):
    """A network that another package made: it has no ``for_inference``."""

    size, coeff_dim = 64, 205

    def forward(self, photo, render, coeffs, return_masks=False):
        return (photo, {}) if return_masks else photo


def test_a_network_that_cannot_be_made_ready(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "BACKBONE", "mobilenet_v2")
    networks = Plugin(), *bench.random_networks(64, 0.02)[1:]
    monkeypatch.setattr(bench, "random_networks", lambda *_: networks)
    assert cli.main(["bench", *FLAGS, "-o", str(tmp_path / "bench.json")]) == 0
    network, whole, *steps = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert network["what"] == "network, as written" and whole["what"].startswith("restoration, as written")
    assert all(row["ms"] > 0 for row in steps)


def test_gflop_of_the_paper_network():
    """368 GFLOP, counted by hand of the released network: the encoder twice, the decoder with its masks."""
    with FakeTensorMode():  # nothing is computed
        network = SGPN(512, coeff_dim=205).requires_grad_(False)
        pictures, coeffs = torch.zeros(1, 3, 512, 512), torch.zeros(1, 205)
        with torch.no_grad():
            assert bench.count_gflop(lambda: network(pictures, pictures, coeffs)) == pytest.approx(368, rel=0.005)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--weights", "default", "--size", "64"], "--size and --width are of random networks"),
        (["--size", "100"], "size is 100"),
        (["--precision", "fp16", "--device", "cpu"], "'fp16' needs CUDA"),
        (["--weights", "nothing"], "weights 'nothing'"),
        (["--photo", "nowhere.jpg"], "nowhere.jpg"),
        (["--device", "tpu9"], "device: expected auto, cpu, cuda, cuda:NUMBER or mps, found 'tpu9'"),
    ],
)
def test_refusals(arguments, told, tmp_path, capsys):
    assert cli.main(["bench", *arguments, "-o", str(tmp_path / "out.json")]) == 1
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--batch", "0"], "--batch: expected a whole number of at least 1, found '0'"),
        (["--threads", "two"], "--threads: expected a whole number of at least 1, found 'two'"),
        (["--seconds", "inf"], "--seconds: expected a number above 0, found 'inf'"),
        (["--precision", "fp8"], "--precision: invalid choice: 'fp8'"),
    ],
)
def test_wrong_usage(arguments, told, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["bench", *arguments])
    assert told in capsys.readouterr().err
