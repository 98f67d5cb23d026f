"""How the benchmark measures: timings in turns, floating-point operations, memory, and the machine and its ceilings."""

import ctypes
import gc
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from sgpn_arch.inference.network import DTYPES, choose_precision
from sgpn_model.evaluate.report import versions

# The least and the most rounds of a measurement that is bounded by time alone, and how long one sample lasts at least.
FEWEST_ROUNDS, MOST_ROUNDS, SHORTEST_SAMPLE = 3, 1000, 5e-3
# The ceiling's convolution: 3x3 over so many channels in and out, so many pixels a side. A GPU needs more to be busy.
CEILING_CHANNELS, CEILING_SIDE, CEILING_BATCH_CUDA = 256, 128, 16
COPIED_BYTES = 256 * 2**20
MIB = 2**20


@dataclass(frozen=True)
class Settings:
    """What a benchmark is asked to do; what is None is for the part to choose.

    Attributes:
        device: where. threads: of PyTorch. size, width, fusion, batch: of the network and its input.
        precision: "fp32", "bf16", "fp16" or "auto"; None is each that the device has. weights: name or file; None is random.
        compare: whether the plain path is measured in turns with the fast one.
        repeat: how many rounds; None is as many as ``seconds`` allow for each measurement.
        megapixels, faces: of the photo to restore. detector: its name. seed: of everything random.
    """

    device: torch.device
    threads: int
    size: int = 512
    width: float = 1.0
    fusion: str = "AFFB"
    batch: int | None = None
    precision: str | None = None
    weights: str | None = None
    compare: bool = False
    repeat: int | None = None
    seconds: float = 10.0
    megapixels: float | None = None
    faces: int | None = None
    detector: str = "auto"
    seed: int = 0

    def precisions(self) -> list[str]:
        """The precisions to measure, full precision first."""
        if self.precision is not None:
            return [choose_precision(self.precision, self.device)]
        if self.device.type == "cuda":
            return list(DTYPES)
        return ["fp32", "bf16"] if choose_precision("auto", self.device) == "bf16" else ["fp32"]


@dataclass
class Measured:
    """What was measured of one call: seconds of each round, what its first call returned, and MiB of memory at that one's
    peak beyond what was there before (None where that cannot be told)."""

    seconds: list[float]
    output: object = None
    peak_mib: float | None = None


# ---------------------------------------------------------------------------------------------------------------------
# Time


def clock() -> float:
    """Seconds since some moment."""
    return time.perf_counter()


def timed(call: Callable, device: torch.device, times: int = 1) -> float:
    """Seconds of one call, the mean of several in a row; on CUDA from when the device begins to when it is done."""
    if device.type == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(times):
            call()
        end.record()
        torch.cuda.synchronize(device)
        return begin.elapsed_time(end) / 1e3 / times
    start = clock()
    for _ in range(times):
        call()
    return (clock() - start) / times


def wait_for(device: torch.device) -> None:
    """Returns when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(calls: Mapping[str, Callable], settings: Settings, memory: bool = True) -> dict[str, Measured]:
    """Measures several calls in turns, A B C A B C ..., so that a machine whose speed drifts treats them alike.

    Every call is made twice before. The first is for memory, buffers that it keeps included; whatever is compiled, packed
    or allocated then is not in the timings. The second says how many calls make up a sample of SHORTEST_SAMPLE seconds.

    Args:
        calls: name -> what to call. settings: device, and how long. memory: whether to measure memory too.
    """
    gc.collect()
    found, times = {}, {}
    for name, call in calls.items():
        output, peak = with_peak_memory(call, settings.device) if memory else (call(), None)
        found[name] = Measured([], output, peak)
    for name, call in calls.items():
        took = timed(call, settings.device)
        times[name] = max(1, min(1000, math.ceil(SHORTEST_SAMPLE / max(took, 1e-9))))
    begin = clock()
    while _goes_on(len(next(iter(found.values())).seconds), clock() - begin, settings):
        for name, call in calls.items():
            found[name].seconds.append(timed(call, settings.device, times[name]))
    return found


def _goes_on(rounds: int, elapsed: float, settings: Settings) -> bool:
    if settings.repeat is not None:
        return rounds < settings.repeat
    return rounds < FEWEST_ROUNDS or (elapsed < settings.seconds and rounds < MOST_ROUNDS)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times faster: the median over the rounds of the quotient of the two samples that were taken side by side."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Work, memory and agreement


class _Counter(TorchDispatchMode):
    """Adds up the floating-point operations of convolutions and matrix products, two for each multiplication."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out


