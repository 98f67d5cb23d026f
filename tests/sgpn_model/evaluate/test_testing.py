"""``sgpn test``: the table against independent numbers, folders of pictures as rows, the report, and what is refused."""

import json
import logging
import math
import re
import shutil
import sys

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch import nn

from oracles import metrics as oracle
from sgpn_arch.errors import OptionError, UserError
from sgpn_arch.registry import METRIC_REGISTRY
from sgpn_data import sheet
from sgpn_data.alignment import resize
from sgpn_data.photos import read_photo, write_picture
from sgpn_data.tensors import to_images, to_tensor
from sgpn_model import cli
from sgpn_model.config.registries import fill_registries
from sgpn_model.evaluate import evaluate as pipeline
from sgpn_model.evaluate.metrics import frechet_mnv2
from sgpn_model.restore.restorer import FaceRestorer
from sgpn_model.train.batches import build_dataset, mean_of_known
from sgpn_model.weights.checkpoint import CheckpointError
from sgpn_model.weights.pretrained import load_networks

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
        "metrics": ["psnr", "ssim", "perceptual_mnv2", "frechet_mnv2"],
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


PRIOR = {"prior_landmark_error", "prior_rendering_error"}


class TestTable:
    def test_rows_and_columns(self, tested):
        table, _, _ = tested
        assert list(table) == [INPUT, OURS, TRUTH]
        compared = {"psnr", "ssim", "perceptual_mnv2", "frechet_mnv2", "landmark_error"}
        assert set(table[INPUT]) == compared and set(table[OURS]) == compared | PRIOR
        assert set(table[TRUTH]) == {"landmark_error"}
        assert all(math.isfinite(value) for row in table.values() for value in row.values())

    def test_the_inputs_psnr_is_the_mean_over_the_faces(self, tested, items):
        wanted = np.mean([psnr(item["lq"], item["hq"]) for item in items])
        assert tested[0][INPUT]["psnr"] == pytest.approx(wanted, rel=1e-6)

    def test_the_restorers_psnr_is_that_of_the_command(self, tested, options, tiny_weights, tmp_path):
        """`sgpn restore --aligned` on the inputs that the test saves, picture by picture."""
        opt = {**options, "restorers": {}, "metrics": ["psnr"]}
        pipeline.evaluate(write(tmp_path, opt), save_inputs=str(tmp_path / "inputs"))
        arguments = ["--aligned", "--weights", tiny_weights, "--device", "cpu", "-o", str(tmp_path / "restored")]
        assert cli.main(["restore", str(tmp_path / "inputs"), *arguments]) == 0
        scores = pipeline.evaluate(write(tmp_path, opt), restorers={"command": str(tmp_path / "restored")})
        values = scores.per_face["command"]["psnr"]
        assert tested[0][OURS]["psnr"] == pytest.approx(np.mean(values), rel=1e-9)

    def test_points_are_those_that_were_asked_for(self, options, tiny_weights, items, tmp_path):
        """Their label is in the table, and the prior is shown the points."""
        rows = {kind: {"weights": tiny_weights, "points": kind} for kind in ("true", "template", "detected")}
        opt = {**options, "metrics": ["psnr"], "points": "template", "restorers": {**rows, "file's": tiny_weights}}
        scores = pipeline.evaluate(write(tmp_path, opt))
        assert scores.labels() == {f"{row}": f"{row} ({kind} points)" for row, kind in scores.points.items()}
        assert scores.points == {**{kind: kind for kind in rows}, "file's": "template"}
        errors = {row: scores.per_face[row]["prior_landmark_error"][:-1] for row in scores.points}
        assert errors["file's"] == errors["template"] != errors["true"]
        prior = FaceRestorer.from_pretrained(tiny_weights, device="cpu").engine.prior
        expected = []
        for item in items[:-1]:
            crop = to_tensor(resize(to_images(item["lq"][None])[0], (64, 64)))
            points, known = [(item[key] + 0.5) * 64 / SIZE - 0.5 for key in ("points5", "landmarks68")]
            with torch.inference_mode():
                found = prior(crop[None], points[None]).landmarks
            expected += oracle.landmark_error(found.numpy(), known[None].numpy())
        assert errors["true"] == pytest.approx(expected, rel=1e-3)

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

    def test_the_priors_errors_are_those_of_its_rendering_and_landmarks(self, tested, items, tiny_weights):
        restorer = FaceRestorer.from_pretrained(tiny_weights, device="cpu")
        landmarks, colours = [], []
        for item in items:
            lq, hq = (to_images(item[key][None])[0] for key in ("lq", "hq"))
            (face,) = restorer.restore(lq, aligned=True).faces
            truth = cv2.resize(hq, (64, 64), interpolation=cv2.INTER_AREA)
            colours.append(np.abs(face.render.astype(float) - truth)[face.render_mask > 254].mean())
            known = (item["landmarks68"] + 0.5) * 64 / SIZE - 0.5
            landmarks += oracle.landmark_error(face.landmarks[None], known[None].numpy())
        row = tested[0][OURS]
        assert row["prior_rendering_error"] == pytest.approx(np.mean(colours), rel=1e-6)
        assert row["prior_landmark_error"] == pytest.approx(np.mean(landmarks[:-1]), rel=1e-5)

    def test_sets_are_compared_as_wholes(self, tested, items):
        metric = frechet_mnv2()
        lq, hq = (metric.features(torch.stack([item[key] for item in items])).numpy() for key in ("lq", "hq"))
        # Fewer faces than features: SciPy's root of a singular matrix is only roughly one.
        assert tested[0][INPUT]["frechet_mnv2"] == pytest.approx(oracle.frechet_distance(lq, hq), rel=0.01)

    def test_a_restorer_without_weights_is_left_out_with_a_warning(self, tested):
        warnings = [text for level, text in tested[2] if level == "WARNING"]
        assert len(warnings) == 1 and "left out: the row 'absent'" in warnings[0] and "/nowhere" in warnings[0]


