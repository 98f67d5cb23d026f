"""Films frame by frame: read upright and in order, and written in parts that are joined with the sound at the end (PyAV)."""

import heapq
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sgpn_arch.errors import OptionError, UserError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video import VideoFrame, VideoStream

# Kinds of pixels with 8 bits that are kept; of any other, the parts are yuv420p, the one that every player shows.
KEPT_FORMATS = {"yuv420p": "yuv420p", "yuvj420p": "yuv420p", "yuv422p": "yuv422p", "yuvj422p": "yuv422p"}
KEPT_FORMATS |= {"yuv444p": "yuv444p", "yuvj444p": "yuv444p"}
ITU601 = 5  # FFmpeg's number of the matrix that it takes where a film names none


class VideoError(UserError, ValueError):
    """A film that cannot be read or written; the message names the file."""


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise OptionError('films need PyAV: pip install "sgpn[video]"') from None
    return av


class Video:
    """A film that is read once or several times, always from its beginning.

    Args:
        path: of the file.

    Attributes:
        count: frames that its container tells, an estimate, or 0.

    Raises:
        VideoError: it cannot be opened, or has no pictures. OptionError: PyAV is not installed.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with self.open() as container:
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            seconds = container.duration / 1e6 if container.duration else 0
            self.count = stream.frames or round(seconds * float(rate or 0))

    def open(self) -> "InputContainer":
        """The container, to be closed by the caller."""
        av = _av()
        try:
            container = av.open(str(self.path))
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{self.path}: cannot be read as a film: {error}") from error
        if not container.streams.video:
            container.close()
            raise VideoError(f"{self.path}: has no pictures")
        return container

    def frames(self) -> Iterator[tuple[np.ndarray, "VideoFrame"]]:
        """Each frame as an upright picture, uint8 HxWx3 BGR, and as PyAV has it; a damaged end is where it ends.

        Raises:
            VideoError: not even the first frame can be decoded.
        """
        av = _av()
        with self.open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            number = 0
            try:
                for frame in container.decode(stream):
                    yield upright(frame), frame
                    number += 1
            except av.FFmpegError as error:
                if not number:
                    raise VideoError(f"{self.path}: cannot be decoded: {error}") from error


def upright(frame: "VideoFrame") -> np.ndarray:
    """A decoded frame as it is to be seen: uint8 HxWx3 BGR, turned as its display matrix says."""
    matrix = frame.colorspace if frame.colorspace in (1, 4, 5, 7, 9) else ITU601
    bgr = frame.reformat(format="bgr24", src_colorspace=matrix, dst_colorspace=matrix).to_ndarray()
    return np.ascontiguousarray(np.rot90(bgr, round(frame.rotation / 90) % 4))


class PartWriter:
    """Writes consecutive frames of a film as a part: a file without sound that appears when it is complete.

    There are no frames that refer to later ones, so that parts can be joined by copying.

    Args:
        path: of the part. like: a frame of the source, whose colours and kind of pixels the part has. stream: the source's.
        codec, crf: FFmpeg's name of the encoder and its constant quality.
    """

    def __init__(self, path: Path, like: "VideoFrame", stream: "VideoStream", codec: str, crf: int):
        av = _av()
        self.path, self.unfinished = path, path.with_name(path.name + ".unfinished")
        self.container = av.open(str(self.unfinished), "w", format="nut")  # which keeps time stamps of any fineness
        turned = round(like.rotation / 90) % 2
        width, height = (like.height, like.width) if turned else (like.width, like.height)
        rate = stream.average_rate or stream.guessed_rate or 25
        try:
            out = self.container.add_stream(codec, rate=rate, options={"crf": str(crf), "bf": "0"})
        except (av.FFmpegError, ValueError) as error:
            self.abandon()
            raise OptionError(f"codec {codec!r}: FFmpeg has no such encoder here: {error}") from error
        out.width, out.height = width, height
        odd = width % 2 or height % 2
        out.pix_fmt = "yuv444p" if odd else KEPT_FORMATS.get(like.format.name, "yuv420p")
        out.time_base = out.codec_context.time_base = stream.time_base
        out.codec_context.flags |= 1 << 22  # the header in one place, as MP4 wants it
        self.matrix = like.colorspace if like.colorspace in (1, 4, 5, 7, 9) else ITU601
        self.full_range = like.color_range == 2 or like.format.name.startswith("yuvj")
        context = out.codec_context
        context.color_range = 2 if self.full_range else like.color_range
        context.colorspace, context.color_primaries, context.color_trc = (
            like.colorspace,
            like.color_primaries,
            like.color_trc,
        )
        self.stream = out

    def write(self, bgr: np.ndarray, source: "VideoFrame") -> None:
        """Adds a frame, uint8 HxWx3 BGR, with the source's time stamp."""
        av = _av()
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(bgr), format="bgr24")
        frame = frame.reformat(
            format=self.stream.pix_fmt,
            src_colorspace=self.matrix,
            dst_colorspace=self.matrix,
            dst_color_range=2 if self.full_range else 1,
        )
        frame.pts, frame.time_base = source.pts, source.time_base
        self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        """Completes the part, which appears at its path."""
        self.container.mux(self.stream.encode(None))
        self.container.close()
        os.replace(self.unfinished, self.path)

    def abandon(self) -> None:
        """Leaves nothing."""
        self.container.close()
        self.unfinished.unlink(missing_ok=True)


def join(parts: Iterable[Path], source: Video, target: Path) -> list[str]:
    """Writes a film of parts in order, with all that the source has besides pictures: sound, subtitles, chapters' names.

    Args:
        parts: files of :class:`PartWriter`. source: the film that they were made of. target: its suffix says the kind of file.

    Returns:
        what of the source the kind of file cannot hold, and was left out.

    Raises:
        VideoError: there is no such kind of file, or it cannot hold these pictures.
    """
    av = _av()
    parts, left_out = list(parts), []
    unfinished = target.with_name(f".{target.stem}.unfinished{target.suffix}")
    try:
        with source.open() as others, av.open(str(unfinished), "w") as out:
            with av.open(str(parts[0])) as first:
                pictures = out.add_stream_from_template(first.streams.video[0])
            streams = {}
            for stream in others.streams:
                if stream.type in ("audio", "subtitle"):
                    try:
                        streams[stream.index] = out.add_stream_from_template(stream)
                    except (av.FFmpegError, ValueError):
                        left_out.append(f"{stream.type} {stream.index} ({stream.codec_context.name})")
            out.metadata.update(others.metadata)
            out.start_encoding()
            packets = heapq.merge(
                _pictures(av, parts, pictures),
                _others(others, streams),
                key=lambda packet: packet.dts * packet.time_base,
            )
            for packet in packets:
                out.mux(packet)
        os.replace(unfinished, target)
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(
            f"{target}: cannot be written: {error}; another suffix, such as .mp4 or .mkv, may do"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return left_out


def _pictures(av, parts, stream):
    for part in parts:
        with av.open(str(part)) as container:
            for packet in container.demux(container.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    yield packet


def _others(container: "InputContainer", streams: dict[int, Any]) -> Iterator[Any]:
    if not streams:
        return
    for packet in container.demux([container.streams[index] for index in streams]):
        if packet.dts is not None:
            packet.stream = streams[packet.stream.index]
            yield packet
