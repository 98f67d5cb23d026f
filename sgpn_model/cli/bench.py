"""``sgpn bench``: how fast this machine restores and trains."""

import argparse

from sgpn_model.cli.arguments import add_device

DESCRIPTION = "Measure how fast this machine is, print tables and write them to OUT; docs/performance.md explains them."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments, and what runs."""
    add = parser.add_argument
    add("part", nargs="?", metavar="PART", help="network, shape, restore, ops or train (default: all but train)")
    add("-o", "--output", default="experiments/bench", metavar="OUT", help="folder (default: experiments/bench)")
    add("--compare", metavar="plain", help="measure the plain path in turns with the fast one")
    add("--sweep", metavar="WHAT", help="how cost grows with batch, size, faces or photo; with a plot")
    add("--size", type=int, metavar="PIXELS", help="of random networks (default: 512)")
    add("--width", type=float, metavar="FACTOR", help="of their channels (default: 1, the paper's)")
    add("--fusion", metavar="NAME", help="of their features (default: AFFB)")
    add("--weights", metavar="NAME|FILE", help="measure these networks in place of random ones")
    add("--batch", type=int, metavar="N", help="faces at once (default: 1)")
    add("--faces", type=int, metavar="N", help="faces in the photo to restore (default: 1)")
    add("--megapixels", type=float, metavar="N", help="size of that photo (default: 1)")
    add("--precision", metavar="NAME", help="fp32, bf16, fp16 or auto (default: each that the device has)")
    add("--threads", type=int, metavar="N", help="of PyTorch and OpenCV (default: PyTorch's)")
    add("--repeat", type=int, metavar="N", help="rounds of each measurement (default: as --seconds allow)")
    add("--seconds", type=float, metavar="N", help="for each measurement, but at least 3 rounds (default: 10)")
    add_device(parser, "auto")
    parser.set_defaults(run=run)


def run(**options) -> None:
    """Measures, and writes the tables."""
    from sgpn_model.cli import bench_run

    bench_run.run(**options)
