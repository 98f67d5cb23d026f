"""Training for real, on six tiny pictures: files, resuming, what may change and what must not, and refusals."""

import json
import logging
import math

import cv2
import numpy as np
import pytest
import torch
import yaml

from sgpn_arch.errors import OptionError
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_data.sheet import GAP, SMALLEST_CELL
from sgpn_model.config.registries import fill_registries
from sgpn_model.config.sections import read_dataset
from sgpn_model.train import loop as train
from sgpn_model.train.batches import TrainingBatches, build_dataset
from sgpn_model.train.joint_model import SGPNModel
from sgpn_model.train.log import _tensorboard
from sgpn_model.train.saving import Diverged, Saver, load_state
from sgpn_model.train.shape_model import ShapeModel
from sgpn_model.train.training_model import TrainingModel, learning_rate_factor
from sgpn_model.weights.checkpoint import CheckpointError, load_checkpoint
from sgpn_model.weights.pretrained import load_networks

IMAGES, SIZE = 6, 64
IDENTITY, EXPRESSION, TEXTURE = MorphableModel.open().dims
CPU = torch.device("cpu")


# -- Material ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def faces(tmp_path_factory, astronaut):
    """Six pictures of the astronaut's face at 64 px, moved a little, and 68 points for all but the last."""
    folder = tmp_path_factory.mktemp("faces")
    # The mean face, seen from the front, stands in for annotated landmarks; the eyes are 22 px apart.
    model = MorphableModel.open()
    points = model.shape_mean[model.landmarks][:, :2].numpy().astype(np.float64) * [1, -1]
    eyes = points[36:42].mean(0), points[42:48].mean(0)
    points = (points - (eyes[0] + eyes[1]) / 2) * 22 / np.linalg.norm(eyes[1] - eyes[0]) + [32, 29]
    known = {}
    for number in range(IMAGES):
        x, y = 160 + 3 * number, 40 + 2 * (number % 3)
        picture = cv2.resize(astronaut[y : y + 128, x : x + 128], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / f"{number}.png"), picture)
        known[f"{number}.png"] = (points - [1.5 * (number - 2), number % 3 - 1]).tolist()
    del known[f"{IMAGES - 1}.png"]
    (folder / "landmarks68.json").write_text(json.dumps(known))
    return folder


@pytest.fixture(autouse=True)
def process_settings():
    """Training seeds the process and sets OpenCV's threads; other tests should not notice."""
    threads, state = cv2.getNumThreads(), torch.get_rng_state()
    yield
    cv2.setNumThreads(threads)
    torch.set_rng_state(state)


def dataset_options(faces):
    return {
        "type": "FaceRestorationDataset",
        "dataroot": str(faces),
        "size": SIZE,
        "degradation": {"preset": "gfpgan", "reference_size": 512},
        "batch_size_per_gpu": 2,
    }


def shape_network():
    return {"type": "TinyD3DFR", "id_dim": IDENTITY, "exp_dim": EXPRESSION, "tex_dim": TEXTURE}


def common(faces, folder, name):
    return {
        "name": name,
        "manual_seed": 1,
        "num_threads": 1,  # sums of several threads differ from run to run in their last bit
        "device": "cpu",
        "datasets": {"train": dataset_options(faces), "val": dataset_options(faces)},
        "network_shape": shape_network(),
        "path": {"experiments_root": str(folder)},
        "val": {"val_freq": 100, "save_images": 3},
        "logger": {"print_freq": 1, "save_checkpoint_freq": 100, "use_tb_logger": False},
    }


def sgpn_options(faces, folder, name="tiny", **train_options):
    tiny = {"size": SIZE, "width": 0.02, "max_channels": 8}
    coefficients = IDENTITY + EXPRESSION + TEXTURE + 3 + 27 + 3
    return {
        **common(faces, folder, name),
        "model_type": "SGPNModel",
        "network_g": {"type": "SGPN", **tiny, "style_dim": 16, "latent_dim": 8, "coeff_dim": coefficients},
        "network_d": {"type": "SGPNDiscriminator", **tiny},
        "train": {
            "total_iter": 3,
            "optim_g": {"type": "Adam", "lr": 2.0e-3, "betas": [0.0, 0.99]},
            "optim_d": {"type": "Adam", "lr": 2.0e-3, "betas": [0.0, 0.99]},
            "optim_shape": {"type": "Adam", "lr": 1.0e-5},
            "losses": {"pixel": {"type": "L1Loss"}, "perceptual": {"type": "MobileNetPerceptualLoss"}},
            "gan": {"loss_weight": 0.1, "r1_every": 2},
            **train_options,
        },
    }


