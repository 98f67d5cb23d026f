"""The report of an album: what it says of each photo, its pictures, and that a second run keeps them."""

import json
import re
from urllib.parse import unquote

import cv2
import numpy as np
import pytest

from sgpn_data.photos import write_picture


@pytest.fixture
def album(tmp_path, face):
    """A photo with a face under a name that a page must escape, one without, and a broken one."""
    write_picture(tmp_path / "in" / "anna & <b> 100%.png", face)
    write_picture(tmp_path / "in" / "wall.png", np.full((40, 60, 3), 90, np.uint8))
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n")
    return tmp_path


def test_json_has_every_photo(run, album):
    assert run("in", "--report", "report.json") == 1
    report = json.loads((album / "report.json").read_text())
    photos = {photo["source"]: photo for photo in report["photos"]}
    assert {name: photo["state"] for name, photo in photos.items()} == {
        "in/anna & <b> 100%.png": "restored",
        "in/broken.png": "failed",
        "in/wall.png": "unchanged",
    }
    assert photos["in/anna & <b> 100%.png"]["faces"][0]["size"] > 50
    assert "cannot be read as a picture" in photos["in/broken.png"]["lines"][0]
    assert "no face found; copied as it is" in photos["in/wall.png"]["lines"][0]


def test_the_page_shows_photos_and_faces_before_and_after(run, album):
    assert run("in", "--scale", 2, "--report", "out/report.html") == 1
    page = (album / "out/report.html").read_text()
    assert "anna &amp; &lt;b&gt; 100%.png" in page and "<b>" not in page
    addresses = [unquote(address) for address in re.findall(r'(?:src|href)="([^"]+)"', page)]
    assert all((album / "out" / address).is_file() for address in addresses if "broken" not in address)
    before, after = (cv2.imread(str(path)) for path in sorted((album / "out/report_files").glob("*_0.jpg"))[::-1])
    assert before.shape == after.shape == (200, 200, 3)
    # The tiny network's weights are random: its face differs, but it is close up at the same place.
    assert np.abs(before.astype(int) - after).mean() > 2
    assert not re.search(r"https?://", page)


def test_a_second_run_reports_what_was_done_before(run, album):
    (album / "in/broken.png").unlink()
    assert run("in") == 0
    assert run("in", "--report", "report.html") == 0
    page = (album / "report.html").read_text()
    assert "2 done before" in page
    assert len(list((album / "report_files").glob("*_0.jpg"))) == 2


@pytest.mark.parametrize("name", ["report.txt", "report"])
def test_other_suffixes_are_refused(run, album, name):
    with pytest.raises(SystemExit):
        run("in", "--report", name)


def test_a_report_whose_pictures_would_be_found_next_time_is_refused(run, album, capsys):
    assert run("in", "-r", "--report", "in/report.html") == 1
    assert "-r would find its pictures" in capsys.readouterr().err
    assert not (album / "results").exists()
