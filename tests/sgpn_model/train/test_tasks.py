"""The option files of the tasks: each loads, differs from its base only where the task does, and trains a step."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_model.config.reading import read_options
from sgpn_model.config.registries import fill_registries
from sgpn_model.train import loop as train
from sgpn_model.train.batches import build_dataset
from sgpn_model.train.joint_model import SGPNModel
from sgpn_model.weights.checkpoint import load_checkpoint

OPTIONS = Path(__file__).parents[3] / "options"
TASKS = ["sr_x4", "sr_x8", "sr_x16", "inpaint"]
SIZE = 64


@pytest.fixture(autouse=True)
def process_settings():
    """Training seeds the process and sets OpenCV's threads; other tests should not notice."""
    threads, state = cv2.getNumThreads(), torch.get_rng_state()
    yield
    cv2.setNumThreads(threads)
    torch.set_rng_state(state)


@pytest.fixture(scope="module")
def faces(tmp_path_factory, astronaut):
    folder = tmp_path_factory.mktemp("faces")
    for number in range(2):
        x = 155 + 8 * number
        picture = cv2.resize(astronaut[40:168, x : x + 128], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / f"{number}.png"), picture)
    return folder


def tiny(faces, folder):
    """What makes a step of any of the files quick: the key paths of ``--set``."""
    coefficients = sum(MorphableModel.open().dims) + 33
    datasets = [f"datasets.{phase}.{key}" for phase in ("train", "val") for key in ("dataroot={}", "size={}")]
    return [
        *(text.format(faces if "dataroot" in text else SIZE) for text in datasets),
        *(f"datasets.{phase}.batch_size_per_gpu=2" for phase in ("train", "val")),
        "datasets.train.num_worker_per_gpu=0",
        f"network_g={{type: SGPN, size: {SIZE}, width: 0.02, max_channels: 8, style_dim: 16, latent_dim: 8, "
        f"coeff_dim: {coefficients}}}",
        f"network_d={{type: SGPNDiscriminator, size: {SIZE}, width: 0.02, max_channels: 8}}",
        "network_shape={{type: TinyD3DFR, id_dim: {}, exp_dim: {}, tex_dim: {}}}".format(*MorphableModel.open().dims),
        "path.pretrain_network_shape=~",
        f"path.experiments_root={folder}",
        "device=cpu",
        "precision=fp32",
        "train.total_iter=1",
        "train.gan.start_iter=0",
        "val.save_images=1",
    ]


@pytest.mark.parametrize("task", TASKS)
def test_differs_from_blind_restoration_in_the_task_only(task):
    base, options = (
        read_options(OPTIONS / "train" / "sgpn_open_256.yml")[0],
        read_options(OPTIONS / "task" / f"{task}.yml")[0],
    )
    assert options.pop("name") == f"{base.pop('name')}_{task}"
    for phase in ("train", "val"):
        data, changed = base["datasets"][phase], options["datasets"][phase]
        for section in (data, changed):
            section.pop("degradation")
        assert (changed.pop("inpaint", None) is not None) == (task == "inpaint")
    assert options == base


@pytest.mark.parametrize("task", TASKS)
def test_what_the_network_is_given(task, faces, tmp_path):
    fill_registries()
    options = read_options(OPTIONS / "task" / f"{task}.yml", tiny(faces, tmp_path))[0]
    item = build_dataset(options["datasets"]["val"], "val")[0]
    lq, hq = (item[key].numpy().transpose(1, 2, 0) for key in ("lq", "hq"))
    if task == "inpaint":
        hole = item["mask"][0].numpy() > 0
        assert 0.05 - 1e-3 <= hole.mean() <= 0.35 + 1e-3
        assert np.array_equal(lq[~hole], hq[~hole]) and np.allclose(lq[hole], 1, atol=1e-6)
        return
    factor = int(task.removeprefix("sr_x"))
    means = hq.reshape(SIZE // factor, factor, SIZE // factor, factor, 3).mean(axis=(1, 3))
    wanted = cv2.resize(means, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(lq, wanted, atol=1e-4)


def test_a_hole_may_show_the_rendering(faces, tmp_path):
    """The pictures that the regressor sees show the surroundings there, those of the generator the rendering."""
    fill_registries()
    more = ["datasets.train.inpaint.fill=rendering", "datasets.val.inpaint.fill=rendering"]
    file = OPTIONS / "task" / "inpaint.yml"
    item = build_dataset(read_options(file, tiny(faces, tmp_path) + more)[0]["datasets"]["val"], "val")[0]
    hole = item["mask"].bool().expand_as(item["lq"])
    assert item["lq"][hole].max() < 1 and torch.equal(item["lq"][~hole], item["hq"][~hole])
    experiment = train.run(str(file), tiny(faces, tmp_path) + more)
    (path,) = (experiment / "models").glob("*.safetensors")
    assert load_checkpoint(path).metadata["hole"] == "rendering"


def test_the_generator_is_given_the_rendering(faces, tmp_path):
    more = ["datasets.train.inpaint.fill=rendering", "datasets.val.inpaint.fill=rendering"]
    options = read_options(OPTIONS / "task" / "inpaint.yml", tiny(faces, tmp_path) + more)[0]
    model = SGPNModel(options, torch.device("cpu"))
    data = build_dataset(options["datasets"]["val"], "val")
    batch = {key: torch.stack([data[0][key]] * 2) for key in ("lq", "hq", "points5", "landmarks68", "mask")}
    batch["mask"][1] = 0
    before = batch["lq"].clone()
    model.feed_data(batch)
    pictures = model.validate_batch()[1]
    hole, given = batch["mask"][0].bool().expand(3, -1, -1), pictures["input"]
    covered = (pictures["3D rendering"][0] > -1).any(dim=0).expand_as(hole)
    assert torch.equal(given[1], before[1]) and torch.equal(given[0][~hole], before[0][~hole])
    assert not torch.equal(given[0][hole & covered], before[0][hole & covered])
    beside = hole & ~(F.max_pool2d(covered.float(), 5, 1, 2) > 0)
    assert torch.allclose(given[0][beside], before[0][beside], atol=2 / 255)  # which came as whole grey levels


def test_a_network_smaller_than_the_pictures_gets_the_hole_at_its_size(faces, tmp_path):
    options = read_options(OPTIONS / "task" / "inpaint.yml", tiny(faces, tmp_path))[0]
    model = SGPNModel(options, torch.device("cpu"))
    item = build_dataset({**options["datasets"]["val"], "size": 2 * SIZE}, "val")[0]
    batch = {key: item[key][None] for key in ("lq", "hq", "points5", "landmarks68", "mask")}
    model.feed_data(batch)
    blocks = item["mask"][0].reshape(SIZE, 2, SIZE, 2)
    assert torch.equal(model.batch["mask"][0, 0], blocks.amax(dim=(1, 3))) and 0 < blocks.mean() < 1


@pytest.mark.parametrize("task", ["sr_x16", "inpaint"])
def test_trains_a_step_and_writes_what_it_was_trained_for(task, faces, tmp_path):
    experiment = train.run(str(OPTIONS / "task" / f"{task}.yml"), tiny(faces, tmp_path))
    (path,) = (experiment / "models").glob("*.safetensors")
    assert load_checkpoint(path).metadata["task"] == ("inpaint" if task == "inpaint" else "restore")
    assert list((experiment / "visualization").iterdir())
