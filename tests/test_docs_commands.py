"""Every command of README and docs is tried as it stands, on a few faces and with tiny budgets; one that no rule covers fails.

A command is a line of a block of shell code, or code in the text that calls ``sgpn`` or a script with arguments. RULES says for
each what is added to it, so that it takes seconds, or that it is only parsed, by the real parser. Files that a page shows under
their names are written as they stand, and blocks of Python are run.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from oracles.script import load_script
from sgpn_arch.registry import METRIC_REGISTRY
from sgpn_model import cli
from sgpn_model.config.checking import checked_options
from sgpn_model.config.reading import read_options

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^`([\w/.]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:[A-Z_]+=\S+ )*(?:sgpn |python scripts/|scripts/\w+\.sh|torchrun |pip |pytest )[^`]*)`")
USERS_FILE = re.compile(r"\.pth|ict\.safetensors")  # in a block of Python that is not run
# Stands for sgpn and python: notes how it was called, and leaves a checkpoint where a training would.
STUB = """#!/usr/bin/env bash
printf '%q ' "${0##*/}" "$@" >>calls; echo >>calls
for name in "$(basename "$2" .yml)" "gpu_$(basename "$2" .yml)"; do
    mkdir -p "experiments/$name/models"; touch "experiments/$name/models/${name}_1.safetensors"
done
"""
SHELL = {"", "sh", "bash"}
WHOLE = {
    "sgpn bench",
    "sgpn bench engines",
    "sgpn weights list",
    "sgpn options list",
    "sgpn restore --demo --save-parts",
}  # commands that need no arguments
STEP = ["--device", "cpu", "--set", "train.total_iter=1", "datasets.train.batch_size_per_gpu=1", "val.save_images=1"]
STEP += ["datasets.train.num_worker_per_gpu=0", "logger.use_tb_logger=false"]
SMALL = ["network_g.size=64", "network_d.size=64", "datasets.train.size=64", "datasets.val.size=64"]
TINY = ["--weights", "tiny.safetensors"]
PARSE = None  # in place of arguments: the command is not run

# The first rule whose pattern is found in a command counts: what is added to its arguments, or PARSE, and why.
RULES = [
    (r"\b(pip|pytest)\b", PARSE, "installs or tests the whole project; .ci/run does"),
    (r"^mkdocs", PARSE, "a server; .ci/run builds the site"),
    (r"^tensorboard|^python other_method", PARSE, "another project's command"),
    (r"^torchrun", PARSE, "eight GPUs; the tests of the training loop run two processes"),
    (r"^sgpn bench", PARSE, "minutes; tests/sgpn_model/cli/test_bench.py runs each at small size"),
    (
        r"^sgpn (export|restore .*--engine)",
        PARSE,
        "a minute; tests/sgpn_model/restore has test_exporter.py and test_engines.py",
    ),
    (r"^sgpn weights (fetch|convert)", PARSE, "the network, or the authors' files"),
    (r"restore --weights FILE$", PARSE, "names no photo"),
    (r"--weights released", PARSE, "the authors' weights"),
    (r"^sgpn video|judge_video", PARSE, "tests/sgpn_model/restore/test_video.py restores a film"),
    (
        r"measure_bulk|bulk_ordeal",
        PARSE,
        "minutes to hours on Ray; tests/sgpn_model/bulk/test_bulk.py has short failures",
    ),
    (r"simulate_scale", PARSE, "minutes; tests/scripts/test_simulate_scale.py runs small jobs"),
    (r"^sgpn (bulk|align .*--shards)|--data shards", PARSE, "starts Ray; tests/sgpn_model/bulk/test_bulk.py runs it"),
    (r"open_512", PARSE, "hours, and packages of the extra train"),
    (r"^sgpn web", PARSE, "serves until Ctrl-C; tests/sgpn_model/web/test_page.py opens the page"),
    (r"film", PARSE, "a package that tests/test_plugin_page.py installs"),
    (
        r"^sgpn (align --demo -o faces|align PHOTOS|restore --demo --save-parts)$",
        PARSE,
        "runs elsewhere on these pages",
    ),
    (r"^sgpn align .*(photos|PHOTOS)", ["--min-pixels", "100"], ""),
    (r"^sgpn train mine_prior", [*STEP, *SMALL], ""),
    (r"^sgpn train options/task", PARSE, "half a minute; tests/sgpn_model/train/test_tasks.py trains small networks"),
    (r"^sgpn train options/example", ["--set", "train.total_iter=2", "val.save_images=1"], ""),
    (r"^sgpn train", STEP, ""),
    (r"^sgpn ablate", PARSE, "minutes; tests/sgpn_model/evaluate/test_ablate.py trains small variants"),
    (r"^sgpn test", ["--device", "cpu", "--set", "metrics=[psnr]"], ""),
    (r"^sgpn (align|restore|options|weights)", [], ""),
    (
        r"judge_levels.py --data faces$",
        ["--levels", "mild", *TINY, "--set", "metrics=[psnr]", "judge=tiny.safetensors"],
        "",
    ),
    (r"judge_levels", [*TINY, "--set", "metrics=[psnr]", "judge=tiny.safetensors"], ""),
    (r"judge_fidelity", ["--cases", "noise 15", "--every", "99", *TINY], ""),
    (r"draw_model_card", ["-o", ".", *TINY], ""),
    (r"compare_regressors", PARSE, "weights that training makes; tests/scripts/test_compare_regressors.py runs it"),
    (r"measure_dataset", ["--images", "2", "--repeats", "1", "--workers", "1"], ""),
    (r"make_lmdb", [], ""),
    (r"draw_morphable_model\.py$", ["--size", "16", "--output", "model.jpg"], ""),
    (r"build_open_morphable|convert_ict|draw_morphable_model.*ict", PARSE, "data of MakeHuman or ICT-FaceKit"),
    (r"scripts/fuzz\.py", PARSE, "minutes; tests/fuzz tries a few cases"),
    (r"train_(open|timed)\.sh", PARSE, "hours; a test below parses what it calls"),
]
# What a page leaves to its reader to fill in.
OPTION_FILE = "options/train/sgpn_open_64.yml"
PLACEHOLDERS = {"PHOTO_OR_FOLDER...": "photos/train", "PHOTOS": "photos/train", "FILE": "default", "NAME": "retinaface"}


@dataclass(frozen=True)
class Command:
    """One command of a page, as it stands there."""

    page: Path
    text: str

    def rule(self):
        return next(((added, why) for pattern, added, why in RULES if re.search(pattern, self.text)), None)

    def words(self) -> list[str]:
        """Its parts; braces expanded as a shell does, placeholders filled in."""
        text = re.sub(
            r"(\S*)\{(\w+(?:,\w+)+)\}(\S*)", lambda m: " ".join(m[1] + p + m[3] for p in m[2].split(",")), self.text
        )
        filled = {**PLACEHOLDERS, "FILE": OPTION_FILE} if text.startswith("sgpn options") else PLACEHOLDERS
        return [filled.get(word, word) for word in shlex.split(text) if not re.fullmatch(r"[A-Z_]+=\S+", word)]


def commands(page: Path) -> list[Command]:
    """The commands of a page, in its order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for block in BLOCK.finditer(text):
        if block[1] in SHELL:
            lines = [re.sub(r"\s+#.*", "", line) for line in block[2].replace("\\\n", " ").splitlines()]
            found += [(block.start(), part.strip()) for line in lines for part in line.split("&&") if part.strip()]
    prose = BLOCK.sub(lambda block: re.sub(r"[^\n]", " ", block[0]), text)
    found += [(code.start(), " ".join(code[1].split())) for code in INLINE.finditer(prose)]
    return [Command(page, command) for _, command in sorted(found, key=lambda pair: pair[0]) if not bare(command)]


