"""Every option file that ships: it loads, what it names exists, its networks can be built and fit; and what a check refuses."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from sgpn_arch.errors import OptionError
from sgpn_arch.registry import ARCH_REGISTRY, MODEL_REGISTRY
from sgpn_model.config.checking import check_networks, checked_options
from sgpn_model.train.joint_model import SGPNModel

ROOT = Path(__file__).parents[3]
SHIPPED = sorted((ROOT / "options").rglob("*.yml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_it_passes_the_check_and_its_networks_are_those_of_its_stage(path):
    assert path.read_text(encoding="utf-8").startswith("# ")  # says what it is for
    options, _ = checked_options(path, files=False)
    assert options["name"]
    if "model_type" not in options:
        return
    networks = check_networks(options, MODEL_REGISTRY.get(options["model_type"]))
    assert networks and all(p.is_meta for network in networks.values() for p in network.parameters())
    if "network_shape" in networks:
        with torch.device("meta"):
            coeffs = networks["network_shape"].eval()(torch.empty(1, 3, 224, 224))
        assert coeffs.shape[1] == getattr(networks.get("network_g"), "coeff_dim", coeffs.shape[1])


@pytest.mark.parametrize("stage", ["prior", "shape", "sgpn"])
def test_the_papers_stages_are_what_the_paper_says(stage):
    options, _ = checked_options(ROOT / f"options/train/{stage}_paper_512.yml", files=False)
    train = options["datasets"]["train"]
    assert train["size"] == 512 and train["batch_size_per_gpu"] * 8 == 32
    if stage != "prior":
        shape = options["network_shape"]
        assert (shape["backbone"], shape["id_dim"], shape["exp_dim"], shape["tex_dim"]) == ("resnet50", 80, 64, 80)
        assert options["train"]["mesh_weight"] == 100 and options["protocol"] == "released"
    if stage == "sgpn":
        assert options["train"]["total_iter"] == 400_000 and options["train"]["landmark_weight"] == 100
        assert options["train"]["gan"] == {"loss_weight": 1.0, "r1_weight": 10, "r1_every": 16}
        for name in ("optim_g", "optim_d"):
            assert options["train"][name]["type"] == "Adam" and options["train"][name]["lr"] == 0.002


def test_what_a_stage_starts_from_is_what_the_stage_before_writes():
    joint, prior, shape = (
        checked_options(ROOT / f"options/train/{stage}_paper_512.yml", files=False)[0]
        for stage in ("sgpn", "prior", "shape")
    )
    for key, before in (("pretrain_prior", prior), ("pretrain_network_shape", shape)):
        name, step = before["name"], before["train"]["total_iter"]
        assert joint["path"][key] == f"experiments/{name}/models/{name}_{step}.safetensors"
    wanted = {key: joint["network_g"][key] for key in ("size", "width", "max_channels", "style_dim")}
    assert {key: prior["network_g"][key] for key in wanted} == wanted
    assert joint["network_shape"] == shape["network_shape"] and joint["protocol"] == shape["protocol"]


def test_stages_that_are_chained_see_faces_of_one_size_and_alignment():
    """A file names the experiment that it starts from; the two train on the same faces."""
    files = [checked_options(path, files=False)[0] for path in SHIPPED]
    written = {options["name"]: options for options in files if "model_type" in options}
    pairs = 0
    for options in written.values():
        for value in options.get("path", {}).values():
            before = re.fullmatch(r"experiments/(.+)/models/.*", str(value))
            if before and before[1] in written:
                pairs += 1
                ours, theirs = (each["datasets"]["train"] for each in (options, written[before[1]]))
                assert ours.get("template", "ffhq") == theirs.get("template", "ffhq"), (options["name"], before[1])
                assert ours.get("dataroot") == theirs.get("dataroot"), (options["name"], before[1])
    assert pairs >= 4


def test_there_are_files_of_every_kind():
    texts = [path.read_text(encoding="utf-8") for path in SHIPPED]
    for kind in ("PriorModel", "ShapeModel", "ShapeAdaptModel", "SGPNModel"):
        assert any(f"model_type: {kind}" in text for text in texts)
    assert any("restorers:" in text for text in texts)


class TestWholeFiles:
    """What the check finds in a file that reads well."""

    JOINT = ROOT / "options/train/sgpn_open_256.yml"

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("network_g.widht=1", "network_g.widht: unknown option; did you mean 'width'"),
            ("network_g.size='256'", "network_g.size: expected a power of two from 64 to 1024, found '256'"),
            ("network_g.size=100", "network_g.size: "),
            ("network_g.fusion=AFBF", "network_g.fusion: .*'AFBF'.*did you mean 'AFFB'"),
            ("network_g={size: 256}", "network_g.type: this option is missing"),
            ("network_x={type: SGPN}", "network_x: SGPNModel has no such network; did you mean 'network_"),
            ("network_g.coeff_dim=9", "network_g.coeff_dim: is 9, but network_shape gives 205"),
            ("network_d.size=128", "network_d.size: is 128, but network_g makes pictures of 256"),
            ("datasets.val.size=128", "datasets.val.size: is 128, but network_g makes"),
            ("datasets.train.chache=ram", "datasets.train.chache: unknown option; did you mean 'cache'"),
            ("datasets.train.degradation.preset=gfpgam", "datasets.train.degradation.preset: .*'gfpgam'.*'gfpgan'"),
            ("datasets.train.degradation.jpg=5", "datasets.train.degradation.jpg: .*did you mean 'jpeg'"),
            ("datasets.train.degradation.type=Degradatoin", "degradation.type: .*did you mean 'Degradation'"),
            ("train.losses.pixel.wieght=1", "train.losses.pixel.wieght: unknown option"),
            ("train.gan.r1_evry=1", "train.gan.r1_evry: unknown option; did you mean 'r1_every'"),
            ("train.landmark_frame=possed", "train.landmark_frame: .*did you mean 'posed'"),
            ("train.optim_g.momentum=1", "train.optim_g.momentum: unknown option"),
            ("precision=fp16", "precision: unknown value 'fp16'"),
            ("protocol=relesed", "protocol: unknown value 'relesed'; did you mean 'released'"),
            ("path.morphable_model=nowhere", None),
            ("train.start_from_input=nope", "train.start_from_input: expected true or false, found 'nope'"),
            (
                "train.optim_g.betas=5",
                "train.optim_g.betas: expected a pair, each a number of at least 0 and below 1, found 5",
            ),
            ("train.optim_g.betas=[0.5]", "train.optim_g.betas: expected a pair, each a number .*, found .0.5"),
            ("train.losses.pixel.loss_weight=abc", "train.losses.pixel.loss_weight: expected a number, found 'abc'"),
            ("device=quantum", "device: expected auto, cpu, cuda, cuda:NUMBER or mps, found 'quantum'"),
            ("name=", "name: "),
            ("name=''", "name: expected the name of a folder, without / or .*, found ''"),
            ("name=../other", "name: expected the name of a folder, without / or .*, found '../other'"),
            ("name=..", "name: expected the name of a folder"),
            ("datasets.train.cache=ramm", "datasets.train.cache: unknown value 'ramm'; did you mean 'ram'"),
            ("datasets.train.use_hflip=7", "datasets.train.use_hflip: expected true, false or ~ .nothing., found 7"),
            ("datasets.train.template=3", "datasets.train.template: expected ffhq or gpen, found 3"),
            ("datasets.train.min_size=x", "datasets.train.min_size: expected a whole number of at least 1, found 'x'"),
            (
                "datasets.train.inpaint.area=9",
                "datasets.train.inpaint.area: expected a number above 0 and of at most 1, or a pair",
            ),
        ],
    )
    def test_a_wrong_option_is_named_with_its_place(self, override, message):
        if message is None:  # a file that may come later
            checked_options(self.JOINT, [override], files=False)
            return
        with pytest.raises(OptionError, match=message) as caught:
            checked_options(self.JOINT, [override], files=False)
        assert str(caught.value).startswith(f"--set {override}: ")

    def test_all_mistakes_are_told_each_with_its_file(self, tmp_path):
        base = tmp_path / "base.yml"
        base.write_text(f"_base_: {self.JOINT}\nnetwork_g: {{fusoin: AFFB}}\nval: {{best: sharpness}}\n")
        top = tmp_path / "top.yml"
        top.write_text("_base_: base.yml\ntrain: {optim_g: {lr: -1}, losses: {pixel: {loss_weight: abc}}}\n")
        with pytest.raises(OptionError) as caught:
            checked_options(top, ["trian=1"], files=False)
        told = {problem.key: problem.source for problem in caught.value.problems}
        assert told == {
            "network_g.fusoin": str(base),
            "val.best": str(base),
            "train.optim_g.lr": str(top),
            "train.losses.pixel.loss_weight": str(top),
            "trian": "--set trian=1",
        }
        assert len(str(caught.value).splitlines()) == len(told)

    @pytest.mark.parametrize("line", ["on: 1", "4: 1", "train: {on: yes}", "datasets: {train: {degradation: {~: 1}}}"])
    def test_keys_are_text(self, tmp_path, line):
        (tmp_path / "top.yml").write_text(f"_base_: {self.JOINT}\n{line}\n")
        key = {"on: 1": "True", "4: 1": "4", "train: {on: yes}": "train.True"}.get(
            line, "datasets.train.degradation.None"
        )
        with pytest.raises(OptionError, match=rf"top.yml: {key}: keys are text, but YAML reads this one as"):
            checked_options(tmp_path / "top.yml", files=False)

    def test_data_must_be_there(self, tmp_path):
        overrides = [f"datasets.train.dataroot=[{tmp_path}, nowhere]", "datasets.val.landmarks=points.json"]
        overrides += ["datasets.val.dataroot=elsewhere", "path.pretrain_network_shape=~"]
        with pytest.raises(OptionError) as caught:
            checked_options(self.JOINT, overrides)
        assert sorted((problem.key, problem.text.partition(";")[0]) for problem in caught.value.problems) == [
            ("datasets.train.dataroot", "nowhere: no such folder"),
            ("datasets.val.dataroot", "elsewhere: no such folder"),
            ("datasets.val.landmarks", "points.json: no such file"),
        ]

    def test_the_file_of_an_inherited_mistake_is_named(self, tmp_path):
        base = tmp_path / "base.yml"
        base.write_text(f"_base_: {self.JOINT}\nnetwork_g: {{fusion: AFBF}}\n")
        (tmp_path / "top.yml").write_text("_base_: base.yml\nnetwork_g: {width: 0.05}\n")
        with pytest.raises(OptionError, match="'AFBF'") as caught:
            checked_options(tmp_path / "top.yml", files=False)
        assert str(caught.value).startswith(f"{base}: network_g.fusion: ")

    def test_weights_to_start_from_must_be_there(self):
        override = "path.pretrain_network_g=nowhere.safetensors"
        with pytest.raises(
            OptionError, match="(?m)^--set .*: path.pretrain_network_g: nowhere.safetensors: no such file"
        ):
            checked_options(self.JOINT, [override, "path.pretrain_network_shape=~"])
        checked_options(self.JOINT, [override], files=False)

    def test_a_network_without_pictures_of_its_weights_is_not_refused(self):
        class ReadsAFile(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = float(torch.ones(1).sum())  # the meta device has no values

        ARCH_REGISTRY.register(ReadsAFile)
        options, _ = checked_options(self.JOINT, files=False)
        options["network_g"] = {"type": "ReadsAFile"}
        assert set(check_networks(options, SGPNModel)) == {"network_d", "network_shape"}

    def test_its_size_counts_all_the_same(self):
        class ReadsAFileToo(nn.Module):
            def __init__(self, size=256):
                super().__init__()
                self.scale = float(torch.ones(1).sum())

        ARCH_REGISTRY.register(ReadsAFileToo)
        options, _ = checked_options(self.JOINT, files=False)
        options["network_g"], options["datasets"]["train"]["size"] = {"type": "ReadsAFileToo"}, 128
        with pytest.raises(OptionError, match="datasets.train.size: is 128, but network_g makes pictures of 256"):
            check_networks(options, SGPNModel)


class TestSwitchedOff:
    """``~`` switches a section off, whichever command or stage it is for."""

    def test_a_file_for_tests_may_inherit_one_for_training(self, tmp_path):
        own = "datasets: {train: ~, val: ~, test: {type: FaceRestorationDataset}}\nmetrics: [psnr]\nmodel_type: ~\ntrain: ~\n"
        off = "network_g: ~\nnetwork_d: ~\nnetwork_shape: ~\npath: ~\nval: ~\nlogger: ~\nprecision: ~\nmanual_seed: ~\n"
        (tmp_path / "top.yml").write_text(f"_base_: {ROOT / 'options/train/sgpn_open_64.yml'}\n{own}{off}")
        options, _ = checked_options(tmp_path / "top.yml", files=False)
        assert options == {"name": "sgpn_open_64"} | options and set(options) == {"name", "datasets", "metrics"} | set(
            options
        )
        assert list(options["datasets"]) == ["test"] and "model_type" not in options

    @pytest.mark.parametrize("override", ["datasets.val=~", "val=~", "network_d=~", "train.losses.extra=~", "path=~"])
    def test_sections_of_a_training(self, override):
        more = ["train.gan=~"] if override == "network_d=~" else ["val=~"]
        checked_options(ROOT / "options/train/sgpn_open_64.yml", [override, *more], files=False)

    def test_a_stage_without_that_network(self):
        checked_options(ROOT / "options/train/shape_open.yml", ["network_d=~", "datasets.val=~", "val=~"], files=False)

    def test_a_row_of_the_table(self):
        path = ROOT / "options/test/open_mild.yml"
        checked_options(path, ["restorers.old=~", "datasets.val=~"], files=False)

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("datasets.train=~", "datasets.train: this option is missing"),
            ("train.optim_g=~", "train.optim_g: "),
            ("train.losses=~", "train.losses: expected a mapping such as"),
            ("trian=~", "trian: unknown option; did you mean 'train'"),
            ("datasets.vall=~", "datasets.vall: unknown option; did you mean 'val'"),
        ],
    )
    def test_what_is_needed_or_misspelt_cannot_be(self, override, message):
        with pytest.raises(OptionError, match=message):
            checked_options(ROOT / "options/train/sgpn_open_64.yml", [override], files=False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"manual_seed={2**63}", "manual_seed: expected a whole number of at least 0, found 9223372036854775808"),
        (f"train.total_iter={10**40}", "train.total_iter: expected a whole number"),
        ("datasets.train.size=1", "datasets.train.size: expected a whole number from 16 to 4096, found 1"),
        ("network_g.style_dim=100000000", "network_g: would have .* weights, more than 5e.09; lower its widths"),
        (f"network_g.style_dim={10**18}", "network_g: .*lower its widths"),
        (f"network_g.latent_dim={10**12}", "network_g: .*lower its widths"),
        ("num_threads=100000", "num_threads: expected a whole number from 0 to 1024"),
        ("datasets.train.num_worker_per_gpu=100000", "num_worker_per_gpu: expected a whole number from 0 to 1024"),
        (f"name={'n' * 201}", "name: expected the name of a folder, .*of at most 200 bytes"),
        (f"name={'é' * 101}", "name: expected the name of a folder, .*of at most 200 bytes"),
        ('name="a\\nb"', "name: expected the name of a folder"),
        ("name=/absolute", "name: expected the name of a folder, without / or"),
    ],
)
def test_numbers_and_names_that_no_machine_takes(override, message):
    with pytest.raises(OptionError, match=message):
        checked_options(ROOT / "options/train/sgpn_open_64.yml", [override], files=False)


def test_nothing_hides_another_mistake(tmp_path):
    more = "network_g: {type: SGPM}\ntrain: {optim_g: {lr: fast}}\nval: {save_images: 1, save_images: 2}\n4: x\n"
    (tmp_path / "top.yml").write_text(f"_base_: {ROOT / 'options/train/sgpn_open_64.yml'}\n{more}")
    with pytest.raises(OptionError) as caught:
        checked_options(tmp_path / "top.yml", ["nonsense", "path.pretrain_network_g=~/nowhere.safetensors"], "train")
    told = {problem.key for problem in caught.value.problems}
    wanted = {"network_g.type", "train.optim_g.lr", "val.save_images", "4", "--set nonsense", "datasets.train.dataroot"}
    assert told >= wanted | {"path.pretrain_network_g"}, told
