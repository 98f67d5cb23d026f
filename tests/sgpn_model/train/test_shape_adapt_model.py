"""The paper's first stage: what is compared with what, what learns and what stays, and a run from its option file."""

import itertools
import json

import cv2
import pytest
import torch
import yaml

from sgpn_arch import build_network
from sgpn_arch.errors import OptionError
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_model.config.registries import fill_registries
from sgpn_model.train import loop as train
from sgpn_model.train import training_model
from sgpn_model.train.batches import build_dataset
from sgpn_model.train.joint_model import SGPNModel
from sgpn_model.train.shape_adapt_model import ShapeAdaptModel
from sgpn_model.weights.checkpoint import load_checkpoint, save_checkpoint

SIZE = 64
DIMS = MorphableModel.open().dims
NETWORK = {"type": "TinyD3DFR", **dict(zip(("id_dim", "exp_dim", "tex_dim"), DIMS, strict=True))}


@pytest.fixture(scope="module")
def options(tmp_path_factory, astronaut):
    """Options of a run on three faces, from a regressor whose heads say something."""
    folder = tmp_path_factory.mktemp("adapt")
    (folder / "faces").mkdir()
    for number in range(3):
        crop = astronaut[30 : 30 + 128, 160 + 4 * number : 288 + 4 * number]
        cv2.imwrite(str(folder / "faces" / f"{number}.png"), cv2.resize(crop, (SIZE, SIZE)))
    torch.manual_seed(0)
    network = build_network(NETWORK)
    for head in network.final_layers:
        torch.nn.init.normal_(head.weight, std=0.2)
    weights = folder / "regressor.safetensors"
    save_checkpoint(weights, {"network_shape": network.state_dict()}, {"archs": {"network_shape": NETWORK}})
    data = {
        "type": "FaceRestorationDataset",
        "dataroot": str(folder / "faces"),
        "size": SIZE,
        "batch_size_per_gpu": 3,
        "degradation": {"preset": "codeformer", "reference_size": 512},
    }
    return {
        "name": "adapt",
        "model_type": "ShapeAdaptModel",
        "manual_seed": 1,
        "num_threads": 1,
        "device": "cpu",
        "datasets": {"train": data, "val": data},
        "network_shape": NETWORK,
        "path": {"experiments_root": str(folder / "experiments"), "pretrain_network_shape": str(weights)},
        "train": {"total_iter": 2, "optim_shape": {"type": "Adam", "lr": 1.0e-4}},
        "logger": {"print_freq": 1, "use_tb_logger": False},
    }


@pytest.fixture(autouse=True)
def process_settings():
    threads, state = cv2.getNumThreads(), torch.get_rng_state()
    yield
    cv2.setNumThreads(threads)
    torch.set_rng_state(state)


def model_with(options, **changes) -> ShapeAdaptModel:
    fill_registries()
    torch.manual_seed(0)
    options = {**options, "train": {**options["train"], **changes}}
    model = ShapeAdaptModel(options, torch.device("cpu"))
    dataset = build_dataset(options["datasets"]["train"], "train")
    model.feed_data(torch.utils.data.default_collate([dataset[index] for index in range(3)]))
    return model


def by_hand(model: ShapeAdaptModel, images: torch.Tensor):
    """Coefficients, vertices before the pose and lit colours that the regressor as it is now sees in the images."""
    with torch.no_grad():
        result = model.prior(images, model.batch["points5"])
    return result.coeffs, result.mesh.shape, result.mesh.colors


def test_the_degraded_face_is_compared_with_what_was_seen_in_the_good_one(options):
    model = model_with(options, point_jitter=0.0, mesh_weight=100, pose_weight=7)
    wanted, found = (by_hand(model, model.batch[key]) for key in ("hq", "lq"))
    model.optimize_parameters(0)
    distances = [(a - b).square().sum(-1).sqrt().mean() for a, b in zip(wanted[1:], found[1:], strict=True)]
    assert model.log["l_mesh"] == pytest.approx(100 * sum(distances).item(), rel=1e-4) and model.log["l_mesh"] > 0
    pose = slice(sum(DIMS), None)
    difference = (wanted[0][:, pose] - found[0][:, pose]).abs().mean().item()
    assert model.log["l_pose"] == pytest.approx(7 * difference, rel=1e-4)


def test_on_good_faces_there_is_nothing_to_learn(options):
    model = model_with(options, degraded_fraction=0.0)
    model.optimize_parameters(0)
    assert model.log["l_mesh"] == pytest.approx(0, abs=1e-4) and model.log["l_pose"] == pytest.approx(0, abs=1e-4)


def test_it_learns_while_the_frozen_self_and_the_batch_statistics_stay(options):
    # A network of random weights bears small steps only.
    model = model_with(options, point_jitter=0.0, optim_shape={"type": "Adam", "lr": 1.0e-4})
    frozen = {key: value.clone() for key, value in model.frozen_prior.regressor.state_dict().items()}
    losses = []
    for step in range(8):
        model.optimize_parameters(step)
        losses.append(model.log["l_mesh"] + model.log["l_pose"])
    assert losses[-1] < 0.7 * losses[0]
    after = model.frozen_prior.regressor.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in frozen.items())
    own = model.networks["network_shape"].state_dict()
    assert all(torch.equal(own[key], frozen[key]) for key in own if "running_" in key)
    assert not torch.equal(own["backbone.layers.1.weight"], frozen["backbone.layers.1.weight"])