def shape_options(faces, folder, name="shape", **train_options):
    return {
        **common(faces, folder, name),
        "model_type": "ShapeModel",
        "train": {
            "total_iter": 3,
            "optim_shape": {"type": "Adam", "lr": 1.0e-4},
            "synthetic_iter": 1,
            "synthetic_fraction": 0.5,
            "grad_clip": 5.0,
            **train_options,
        },
    }


def write(folder, options):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{options['name']}.yml"
    path.write_text(yaml.safe_dump(options))
    return str(path)


def run(folder, options, *overrides, **settings):
    return train.run(write(folder, options), overrides, **settings)


def log_lines(experiment, phase):
    lines = [json.loads(line) for line in (experiment / "log" / "train.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == phase]


def copied(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def build_model(model_class, options):
    fill_registries()
    torch.manual_seed(0)
    return model_class(options, CPU)


def first_batch(options):
    fill_registries()
    section = options["datasets"]["train"]
    return next(TrainingBatches(build_dataset(section, "train"), read_dataset(section), seed=0, step=0))


# -- Whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def sgpn_run(faces, tmp_path_factory):
    """Three steps of the full model with every loss on."""
    folder = tmp_path_factory.mktemp("sgpn")
    options = sgpn_options(faces, folder)
    options["logger"]["use_tb_logger"] = True
    return run(folder, options)


@pytest.fixture(scope="session")
def shape_run(faces, tmp_path_factory):
    """One step on renderings, two on photos and renderings."""
    folder = tmp_path_factory.mktemp("shape")
    return run(folder, shape_options(faces, folder))


def check_sheet(run, rows: int, columns: int, step: int = 3) -> None:
    """The sheet of a step has so many pictures, and room for titles above and names beside them, which hold some ink."""
    sheet = cv2.imread(str(run / "visualization" / f"{step}.jpg"))
    height, width = (sheet.shape[axis] - count * (SMALLEST_CELL + GAP) for axis, count in ((0, rows), (1, columns)))
    assert 0 < height < SMALLEST_CELL and 0 < width < SMALLEST_CELL
    assert sheet[:height, width:].min() < 100


class TestFiles:
    def test_everything_is_where_it_should_be(self, sgpn_run):
        files = {path.relative_to(sgpn_run).as_posix() for path in sgpn_run.rglob("*") if path.is_file()}
        wanted = {"models/tiny_3.safetensors", "training_states/3.state", "visualization/3.jpg", "log/train.jsonl"}
        assert wanted | {"options.yml"} <= files
        assert any("tfevents" in name for name in files)
        assert len(files) == len(wanted) + 2, "nothing temporary is left"

    def test_the_log_has_every_loss_as_a_finite_number(self, sgpn_run):
        lines = log_lines(sgpn_run, "train")
        assert [line["step"] for line in lines] == [1, 2, 3]
        losses = {"l_pixel", "l_perceptual", "l_landmark3d", "l_mesh", "l_adv", "l_d"}
        for line in lines:
            assert losses <= line.keys()
            assert all(math.isfinite(line[key]) for key in line.keys() - {"phase"})
        # R1 is lazy: every second step, from the first on.
        assert ["l_r1" in line for line in lines] == [True, False, True]

    def test_validation(self, sgpn_run):
        (line,) = log_lines(sgpn_run, "val")
        scores = {
            f"{metric}_{of}" for metric in ("psnr", "perceptual_mnv2", "landmark_error") for of in ("input", "output")
        }
        assert line.keys() == {"step", "phase"} | scores and line["step"] == 3
        assert 10 < line["psnr_input"] < 50 and math.isfinite(line["landmark_error_output"])
        # Three rows of input, rendering, mask, restoration and truth.
        check_sheet(sgpn_run, rows=3, columns=5)

    def test_the_options_are_kept(self, sgpn_run):
        assert yaml.safe_load((sgpn_run / "options.yml").read_text())["model_type"] == "SGPNModel"

    def test_the_checkpoint_is_enough_to_restore(self, sgpn_run):
        path = sgpn_run / "models" / "tiny_3.safetensors"
        metadata = load_checkpoint(path).metadata
        assert metadata["step"] == 3 and metadata["name"] == "tiny" and metadata["size"] == SIZE
        assert set(metadata["archs"]) == {"network_g", "network_shape"}
        network, prior, template = load_networks(path)
        assert template == "ffhq"
        with torch.inference_mode():
            lq = torch.zeros(1, 3, SIZE, SIZE)
            shape = prior(lq, torch.tensor([[[21.0, 29], [43, 29], [32, 40], [24, 50], [40, 50]]]))
            assert network(lq, shape.render, shape.coeffs).shape == (1, 3, SIZE, SIZE)

    def test_the_shape_stage(self, shape_run):
        lines = log_lines(shape_run, "train")
        synthetic, photo = {"l_mesh", "l_pose"}, {"l_landmark", "l_photometric", "l_prior"}
        assert synthetic <= lines[0].keys() and not photo & lines[0].keys()
        assert all(synthetic | photo <= line.keys() for line in lines[1:])
        assert all(math.isfinite(line[key]) for line in lines for key in line.keys() - {"phase"})
        (line,) = log_lines(shape_run, "val")
        assert {"landmark_error_hq", "landmark_error_lq"} <= line.keys()
        # Photo, rendering and overlay, on clean and on degraded faces.
        check_sheet(shape_run, rows=3, columns=6)

    def test_the_joint_stage_takes_over_the_regressor(self, shape_run, faces, tmp_path):
        weights = shape_run / "models" / "shape_3.safetensors"
        options = sgpn_options(faces, tmp_path)
        options["path"]["pretrain_network_shape"] = str(weights)
        model = build_model(SGPNModel, options)
        trained = load_checkpoint(weights).weights["network_shape"]
        assert same(model.networks["network_shape"].state_dict(), trained)
        assert same(model.frozen_prior.regressor.state_dict(), trained)
        options["path"]["pretrain_network_g"] = str(weights)
        with pytest.raises(CheckpointError, match=r"shape_3\.safetensors: holds no 'network_g'"):
            build_model(SGPNModel, options)


def test_another_morphable_model_goes_with_the_checkpoints(faces, tmp_path):
    """Trained on a model from a file, the weights restore without that file."""
    parts = MorphableModel.open().tensors()
    path = tmp_path / "few.safetensors"
    MorphableModel(**{**parts, "id_basis": parts["id_basis"][:7]}, name="few").save(path)
    options = sgpn_options(faces, tmp_path)
    options["path"]["morphable_model"] = str(path)
    options["network_shape"]["id_dim"] = 7
    options["network_g"]["coeff_dim"] += 7 - IDENTITY
    run(tmp_path, options)
    path.unlink()
    network, prior, _ = load_networks(tmp_path / "tiny" / "models" / "tiny_3.safetensors")
    assert prior.model.name == "few" and prior.model.dims == (7, EXPRESSION, TEXTURE)
    assert network.coeff_dim == prior.coeff_dim
    # Who goes on from them goes on with that model.
    del options["path"]["morphable_model"]
    options["path"]["pretrain_network_shape"] = str(tmp_path / "tiny" / "models" / "tiny_3.safetensors")
    assert build_model(SGPNModel, options).prior.model.fingerprint() == prior.model.fingerprint()


@pytest.mark.parametrize("fusion", ["SumFusion", "LQOnly"])
def test_the_ablations_train_and_show_no_mask(faces, tmp_path, fusion):
    options = sgpn_options(faces, tmp_path, gan=None, total_iter=2)
    options["network_g"]["fusion"] = fusion
    del options["network_d"]
    experiment = run(tmp_path, options)
    lines = log_lines(experiment, "train")
    assert all("l_pixel" in line and "l_adv" not in line and "l_d" not in line for line in lines)
    check_sheet(experiment, rows=3, columns=4, step=2)
    load_networks(experiment / "models" / "tiny_2.safetensors")


def test_a_metric_for_larger_pictures_is_refused_before_the_training(faces, tmp_path):
    options = sgpn_options(faces, tmp_path)
    options["val"]["metrics"] = ["niqe"]
    with pytest.raises(
        OptionError, match=f"val.metrics: niqe needs pictures of at least 192 px, but network_g makes {SIZE}"
    ):
        build_model(SGPNModel, options)


# -- Resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [sgpn_options, shape_options])
def test_an_interrupted_run_ends_bit_by_bit_as_a_straight_one(faces, tmp_path, stage):
    """Four steps, three an epoch: interrupted within an epoch, after a validation, with a warm-up under way."""
    changes = {"total_iter": 4, "warmup_iter": 3, "schedule": "cosine"}
    straight = run(tmp_path, stage(faces, tmp_path / "straight", "run", **changes), "val.val_freq=1000")
    folder = tmp_path / "resumed"
    options = stage(faces, folder, "run", **changes)

    steps, original = [], TrainingModel.set_learning_rate
    with pytest.MonkeyPatch.context() as patch:

        def interrupted(model, step):
            if step == 2 and not steps.count("interrupted"):
                steps.append("interrupted")
                raise KeyboardInterrupt
            steps.append(step)
            return original(model, step)

        patch.setattr(TrainingModel, "set_learning_rate", interrupted)
        often = ("val.val_freq=2", "logger.save_checkpoint_freq=2")
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, options, *often)
        resumed = run(tmp_path, options, *often, auto_resume=True)
    assert steps == [0, 1, "interrupted", 2, 3]
    one, other = (load_checkpoint(path / "models" / "run_4.safetensors") for path in (straight, resumed))
    for name, state in one.weights.items():
        assert same(state, other.weights[name]), name
    one, other = (torch.load(path / "training_states" / "4.state", weights_only=True) for path in (straight, resumed))
    assert torch.equal(*(state["processes"][0]["random"]["torch"] for state in (one, other)))
    for name, state in one["networks"].items():
        assert same(state, other["networks"][name]), name


class TestTrainingState:
    def test_the_newest_two_are_kept_and_foreign_files_are_left_alone(self, faces, tmp_path):
        options = shape_options(faces, tmp_path, total_iter=3, synthetic_iter=9)
        options["val"] = {"val_freq": 100, "save_images": 0}
        states = tmp_path / "shape" / "training_states"
        states.mkdir(parents=True)
        (states / "keep me.state").write_text("mine")
        experiment = run(tmp_path, options, "logger.save_checkpoint_freq=1", auto_resume=True)
        assert {path.name for path in states.iterdir()} == {"2.state", "3.state", "keep me.state"}
        assert {path.name for path in (experiment / "models").iterdir()} == {
            f"shape_{step}.safetensors" for step in (1, 2, 3)
        }
        assert not (experiment / "visualization").exists(), "no pictures were asked for"

    def test_a_damaged_or_foreign_state_is_named(self, faces, tmp_path, sgpn_run):
        model = build_model(ShapeModel, shape_options(faces, tmp_path))
        damaged = tmp_path / "5.state"
        damaged.write_bytes(b"nothing")
        with pytest.raises(CheckpointError, match="5.state: is a file of no format .* not a file that PyTorch wrote"):
            load_state(model, damaged)
        with pytest.raises(CheckpointError, match="3.state: cannot be resumed with these options"):
            load_state(model, sgpn_run / "training_states" / "3.state")

    def test_a_missing_one_is_named(self, faces, tmp_path):
        with pytest.raises(OptionError, match=r"path.resume_state: nowhere\.state: no such file"):
            run(tmp_path, shape_options(faces, tmp_path), "path.resume_state=nowhere.state")


# -- One step ---------------------------------------------------------------------------------------------------------


def test_what_a_joint_step_changes_and_what_it_does_not(faces, tmp_path):
    options = sgpn_options(faces, tmp_path)
    model = build_model(SGPNModel, options)
    model.feed_data(first_batch(options))
    frozen = copied(model.frozen_prior.regressor)
    before = {name: copied(network) for name, network in model.networks.items()}
    # A regressor's heads start at zero, which holds back its backbone for one step.
    for step in range(2):
        model.set_learning_rate(step)
        model.optimize_parameters(step)
    assert same(frozen, model.frozen_prior.regressor.state_dict())
    for name, network in model.networks.items():
        assert not same(before[name], network.state_dict()), name
    buffers = {name for name, _ in model.networks["network_shape"].named_buffers()}
    after = model.networks["network_shape"].state_dict()
    assert all(torch.equal(before["network_shape"][key], after[key]) for key in buffers & after.keys())
    average, network = model.ema["network_g"].state_dict(), model.networks["network_g"].state_dict()
    assert not same(average, network) and not same(average, before["network_g"])
    assert not any(parameter.requires_grad for parameter in model.networks["network_d"].parameters())


def test_enlarged_photos_are_no_examples_of_sharp_ones(faces, tmp_path):
    """They teach the discriminator nothing, and what the generator draws finer than they are does not count."""
    options = sgpn_options(faces, tmp_path)
    for network in ("network_g", "network_d"):
        options[network]["size"] = 2 * SIZE
    options["datasets"]["train"]["size"] = 2 * SIZE
    model = build_model(SGPNModel, options)
    judge = copied(model.networks["network_d"])
    seen = []
    model.image_losses = {"pixel": lambda output, truth: seen.append((output, truth)) or (output - truth).abs().mean()}
    batch = first_batch(options)
    assert batch["stored_size"].tolist() == [SIZE, SIZE]
    log = model.train_step([batch], 0)
    assert log["l_adv"] == log["l_d"] == 0 and same(judge, copied(model.networks["network_d"]))
    for image in seen[0]:  # nothing is left at the highest frequency
        checks = (image[..., ::2, ::2] + image[..., 1::2, 1::2] - image[..., ::2, 1::2] - image[..., 1::2, ::2]).abs()
        assert checks.mean() < 0.05 * image.std()
    batch["stored_size"][0] = 2 * SIZE  # as if one were not
    log = model.train_step([batch], 1)
    assert log["l_adv"] > 0 and log["l_d"] > 0 and not same(judge, copied(model.networks["network_d"]))
    assert torch.equal(seen[1][1][0], batch["hq"][0]) and not torch.equal(seen[1][1][1], batch["hq"][1])


def test_a_regressor_that_does_not_learn_stays_as_it_is(faces, tmp_path):
    options = sgpn_options(faces, tmp_path, train_shape=False, landmark_every=2, gan={"start_iter": 1})
    del options["train"]["optim_shape"]
    model = build_model(SGPNModel, options)
    model.feed_data(first_batch(options))
    before = copied(model.networks["network_shape"])
    logs = []
    for step in range(3):
        model.set_learning_rate(step)
        model.optimize_parameters(step)
        logs.append(model.log)
    assert same(before, model.networks["network_shape"].state_dict())
    assert all(parameter.grad is None for parameter in model.networks["network_shape"].parameters())
    assert not any("l_mesh" in log for log in logs)
    assert ["l_landmark3d" in log for log in logs] == [True, False, True]
    assert ["l_adv" in log for log in logs] == [False, True, True]


def test_the_generators_losses_reach_the_regressor_through_the_rendering(faces, tmp_path):
    options = sgpn_options(faces, tmp_path, gan=None, mesh_weight=0, landmark_weight=0)
    model = build_model(SGPNModel, options)
    model.feed_data(first_batch(options))
    model.optimize_parameters(0)
    heads = model.networks["network_shape"].final_layers
    assert all(head.bias.grad is not None and head.bias.grad.abs().sum() > 0 for head in heads)


def test_a_small_batch_can_be_learnt_by_heart(faces, tmp_path):
    options = sgpn_options(
        faces, tmp_path, gan=None, landmark_weight=0, train_shape=False, losses={"pixel": {"type": "L1Loss"}}
    )
    options["train"]["optim_g"]["lr"] = 1.0e-2
    model = build_model(SGPNModel, options)
    model.feed_data(first_batch(options))
    losses = []
    for step in range(30):
        model.optimize_parameters(step)
        losses.append(model.log["l_pixel"])
    assert losses[-1] < 0.5 * losses[0], losses


def test_renderings_can_be_learnt_by_heart(faces, tmp_path, monkeypatch):
    options = shape_options(faces, tmp_path, synthetic_iter=99)
    options["train"]["optim_shape"]["lr"] = 5.0e-3
    model = build_model(ShapeModel, options)
    model.feed_data(first_batch(options))
    wanted = model.sample_coefficients(2)
    monkeypatch.setattr(model, "sample_coefficients", lambda count: wanted)
    losses = []
    for step in range(12):
        model.optimize_parameters(step)
        losses.append(10 * model.log["l_mesh"] + 10 * model.log["l_pose"])
    assert losses[-1] < 0.6 * losses[0], losses


def test_photos_without_landmarks_train_too(faces, tmp_path):
    options = shape_options(faces, tmp_path, synthetic_iter=0, synthetic_fraction=0)
    model = build_model(ShapeModel, options)
    batch = first_batch(options)
    batch["landmarks68"] = torch.full_like(batch["landmarks68"], torch.nan)
    model.feed_data(batch)
    model.optimize_parameters(0)
    assert model.log["l_landmark"] == 0 and model.log["l_photometric"] == 0
    assert all(torch.isfinite(parameter).all() for parameter in model.networks["network_shape"].parameters())


def test_sampled_coefficients_have_the_regressors_length(faces, tmp_path):
    model = build_model(ShapeModel, shape_options(faces, tmp_path))
    coefficients = model.sample_coefficients(50)
    assert coefficients.shape == (50, model.prior.coeff_dim)
    parts = model.prior.split(coefficients)
    assert 0.8 < parts[0].std() < 1.2 and parts[1].std() < 0.9 and parts[3].abs().max() < 2


# -- What stops a run -------------------------------------------------------------------------------------------------


class TestNotFinite:
    def test_a_loss_stops_the_run_and_is_named(self, faces, tmp_path):
        options = sgpn_options(faces, tmp_path, gan=None)
        model = build_model(SGPNModel, options)
        batch = first_batch(options)
        batch["hq"][0, 0, 0, 0] = torch.nan
        model.feed_data(batch)
        before = copied(model.networks["network_g"])
        with pytest.raises(FloatingPointError, match="loss of optim_g, optim_shape is nan.*'l_pixel': nan"):
            model.optimize_parameters(0)
        assert same(before, model.networks["network_g"].state_dict())

    def test_a_clipped_gradient_does_too(self, faces, tmp_path):
        model = build_model(ShapeModel, shape_options(faces, tmp_path))
        weight = model.networks["network_shape"].final_layers[0].weight
        before = weight.detach().clone()
        with pytest.raises(FloatingPointError, match="gradient of optim_shape is (nan|inf)"):
            model.step_optimizer("optim_shape", (weight * 0).abs().sqrt().sum())
        assert torch.equal(weight, before)

    def test_a_checkpoint_with_such_weights_does_not_replace_the_state(self, faces, tmp_path):
        model = build_model(ShapeModel, shape_options(faces, tmp_path))
        saver = Saver(tmp_path / "e", "shape")
        saver.save(model, 1)
        with torch.no_grad():
            model.ema["network_shape"].final_layers[0].bias.fill_(torch.nan)
        with pytest.raises(Diverged, match=r"step 2: .*holds NaN.*the last good checkpoint is .*shape_1\.safetensors"):
            saver.save(model, 2)
        assert [path.name for path in (tmp_path / "e" / "training_states").iterdir()] == ["1.state"]


def test_grad_clip_holds_every_optimiser_of_the_step(faces, tmp_path):
    options = sgpn_options(faces, tmp_path, gan=None, grad_clip=1e-3)
    model = build_model(SGPNModel, options)
    model.feed_data(first_batch(options))
    model.optimize_parameters(0)
    for name, network in (("optim_g", "network_g"), ("optim_shape", "network_shape")):
        gradients = [p.grad.double().square().sum() for p in model.networks[network].parameters() if p.grad is not None]
        assert sum(gradients).sqrt().item() <= 1e-3 * 1.001 and model.log[f"grad_{name}"] > 1e-3


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"train.totl_iter": 5}, "train.totl_iter: unknown option.*'total_iter'"),
            ({"train.schedule": "cosin"}, "train.schedule: unknown value.*'cosine'"),
            ({"train.gan.r1_evry": 5}, "train.gan.r1_evry: unknown option.*'r1_every'"),
            ({"train.landmark_frame": "pose"}, "train.landmark_frame: unknown value 'pose'.*'posed'"),
            ({"train.optim_g": None}, "train.optim_g: this section is missing"),
            ({"train.optim_g.type": "Adan"}, "train.optim_g.type: unknown optimiser 'Adan'.*'Adam"),
            ({"train.optim_g.learning_rate": 1}, "train.optim_g.learning_rate: unknown option"),
            ({"train.losses": {}}, "train.losses: expected a mapping such as .pixel"),
            ({"train.losses.pixel.type": "L1Los"}, "train.losses.pixel.type: unknown name 'L1Los'.*'L1Loss'"),
            ({"train.losses.pixel.weight": 1}, "train.losses.pixel.weight: unknown option"),
            ({"train.losses.pixel.reduction": "x"}, "train.losses.pixel: "),
            ({"train": {}}, "train.total_iter: this option is missing"),
            ({"train": None}, "train: this option is missing"),
            ({"precision": "bf61"}, "precision: unknown value.*'bf16'"),
            ({"model_type": "SGPNModle"}, "model_type: unknown name 'SGPNModle'.*'SGPNModel'"),
            ({"datasets.test": {}}, "datasets.test: unknown option"),
            ({"datasets.train.type": "FaceDataset"}, "datasets.train.type: unknown name"),
            ({"datasets.train.dataroot": "/nowhere"}, "datasets.train.dataroot: /nowhere: no such folder"),
            ({"datasets.train.batch_size_per_gpu": 7}, "batch_size_per_gpu: 7 is more than the 6 images"),
            ({"network_g": None}, "network_g: this section is missing; SGPNModel needs network_g"),
            ({"network_g.type": "SGPM"}, "network_g.type: .*SGPM.*'SGPN'"),
            ({"network_d.type": "SGPN"}, "network_d.type: SGPN is no discriminator"),
            ({"network_g.coeff_dim": 9}, "network_g.coeff_dim: is 9, but network_shape gives"),
            ({"network_shape.id_dim": 9}, "network_shape: the regressor gives"),
            ({"path.pretrain_network_g": "/nowhere"}, "/nowhere: no such file of weights"),
            ({"path.morphable_model": "/nowhere"}, "path.morphable_model: .*nowhere"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_bad_options_are_named(self, faces, tmp_path, changes, message):
        overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
        with pytest.raises((OptionError, CheckpointError), match=message):
            run(tmp_path, sgpn_options(faces, tmp_path), *overrides)

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("train.weights.landmrk=1", "train.weights.landmrk: unknown option.*'landmark'"),
            ("train.synthetic_fraction=1.5", "train.synthetic_fraction: expected a number from 0 to 1"),
            ("train.gan={}", "train.gan: unknown option"),
        ],
    )
    def test_of_the_shape_stage(self, faces, tmp_path, override, message):
        with pytest.raises(OptionError, match=message):
            run(tmp_path, shape_options(faces, tmp_path), override)

    def test_a_backbone_of_another_kind(self, faces, tmp_path):
        torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
        with pytest.raises(OptionError, match="path.pretrain_backbone: .*another architecture"):
            run(tmp_path, shape_options(faces, tmp_path), f"path.pretrain_backbone={tmp_path / 'other.pth'}")


