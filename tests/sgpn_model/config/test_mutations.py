"""Every option of every shipped file, made wrong in every way that this file knows: all of it is refused, by its key.

What is wrong is decided here, by the kind of the value that the file has and by a few names, not by the models that refuse it.
"""

import copy
import math
import random
from pathlib import Path

import pytest

from sgpn_arch.errors import OptionError
from sgpn_model.config.checking import check
from sgpn_model.config.reading import read_options

ROOT = Path(__file__).parents[3]
SHIPPED = sorted((ROOT / "options").rglob("*.yml"))
MUTATIONS = 1000
# Sections whose keys are names that the user chooses, and text that may be any text.
FREE_NAMES = {"losses", "restorers"}
# Of the numbers, those that are whole (others may be written without a point too), and those that are at most 1.
WHOLE = {
    "size", "max_channels", "style_dim", "latent_dim", "coeff_dim", "mapping_layers", "id_dim", "exp_dim", "tex_dim",
    "manual_seed", "seed", "num_threads", "batch_size_per_gpu", "num_worker_per_gpu", "reference_size", "total_iter",
    "warmup_iter", "r1_every", "start_iter", "landmark_every", "every", "batch_shrink", "ramp_images", "synthetic_iter",
    "val_freq", "save_images", "print_freq", "save_checkpoint_freq",
}  # fmt: skip
FRACTIONS = {"ema_decay", "synthetic_fraction", "degraded_fraction", "target", "betas", "area"}
CHOICES = {
    "type", "model_type", "fusion", "backbone", "preset", "cache", "template", "schedule", "precision", "protocol",
    "device", "metrics", "landmark_frame",
}  # fmt: skip


def places(section, keys=()):
    """(keys of the section that it is in, key, value) of every option."""
    for key, value in section.items():
        yield keys, key, value
        if isinstance(value, dict):
            yield from places(value, (*keys, key))


def wrong_values(key, value, section):
    """Values that no reader of the documentation would expect to be taken in place of ``value``."""
    if isinstance(value, dict):
        return [5, "text", [1, 2], True]
    if isinstance(value, bool):
        return [7, "text", [True], 0.5]
    if isinstance(value, int | float):
        wrong = ["text", "5", True, [1, 2, 3], {"a": 1}, -2, math.nan, math.inf]
        wrong += [1.5] if key in WHOLE else []
        wrong += [2] if key in FRACTIONS else []
        return wrong + ([100, 2048] if key == "size" and section.startswith("network") else [])
    if isinstance(value, str):
        return [7, True, {"a": 1}, [3]] + (["nonsense", ""] if key in CHOICES else [])
    if isinstance(value, list) and all(isinstance(part, int | float) for part in value):
        return [9, [0.5, "text"], [0.9, -2], [0.1, 0.2, 0.3], {"a": 1}, "text"] + ([[0.5]] if key == "betas" else [])
    if isinstance(value, list):
        return [7, True, {"a": 1}, [7], []] + ([["nonsense"]] if key in CHOICES else [])
    return [] if value is None else [object()]


def misspelt(key):
    return [key[:-1] + "z", key + "z"]


def mutations():
    """(file, keys, what to do) of all there are, in a fixed order."""
    found = []
    for path in SHIPPED:
        options, _ = read_options(path)
        for keys, key, value in places(options):
            # BasicSR's L1Loss does not say that its weight is no less than 0.
            wrong = [
                each
                for each in wrong_values(key, value, (*keys, key)[0])
                if keys[-2:] != ("losses", "pixel") or each != -2
            ]
            found += [(path, (*keys, key), "set", each) for each in wrong]
            if not keys or keys[-1] not in FREE_NAMES:
                found += [(path, (*keys, key), "rename", name) for name in misspelt(key)]
    return found


def mutated(options, keys, action, what):
    """A changed copy of the options, and the keys that are wrong in it."""
    options = copy.deepcopy(options)
    section = options
    for key in keys[:-1]:
        section = section[key]
    if action == "set":
        section[keys[-1]] = what
        return options, {".".join(keys)}
    section[what] = section.pop(keys[-1])
    # Without a type, nobody knows what else the section may hold.
    return options, {".".join((*keys[:-1], name)) for name in {what, keys[-1]} if name in ("type", what)}


def survivors(chosen, verify):
    """The mutations that are not refused by their key."""
    files, alive = {}, []
    for path, keys, action, what in chosen:
        options = files.setdefault(path, read_options(path)[0])
        changed, wrong = mutated(options, keys, action, what)
        try:
            verify(changed, "train" if "model_type" in options else "test")
        except OptionError as error:
            told = [f"{problem.key}." for problem in error.problems]
            if not any(key.startswith(f"{one}.") for key in told for one in wrong):
                alive.append((path.name, keys, what, str(error)))
            continue
        alive.append((path.name, keys, what, "accepted"))
    return alive


@pytest.fixture(scope="module")
def chosen():
    found = mutations()
    assert len(found) > MUTATIONS
    return random.Random(0).sample(found, MUTATIONS)


def test_none_is_accepted_and_every_refusal_names_the_key(chosen):
    alive = survivors(chosen, lambda options, command: check(options, command, files=False))
    assert not alive, f"{len(alive)}: {alive[:20]}"


def test_a_check_that_lets_something_through_is_found(chosen):
    assert len(survivors(chosen[:50], lambda options, command: None)) == 50
