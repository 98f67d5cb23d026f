"""Option files: inheritance, overrides, where an option was written, and refusals that say what to write instead."""

import pytest
import yaml
from torch import nn

from sgpn_arch import build_network
from sgpn_arch.by_name import build, check_plugin, signature_options
from sgpn_arch.errors import OptionError
from sgpn_arch.registry import LOSS_REGISTRY, MODEL_REGISTRY
from sgpn_arch.schema import Options
from sgpn_model import cli
from sgpn_model.config.checking import checked_options
from sgpn_model.config.reading import read_options

BASE = """
name: base
model_type: SGPNModel
datasets:
  train: {type: FaceRestorationDataset, dataroot: [a, b], size: 64}
network_g: {type: SGPN, size: 64, width: 0.02, max_channels: 8, style_dim: 16, latent_dim: 8, coeff_dim: 205}
network_d: {type: SGPNDiscriminator, size: 64, width: 0.02, max_channels: 8}
network_shape: {type: D3DFR, id_dim: 80, exp_dim: 52, tex_dim: 40, backbone: resnet18}
train:
  total_iter: 10
  losses: {pixel: {type: L1Loss}}
  optim_g: {type: Adam, lr: 0.002, betas: [0.0, 0.99]}
  optim_d: {type: Adam}
  optim_shape: {type: Adam}
  gan: {loss_weight: 1.0}
"""


def merged(path, overrides=()):
    return read_options(path, overrides)[0]


def check(path, overrides=()):
    return checked_options(path, overrides, files=False)[0]


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
        base = merged(write(BASE, "base.yml"))
        heir = merged(write("_base_: ../base.yml\nname: heir\ntrain: {optim_g: {lr: 0.001}}\n", "sub/heir.yml"))
        base["name"], base["train"]["optim_g"]["lr"] = "heir", 0.001
        assert heir == base

    def test_lists_and_switched_off_sections_replace_the_inherited_ones(self, write):
        write(BASE, "base.yml")
        heir = merged(write("_base_: [base.yml]\ndatasets: {train: {dataroot: [c]}}\ntrain: {gan: ~}\n"))
        assert heir["datasets"]["train"]["dataroot"] == ["c"] and heir["datasets"]["train"]["size"] == 64
        assert heir["train"]["gan"] is None and heir["train"]["total_iter"] == 10

    def test_the_result_is_plain(self, write):
        options = merged(write(BASE))
        assert type(options) is dict and type(options["train"]["optim_g"]) is dict

    def test_a_section_may_follow_one_that_was_switched_off(self, write):
        write(BASE + "val: ~\n", "base.yml")
        assert merged(write("_base_: base.yml\nval: {val_freq: 5}\n"))["val"] == {"val_freq": 5}

    def test_a_section_can_replace_the_inherited_one(self, write):
        write(BASE, "base.yml")
        heir = merged(write("_base_: base.yml\ntrain: {_delete_: true, gan: {_delete_: true, r1_every: 2}}\n"))
        assert heir["train"] == {"gan": {"r1_every": 2}}

    def test_of_several_bases_the_last_counts(self, write):
        write(BASE, "one.yml")
        write("name: two\ntrain: {total_iter: 20}\n", "two.yml")
        heir = merged(write("_base_: [one.yml, two.yml]\nmodel_type: M\n"))
        assert (heir["name"], heir["model_type"], heir["train"]["total_iter"]) == ("two", "M", 20)
        assert heir["train"]["gan"] == {"loss_weight": 1.0}

    def test_a_missing_base_is_named_with_its_heir(self, write):
        with pytest.raises(OptionError, match=r"nowhere\.yml: no such option file.*options\.yml inherits"):
            merged(write("_base_: nowhere.yml\n"))

    def test_a_circle_is_refused(self, write):
        write("_base_: two.yml\n", "one.yml")
        with pytest.raises(OptionError, match="inherits from itself"):
            merged(write("_base_: one.yml\n", "two.yml"))


