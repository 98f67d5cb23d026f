"""The ablation: two tiny variants trained over two seeds, tested and compared; what is done is not done again."""

import json

import cv2
import pytest
import yaml

from sgpn_arch.errors import OptionError
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_model import cli
from sgpn_model.evaluate import variants as ablate
from sgpn_model.train.joint_model import SGPNModel

SIZE, STEPS = 64, 2
TINY = {"size": SIZE, "width": 0.02, "max_channels": 8}


@pytest.fixture(scope="module")
def files(tmp_path_factory, astronaut):
    """Option files of the full model and of variant A."""
    folder = tmp_path_factory.mktemp("ablation")
    (folder / "faces").mkdir()
    for number in range(4):
        face = cv2.resize(astronaut[30 : 190 + number, 150 : 310 + number], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / "faces" / f"{number}.png"), face)
    identity, expression, texture = MorphableModel.open().dims
    data = {
        "type": "FaceRestorationDataset",
        "dataroot": str(folder / "faces"),
        "size": SIZE,
        "degradation": {"preset": "gfpgan", "reference_size": 512},
        "batch_size_per_gpu": 2,
    }
    options = {
        "name": "full",
        "model_type": "SGPNModel",
        "num_threads": 1,
        "device": "cpu",
        "datasets": {"train": data, "val": data},
        "network_g": {
            "type": "SGPN", **TINY, "style_dim": 16, "latent_dim": 8, "coeff_dim": identity + expression + texture + 33,
        },
        "network_shape": {
            "type": "TinyD3DFR", "id_dim": identity, "exp_dim": expression, "tex_dim": texture,
        },
        "train": {
            "total_iter": STEPS,
            "optim_g": {"type": "Adam", "lr": 2.0e-3},
            "optim_shape": {"type": "Adam", "lr": 1.0e-5},
            "losses": {"pixel": {"type": "L1Loss"}},
            "gan": None,
        },
        "logger": {"print_freq": 1, "save_checkpoint_freq": 1, "use_tb_logger": False},
    }  # fmt: skip
    (folder / "full.yml").write_text(yaml.safe_dump(options))
    (folder / "a.yml").write_text("_base_: full.yml\nname: variant_a\nnetwork_g: {fusion: LQOnly}\n")
    return [str(folder / "full.yml"), str(folder / "a.yml")]


@pytest.fixture(scope="module")
def done(files, tmp_path_factory):
    """The output folder of a whole ablation by the command."""
    output = tmp_path_factory.mktemp("out") / "ablation"
    assert cli.main(["ablate", *files, "-o", str(output), "--seeds", "3", "5"]) == 0
    return output


def checkpoints(output):
    return {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}


class TestReport:
    def test_every_variant_is_trained_with_every_seed(self, done):
        for seed in (3, 5):
            for variant in ("full", "variant_a"):
                assert (done / f"seed_{seed}" / variant / "models" / f"{variant}_{STEPS}.safetensors").is_file()

    def test_the_table_is_the_mean_of_the_tests(self, done):
        report = json.loads((done / "report.json").read_text())
        tests = [json.loads((done / f"seed_{seed}" / "test" / "report.json").read_text())["table"] for seed in (3, 5)]
        assert set(report["table"]) >= {"degraded input", "full", "variant_a", "ground truth"}
        # What cannot be measured here is said rather than lost.
        assert set(report["table"]["variant_a"]) >= {"psnr", "ssim", "perceptual_mnv2", "frechet_mnv2"}
        for metric in ablate.METRICS:
            if metric not in report["table"]["variant_a"]:
                assert any(metric in why for why in report["left_out"])
                assert f"- {metric}" in (done / "report.md").read_text()
                continue
            values = [table["variant_a"][metric] for table in tests]
            cell = report["table"]["variant_a"][metric]
            assert cell["mean"] == pytest.approx(sum(values) / 2)
            assert (cell["low"], cell["high"]) == pytest.approx((min(values), max(values)))
            less = [table["variant_a"][metric] - table["full"][metric] for table in tests]
            assert report["difference"]["variant_a"][metric]["mean"] == pytest.approx(sum(less) / 2)

    def test_it_says_what_a_variant_changes(self, done):
        report = json.loads((done / "report.json").read_text())
        assert report["settings"]["changes"] == {"full": {}, "variant_a": {"network_g.fusion": "LQOnly"}}
        text = (done / "report.md").read_text()
        assert "| variant_a |" in text and "network_g.fusion: LQOnly" in text and "train.total_iter: 2" in text

    def test_curves_and_pictures(self, done):
        assert cv2.imread(str(done / "curves.png")).std() > 5
        # Four faces: input, truth, result of A; rendering, mask and result of the full model.
        assert cv2.imread(str(done / "grid.jpg")).std() > 20