class TestReport:
    def test_json(self, tested, options, items):
        table, folder, _ = tested
        report = json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)
        assert report["table"] == table and report["faces"] == IMAGES
        assert report["options"] == options and report["seed"] == 3 and report["device"] == "cpu"
        assert report["names"] == [str(number) for number in range(IMAGES)]
        assert {"sgpn", "torch", "python"} <= set(report["versions"]) and report["date"].startswith("20")
        assert len(report["left_out"]) == 1 and "'absent'" in report["left_out"][0]
        assert any("frechet_mnv2: 5 faces for 32 features" in note for note in report["notes"])
        assert report["input_psnr"] == pytest.approx([psnr(item["lq"], item["hq"]) for item in items], rel=1e-6)

    def test_the_table_is_the_means_of_the_values_in_the_json(self, tested):
        table, folder, _ = tested
        report = json.loads((folder / "report.json").read_text())
        assert report["values"][TRUTH]["landmark_error"][-1] is None
        for row, columns in report["values"].items():
            for name, values in columns.items():
                known = [value for value in values if value is not None]
                assert len(values) == IMAGES and table[row][name] == pytest.approx(np.mean(known), rel=1e-9)
                error = np.std(known, ddof=1) / math.sqrt(len(known))
                assert report["standard_errors"][row][name] == pytest.approx(error, rel=1e-9)

    def test_markdown_is_a_table(self, tested):
        table, folder, _ = tested
        text = (folder / "report.md").read_text()
        assert text.startswith("# tiny_test\n\n5 faces\n")
        head, rule, *rows = [line for line in text.splitlines() if line.startswith("|")]
        cells = [line.replace(r"\|", "").strip("|").split("|") for line in (head, rule, *rows)]
        assert {len(row) for row in cells} == {8}
        assert set(cells[1]) == {"---"}
        titles = [cell.strip() for cell in cells[0][1:]]
        assert titles[:4] == ["psnr, dB ↑", "ssim ↑", "perceptual_mnv2 ↓", "frechet_mnv2 ↓"]
        assert titles[4:] == [
            "landmark_error, % of eye distance ↓",
            "prior_landmark_error, % of eye distance ↓",
            "prior_rendering_error, grey levels ↓",
        ]
        assert [row[0].strip() for row in cells[2:]] == [INPUT, "tiny  random (detected points)", TRUTH]
        assert rows[1].startswith(r"| tiny \| random (detected points) |")
        assert float(cells[2][1]) == pytest.approx(table[INPUT]["psnr"], abs=5e-4)
        assert [cell.strip() for cell in cells[4][1:5]] == ["–"] * 4
        assert "## Left out" in text and "'absent'" in text and "\nname: tiny_test\n" in text

    def test_the_pictures_that_the_page_shows_are_there(self, tested):
        folder = tested[1]
        shown = set(re.findall(r"\]\((\S+)\)", (folder / "report.md").read_text()))
        assert shown == {"grid.jpg", "metrics.png", "quality.png"}
        assert {path.name for path in folder.iterdir()} == shown | {"report.json", "report.md"}
        for name in ("metrics.png", "quality.png"):
            plot = cv2.imread(str(folder / name))
            assert plot.shape[0] > 300 and plot.std() > 10

    def test_the_grid_shows_input_rendering_mask_restoration_and_truth(self, tested, items):
        grid = cv2.imread(str(tested[1] / "grid.jpg"))
        cell, gap = sheet.SMALLEST_CELL, sheet.GAP
        left, top = grid.shape[1] - 5 * (cell + gap), grid.shape[0] - IMAGES * (cell + gap)
        assert left > 10 and top > 10

        def at(row, column):
            y, x = top + row * (cell + gap), left + column * (cell + gap)
            return grid[y : y + cell, x : x + cell].astype(float)

        def shown(picture):
            image = levels(picture).transpose(1, 2, 0)[..., ::-1].astype(np.uint8)
            return cv2.resize(image, (cell, cell), interpolation=cv2.INTER_CUBIC)

        for row, item in enumerate(items):
            assert np.abs(shown(item["lq"]) - at(row, 0)).mean() < 6
            assert np.abs(shown(item["hq"]) - at(row, 4)).mean() < 6
        assert (at(0, 1)[:8] < 20).all()  # the rendering is black outside the face
        assert np.ptp(at(0, 2), axis=2).max() < 12  # the mask is grey
        # Titles and names are written where they belong.
        assert (grid[:top, left : left + cell] < 128).any() and (grid[top : top + cell, :left] < 128).any()


