"""Training that survives: many processes, accumulation, being killed, full disks, broken numbers; and what it logs."""

import contextlib
import errno
import itertools
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from oracles.tiny_stage import TinyModel
from sgpn_arch import build_network
from sgpn_arch.errors import OptionError
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.layers import minibatch_stddev
from sgpn_arch.state_dicts import tensors_in
from sgpn_data.face_dataset import LoaderOptions
from sgpn_data.sheet import SMALLEST_CELL
from sgpn_model.config.registries import fill_registries
from sgpn_model.config.sections import best_rule, read_dataset
from sgpn_model.train import distributed
from sgpn_model.train import loop as train
from sgpn_model.train.batches import BatchSampler, TrainingBatches, build_dataset
from sgpn_model.train.log import RunLog, RunningMeans, keep_lines
from sgpn_model.train.saving import Diverged, SaveError, Saver, read_state, write_state
from sgpn_model.train.training_model import mean_log
from sgpn_model.weights.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[3]
IMAGES, SIZE = 12, 16
CPU = torch.device("cpu")
TIMINGS = {"images_per_s", "data_wait"}


# -- Material ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pictures(tmp_path_factory, astronaut):
    """Twelve pictures of 16 px, cut out of the astronaut."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(IMAGES):
        x, y = 100 + 16 * number, 40 + 20 * (number % 5)
        picture = cv2.resize(astronaut[y : y + 96, x : x + 96], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / f"{number:02}.png"), picture)
    return folder


@pytest.fixture(autouse=True)
def process_settings():
    """Training seeds the process and sets threads and signal handlers; other tests should not notice."""
    threads, torch_threads, state = cv2.getNumThreads(), torch.get_num_threads(), torch.get_rng_state()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    assert handlers == {number: signal.getsignal(number) for number in handlers}
    cv2.setNumThreads(threads)
    torch.set_num_threads(torch_threads)
    torch.set_rng_state(state)


def dataset_options(pictures, **changes):
    return {
        "type": "FaceRestorationDataset",
        "dataroot": str(pictures),
        "size": SIZE,
        "degradation": None,
        "batch_size_per_gpu": 2,
        **changes,
    }


def tiny_options(pictures, folder, name="tiny", **train_options):
    adam = {"type": "Adam", "lr": 2.0e-3, "betas": [0.5, 0.99], "eps": 1.0e-3}
    return {
        "name": name,
        "model_type": "TinyModel",
        "manual_seed": 3,
        "num_threads": 1,
        "device": "cpu",
        "datasets": {"train": dataset_options(pictures), "val": dataset_options(pictures)},
        "network_g": {"type": "TinyNet"},
        "network_d": {"type": "TinyNet", "judge": True},
        "path": {"experiments_root": str(folder)},
        "train": {"total_iter": 8, "noise": 0.3, "optim_g": adam, "optim_d": adam, **train_options},
        "val": {"val_freq": 100, "save_images": 0},
        "logger": {"print_freq": 1, "save_checkpoint_freq": 2, "use_tb_logger": False},
    }


def write(folder, options, name=None):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name or options['name']}.yml"
    path.write_text(yaml.safe_dump(options))
    return str(path)


def run(folder, options, *overrides, **settings):
    return train.run(write(folder, options), overrides, **settings)


def lines(experiment, phase=None):
    """What was logged, without what the clock says."""
    found = [json.loads(line) for line in (experiment / "log" / "train.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in TIMINGS}
        for line in found
        if phase in (None, line["phase"])
    ]


def numbers(line):
    return {key: value for key, value in line.items() if key != "phase"}


def names(folder):
    return {path.name for path in folder.iterdir()}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def checkpoints(folder):
    """What is in each file of weights. Their bytes differ: safetensors writes metadata in any order."""
    found = {path.name: load_checkpoint(path) for path in folder.iterdir()}
    return {name: (checkpoint.weights, checkpoint.metadata) for name, checkpoint in found.items()}


def build_model(options):
    fill_registries()
    torch.manual_seed(0)
    return TinyModel(options, CPU)


def weights_of(model):
    return {f"{name}.{key}": value for name, net in model.networks.items() for key, value in net.state_dict().items()}


def environment():
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


# -- Who gets what ----------------------------------------------------------------------------------------------------


class TestBatchSampler:
    def take(self, count, **settings):
        return list(itertools.islice(BatchSampler(**settings), count))

    @given(
        length=st.integers(12, 40), batch=st.integers(1, 3), accumulate=st.integers(1, 2), world=st.integers(1, 2),
        step=st.integers(0, 9),
    )  # fmt: skip
    def test_the_shares_make_up_the_batch_of_one_process(self, length, batch, accumulate, world, step):
        (whole,) = self.take(1, length=length, batch_size=batch * accumulate * world, seed=5, step=step)
        settings = dict(length=length, batch_size=batch, seed=5, step=step, accumulate=accumulate, world=world)
        shares = [part for rank in range(world) for part in self.take(accumulate, rank=rank, **settings)]
        assert all(len(share) == batch for share in shares)
        assert sorted(draw for share in shares for draw in share) == sorted(whole)

    def test_an_epoch_has_every_image_once_and_the_next_another_order(self):
        batches = self.take(8, length=10, batch_size=2, seed=0)
        first, second = batches[:5], batches[5:]
        assert sorted(draw for batch in first for draw in batch) == [(0, index) for index in range(10)]
        assert all(epoch == 1 for batch in second for epoch, _ in batch)
        assert [index for batch in first[:3] for _, index in batch] != [index for batch in second for _, index in batch]

    def test_starts_anywhere_as_if_it_had_never_stopped(self):
        settings = dict(length=11, batch_size=2, seed=1, accumulate=2)
        straight = self.take(12, **settings)
        for step in range(1, 5):
            assert self.take(4, step=step, **settings) == straight[2 * step : 2 * step + 4]

    @pytest.mark.parametrize(("accumulate", "world"), [(1, 2), (2, 1), (2, 2)])
    def test_minibatch_stddev_groups_stay_together(self, accumulate, world):
        """The statistic of 16 samples in groups of 4 is that of each share of them."""
        shares = accumulate * world
        values = torch.randn(16, 3, 2, 2)
        settings = dict(length=16, seed=2)
        (whole,) = self.take(1, batch_size=16, **settings)
        expected = dict(zip(whole, minibatch_stddev(values, 4)[:, -1, 0, 0].tolist(), strict=True))
        value_of = dict(zip(whole, values, strict=True))
        for rank in range(world):
            batches = self.take(
                accumulate, batch_size=16 // shares, accumulate=accumulate, rank=rank, world=world, **settings
            )
            for batch in batches:
                found = minibatch_stddev(torch.stack([value_of[draw] for draw in batch]), 4)[:, -1, 0, 0]
                assert found.tolist() == pytest.approx([expected[draw] for draw in batch])


class DrawingDataset(torch.utils.data.Dataset):
    """Items are the numbers that the global generators give, and the epoch, kept as a plain attribute."""

    def __init__(self):
        self.epoch = -1

    def __len__(self):
        return 4

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        drawn = [torch.rand(()).item(), np.random.rand(), random.random()]
        return {"drawn": torch.tensor(drawn, dtype=torch.float64), "epoch": self.epoch, "index": index}


class TestWorkers:
    def test_outlive_an_epoch_and_are_seeded_per_item(self):
        """Two workers over three epochs; a run that begins in the middle draws the same."""
        opt = LoaderOptions(batch_size_per_gpu=2, num_worker_per_gpu=2)
        before = torch.get_rng_state()
        batches = TrainingBatches(DrawingDataset(), opt, seed=1, step=0)
        straight = [next(batches) for _ in range(6)]
        batches.close()
        later = TrainingBatches(DrawingDataset(), opt, seed=1, step=3)
        resumed = [next(later) for _ in range(3)]
        later.close()
        assert torch.equal(before, torch.get_rng_state())
        assert [batch["epoch"].tolist() for batch in straight] == [[n, n] for n in (0, 0, 1, 1, 2, 2)]
        for one, other in zip(straight[3:], resumed, strict=True):
            assert torch.equal(one["drawn"], other["drawn"])
        drawn = torch.cat([batch["drawn"] for batch in straight])
        assert len(drawn.unique()) == drawn.numel()

    def test_give_what_the_main_process_gives(self, pictures):
        """Our dataset keeps its epoch in memory that workers share; with prefetching they are at different ones."""
        fill_registries()

        def paths(workers):
            section = dataset_options(pictures, num_worker_per_gpu=workers, batch_size_per_gpu=4)
            batches = TrainingBatches(build_dataset(section, "train"), read_dataset(section), seed=1, step=0)
            taken = [next(batches) for _ in range(9)]
            batches.close()
            return taken

        for one, other in zip(paths(0), paths(2), strict=True):
            assert one["path"] == other["path"] and torch.equal(one["hq"], other["hq"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupted_picture_is_counted_once(pictures, tmp_path, workers):
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    (folder / "05.png").write_bytes(b"no picture")
    options = tiny_options(folder, tmp_path, total_iter=12)
    options["datasets"]["train"]["num_worker_per_gpu"] = workers
    del options["datasets"]["val"]
    counts = [line.get("unusable", 0) for line in lines(run(tmp_path, options))]
    assert counts == sorted(counts) and counts[5] == counts[-1] == 1, "it was drawn in each of the two epochs"


# -- Many processes, and many batches ---------------------------------------------------------------------------------


def joint_options(folder, faces, batch, name):
    """The joint stage with every loss on. Adam's large eps keeps it from dividing rounding errors by each other."""
    dims = MorphableModel.open().dims
    tiny = {"size": 64, "width": 0.02, "max_channels": 8}
    adam = {"type": "Adam", "lr": 1.0e-3, "betas": [0.0, 0.99], "eps": 1.0e-2}
    options = tiny_options(faces, folder, name)
    sections = {"size": 64, "batch_size_per_gpu": batch, "degradation": {"preset": "gfpgan", "reference_size": 512}}
    shape = {"type": "TinyD3DFR"}
    shape.update(zip(("id_dim", "exp_dim", "tex_dim"), dims, strict=True))
    options["path"]["pretrain_network_shape"] = random_regressor(folder / "regressor.safetensors", shape)
    return {
        **options,
        "model_type": "SGPNModel",
        "datasets": {phase: dataset_options(faces, **sections) for phase in ("train", "val")},
        "network_g": {"type": "SGPN", **tiny, "style_dim": 16, "latent_dim": 8, "coeff_dim": sum(dims) + 33},
        "network_d": {"type": "SGPNDiscriminator", **tiny, "stddev_group": 2},
        "network_shape": shape,
        "val": {"val_freq": 100, "save_images": 3},
        "train": {
            "total_iter": 2,
            "optim_g": adam,
            "optim_d": adam,
            "optim_shape": {**adam, "lr": 1.0e-6},
            "losses": {"pixel": {"type": "L1Loss"}, "perceptual": {"type": "MobileNetPerceptualLoss"}},
            "gan": {"loss_weight": 0.1, "r1_every": 2},
            "grad_clip": 50.0,
        },
    }


