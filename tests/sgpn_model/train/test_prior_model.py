"""The prior stage on a handful of tiny pictures: whole runs, resuming, its losses, and what the joint stage takes over."""

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import yaml

from oracles.released_fixtures import gpen_state
from sgpn_arch import build_network
from sgpn_arch.errors import OptionError
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.stylegan2_arch import ConcatStyleGAN2Generator
from sgpn_data.sheet import SMALLEST_CELL
from sgpn_model.config.reading import read_options
from sgpn_model.config.registries import fill_registries
from sgpn_model.train import loop as train
from sgpn_model.train.initialise import initialise_from_prior
from sgpn_model.train.joint_model import SGPNModel
from sgpn_model.train.losses import path_lengths
from sgpn_model.train.prior_model import SAMPLES, PriorModel
from sgpn_model.train.training_model import TrainingModel
from sgpn_model.weights.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

IMAGES, SIZE = 6, 64
CPU = torch.device("cpu")
TINY = {"size": SIZE, "width": 0.02, "max_channels": 8}
OPTIONS = Path(__file__).parents[3] / "options" / "train"


# -- Material ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pictures(tmp_path_factory, astronaut):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(IMAGES):
        part = astronaut[40 + number : 168 + number, 160:288]
        cv2.imwrite(str(folder / f"{number}.png"), cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_AREA))
    return folder


@pytest.fixture(autouse=True)
def process_settings():
    """Training seeds the process and sets OpenCV's threads; other tests should not notice."""
    threads, state = cv2.getNumThreads(), torch.get_rng_state()
    torch.manual_seed(0)
    yield
    cv2.setNumThreads(threads)
    torch.set_rng_state(state)


def prior_options(pictures, folder, name="prior", **train_options):
    dataset = {
        "type": "FaceRestorationDataset",
        "dataroot": str(pictures),
        "size": SIZE,
        "degradation": None,
        "batch_size_per_gpu": 4,
    }
    return {
        "name": name,
        "model_type": "PriorModel",
        "manual_seed": 1,
        "num_threads": 1,  # sums of several threads differ from run to run in their last bit
        "device": "cpu",
        "datasets": {"train": dataset, "val": {**dataset, "batch_size_per_gpu": 2}},
        "network_g": {"type": "ConcatStyleGAN2Generator", **TINY, "style_dim": 16, "mapping_layers": 3},
        "network_d": {"type": "SGPNDiscriminator", **TINY},
        "path": {"experiments_root": str(folder)},
        "val": {"val_freq": 100, "save_images": 3},
        "logger": {"print_freq": 1, "save_checkpoint_freq": 100, "use_tb_logger": False},
        "train": {
            "total_iter": 4,
            "optim_g": {"type": "Adam", "lr": 2.0e-3, "betas": [0.0, 0.99]},
            "optim_d": {"type": "Adam", "lr": 2.0e-3, "betas": [0.0, 0.99]},
            "gan": {"r1_every": 2},
            "path_length": {"every": 3},
            "augment": {"p": 0.3, "every": 2, "ramp_images": 100},
            **train_options,
        },
    }


