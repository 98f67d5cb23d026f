"""``sgpn video``: a film in, the film with its faces restored out."""

import argparse
import sys

from sgpn_arch.ranges import Count, Whole
from sgpn_model.cli.arguments import add_detector, add_device, typed

DESCRIPTION = (
    "Restore the faces in a film. Time stamps, sound and subtitles are kept. "
    "A run that was stopped goes on where it was."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments, and what runs."""
    add = parser.add_argument
    add("source", metavar="FILM", help="what FFmpeg reads: .mp4, .mov, .mkv, .webm, .avi and others")
    add("-o", "--output", required=True, metavar="FILE", dest="target", help="the new film; its suffix says its kind")
    add("--weights", default="default", metavar="NAME|FILE", help="name of weights that ship, or a checkpoint file")
    add_device(parser, "auto")
    add_detector(parser)
    add(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="numbers that the network computes with",
    )
    add("--codec", default="libx264", metavar="NAME", help="FFmpeg's name of the encoder, such as libx265 or libsvtav1")
    add(
        "--crf",
        type=typed(Whole),
        default=18,
        metavar="N",
        help="constant quality of the encoder; smaller is better and larger",
    )
    add(
        "--every",
        type=typed(Count),
        default=5,
        metavar="N",
        help="search for faces in every N-th frame; follow them between",
    )
    parser.set_defaults(run=run)


def run(source: str, target: str, codec: str, crf: int, every: int, **building) -> int:
    """Restores a film and returns the exit code: 0 if all went well, 1 if a face failed."""
    from pathlib import Path

    from tqdm import tqdm

    from sgpn_data.films import Video
    from sgpn_model.restore.restorer import FaceRestorer
    from sgpn_model.restore.video import restore_video

    Video(source)  # before anything is loaded
    restorer = FaceRestorer.from_pretrained(**building, engine="torch")
    bars: dict[str, tqdm] = {}

    def progress(step: str, done: int, frames: int) -> None:
        bar = bars.setdefault(step, tqdm(desc=step, unit="frame", disable=None))
        bar.total = frames
        bar.update(done - bar.n)

    Path(target).parent.mkdir(parents=True, exist_ok=True)
    result = restore_video(restorer, source, target, codec, crf, every, progress)
    for bar in bars.values():
        bar.close()
    again = f", {result.resumed} of them by an earlier run" if result.resumed else ""
    print(
        f"{target}: {result.frames} frames{again}, {result.tracks} faces followed, searched in {result.searches} frames"
    )
    for part in result.left_out:
        print(f"{target}: this kind of file cannot hold {part}; it was left out", file=sys.stderr)
    if result.failed:
        print(f"{target}: {result.failed} times a network made NaN of a face, which stays as it was", file=sys.stderr)
    return 1 if result.failed else 0