def random_regressor(path, network_options):
    """A fresh regressor sees the mean face in every picture; this one does not, so that landmark losses say something."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(network_options)
    with torch.no_grad():
        for head in network.final_layers:
            head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * 0.01)
    save_checkpoint(path, {"network_shape": network.state_dict()}, {"archs": {"network_shape": network_options}})
    return str(path)


@pytest.fixture(scope="session")
def faces(tmp_path_factory, astronaut):
    folder = tmp_path_factory.mktemp("faces")
    for number in range(5):
        face = cv2.resize(
            astronaut[40:168, 155 + 4 * number : 283 + 4 * number], (64, 64), interpolation=cv2.INTER_AREA
        )
        cv2.imwrite(str(folder / f"{number}.png"), face)
    return folder


def test_two_processes_train_as_one(faces, pictures, tmp_path):
    """torchrun and gloo, two faces each, against one process with four; the five validation faces are shared out."""
    options = joint_options(tmp_path / "one", faces, 4, "joint")
    one = run(tmp_path, options)
    both = tmp_path / "two"
    shared_options = joint_options(both, faces, 2, "joint")
    shared_options["path"]["pretrain_network_shape"] = options["path"]["pretrain_network_shape"]
    write(both, shared_options)
    write(both, tiny_options(pictures, both, "poison", poison=3))
    write(both, tiny_options(pictures, both, "stop"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command += ["oracles.two_processes", str(both)]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-4000:]

    for phase in ("train", "val"):
        for straight, shared in zip(lines(one, phase), lines(both / "joint", phase), strict=True):
            assert straight.keys() == shared.keys()
            for key in straight.keys() - {"phase"}:
                # Gradients jump where an activation or a pixel's error passes through zero; a last bit can do that.
                error = 2e-3 if key.startswith("grad_") else 1e-4
                assert shared[key] == pytest.approx(straight[key], rel=error, abs=1e-6), (phase, key)
    assert {"l_adv", "l_r1", "l_mesh", "grad_optim_g"} <= lines(one)[0].keys() and lines(one)[0]["l_landmark3d"] > 0
    states = [torch.load(root / "training_states" / "2.state") for root in (one, both / "joint")]
    before = build_first(options)
    for name, network in states[0]["networks"].items():
        moved = [value - before[name][key] for key, value in network.items() if value.is_floating_point()]
        apart = [
            value - states[1]["networks"][name][key] for key, value in network.items() if value.is_floating_point()
        ]
        size, distance = (torch.cat([part.flatten() for part in parts]).norm() for parts in (moved, apart))
        assert size > 0 and distance < 5e-3 * size, name
    assert len(states[1]["processes"]) == 2
    sheets = [cv2.imread(str(root / "visualization" / "2.jpg")).astype(float) for root in (one, both / "joint")]
    assert sheets[0].shape[0] > 3 * SMALLEST_CELL and np.abs(sheets[0] - sheets[1]).mean() < 1

    outcomes = [json.loads((both / f"outcome_{rank}.json").read_text()) for rank in range(2)]
    for outcome in outcomes:
        kind, message = outcome["poison"]
        assert (
            kind == "Diverged" and "step 4: in process 1: the loss of optim_g is nan because of l_poisoned" in message
        )
        assert "poison_2.safetensors" in message
        assert outcome["stop"] == ["TrainingStopped", str(128 + signal.SIGTERM)]
    assert names(both / "poison" / "training_states") == {"2.state"}
    # Told in its third step; the other process learns of it there, and both end after the same one.
    assert names(both / "stop" / "training_states") == {"2.state", "3.state"}


def build_first(options):
    from sgpn_model.train.joint_model import SGPNModel

    torch.manual_seed(options["manual_seed"])
    return {name: network.state_dict() for name, network in SGPNModel(options, CPU).networks.items()}


def test_accumulated_batches_are_one_large_batch(pictures, tmp_path):
    """Three batches of two against one of six, with adversarial loss, R1 and clipping."""
    runs = []
    for name, batch, accumulate in (("large", 6, 1), ("small", 2, 3)):
        changes = {"noise": 0.0, "gan": {"r1_every": 2}, "grad_clip": 0.5, "total_iter": 5, "accumulate": accumulate}
        options = tiny_options(pictures, tmp_path, name, **changes)
        options["datasets"]["train"]["batch_size_per_gpu"] = batch
        runs.append(run(tmp_path, options))
    for large, small in zip(*(lines(path, "train") for path in runs), strict=True):
        del large["seen"], small["seen"]
        assert numbers(small) == pytest.approx(numbers(large), rel=1e-5)
    weights = [torch.load(path / "training_states" / "5.state")["networks"] for path in runs]
    for name in weights[0]:
        for key, value in weights[0][name].items():
            assert torch.allclose(value, weights[1][name][key], atol=1e-6), (name, key)


def test_an_optimiser_may_step_twice_in_an_accumulated_step(pictures, tmp_path, monkeypatch):
    """Each of its steps has the mean of its own gradients; what a backward pass leaves elsewhere is not added up."""
    model = build_model(tiny_options(pictures, tmp_path))
    weight = model.networks["network_g"].last.bias
    seen = []
    monkeypatch.setattr(model.optimizers["optim_g"], "step", lambda: seen.append(weight.grad.clone()))

    def optimize(step):
        model.log = {}
        for factor in (1.0, 10.0):
            model.step_optimizer("optim_g", factor * model.batch["scale"] * weight.sum())

    monkeypatch.setattr(model, "optimize_parameters", optimize)
    model.train_step([{"scale": torch.tensor(value)} for value in (1.0, 2.0, 6.0)], 0)
    assert [gradient.tolist() for gradient in seen] == [[3.0] * 3, [30.0] * 3]
    assert not model._held


def test_the_average_moves_once_a_step(pictures, tmp_path, monkeypatch):
    model = build_model(tiny_options(pictures, tmp_path, ema_decay=0.5))
    network, average = (group["network_g"].last.bias for group in (model.networks, model.ema))
    monkeypatch.setattr(model, "feed_data", lambda batch: None)
    monkeypatch.setattr(model, "optimize_parameters", model.update_average)
    with torch.no_grad():
        network.fill_(1.0)
        average.zero_()
    model.train_step([{}, {}, {}], 1000)
    assert average.tolist() == [0.5] * 3


def test_mean_log():
    assert mean_log([{"a": 1.0, "b": 4.0}, {"a": 3.0}]) == {"a": 2.0, "b": 4.0}


class TestAlone:
    def test_a_process_on_its_own_shares_nothing(self):
        parameter = torch.nn.Parameter(torch.ones(2))
        assert distributed.average_gradients([parameter], (False, True), CPU) == [False, True]
        assert parameter.grad is None
        assert distributed.everyones(3) == [3] and distributed.once(lambda: 4) == 4
        distributed.join(CPU)
        assert not torch.distributed.is_initialized()

    def test_a_process_without_a_device_of_its_own_is_told(self, monkeypatch):
        monkeypatch.setenv("LOCAL_RANK", "3")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        with pytest.raises(OptionError, match=r"process 4 on this machine.*sees 2 CUDA"):
            distributed.place(torch.device("cuda"))
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert distributed.place(torch.device("cuda")) == torch.device("cuda", 1)
        assert distributed.place(CPU) == CPU


# -- Surviving --------------------------------------------------------------------------------------------------------


def full_options(pictures, folder):
    """Everything that has a state: noise from three generators, two optimisers, accumulation, best, lazy losses."""
    options = tiny_options(pictures, folder, "run", gan={"r1_every": 3}, accumulate=2, warmup_iter=9, schedule="cosine")
    options["train"]["total_iter"] = 30
    options["val"] = {"val_freq": 3, "save_images": 0, "best": "min:mse_output"}
    options["logger"].update(print_freq=4, save_checkpoint_freq=5)
    return options


@pytest.fixture(scope="session")
def straight(pictures, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield run(folder, full_options(pictures, folder))
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


def assert_same_end(one, other):
    assert_equal(checkpoints(one / "models"), checkpoints(other / "models"))
    assert lines(one) == lines(other)
    states = [torch.load(path / "training_states" / "30.state") for path in (one, other)]
    assert_equal(*states)


def assert_equal(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_equal(*pair)
    else:
        assert one == other


def test_a_killed_run_ends_as_if_it_had_not_been(pictures, straight, tmp_path):
    """SIGKILL at a random moment; what the process left behind, half a line or half a file, does not matter."""
    options = full_options(pictures, tmp_path)
    options["datasets"]["train"]["num_worker_per_gpu"] = 1
    moment = random.SystemRandom().uniform(7, 28)
    process = subprocess.Popen(
        [sys.executable, "-m", "oracles.tiny_stage", "train", write(tmp_path, options)],
        env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = tmp_path / "run" / "log" / "train.jsonl"
    while process.poll() is None and reached(log) < moment:
        time.sleep(0.001)
    process.kill()
    errors = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, f"at step {moment}: {errors[-2000:]}"
    (tmp_path / "run" / "training_states" / ".30.state.left").write_text("half a file")
    with open(log, "a") as file:
        file.write('{"step": 2, "pha')
    resumed = run(tmp_path, options, auto_resume=True)
    assert_same_end(straight, resumed)
    assert names(resumed / "training_states") == {"25.state", "30.state"}


def reached(log):
    """The step of the last line that is whole, and the part of a step that goes with it: kills lie between lines too."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return json.loads(log.read_text().splitlines()[-1])["step"]
    return 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends(pictures, straight, tmp_path, monkeypatch, caplog, number):
    options = full_options(pictures, tmp_path)
    with monkeypatch.context() as patch:
        signal_in_step(patch, 6, number)
        with pytest.raises(SystemExit) as stopped, caplog.at_level(logging.WARNING, "sgpn"):
            run(tmp_path, options, "train.total_iter=30")
    assert stopped.value.code == 128 + number
    assert "stopped after step 7 of 30" in caplog.text and "7.state" in caplog.text
    assert f"sgpn train {tmp_path / 'run.yml'} --auto-resume --set train.total_iter=30" in caplog.text
    experiment = tmp_path / "run"
    assert names(experiment / "training_states") == {"5.state", "7.state"}
    assert "run_7.safetensors" in names(experiment / "models")
    assert_same_end(straight, run(tmp_path, options, auto_resume=True))