def bare(command: str) -> bool:
    """Whether it only names a command, an argument of one, or a script, as in "``sgpn test`` measures"."""
    if command in WHOLE or not re.fullmatch(r"sgpn( (--)?[a-z][a-z-]*)*|scripts/\w+\.sh", command):
        return False
    words = command.split()
    assert len(words) == 1 or words[1] in cli.COMMANDS or words[1] == "--help", f"`{command}`: there is no such command"
    return True


ALL = [command for page in PAGES for command in commands(page)]


# ---------------------------------------------------------------------------------------------------------------------
# Trying one


class Parsed(Exception):
    """A script's parser took its arguments."""


def parsed(words: list[str]) -> None:
    """Lets the real parser read a command; the option files that it names are checked."""
    if words[0] == "torchrun":
        words = ["sgpn", *words[words.index("sgpn_model.cli") + 1 :]]
    if words[0] == "sgpn":
        options = vars(cli.build_parser().parse_args(words[1:]))
        for path in [options.get("options_path"), *(options.get("options_paths") or ())]:
            if path:
                checked_options(path, options["overrides"], files=False)
    elif words[0] == "python" and Path(words[1]).parent.name == "scripts":
        script(words, only_parse=True)
    elif words[0].endswith(".sh"):
        assert (ROOT / words[0]).is_file()


