"""Tries random inputs by the thousand, each in a process that is watched, and makes a page of what it saw.

python scripts/fuzz.py images --seed 1 --count 10000 --jobs 2 -o experiments/fuzz
python scripts/fuzz.py images --seed 1 --only 4711
python scripts/fuzz.py page -o experiments/fuzz > docs/reliability.md

The areas are those of tests/fuzz. A case is made of its seed and number alone. One that fails keeps its files in
OUT/failures, is listed in OUT/AREA.jsonl, and --only repeats it. A case fails by a traceback, by an exit code other than 0, 1
and 2, by an error that names neither file nor key, by a result that is not what it should be, by taking longer than its
limit (20 seconds, where the area does not say more), or by asking for more memory than --megabytes.
"""

import argparse
import importlib
import json
import os
import queue
import resource
import select
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Area -> its module and class in tests/fuzz, and what of it the page says.
AREAS = {
    "images": ("photos", "Photos"),
    "options": ("option_files", "OptionFiles"),
    "checkpoints": ("checkpoints", "Checkpoints"),
    "folders": ("folders", "Folders"),
    "kills": ("kills", "Kills"),
    "large": ("large", "Large"),
}
START = 300  # seconds that a process may take until it is ready
PAGE = """# Reliability

What odd, damaged and very large inputs did to the commands, and `kill -9`. `scripts/fuzz.py` tries random inputs and
counts what a user could rightly complain about: a traceback, an error that names neither file nor key, a command that
takes more than 20 seconds, half a file under a real name, or a picture that is not the right one. This page is its
output, on two busy CPU cores:

```
{commands}
```

| what | tried | failed |
|---|---|---|
{rows}

- **Photos** of every format, mode and layout that Pillow, OpenCV and tifffile write, 1 to 257 pixels a side; damaged
  ones are cut off, have other bits, or other fields in their headers with the checksums made right again. What a
  whole one holds is known from how it was made, what a damaged one holds from OpenCV and tifffile, as far as they can
  read it and agree; where no face is, the result must show that. Of a damaged JPEG 2000, a damaged header of a BMP,
  and a face that is already aligned, the pixels are not compared.
- **Option files** are those that ship, for small networks, with one to three changes. Those that the check passes
  must train a step, or end with an error that names the file or key.
- **Weights and training states** go through `sgpn weights show`, `verify` and `convert`, `sgpn restore --weights`,
  and a training that begins with them or goes on from them. None may run code, and `verify` must see every changed
  number of a checkpoint.
- **After a kill** at a random moment, no file under a real name may be incomplete. The next run must end well, leave
  nothing hidden, and give what a run without a kill gives; a training loses at most one interval of saving.
- **Large inputs** have no limit of 20 seconds; their rows say how long they took. Far from the faces, photos must
  be as they were.

`pytest tests/fuzz` tries a few cases of most kinds with every run of the tests, and `--only NUMBER` repeats one case
of a long run.
"""


def area_class(name: str) -> Any:
    """The class in tests/fuzz that tries an area."""
    scripts = str(Path(__file__).resolve().parent)  # where this file hides the package of its name
    sys.path[:] = [str(ROOT), str(ROOT / "tests"), *(path for path in sys.path if path != scripts)]
    sys.modules.pop("fuzz", None)
    module, kind = AREAS[name]
    return getattr(importlib.import_module(f"fuzz.{module}"), kind)


# ---------------------------------------------------------------------------------------------------------------------
# The process that tries


def work(name: str, seed: int, folder: Path, megabytes: int) -> None:
    """Tries the cases whose numbers it reads, and answers each with a line of JSON."""
    import numpy as np

    resource.setrlimit(resource.RLIMIT_DATA, (megabytes << 20, megabytes << 20))
    answers = os.fdopen(os.dup(1), "w")
    tried = area_class(name)(folder)
    getattr(tried, "warm_up", lambda: None)()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        case = folder / f"{seed}_{int(line)}"
        case.mkdir()
        began = time.monotonic()
        what, wrong = tried.attempt(np.random.default_rng([seed, int(line)]), case)
        seconds = time.monotonic() - began
        answer = {"number": int(line), "what": what, "wrong": wrong, "seconds": round(seconds, 2)}
        print(json.dumps(answer), file=answers, flush=True)
        if not wrong:
            shutil.rmtree(case, ignore_errors=True)


# ---------------------------------------------------------------------------------------------------------------------
# The process that watches