def signal_in_step(patch, step, *numbers):
    original = TinyModel.optimize_parameters

    def optimize(model, now):
        if now == step and model._part == 0:
            for number in numbers:
                os.kill(os.getpid(), number)
                time.sleep(0.01)
        original(model, now)

    patch.setattr(TinyModel, "optimize_parameters", optimize)


def test_a_second_ctrl_c_stops_at_once(pictures, tmp_path, monkeypatch):
    options = full_options(pictures, tmp_path)
    signal_in_step(monkeypatch, 6, signal.SIGINT, signal.SIGINT)
    monkeypatch.setattr(train, "SAME_SIGNAL", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, options)
    assert names(tmp_path / "run" / "training_states") == {"5.state"}


def test_a_signal_that_comes_twice_at_once_is_one(pictures, tmp_path, monkeypatch):
    """Ctrl-C reaches the processes that torchrun started from the terminal, and again from torchrun."""
    signal_in_step(monkeypatch, 6, signal.SIGINT, signal.SIGINT)
    with pytest.raises(train.TrainingStopped):
        run(tmp_path, full_options(pictures, tmp_path))


def first_tensor(content):
    """A row of numbers, none of them 0, whose bytes are nowhere else."""
    rows = (tensor for _, tensor in tensors_in(content) if tensor.is_floating_point() and tensor.ndim == 1)
    return next(row for row in rows if len(row) > 1 and row.all() and row[0] != row[1])


