"""``kill -9`` at a random moment of a command that writes: no half file under a real name, and the next run ends well."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import torch

import sgpn_model.restore.album  # noqa: F401  (imported here, not in every fork; as is the one before)
from fuzz.checkpoints import training_file
from fuzz.option_files import OptionFiles
from fuzz.photos import OneFace
from oracles.released_fixtures import sgpn_state, write_bfm
from oracles.tiny_weights import write_tiny_weights
from sgpn_model import cli
from sgpn_model.config.registries import fill_registries
from sgpn_model.restore import restorer
from sgpn_model.restore.record import RECORD
from sgpn_model.weights.checkpoint import load_checkpoint

STEPS, EVERY = 6, 2  # of a training, and how often it saves
PHOTOS = 8


class Kills:
    """One killed command after another. Each runs in a fork of this process, which has imported all and computed nothing."""

    NAME = "kills"
    COUNT = 200
    LIMIT = 300

    def __init__(self, folder: Path):
        self.folder = folder
        self.commands = {
            "restoring a folder": self._restoring,
            "restoring a folder with parts": self._restoring_with_parts,
            "training the prior": self._training_the_prior,
            "training all stages together": self._training_all,
            "converting weights": self._converting,
        }
        fill_registries()
        _forked(self._prepare, folder / "log")
        self.whole, self.seconds = {}, {}
        for what, command in self.commands.items():
            out = folder / what
            began = time.monotonic()
            code = _forked(lambda command=command, out=out: cli.main(command(out)), folder / "log")
            assert code == 0, (folder / "log").read_text()
            self.seconds[what] = time.monotonic() - began
            self.whole[what] = dict(_contents(out))

    def _prepare(self) -> int:
        """Makes what the commands read."""
        write_tiny_weights(self.folder / "tiny.safetensors", backbone="tiny")
        rng = np.random.default_rng(0)
        (self.folder / "photos").mkdir()
        for number in range(PHOTOS):
            picture = cv2.resize(rng.integers(0, 256, (9, 12, 3), np.uint8), (400, 300))
            cv2.imwrite(str(self.folder / "photos" / f"{number}.{('png', 'jpg')[number % 2]}"), picture)
        torch.save(sgpn_state(), self.folder / "sgpn.pth")
        write_bfm(self.folder / "bfm", vertices=4000)
        options = OptionFiles(self.folder)
        for name in ("prior_open_64", "sgpn_open_64"):
            (self.folder / name).mkdir()
            training_file(self.folder / name, options, f"train/{name}.yml", save_checkpoint_freq=EVERY, keep_last=0)
        return 0

    # -- the commands: each a command line that writes into ``out`` ---------------------------------------------------

    def _restoring(self, out: Path) -> list[str]:
        weights = ["--weights", self.folder / "tiny.safetensors", "--device", "cpu"]
        return list(map(str, ["restore", self.folder / "photos", *weights, "-o", out]))

    def _restoring_with_parts(self, out: Path) -> list[str]:
        return [*self._restoring(out), "--save-parts"]

    def _training_the_prior(self, out: Path, name: str = "prior_open_64") -> list[str]:
        changes = [f"path.experiments_root={out}", f"train.total_iter={STEPS}", "val.val_freq=1000"]
        file, faces = self.folder / name / "small.yml", self.folder / "faces"
        return list(map(str, ["train", file, "--auto-resume", "--data", faces, "--set", *changes]))

    def _training_all(self, out: Path) -> list[str]:
        return self._training_the_prior(out, "sgpn_open_64")

    def _converting(self, out: Path) -> list[str]:
        released = ["--sgpn", self.folder / "sgpn.pth", "--bfm", self.folder / "bfm"]
        return list(map(str, ["weights", "convert", *released, "-o", out / "converted.safetensors"]))

    # -- one kill -----------------------------------------------------------------------------------------------------

    def attempt(self, rng: np.random.Generator, case: Path) -> tuple[str, str | None]:
        """Kills a command once or twice in the empty folder ``case``; what was tried, and what is wrong, if anything."""
        what = str(rng.choice(list(self.commands), p=[0.2, 0.2, 0.25, 0.1, 0.25]))
        command = self.commands[what](case / "out")
        for _ in range(rng.integers(1, 3)):
            _forked(lambda: cli.main(command), case / "log", float(rng.uniform(0, 1.05)) * self.seconds[what])
            wrong = self._incomplete(what, case / "out")
            if wrong:
                return f"kill -9 {what}", f"after the kill: {wrong}"
        saved, logged = _newest(case / "out"), _last_logged(case / "out")
        if logged - saved > EVERY:
            return f"kill -9 {what}", f"step {logged} was logged, but the newest state is of step {saved}"
        code = _forked(lambda: cli.main(command), case / "log", 200.0)
        told = (case / "log").read_text(errors="replace")
        if code != 0 or "Traceback" in told:
            return f"kill -9 {what}", f"the next run ends with {code}: {told[-900:]}"
        found = dict(_contents(case / "out"))
        hidden = [name for name in found if _is_hidden(name)]
        wrong = f"leaves {hidden}" if hidden else self._different(what, found)
        return f"kill -9 {what}", wrong and f"after the next run: {wrong}"

    def _incomplete(self, what: str, out: Path) -> str | None:
        for name, content in _contents(out):
            if _is_hidden(name) or "log" in Path(name).parts or name.endswith(".yml"):
                continue  # the copy of the options says where this experiment lies
            whole = self.whole[what].get(name)
            if not name.endswith((".state", ".safetensors")) and content != whole:
                return f"{name} is {'not among the results' if whole is None else 'incomplete'}"
            try:
                if name.endswith(".state"):
                    torch.load(out / name, weights_only=True)
                elif name.endswith(".safetensors"):
                    load_checkpoint(out / name)
            except Exception as error:
                return f"{name} cannot be read: {error}"
        return None

    def _different(self, what: str, found: dict[str, bytes]) -> str | None:
        """Whether the results are other ones than those of a run that nobody killed."""
        own = {name for name in found if "log" not in Path(name).parts}
        wanted = {name for name in self.whole[what] if "log" not in Path(name).parts}
        if own != wanted:
            return f"{sorted(own ^ wanted)[:5]} are missing or too many"
        differ = [
            name for name in own if not name.endswith((".state", ".yml")) and found[name] != self.whole[what][name]
        ]
        return f"{differ} differ from those of a run without a kill" if differ else None


def _contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(relative name, bytes) of every file below a folder, but for the record of what is finished, which holds times."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != RECORD:
            yield str(path.relative_to(folder)), path.read_bytes()


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in Path(name).parts)


def _newest(out: Path) -> int:
    """The step of the newest training state, 0 where there is none."""
    return max((int(path.stem) for path in out.rglob("*.state") if path.stem.isdecimal()), default=0)


def _last_logged(out: Path) -> int:
    """The last step in a training's log, 0 where there is none; a line that was cut off does not count."""
    lines = [line for path in out.rglob("train.jsonl") for line in path.read_text().splitlines() if line.endswith("}")]
    return max((json.loads(line)["step"] for line in lines), default=0)


def _forked(call, log: Path, kill_after: float | None = None) -> int:
    """Runs a call in a fork of this process, what it prints going into a file, and returns its exit code; -9 after a kill."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            with open(log, "wb") as file:
                os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
            torch.set_num_threads(1)
            try:
                with patch.object(restorer, "build_detector", lambda *_: OneFace()):
                    code = call()
            except SystemExit as error:
                code = error.code
            except BaseException:
                sys.excepthook(*sys.exc_info())
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
    deadline = None if kill_after is None else time.monotonic() + kill_after
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -signal.SIGKILL
        time.sleep(0.002)
