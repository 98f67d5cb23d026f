"""The simulation of a thousand workers: without mishaps it is a division, and with them no photo is lost or counted twice."""

from dataclasses import replace

import pytest

from oracles.script import load_script

scale = load_script("simulate_scale")
CALM = scale.Setting(
    photos=64_000, workers=10, spread=0, start=0, dispatch=0, slow=0, deaths=0, poison=0, listing=0, known=0
)


def test_without_mishaps_it_is_a_division():
    outcome = scale.simulate(CALM)
    assert outcome.seconds == pytest.approx(6400) and outcome.done == 64_000 and outcome.worked == pytest.approx(64_000)
    assert scale.simulate(replace(CALM, photos=64_001)).seconds == pytest.approx(6401)
    assert scale.simulate(replace(CALM, start=5, listing=0.001)).seconds == pytest.approx(6400 + 5 + 64)


def test_a_driver_that_is_too_slow_is_what_counts():
    assert scale.simulate(replace(CALM, dispatch=10)).seconds == pytest.approx(10 * 1000 + 64)


@pytest.mark.parametrize("seed", range(3))
def test_no_photo_is_lost(seed):
    outcome = scale.simulate(replace(CALM, spread=0.3, slow=0.2, deaths=2, poison=1e-3, start=10), seed)
    assert outcome.done + outcome.poisoned + outcome.wronged == 64_000
    assert outcome.poisoned > 20 and outcome.lost > 50 and outcome.again > outcome.lost and outcome.wronged < 20
    assert outcome.seconds > 6400