class TestDamage:
    def test_an_older_state_takes_the_place_of_a_damaged_one(self, pictures, straight, tmp_path, caplog):
        experiment = tmp_path / "run"
        shutil.copytree(straight, experiment)
        newest = experiment / "training_states" / "30.state"
        newest.write_bytes(newest.read_bytes()[:3000])
        with caplog.at_level(logging.WARNING, "sgpn"):
            run(tmp_path, full_options(pictures, tmp_path), auto_resume=True)
        assert "30.state: is damaged or incomplete" in caplog.text
        assert f"going on from {experiment / 'training_states' / '25.state'}" in caplog.text
        assert_same_end(straight, experiment)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda state: state.pop("step"), "30.state: is no training state: step: this option is missing"),
            (lambda state: state.update(step="30"), "step: expected a whole number of at least 0, found '30'"),
            (lambda state: state.update(step=30.0), "step: expected a whole number of at least 0, found 30.0"),
            (lambda state: state.update(step=29), "is of step 29, not of the one that its name says"),
            (lambda state: state.update(optimizers=[]), "optimizers: expected a mapping of options, found []"),
            (lambda state: first_tensor(state["networks"]).fill_(torch.nan), "holds NaN or infinity"),
            (lambda state: first_tensor(state["optimizers"]).fill_(torch.inf), "holds NaN or infinity"),
        ],
        ids=["no step", "text", "a fraction", "another step", "no optimisers", "NaN", "infinity"],
    )
    def test_states_with_something_wrong(self, straight, tmp_path, change, message):
        """Also where there is no checksum, as in states from before there were any."""
        state = torch.load(straight / "training_states" / "30.state")
        del state["sha256"]
        torch.save(state, tmp_path / "30.state")
        assert read_state(tmp_path / "30.state")["step"] == 30
        change(state)
        torch.save(state, tmp_path / "30.state")
        with pytest.raises(CheckpointError, match=re.escape(message)):
            read_state(tmp_path / "30.state")

    @pytest.mark.parametrize(
        "change",
        [
            lambda state: state["optimizers"]["optim_g"]["state"].clear(),
            lambda state: first_tensor(state["networks"])[:1].add_(1e-3),
            lambda state: state["loop"].update(best=1.0),
        ],
    )
    def test_a_state_that_was_changed_is_not_what_was_written(self, straight, tmp_path, change):
        state = torch.load(straight / "training_states" / "30.state")
        change(state)
        torch.save(state, tmp_path / "30.state")
        with pytest.raises(CheckpointError, match=r"30\.state: is damaged or was changed: its sha256"):
            read_state(tmp_path / "30.state")

    @pytest.mark.parametrize("with_checksum", [True, False])
    def test_a_flipped_bit_is_seen(self, straight, tmp_path, with_checksum):
        """Of a state without a checksum by those of the archive, which PyTorch does not look at."""
        state = torch.load(straight / "training_states" / "30.state")
        if not with_checksum:
            del state["sha256"]
        torch.save(state, tmp_path / "30.state")
        content = bytearray((tmp_path / "30.state").read_bytes())
        number = first_tensor(state["networks"])[:2].numpy().tobytes()
        content[content.index(number)] ^= 1
        (tmp_path / "30.state").write_bytes(content)
        with pytest.raises(CheckpointError, match="sha256" if with_checksum else "has another checksum"):
            read_state(tmp_path / "30.state")

    def test_a_state_full_of_nan_is_not_called_good(self, straight, tmp_path):
        experiment = tmp_path / "run"
        shutil.copytree(straight, experiment)
        state = read_state(experiment / "training_states" / "30.state")
        first_tensor(state["ema"]).fill_(torch.nan)
        del state["sha256"]
        write_state(experiment / "training_states" / "30.state", state)
        message = str(Saver(experiment, "run").diverged(FloatingPointError("no"), 31))
        assert "run_25.safetensors" in message and "30.state" not in message

    def test_expanded_tensors_come_back(self, tmp_path):
        state = {"step": 3, "loop": {}, "processes": [], "extra": {"once": torch.ones(1).expand(5)}}
        write_state(tmp_path / "3.state", {**state, "networks": {}, "ema": {}, "optimizers": {}})
        assert read_state(tmp_path / "3.state")["extra"]["once"].tolist() == [1.0] * 5

    def test_if_all_are_damaged_the_newest_is_named(self, pictures, straight, tmp_path):
        shutil.copytree(straight, tmp_path / "run")
        for path in (tmp_path / "run" / "training_states").iterdir():
            path.write_bytes(b"")
        with pytest.raises(CheckpointError, match=r"30\.state: is an empty file"):
            run(tmp_path, full_options(pictures, tmp_path), auto_resume=True)

    def test_going_on_from_an_older_state_puts_later_ones_away(self, pictures, straight, tmp_path):
        experiment = tmp_path / "run"
        shutil.copytree(straight, experiment)
        state = experiment / "training_states" / "25.state"
        run(tmp_path, full_options(pictures, tmp_path), f"path.resume_state={state}", "train.total_iter=26")
        assert names(experiment / "training_states") == {"25.state", "26.state", "30.state.unused"}
        assert max(line["step"] for line in lines(experiment)) == 26

    def test_an_experiment_that_begins_anew_is_archived(self, pictures, straight, tmp_path):
        experiment = tmp_path / "run"
        shutil.copytree(straight, experiment)
        run(tmp_path, full_options(pictures, tmp_path), "train.total_iter=5")
        (archived,) = tmp_path.glob("run_archived_*")
        assert_same_end(straight, archived)
        assert names(experiment / "training_states") == {"5.state"}
        assert max(line["step"] for line in lines(experiment)) == 5


