"""What a command tells the C library about memory, so that large tensors are not paid for again and again."""

import ctypes
import sys

# glibc's names for mallopt, from malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -3, -4, -8


def keep_freed_memory(large: bool = True) -> bool:
    """Lets the process keep the memory that tensors free, for the next ones; returns whether the C library can.

    glibc takes every large block from the kernel and gives it back at once, and the kernel fills each anew with zeros, page
    by page: on a CPU that costs more than the arithmetic of activations, losses and optimisers. Kept memory counts as
    the process's until it ends, so this is for commands, not for importing the library. Elsewhere than on glibc nothing
    happens.

    Args:
        large: also blocks of more than 32 MiB, the most that glibc takes for a limit on 64 bits. An aligned block does not
            fit into the hole that one of its size left, so keeping them makes a process larger: where large blocks are
            few, it is better not to.
    """
    mallopt = _of_c_library("mallopt", ctypes.c_int, ctypes.c_int)
    if mallopt is None:
        return False
    # No further arenas: what a thread frees in an arena of its own is of no use to another thread.
    settings = {M_ARENA_MAX: 1, M_TRIM_THRESHOLD: 2**31 - 1}
    settings |= {M_MMAP_MAX: 0, M_TOP_PAD: 64 << 20} if large else {M_MMAP_THRESHOLD: 32 << 20}
    return min(mallopt(name, value) for name, value in settings.items()) == 1


def return_freed_memory() -> bool:
    """Gives the kernel what has been freed so far; returns whether the C library can.

    After weights have been converted, their old copies leave holes that are too small for activations.
    """
    malloc_trim = _of_c_library("malloc_trim", ctypes.c_size_t)
    if malloc_trim is None:
        return False
    malloc_trim(0)
    return True


def _of_c_library(name: str, *arguments):
    """A function of Linux' C library that returns an int; None elsewhere, and in a library without it, such as musl."""
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
    if function is not None:
        function.argtypes, function.restype = arguments, ctypes.c_int
    return function
