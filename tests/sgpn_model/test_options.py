"""Option files: inheritance, overrides, refusals that say what to write instead, and every file that ships."""

from pathlib import Path

import pytest

from sgpn_arch import build_network
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.registry import LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from sgpn_model.options import OptionError, build, check_keys, check_plugin, load_options
from sgpn_model.pipeline.common import fill_registries

SHIPPED = sorted((Path(__file__).parents[2] / "options").rglob("*.yml"))

BASE = """
name: base
model_type: ShapeModel
datasets:
  train: {type: FaceRestorationDataset, dataroot: [a, b], size: 64}
train:
  total_iter: 10
  optim_g: {type: Adam, lr: 0.002, betas: [0.0, 0.99]}
  gan: {loss_weight: 1.0}
"""


@pytest.fixture
def write(tmp_path):
    """Writes an option file and returns its path."""

    def writer(text, name="options.yml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return writer


class TestInheritance:
    def test_a_variant_changes_only_what_differs(self, write):
        base = load_options(write(BASE, "base.yml"))
        heir = load_options(write("_base_: ../base.yml\nname: heir\ntrain: {optim_g: {lr: 0.001}}\n", "sub/heir.yml"))
        base["name"], base["train"]["optim_g"]["lr"] = "heir", 0.001
        assert heir == base

    def test_lists_and_switched_off_sections_replace_the_inherited_ones(self, write):
        write(BASE, "base.yml")
        heir = load_options(write("_base_: [base.yml]\ndatasets: {train: {dataroot: [c]}}\ntrain: {gan: ~}\n"))
        assert heir["datasets"]["train"]["dataroot"] == ["c"] and heir["datasets"]["train"]["size"] == 64
        assert heir["train"]["gan"] is None and heir["train"]["total_iter"] == 10

    def test_the_result_is_plain(self, write):
        options = load_options(write(BASE))
        assert type(options) is dict and type(options["train"]["optim_g"]) is dict

    def test_a_missing_base_is_named_with_its_heir(self, write):
        with pytest.raises(OptionError, match=r"nowhere\.yml: no such option file.*options\.yml inherits"):
            load_options(write("_base_: nowhere.yml\n"))

    def test_a_circle_is_refused(self, write):
        write("_base_: two.yml\n", "one.yml")
        with pytest.raises(OptionError, match="inherits from itself"):
            load_options(write("_base_: one.yml\n", "two.yml"))


class TestOverrides:
    def test_values_are_yaml(self, write):
        overrides = ["train.total_iter=7", "name=a=b", "datasets.train.dataroot=[x, y]", "train.gan=~", "device=cpu"]
        options = load_options(write(BASE), overrides)
        assert options["train"]["total_iter"] == 7 and options["name"] == "a=b" and options["device"] == "cpu"
        assert options["datasets"]["train"]["dataroot"] == ["x", "y"] and options["train"]["gan"] is None

    def test_sections_appear_as_they_are_needed(self, write):
        options = load_options(write(BASE + "path: ~\n"), ["path.experiments_root=e", "network_g.size=64", "val={}"])
        assert options["path"] == {"experiments_root": "e"} and options["network_g"] == {"size": 64}

    @pytest.mark.parametrize("text", ["2e-4", "2.0e-4", "0.0002", "+2E-4"])
    def test_every_way_to_write_a_small_number_is_a_number(self, write, text):
        assert load_options(write(BASE), [f"train.optim_g.lr={text}"])["train"]["optim_g"]["lr"] == 2e-4
        assert load_options(write(BASE.replace("0.002", text)))["train"]["optim_g"]["lr"] == 2e-4

    @pytest.mark.parametrize(
        ("assignment", "message"),
        [
            ("train.total_iter", "write KEY=VALUE"),
            ("=5", "part of the key is empty"),
            ("train..lr=5", "part of the key is empty"),
            ("name.inner=5", "'name' is a value, not a section"),
            ("train.gan=[1, 2", "not YAML"),
            ("trian.total_iter=5", r"trian: unknown option; did you mean 'train'"),
        ],
    )
    def test_bad_ones_are_named(self, write, assignment, message):
        with pytest.raises(OptionError, match=message):
            load_options(write(BASE), [assignment])


class TestRefusals:
    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("modle_type: x", r"options\.yml: modle_type: unknown option; did you mean 'model_type'"),
            ("path: {resume_stat: x}", r"path\.resume_stat: unknown option; did you mean 'resume_state'"),
            ("logger: {print_frequency: 5}", r"logger\.print_frequency.*'print_freq'"),
            ("val: {val_frq: 5}", r"val\.val_frq.*'val_freq'"),
            ("val: 5", "val: expected a mapping"),
            ("zzzzzz: 5", r"zzzzzz: unknown option; known: .*model_type"),
        ],
    )
    def test_unknown_keys_name_the_nearest_known_one(self, write, line, message):
        with pytest.raises(OptionError, match=message):
            load_options(write(f"{BASE}{line}\n"))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("name: [1, 2\n", "cannot be read"),
            ("", "expected a mapping"),
            ("- a\n- b\n", "holds list, expected a mapping"),
            ("name: !!python/object/apply:os.getcwd []\n", "cannot be read"),
            ("name: x\ntext: y\n", "options.yml"),
        ],
    )
    def test_files_that_are_not_options(self, write, text, message):
        with pytest.raises(OptionError, match=message):
            load_options(write(text))

    def test_a_file_is_never_run_as_code(self, write, tmp_path):
        code = f"open({str(tmp_path / 'ran')!r}, 'w')\nname = 'x'\n"
        program = write(code, "options.py")
        for path in (program, write("_base_: options.py\n")):
            with pytest.raises(OptionError, match=r"options\.py: an option file is YAML"):
                load_options(path)
        assert not (tmp_path / "ran").exists()

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(OptionError, match=r"nowhere\.yml: no such option file"):
            load_options(tmp_path / "nowhere.yml")


