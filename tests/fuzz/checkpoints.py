"""Files of weights and training states, changed at random, and every command that opens one.

A file is changed in its bytes, in its description (the header of a safetensors file), or in the objects that a pickle holds.
"""

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
import yaml
from safetensors.torch import load_file

from fuzz.damage import BLIND
from fuzz.option_files import WEIRD, OptionFiles, one_step
from fuzz.trying import fault, run
from oracles.released_fixtures import sgpn_state, write_bfm
from oracles.tiny_weights import dome_model, write_tiny_weights
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_model.train.loop import Loop

MARK = "a file that a checkpoint wanted to write"
TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "X")
LONG = {"deep": json.loads("[" * 150 + "]" * 150), "text": "x" * 100_000, "type": "SGPN", "size": 64.0}


class Runs:
    """Pickles as a call, for files that ask for code."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.path,)


class Checkpoints:
    """``weights show, verify, convert``, ``restore --weights`` and ``train`` of one random file after another."""

    NAME = "checkpoints"
    COUNT = 2000

    def __init__(self, folder: Path):
        self.folder = folder
        self.face = folder / "face.png"
        cv2.imwrite(str(self.face), np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
        self.options = OptionFiles(folder)
        self.training = training_file(folder, self.options, "train/prior_open_64.yml")
        with patch.object(Loop, "run", one_step(Loop.run)):
            said = run("train", self.training, "--data", self.options.faces)
        assert said.code == 0, said
        experiment = folder / "experiments" / "small"
        write_tiny_weights(folder / "tiny.safetensors", backbone="tiny")
        MorphableModel(**dome_model(), name="dome").save(folder / "dome.safetensors")
        released = sgpn_state()
        torch.save(released, folder / "sgpn.pth")
        torch.save({"g_ema": released, "iter": 5}, folder / "nested.pth")
        torch.save(released, folder / "old.pth", _use_new_zipfile_serialization=False)
        np.savez(folder / "arrays.npz", **{key: value.numpy() for key, value in dome_model().items()})
        self.whole = [folder / name for name in ("tiny.safetensors", "tiny.safetensors", "dome.safetensors")]
        self.whole += [folder / name for name in ("sgpn.pth", "nested.pth", "old.pth", "arrays.npz")]
        self.whole += [write_bfm(folder / "bfm"), next(experiment.glob("models/*.safetensors"))]
        self.whole += [next(experiment.glob("training_states/*.state"))] * 3

    def attempt(self, rng: np.random.Generator, case: Path) -> tuple[str, str | None]:
        """Tries one file in the empty folder ``case``; what was tried, and what is wrong, if anything."""
        whole = self.whole[rng.integers(len(self.whole))]
        data = whole.read_bytes()
        blind = rng.random() < 0.4
        mark = case / MARK
        spoilt = (BLIND[rng.integers(len(BLIND))] if blind else self._rewritten)(data, rng, *([] if blind else [mark]))
        suffix = whole.suffix if rng.random() < 0.95 else str(rng.choice([".pth", ".safetensors", ".mat", ".npz"]))
        tried = case / f"{whole.stem}{suffix}"
        tried.write_bytes(spoilt)
        named = {".state": "training states", ".mat": "Basel models (.mat)"}.get(
            whole.suffix, f"weights ({whole.suffix})"
        )
        kind = f"{named}, {'bytes' if blind else 'content'} changed"
        for arguments in self._commands(tried, whole, case):
            with patch.object(Loop, "run", one_step(Loop.run)):
                said = run(*arguments)
            wrong = fault(said, tried.name, "1.state", "step ")
            if mark.exists():
                wrong = "ran code of the file"
            if wrong:
                return kind, f"sgpn {' '.join(map(str, arguments[:2]))}: {wrong}"
            # A morphable model's own file has no checksum.
            checked = whole.suffix == ".safetensors" and whole.stem != "dome"
            if arguments[1] == "verify" and said.code == 0 and checked and blind and not self._same(whole, tried):
                return kind, "sgpn weights verify: its numbers were changed, and nothing is said to be wrong"
        return kind, None

    def _commands(self, tried: Path, whole: Path, case: Path) -> list[list]:
        """The command lines for a file of this kind."""
        commands: list[list] = [["weights", "show", tried], ["weights", "verify", tried]]
        if whole.suffix == ".state":
            states = case / "experiments" / "small" / "training_states"
            states.mkdir(parents=True)
            shutil.copyfile(tried, states / "1.state")
            settings = ["--data", self.options.faces, "--set", f"path.experiments_root={case / 'experiments'}"]
            return [*commands, ["train", self.training, "--auto-resume", *settings],
                    ["train", self.training, *settings, f"path.resume_state={tried}"]]  # fmt: skip
        if whole.suffix == ".safetensors":
            key = "pretrain_network_g" if whole.stem.startswith("small") else "morphable_model"
            settings = [f"path.{key}={tried}", f"path.experiments_root={case / 'experiments'}"]
            commands.append(
                ["restore", self.face, "--aligned", "--weights", tried, "--device", "cpu", "-o", case / "out"]
            )
            commands.append(["train", self.training, "--data", self.options.faces, "--set", *settings])
        if whole.suffix in (".pth", ".mat"):
            given = (
                ["--sgpn", tried] if whole.suffix == ".pth" else ["--sgpn", self.folder / "sgpn.pth", "--bfm", tried]
            )
            commands.append(["weights", "convert", *given, "-o", case / "converted.safetensors"])
        return commands

    def _same(self, whole: Path, tried: Path) -> bool:
        """Whether two safetensors files hold the same numbers."""
        one, other = load_file(whole), load_file(tried)
        return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)

    def _rewritten(self, data: bytes, rng: np.random.Generator, mark: Path) -> bytes:
        """The file with other content, written as its format asks."""
        if data[:2] == b"PK":
            return _repickled(data, rng, mark)
        if data[8:9] == b"{":
            return _redescribed(data, rng)
        return BLIND[rng.integers(len(BLIND))](data, rng)


def training_file(folder: Path, options: OptionFiles, name: str, **settings: Any) -> Path:
    """An option file ``small`` of a stage that ships, for networks that train in milliseconds, saving after every step."""
    changed = {**options.files[name], "name": "small", "device": "cpu", "num_threads": 1}
    changed["path"] = {**changed.get("path", {}), "experiments_root": str(folder / "experiments")}
    changed["logger"] = {"print_freq": 1, "save_checkpoint_freq": 1, "use_tb_logger": False, **settings}
    path = folder / "small.yml"
    path.write_text(yaml.safe_dump(changed))
    return path


def _weird(rng: np.random.Generator) -> Any:
    value = ({**dict(enumerate(WEIRD)), **LONG}).get([*range(len(WEIRD)), *LONG][rng.integers(len(WEIRD) + len(LONG))])
    return {"a": 1} if isinstance(value, dict) else value


def _change(content: Any, rng: np.random.Generator, depth: int = 0) -> Any:
    """The same containers with one value weird, missing, doubled under another name, or of another kind."""
    if isinstance(content, dict) and content and rng.random() < (0.9 if depth == 0 else 0.75):
        key = list(content)[rng.integers(len(content))]
        action = rng.integers(6)
        if action == 0:
            return {name: value for name, value in content.items() if name != key}
        if action == 1:
            return {**content, str(_weird(rng)): content[key]}
        return {**content, key: _change(content[key], rng, depth + 1)}
    if isinstance(content, list) and content and rng.random() < 0.7:
        place = int(rng.integers(len(content)))
        return [*content[:place], _change(content[place], rng, depth + 1), *content[place + 1 :]]
    if isinstance(content, torch.Tensor) and rng.random() < 0.7:
        broken = [
            content * float("nan"),
            content[..., None],
            content[:0] if content.ndim else content[None],
            content.to_sparse(),
        ]
        broken += [content.double(), content.to(torch.int8), torch.zeros(1).expand(2, 3), content.flatten()]
        return broken[rng.integers(len(broken))]
    if isinstance(content, int | float) and not isinstance(content, bool) and rng.random() < 0.5:
        return content * [-1, 0, 2, 0.5, 1e9][rng.integers(5)]
    return _weird(rng)


def _redescribed(data: bytes, rng: np.random.Generator) -> bytes:
    """A safetensors file with another header: of the format's own entries, or in the description that we put there."""
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size])
    except ValueError:
        return data
    about = header.get("__metadata__", {})
    if "metadata" in about and rng.random() < 0.7:
        for _ in range(rng.integers(1, 3)):
            changed = _change(json.loads(about["metadata"]), rng)
            about["metadata"] = json.dumps(changed)
    elif rng.random() < 0.3:
        header["__metadata__"] = _change(about, rng)
    else:
        names = [name for name in header if name != "__metadata__"]
        name = names[rng.integers(len(names))]
        entry = dict(header[name])
        action = rng.integers(5)
        if action == 0:
            entry["dtype"] = TYPES[rng.integers(len(TYPES))]
        elif action == 1:
            entry["shape"] = [[], [0], [1, *entry["shape"]], entry["shape"][::-1], [2**40], [-1]][rng.integers(6)]
        elif action == 2:
            entry["data_offsets"] = [int(each) for each in rng.integers(0, 1000, 2)]
        elif action == 3:
            entry = {"x": 1}
        header = {(f"{name}x" if action == 4 and key == name else key): value for key, value in header.items()} | (
            {} if action == 4 else {name: entry}
        )
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _repickled(data: bytes, rng: np.random.Generator, mark: Path) -> bytes:
    """A file of ``torch.save`` or ``numpy.savez`` with other content, or with another pickle or entry in its archive."""
    file = io.BytesIO()
    try:
        content = torch.load(io.BytesIO(data), weights_only=True)
    except (RuntimeError, pickle.UnpicklingError):  # of numpy
        content = None
    if content is not None and rng.random() < 0.8:
        changed = _change(content, rng)
        if rng.random() < 0.1:
            changed = {**changed, "x": Runs(mark)} if isinstance(changed, dict) else Runs(mark)
        torch.save(changed, file)
        return file.getvalue()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", rng.choice([0, 0, 8])) as new:
        names = old.namelist()
        chosen = names[rng.integers(len(names))]
        for name in names:
            held = old.read(name)
            if name == chosen and held:
                held = BLIND[rng.integers(len(BLIND))](held, rng)
            if name != chosen or rng.random() < 0.8:
                new.writestr(name, held)
    return file.getvalue()