def test_a_run_writes_what_the_joint_stage_starts_from(options, tmp_path):
    path = tmp_path / "adapt.yml"
    path.write_text(yaml.safe_dump(options))
    folder = train.run(str(path))
    checkpoint = load_checkpoint(folder / "models" / "adapt_2.safetensors")
    assert list(checkpoint.weights) == ["network_shape", "network_shape_pretrained"]
    lines = [json.loads(line) for line in (folder / "log" / "train.jsonl").read_text().splitlines()]
    scores = next(line for line in lines if line["phase"] == "val")
    assert scores["shape_error_frozen"] > 0 and scores["shape_error_adapted"] > 0


def test_without_a_regressor_to_adapt_it_says_where_one_comes_from(options):
    with pytest.raises(OptionError, match="path.pretrain_network_shape: this option is missing.*shape_open.yml"):
        ShapeAdaptModel({**options, "path": {}}, torch.device("cpu"))


def joint_with(options, **path) -> SGPNModel:
    """The joint stage that goes on with a regressor; its networks are as small as they can be."""
    coefficients = sum(DIMS) + 33
    generator = {"type": "SGPN", "size": SIZE, "width": 0.02, "max_channels": 8, "style_dim": 16, "latent_dim": 8}
    adam = {"type": "Adam", "lr": 1.0e-4}
    train = {
        "total_iter": 1,
        "losses": {"pixel": {"type": "L1Loss"}},
        "gan": None,
        "optim_g": adam,
        "optim_shape": adam,
    }
    changes = {"model_type": "SGPNModel", "network_g": {**generator, "coeff_dim": coefficients}, "train": train}
    torch.manual_seed(0)
    return SGPNModel({**options, **changes, "path": {**options["path"], **path}}, torch.device("cpu"))


@pytest.fixture(scope="module")
def adapted(options, tmp_path_factory) -> str:
    """A checkpoint of the stage whose regressor has moved."""
    model = model_with(options)
    for network in (model.networks["network_shape"], model.ema["network_shape"]):
        torch.nn.init.normal_(network.final_layers[0].weight, std=0.5, generator=torch.Generator().manual_seed(2))
    path = tmp_path_factory.mktemp("adapted") / "adapted.safetensors"
    model.save(path, 1)
    return str(path)


def same(network, other) -> bool:
    state = network.state_dict()
    return state.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in state.items())


def test_the_joint_stages_judge_is_the_regressor_from_before_stage_1(options, adapted, caplog):
    before = load_checkpoint(options["path"]["pretrain_network_shape"]).weights["network_shape"]
    after = load_checkpoint(adapted).weights
    assert set(after) == {"network_shape", "network_shape_pretrained"}
    model = joint_with(options, pretrain_network_shape=adapted)
    assert same(model.networks["network_shape"], after["network_shape"])
    assert same(model.frozen_prior.regressor, before) and not same(model.frozen_prior.regressor, after["network_shape"])
    assert not any(parameter.requires_grad for parameter in model.frozen_prior.regressor.parameters())

    other = joint_with(options, pretrain_network_shape=adapted, pretrain_frozen_shape=adapted)
    assert same(other.frozen_prior.regressor, after["network_shape"])

    again = {**options, "path": {**options["path"], "pretrain_network_shape": str(adapted)}}
    assert same(ShapeAdaptModel(again, torch.device("cpu")).frozen_prior.regressor, before), (
        "adapted twice, judged by the first"
    )

    with caplog.at_level("INFO", "sgpn"):
        unknown = joint_with(options)
    assert same(unknown.frozen_prior.regressor, before)
    assert "regressor.safetensors as it is, for they hold no earlier one" in caplog.text


def test_the_joint_stage_reads_a_checkpoint_once_and_holds_one_morphable_model(options, adapted, monkeypatch):
    read, original = [], training_model.load_checkpoint
    monkeypatch.setattr(training_model, "load_checkpoint", lambda path: read.append(str(path)) or original(path))
    model = joint_with(options, pretrain_network_shape=adapted)
    assert read == [adapted]
    assert model.frozen_prior.model is model.prior.model
    assert not model._checkpoints  # nor is it kept


BEGINNINGS = ["path.pretrain_network_g", "path.pretrain_prior", "path.grow_from", "train.start_from_input"]


@pytest.mark.parametrize("pair", [*itertools.combinations(BEGINNINGS, 2)], ids=" and ".join)
def test_two_beginnings_of_the_generator_are_refused_by_both_names(options, pair):
    file = {**options, "model_type": "SGPNModel", "train": {**options["train"], "losses": {"l": {"type": "L1Loss"}}}}
    file["train"].update(gan=None, optim_g={"type": "Adam", "lr": 1.0e-4})
    file["path"] = dict(file["path"])
    file["network_g"] = {"type": "SGPN", "size": SIZE}
    for key in pair:
        section, _, name = key.partition(".")
        file[section][name] = True if section == "train" else options["path"]["pretrain_network_shape"]
    with pytest.raises(OptionError, match=f"{pair[1]}: would overwrite {pair[0]}"):
        SGPNModel(file, torch.device("cpu"))


def test_a_fusion_that_cannot_pass_the_photo_is_refused_by_its_name(options):
    fill_registries()
    with pytest.raises(OptionError, match="train.start_from_input: SumFusion adds the rendering"):
        joint = {"fusion": "SumFusion", "type": "SGPN", "size": SIZE, "width": 0.02, "coeff_dim": sum(DIMS) + 33}
        train = {"total_iter": 1, "losses": {"l": {"type": "L1Loss"}}, "gan": None, "start_from_input": True}
        train |= {"optim_g": {"type": "Adam", "lr": 1.0e-4}, "train_shape": False}
        SGPNModel({**options, "model_type": "SGPNModel", "network_g": joint, "train": train}, torch.device("cpu"))
