"""Simulates `sgpn bulk` on a thousand workers, some slow, some that die or are taken away, and says what an archive costs.

python scripts/simulate_scale.py
python scripts/simulate_scale.py --photos 1e9 --shards 100 --seconds 0.02 --chunk 1024

What is simulated is what sgpn_model/bulk does: whoever is free takes the next chunk, from a driver that hands out one at a
time; the chunk of a worker that dies is tried again photo by photo when all chunks are gone; a photo whose worker dies again is
given up. What a chunk, a row and a photo's name cost the driver is measured (scripts/measure_bulk.py). How long a bucket's
listing, a worker's start and a photo take, and how many workers are slow, die or are taken away, is assumed.
"""

import argparse
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np

MANIFEST = 1.8e-6  # seconds for a photo of a manifest
DRAWS = 4096  # random numbers that are drawn at once


@dataclass(frozen=True)
class Setting:
    """A job, and what it runs on.

    Attributes:
        photos: in all. shards: jobs, one after the other, that they are divided into. workers: restorers. chunk: photos.
        seconds: that a worker needs for a photo. spread: of a chunk's time, as the standard deviation of its logarithm.
        start: seconds until a new worker works. dispatch: seconds that the driver is busy with a chunk.
        slow: how many of the workers are slow, 0..1. slowness: how many times longer they take.
        deaths: of a worker in an hour of work, pre-emptions included. replacement: seconds until there is another machine.
        poison: how many photos kill their worker, 0..1.
        listing: seconds to list a photo. known: seconds for a row of the table that is read when a job begins.
        memory: bytes of the driver for each photo. row: bytes of the table for each photo.
    """

    photos: float = 1e6
    shards: int = 1
    workers: int = 1000
    chunk: int = 64
    seconds: float = 1.0
    spread: float = 0.1
    start: float = 10.0
    dispatch: float = 0.0078
    slow: float = 0.03
    slowness: float = 3.0
    deaths: float = 0.05
    replacement: float = 120.0
    poison: float = 1e-6
    listing: float = 1e-4
    known: float = 8e-6
    memory: float = 700.0
    row: float = 1600.0


@dataclass
class Outcome:
    """What became of a job; seconds, photos and bytes.

    Attributes:
        seconds: from its begin to its end. listed: of these, for the list and the table. busy: that the driver handed out.
        done, poisoned: photos restored, and given up rightly. wronged: given up, though their workers died of something else.
        lost: chunks whose worker died. again: photos that were tried again alone. worked: seconds of all workers.
    """

    seconds: float = 0.0
    listed: float = 0.0
    busy: float = 0.0
    done: int = 0
    poisoned: int = 0
    wronged: int = 0
    lost: int = 0
    again: int = 0
    worked: float = 0.0


class Pool:
    """The workers, and the driver that hands out to one after the other."""

    def __init__(self, setting: Setting, rng: np.random.Generator, begin: float):
        self.setting, self.driver, self.end = setting, begin, begin
        slow = rng.permutation(setting.workers) < round(setting.slow * setting.workers)
        self.speeds = np.where(slow, setting.slowness, 1.0).tolist()
        self.free = [(begin + setting.start, number) for number in range(setting.workers)]
        self._noise = _draws(lambda: rng.lognormal(-(setting.spread**2) / 2, setting.spread, DRAWS))
        self._lives = _draws(lambda: rng.exponential(3600 / max(setting.deaths, 1e-12), DRAWS))

    def work(self, photos: int, kills: bool, outcome: Outcome) -> bool:
        """Lets the next free worker do some photos; whether it lived through it."""
        setting, (free, number) = self.setting, self.free[0]
        begin = max(free, self.driver) + setting.dispatch
        self.driver = begin
        outcome.busy += setting.dispatch
        took = photos * setting.seconds * self.speeds[number] * next(self._noise)
        left = next(self._lives)  # it does not age, so each chunk may draw it anew
        alive = left > took and not kills
        took = min(took, left)
        outcome.worked += took
        back = 0.0 if alive else setting.start + (setting.replacement if left <= took else 0.0)
        heapq.heapreplace(self.free, (begin + took + back, number))
        self.end = max(self.end, begin + took)
        return alive