# -- Parts ------------------------------------------------------------------------------------------------------------


class TestBatches:
    def paths(self, faces, step, count, **options):
        section = {**dataset_options(faces), **options}
        fill_registries()
        batches = TrainingBatches(build_dataset(section, "train"), read_dataset(section), seed=5, step=step)
        return [next(batches) for _ in range(count)]

    @pytest.mark.parametrize("size", [2, 4])
    def test_start_anywhere_as_if_they_had_never_stopped(self, faces, size):
        """Batches of 4 of 6 images leave two out in each epoch."""
        straight = self.paths(faces, 0, 7, batch_size_per_gpu=size)
        for step in (1, 3, 4):
            for a, b in zip(self.paths(faces, step, 3, batch_size_per_gpu=size), straight[step:], strict=False):
                assert a["path"] == b["path"] and torch.equal(a["lq"], b["lq"]) and torch.equal(a["hq"], b["hq"])

    def test_an_epoch_has_every_image_once_and_the_next_another_order(self, faces):
        batches = self.paths(faces, 0, 6)
        epochs = [[path for batch in batches[i : i + 3] for path in batch["path"]] for i in (0, 3)]
        assert set(epochs[0]) == set(epochs[1]) and len(set(epochs[0])) == IMAGES and epochs[0] != epochs[1]

    def test_leave_the_global_random_numbers_alone(self, faces):
        before = torch.get_rng_state()
        self.paths(faces, 0, 4)
        assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_learning_rate(schedule):
    def factor(step):
        return learning_rate_factor(step, total=100, warmup=10, schedule=schedule)

    assert factor(0) < 0.11 and factor(4) == pytest.approx(0.5, abs=0.01)
    rates = [factor(step) for step in range(10, 101)]
    if schedule == "constant":
        assert set(rates) == {1.0}
    else:
        assert rates == sorted(rates, reverse=True) and rates[-1] == pytest.approx(0.01)
        assert factor(50) == pytest.approx(0.505)
        assert learning_rate_factor(0, 100, 0, schedule) == 1.0