class Sized:
    def __init__(self, size, colour="red"):
        if size < 0:
            raise ValueError("size is negative")
        self.size, self.colour = size, colour


@pytest.fixture
def registry():
    registry = type(MODEL_REGISTRY)("test")
    registry.register(Sized)
    return registry


class TestPlugins:
    def test_builds_what_the_type_names(self, registry):
        built = build({"type": "Sized", "size": 3}, registry, "here", colour="blue")
        assert isinstance(built, Sized) and (built.size, built.colour) == (3, "blue")
        assert build({"type": "Sized", "size": 3, "colour": "pink"}, registry, "here", colour="blue").colour == "pink"

    @pytest.mark.parametrize(
        ("opt", "message"),
        [
            ({"type": "Sizd"}, r"here\.type: unknown name 'Sizd'; did you mean 'Sized'"),
            ({"type": None}, r"here\.type: unknown name 'None'"),
            ({"size": 3}, "here: needs a 'type', one of Sized"),
            (None, "here: needs a 'type'"),
            ({"type": "Sized", "color": 3}, r"here\.color: unknown option; did you mean 'colour'"),
            ({"type": "Sized", "size": -1}, "here: size is negative"),
        ],
    )
    def test_refusals_name_the_place(self, registry, opt, message):
        with pytest.raises(OptionError, match=message):
            build(opt, registry, "here")

    def test_plugins_that_take_their_options_as_one_dict_check_them_themselves(self, registry):
        def whole(opt):
            return opt

        registry.register(whole)
        check_plugin({"type": "whole", "anything": 1}, registry, "here")

    def test_check_keys_wants_a_mapping(self):
        with pytest.raises(OptionError, match=r"train: expected a mapping of options, found \[1\]"):
            check_keys([1], {"a"}, "train")


def test_an_unknown_network_names_the_nearest():
    with pytest.raises(ValueError, match="SGPM.*did you mean 'SGPN'"):
        build_network({"type": "SGPM"})


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
class TestShippedFiles:
    def test_everything_it_names_exists(self, path):
        fill_registries()
        options = load_options(path)
        assert options["name"] and options["datasets"]
        for phase, section in options["datasets"].items():
            assert phase in ("train", "val", "test") and section["type"] == "FaceRestorationDataset"
        if "model_type" in options:
            model = MODEL_REGISTRY.get(options["model_type"])
            check_keys(options["train"], _train_keys(model), "train")
        for name, section in (options.get("train", {}).get("losses") or {}).items():
            check_plugin(section, LOSS_REGISTRY, f"train.losses.{name}")
        for name in options.get("metrics", []):
            assert name in METRIC_REGISTRY

    def test_its_networks_can_be_built_and_fit_the_open_morphable_model(self, path):
        options = load_options(path)
        networks = {key: build_network(value) for key, value in options.items() if key.startswith("network_")}
        if "network_shape" in networks:
            section = options["network_shape"]
            assert (section["id_dim"], section["exp_dim"], section["tex_dim"]) == MorphableModel.open().dims
        if {"network_g", "network_shape"} <= set(networks):
            assert networks["network_g"].coeff_dim == networks["network_shape"].coeff_dim
        if {"network_g", "network_d"} <= set(networks) and options["train"]["gan"]:
            assert networks["network_g"].size == networks["network_d"].size
        if "network_g" in networks and "train" in options["datasets"]:
            assert networks["network_g"].size == options["datasets"]["train"]["size"]


def _train_keys(model):
    from sgpn_model.training_model import COMMON_TRAIN_KEYS

    return COMMON_TRAIN_KEYS | model.TRAIN_KEYS


def test_there_are_shipped_files():
    assert len(SHIPPED) >= 3
