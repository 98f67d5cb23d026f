"""Mixtures of degradations, and the levels to judge at."""

import numpy as np
import pytest

from sgpn_data.degradation import PRESETS, Degradation, DegradationMixture, build_degradation


@pytest.fixture
def face():
    ramp = np.linspace(0, 1, 64, dtype=np.float32)
    return np.stack([np.outer(ramp, ramp), np.tile(ramp, (64, 1)), np.eye(64, dtype=np.float32)], axis=2)


def test_clean_changes_nothing(face):
    result = Degradation("clean", reference_size=512)(face, np.random.default_rng(0))
    np.testing.assert_allclose(result, face, atol=1e-6)


def test_levels_grow_worse(face):
    rng = np.random.default_rng(0)
    errors = [
        np.mean([np.abs(Degradation(level, reference_size=512)(face, rng) - face).mean() for _ in range(20)])
        for level in ("clean", "mild", "medium", "severe")
    ]
    assert errors == sorted(errors)
    assert errors[0] < errors[1]


def test_the_levels_meet_the_agreed_ranges():
    """sigma, r, delta and q of the three levels, as agreed for judging the default weights."""
    ranges = {
        "mild": ((0.2, 4), (1, 4), (0, 10), (60, 100)),
        "medium": ((1, 8), (4, 12), (0, 15), (40, 80)),
        "severe": ((2, 12), (12, 24), (5, 20), (30, 60)),
    }
    for level, wanted in ranges.items():
        assert tuple(PRESETS[level][key] for key in ("blur_sigma", "downsample", "noise", "jpeg")) == wanted


def test_presets_are_drawn_as_often_as_wanted(face):
    mixture = DegradationMixture({"clean": 3, "severe": 1}, reference_size=512)
    rng = np.random.default_rng(0)
    untouched = np.mean([np.allclose(mixture(face, rng), face, atol=1e-5) for _ in range(400)])
    assert 0.68 < untouched < 0.82


def test_the_generator_decides_everything(face):
    mixture = build_degradation({"type": "DegradationMixture", "presets": {"mild": 1, "medium": 1}, "jpeg": 50})
    first, again = (mixture(face, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("presets", [{}, None, {"mild": 0}, {"mild": -1}, {"mlid": 1}])
def test_wrong_mixtures_are_refused(presets):
    with pytest.raises(ValueError, match="degradation.pres"):
        DegradationMixture(presets)
