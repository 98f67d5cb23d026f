"""A few seeded cases of every kind that scripts/fuzz.py tries by the thousand; a failure names the command that repeats it."""

import numpy as np
import pytest
import torch

from fuzz.checkpoints import Checkpoints
from fuzz.folders import Folders
from fuzz.option_files import OptionFiles
from fuzz.photos import Photos
from fuzz.trying import Said, fault

SEED = 1


@pytest.fixture(autouse=True)
def process_settings():
    """Training sets threads and random numbers; other tests should not notice."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)  # for networks as small as these
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


@pytest.mark.parametrize(
    ("area", "count"),
    [
        (Photos, 100),
        (OptionFiles, 15),
        (Checkpoints, 10),
        (Folders, 8),
    ],
)
def test_random_inputs(area, count, tmp_path):
    tried, failed = area(tmp_path), []
    for number in range(count):
        case = tmp_path / str(number)
        case.mkdir()
        what, wrong = tried.attempt(np.random.default_rng([SEED, number]), case)
        if wrong:
            failed.append(f"python scripts/fuzz.py {area.NAME} --seed {SEED} --only {number}: {what}: {wrong}")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (Said(0, "restored 1 face"), None),
        (Said(1, "sgpn: error: a.png: no such file"), None),
        (Said(None, "", "ZeroDivisionError"), "traceback"),
        (Said(3, ""), "exit code 3"),
        (Said(0, "x.py:1: UserWarning: Corrupt EXIF"), "noise"),
        (Said(1, "error: a.png: KeyError: 'x'"), "noise"),
        (Said(1, "something went wrong"), "names neither"),
    ],
)
def test_what_counts_as_a_failure(said, found):
    wrong = fault(said, "a.png")
    assert wrong is None if found is None else wrong.startswith(found)
