"""Films: time stamps, colours, rotation and sound go through reading, parts and joining as they are."""

from fractions import Fraction

import numpy as np
import pytest

from sgpn_arch.errors import OptionError
from sgpn_data.films import PartWriter, Video, VideoError, join

av = pytest.importorskip("av")

BASE = Fraction(1, 12800)
TIMES = [0, 512, 1024, 2100, 2612, 3200, 3201, 4000]  # no two frames last alike
BT709, FULL = 1, 2


def picture(number: int, width=64, height=48) -> np.ndarray:
    """A gradient that moves, with a red corner to tell up from down."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 3 + number, y * 4, 255 - x * 2], axis=2).clip(0, 255).astype(np.uint8)
    image[:12, :16] = (0, 0, 255)
    return image


def write_film(path, sound=True, matrix=BT709, full=False, pix_fmt="yuv444p", times=TIMES, make=picture):
    """A film as a camera writes one: irregular time stamps, tagged colours, a tone."""
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=25, options={"crf": "1"})
        first = make(0)
        stream.width, stream.height, stream.pix_fmt = first.shape[1], first.shape[0], pix_fmt
        stream.time_base = stream.codec_context.time_base = BASE
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = matrix
        context.color_range = FULL if full else 1
        tone = film.add_stream("aac", rate=44100) if sound else None
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(make(number), format="bgr24")
            colours = {"src_colorspace": matrix, "dst_colorspace": matrix, "dst_color_range": FULL if full else 1}
            frame = frame.reformat(format=pix_fmt, **colours)
            frame.pts, frame.time_base = time, BASE
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
        if tone is not None:
            wave = np.sin(np.arange(int(44100 * times[-1] * BASE)) / 20).astype(np.float32)
            for start in range(0, len(wave) - 1024, 1024):
                piece = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
                piece.sample_rate, piece.pts = 44100, start
                film.mux(tone.encode(piece))
            film.mux(tone.encode(None))
    return path


def turn(path, degrees):
    """Writes a turn into the track's header, as a phone that is held upright does."""
    one = (1 << 16).to_bytes(4, "big")
    minus, none, end = (-(1 << 16) & 0xFFFFFFFF).to_bytes(4, "big"), bytes(4), (1 << 30).to_bytes(4, "big")
    turned = {
        90: [none, one, none, minus, none, none],
        180: [minus, none, none, none, minus, none],
        270: [none, minus, none, one, none, none],
    }[degrees]
    data = path.read_bytes()
    place = data.index(b"".join([one, none, none, none, one, none, none, none, end]), data.index(b"tkhd"))
    path.write_bytes(data[:place] + b"".join([*turned, none, none, end]) + data[place + 36 :])


def copy(source, target, split=5, codec="libx264", crf=1):
    """Every frame through two parts; what could not be kept."""
    film, parts = Video(source), []
    with film.open() as container:
        stream, writer = container.streams.video[0], None
        for number, (bgr, frame) in enumerate(film.frames()):
            if number in (0, split):
                if writer:
                    writer.close()
                parts.append(target.with_name(f"{number}.nut"))
                writer = PartWriter(parts[-1], frame, stream, codec, crf)
            writer.write(bgr, frame)
        writer.close()
    return join(parts, film, target)


def frames(path):
    return list(Video(path).frames())


def packets(path, kind="audio"):
    with av.open(str(path)) as film:
        return [(packet.pts, bytes(packet)) for packet in film.demux(getattr(film.streams, kind)[0]) if packet.size]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_times_and_sound_are_the_sources(tmp_path, suffix):
    source = write_film(tmp_path / "in.mp4")
    target = tmp_path / f"out{suffix}"
    assert copy(source, target) == []
    times = [float(frame.pts * frame.time_base) for _, frame in frames(target)]
    # Matroska counts milliseconds, and shifts all streams alike where one begins before 0, as AAC does.
    matroska = suffix == ".mkv"
    shift = times[0] if matroska else 0.0
    assert times == pytest.approx([float(time * BASE) + shift for time in TIMES], abs=1e-3 if matroska else 1e-6)
    assert 0 <= shift < 0.03
    assert [data for _, data in packets(target)] == [data for _, data in packets(source)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["0.nut", "5.nut", "in.mp4", target.name])


@pytest.mark.parametrize("matrix", [BT709, 5])
@pytest.mark.parametrize("full", [False, True])
def test_colours_and_their_tags_stay(tmp_path, matrix, full):
    source = write_film(tmp_path / "in.mp4", sound=False, matrix=matrix, full=full)
    copy(source, tmp_path / "out.mp4")
    for number, (bgr, frame) in enumerate(frames(tmp_path / "out.mp4")):
        assert frame.colorspace == matrix and frame.color_primaries == matrix and frame.format.name.endswith("444p")
        assert (frame.color_range == FULL or frame.format.name.startswith("yuvj")) == full
        assert np.abs(bgr.astype(int) - picture(number)).mean() < 2.5  # a wrong range or matrix costs 6 or more


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_film_of_an_upright_phone_is_upright(tmp_path, degrees):
    source = write_film(tmp_path / "in.mp4", sound=False)
    turn(source, degrees)
    copy(source, tmp_path / "out.mp4")
    wanted = np.rot90(picture(3), -degrees // 90)  # a display matrix turns clockwise
    for path in (source, tmp_path / "out.mp4"):
        bgr, frame = frames(path)[3]
        assert bgr.shape == wanted.shape and np.abs(bgr.astype(int) - wanted).mean() < 1.5
    assert frame.rotation == 0


def test_odd_sizes(tmp_path):
    source = write_film(tmp_path / "in.mp4", sound=False, make=lambda number: picture(number, 63, 47))
    copy(source, tmp_path / "out.mp4")
    assert frames(tmp_path / "out.mp4")[0][0].shape == (47, 63, 3)


def test_what_the_new_kind_cannot_hold_is_named_and_left_out(tmp_path):
    source = write_film(tmp_path / "in.mp4")
    (left_out,) = copy(source, tmp_path / "out.webm", codec="libvpx-vp9", crf=30)
    assert "audio" in left_out and "aac" in left_out
    assert len(frames(tmp_path / "out.webm")) == len(TIMES)


def test_what_is_no_film(tmp_path):
    (tmp_path / "text.mp4").write_text("no film")
    with av.open(str(tmp_path / "tone.wav"), "w") as film:
        tone = film.add_stream("pcm_s16le", rate=8000)
        piece = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        piece.sample_rate = 8000
        film.mux(tone.encode(piece))
        film.mux(tone.encode(None))
    for name, message in (
        ("text.mp4", "cannot be read"),
        ("tone.wav", "has no pictures"),
        ("none.mp4", "cannot be read"),
    ):
        with pytest.raises(VideoError, match=f"{name}: {message}"):
            Video(tmp_path / name)


def test_a_cut_off_film_ends_where_it_is_cut_off(tmp_path):
    source = write_film(tmp_path / "in.mkv", sound=False)
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 2 // 3])
    assert 0 < len(frames(source)) < len(TIMES)


def test_an_unknown_codec_or_kind_leaves_nothing(tmp_path):
    source = write_film(tmp_path / "in.mp4", sound=False)
    with pytest.raises(OptionError, match="codec 'libx999'"):
        copy(source, tmp_path / "out.mp4", codec="libx999")
    with pytest.raises(VideoError, match=r"out\.abc: cannot be written"):
        copy(source, tmp_path / "out.abc")
    assert not list(tmp_path.glob("*unfinished*")) and not list(tmp_path.glob(".*"))
