"""Option files that ship, changed at random: ``sgpn options check`` of them, and a step of training for those that it passes."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import yaml

from fuzz.damage import BLIND
from fuzz.trying import fault, run
from sgpn_arch.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY
from sgpn_model.config.reading import read_options, shipped_files
from sgpn_model.config.registries import fill_registries
from sgpn_model.train.loop import Loop

# What makes every shipped file train in a second.
SMALL = {
    "size": 64, "batch_size_per_gpu": 2, "num_worker_per_gpu": 0, "width": 0.05, "max_channels": 16, "style_dim": 16,
    "latent_dim": 8, "save_images": 1, "id_dim": 80, "exp_dim": 52, "tex_dim": 40, "coeff_dim": 205,
}  # fmt: skip
WEIRD: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 7, 64, 65, 10**9, 10**30, -(10**9), 0.0, -0.0, 0.5, 1.0, 1.5, 1e-300, 1e300, float("nan"), float("inf"),
    -float("inf"), True, False, None, "", " ", "~", "none", "auto", "default", "cpu", "cuda:99", "0.5", "1.0e6", "nan", "é", "\0",
    "/", "..", "../escaped", "/proc/self/mem", "/dev/zero", "a" * 300, "SGPN", "L1Loss", "Adam", [], [[]], [0], [0.9, 0.999],
    [1, "a"], [None], {}, {"type": "SGPN"}, {"type": None}, {"a": {"b": 1}}, {"_delete_": True}, {1: 2},
)  # fmt: skip
TRICKS = (
    "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b]\n"
    "d: &d [*c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d, *d]\nf: [*e, *e, *e, *e, *e, *e, *e, *e]\n",
    "train: &t {a: *t}\n", "name: !!python/object/apply:os.system [false]\n", "network_g: " + "[" * 3000 + "]" * 3000 + "\n",
    "_base_: .\n", "_base_: /proc/self/mem\n", "_base_: /dev/zero\n", "_base_: [train/shape_open.yml, train/prior_open_64.yml]\n",
    "_base_: {a: 1}\n", "_base_: 5\n", "_base_: [[x]]\n", "<<: 5\n", "? [a, b]\n: c\n",
    "2026-11-28: 1\n", "on: 1\n", "---\na: 1\n",
    "name: 12:30:45\n", "\tname: x\n", "%YAML 9\n---\n", "name: 0x1F\n", "a.b.c: 1\n", "train: {<<: {total_iter: 2}}\n",
)  # fmt: skip


class OptionFiles:
    """The check of one random option file after another, and the first step of a training for those that it passes."""

    NAME = "options"
    COUNT = 5000

    def __init__(self, folder: Path):
        self.faces = folder / "faces"
        self.faces.mkdir()
        for number in range(24):  # enough for both splits
            picture = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
            cv2.imwrite(str(self.faces / f"{number}.png"), cv2.resize(picture, (64, 64), interpolation=cv2.INTER_CUBIC))
        fill_registries()
        self.names = sorted({*ARCH_REGISTRY.keys(), *LOSS_REGISTRY.keys(), *DATASET_REGISTRY.keys()})
        self.files: dict[str, dict] = {name: small(read_options(path)[0]) for name, path in shipped_files().items()}
        self.bases = folder / "bases"
        for name, options in self.files.items():
            (self.bases / name).parent.mkdir(parents=True, exist_ok=True)
            (self.bases / name).write_text(yaml.safe_dump(options))

    def warm_up(self) -> None:
        """Trains a step of every kind, so that no case's time has the imports and the compiling in it."""
        for name in ("train/prior_open_64.yml", "train/shape_open.yml", "train/sgpn_open_64.yml"):
            experiments = f"path.experiments_root={self.faces.parent / 'experiments'}"
            with patch.object(Loop, "run", one_step(Loop.run)):
                run("train", self.bases / name, "--data", self.faces, "--device", "cpu", "--set", experiments)

    def attempt(self, rng: np.random.Generator, case: Path) -> tuple[str, str | None]:
        """Tries one option file in the empty folder ``case``; what was tried, and what is wrong, if anything."""
        name = str(rng.choice(list(self.files)))
        path = case / "options.yml"
        path.write_bytes(self.content(name, rng))
        said = run("options", "check", path, "--no-files")
        wrong = fault(said, "options.yml", "sgpn: error")
        if wrong or said.code:
            return "option files that the check refuses", wrong
        if "model_type" not in self.files[name]:
            return "option files of tests that the check passes", None
        device = ["--device", "cpu"] if rng.random() < 0.9 else []
        experiments = f"path.experiments_root={case / 'experiments'}"
        with patch.object(Loop, "run", one_step(Loop.run)):
            said = run("train", path, "--data", self.faces, *device, "--set", experiments)
        kind = f"option files that the check passes and that {'say why they do not train' if said.code else 'train'}"
        wrong = fault(said, "options.yml", "sgpn: error")
        strays = [each.name for each in case.iterdir() if each.name not in ("options.yml", "experiments")]
        return kind, wrong or (strays and f"writes {strays} outside of its experiments" or None)

    def content(self, name: str, rng: np.random.Generator) -> bytes:
        """The file ``name``, changed: in a value that it inherits, in its structure, or in its letters."""
        options = copy.deepcopy(self.files[name])
        way = rng.random()
        if way < 0.2:
            value: Any = _any(WEIRD, rng)
            for key in reversed(_any(list(places(options)), rng)):
                value = {key: value}
            return yaml.safe_dump({"_base_": str(self.bases / name), **value}).encode()
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            self._change(options, rng)
        text = yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
        if way < 0.8:
            return text.encode()
        if way < 0.9:
            trick = _any(TRICKS, rng)
            return (trick + text if rng.random() < 0.5 else text + trick).encode()
        return _any(BLIND, rng)(text.encode(), rng)

    def _change(self, options: dict, rng: np.random.Generator) -> None:
        """One option gets another file's value, another number, a weird value; or goes, moves, or is misspelt."""
        *parents, key = _any(list(places(options)), rng)
        section = options
        for parent in parents:
            section = section[parent]
        action = rng.integers(10)
        if action < 3:
            section[key] = copy.deepcopy(_value(_any(list(self.files.values()), rng), [*parents, key]))
        elif action < 6 and type(section[key]) in (int, float):
            section[key] = type(section[key])(section[key] * _any([0, 0.1, 0.5, 2, 3, -1], rng) + _any([0, 0, 1], rng))
        elif action < 6 and key == "type":
            section[key] = _any(self.names, rng)
        elif action < 7:
            section[key] = _any(WEIRD, rng)
        elif action == 7:
            del section[key]
        elif action == 8:
            section[f"{key}{_any('x_-. é', rng)}"] = section.pop(key)
        else:
            options[key] = copy.deepcopy(_value(options, _any(list(places(options)), rng)))


