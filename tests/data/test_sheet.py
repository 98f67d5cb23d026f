"""Pictures for the documentation's pages are small enough, and every one that is committed is."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from sgpn_data.sheet import PAGE_BYTES, PAGE_WIDTH, write_page_picture

IMAGES = Path(__file__).parents[2] / "docs" / "images"


def test_a_large_picture_becomes_small_enough_and_stays_recognisable(tmp_path, astronaut):
    large = np.tile(astronaut, (4, 5, 1))
    write_page_picture(tmp_path / "a.jpg", large)
    written = cv2.imread(str(tmp_path / "a.jpg"))
    assert (tmp_path / "a.jpg").stat().st_size <= PAGE_BYTES and written.shape[1] == PAGE_WIDTH
    same = cv2.resize(large, written.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert cv2.PSNR(written, same) > 25


def test_a_small_picture_keeps_its_size_and_what_cannot_be_small_is_refused(tmp_path, astronaut):
    write_page_picture(tmp_path / "a.jpg", astronaut)
    assert cv2.imread(str(tmp_path / "a.jpg")).shape == astronaut.shape
    with pytest.raises(ValueError, match="b.jpg: over 300,000 bytes"):
        write_page_picture(tmp_path / "b.jpg", np.random.default_rng(0).integers(0, 256, (2000, 1500, 3), np.uint8))
    assert not (tmp_path / "b.jpg").exists()


@pytest.mark.parametrize(
    "path", sorted(path for path in IMAGES.rglob("*") if path.is_file()), ids=lambda path: path.name
)
def test_pictures_of_the_pages_are_small(path):
    assert path.stat().st_size <= PAGE_BYTES