class TestOverrides:
    def test_values_are_yaml(self, write):
        overrides = ["train.total_iter=7", "name=a=b", "datasets.train.dataroot=[x, y]", "train.gan=~", "device=cpu"]
        options = merged(write(BASE), overrides)
        assert options["train"]["total_iter"] == 7 and options["name"] == "a=b" and options["device"] == "cpu"
        assert options["datasets"]["train"]["dataroot"] == ["x", "y"] and options["train"]["gan"] is None

    def test_sections_appear_as_they_are_needed(self, write):
        options = merged(write(BASE + "path: ~\n"), ["path.experiments_root=e", "network_x.size=64", "val={}"])
        assert options["path"] == {"experiments_root": "e"} and options["network_x"] == {"size": 64}

    @pytest.mark.parametrize("text", ["2e-4", "2.0e-4", "0.0002", "+2E-4"])
    def test_every_way_to_write_a_small_number_is_a_number(self, write, text):
        assert merged(write(BASE), [f"train.optim_g.lr={text}"])["train"]["optim_g"]["lr"] == 2e-4
        assert merged(write(BASE.replace("0.002", text)))["train"]["optim_g"]["lr"] == 2e-4

    @pytest.mark.parametrize(
        ("assignment", "message"),
        [
            ("train.total_iter", "write KEY=VALUE"),
            ("=5", "part of the key is empty"),
            ("train..lr=5", "part of the key is empty"),
            ("name.inner=5", "'name' is a value, not a section"),
            ("train.gan=[1, 2", "cannot be read: line 1"),
            ("trian.total_iter=5", r"trian: unknown option; did you mean 'train'"),
        ],
    )
    def test_bad_ones_are_named(self, write, assignment, message):
        with pytest.raises(OptionError, match=message):
            check(write(BASE), [assignment])


@pytest.fixture
def chain(write):
    """base.yml <- sub/middle.yml <- top.yml, as a function from what is added to each to the path of the last."""

    def writer(base="", middle="", top=""):
        write(BASE + base, "base.yml")
        write(f"_base_: ../base.yml\n{middle}", "sub/middle.yml")
        return write(f"_base_: sub/middle.yml\n{top}", "top.yml")

    return writer


