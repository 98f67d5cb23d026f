"""``sgpn bench``: how fast this machine runs the network in each precision, and where the time of a restoration goes."""

import argparse
import json
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Final

from sgpn_arch.ranges import Count, Positive
from sgpn_model.cli.arguments import add_device, typed

DESCRIPTION = "Measure how fast this machine restores. Prints one table, and writes it to OUT as JSON."
BACKBONE: Final = "resnet50"  # the paper's regressor
AS_WRITTEN = "as written"  # in place of a precision, for a network that cannot be made ready for inference
# A row's keys -> the columns of the printed table; +- is between the quartiles.
COLUMNS = {"ms": "ms", "iqr_ms": "+-", "gflop": "GFLOP", "gflop_per_second": "GFLOP/s", "share": "share"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments, and what runs."""
    add = parser.add_argument
    add(
        "what",
        nargs="?",
        choices=("networks", "engines"),
        default="networks",
        help="networks: the network in each precision, and the steps of a restoration; engines: every engine that is installed, "
        "on the default weights",
    )
    add("-o", "--output", default="experiments/bench.json", metavar="OUT", help="file")
    add("--weights", metavar="NAME|FILE", help="networks to measure (default: random ones of the paper's size)")
    add("--size", type=typed(Count), metavar="PIXELS", help="size of the random networks (default: 512, the paper's)")
    add("--width", type=typed(Positive), metavar="FACTOR", help="factor on their channels (default: 1, the paper's)")
    add(
        "--batch",
        type=typed(Count),
        default=1,
        metavar="N",
        help="faces per batch",
    )
    add("--photo", metavar="FILE", help="the photo to restore (default: scikit-image's astronaut)")
    add(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="numbers to compute with (default: fp32, and what the device multiplies in hardware)",
    )
    add("--threads", type=typed(Count), metavar="N", help="threads of PyTorch (default: PyTorch's own choice)")
    add("--seconds", type=typed(Positive), default=10.0, metavar="N", help="time for each measurement")
    add_device(parser, "auto")
    parser.set_defaults(run=run)


def run(
    what: str,
    output: str,
    weights: str | None,
    size: int | None,
    width: float | None,
    batch: int,
    photo: str | None,
    precision: str | None,
    threads: int | None,
    seconds: float,
    device: str,
) -> None:
    """Measures, prints the table and writes it.

    Raises:
        OptionError: two options do not go together, or networks of this kind cannot be built.
        CheckpointError, ImageError, DetectorError: weights, photo or detector cannot be used.
    """
    from sgpn_arch.errors import OptionError

    if what == "engines":
        from sgpn_model.cli.bench_engines import bench_engines

        if size or width or photo or batch != 1 or device != "auto":
            raise OptionError(
                "bench engines: measures one face of weights on the CPU; give --weights, --precision, --threads"
            )
        bench_engines(output, weights or "default", precision, threads, seconds, cpu_name())
        return
    import torch

    from sgpn_arch.inference.memory import keep_freed_memory
    from sgpn_arch.inference.network import choose_precision
    from sgpn_data.photos import read_photo
    from sgpn_model.config.device import choose_device
    from sgpn_model.evaluate.report import versions
    from sgpn_model.weights.pretrained import load_networks

    if weights and (size or width):
        raise OptionError("bench: --size and --width are of random networks; leave them out, or --weights")
    place, size, width = choose_device(device), size or 512, width or 1.0
    if photo:
        read_photo(photo)  # what cannot be read is told before anything is measured
    try:
        wanted = [precision] if precision else ["fp32", "auto"]
        precisions = list(dict.fromkeys(choose_precision(name, place) for name in wanted))
        network, prior, template = load_networks(weights) if weights else random_networks(size, width)
    except ValueError as error:
        raise OptionError(f"bench: {error}") from error
    keep_freed_memory()
    network, prior = (part.eval().requires_grad_(False).to(place) for part in (network, prior))
    if not hasattr(network, "for_inference"):
        precisions = [AS_WRITTEN]
    table = Table(place, threads or torch.get_num_threads(), seconds)
    measure_network(table, network, batch, precisions)
    measure_restoration(table, network, prior, template, photo, precisions[-1])

    kind = f"of the weights '{weights}'" if weights else f"of random weights, width {width:g}"
    report = {
        "networks": f"SGPN-{network.size} {kind}, batch {batch}",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else place.type,
        "cpu": cpu_name(),
        "threads": table.threads,
        "versions": versions(),
        "rows": table.rows,
    }
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(output).write_text(json.dumps(report, indent=1), encoding="utf-8")
    told = [str(report[key]) for key in ("networks", "device", "cpu")]
    print("; ".join([*told, f"{table.threads} threads", f"torch {torch.__version__}"]))
    print("\n".join([*plain_text(table.rows), f"written: {output}"]))


class Table:
    """Measurements as rows: ``what``, ``ms`` (median), ``iqr_ms``, ``runs``, and where known ``gflop`` and ``share``."""

    def __init__(self, device, threads: int, seconds: float):
        self.device, self.threads, self.seconds = device, threads, seconds
        self.rows: list[dict] = []

    def measure(self, what: str, call: Callable, gflop: float | None = None) -> dict:
        """Calls once for what is compiled, packed and allocated then, and afterwards for about ``seconds``; adds a row."""
        from torch.utils.benchmark import Timer

        print(f"measuring: {what}", flush=True)
        timer = Timer("call()", globals={"call": call}, num_threads=self.threads)
        timer.timeit(1)
        found = timer.blocked_autorange(min_run_time=self.seconds)
        row = {"what": what, "ms": found.median * 1e3, "iqr_ms": found.iqr * 1e3}
        row["runs"] = len(found.times) * found.number_per_run
        if gflop is not None:
            row |= {"gflop": gflop, "gflop_per_second": gflop / found.median}
        self.rows.append(row)
        return row


def plain_text(rows: Sequence[dict]) -> list[str]:
    """The table as lines, without the columns that are empty throughout."""
    keys = [key for key in COLUMNS if any(key in row for row in rows)]
    lines = [["", *(COLUMNS[key] for key in keys)]]
    for row in rows:
        cells = [f"{row[key]:{'.1%' if key == 'share' else '.4g'}}" if key in row else "" for key in keys]
        lines.append([row["what"], *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]).rstrip() for name, *cells in lines]


def cpu_name() -> str:
    """The processor's name, as far as the system tells it."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


def random_networks(size: int, width: float) -> tuple:
    """SGPN, a shape prior of the paper's kind on the open model, and the template: as fast as trained ones.

    Raises:
        ValueError: there is no such size or width.
    """
    from sgpn_arch.d3dfr_arch import D3DFR
    from sgpn_arch.face3d.morphable_model import MorphableModel
    from sgpn_arch.face3d.shape_prior import ShapePrior
    from sgpn_arch.sgpn_arch import SGPN

    model = MorphableModel.open()
    prior = ShapePrior(D3DFR(*model.dims, backbone=BACKBONE), model)
    return SGPN(size, width, coeff_dim=prior.coeff_dim), prior, "ffhq"


def count_gflop(call: Callable) -> float:
    """10^9 floating-point operations (2 for each multiply-add) of a call's convolutions and matrix products."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def measure_network(table: Table, network, batch: int, precisions: Sequence[str]) -> None:
    """The network made ready for inference, in each precision; its GFLOP are those of its plain definition."""
    import torch

    photos, renders = (torch.rand(batch, 3, network.size, network.size, device=table.device) * 2 - 1 for _ in range(2))
    inputs = photos, renders, torch.randn(batch, network.coeff_dim, device=table.device)
    with torch.no_grad():
        gflop = count_gflop(partial(network, *inputs))
    for precision in precisions:
        ready = network if precision == AS_WRITTEN else network.for_inference(precision)
        table.measure(f"network, {precision}", partial(ready, *inputs), gflop)


def measure_restoration(table: Table, network, prior, template: str, photo: str | None, precision: str) -> None:
    """A photo from file to file, as ``sgpn restore`` does it, and the share of each step."""
    import torch

    from sgpn_data.detection import build_detector
    from sgpn_data.photos import Photo, read_photo, write_photo
    from sgpn_model.restore.restorer import FaceRestorer

    spent: dict[str, float] = defaultdict(float)

    def watched(function: Callable, step: str) -> Callable:
        def call(*args, **kwargs):
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            if table.device.type == "cuda":
                torch.cuda.synchronize(table.device)
            spent[step] += time.perf_counter() - begin
            return result

        return call

    detector = build_detector("auto", str(table.device))
    restorer = FaceRestorer(network, prior, template, detector, table.device, precision=precision)
    engine: Any = restorer.engine
    steps = [(restorer, "prepare", "prepare"), (restorer, "finish", "paste back"), (detector, "detect", "detect")]
    steps += [(engine.prior, "forward", "shape prior")]
    names = [name for name in ("forward", "with_mask_picture") if hasattr(engine.network, name)]
    steps += [(engine.network, name, "network") for name in names]
    for owner, name, step in steps:
        setattr(owner, name, watched(getattr(owner, name), step))
    read, write = watched(read_photo, "read"), watched(write_photo, "write")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(photo or Path(folder) / "astronaut.jpg"), Path(folder) / "restored.jpg"
        if photo is None:
            from skimage.data import astronaut

            write_photo(source, Photo(astronaut()[..., ::-1].copy()))
        height, width = read_photo(source).bgr.shape[:2]

        def restore() -> int:
            result = restorer.restore(read(source).bgr)
            write(target, Photo(result.image))
            return len(result.faces)

        faces = restore()
        spent.clear()
        whole = table.measure(
            f"restoration, {precision}: {width}x{height} pixels, faces: {faces}", watched(restore, "whole")
        )
    spent["cut out"] = spent.pop("prepare") - spent["detect"]
    total = spent.pop("whole")
    spent["other"] = total - sum(spent.values())
    for step in ("read", "detect", "cut out", "shape prior", "network", "paste back", "write", "other"):
        share = spent[step] / total
        table.rows.append({"what": f"  {step}", "ms": share * whole["ms"], "share": share})