def test_lines_after_a_step_are_taken_out(tmp_path):
    log = tmp_path / "train.jsonl"
    kept = '{"step": 1, "a": 2}\n{"step": 3}\n'
    log.write_text(kept + '{"step": 4}\nnoise\n{"step": 2')
    keep_lines(log, 3)
    assert log.read_text() == kept
    keep_lines(tmp_path / "none", 3)
    assert names(tmp_path) == {"train.jsonl"}


# -- What is kept -----------------------------------------------------------------------------------------------------


class TestRotation:
    @pytest.mark.parametrize(("keep", "expected"), [(1, [10]), (3, [6, 8, 10]), (0, [2, 4, 6, 8, 10])])
    def test_the_last_models_are_kept(self, pictures, tmp_path, keep, expected):
        options = tiny_options(pictures, tmp_path, total_iter=10)
        models = tmp_path / "tiny" / "models"
        models.mkdir(parents=True)
        for foreign in ("tiny_999.safetensors", "tiny_best.safetensors", "mine_2.safetensors"):
            (models / foreign).write_text("mine")
        run(tmp_path, options, f"logger.keep_last={keep}")
        foreign = {"tiny_999.safetensors", "tiny_best.safetensors", "mine_2.safetensors"}
        assert names(models) - foreign == {f"tiny_{step}.safetensors" for step in expected}
        assert foreign <= names(models)
        assert names(tmp_path / "tiny" / "training_states") == {"8.state", "10.state"}

    @pytest.mark.parametrize(("rule", "choose"), [("min:mse_output", min), ("max:mse_output", max)])
    def test_the_best_model_is_kept(self, pictures, tmp_path, rule, choose):
        options = tiny_options(pictures, tmp_path)
        options["val"] = {"val_freq": 1, "save_images": 0, "best": rule}
        experiment = run(tmp_path, options)
        best = choose(lines(experiment, "val"), key=lambda line: line["mse_output"])
        metadata = load_checkpoint(experiment / "models" / "tiny_best.safetensors").metadata
        assert metadata["step"] == best["step"]
        assert metadata["best"] == {"metric": "mse_output", "value": best["mse_output"]}

    def test_directions(self):
        fill_registries()
        assert best_rule("psnr_output") == ("psnr_output", True)
        assert best_rule("perceptual_mnv2_output") == ("perceptual_mnv2_output", False)
        assert best_rule("landmark_error_lq") == ("landmark_error_lq", False)
        assert best_rule("min:psnr") == ("psnr", False)