@pytest.fixture(scope="module")
def saved_inputs(options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    opt = {**options, "restorers": {}, "metrics": ["psnr"]}
    pipeline.evaluate(write(folder, opt), save_inputs=str(folder / "inputs"))
    return folder / "inputs"


class TestFolders:
    @pytest.fixture
    def restored(self, options, saved_inputs, tmp_path):
        """A copy of the inputs as ``--save-inputs`` writes them, and a function that scores folders."""
        opt = {**options, "restorers": {}, "metrics": ["psnr", "frechet_mnv2"]}

        def score(**folders):
            return pipeline.evaluate(write(tmp_path, opt), restorers={n: str(folder) for n, folder in folders.items()})

        shutil.copytree(saved_inputs, tmp_path / "inputs")
        return tmp_path / "inputs", score

    def test_the_saved_inputs_score_as_the_input(self, restored, items):
        inputs, score = restored
        assert sorted(path.name for path in inputs.iterdir()) == [f"{number}.png" for number in range(IMAGES)]
        assert np.array_equal(read_photo(inputs / "2.png").bgr, levels(items[2]["lq"]).transpose(1, 2, 0)[..., ::-1])
        table = score(again=inputs).table()
        assert table["again"]["psnr"] == table[INPUT]["psnr"]
        assert table["again"] == pytest.approx(table[INPUT], rel=0.01)

    def test_what_is_missing_broken_or_of_another_size_is_named_and_counted(self, restored, tmp_path):
        inputs, score = restored
        other = tmp_path / "other"
        other.mkdir()
        write_picture(other / "0_00.jpg", read_photo(inputs / "0.png").bgr)
        large = cv2.resize(read_photo(inputs / "1.png").bgr, (2 * SIZE, 2 * SIZE), interpolation=cv2.INTER_NEAREST)
        write_picture(other / "1.png", large)
        (other / "2.png").write_bytes(b"no picture")
        write_picture(other / "3.png", np.zeros((SIZE, SIZE + 8, 3), np.uint8))
        (other / "notes.txt").write_text("4.png is missing")
        scores = score(other=other)
        mine, theirs = (scores.per_face[row]["psnr"] for row in (INPUT, "other"))
        assert theirs[0] == pytest.approx(mine[0], abs=0.5) and theirs[1] == pytest.approx(mine[1], rel=1e-6)
        assert all(math.isnan(value) for value in theirs[2:])
        assert scores.table()["other"]["psnr"] == pytest.approx(np.mean(theirs[:2]))
        # The set's distance is of the faces that are there.
        metric = frechet_mnv2()
        assert scores.of_sets["other"]["frechet_mnv2"] > 0 and metric.higher_is_better is False
        missing, size = (note for note in scores.notes if note.startswith("other: "))
        assert "3 pictures of" in missing
        assert f"2 (unreadable), 3 ({SIZE + 8}x{SIZE}, not square), 4 (missing)" in missing
        assert f"1 picture of {other} resized to the test's size, from {2 * SIZE} px" in size
        pipeline.write_report(tmp_path / "out", scores)
        assert "| other (2 of 5 faces) | " in (tmp_path / "out" / "report.md").read_text()
        grid = cv2.imread(str(tmp_path / "out" / "grid.jpg"))
        assert grid.shape[1] > 3 * sheet.SMALLEST_CELL

    def test_an_empty_folder_has_a_row_without_values(self, restored, tmp_path):
        (tmp_path / "empty").mkdir()
        scores = restored[1](empty=tmp_path / "empty")
        assert scores.table()["empty"] == {} and "5 pictures" in scores.notes[-1]
        pipeline.write_report(tmp_path / "out", scores)

    def test_the_command(self, options, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        path = write(tmp_path, {**options, "restorers": {}, "metrics": ["psnr"]})
        assert cli.main(["test", path, "--save-inputs", "inputs", "-o", "first"]) == 0
        assert cli.main(["test", path, "--restorer", "inputs", "--restorer", "twice=inputs", "-o", "out"]) == 0
        table = json.loads((tmp_path / "out" / "report.json").read_text())["table"]
        assert list(table) == [INPUT, "inputs", "twice", TRUTH] and table["inputs"] == table["twice"]
        assert "| twice |" in capsys.readouterr().out

    @pytest.mark.parametrize("argument", ["=x", "x=", "", "twice=a"])
    def test_arguments_that_are_refused(self, argument):
        with pytest.raises(OptionError, match="--restorer"):
            pipeline.parse_restorers(["twice=b", argument])

    def test_the_tests_own_pictures_are_not_overwritten(self, options, faces, tmp_path):
        with pytest.raises(OptionError, match="--save-inputs .*own pictures"):
            pipeline.evaluate(write(tmp_path, options), save_inputs=str(faces))


def test_several_checkpoints_face_by_face(options, tiny_weights, tmp_path):
    """What a comparison over seeds needs."""
    opt = {**options, "restorers": {}, "metrics": ["psnr"]}
    scores = pipeline.evaluate(write(tmp_path, opt), restorers={"seed 0": tiny_weights, "seed 1": tiny_weights})
    one, other = (scores.per_face[f"seed {seed}"]["psnr"] for seed in (0, 1))
    assert one == other and len(one) == len(scores.faces) == IMAGES
    assert scores.table()["seed 0"]["psnr"] == pytest.approx(np.mean(one))


def test_fidelity_takes_a_row_back_to_its_input(options, tiny_weights, tmp_path):
    rows = {f"at {value}": {"weights": tiny_weights, "fidelity": value} for value in (0, 0.5, 1, "auto")}
    opt = {**options, "restorers": {"plain": tiny_weights, **rows}, "metrics": ["psnr"]}
    scores = pipeline.evaluate(write(tmp_path, opt))
    found = {row: columns["psnr"] for row, columns in scores.per_face.items() if "psnr" in columns}
    plain, half, whole, given = (np.array(found[row]) for row in ("plain", "at 0.5", "at 1", INPUT))
    assert (plain < half).all() and (half < whole).all()
    # The network is smaller than the pictures, and what these show finer than it is kept.
    np.testing.assert_allclose(whole, given, atol=1e-3)
    assert found["at auto"] == found["plain"]


def test_holes_are_filled_as_the_command_fills_them(options, tiny_weights):
    """A test set with holes: what is outside of them stays the input's, two pixels around them apart."""
    fill_registries()
    item = build_dataset({**options["datasets"]["test"], "degradation": None, "inpaint": {"area": 0.1}}, "test")[0]
    batch = {key: value[None] for key, value in item.items() if torch.is_tensor(value)}
    (restored,) = pipeline.WeightsRestorer(tiny_weights, "cpu")(batch, ["0"]).images
    hole = item["mask"][0].numpy().astype(np.uint8)
    away = cv2.dilate(hole, np.ones((7, 7), np.uint8)) == 0
    changed = np.abs(levels(restored) - levels(item["lq"])).max(axis=0)
    assert changed[away].max() == 0 and (changed[hole > 0] > 0).mean() > 0.9


def test_faces_of_one_name_and_unusable_ones(options, faces, tmp_path):
    """The second '0' gets another name; a broken picture is not replaced by its neighbour's second score."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for number in range(2):
            (tmp_path / folder / f"{number}.png").write_bytes((faces / f"{number}.png").read_bytes())
    (tmp_path / "b" / "0.png").write_bytes(b"broken")
    opt = {**options, "restorers": {}, "metrics": ["psnr"]}
    roots = f"datasets.test.dataroot=[{tmp_path / 'a'}, {tmp_path / 'b'}]"
    scores = pipeline.evaluate(write(tmp_path, opt), [roots])
    assert scores.faces == ["0", "1", "1_2"]
    assert any("1 picture of the test set cannot be used" in note for note in scores.notes)


class TestMetricsOfOthers:
    @pytest.fixture(autouse=True)
    def registered(self):
        class brightness:  # neither a module nor a subclass
            higher_is_better = True
            needs_reference = False

            def __call__(self, pred):
                return pred.mean((1, 2, 3)).tolist()

        class nose_shift(nn.Module):
            higher_is_better = False
            inputs = ("points5",)
            unit = "px"

            def forward(self, pred, target, points5):
                return points5[:, 2, 0].tolist()

        class mean_colour(nn.Module):
            higher_is_better = False

            def features(self, images):
                return images.mean((2, 3))

            def distance(self, pred, target):
                return (pred.mean(0) - target.mean(0)).norm().item()

        class fastidious(nn.Module):
            higher_is_better = False
            min_size = 1000

        ours = (brightness, nose_shift, mean_colour, fastidious)
        for metric in ours:
            METRIC_REGISTRY.register(metric)
        yield
        for metric in ours:
            del METRIC_REGISTRY._obj_map[metric.__name__]

    def test_are_used_by_their_names(self, options, items, tmp_path):
        names = ["brightness", "nose_shift", "mean_colour", "fastidious"]
        opt = {**options, "restorers": {}, "metrics": names}
        scores = pipeline.evaluate(write(tmp_path, opt))
        table = scores.table()
        lq, hq = (torch.stack([item[key] for item in items]) for key in ("lq", "hq"))
        assert table[INPUT]["brightness"] == pytest.approx(lq.mean().item(), rel=1e-4)
        assert table[TRUTH]["brightness"] == pytest.approx(hq.mean().item(), rel=1e-4)
        noses = [item["points5"][2, 0].item() for item in items]
        assert table[INPUT]["nose_shift"] == pytest.approx(np.mean(noses)) and "nose_shift" not in table[TRUTH]
        colour = (lq.mean((0, 2, 3)) - hq.mean((0, 2, 3))).norm().item()
        assert table[INPUT]["mean_colour"] == pytest.approx(colour, rel=1e-3)
        assert "fastidious needs pictures of at least 1000 px, but these have 96" in scores.left_out
        head = pipeline.markdown(table).splitlines()[0]
        assert "| brightness ↑ | nose_shift, px ↓ | mean_colour ↓ |" in head


def test_metrics_without_weights_are_left_out_by_name(options, tmp_path, monkeypatch):
    for variable in ("SGPN_HOME", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    opt = {**options, "restorers": {}, "metrics": ["psnr", "lpips_vgg", "fid", "niqe"]}
    scores = pipeline.evaluate(write(tmp_path, opt))
    assert set(scores.table()[INPUT]) == {"psnr", "landmark_error"}
    lpips, fid, niqe = scores.left_out
    assert "sgpn weights fetch vgg16" in lpips and "sgpn weights fetch inception_fid" in fid
    assert niqe == "niqe needs pictures of at least 192 px, but these have 96"


def test_without_matplotlib_there_are_no_plots(options, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    opt = {**options, "restorers": {}, "metrics": ["psnr"]}
    pipeline.run(write(tmp_path, opt), output=str(tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report.md", "grid.jpg"}
    assert 'pip install "sgpn[metrics]"' in (tmp_path / "out" / "report.md").read_text()


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
        ("metrics=[]", "metrics: expected a list of metrics"),
        ("metrics=psnr", "metrics: expected a list of metrics' names, found 'psnr'"),
        ("manual_seed=1", "manual_seed: has no meaning .*datasets.test.seed"),
        ("train={total_iter: 3}", "train: has no meaning"),
        ("path={experiments_root: x}", "path: has no meaning"),
        ("model_type=SGPNModel", "model_type: has no meaning in a file for `sgpn test`"),
        ("restorers={x: 3}", "restorers.x: expected weights or a folder, found 3"),
        (
            "restorers={x: {weights: default, fidelity: 2}}",
            "x.fidelity: expected a number from 0 to 1 or auto, found 2",
        ),
        ("restorers={x: {weight: default}}", "restorers.x.weight: unknown option"),
        ("points=best", "points: .*'best'"),
        ("restorers={x: {fidelity: 1}}", "restorers.x.weights: this option is missing"),
        ("restorers=[x]", "restorers: expected a mapping"),
        ("metrics=[pnsr]", "metrics.0: unknown name 'pnsr'; did you mean 'psnr'"),
        ("metrics=[calculate_pnsr]", "metrics.0: unknown name 'calculate_pnsr'; did you mean 'calculate_psnr'"),
        ("restorers={ground truth: x}", "restorers.ground truth: .*choose another"),
        ("datasets={train: {}}", "datasets.train: unknown option"),
        ("datasets.test.dataroot=/nowhere", "datasets.test.dataroot: /nowhere: no such folder"),
        ("judge=/nowhere", "weights '/nowhere': no such file"),
    ],
)
def test_refusals(options, tmp_path, override, message):
    with pytest.raises(UserError, match=message):
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
    assert lines == ["| | psnr, dB ↑ | ssim ↑ |", "|---|---|---|", "| a | 1.000 | – |", "| b | – | 0.500 |"]