def run(folder, options, *overrides, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{options['name']}.yml"
    path.write_text(yaml.safe_dump(options))
    return train.run(str(path), overrides, **settings)


def log_lines(experiment, phase):
    lines = [json.loads(line) for line in (experiment / "log" / "train.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == phase]


def build_model(options, kind=PriorModel):
    fill_registries()
    torch.manual_seed(0)
    return kind(options, CPU)


def batch(count=4, value=None):
    hq = torch.rand(count, 3, SIZE, SIZE) * 2 - 1 if value is None else value.expand(count, 3, SIZE, SIZE)
    return {"hq": hq.contiguous(), "path": [f"{i}.png" for i in range(count)]}


def sgpn_options(**changes):
    coefficients = sum(MorphableModel.open().dims) + 3 + 27 + 3
    return {"type": "SGPN", **TINY, "style_dim": 16, "latent_dim": 8, "coeff_dim": coefficients, **changes}


# -- Whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def prior_run(pictures, tmp_path_factory):
    """Four steps with R1 at 0 and 2 and path lengths at 0 and 3, validated twice."""
    folder = tmp_path_factory.mktemp("prior")
    return run(folder, prior_options(pictures, folder), "val.val_freq=2")


class TestRun:
    def test_the_log_is_whole_and_finite(self, prior_run):
        lines = log_lines(prior_run, "train")
        wanted = {"l_g", "l_d", "logit_real", "logit_fake", "r_t", "augment_p"}
        assert [line["step"] for line in lines] == [1, 2, 3, 4]
        for line in lines:
            assert wanted <= line.keys()
            assert all(math.isfinite(value) for value in line.values() if not isinstance(value, str))
        assert ["l_r1" in line for line in lines] == [True, False, True, False]
        assert ["l_path" in line for line in lines] == [True, False, False, True]
        # Two steps of four pictures move p by 8 of 100.
        moves = [round(abs(line["augment_p"] - 0.3), 6) for line in lines]
        assert moves[0] == 0 and moves[1] == moves[2] == 0.08 and moves[3] in (0, 0.16)

    def test_validation_shows_faces_and_samples_of_each(self, prior_run):
        scores = {"logit_real", "logit_fake", "spread_real", "spread_fake"}
        for line in log_lines(prior_run, "val"):
            assert scores <= line.keys() and all(math.isfinite(line[name]) for name in scores)
        sheets = [cv2.imread(str(prior_run / "visualization" / f"{step}.jpg")) for step in (2, 4)]
        for sheet in sheets:
            assert sheet.shape[0] > 3 * SMALLEST_CELL and sheet.shape[1] > (1 + SAMPLES) * SMALLEST_CELL
        np.testing.assert_array_equal(*(sheet[:, : SMALLEST_CELL - 16] for sheet in sheets))  # the real faces
        samples = [sheet[:, -SAMPLES * SMALLEST_CELL :] for sheet in sheets]
        assert (samples[0] != samples[1]).any(), "the generator learnt"

    def test_the_checkpoint_says_what_it_is(self, prior_run):
        checkpoint = load_checkpoint(prior_run / "models" / "prior_4.safetensors")
        about = checkpoint.metadata
        assert about["stage"] == "prior" and about["size"] == SIZE and about["template"] == "ffhq"
        assert 0 <= about["augment_p"] <= 0.8 and about["step"] == 4
        generator = checkpoint.network("network_g")
        assert isinstance(generator, ConcatStyleGAN2Generator)
        assert checkpoint.network("network_d")(generator(torch.randn(2, 16))).shape == (2, 1)

    def test_a_run_can_start_from_another(self, prior_run, pictures, tmp_path):
        weights = str(prior_run / "models" / "prior_4.safetensors")
        options = prior_options(pictures, tmp_path)
        options["path"].update(pretrain_network_g=weights, pretrain_network_d=weights)
        model = build_model(options)
        for name, state in load_checkpoint(weights).weights.items():
            for key, value in model.networks[name].state_dict().items():
                assert torch.equal(value, state[key]), (name, key)


def test_an_interrupted_run_ends_bit_by_bit_as_a_straight_one(pictures, tmp_path):
    """p, the counts behind it and the mean path length go on as well; the interruption falls between two moves of p."""
    augment = {"p": 0.3, "every": 2, "ramp_images": 100, "target": -1.0}
    changes = {"total_iter": 5, "augment": augment, "path_length": {"every": 2}}
    straight = run(tmp_path, prior_options(pictures, tmp_path / "straight", "run", **changes))
    options = prior_options(pictures, tmp_path / "resumed", "run", **changes)
    original = TrainingModel.set_learning_rate
    with pytest.MonkeyPatch.context() as patch:

        def interrupted(model, step):
            if step == 3:
                raise KeyboardInterrupt
            return original(model, step)

        patch.setattr(TrainingModel, "set_learning_rate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, options, "logger.save_checkpoint_freq=3")
    resumed = run(tmp_path, options, auto_resume=True)
    one, other = (load_checkpoint(path / "models" / "run_5.safetensors") for path in (straight, resumed))
    for name, state in one.weights.items():
        for key, value in state.items():
            assert torch.equal(value, other.weights[name][key]), (name, key)
    assert one.metadata["augment_p"] == other.metadata["augment_p"] != 0.3
    last = [log_lines(path, "train")[-1] for path in (straight, resumed)]
    for name in ("l_g", "l_d", "l_path", "path_length", "r_t", "augment_p"):
        assert last[0][name] == last[1][name], name


# -- Learning ---------------------------------------------------------------------------------------------------------


def test_it_learns_the_colour_of_its_data(pictures, tmp_path):
    """From pictures of one colour, a generator that knows nothing finds that colour."""
    colour = torch.tensor([0.6, -0.4, 0.1])[None, :, None, None]
    rates = {"type": "Adam", "lr": 1.0e-2, "betas": [0.0, 0.99]}
    settings = {"optim_g": rates, "optim_d": rates, "gan": {"r1_weight": 1.0, "r1_every": 4}, "ema_decay": 0.9}
    model = build_model(prior_options(pictures, tmp_path, path_length=None, augment=None, **settings))
    z = torch.randn(16, 16)

    def distance():
        with torch.no_grad():
            made = model.ema["network_g"](z)
        return (made.mean(dim=(2, 3), keepdim=True) - colour).norm(dim=1).mean().item()

    before, distances = distance(), []
    for step in range(60):
        model.feed_data(batch(4, colour))
        model.optimize_parameters(step)
        distances += [distance()] if step >= 40 and step % 5 == 4 else []
    assert sum(distances) / len(distances) < 0.4 * before, (before, distances)


class TestAugmentation:
    def model(self, pictures, tmp_path, **changes):
        options = prior_options(pictures, tmp_path, path_length=None, **changes)
        return build_model(options)

    @pytest.mark.parametrize(("bias", "direction"), [(100.0, 1), (-100.0, -1)])
    def test_p_follows_the_discriminator(self, pictures, tmp_path, bias, direction):
        """One that is sure of every real picture, and one that takes them all for made."""
        model = self.model(pictures, tmp_path, augment={"p": 0.4, "every": 1, "ramp_images": 100})
        with torch.no_grad():
            model.networks["network_d"].final_linear[1].bias.fill_(bias)
        for step in range(3):
            model.feed_data(batch())
            model.optimize_parameters(step)
        assert model.adaptive.p == pytest.approx(0.4 + direction * 0.12)
        assert model.log["r_t"] == direction and model.log["augment_p"] == model.adaptive.p

    def test_all_processes_move_it_together(self, pictures, tmp_path, monkeypatch):
        """Three times as many pictures are seen, and another process's logits outweigh this one's."""
        model = self.model(pictures, tmp_path, augment={"p": 0.4, "every": 1, "ramp_images": 100})
        with torch.no_grad():
            model.networks["network_d"].final_linear[1].bias.fill_(100.0)
        monkeypatch.setattr("sgpn_model.train.prior_model.distributed", processes(0, 3))
        others = torch.tensor([-8.0, 8.0], dtype=torch.float64)
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: values.add_(others))
        model.feed_data(batch())
        model.optimize_parameters(0)
        assert model.adaptive.p == pytest.approx(0.4 - 12 / 100)
        assert model.log["r_t"] == pytest.approx((4 - 8) / 12)

    def test_training_never_shows_the_discriminator_a_plain_picture(self, pictures, tmp_path, monkeypatch):
        model = self.model(pictures, tmp_path, gan={"r1_every": 1})
        augmented, seen, discriminator = [], [], model.networks["network_d"]
        monkeypatch.setattr(model, "augmentation", lambda images, *_: augmented.append(images * 1.0) or augmented[-1])
        forward = discriminator.forward
        monkeypatch.setattr(discriminator, "forward", lambda images: seen.append(images) or forward(images))
        model.feed_data(batch())
        model.optimize_parameters(0)
        assert len(seen) == 4, "made pictures for the generator; real and made ones, and R1's"
        assert all(any(picture is one for one in augmented) for picture in seen)

    def test_r1_goes_through_it(self, pictures, tmp_path, monkeypatch):
        """An augmentation that doubles the contrast makes the penalty four times what it is at the doubled pictures."""
        model = self.model(pictures, tmp_path)
        discriminator, real = model.networks["network_d"].requires_grad_(True), batch()["hq"]
        monkeypatch.setattr(model, "_augment", lambda images: images * 2)
        model._r1(discriminator, real)
        doubled = model.log["l_r1"]
        monkeypatch.setattr(model, "_augment", lambda images: images)
        model._r1(discriminator, real * 2)
        assert doubled == pytest.approx(4 * model.log["l_r1"], rel=1e-4)

    def test_r1_reaches_the_discriminator_through_the_real_one(self, pictures, tmp_path):
        model = self.model(pictures, tmp_path, augment={"p": 0.8, "target": None})
        discriminator = model.networks["network_d"].requires_grad_(True)
        model._r1(discriminator, batch()["hq"]).backward()
        gradient = discriminator.from_rgb.conv.weight.grad
        assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0

    def test_off(self, pictures, tmp_path):
        model = self.model(pictures, tmp_path, augment=None)
        model.feed_data(batch())
        for step in range(5):
            model.optimize_parameters(step)
        assert model.adaptive.p == 0 and model._augment(model.batch["hq"]) is model.batch["hq"]


def test_path_lengths_are_the_norms_of_the_jacobians_products():
    """With directions of ones, the product is the gradient of the picture's sum, here by differences."""
    generator = ConcatStyleGAN2Generator(**TINY, style_dim=6, mapping_layers=1).double()
    w = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    noise = generator.draw_noise(w)
    images = generator.synthesise(w, noise)
    found = path_lengths(images, w, torch.ones_like(images))
    steps = torch.eye(6, dtype=torch.float64) * 1e-6
    with torch.no_grad():
        sums = [[generator.synthesise(w + s * step, noise).sum(dim=(1, 2, 3)) for s in (1, -1)] for step in steps]
    expected = torch.stack([(up - down) / 2e-6 for up, down in sums]).norm(dim=0) / SIZE
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert torch.autograd.grad(found.sum(), generator.decoder.convs[0].conv.weight)[0].abs().sum() > 0


def test_path_length_penalty_and_its_mean(pictures, tmp_path, monkeypatch):
    options = prior_options(
        pictures, tmp_path, path_length={"loss_weight": 3.0, "every": 5, "batch_shrink": 2, "mean_decay": 0.25}
    )
    model = build_model(options)
    model.feed_data(batch(4))
    lengths = torch.tensor([1.0, 3.0], requires_grad=True)
    monkeypatch.setattr("sgpn_model.train.prior_model.path_lengths", lambda images, *_: lengths[: len(images)])
    penalty = model._path_length_penalty(model.networks["network_g"])
    assert model.mean_path_length == 0.5  # a quarter of the way from 0 to 2
    assert penalty.item() == pytest.approx(3 * 5 * (0.5**2 + 2.5**2) / 2)


def processes(rank, count):
    return SimpleNamespace(rank=lambda: rank, world_size=lambda: count)


def test_steps_their_batches_and_processes_have_their_own_latents(pictures, tmp_path, monkeypatch):
    model = build_model(prior_options(pictures, tmp_path))
    drawn = {}
    for step, part, rank in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        monkeypatch.setattr("sgpn_model.train.prior_model.distributed", processes(rank, 2))
        model._part = part
        model._seed(step)
        drawn[step, part, rank] = model._latents(4)
        torch.rand(2)
        model._seed(step)
        assert torch.equal(drawn[step, part, rank], model._latents(4))
    assert len({tuple(z.flatten().tolist()) for z in drawn.values()}) == 4


def test_a_step_of_two_batches(pictures, tmp_path):
    """Both count for p, and the networks move once."""
    options = prior_options(pictures, tmp_path, augment={"p": 0.3, "target": -1.0, "every": 1, "ramp_images": 100})
    model = build_model(options)
    log = model.train_step([batch(), batch()], 0)
    assert all(math.isfinite(value) for value in log.values())
    assert model.adaptive.p == pytest.approx(0.38)
    for optimizer in model.optimizers.values():
        assert {state["step"].item() for state in optimizer.state.values()} == {1}


def test_samples_depend_on_the_item_alone(pictures, tmp_path):
    model = build_model(prior_options(pictures, tmp_path))
    with torch.no_grad():
        first = model._samples("/one/place/a.png")
        torch.rand(3)
        assert torch.equal(first, model._samples("/another/a.png"))
        assert not torch.equal(first, model._samples("/one/place/b.png"))


def test_the_signal_keeps_its_size_through_a_new_generator():
    """While its noise is off, half of every layer's input is nothing; that must not starve the last scales."""
    generator = ConcatStyleGAN2Generator(size=512, width=0.06, max_channels=32, style_dim=32, mapping_layers=1)
    deviations = []
    for conv in generator.decoder.convs:
        conv.conv.register_forward_hook(lambda *parts: deviations.append(parts[-1].std().item()))
    with torch.no_grad():
        generator(torch.randn(2, 32))
    assert len(deviations) == 14 and min(deviations) > 0.1 and max(deviations) < 3, deviations


# -- The joint stage --------------------------------------------------------------------------------------------------


def write_prior(path, **changes):
    options = {"type": "ConcatStyleGAN2Generator", **TINY, "style_dim": 16, "mapping_layers": 3, **changes}
    network = build_network(options)
    save_checkpoint(path, {"network_g": network.state_dict()}, {"archs": {"network_g": options}})
    return network


class TestJointStage:
    def test_takes_decoder_and_mapping(self, tmp_path, caplog):
        prior = write_prior(tmp_path / "prior.safetensors")
        network = build_network(sgpn_options())
        before = {key: value.clone() for key, value in network.state_dict().items()}
        with caplog.at_level(logging.INFO, "sgpn"):
            report = initialise_from_prior(network, str(tmp_path / "prior.safetensors"))
        after, theirs = network.state_dict(), prior.state_dict()
        for key in report.taken:
            assert torch.equal(after[key], theirs[key]), key
        left = after.keys() - set(report.taken)
        assert all(torch.equal(after[key], before[key]) for key in left)
        masks = {key for key in left if ".fusion.mask." in key}
        encoder = {key for key in left if key.startswith("encoder.")}
        assert left == masks | encoder | {"mapping.layers.0.weight"} and masks and encoder
        assert report.unfit == ["mapping.layers.0.weight"] and report.unused == []
        assert f"{len(report.taken)} tensors initialise network_g" in caplog.text
        # The same w and the same noise in both slots make the same picture.
        w, noise = torch.randn(2, 16), prior.draw_noise(torch.empty(2))
        torch.testing.assert_close(network.decoder(w, noise, noise)[0], prior.synthesise(w, noise))

    def test_a_smaller_prior_gives_the_lower_scales(self, tmp_path):
        prior = write_prior(tmp_path / "prior.safetensors")
        network = build_network(sgpn_options(size=128))
        report = initialise_from_prior(network, str(tmp_path / "prior.safetensors"))
        assert all(f"decoder.{key}" in report.taken for key in prior.decoder.state_dict())
        assert "decoder.to_rgbs.4.bias" in report.absent

    def test_a_deeper_mapping_gives_its_last_layers(self, tmp_path):
        prior = write_prior(tmp_path / "prior.safetensors", mapping_layers=5, mapping_lr_mul=0.02)
        network = build_network(sgpn_options())
        report = initialise_from_prior(network, str(tmp_path / "prior.safetensors"))
        assert [key for key in report.unused if key.endswith("weight")] == [
            f"mapping.layers.{i}.weight" for i in (0, 1)
        ]
        x = torch.randn(3, 16)
        for ours, theirs in ((1, 3), (2, 4)):
            torch.testing.assert_close(network.mapping.layers[ours](x), prior.mapping.layers[theirs](x))

    def test_takes_gpens_too(self, tmp_path):
        shape = {"width": 1 / 64, "max_channels": 24}
        state = gpen_state(size=SIZE, **shape)
        torch.save({"g_ema": state}, tmp_path / "gpen.pth")
        network = build_network(sgpn_options(**shape))
        report = initialise_from_prior(network, str(tmp_path / "gpen.pth"))
        assert "encoder.stages.1.conv.weight" in report.taken and "decoder.convs.3.conv.weight" in report.taken
        assert torch.equal(network.state_dict()["decoder.input.input"], state["generator.input.input"])

    def test_through_the_options(self, prior_run, pictures, tmp_path):
        weights = str(prior_run / "models" / "prior_4.safetensors")
        options = prior_options(pictures, tmp_path)
        options.update(model_type="SGPNModel", network_g=sgpn_options())
        dims = dict(zip(("id_dim", "exp_dim", "tex_dim"), MorphableModel.open().dims, strict=True))
        options["network_shape"] = {"type": "TinyD3DFR", **dims}
        options["path"].update(pretrain_prior=weights, pretrain_network_d=weights)
        options["train"] = {
            "total_iter": 1,
            "losses": {"pixel": {"type": "L1Loss"}},
            **{name: {"type": "Adam", "lr": 1.0e-3} for name in ("optim_g", "optim_d", "optim_shape")},
        }
        model = build_model(options, SGPNModel)
        stored = load_checkpoint(weights).weights
        for networks in (model.networks, model.ema):
            assert torch.equal(networks["network_g"].decoder.input.input, stored["network_g"]["decoder.input.input"])
        for key, value in model.networks["network_d"].state_dict().items():
            assert torch.equal(value, stored["network_d"][key]), key
        options["path"]["pretrain_network_g"] = weights
        with pytest.raises((OptionError, CheckpointError)):
            build_model(options, SGPNModel)

    def test_what_is_no_prior_is_refused(self, tmp_path, tiny_weights):
        network = build_network(sgpn_options())
        with pytest.raises(CheckpointError, match="its network_g is SGPN, no prior"):
            initialise_from_prior(network, tiny_weights)
        write_prior(tmp_path / "wide.safetensors", width=0.1, max_channels=32)
        with pytest.raises(CheckpointError, match=r"wide\.safetensors: no convolution of it fits"):
            initialise_from_prior(network, str(tmp_path / "wide.safetensors"))
        torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match=r"other\.pth: no tensor fits"):
            initialise_from_prior(network, str(tmp_path / "other.pth"))


# -- Options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"gan": {"r1_evry": 1}}}, "train.gan.r1_evry: unknown option.*'r1_every'"),
        ({"train": {"path_length": {"weight": 1}}}, "train.path_length.weight: unknown option"),
        ({"train": {"augment": {"targt": 1}}}, "train.augment.targt: unknown option.*'target'"),
        ({"train": {"augment": {"p": 2}}}, "train.augment.p: expected a number from 0 to 1, found 2"),
        ({"train": {"augment": {"kinds": {"blur": 1}}}}, "train.augment.kinds.blur: unknown option; known: brightness"),
        ({"train": {"landmark_weight": 1}}, "train.landmark_weight: unknown option"),
        ({"network_g": sgpn_options()}, "network_g.type: SGPN makes no pictures of latents and noise"),
    ],
)
def test_wrong_options_are_named(pictures, tmp_path, changes, message):
    options = prior_options(pictures, tmp_path)
    for section, content in changes.items():
        options[section] = {**options[section], **content}
    with pytest.raises(OptionError, match=message):
        build_model(options)


