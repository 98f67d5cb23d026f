"""``sgpn restore --mask``: what it writes, which masks it takes, and what it says if there is nothing to fill."""

import cv2
import numpy as np
import pytest
from PIL import Image

from sgpn_data.photos import read_photo, write_picture


@pytest.fixture
def mask():
    picture = np.zeros((220, 220), np.uint8)
    cv2.line(picture, (90, 140), (120, 160), 255, 9)
    return picture


@pytest.mark.parametrize("options", [[], ["--aligned"]])
def test_fills_what_is_white_and_nothing_else(run, face, mask, options, capsys):
    write_picture("a.png", face)
    write_picture("m.png", mask)
    assert run("a.png", "--mask", "m.png", "--save-parts", *options) == 0
    result = read_photo("results/a.png").bgr
    near = cv2.dilate(mask, np.ones((7, 7))) > 0
    assert np.array_equal(result[~near], face[~near]) and (result[mask > 0] != face[mask > 0]).any(axis=1).mean() > 0.9
    crop = read_photo("results/parts/a_00_crop.png").bgr
    assert (crop == 255).all(axis=2).any()
    assert "filled 1 face in 1 photo" in capsys.readouterr().out


def test_what_is_transparent_in_a_mask_is_no_hole(run, face, mask):
    """Painted on a layer of its own: white all over, seen only where it was painted."""
    write_picture("a.png", face)
    layer = Image.new("L", (220, 220), 255).convert("RGB")
    layer.putalpha(Image.fromarray(mask))
    layer.save("layer.png")
    write_picture("m.png", mask)
    assert run("a.png", "--mask", "layer.png", "-o", "one") == 0 == run("a.png", "--mask", "m.png", "-o", "two")
    assert np.array_equal(read_photo("one/a.png").bgr, read_photo("two/a.png").bgr)


def test_a_mask_beside_all_faces(run, astronaut, capsys):
    write_picture("a.png", astronaut)
    away = np.zeros((512, 512), np.uint8)
    away[490:, :30] = 255
    write_picture("m.png", away)
    assert run("a.png", "--mask", "m.png") == 0
    said = capsys.readouterr()
    assert "a.png: the mask touches none of the 1 face found; copied as it is" in said.err
    assert np.array_equal(read_photo("results/a.png").bgr, astronaut)


def test_a_face_that_is_lost_in_the_hole(run, face, capsys):
    write_picture("a.png", np.full_like(face, 255))
    write_picture("m.png", np.full((220, 220), 255, np.uint8))
    assert run("a.png", "--mask", "m.png") == 0
    assert "no face found beside the hole; a crop of the face can be filled with --aligned" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((220, 220), np.uint8), "a.png: the mask has no white"),
        (np.full((110, 90), 255, np.uint8), "a.png: the mask is 90x110, the photo 220x220"),
    ],
)
def test_masks_that_do_not_fit(run, face, picture, message, capsys):
    write_picture("a.png", face)
    write_picture("m.png", picture)
    assert run("a.png", "--mask", "m.png") == 1
    assert message in capsys.readouterr().err


def test_wrong_usage(run, tmp_path, face, capsys):
    write_picture("photos/a.png", face)
    write_picture("photos/b.png", face)
    write_picture("m.png", face)
    assert run("photos", "--mask", "m.png") == 1
    assert "--mask goes with one photo" in capsys.readouterr().err
    assert run("photos/a.png", "--mask", "none.png") == 1
    assert "none.png: no such file" in capsys.readouterr().err
    write_picture("masks/a.png", face)
    assert run("photos/a.png", "--mask", "masks/a.png", "-o", "masks") == 1
    assert "would overwrite the mask" in capsys.readouterr().err
    for wrong in (["--demo"], ["photos/a.png", "photos/b.png"]):
        with pytest.raises(SystemExit) as caught:
            run(*wrong, "--mask", "m.png")
        assert caught.value.code == 2 and "--mask goes with one photo" in capsys.readouterr().err


def test_a_hole_that_vanishes_at_the_networks_size_leaves_the_face(restorer, face):
    large = cv2.resize(face, (1600, 1600))
    hole = np.zeros((1600, 1600), np.uint8)
    hole[800, 800] = 255
    result = restorer.restore(large, aligned=True, mask=hole)
    assert np.array_equal(result.image, large) and not result.faces and result.untouched == 1