class TestOrigins:
    def source(self, path, overrides=()):
        with pytest.raises(OptionError) as caught:
            check(path, overrides)
        assert str(caught.value).startswith(f"{caught.value.source}: ")
        return caught.value.source

    @pytest.mark.parametrize("place", ["base", "middle", "top"])
    def test_a_wrong_key_names_the_file_it_was_written_in(self, chain, place):
        path = chain(**{place: "val: {val_frq: 5}\n"})
        file = {"base": "base.yml", "middle": "sub/middle.yml", "top": "top.yml"}[place]
        assert self.source(path) == str(path.parent / file)

    def test_the_last_who_wrote_a_value_answers_for_it(self, chain):
        path = chain(middle="train: {total_iter: no}\n")
        assert self.source(path).endswith("middle.yml")
        assert self.source(path, ["train.total_iter=maybe"]) == "--set train.total_iter=maybe"
        assert check(path, ["train.total_iter=5"])["train"]["total_iter"] == 5

    def test_what_was_replaced_is_not_blamed(self, chain):
        path = chain(base="val: {val_frq: 5}\n", middle="val: {_delete_: true, save_imges: 3}\n")
        assert self.source(path).endswith("middle.yml")

    def test_an_error_about_a_section_names_the_one_file_that_wrote_it_or_the_top(self, chain):
        _, origins = read_options(chain(top="train: {total_iter: 5}\n"))
        assert origins.of("train.optim_g: cannot be built").endswith("base.yml")
        assert origins.of("train: cannot be built").endswith("top.yml")
        assert origins.of("datasets.val: this section is missing").endswith("base.yml")
        assert origins.of("network_x: this section is missing").endswith("top.yml")

    def test_of_a_section_of_several_files_the_option_that_is_named_counts(self, chain):
        path = chain(middle="datasets: {train: {cache: disk}}\n", top="datasets: {train: {size: 128}}\n")
        _, origins = read_options(path)
        assert origins.of("datasets.train: dataset: cache: unknown value 'disk'").endswith("middle.yml")
        assert origins.of("datasets.train: dataset: size: expected an integer").endswith("top.yml")

    def test_names_with_dots_are_found(self, write):
        _, origins = read_options(write("restorers: {v1.0 (old): a, v1.1: b}\n"), ["name=x"])
        assert origins.at(["restorers", "v1.0 (old)"]).endswith("options.yml")
        assert (
            origins.of("restorers.v1.1: no such file").endswith("options.yml")
            and origins.of("name: x") == "--set name=x"
        )


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
            ("restorers: {a: b}", "restorers: has no meaning in a file for `sgpn train`.*'model_type'"),
            ("logger: {print_freq: 0}", "logger.print_freq: expected a whole number of at least 1, found 0"),
            ("logger: {print_freq: 1.5}", "logger.print_freq: expected a whole number of at least 1, found 1.5"),
            ("logger: {print_freq: true}", "logger.print_freq: expected a whole number of at least 1, found True"),
            ("logger: {use_tb_logger: 1}", "logger.use_tb_logger: expected true or false, found 1"),
            ("manual_seed: -1", "manual_seed: expected a whole number of at least 0, found -1"),
        ],
    )
    def test_unknown_keys_name_the_nearest_known_one(self, write, line, message):
        with pytest.raises(OptionError, match=message):
            check(write(f"{BASE}{line}\n"))

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("train.optim_g.lr=fast", "train.optim_g.lr: expected a number above 0, found 'fast'"),
            ("train.gan.loss_weight=-1", "train.gan.loss_weight: expected a number of at least 0"),
            ("train.ema_decay=1.5", "train.ema_decay: expected a number from 0 to 1, found 1.5"),
            ("datasets.train.batch_size_per_gpu=0", "datasets.train.batch_size_per_gpu: expected a whole number"),
        ],
    )
    def test_numbers_that_are_none_are_refused(self, write, override, message):
        with pytest.raises(OptionError, match=message):
            check(write(BASE), [override])

    def test_numbers_of_plugins_are_their_own_business(self, write):
        @LOSS_REGISTRY.register()
        class Mine(nn.Module):
            def __init__(self, loss_weight=None, every=None):
                super().__init__()

        override = "train.losses.mine={type: Mine, loss_weight: [1, 2], every: often}"
        assert check(write(BASE), [override])["train"]["losses"]["mine"]["every"] == "often"

    @pytest.mark.parametrize("key", ["train", "logger", "val", "network_g"])
    def test_what_is_only_for_training_has_no_place_in_a_file_for_tests(self, write, key):
        with pytest.raises(OptionError, match=f"options.yml: {key}: has no meaning in a file for .sgpn test."):
            check(write(f"restorers: {{a: b}}\n{key}: {{}}\n"))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("name: [1, 2\n", "cannot be read"),
            ("", "expected a mapping"),
            ("- a\n- b\n", "holds a list, expected a mapping"),
            ("name: !!python/object/apply:os.getcwd []\n", "cannot be read"),
            ("name: x\ntext: y\n", "options.yml"),
        ],
    )
    def test_files_that_are_not_options(self, write, text, message):
        with pytest.raises(OptionError, match=message):
            check(write(text))

    def test_a_file_is_never_run_as_code(self, write, tmp_path):
        code = f"open({str(tmp_path / 'ran')!r}, 'w')\nname = 'x'\n"
        program = write(code, "options.py")
        for path in (program, write("_base_: options.py\n")):
            with pytest.raises(OptionError, match=r"options\.py: an option file is YAML"):
                check(path)
        assert not (tmp_path / "ran").exists()

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(OptionError, match=r"nowhere\.yml: no such option file"):
            check(tmp_path / "nowhere.yml")


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
            ({"size": 3}, "here.type: this option is missing; known: Sized"),
            (None, "here: expected a mapping with 'type'.*, found None"),
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

    def test_ours_among_them_say_which_they_know(self, registry):
        class WholeOptions(Options):
            size: int = 1
            colour: str = "red"

        class Whole:
            OPTIONS = WholeOptions

            def __init__(self, opt):
                self.opt = opt

        registry.register(Whole)
        check_plugin({"type": "Whole", "size": 1}, registry, "here")
        with pytest.raises(OptionError, match="here.color: unknown option; did you mean 'colour'"):
            check_plugin({"type": "Whole", "color": 1}, registry, "here")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "here.size: this option is missing"),
            ({"size": "5"}, "here.size: expected a whole number, found '5'"),
            ({"size": 5.0}, "here.size: expected a whole number, found 5.0"),
            ({"size": True}, "here.size: expected a whole number, found True"),
            ({"size": 5, "rate": "x"}, "here.rate: expected a number or ~ .nothing., found 'x'"),
            ({"size": 5, "flag": 1}, "here.flag: expected true or false, found 1"),
            ({"size": 5, "name": 1}, "here.name: expected text, found 1"),
        ],
    )
    def test_annotated_arguments_have_types(self, arguments, message):
        def function(size: int, rate: float | None = None, flag: bool = False, name: str = "", free=None):
            raise AssertionError("is only looked at")

        model = signature_options(function)
        model.read({"size": 5, "rate": 1, "flag": True, "name": "x", "free": []})
        signature_options(function, supplied=frozenset({"size"})).read({"rate": None})
        signature_options(function, given=1).read({})
        with pytest.raises(OptionError, match=message):
            model.read(arguments, "here")

    def test_a_section_is_a_mapping(self):
        with pytest.raises(OptionError, match=r"train: expected a mapping of options, found \[1\]"):
            Options.read([1], "train")