def script(words: list[str], only_parse: bool = False) -> None:
    """Runs a script of ours in this process."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(*arguments, **keywords):
        parse(*arguments, **keywords)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words[1:])
        if only_parse:
            patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        try:
            code = load_script(Path(words[1]).stem).main()
        except Parsed:
            return
    assert not only_parse and not code


def run(words: list[str]) -> None:
    """Runs a command in this process."""
    if words[0] == "python":
        script(words)
        return
    assert words[0] == "sgpn"
    assert cli.main(words[1:]) == 0
    if words[1] == "train":
        finish(words)


def finish(words: list[str]) -> None:
    """A training of one step leaves its checkpoint under the name that the whole training would."""
    options, _ = read_options(words[2])
    for path in Path("experiments", options["name"], "models").glob("*.safetensors"):
        whole = path.with_name(f"{options['name']}_{options['train']['total_iter']}.safetensors")
        if path != whole:
            shutil.copy(path, whole)


# ---------------------------------------------------------------------------------------------------------------------
# The tests


def write_files(page: Path) -> None:
    """Writes the files that a page shows into this folder."""
    for name, text in FILE.findall(page.read_text(encoding="utf-8")):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory, astronaut, tiny_weights):
    """A folder with photos and with ``faces``, as the pages take them for granted."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("photos/train/a.png", "photos/train/b.jpg", "photos/val/c.png", "photo.jpg", "photo.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), astronaut)
    hole = np.zeros((512, 512, 3), np.uint8)
    cv2.circle(hole, (224, 130), 12, (255, 255, 255), -1)
    cv2.imwrite(str(folder / "mask.png"), hole)
    for number, place in enumerate(("train", "train", "train", "val", "val")):
        (folder / "faces" / place).mkdir(parents=True, exist_ok=True)
        face = astronaut[20 + number : 212 + number, 130 + 2 * number : 322 + 2 * number]
        face = cv2.resize(face[:, ::-1] if number % 2 else face, (256, 256))
        cv2.imwrite(str(folder / "faces" / place / f"{number}.png"), face)
    for name in ("faces256", "faces512", "shards"):
        (folder / name).symlink_to("faces")
    (folder / "demo").mkdir()
    (folder / "tiny.safetensors").symlink_to(tiny_weights)
    return folder


@pytest.fixture
def reader(made, monkeypatch):
    """What a reader's process is like: in that folder, and as it was before when the test ends."""
    monkeypatch.chdir(made)
    threads, state = cv2.getNumThreads(), torch.get_rng_state()
    yield made
    cv2.setNumThreads(threads)
    torch.set_rng_state(state)


def test_commands_are_found():
    texts = [command.text for command in ALL]
    assert len(texts) > 50
    assert "sgpn align --demo -o demo" in texts and "sgpn restore --demo --save-parts" in texts


@pytest.mark.parametrize("command", ALL, ids=lambda command: f"{command.page.stem}: {command.text[:70]}")
def test_every_command_has_a_rule_and_parses(command, reader):
    assert command.rule(), f"{command.page.name}: {command.text}: no rule of {Path(__file__).name} covers it; add one"
    added, why = command.rule()
    write_files(command.page)
    assert added is not PARSE or why
    if "film" not in command.text:
        parsed(command.words())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_work_one_after_the_other(page, reader):
    write_files(page)
    done = set()
    for command in commands(page):
        added, _ = command.rule()
        if added is not PARSE and command.text not in done:
            run([*command.words(), *added])
            done.add(command.text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_on_a_page_runs(page, reader, monkeypatch):
    monkeypatch.setattr(METRIC_REGISTRY, "_obj_map", dict(METRIC_REGISTRY._obj_map))
    names = {"photos": [cv2.imread("photo.jpg")]}
    for kind, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind == "python":
            program = compile(code, page.name, "exec")
            if page.stem != "plugins" and not USERS_FILE.search(code):  # tests/test_plugin_page.py runs that page's
                exec(program, names)


@pytest.mark.parametrize("call", ["scripts/train_open.sh faces", "scripts/train_timed.sh faces 560 prior=60"])
def test_a_recipe_calls_what_there_is(call, reader, tmp_path):
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    (tmp_path / "faces").mkdir()
    for name in ("sgpn", "python"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(STUB)
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "COMPARE": "1"}
    subprocess.run(["bash", *call.split()], cwd=tmp_path, env=environment, check=True)
    calls = [shlex.split(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert len(calls) >= 5 and {words[0] for words in calls} == {"sgpn", "python"}
    for words in calls:
        parsed(words)


def test_nothing_names_a_folder_of_ours():
    kinds = {".py", ".md", ".yml", ".sh", ".toml"}
    folders = ("data", "docs", "examples", "options", "scripts", "sgpn_arch", "sgpn_model", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in kinds]
    texts = {path: path.read_text(encoding="utf-8") for path in [*files, *ROOT.glob("*.*")] if path.suffix in kinds}
    assert len(texts) > 200
    ours = re.compile(r"\.\./" + "shared")
    assert not [path for path, text in texts.items() if ours.search(text)]