def test_the_average_follows_the_formula(faces, tmp_path):
    model = build_model(ShapeModel, shape_options(faces, tmp_path, ema_decay=0.9))
    network, average = (group["network_shape"].final_layers[0].bias for group in (model.networks, model.ema))
    expected = 0.0
    for step, decay in ((0, 1 / 10), (1, 2 / 11), (1000, 0.9)):
        with torch.no_grad():
            network.fill_(step + 1.0)
        model.update_average(step)
        expected = decay * expected + (1 - decay) * (step + 1.0)
        assert average.unique().item() == pytest.approx(expected, rel=1e-5)


def test_tensorboard_is_optional(monkeypatch, tmp_path, caplog):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level(logging.WARNING, "sgpn"):
        assert _tensorboard(tmp_path) is None
    assert "TensorBoard is not installed" in caplog.text


# -- Short training ---------------------------------------------------------------------------------------------------


def from_input(faces, folder, name, size, data_size, **path):
    options = sgpn_options(
        faces, folder, name, start_from_input=not path, train_shape=False, landmark_weight=0, gan=None
    )
    options["network_g"]["size"] = size
    options["path"].update(path)
    for section in options["datasets"].values():
        section["size"] = data_size
    del options["network_d"]
    return options


def test_a_network_smaller_than_the_pictures_sees_them_box_averaged(faces, tmp_path):
    options = from_input(faces, tmp_path, "small", 64, 128)
    model, batch = build_model(SGPNModel, options), first_batch(options)
    model.feed_data(batch)
    halved = torch.nn.functional.avg_pool2d(batch["lq"], 2)
    torch.testing.assert_close(model.batch["lq"], halved)
    torch.testing.assert_close(model.batch["points5"], (batch["points5"] + 0.5) / 2 - 0.5)
    assert model.photo.shape[-1] == 128
    values, pictures = model.validate_batch()
    # Untrained, its output is its input.
    assert values["psnr_output"] == pytest.approx(values["psnr_input"], abs=0.2)
    assert list(pictures) == ["input", "3D rendering", "mask (white: photo)", "restored", "truth"]
    assert {picture.shape[1:] for picture in pictures.values()} == {(3, 64, 64)}


