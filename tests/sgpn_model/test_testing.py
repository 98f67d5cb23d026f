"""``sgpn test``: the table against independent numbers, the report's files, and what is left out or refused."""

import json
import logging
import math

import cv2
import numpy as np
import pytest
import torch
import yaml

from sgpn_model.checkpoint import CheckpointError
from sgpn_model.options import OptionError
from sgpn_model.pipeline import test as pipeline
from sgpn_model.pipeline.common import build_dataset, fill_registries, mean_of_known
from sgpn_model.restorer import load_networks

IMAGES, SIZE = 5, 96
INPUT, TRUTH, OURS = "degraded input", "ground truth", "tiny | random"


@pytest.fixture(scope="module")
def faces(tmp_path_factory, astronaut):
    """Five pictures of the astronaut's face; the last has no landmarks."""
    folder = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(0)
    known = {}
    for number in range(IMAGES):
        x = 150 + 5 * number
        cv2.imwrite(str(folder / f"{number}.png"), cv2.resize(astronaut[30:170, x : x + 140], (SIZE, SIZE)))
        known[f"{number}.png"] = (_mean_face() + rng.normal(0, 1, (68, 2))).tolist()
    del known[f"{IMAGES - 1}.png"]
    (folder / "landmarks68.json").write_text(json.dumps(known))
    return folder


def _mean_face():
    """68 points that have the five points of a face in their places; the eyes are 26 px apart."""
    points = np.tile([48.0, 60.0], (68, 1))
    points[36:42], points[42:48] = [35, 44], [61, 44]
    points[36], points[45] = [30, 44], [66, 44]
    points[30], points[48], points[54] = [48, 58], [38, 70], [58, 70]
    return points


@pytest.fixture(scope="module")
def options(faces, tiny_weights):
    return {
        "name": "tiny_test",
        "device": "cpu",
        "datasets": {
            "test": {
                "type": "FaceRestorationDataset",
                "dataroot": str(faces),
                "size": SIZE,
                "seed": 3,
                "degradation": {"preset": "gfpgan", "reference_size": 512},
                "batch_size_per_gpu": 2,
            }
        },
        "restorers": {OURS: tiny_weights, "absent": "/nowhere/weights.safetensors"},
        "judge": tiny_weights,
        "metrics": ["psnr", "ssim", "perceptual_mnv2"],
    }


def write(folder, options):
    path = folder / "options.yml"
    path.write_text(yaml.safe_dump(options))
    return str(path)


@pytest.fixture(scope="module")
def tested(options, tmp_path_factory):
    """(table, folder, log) of one run."""
    folder = tmp_path_factory.mktemp("report")
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append((record.levelname, record.getMessage()))
    logging.getLogger("sgpn").addHandler(handler)
    try:
        table = pipeline.run(write(folder, options), output=str(folder / "out"))
    finally:
        logging.getLogger("sgpn").removeHandler(handler)
    return table, folder / "out", messages


@pytest.fixture(scope="module")
def items(options):
    fill_registries()
    dataset = build_dataset(options["datasets"]["test"], "test")
    return [dataset[index] for index in range(len(dataset))]


def levels(picture):
    return np.clip(np.rint((picture.double().numpy() + 1) * 127.5), 0, 255)


def psnr(a, b):
    return 10 * math.log10(255**2 / np.mean((levels(a) - levels(b)) ** 2))


class TestTable:
    def test_rows_and_columns(self, tested):
        table, _, _ = tested
        assert list(table) == [INPUT, OURS, TRUTH]
        assert set(table[INPUT]) == set(table[OURS]) == {"psnr", "ssim", "perceptual_mnv2", "landmark_error"}
        assert set(table[TRUTH]) == {"landmark_error"}
        assert all(math.isfinite(value) for row in table.values() for value in row.values())

    def test_the_inputs_psnr_is_the_mean_over_the_faces(self, tested, items):
        wanted = np.mean([psnr(item["lq"], item["hq"]) for item in items])
        assert tested[0][INPUT]["psnr"] == pytest.approx(wanted, rel=1e-6)

    def test_the_restorers_psnr_is_that_of_its_restorations(self, tested, items, tiny_weights):
        """The network works at 64 px: the crop goes there and back, and the five points with it."""
        network, prior, _ = load_networks(tiny_weights)
        network, prior = network.eval(), prior.eval()
        values = []
        for item in items:
            resize = {"mode": "bicubic", "antialias": True, "align_corners": False}
            crop = torch.nn.functional.interpolate(item["lq"][None], size=(64, 64), **resize)
            points = (item["points5"][None] + 0.5) * 64 / SIZE - 0.5
            with torch.inference_mode():
                shape = prior(crop, points)
                restored = network(crop, shape.render, shape.coeffs)
            restored = torch.nn.functional.interpolate(restored, size=(SIZE, SIZE), **resize)[0]
            values.append(psnr(restored, item["hq"]))
        assert tested[0][OURS]["psnr"] == pytest.approx(np.mean(values), abs=0.01)

    def test_the_landmark_error_is_of_faces_with_landmarks(self, tested, items, tiny_weights):
        prior = load_networks(tiny_weights)[1].eval()
        errors = []
        for item in items[:-1]:
            with torch.inference_mode():
                found = prior(item["hq"][None], item["points5"][None]).landmarks[0].double().numpy()
            truth = item["landmarks68"].double().numpy()
            eyes = np.linalg.norm(truth[36] - truth[45])
            errors.append(100 * np.linalg.norm(found - truth, axis=1).mean() / eyes)
        assert torch.isnan(items[-1]["landmarks68"]).all()
        assert tested[0][TRUTH]["landmark_error"] == pytest.approx(np.mean(errors), rel=1e-3)

    def test_a_restorer_without_weights_is_left_out_with_a_warning(self, tested):
        warnings = [text for level, text in tested[2] if level == "WARNING"]
        assert len(warnings) == 1 and "'absent' is left out" in warnings[0] and "/nowhere" in warnings[0]