def one_step(train: Any) -> Any:
    """A loop's ``run`` that ends after the next step."""

    def run_once(loop: Loop) -> None:
        loop.total = loop.step + 1
        train(loop)

    return run_once


def small(options: Any) -> Any:
    """The same options, for networks and batches that take milliseconds, and without files that are not there."""
    if isinstance(options, list):
        return options
    changed = {
        key: small(value) if isinstance(value, dict) else SMALL.get(key, value) for key, value in options.items()
    }
    if isinstance(changed.get("path"), dict):
        own = {key: value for key, value in changed["path"].items() if value in (None, "default")}
        changed["path"] = {**dict.fromkeys(changed["path"].keys() & {"pretrain_network_shape"}, "default"), **own}
    if changed.get("backbone") == "resnet50":
        changed["backbone"] = "resnet18"
    return changed


def places(section: Any, keys: tuple = ()) -> Iterator[tuple]:
    """The keys that lead to every value of nested mappings."""
    for key, value in section.items() if isinstance(section, dict) else ():
        yield (*keys, key)
        yield from places(value, (*keys, key))


def _any(choices: Any, rng: np.random.Generator) -> Any:
    return choices[rng.integers(len(choices))]


def _value(options: Any, keys: Sequence) -> Any:
    """What lies there in nested mappings, None where nothing does."""
    for key in keys:
        options = options.get(key) if isinstance(options, dict) else None
    return options