# -- What goes wrong --------------------------------------------------------------------------------------------------


class TestBrokenNumbers:
    def test_the_culprit_and_the_last_good_checkpoint_are_named(self, pictures, tmp_path):
        with pytest.raises(Diverged) as raised:
            run(tmp_path, tiny_options(pictures, tmp_path, poison=4, gan={"r1_every": 2}))
        experiment = tmp_path / "tiny"
        assert "step 5: the loss of optim_g is nan because of l_poisoned; " in str(raised.value)
        assert str(experiment / "models" / "tiny_4.safetensors") in str(raised.value)
        assert names(experiment / "training_states") == {"2.state", "4.state"}
        assert names(experiment / "models") == {"tiny_2.safetensors", "tiny_4.safetensors"}

    def test_before_the_first_checkpoint(self, pictures, tmp_path):
        with pytest.raises(Diverged, match="step 1: .*none was yet"):
            run(tmp_path, tiny_options(pictures, tmp_path, poison=0))

    def test_a_loss_above_the_limit(self, pictures, tmp_path):
        limit = "is .*, above train.max_loss \\(0.001\\) because of l_pixel"
        with pytest.raises(Diverged, match=f"step 1: the loss of optim_g {limit}"):
            run(tmp_path, tiny_options(pictures, tmp_path, max_loss=1e-3))

    def test_only_the_parts_of_the_loss_in_question_are_blamed(self, pictures, tmp_path):
        model = build_model(tiny_options(pictures, tmp_path, max_loss=5.0))
        bias = model.networks["network_g"].last.bias
        model.log = {"l_one": 4.0}
        model.step_optimizer("optim_g", bias.sum() * 0 + 4.0)
        model.log["l_two"] = -6.0
        with pytest.raises(FloatingPointError, match="is -6, above .* because of l_two;"):
            model.step_optimizer("optim_g", bias.sum() * 0 - 6.0)

    def test_weights_that_broke_in_the_last_step_are_not_saved(self, pictures, tmp_path, monkeypatch):
        step_optimizer = TinyModel.step_optimizer

        def break_it(model, names, loss):
            step_optimizer(model, names, loss)
            with torch.no_grad():
                model.networks["network_d"].last.bias.fill_(torch.inf if model.seen >= 8 else 0.0)

        monkeypatch.setattr(TinyModel, "step_optimizer", break_it)
        with pytest.raises(Diverged, match=r"step 4: networks: 'network_d.last.bias' holds NaN or infinity"):
            run(tmp_path, tiny_options(pictures, tmp_path))
        assert names(tmp_path / "tiny" / "training_states") == {"2.state"}


