"""Forward and backward of the generator, our way against PyTorch's own operations, in turns; and the ceiling.

python tests/benchmarks/compare_training.py --size 256 --width 0.125 --batch 4 --threads 2 --rounds 9

Prints a Markdown table. How it is measured: see compare_network.py.
"""

import argparse
import statistics

import torch
from compare_network import CEILING_GFLOP, ceiling_call, in_turns, make_inputs

from sgpn_arch.inference.memory import keep_freed_memory
from sgpn_arch.inference.network import DTYPES
from sgpn_arch.ops import plain_operations
from sgpn_arch.sgpn_arch import SGPN
from sgpn_model.cli.bench import count_gflop


def main() -> None:
    """Measures what the command line names, on a CPU, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--size", type=int, default=256)
    add("--width", type=float, default=0.125)
    add("--max-channels", type=int, default=192)
    add("--batch", type=int, default=4)
    add("--precision", choices=("fp32", "bf16"), default="fp32")
    add("--rounds", type=int, default=5)
    add("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    network = SGPN(asked.size, asked.width, asked.max_channels, coeff_dim=205)
    inputs = make_inputs(asked.batch, asked.size)

    def ours() -> None:
        network.zero_grad()
        with torch.autocast("cpu", DTYPES[asked.precision], enabled=asked.precision != "fp32"):
            image = network(*inputs)
        image.square().mean().backward()

    def plain() -> None:
        with plain_operations():
            ours()

    calls = {"plain": plain, "ours": ours, "ceiling": ceiling_call(asked.precision, torch.device("cpu"))}
    seconds = in_turns(calls, asked.rounds, asked.threads)
    gflop = {"plain": count_gflop(plain), "ceiling": CEILING_GFLOP}
    gflop["ours"] = gflop["plain"]
    print("| | ms | GFLOP/s | x plain |\n" + "|---" * 4 + "|")
    for name, own in seconds.items():
        times = statistics.median(a / b for a, b in zip(seconds["plain"], own, strict=True))
        middle = statistics.median(own)
        print(
            f"| {name} | {middle * 1e3:.4g} | {gflop[name] / middle:.4g} | {'' if name == 'ceiling' else f'{times:.2f}'} |"
        )


if __name__ == "__main__":
    main()