@pytest.mark.parametrize(
    ("prior", "joint"), [("prior_open_256.yml", "sgpn_open_256.yml"), ("prior_open_64.yml", "sgpn_open_256.yml")]
)
def test_the_priors_fit_the_joint_stages(prior, joint):
    prior, joint = (read_options(OPTIONS / file)[0] for file in (prior, joint))
    with torch.device("meta"):
        theirs = build_network(prior["network_g"]).decoder.state_dict()
        ours = build_network(joint["network_g"]).decoder.state_dict()
        if prior["network_g"]["size"] == joint["network_g"]["size"]:
            shapes = [
                {key: value.shape for key, value in build_network(options["network_d"]).state_dict().items()}
                for options in (prior, joint)
            ]
            assert shapes[0] == shapes[1]
    assert all(ours[key].shape == value.shape for key, value in theirs.items())
    assert prior["network_g"]["mapping_layers"] == joint["network_g"].get("mapping_layers", 3)


def test_the_papers_prior_has_the_released_decoder():
    options = read_options(OPTIONS / "prior_paper_512.yml")[0]
    with torch.device("meta"):
        theirs, ours = build_network(options["network_g"]).decoder, build_network({"type": "SGPN"}).decoder
    shapes = {key: value.shape for key, value in ours.state_dict().items() if ".fusion." not in key}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}