class Worker:
    """A process that tries cases, started again after each that it does not survive."""

    def __init__(self, asked: argparse.Namespace, number: int):
        self.asked, self.folder = asked, asked.output / "work" / f"{asked.area}_{number}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Starts it in an empty folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        asked = ["--seed", self.asked.seed, "--megabytes", self.asked.megabytes, "--work", self.folder.resolve()]
        command = [sys.executable, __file__, self.asked.area, *map(str, asked)]
        settings = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(self.folder.resolve())}
        with open(self.folder / "stderr", "wb") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=settings
            )
        if self._answer(START) is None:
            raise RuntimeError(f"the process for {self.asked.area} does not start: {self.folder / 'stderr'}")

    def _answer(self, limit: float) -> dict | None:
        assert self.process is not None and self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], limit)[0]:
            return None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def attempt(self, number: int, limit: float) -> dict:
        """Tries one case."""
        if self.process is None:
            self.start()
        assert self.process is not None and self.process.stdin is not None
        began = time.monotonic()
        self.process.stdin.write(f"{number}\n".encode())
        self.process.stdin.flush()
        answer = self._answer(limit)
        if answer is None:
            took = time.monotonic() - began
            wrong = f"no answer within {limit} s" if took >= limit else f"the process ended: {self.process.wait(5)}"
            answer = {"number": number, "what": "hung or died", "wrong": wrong, "seconds": round(took, 2)}
            self.stop()
        if answer["wrong"]:
            self._keep(number)
        return answer

    def _keep(self, number: int) -> None:
        case = self.folder / f"{self.asked.seed}_{number}"
        kept = self.asked.output / "failures" / self.asked.area / case.name
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        if case.exists():
            case.rename(kept)

    def stop(self) -> None:
        """Ends it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def watch(asked: argparse.Namespace) -> int:
    """Tries the cases, several at once; writes OUT/AREA.jsonl and OUT/AREA.json, and returns how many failed."""
    kind = area_class(asked.area)
    count, limit = asked.count or kind.COUNT, getattr(kind, "LIMIT", 20)
    numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
    wanted = range(count) if asked.only is None else [asked.only]
    for number in wanted:
        numbers.put(number)
    tried, failed, lock, began = Counter[str](), Counter[str](), threading.Lock(), time.monotonic()
    asked.output.mkdir(parents=True, exist_ok=True)
    with open(asked.output / f"{asked.area}.jsonl", "w") as log:

        def run(worker: Worker) -> None:
            while True:
                try:
                    number = numbers.get_nowait()
                except queue.Empty:
                    return worker.stop()
                if time.monotonic() - began > 60 * asked.minutes:
                    return worker.stop()
                answer = worker.attempt(number, limit)
                with lock:
                    tried[answer["what"]] += 1
                    failed[answer["what"]] += bool(answer["wrong"])
                    print(json.dumps(answer), file=log, flush=True)
                    if answer["wrong"]:
                        place = f"{asked.area} --seed {asked.seed} --only {answer['number']}"
                        print(f"{place}: {answer['what']}: {answer['wrong']}", flush=True)

        threads = [threading.Thread(target=run, args=(Worker(asked, number),)) for number in range(asked.jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    minutes = (time.monotonic() - began) / 60
    command = f"python scripts/fuzz.py {asked.area} --seed {asked.seed} --count {sum(tried.values())}"
    summary = {
        "area": asked.area,
        "commit": commit(),
        "command": command,
        "minutes": round(minutes, 1),
        "tried": tried,
        "failed": failed,
    }
    if asked.only is None:
        (asked.output / f"{asked.area}.json").write_text(json.dumps(summary, indent=1))
    print(f"{asked.area}: {sum(tried.values())} tried, {sum(failed.values())} failed, {minutes:.1f} minutes")
    return sum(failed.values())


def commit() -> str:
    """The commit of this folder, marked where files differ from it."""
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def page(folder: Path) -> str:
    """The page of what the runs in a folder saw."""
    runs = [json.loads(path.read_text()) for name in AREAS if (path := folder / f"{name}.json").is_file()]
    rows = []
    for run in runs:
        rows += [f"| {what} | {count:,} | {run['failed'][what]} |" for what, count in sorted(run["tried"].items())]
        rows.append(
            f"| **{run['area']}: all** | **{sum(run['tried'].values()):,}** | **{sum(run['failed'].values())}** |"
        )
    commands = "\n".join(f"{run['command']}  # {run['minutes']} minutes, commit {run['commit']}" for run in runs)
    return PAGE.format(commands=commands, rows="\n".join(rows))


def main() -> int:
    """Runs an area, or prints the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("area", choices=(*AREAS, "page"))
    add("--seed", type=int, default=1)
    add("--count", type=int, help="cases (default: the area's own number)")
    add("--only", type=int, metavar="NUMBER", help="only this case")
    add("--minutes", type=float, default=1e9, help="begin no case after so many minutes (default: no limit)")
    add("--jobs", type=int, default=1, help="processes at once (default: 1)")
    add("--megabytes", type=int, default=6000, help="memory that a process may take (default: 6000)")
    add("-o", "--output", type=Path, default=Path("experiments/fuzz"), metavar="OUT", help="folder of what was found")
    add("--work", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.area == "page":
        print(page(asked.output), end="")
        return 0
    if asked.work:
        work(asked.area, asked.seed, asked.work, asked.megabytes)
        return 0
    return 1 if watch(asked) else 0


if __name__ == "__main__":
    sys.exit(main())