def _draws(draw) -> Iterator[float]:
    while True:
        yield from draw().tolist()


def simulate(setting: Setting, seed: int = 0) -> Outcome:
    """One job, with as many photos as a shard has."""
    rng, outcome = np.random.default_rng(seed), Outcome()
    photos = round(setting.photos / setting.shards)
    outcome.listed = photos * (setting.listing + setting.known)
    pool = Pool(setting, rng, outcome.listed)
    chunks = -(-photos // setting.chunk)
    poison = rng.binomial(setting.chunk, setting.poison, chunks) if setting.poison else np.zeros(chunks, int)
    alone: list[bool] = []  # photos to be tried alone: whether they kill
    for number, kills in enumerate(poison.tolist()):
        size = min(setting.chunk, photos - number * setting.chunk)
        kills = min(kills, size)
        if pool.work(size, kills > 0, outcome):
            outcome.done += size
        else:
            outcome.lost += 1
            alone += [place < kills for place in range(size)]
    outcome.again = len(alone)
    pool.driver = max(pool.driver, pool.end)  # the second pass begins when the first has ended
    for kills in alone:
        alive = pool.work(1, kills, outcome)
        outcome.done += alive
        outcome.poisoned += kills
        outcome.wronged += not alive and not kills
    outcome.seconds = pool.end
    return outcome


def row_of(setting: Setting, outcome: Outcome) -> dict[str, str]:
    """What a table says of a job; of all its shards where it has several."""
    shards, photos = setting.shards, setting.photos
    ideal = photos * setting.seconds / setting.workers
    whole = outcome.seconds * shards
    return {
        "photos": f"{photos:.0e}".replace("+0", ""),
        "shards": str(shards),
        "chunk": str(setting.chunk),
        "s a photo": f"{setting.seconds:g}",
        "deaths an hour": f"{setting.deaths:g}",
        "hours": f"{whole / 3600:.2f}",
        "of the ideal": f"{100 * ideal / whole:.0f}%",
        "list and table, h": f"{outcome.listed * shards / 3600:.2f}",
        "driver busy": f"{100 * outcome.busy / outcome.seconds:.0f}%",
        "tried alone": f"{outcome.again * shards:,}",
        "given up wrongly": f"{outcome.wronged * shards:,}",
        "driver, GB": f"{photos / shards * setting.memory / 1e9:.1f}",
        "files": f"{-(-photos // setting.chunk):,.0f}",
        "table, GB": f"{photos * setting.row / 1e9:.1f}",
        "requests, million": f"{(2 * photos + photos / setting.chunk) / 1e6:,.1f}",
    }


def cases(setting: Setting) -> list[Setting]:
    """The jobs of docs/scale.md: how many photos, a core or a GPU, how large a chunk, one job or many shards."""
    found = [replace(setting, photos=photos) for photos in (1e5, 1e6, 1e7)]
    found += [replace(setting, photos=1e6, chunk=chunk) for chunk in (8, 512)]
    found += [replace(setting, photos=1e7, deaths=1.0)]
    found += [replace(setting, photos=1e7, seconds=0.02, chunk=chunk) for chunk in (64, 512)]
    found += [replace(setting, photos=1e7, seconds=0.02, chunk=512, listing=MANIFEST)]
    found += [replace(setting, photos=1e9, chunk=1024)]
    found += [replace(setting, photos=1e9, shards=100, listing=each) for each in (setting.listing, MANIFEST)]
    return found


def main() -> None:
    """Prints a table of jobs: those of the page, or the one that the arguments describe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for each in fields(Setting):
        parser.add_argument(f"--{each.name}", type=each.type, default=None, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    arguments = vars(parser.parse_args())
    seed = arguments.pop("seed")
    given = {name: value for name, value in arguments.items() if value is not None}
    single = bool(given.keys() & {"photos", "shards", "chunk", "seconds"})
    setting = Setting(**given)
    for number, each in enumerate([setting] if single else cases(setting)):
        row = row_of(each, simulate(each, seed))
        if not number:
            print(f"| {' | '.join(row)} |\n|{'---|' * len(row)}")
        print(f"| {' | '.join(row.values())} |", flush=True)


if __name__ == "__main__":
    main()
