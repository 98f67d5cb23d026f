"""Which device an option means, and how many threads."""

import ctypes
import os
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

from sgpn_arch.errors import OptionError
from sgpn_arch.ranges import Device, from_text

if TYPE_CHECKING:
    import torch


def choose_device(name: str) -> "torch.device":
    """ "auto" is CUDA where there is any.

    Raises:
        OptionError: this machine has no such device, or the name is none of auto, cpu, cuda, cuda:NUMBER and mps.
    """
    import torch

    try:
        from_text(Device, name)
    except ValueError as error:
        raise OptionError(f"device: {error}") from error
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"device '{name}': PyTorch sees no CUDA device; use cpu or auto")
    if number and int(number) >= torch.cuda.device_count():
        raise OptionError(f"device '{name}': PyTorch sees only cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise OptionError("device 'mps': PyTorch sees no Apple GPU; use cpu or auto")
    if kind == "mps" and not torch.amp.is_autocast_available("mps"):  # PyTorch 2.4
        raise OptionError("device 'mps': needs PyTorch 2.5 or newer")
    return torch.device(name)


def cuda_is_likely() -> bool:
    """Whether there is a CUDA driver, and PyTorch to use it; without importing PyTorch, which takes longer than a restoration."""
    if find_spec("torch") is None:
        return False
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        return True
    except OSError:
        return False


class FreeCores:
    """How many cores other processes leave free, from when it is made until it is asked; processes of low priority yield.

    Threads of a network wait for each other after each layer. Where there are more of them than free cores, one that is not
    running makes the others wait, and they burn processor time meanwhile.
    """

    SHORTEST = 0.1  # seconds to look at

    def __init__(self) -> None:
        self._begin = time.monotonic(), _busy_seconds(), sum(os.times()[:2])

    def count(self) -> int:
        """At least 1, and at most the cores that this process may use."""
        begin, busy, own = self._begin
        may = usable_cores()
        if busy is None:
            return may
        time.sleep(max(0.0, self.SHORTEST - (time.monotonic() - begin)))
        elapsed = time.monotonic() - begin
        others = ((_busy_seconds() or busy) - busy - (sum(os.times()[:2]) - own)) / elapsed
        return max(1, min(may, round((os.cpu_count() or 1) - others)))


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the limit of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such limit, or "max"
        return cores


def _busy_seconds() -> float | None:
    """Seconds that all cores together spent on processes of normal priority since the machine started; None if it is not told."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, _, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
        return (user + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None