def test_the_shape_is_that_of_the_whole_picture_at_the_networks_size(faces, tmp_path):
    options = from_input(faces, tmp_path, "small", 64, 128)
    model, batch = build_model(SGPNModel, options), first_batch(options)
    model.feed_data(batch)
    with torch.no_grad():
        found, whole = model._input_shape(), model.prior(batch["lq"], batch["points5"])
    torch.testing.assert_close(found.coeffs, whole.coeffs)
    torch.testing.assert_close(found.landmarks, (whole.landmarks + 0.5) / 2 - 0.5, atol=1e-3, rtol=0)


def test_a_small_network_is_trained_and_grown(faces, tmp_path):
    small = run(tmp_path, from_input(faces, tmp_path, "small", 64, 128))
    weights = str(small / "models" / "small_3.safetensors")
    large = run(tmp_path, from_input(faces, tmp_path, "large", 128, 128, grow_from=weights))
    line = log_lines(large, "val")[-1]
    assert line["psnr_output"] == pytest.approx(line["psnr_input"], abs=1.0)
    assert load_checkpoint(large / "models" / "large_3.safetensors").network("network_g").size == 128


def test_a_fresh_texture_begins_at_zero_and_the_rest_as_it_was(faces, shape_run, tmp_path):
    options = shape_options(faces, tmp_path, fresh_texture=True)
    weights = shape_run / "models" / "shape_3.safetensors"
    options["path"]["pretrain_network_shape"] = str(weights)
    model = build_model(ShapeModel, options)
    before = load_checkpoint(weights).weights["network_shape"]
    after = copied(model.networks["network_shape"])
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert changed <= {"final_layers.2.weight", "final_layers.2.bias"}
    assert after["final_layers.2.weight"].abs().max() == 0