class TestFullDisk:
    @pytest.mark.parametrize(
        "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing")]
    )
    def test_the_checkpoint_before_survives(self, pictures, tmp_path, monkeypatch, error):
        experiment = tmp_path / "tiny"
        save, kept = torch.save, {}

        def full(state, file):
            if state["step"] == 4:
                kept.update(contents(experiment / "training_states"))
                Path(file).write_bytes(b"half")
                raise error
            save(state, file)

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(SaveError) as raised:
            run(tmp_path, tiny_options(pictures, tmp_path))
        message = str(raised.value)
        assert f"step 4: {experiment / 'training_states' / '4.state'} could not be written ({error})" in message
        assert "MB are free" in message and f"{experiment / 'training_states' / '2.state'}, of the" in message
        assert contents(experiment / "training_states").keys() - kept.keys() == set()
        monkeypatch.undo()
        resumed = run(tmp_path, tiny_options(pictures, tmp_path), auto_resume=True)
        straight = run(tmp_path / "straight", tiny_options(pictures, tmp_path / "straight"))
        assert_equal(*(load_checkpoint(path / "models" / "tiny_8.safetensors").weights for path in (resumed, straight)))

    def test_of_the_models(self, pictures, tmp_path, monkeypatch):
        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(
            SaveError, match=r"tiny_2\.safetensors could not be written.*no checkpoint was written before"
        ):
            run(tmp_path, tiny_options(pictures, tmp_path))
        assert not names(tmp_path / "tiny" / "models")

    def test_of_the_log(self, pictures, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(RunLog, "_write", full)
        with pytest.raises(SaveError, match=r"step 1: .*log could not be written"):
            run(tmp_path, tiny_options(pictures, tmp_path))


# -- What it tells ----------------------------------------------------------------------------------------------------


class TestLog:
    def test_lines_are_means_since_the_last(self, pictures, tmp_path):
        """Also of losses that are not computed at the steps that are printed."""
        options = tiny_options(pictures, tmp_path, gan={"r1_every": 3})
        every = lines(run(tmp_path, options), "train")
        options["name"] = "fourth"
        some = lines(run(tmp_path, options, "logger.print_freq=4"), "train")
        assert [line["step"] for line in some] == [4, 8]
        for start, line in zip((0, 4), some, strict=True):
            for key in ("l_pixel", "l_r1", "l_d"):
                values = [step[key] for step in every[start : start + 4] if key in step]
                assert line[key] == pytest.approx(np.mean(values))

    def test_running_means_go_on(self):
        means = RunningMeans()
        means.add({"a": 1.0})
        means = RunningMeans(json.loads(json.dumps(means.sums)))
        means.add({"a": 3.0, "b": 5.0})
        assert means.take() == {"a": 2.0, "b": 5.0} and means.take() == {}

    def test_speed_and_time_left(self, pictures, tmp_path, caplog):
        with caplog.at_level(logging.INFO, "sgpn"):
            run(tmp_path, tiny_options(pictures, tmp_path, total_iter=2))
        assert "step 1/2" in caplog.text and "left 0:00:0" in caplog.text and "images_per_s" in caplog.text

    def test_the_first_step_says_how_long_the_next_line_takes(self, pictures, tmp_path, caplog):
        """Else, on a slow machine, nothing is said for print_freq steps."""
        with caplog.at_level(logging.INFO, "sgpn"):
            folder = run(tmp_path, tiny_options(pictures, tmp_path, total_iter=5), "logger.print_freq=4")
        assert re.search(r"step 1 took [\d.]+ s; 4 more, at this pace 0:00:\d\d; a line every 4 steps", caplog.text)
        assert caplog.text.count("took") == 1
        assert [line["step"] for line in lines(folder, "train")] == [
            4,
            5,
        ]  # the means are over the same steps as before

    def test_the_end_names_the_model(self, pictures, tmp_path, caplog):
        with caplog.at_level(logging.INFO, "sgpn"):
            folder = run(tmp_path, tiny_options(pictures, tmp_path, total_iter=2))
        (named,) = re.findall(r"finished; the trained model is (\S+)", caplog.text)
        assert Path(named) == folder / "models" / "tiny_2.safetensors" and Path(named).is_file()


class TestWandb:
    def options(self, pictures, folder, **settings):
        options = tiny_options(pictures, folder, total_iter=2)
        options["logger"]["wandb"] = {"project": "faces", **settings}
        options["val"]["save_images"] = 2
        return options

    @pytest.fixture
    def module(self, monkeypatch):
        """A stand-in that writes down what it is called with."""
        fake = types.ModuleType("wandb")
        fake.calls, fake.logged, fake.ended = [], [], []
        fake.log = lambda values, step: fake.logged.append((step, values))
        fake.init = lambda **settings: (
            fake.calls.append(settings) or types.SimpleNamespace(log=fake.log, finish=lambda: fake.ended.append(True))
        )
        fake.Image = lambda rows: ("image", rows.shape)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        return fake

    def test_gets_scalars_and_pictures_and_goes_on_with_its_run(self, pictures, tmp_path, module):
        experiment = run(tmp_path, self.options(pictures, tmp_path, tags=["a"]))
        (settings,) = module.calls
        assert settings["project"] == "faces" and settings["name"] == "tiny" and settings["tags"] == ["a"]
        assert settings["config"]["model_type"] == "TinyModel" and settings["resume"] == "allow"
        logged = {key: (step, value) for step, values in module.logged for key, value in values.items()}
        assert logged["train/l_pixel"] == (2, lines(experiment, "train")[-1]["l_pixel"])
        assert logged["val/mse_output"][0] == 2 and logged["val/pictures"][0] == 2
        kind, (height, width, channels) = logged["val/pictures"][1]
        assert kind == "image" and height > 2 * SMALLEST_CELL and width > SMALLEST_CELL and channels == 3
        assert module.ended == [True]
        run(tmp_path, self.options(pictures, tmp_path), "train.total_iter=3", auto_resume=True)
        assert module.calls[1]["id"] == settings["id"]

    def test_is_missed_before_any_work_starts(self, pictures, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "wandb", None)
        with pytest.raises(OptionError, match="logger.wandb: Weights & Biases is not installed; pip install wandb"):
            run(tmp_path, self.options(pictures, tmp_path))
        assert not (tmp_path / "tiny").exists()


# -- Options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.accumulate=0", "train.accumulate: expected a whole number of at least 1"),
        ("train.max_loss=-1", "train.max_loss: expected a number of at least 0"),
        ("train.gan={r1_every: 0}", "train.gan.r1_every: expected a whole number of at least 1"),
        ("logger.keep_last=-1", "logger.keep_last: expected a whole number of at least 0"),
        ("logger.print_freq=0", "logger.print_freq: expected a whole number of at least 1"),
        ("logger.wandb={projct: x}", "logger.wandb.projct: unknown option.*'project'"),
        ("logger.wandb={name: x}", "logger.wandb.project: this option is missing"),
        ("val.best=sharpness", "val.best: is less or more of 'sharpness' better. Write min:sharpness"),
        ("val.best=psnr_outputs", "val.best: validation gives no 'psnr_outputs', but mse_output, psnr_output"),
        ("channels_last=sometimes", "channels_last: expected true, false or auto"),
        ("compile=inductr", "compile: expected true, false or one of .*inductor"),
        ("datasets.train.batch_size_per_gpu=13", "batch_size_per_gpu: 13 is more than the 12 images"),
        ("train.accumulate=7", r"batch_size_per_gpu: 2 x 7 = 14 is more than the 12 images"),
    ],
)  # fmt: skip
def test_bad_options_are_named_before_any_work_starts(pictures, tmp_path, override, message):
    with pytest.raises(OptionError, match=message):
        run(tmp_path, tiny_options(pictures, tmp_path), override)
    assert not (tmp_path / "tiny").exists()