def test_an_unknown_network_names_the_nearest():
    with pytest.raises(ValueError, match="SGPM.*did you mean 'SGPN'"):
        build_network({"type": "SGPM"})


class TestCommand:
    def test_show_prints_what_load_options_reads(self, chain, capsys):
        path = chain(top="name: top\ntrain: {optim_g: {lr: 2e-5}}\n")
        cli.main(["options", "show", str(path), "--set", "device=cpu"])
        assert yaml.safe_load(capsys.readouterr().out) == merged(path, ["device=cpu"])

    def test_with_origins_it_is_the_same_yaml_and_every_line_has_its_file(self, chain, capsys):
        path = chain(middle="val: {}\n", top="name: 'a: b'\ntrain: {optim_g: {lr: 2e-5}}\n")
        cli.main(["options", "show", str(path), "--origin", "--set", "device=cpu"])
        out = capsys.readouterr().out
        assert yaml.safe_load(out) == merged(path, ["device=cpu"])
        lines = {line.split(":")[0].strip(): line.rpartition("  # ")[2] for line in out.splitlines() if "  # " in line}
        assert lines["device"] == "--set device=cpu"
        assert lines["lr"] == lines["name"] == str(path)
        assert lines["betas"] == lines["total_iter"] == str(path.parent / "base.yml")
        assert lines["val"] == str(path.parent / "sub/middle.yml")

    def test_show_prints_a_wrong_file_too_and_says_what_is_wrong(self, chain, capsys):
        path = chain(middle="val: {val_frq: 5}\n")
        assert cli.main(["options", "show", str(path)]) == 1
        out, err = capsys.readouterr()
        assert yaml.safe_load(out)["val"] == {"val_frq": 5}
        assert f"{path.parent / 'sub/middle.yml'}: val.val_frq: unknown option; did you mean 'val_freq'" in err

    def test_check_goes_through_all_files(self, write, capsys):
        good = write("name: x\n", "good.yml")
        bad = write("nmae: x\n", "bad.yml")
        assert cli.main(["options", "check", str(bad), str(good)]) == 1
        out, err = capsys.readouterr()
        assert out == f"{good}: all right\n" and f"{bad}: nmae: unknown option; did you mean 'name'" in err
        assert cli.main(["options", "check", str(good)]) == 0
