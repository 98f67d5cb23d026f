"""Monochrome pictures: black and white, and toned prints, told from photos in colours; their tone found and given back."""

import cv2
import numpy as np
import pytest

from sgpn_data.photos import GREY_TOLERANCE, is_grey, tone_of, toned

LEVELS = np.arange(256)
TONES = {
    "sepia": np.stack([LEVELS * 0.72, LEVELS * 0.9, LEVELS * 1.06], axis=1),
    "slight": np.stack([LEVELS - 4, LEVELS, LEVELS + 4], axis=1),
    "cyanotype": 255 * (LEVELS[:, None] / 255) ** np.array([0.75, 0.95, 1.3]),
    "split": LEVELS[:, None] + np.sin(LEVELS / 255 * np.pi)[:, None] * (LEVELS[:, None] / 128 - 1) * [-20, 0, 20],
    "paper": LEVELS[:, None] * [0.62, 0.71, 0.7] + [30, 45, 60],
}


def printed(photo, tone, noise=0.0, quality=None):
    """A photo as a print of one tone; with noise of all channels alike, and as JPEG."""
    grey = cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY)
    picture = TONES[tone][grey] + np.random.default_rng(0).normal(0, noise, grey.shape)[..., None]
    picture = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    if quality:
        picture = cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
    return picture


@pytest.fixture(scope="module")
def crop(astronaut):
    return np.ascontiguousarray(astronaut[:256, 96:352])


def test_grey_is_the_mean_spread_of_the_channels():
    rng = np.random.default_rng(5)
    for spread in (0, 1, 3, 6, 40):
        photo = np.clip(rng.integers(60, 200, (50, 70, 1)) + rng.integers(0, spread + 1, (50, 70, 3)), 0, 255).astype(
            np.uint8
        )
        expected = np.mean([int(pixel.max()) - int(pixel.min()) for pixel in photo.reshape(-1, 3)]) < GREY_TOLERANCE
        assert is_grey(photo) == expected


@pytest.mark.parametrize("tone", TONES)
@pytest.mark.parametrize(("noise", "quality"), [(0, None), (0, 60), (8, 75)])
def test_a_tone_is_found_and_given_back(crop, tone, noise, quality):
    picture = printed(crop, tone, noise, quality)
    curve = tone_of(picture)
    assert curve is not None and curve.shape == (256, 3) and curve.dtype == np.uint8
    again = toned(picture, curve).astype(int)
    assert np.abs(again - printed(crop, tone, noise)).mean() < 2 + (noise + 4 if quality else 0)
    # The colours: what is left when the lightness is taken away.
    apart = (again[..., 2] - again[..., 0]) - (TONES[tone][:, 2] - TONES[tone][:, 0])[
        cv2.cvtColor(again.astype(np.uint8), cv2.COLOR_BGR2GRAY)
    ]
    assert np.abs(apart)[(again.min(axis=2) > 8) & (again.max(axis=2) < 247)].mean() < 4


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("change", ["as it is", "blurred", "paler", "darker", "close"])
def test_colours_are_no_tone(crop, change, size):
    grey = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    picture = {
        "as it is": crop,
        "blurred": cv2.GaussianBlur(crop, (0, 0), 6),
        "paler": cv2.addWeighted(crop, 0.6, grey, 0.4, 0),
        "darker": crop // 2,
        "close": crop[60:180, 70:190],
    }[change]
    assert tone_of(cv2.resize(np.ascontiguousarray(picture), (size, size), interpolation=cv2.INTER_AREA)) is None


def test_grey_is_its_own_tone(crop):
    grey = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    assert np.array_equal(tone_of(grey), np.repeat(LEVELS[:, None], 3, axis=1))
    assert np.array_equal(toned(grey, tone_of(grey)), grey)


def test_a_hole_says_nothing(crop):
    """White where nothing is known: a sepia print stays one, and a photo in colours that is nearly all hole is not grey."""
    known = np.zeros(crop.shape[:2], bool)
    known[:40] = True
    for picture, found in ((printed(crop, "sepia"), True), (crop, False)):
        picture = picture.copy()
        picture[40:] = 255
        curve = tone_of(picture, known)
        assert (curve is not None) == found
    assert curve is None and tone_of(crop, np.zeros_like(known)) is None
    sepia = printed(crop, "sepia")
    curve = tone_of(np.where(known[..., None], sepia, 255).astype(np.uint8), known)
    assert np.abs(toned(sepia, curve)[:40].astype(int) - sepia[:40]).max() <= 4