class TestReport:
    def test_json(self, tested, options):
        table, folder, _ = tested
        report = json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)
        assert report["table"] == table and report["faces"] == IMAGES
        assert report["options"] == options

    def test_markdown_is_a_table(self, tested):
        table, folder, _ = tested
        text = (folder / "report.md").read_text()
        assert text.startswith("# tiny_test\n\n5 faces\n")
        head, rule, *rows = [line for line in text.splitlines() if line.startswith("|")]
        cells = [line.replace(r"\|", "").strip("|").split("|") for line in (head, rule, *rows)]
        assert {len(row) for row in cells} == {5}
        assert set(cells[1]) == {"---"}
        assert [cell.strip() for cell in cells[0][1:]][:3] == ["psnr ↑", "ssim ↑", "perceptual_mnv2 ↓"]
        assert "↓" in cells[0][4]
        assert [row[0].strip() for row in cells[2:]] == [INPUT, "tiny  random", TRUTH]
        assert rows[1].startswith(r"| tiny \| random |")
        assert float(cells[2][1]) == pytest.approx(table[INPUT]["psnr"], abs=5e-4)
        assert [cell.strip() for cell in cells[4][1:4]] == ["–"] * 3

    def test_the_sheet_shows_input_restoration_and_truth(self, tested, items):
        sheet = cv2.imread(str(tested[1] / "sheet.jpg"))
        assert sheet.shape == (IMAGES * SIZE, 3 * SIZE, 3)
        truth = levels(items[1]["hq"]).transpose(1, 2, 0)[..., ::-1]
        assert np.abs(sheet[SIZE : 2 * SIZE, 2 * SIZE :] - truth).mean() < 8

    def test_nothing_else_is_written(self, tested):
        assert {path.name for path in tested[1].iterdir()} == {"report.json", "report.md", "sheet.jpg"}


def test_without_landmarks_and_degradation_what_cannot_be_measured_is_left_out(options, faces, tmp_path):
    single = tmp_path / "one"
    single.mkdir()
    (single / "0.png").write_bytes((faces / "0.png").read_bytes())
    changed = ["datasets.test.degradation=~", "metrics=[psnr]", "restorers={absent: x}"]
    changed.append(f"datasets.test.dataroot={single}")
    table = pipeline.run(write(tmp_path, options), changed, output=str(tmp_path / "out"))
    assert table == {INPUT: {}, TRUTH: {}}
    json.loads((tmp_path / "out" / "report.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("metrics=[]", "metrics: this option is missing"),
        ("restorers=~", "restorers: this option is missing"),
        ("metrics=[pnsr]", "metrics.pnsr: unknown option.*'psnr'"),
        ("metrics=[calculate_psnr]", "metrics.calculate_psnr: unknown option"),
        ("restorers={ground truth: x}", "restorers.ground truth: .*choose another"),
        ("datasets={train: {}}", "datasets.train: unknown option"),
        ("datasets.test.dataroot=/nowhere", "datasets.test: .*/nowhere"),
        ("judge=/nowhere", "weights '/nowhere': no such file"),
    ],
)
def test_refusals(options, tmp_path, override, message):
    with pytest.raises((OptionError, CheckpointError), match=message):
        pipeline.run(write(tmp_path, options), [override], output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_damaged_weights_are_no_missing_ones(options, tmp_path):
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"damaged\.safetensors: not a readable safetensors file"):
        pipeline.run(write(tmp_path, options), [f"restorers.x={damaged}"], output=str(tmp_path / "out"))


def test_mean_of_known():
    assert mean_of_known([1.0, math.nan, 3.0, math.inf]) == 2.0
    assert mean_of_known([math.nan]) is None and mean_of_known([]) is None


def test_markdown_of_unequal_rows():
    lines = pipeline.markdown({"a": {"psnr": 1.0}, "b": {"ssim": 0.5}}).splitlines()
    assert lines == ["| | psnr ↑ | ssim ↑ |", "|---|---|---|", "| a | 1.000 | – |", "| b | – | 0.500 |"]
