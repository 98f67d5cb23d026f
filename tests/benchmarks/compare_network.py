"""The network made ready for inference against its plain definition, in turns: time, part of the ceiling, and agreement.

python tests/benchmarks/compare_network.py --threads 2 --rounds 5
python tests/benchmarks/compare_network.py --size 256 --precision bf16 --batch 4

Prints a Markdown table. What is compared runs A B A B ..., ratios are medians over the rounds: a machine that slows down slows
all alike. The ceiling is one large 3x3 convolution in the same precision, measured in the same rounds.
"""

import argparse
import contextlib
import math
import statistics
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch.utils.benchmark import Timer

from sgpn_arch.inference.memory import keep_freed_memory
from sgpn_arch.inference.network import DTYPES, choose_precision
from sgpn_arch.layers import StyledConv, ToRGB
from sgpn_arch.sgpn_arch import SGPN
from sgpn_model.cli.bench import count_gflop

CHANNELS, SIDE = 256, 128  # of the ceiling's convolution
CEILING_GFLOP = 2 * 9 * CHANNELS**2 * SIDE**2 / 1e9  # of one picture
CEILING_BATCH = {"cpu": 1, "cuda": 16}  # a GPU needs more to be busy
PHOTO_DEVIATION = 0.45  # the standard deviation of photos in [-1, 1], for which PSNR is meant
COEFFICIENTS = 205


def build(size: int, width: float, fusion: str = "AFFB") -> SGPN:
    """A random network in which every part has a say, whose pictures have a photo's contrast."""
    torch.manual_seed(0)
    network = SGPN(size, width, coeff_dim=COEFFICIENTS, fusion=fusion).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, StyledConv):
            module.weight.fill_(0.5)
    for parameter in network.parameters():
        if not parameter.any():
            parameter.normal_(0, 0.1)
    factor = PHOTO_DEVIATION / network(*make_inputs(1, size)).std()
    for module in network.modules():
        if isinstance(module, ToRGB):
            module.conv.weight.mul_(factor)
            module.bias.mul_(factor)
    return network


def make_inputs(batch: int, size: int) -> tuple[torch.Tensor, ...]:
    """Smooth pictures with some noise for photo and rendering, and coefficients."""
    coarse = torch.rand(2 * batch, 3, 16, 16) * 2 - 1
    pictures = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic") + 0.1 * torch.randn(1, 3, size, size)
    return *pictures.clamp(-1, 1).chunk(2), 0.3 * torch.randn(batch, COEFFICIENTS)


def plain_call(network: SGPN, inputs: tuple, precision: str) -> Callable:
    """The network as it is written, under autocast where the precision is not full."""

    def call():
        half = (
            torch.autocast(inputs[0].device.type, DTYPES[precision])
            if precision != "fp32"
            else contextlib.nullcontext()
        )
        with torch.inference_mode(), half:
            return network(*inputs).float()

    return call


def ceiling_call(precision: str, device: torch.device) -> Callable:
    """One large 3x3 convolution, channels-last: as fast as a network of convolutions could hope to be."""
    layout = dict(dtype=DTYPES[precision], device=device, memory_format=torch.channels_last)
    batch = CEILING_BATCH[device.type]
    x, weight = torch.rand(batch, CHANNELS, SIDE, SIDE).to(**layout), torch.rand(CHANNELS, CHANNELS, 3, 3).to(**layout)
    return torch.inference_mode()(lambda: torch.conv2d(x, weight, padding=1))


def in_turns(calls: Mapping[str, Callable], rounds: int, threads: int) -> dict[str, list[float]]:
    """Name -> seconds of each round, after a call of each that does not count."""
    timers = {name: Timer("call()", globals={"call": call}, num_threads=threads) for name, call in calls.items()}
    for timer in timers.values():
        timer.timeit(1)
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            seconds[name].append(timer.timeit(1).mean)
    return seconds


def agreement(output: torch.Tensor, reference: torch.Tensor) -> str:
    """The largest absolute difference, and PSNR of pictures in [-1, 1]."""
    error = (output.double() - reference.double()).abs()
    square = error.square().mean().item()
    return f"{error.max():.1e}" + (f", {10 * math.log10(4 / square):.1f} dB" if square else "")


def main() -> None:
    """Measures what the command line names and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--size", type=int, default=512)
    add("--width", type=float, default=1.0)
    add("--fusion", default="AFFB")
    add("--batch", type=int, default=1)
    add(
        "--precision",
        nargs="+",
        choices=tuple(DTYPES),
        help="default: fp32, and what the device multiplies in hardware",
    )
    add("--rounds", type=int, default=5)
    add("--threads", type=int, default=torch.get_num_threads())
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()
    keep_freed_memory()
    device = torch.device(asked.device)
    network = build(asked.size, asked.width, asked.fusion).to(device)
    inputs = tuple(x.to(device) for x in make_inputs(asked.batch, asked.size))
    precisions = asked.precision or list(dict.fromkeys(["fp32", choose_precision("auto", device)]))
    calls = {}
    for precision in dict.fromkeys(["fp32", *precisions]):
        calls[f"plain {precision}"] = plain_call(network, inputs, precision)
        calls[f"ceiling {precision}"] = ceiling_call(precision, device)
    for precision in precisions:
        calls[f"inference {precision}"] = partial(network.for_inference(precision), *inputs)
    seconds = in_turns(calls, asked.rounds, asked.threads)
    with torch.no_grad():
        gflop = count_gflop(partial(network, *inputs))
    reference = calls["plain fp32"]()
    most = CEILING_GFLOP * CEILING_BATCH[device.type]

    def faster(slow: str, fast: str) -> str:
        return f"{statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)):.2f}"

    print(
        "| | ms | GFLOP/s | of the ceiling | x plain | x plain fp32 | difference from plain fp32 |\n" + "|---" * 7 + "|"
    )
    for name, call in calls.items():
        kind, precision = name.split()
        own = statistics.median(seconds[name])
        if kind == "ceiling":
            print(f"| {name} | {own * 1e3:.4g} | {most / own:.4g} | | | | |")
            continue
        part = gflop / own / (most / statistics.median(seconds[f"ceiling {precision}"]))
        times = [faster(f"plain {precision}", name), faster("plain fp32", name), agreement(call(), reference)]
        print(f"| {name} | {own * 1e3:.4g} | {gflop / own:.4g} | {part:.0%} | {' | '.join(times)} |")


if __name__ == "__main__":
    main()
