"""How this package compiles its CPU loops, and runs them for several meshes at a time.

Import it only where loops run: numba takes a while to load.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numba
import torch


def compiled(function: Callable) -> Callable:
    """Compiles a function of numpy arrays on its first call with arguments of new types; it runs without Python's lock.

    Compiled code depends on the arguments' types, never on their sizes. It is kept between runs in ``__pycache__``
    beside the source or, where that cannot be written, in the user's cache folder; ``NUMBA_CACHE_DIR`` names another.
    Where no folder can be written, it is compiled anew in each process.
    """
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # numba found no folder to keep compiled code in, as in a read-only container
        return numba.njit(nogil=True, error_model="numpy")(function)


def for_each(function: Callable, jobs: Iterable[tuple]) -> None:
    """function(*job) for each job, as many at a time as torch has threads.

    A job must write only what no other job reads or writes, so that the result does not depend on the threads.
    """
    jobs = list(jobs)
    workers = min(torch.get_num_threads(), len(jobs))
    if workers < 2:
        for job in jobs:
            function(*job)
        return
    # The calling thread waits, and torch's own threads have nothing to do meanwhile.
    for _ in _pool(torch.get_num_threads()).map(lambda job: function(*job), jobs):
        pass


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="sgpn-mesh")


if hasattr(os, "register_at_fork"):
    # A forked process inherits the pool's object, but not its threads.
    os.register_at_fork(after_in_child=_pool.cache_clear)