def test_best_needs_something_to_validate_with(pictures, tmp_path):
    options = tiny_options(pictures, tmp_path)
    del options["datasets"]["val"]
    with pytest.raises(OptionError, match="val.best: there is no datasets.val"):
        run(tmp_path, options, "val.best=min:mse_output")


class TestSpeed:
    @pytest.mark.parametrize(("setting", "expected"), [(True, True), (False, False), ("auto", True)])
    def test_channels_last(self, pictures, tmp_path, setting, expected):
        model = build_model({**tiny_options(pictures, tmp_path), "channels_last": setting})
        weight = model.networks["network_g"].first.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) is expected
        assert weight.is_contiguous() is not expected

    def test_compiled_networks_learn_the_same(self, pictures, tmp_path):
        """A backend with autograd of its own, without the code generation; R1 differentiates twice, past it."""
        options = tiny_options(pictures, tmp_path, gan={"r1_every": 2}, total_iter=3)
        plain = run(tmp_path, options)
        options["name"] = "compiled"
        compiled = run(tmp_path, options, "compile=aot_eager")
        for one, other in zip(lines(plain), lines(compiled), strict=True):
            assert numbers(other) == pytest.approx(numbers(one), rel=1e-4)
        assert set(load_checkpoint(compiled / "models" / "compiled_3.safetensors").weights["network_g"]) == set(
            load_checkpoint(plain / "models" / "tiny_3.safetensors").weights["network_g"]
        )
