"""`sgpn bench`: tables, files and plots on tiny networks; that ratios, differences and shares are those measured; refusals."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from sgpn_arch.inference.network import InferenceSGPN
from sgpn_model import cli
from sgpn_model.cli import (
    bench_measure,
    bench_network,
    bench_ops,
    bench_report,
    bench_restore,
    bench_shape,
    bench_train,
)
from sgpn_model.cli import (
    bench_run as bench,
)
from sgpn_model.cli.bench_measure import Measured, Settings
from sgpn_model.cli.bench_report import Row, Table
from sgpn_model.config.reading import OptionError

TINY = Settings(torch.device("cpu"), threads=1, size=64, width=0.02, repeat=2)
FLAGS = ["--size", "64", "--width", "0.02", "--repeat", "2", "--threads", "1", "--device", "cpu"]


class Clock:
    """A clock that moves only when a call says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, *durations: float):
        """A function that takes each of the durations in turn, the last one from then on."""
        left = list(durations)

        def call():
            self.now += left.pop(0) if len(left) > 1 else left[0]
            return torch.zeros(1)

        return call


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(bench_measure, "clock", clock)
    monkeypatch.setattr(bench_restore, "clock", clock)
    return clock


@pytest.fixture(autouse=True, scope="module")
def small_and_harmless():
    """A small ceiling, copy, sample and regressor. And the C library is not told to keep memory: that would be for good."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "keep_freed_memory", lambda: True)
        patch.setattr(bench_measure, "CEILING_SIDE", 16)
        patch.setattr(bench_measure, "SHORTEST_SAMPLE", 1e-3)
        patch.setattr(bench_measure, "COPIED_BYTES", 2**20)
        patch.setattr(bench_network, "BACKBONE", "mobilenet_v2")
        yield


class TestMeasuring:
    def test_calls_take_turns(self, clock):
        order = []
        calls = {name: lambda name=name: (order.append(name), clock.spend(1.0)())[1] for name in "ab"}
        found = bench_measure.measure(calls, replace(TINY, repeat=3))
        assert "".join(order) == "ab" + "ab" + "ab" * 3  # for memory, to warm up, measured
        assert found["a"].seconds == [1.0, 1.0, 1.0]

    def test_the_first_calls_do_not_count(self, clock):
        found = bench_measure.measure({"slow at first": clock.spend(100.0, 50.0, 2.0)}, replace(TINY, repeat=4))
        assert found["slow at first"].seconds == [2.0] * 4

    def test_short_calls_are_made_often_for_one_sample(self, clock):
        calls, spend = [], clock.spend(bench_measure.SHORTEST_SAMPLE / 5)
        found = bench_measure.measure({"short": lambda: (calls.append(0), spend())[1]}, replace(TINY, repeat=1))
        assert len(calls) == 2 + 5
        assert found["short"].seconds == pytest.approx([bench_measure.SHORTEST_SAMPLE / 5])

    @pytest.mark.parametrize(("seconds", "rounds"), [(0, bench_measure.FEWEST_ROUNDS), (10, 10)])
    def test_time_bounds_the_rounds(self, clock, seconds, rounds):
        found = bench_measure.measure({"one": clock.spend(1.0)}, replace(TINY, repeat=None, seconds=seconds))
        assert len(found["one"].seconds) == rounds

    def test_ratio_pairs_what_was_measured_side_by_side(self):
        drifting = np.array([1.0, 2.0, 8.0])
        assert bench_measure.ratio(3 * drifting, drifting) == 3
        assert bench_measure.ratio([4.0, 4.0, 400.0], [2.0, 2.0, 2.0]) == 2

    def test_quartiles(self):
        assert bench_measure.quartiles([5.0]) == (5.0, 5.0, 5.0)
        values = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6]
        assert bench_measure.quartiles(values) == pytest.approx(np.quantile(values, [0.25, 0.5, 0.75]))

    def test_difference_against_numpy(self):
        output, reference = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
        error = output.numpy().astype(np.float64) - reference.numpy()
        found = bench_measure.difference(output, reference)
        assert found["max_abs"] == pytest.approx(np.abs(error).max())
        assert found["psnr"] == pytest.approx(20 * math.log10(2 / np.sqrt((error**2).mean())))
        assert bench_measure.difference(output, output) == {"max_abs": 0.0, "psnr": None}

    def test_peak_memory_sees_what_is_freed_again(self):
        def allocate():
            torch.ones(2**24).sum()  # 64 MiB
            return 7

        output, peak = bench_measure.with_peak_memory(allocate, torch.device("cpu"))
        assert output == 7
        assert peak is None or 60 < peak < 100


class TestWork:
    @pytest.mark.parametrize("stride", [1, 2])
    def test_of_a_convolution(self, stride):
        conv = torch.nn.Conv2d(6, 10, 3, stride=stride, padding=1, groups=2).requires_grad_(False)
        side = 32 // stride
        assert bench_measure.gflop(conv, torch.zeros(4, 6, 32, 32)) == 2 * 9 * 3 * 10 * side**2 * 4 / 1e9

    def test_of_the_paper_network(self):
        """368 GFLOP, counted by hand of the released network: the encoder twice, the decoder with its masks."""
        network, _ = bench_network.build(Settings(torch.device("cpu"), 1))
        pictures = torch.zeros(1, 3, 512, 512)
        assert bench_measure.gflop(network, pictures, pictures, torch.zeros(1, 205)) == pytest.approx(368, rel=0.005)

    def test_of_a_run_counts_the_gradients_too(self):
        weight, x = torch.randn(5, 7, requires_grad=True), torch.randn(3, 7, requires_grad=True)
        forward = 2 * 3 * 5 * 7 / 1e9
        assert bench_measure.gflop_of_run(lambda: (x @ weight.t()).sum().backward()) == pytest.approx(3 * forward)


class TestReport:
    def test_row_derives_from_its_samples(self):
        row = Row("a", [2.0, 4.0, 3.0], faces=6, gflop=30, ceiling=20, floor=1.5)
        found = row.as_json()
        assert (found["median"], found["least"], found["seconds"]) == (3.0, 2.0, [2.0, 4.0, 3.0])
        assert (found["gflop_per_second"], found["part_of_ceiling"]) == (10, 0.5)
        assert (found["faces_per_second"], found["part_of_bandwidth"]) == (2, 0.5)

    @pytest.mark.parametrize(
        ("value", "text"),
        [(None, ""), (0, "0"), (0.01234, "0.0123"), (1.0, "1"), (99.96, "100"), (368.5187, "369"), (12345.6, "12346")],
    )
    def test_numbers(self, value, text):
        assert bench_report.number(value) == text

    def test_columns_without_values_are_left_out(self):
        assert bench_report.cells([Row("a", [1.0]), Row("b", [0.002], share=0.25)]) == [
            ["", "ms", "quartiles", "share"],
            ["a", "1000", "1000-1000", ""],
            ["b", "2", "2-2", "25%"],
        ]

    def test_what_is_too_wide_is_cut(self):
        rows = [Row("a very long name " * 9, [1234.5], 7, 12345.6, ceiling=12.3, peak_mib=1234.5, ratio=1.23)]
        table = Table("x", "a title that goes on and on " * 9, rows, ["a note of many words " * 20])
        lines = bench_report.plain_text(table).splitlines()
        assert max(map(len, lines)) <= bench_report.WIDEST

    def test_columns_give_way_to_names(self):
        name = "a name of forty-seven letters, and so it is cut"
        row = Row(name, [12.5, 12.0], 7, 12345.6, ceiling=12.3, peak_mib=1234.5, ratio=1.23, versus_fp32=4.5)
        header, line = bench_report.plain_text(Table("x", "T", [row])).splitlines()[1:]
        assert line.startswith(name) and "GFLOP/s" not in header and "x fp32" in header
        assert "GFLOP/s" in bench_report.markdown(Table("x", "T", [row]), bench_measure.describe_machine(TINY))

    def test_markdown_has_every_row(self):
        table = Table("x", "Title", [Row("first", [1.0]), Row("second", [2.0])], ["a note"])
        machine = bench_measure.describe_machine(TINY)
        text = bench_report.markdown(table, machine)
        assert text.startswith("# Title") and "| first | 1000 |" in text and "| second | 2000 |" in text
        assert "- a note" in text and machine["cpu"] in text and torch.__version__.split("+")[0] in text


@pytest.fixture(scope="module")
def compared() -> Table:
    """The network, plain and prepared."""
    return bench_network.run(replace(TINY, compare=True, precision="fp32"))


class TestNetwork:
    def test_rows(self, compared):
        assert [row.what for row in compared.rows] == ["plain fp32", "prepared fp32", "ceiling fp32"]
        plain, prepared, ceiling = compared.rows
        assert plain.gflop == prepared.gflop > 0
        assert plain.ceiling == prepared.ceiling == pytest.approx(ceiling.gflops)
        assert all(len(row.seconds) == TINY.repeat for row in compared.rows)

    def test_the_reference_is_there_in_every_precision(self):
        rows = {row.what: row for row in bench_network.run(replace(TINY, compare=True, precision="bf16")).rows}
        assert list(rows) == ["plain fp32", "plain bf16", "prepared bf16", "ceiling fp32", "ceiling bf16"]
        fast, same, full = rows["prepared bf16"], rows["plain bf16"], rows["plain fp32"]
        assert fast.ratio == pytest.approx(bench_measure.ratio(same.seconds, fast.seconds))
        assert fast.versus_fp32 == pytest.approx(bench_measure.ratio(full.seconds, fast.seconds))
        assert 30 < fast.difference["psnr"] < 90

    def test_difference_is_that_of_the_pictures(self, compared):
        """Each measured alone, from the same seed."""
        network, prior = bench_network.build(TINY)
        inputs = bench_network.make_inputs(network, prior, 1, TINY)
        bench_network._scale_pictures(network, inputs)
        with torch.inference_mode():
            expected = (network.for_inference("fp32")(*inputs) - network(*inputs)).abs().max()
        assert compared.rows[1].difference["max_abs"] == pytest.approx(expected.item())
        assert 0 < expected < 2e-4

    def test_a_slowed_path_is_seen(self, clock, monkeypatch):
        """The plain path takes 6 seconds, the prepared one 2; so says the clock."""
        forward, make_plain = InferenceSGPN.forward, bench_network.plain_call
        spend_fast, spend_slow = clock.spend(2.0), clock.spend(6.0)

        def slow_plain_call(*args):
            call = make_plain(*args)
            return lambda: (spend_slow(), call())[1]

        monkeypatch.setattr(InferenceSGPN, "forward", lambda *args: (spend_fast(), forward(*args))[1])
        monkeypatch.setattr(bench_network, "plain_call", slow_plain_call)
        monkeypatch.setattr(bench_network, "ceiling_call", lambda *_: (clock.spend(1.0), 0.5))
        plain_row, prepared, _ = bench_network.run(replace(TINY, compare=True, precision="fp32")).rows
        assert (plain_row.median, prepared.median, prepared.ratio) == (6.0, 2.0, 3.0)
        assert prepared.gflops == prepared.gflop / 2 and prepared.ceiling == 0.5

    def test_a_wrong_path_is_seen(self, monkeypatch):
        forward = InferenceSGPN.forward
        monkeypatch.setattr(InferenceSGPN, "forward", lambda *args: forward(*args) + 0.25)
        prepared = bench_network.run(replace(TINY, compare=True, precision="fp32")).rows[1]
        assert prepared.difference["max_abs"] == pytest.approx(0.25, abs=1e-3)
        assert prepared.difference["psnr"] == pytest.approx(20 * math.log10(2 / 0.25), abs=0.1)

    def test_pictures_have_the_contrast_that_psnr_is_meant_for(self):
        network, prior = bench_network.build(TINY)
        inputs = bench_network.make_inputs(network, prior, 2, TINY)
        bench_network._scale_pictures(network, inputs)
        assert network(*inputs).std().item() == pytest.approx(bench_network.PHOTO_DEVIATION, rel=1e-3)

    @pytest.mark.parametrize("fusion", ["AFFB", "SumFusion", "LQOnly"])
    def test_every_input_counts(self, fusion):
        """A random network that ignored its rendering would agree with a fast path that does."""
        settings = replace(TINY, fusion=fusion)
        network, prior = bench_network.build(settings)
        photo, render, coeffs = bench_network.make_inputs(network, prior, 1, settings)
        assert -1 <= render.min() < render.max() <= 1 and 0.05 < (render > -1).float().mean() < 0.7
        image = network(photo, render, coeffs)
        changes = [network(photo.flip(3), render, coeffs), network(photo, render, coeffs.flip(1))]
        changes += [network(photo, render.flip(2), coeffs)] if network.uses_render else []
        assert all((change - image).abs().max() > 1e-3 * image.std() for change in changes)

    def test_powers(self):
        assert bench_network.powers(1, 8) == [1, 2, 4, 8]
        assert bench_network.powers(1, 6) == [1, 2, 4, 6]
        assert bench_network.powers(64, 64) == [64]

    def test_growth_with_the_batch(self):
        table = bench_network.sweep("batch", replace(TINY, batch=3, precision="fp32"))
        assert [(row.what, row.at, row.faces) for row in table.rows] == [
            (f"prepared fp32, {batch}", batch, batch) for batch in (1, 2, 3)
        ]
        assert table.rows[2].gflop == pytest.approx(3 * table.rows[0].gflop)

    def test_growth_with_the_size(self):
        table = bench_network.sweep("size", replace(TINY, size=128, precision="fp32", compare=True))
        assert [row.at for row in table.rows] == [64, 64, 128, 128]
        assert table.rows[2].gflop > table.rows[0].gflop


class TestShape:
    def test_steps_and_share(self):
        table = bench_shape.run(replace(TINY, compare=True))
        rows = {row.what: row for row in table.rows}
        whole, network = rows[bench_shape.WHOLE], rows[bench_shape.NETWORK]
        assert whole.share + network.share == pytest.approx(1)
        assert whole.share == pytest.approx(whole.median / (whole.median + network.median))
        for name in ("normals", "interpolate"):
            plain, fast = rows[f"plain {name}"], rows[name]
            assert fast.ratio == pytest.approx(bench_measure.ratio(plain.seconds, fast.seconds))
            assert fast.difference["max_abs"] < 1e-4
        assert rows["regressor"].gflop == pytest.approx(0.6, rel=0.05)  # torchvision: 0.30 G multiply-adds

    def test_the_grid_covers_most_of_the_picture(self):
        calls = bench_shape.grid_calls(TINY)
        fragments = calls["grid: rasterise"]()
        assert 0.5 < (fragments.triangle_ids >= 0).float().mean() < 0.8
        assert all(grad.abs().sum() > 0 for grad in calls["grid: with gradients"]())


class TestRestore:
    def test_a_stage_is_charged_for_its_own_time(self, clock):
        stages = bench_restore.Stages(torch.device("cpu"))
        inner = stages.watched(clock.spend(2.0), "inner")
        outer = stages.watched(lambda: (clock.spend(1.0)(), inner(), inner())[0], "outer")
        outer()
        assert stages.seconds == {"inner": 4.0, "outer": 1.0}

    @pytest.mark.parametrize(("megapixels", "faces"), [(0.25, 1), (1, 4), (1, 9), (2, 0)])
    def test_photo(self, megapixels, faces):
        photo = bench_restore.make_photo(megapixels, faces, 0)
        height, width = photo.shape[:2]
        assert height * width == pytest.approx(megapixels * 1e6, rel=0.01)
        assert width / height == pytest.approx(4 / 3, rel=0.01)
        tile, columns = bench_restore._grid(width, height, faces)
        assert columns * (height // tile) >= faces

    def test_too_many_faces(self):
        with pytest.raises(OptionError, match="--faces 1000: so many do not fit"):
            bench_restore.make_photo(0.1, 1000, 0)

    def test_stages_add_up(self):
        table = bench_restore.run(replace(TINY, compare=True, megapixels=0.25, precision="fp32"))
        whole, plain, *parts = table.rows
        assert table.title.startswith("Restoring 1 face in 577x433 pixels")
        assert [row.what for row in parts] == list(bench_restore.STAGES)
        assert sum(row.share for row in parts) == pytest.approx(1)
        assert all(row.median > 0 for row in parts)
        assert whole.versus_fp32 == pytest.approx(bench_measure.ratio(plain.seconds, whole.seconds))
        assert whole.stages == {row.what: row.median for row in parts}

    def test_the_restorer_is_left_as_it_was(self):
        (restorer,) = bench_restore.build_restorers(TINY).values()
        before = [set(vars(part)) for part in (restorer, restorer.detector, restorer.prior, restorer.network)]
        with bench_restore._watching(restorer, bench_restore.Stages(restorer.device)):
            pass
        assert before == [set(vars(part)) for part in (restorer, restorer.detector, restorer.prior, restorer.network)]

    def test_growth_with_the_faces(self):
        table = bench_restore.sweep("faces", replace(TINY, faces=2, megapixels=0.25, repeat=1))
        assert [(row.at, row.faces) for row in table.rows] == [(0, 0), (1, 1), (2, 2)]


class TestOps:
    def test_operations_agree_with_their_definitions(self):
        for precision, tolerance in (("fp32", 1e-5), ("bf16", 0.1)):
            for case in bench_ops.cases(precision, TINY):
                found, expected = case.function(*case.inputs), case.steps(*case.inputs)
                assert found.shape == expected.shape
                assert (found - expected).abs().max() < tolerance, case.name

    def test_every_input_gets_a_gradient(self):
        for case in bench_ops.cases("fp32", TINY):
            out = case.function(*case.inputs)
            assert all(g is not None for g in torch.autograd.grad(out, case.inputs, torch.ones_like(out)))

    def test_bandwidth_is_that_of_the_copy(self, monkeypatch):
        copied = Measured([0.25])
        monkeypatch.setattr(bench_ops, "copy_bandwidth", lambda _: copied)
        table = bench_ops.run(replace(TINY, compare=True, precision="fp32", repeat=1))
        per_second = 2 * bench_measure.COPIED_BYTES / 0.25
        row = next(row for row in table.rows if row.what.startswith("fused_leaky_relu"))
        elements = 10 * 64**2  # width 0.02 leaves 10 channels at 64 pixels
        assert row.floor == pytest.approx(2 * 4 * elements / per_second)
        assert row.ratio == pytest.approx(bench_measure.ratio(row.plain_seconds, row.seconds))


class TestTrain:
    def test_phases(self):
        table = bench_train.run(replace(TINY, repeat=1))
        rows = {row.what: row for row in table.rows}
        assert list(rows) == ["step", "step with R1", "forward and losses", "backward", "optimisers"]
        assert sum(row.share for row in table.rows if row.share) == pytest.approx(1)
        assert rows["step"].gflop > 0.6 * 3  # the regressor's forward and backward pass alone
        assert torch.Tensor.backward.__module__ == "torch._tensor"

    @pytest.mark.parametrize(
        ("change", "told"), [({"weights": "default"}, "--weights"), ({"precision": "fp16"}, "fp16")]
    )
    def test_refusals(self, change, told):
        with pytest.raises((OptionError, ValueError), match=told):
            bench_train.run(replace(TINY, **change))


class TestCommand:
    def test_writes_what_it_prints(self, tmp_path, capsys):
        assert cli.main(["bench", "network", "--compare", "plain", *FLAGS, "-o", str(tmp_path)]) == 0
        printed = capsys.readouterr().out
        assert max(map(len, printed.replace(str(tmp_path), "").splitlines())) <= 100
        report = json.loads((tmp_path / "network.json").read_text())
        assert (
            report["machine"]["threads"] == 1
            and report["machine"]["versions"]["torch"] == torch.__version__.split("+")[0]
        )
        assert (report["settings"]["size"], report["settings"]["device"]) == (64, "cpu")
        rows = {row["what"]: row for row in report["rows"]}
        fast, slow = rows["prepared fp32"], rows["plain fp32"]
        assert fast["ratio"] == pytest.approx(np.median(np.divide(slow["seconds"], fast["seconds"])))
        assert fast["gflop_per_second"] == pytest.approx(fast["gflop"] / np.median(fast["seconds"]))
        assert fast["peak_mib"] is None or fast["peak_mib"] >= 0
        text = (tmp_path / "network.md").read_text()
        assert all(f"| {name} |" in text for name in rows) and all(name in printed for name in rows)

    def test_sweep_draws(self, tmp_path):
        pytest.importorskip("matplotlib")
        flags = ["--sweep", "batch", "--batch", "2", "--precision", "fp32", *FLAGS, "-o", str(tmp_path)]
        assert cli.main(["bench", *flags]) == 0
        assert {path.name for path in tmp_path.iterdir()} == {f"sweep_batch.{kind}" for kind in ("json", "md", "png")}

    def test_weights(self, tiny_weights, tmp_path, capsys):
        flags = ["--weights", tiny_weights, "--repeat", "1", "--device", "cpu", "--threads", "1", "-o", str(tmp_path)]
        assert cli.main(["bench", "network", "--precision", "fp32", *flags]) == 0
        assert "weights are random" not in capsys.readouterr().out
        assert "plain" not in (tmp_path / "network.md").read_text().partition("\n- ")[0]

    def test_no_name_means_all_but_training(self, tmp_path, monkeypatch):
        asked = []
        table = Table("x", "X", [Row("a", [1.0])])
        for name, module in zip(
            bench.PARTS, (bench_network, bench_shape, bench_restore, bench_ops, bench_train), strict=True
        ):
            monkeypatch.setattr(module, "run", lambda _, name=name: (asked.append(name), table)[1])
        bench.run(output=str(tmp_path), device="cpu")
        assert asked == ["network", "shape", "restore", "ops"]

    def test_threads_are_given_back(self, tmp_path, monkeypatch):
        before = torch.get_num_threads()
        seen = []
        monkeypatch.setattr(
            bench_network,
            "run",
            lambda _: (seen.append(torch.get_num_threads()), Table("x", "X", [Row("a", [1.0])]))[1],
        )
        bench.run("network", output=str(tmp_path), device="cpu", threads=before + 1)
        assert (seen, torch.get_num_threads()) == ([before + 1], before)

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["netwrok"], "unknown 'netwrok'.*network"),
            (["--sweep", "face"], "--sweep: unknown 'face'.*faces"),
            (["--compare", "fast"], "--compare: unknown 'fast'"),
            (["shape", "--sweep", "batch"], "--sweep batch: is about 'network', not 'shape'"),
            (["--batch", "0"], "--batch: is 0; it must be at least 1"),
            (["--threads", "0"], "--threads: is 0"),
            (["--weights", "default", "--size", "64"], "--size: the weights say"),
            (["--weights", "default", "--sweep", "size"], "weights have one size"),
            (["network", "--size", "100"], "size is 100"),
            (["network", "--fusion", "AFBF"], "AFBF"),
            (["network", "--precision", "fp8"], "precision 'fp8' is unknown"),
            (["network", "--precision", "fp16", "--device", "cpu"], "'fp16' needs CUDA"),
            (["network", "--weights", "nothing"], "weights 'nothing'"),
            (["network", "--device", "tpu9"], "device 'tpu9'"),
        ],
    )
    def test_refusals(self, arguments, told, tmp_path, capsys):
        assert cli.main(["bench", *arguments, "-o", str(tmp_path / "out")]) == 1
        assert re.search(told, capsys.readouterr().err, re.DOTALL)
        assert not (tmp_path / "out").exists()