def gflop(call: Callable, *inputs: Tensor) -> float:
    """10^9 floating-point operations (2 x multiply-adds) of convolutions and matrix products; nothing is computed.

    Elementwise work is not counted. The formulas are those of PyTorch's own counter.
    """
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode, _Counter() as counter:
        call(*tree_map_only(Tensor, mode.from_tensor, list(inputs)))
    return counter.total / 1e9


def gflop_of_run(call: Callable) -> float:
    """The same of a call that is really made, for what cannot be done without values (a training step)."""
    with _Counter() as counter:
        call()
    return counter.total / 1e9


def with_peak_memory(call: Callable, device: torch.device) -> tuple[object, float | None]:
    """What a call returns, and MiB of memory at its peak beyond what was there before; None where that cannot be told.

    On CUDA what PyTorch allocated there; elsewhere the process's resident memory, free memory returned to the system first.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        output = call()
        return output, (torch.cuda.max_memory_allocated(device) - before) / MIB
    before = _begin_peak()
    output = call()
    return output, None if before is None else (_status("VmHWM") - before) / MIB


def peak_of_process() -> float | None:
    """MiB of resident memory that this process had at its peak since memory was last measured; None where unknown."""
    peak = _status("VmHWM")
    return None if peak is None else peak / MIB


def _begin_peak() -> int | None:
    """Forgets the process's peak and returns its resident bytes; None where the system does not offer that."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # musl has none
            trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def _status(field: str) -> int | None:
    """Bytes that /proc/self/status gives for a field."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def difference(output: Tensor, reference: Tensor) -> dict[str, float | None]:
    """Largest absolute difference, and PSNR in dB for pictures in [-1, 1] (None where they are equal)."""
    error = output.double() - reference.double()
    mean_square = error.square().mean().item()
    return {
        "max_abs": error.abs().max().item(),
        "psnr": 10 * math.log10(4 / mean_square) if mean_square > 0 else None,
    }


# ---------------------------------------------------------------------------------------------------------------------
# The machine


def describe_machine(settings: Settings) -> dict:
    """Device, CPU, threads and versions."""
    device = settings.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": name,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": settings.threads,
        "versions": versions(),
    }


def cpu_name() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def ceiling_call(precision: str, device: torch.device) -> tuple[Callable, float]:
    """One large 3x3 convolution, channels-last, in a precision, and its GFLOP: as fast as a network could hope to be."""
    batch = CEILING_BATCH_CUDA if device.type == "cuda" else 1
    channels, side, dtype = CEILING_CHANNELS, CEILING_SIDE, DTYPES[precision]
    layout = dict(dtype=dtype, device=device, memory_format=torch.channels_last)
    x = torch.rand(batch, channels, side, side).to(**layout)
    weight = torch.rand(channels, channels, 3, 3).to(**layout)
    work = 2 * 9 * channels**2 * side**2 * batch / 1e9
    return torch.inference_mode()(lambda: torch.conv2d(x, weight, padding=1)), work


def ceiling_name(precision: str) -> str:
    """What a measurement calls the ceiling's convolution."""
    return f"ceiling {precision}"


def copy_bandwidth(settings: Settings) -> Measured:
    """Seconds of copying COPIED_BYTES, which reads them and writes as many."""
    source = torch.zeros(COPIED_BYTES // 4, device=settings.device)
    target = torch.empty_like(source)
    return measure({"copy": lambda: target.copy_(source)}, settings, memory=False)["copy"]