class TestAgain:
    def test_what_is_done_is_skipped(self, files, done):
        before = checkpoints(done)
        ablate.run(files, str(done), [3, 5])
        assert checkpoints(done) == before

    def test_a_seed_more_is_added(self, files, done, tmp_path):
        before = checkpoints(done)
        report = ablate.run(files, str(done), [3, 5, 6])
        assert {path: time for path, time in checkpoints(done).items() if path in before} == before
        assert set(report["seeds"]) == {"3", "5", "6"}

    def test_a_run_that_was_stopped_goes_on(self, files, tmp_path, monkeypatch):
        whole = ablate.run(files[:1], str(tmp_path / "whole"), [1])
        step = SGPNModel.optimize_parameters

        def stop_at_the_second(model, number):
            if number == 1:
                raise ZeroDivisionError("the power fails")
            step(model, number)

        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(SGPNModel, "optimize_parameters", stop_at_the_second)
            ablate.run(files[:1], str(tmp_path / "stopped"), [1])
        assert ablate.run(files[:1], str(tmp_path / "stopped"), [1])["table"] == whole["table"]

    def test_other_options_are_refused_before_work(self, files, done):
        before = checkpoints(done)
        with pytest.raises(OptionError, match=r"seed_3.full: was trained with other options.*total_iter: 2 -> 9"):
            ablate.run(files, str(done), [3, 5], ["train.total_iter=9"])
        assert checkpoints(done) == before

    def test_logging_and_device_may_differ(self, files, done):
        ablate.plan(files, done, [3, 5], ["logger.print_freq=7", "device=auto"])


class TestRefusals:
    def test_two_variants_of_one_name(self, files, tmp_path):
        with pytest.raises(OptionError, match="two of them are called 'full'"):
            ablate.run([files[0], files[0]], str(tmp_path), [0])

    @pytest.mark.parametrize("seeds", [[], [1, 1]])
    def test_seeds(self, files, tmp_path, seeds):
        with pytest.raises(OptionError, match="--seeds"):
            ablate.run(files, str(tmp_path), seeds)

    def test_a_wrong_file_stops_before_any_training(self, files, tmp_path):
        (tmp_path / "wrong.yml").write_text(f"_base_: {files[0]}\nname: wrong\ntrain: {{totl_iter: 3}}\n")
        assert cli.main(["ablate", files[0], str(tmp_path / "wrong.yml"), "-o", str(tmp_path / "out")]) == 1
        assert not (tmp_path / "out").exists()


def test_one_seed_has_no_spread():
    scores = {0: {"full": {"psnr": 25.0}, "b": {"psnr": 24.0}}}
    report = {**ablate.compare(scores, ["full", "b"])}
    report["left_out"] = []
    report["settings"] = {
        "changes": {"full": {}, "b": {"x": 1}},
        "files": {"full": "f.yml", "b": "b.yml"},
        "options": {},
    }
    text = ablate.markdown(report, 1)
    assert text.startswith("# Ablation with one seed\n")
    assert "| b | 24.000 |" in text and "| b | -1.000 |" in text
    assert "| b | 24.000 (24.000 to 24.000) |" in ablate.markdown(report, 2)


def test_differences_are_taken_seed_by_seed():
    scores = {
        0: {"degraded input": {"psnr": 20.0}, "full": {"psnr": 25.0}, "b": {"psnr": 24.0}},
        1: {"degraded input": {"psnr": 20.0}, "full": {"psnr": 27.0}, "b": {"psnr": 26.5}},
    }
    report = ablate.compare(scores, ["full", "b"])
    assert report["table"]["full"]["psnr"] == {"mean": 26.0, "low": 25.0, "high": 27.0}
    assert report["difference"] == {"b": {"psnr": {"mean": -0.75, "low": -1.0, "high": -0.5}}}
