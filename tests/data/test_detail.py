"""What a photo shows finer than its crop: noise is measured and taken away, detail is not; in strips as in one piece."""

import cv2
import numpy as np
import pytest

from oracles.pictures import similarity
from sgpn_data import pasting
from sgpn_data.alignment import warp
from sgpn_data.detail import noise_of, with_detail, without_noise
from sgpn_data.pasting import paste_face


def with_noise(photo, delta, seed=0):
    drawn = np.random.default_rng(seed).normal(0, delta, photo.shape)
    return np.clip(np.rint(photo + drawn), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def photo():
    """A plain grey picture of 256 px with sharp bright lines."""
    picture = np.full((256, 256, 3), 100, np.uint8)
    picture[:, 60::64] = 220
    return picture


@pytest.mark.parametrize(("delta", "scale"), [(0, 2), (8, 2), (20, 2), (20, 4)])
def test_noise_is_measured_in_each_octave(photo, delta, scale):
    """The oracle: the same filter of the noise alone, where there is nothing else."""
    alone = with_noise(np.full((512, 512, 3), 128, np.uint8), delta) - np.float32(128)
    noise = noise_of(with_noise(photo, delta) - photo.astype(np.float32), photo, scale)
    assert len(noise) == scale // 2
    rest = cv2.cvtColor(alone, cv2.COLOR_BGR2GRAY)
    for found in noise:
        coarse = cv2.pyrDown(rest)
        band = rest - cv2.pyrUp(coarse) if len(noise) > 1 and found is not noise[-1] else rest
        assert np.sqrt(found) == pytest.approx(band.std(), rel=0.15, abs=0)
        rest = coarse


def test_clipped_parts_say_nothing_of_the_noise(photo):
    """A portrait on burnt-out paper: three quarters of the picture show no noise, as no level is above white."""
    bright = photo.copy()
    bright[64:] = 255
    noisy = with_noise(photo, 12)
    noisy[64:] = 255
    found = noise_of(noisy - bright.astype(np.float32), noisy, 2)
    assert found[0] == pytest.approx(noise_of(with_noise(photo, 12) - photo.astype(np.float32), noisy, 2)[0], rel=0.25)
    assert noise_of(np.zeros(bright.shape, np.float32), np.full_like(bright, 255), 2) == [0.0]


def test_texture_in_most_of_the_picture_is_not_noise(photo):
    """Hair in four fifths of a picture, and nothing in the rest."""
    detail = with_noise(photo, 15) - photo.astype(np.float32)
    detail[200:] = 0
    assert noise_of(detail, photo, 2) == [0.0]


def test_noise_goes_and_lines_stay(photo):
    lines = np.zeros(photo.shape, np.float32)
    lines[:, 60::64] = 90
    noisy = lines + np.random.default_rng(1).normal(0, 10, lines.shape).astype(np.float32)
    clean = without_noise(noisy, noise_of(noisy, photo, 2))
    plain = np.abs(lines - cv2.blur(lines, (9, 9))) < 1e-6
    assert clean[plain].std() < 0.1 * noisy[plain].std()
    assert clean[:, 60::64].mean() == pytest.approx(90, rel=0.1)


def test_without_noise_all_detail_is_kept(photo):
    crop = cv2.resize(photo, (128, 128), interpolation=cv2.INTER_AREA)

    def move(picture):
        return cv2.resize(picture, (256, 256), interpolation=cv2.INTER_CUBIC)

    for noise in ([], [0.0]):
        assert np.abs(with_detail(crop, crop, "auto", photo, move, noise) - photo).max() < 1e-3
    octaves = np.random.default_rng(0).normal(0, 9, (77, 51, 3)).astype(np.float32)
    assert np.abs(without_noise(octaves, [0.0, 0.0, 0.0]) - octaves).max() < 1e-4


def test_strips_see_the_rows_beside_them(monkeypatch):
    """A large noisy face is blended strip by strip, in place: what was pasted above must not be taken for the photo."""
    photo = cv2.GaussianBlur(np.random.default_rng(3).integers(0, 256, (400, 400, 3), np.uint8), (0, 0), 3)
    photo = with_noise(photo, 12)
    matrix = similarity(0.25, 0.1, 5, -5)
    crop = warp(photo, matrix, (96, 96), "reflect")
    restored = crop[::-1].copy()
    expected = paste_face(photo, restored, matrix, crop=crop, keep="auto")
    assert np.abs(expected.astype(int) - paste_face(photo, restored, matrix, crop=crop, keep=1.0)).mean() > 2
    monkeypatch.setattr(pasting, "STRIP_PIXELS", 400 * 24)
    apart = np.abs(paste_face(photo, restored, matrix, crop=crop, keep="auto").astype(int) - expected)
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-2
