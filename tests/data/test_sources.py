"""LMDBs and shards: the same items as the folder bit by bit, in every process; damaged ones say so; others' tools read them."""

import io
import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
import torch
from skimage.data import astronaut
from torch.utils.data import DataLoader

from oracles.script import load_script
from sgpn_data import build_dataset, register_datasets, sources

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_lmdb.py"


@pytest.fixture(scope="module")
def packer():
    return load_script("make_lmdb")


@pytest.fixture
def folder(tmp_path):
    """Five pictures of several kinds and sizes, one in a subfolder; landmarks for all but one."""
    photo = np.ascontiguousarray(astronaut()[..., ::-1])
    names = ["b.png", "a.jpg", "deep/c.webp", "d.bmp", "e.png"]
    rng = np.random.default_rng(0)
    root = tmp_path / "faces"
    (root / "deep").mkdir(parents=True)
    for number, name in enumerate(names):
        side = 64 + 16 * number
        assert cv2.imwrite(str(root / name), photo[60 : 60 + side, 160 : 160 + side])
    known = {name: rng.uniform(5, 60, (68, 2)).tolist() for name in names[:-1]}
    (root / sources.LANDMARKS_FILE).write_text(json.dumps(known))
    return root


@pytest.fixture
def packed(packer, folder):
    target = folder.with_suffix(".lmdb")
    assert packer.make_lmdb(folder, target) == 5
    yield target
    sources.close_environment(target)


def dataset(root, **options):
    return build_dataset({"type": "FaceRestorationDataset", "dataroot": str(root), "size": 48, **options})


def same(first, second):
    """Also the names, relative to their roots; unknown landmarks are NaN in both."""
    tensors = all(
        torch.equal(first[key].nan_to_num(-1), second[key].nan_to_num(-1))
        for key in ("lq", "hq", "points5", "landmarks68")
    )
    return (
        tensors
        and first["path"].split("faces")[1].split("/", 1)[1] == second["path"].split("faces")[1].split("/", 1)[1]
    )


def same_items(folder, dense_root, workers):
    """Two epochs of a dataset's five items are the folder's."""
    loose, dense = dataset(folder), dataset(dense_root)
    assert len(loose) == len(dense) == 5
    for epoch in (0, 1):
        dense.set_epoch(epoch)
        loose.set_epoch(epoch)
        items = list(DataLoader(dense, batch_size=None, num_workers=workers))
        assert all(same(loose[index], item) for index, item in enumerate(items))


class TestItems:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_are_those_of_the_folder_bit_by_bit(self, folder, packed, workers):
        same_items(folder, packed, workers)

    def test_in_memory_and_mixed_with_a_folder(self, folder, packed):
        loose = dataset(folder)
        cached = dataset(packed, cache="ram")
        assert all(same(loose[index], cached[index]) for index in range(5))
        both = build_dataset({"type": "FaceRestorationDataset", "dataroot": [str(folder), str(packed)], "size": 48})
        assert len(both) == 10 and both[7]["path"] == str(packed / "d.bmp")

    def test_min_size_needs_no_decoding(self, folder, packed):
        for size, count in ((1, 5), (80, 4), (128, 1)):
            assert len(dataset(packed, min_size=size)) == len(dataset(folder, min_size=size)) == count

    def test_after_a_fork_in_mid_use(self, folder, packed):
        """The parent has read already, so the worker inherits an open database, which it must not use."""
        loose, dense = dataset(folder), dataset(packed)
        assert same(loose[0], dense[0])
        items = list(DataLoader(dense, batch_size=None, num_workers=1))
        assert all(same(loose[index], item) for index, item in enumerate(items))
        assert same(loose[1], dense[1]), "and the parent goes on with its own"

    def test_two_datasets_of_one_database(self, packed):
        assert same(dataset(packed, phase="val")[2], dataset(packed, phase="val")[2])

    def test_is_pickled_without_the_open_database(self, packed):
        source = sources.open_source(packed)
        first = source.encoded(source.paths[0])
        again = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(again.encoded(again.paths[0]), first)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            np.testing.assert_array_equal(pool.apply(source.encoded, (source.paths[0],)), first)


class TestPacking:
    def test_files_go_in_as_they_are_in_basicsrs_layout(self, folder, packed):
        """Read by BasicSR's own client, with keys as its datasets take them from meta_info.txt: up to the first dot."""
        lines = (packed / "meta_info.txt").read_text().splitlines()
        assert lines[0] == "a.jpg (80,80,3) 0"
        keys = [line.split(".")[0] for line in lines]
        assert keys == ["a", "b", "d", "deep/c", "e"]
        register_datasets()  # without which BasicSR cannot be imported beside a new torchvision
        from basicsr.utils.file_client import FileClient

        client = FileClient("lmdb", db_paths=str(packed))
        assert client.get("deep/c", "default") == (folder / "deep/c.webp").read_bytes()
        assert client.get("a", "default") == (folder / "a.jpg").read_bytes()
        client.client._client["default"].close()

    def test_reads_what_basicsr_wrote(self, tmp_path):
        """BasicSR names all pictures .png and gives the level of compression."""
        root = tmp_path / "theirs.lmdb"
        picture = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        environment = lmdb.open(str(root), map_size=1 << 20)
        with environment.begin(write=True) as transaction:
            transaction.put(b"x", cv2.imencode(".png", picture)[1].tobytes())
        environment.close()
        (root / "meta_info.txt").write_text("x.png (48,48,3) 1\n")
        item = dataset(root, degradation=None, use_hflip=False)[0]
        np.testing.assert_allclose((item["hq"].numpy() + 1) * 127.5, picture[..., ::-1].transpose(2, 0, 1), atol=1e-3)

    def test_names_what_it_leaves_out(self, packer, folder, capsys):
        (folder / "b.png").write_bytes(b"not a picture")
        cv2.imwrite(str(folder / "d.bmp"), np.zeros((10, 20, 3), np.uint8))
        assert packer.make_lmdb(folder, folder.with_suffix(".lmdb")) == 3
        told = capsys.readouterr().err
        assert "b.png is left out: it cannot be read" in told and "d.bmp is left out: it is 20x10" in told

    def test_refuses_and_leaves_nothing_behind(self, packer, folder, tmp_path):
        with pytest.raises(packer.PackingError, match="must end in .lmdb"):
            packer.make_lmdb(folder, tmp_path / "faces.db")
        shutil.copyfile(folder / "b.png", folder / "a.png")
        with pytest.raises(
            packer.PackingError, match="a.jpg and .*a.png differ in their suffix only|a.png and .*a.jpg"
        ):
            packer.make_lmdb(folder, tmp_path / "x.lmdb")
        (tmp_path / "empty").mkdir()
        with pytest.raises(packer.PackingError, match="no usable image"):
            packer.make_lmdb(tmp_path / "empty", tmp_path / "x.lmdb")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "faces"]

    def test_command(self, folder, tmp_path):
        def run(*arguments):
            return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)

        done = run(folder, tmp_path / "faces.lmdb")
        assert done.returncode == 0 and "5 images" in done.stdout, done.stderr
        again = run(folder, tmp_path / "faces.lmdb")
        assert again.returncode == 1 and "exists already" in again.stderr


class TestDamage:
    def test_cut_short(self, packed):
        """LMDB itself would die of a bus error when it reads past the end."""
        data = packed / "data.mdb"
        data.write_bytes(data.read_bytes()[: 3 * data.stat().st_size // 4])
        with pytest.raises(
            ValueError, match=r"faces.lmdb cannot be read as an LMDB: .*cut short; make it again: python scr"
        ):
            dataset(packed)

    def test_no_database(self, packed):
        (packed / "data.mdb").write_bytes(b"x" * 9000)
        with pytest.raises(ValueError, match="faces.lmdb cannot be read as an LMDB"):
            dataset(packed)
        (packed / "data.mdb").unlink()
        with pytest.raises(ValueError, match="faces.lmdb cannot be read as an LMDB"):
            dataset(packed)

    def test_meta_info(self, packed):
        meta = packed / "meta_info.txt"
        whole = meta.read_text()
        meta.write_text(whole + "more.png (64,64,3) 1\n")
        with pytest.raises(ValueError, match="holds 5 images, its meta_info.txt names 6"):
            dataset(packed)
        meta.write_text("a.jpg\n")
        with pytest.raises(ValueError, match="expected 'NAME.png"):
            dataset(packed)
        meta.write_text("")
        with pytest.raises(ValueError, match="holds no images"):
            dataset(packed)
        meta.unlink()
        with pytest.raises(FileNotFoundError, match="meta_info.txt is missing"):
            dataset(packed)

    def test_a_picture_that_is_none_is_left_out(self, packed):
        meta = packed / "meta_info.txt"
        meta.write_text(meta.read_text().replace("b.png", "bb.png"))
        faces = dataset(packed)
        assert faces[1]["path"].endswith("d.bmp") and faces.unusable_count == 1

    def test_missing_package(self, packed, monkeypatch):
        monkeypatch.setitem(sys.modules, "lmdb", None)
        with pytest.raises(ValueError, match="needs the package lmdb: pip install lmdb"):
            dataset(packed)


class TestShards:
    @pytest.fixture
    def shards(self, folder):
        """Two shards of the folder's pictures, written by WebDataset's own writer; landmarks in .json files."""
        webdataset = pytest.importorskip("webdataset")
        root = folder.with_name("faces.shards")
        root.mkdir()
        known = json.loads((folder / sources.LANDMARKS_FILE).read_text())
        names = ["e.png", "deep/c.webp", "a.jpg", "d.bmp", "b.png"]
        for number, group in enumerate((names[:3], names[3:])):
            with webdataset.TarWriter(str(root / f"{number:06}.tar"), encoder=False) as writer:
                for name in group:
                    key, _, suffix = name.rpartition(".")
                    sample = {"__key__": key, suffix: (folder / name).read_bytes()}
                    if name in known:
                        sample["json"] = json.dumps({"landmarks68": known[name], "source": "x"}).encode()
                    writer.write(sample)
        return root

    @pytest.mark.parametrize("workers", [0, 2])
    def test_are_those_of_the_folder_bit_by_bit(self, folder, shards, workers):
        same_items(folder, shards, workers)

    def test_options(self, folder, shards):
        for size, count in ((1, 5), (80, 4), (128, 1)):
            assert len(dataset(shards, min_size=size)) == count
        assert dataset(shards, landmarks=None)[0]["landmarks68"].isnan().all()
        for split in ("train", "val"):
            names = [
                sorted(
                    path.relative_to(root).as_posix() for each in sources.open_split(root, split) for path in each.paths
                )
                for root in (folder, shards)
            ]
            assert names[0] == names[1]

    def test_a_folder_packed_by_tar(self, folder, tmp_path):
        """With its landmarks in one file beside the shards, as a folder has them."""
        root = tmp_path / "faces.packed"
        root.mkdir()
        with tarfile.open(root / "all.tar", "w") as tar:
            tar.add(folder, ".")
        shutil.copyfile(folder / sources.LANDMARKS_FILE, root / sources.LANDMARKS_FILE)
        loose, dense = dataset(folder), dataset(root)
        assert len(dense) == 5 and all(same(loose[index], dense[index]) for index in range(5))

    def test_damage(self, folder, shards, caplog):
        whole = (shards / "000001.tar").read_bytes()
        (shards / "000001.tar").write_bytes(whole[: len(whole) // 3])
        with pytest.raises(ValueError, match=r"000001.tar was cut short in|000001.tar cannot be read as a tar file"):
            dataset(shards)
        (shards / "000001.tar").write_bytes(b"x" * 2000)
        with pytest.raises(ValueError, match=r"000001.tar cannot be read as a tar file"):
            dataset(shards)
        shutil.copyfile(shards / "000000.tar", shards / "000001.tar")
        assert len(dataset(shards)) == 3 and "is there twice, of which the first is used (4 more" in caplog.text

    def test_landmarks_that_are_none(self, shards, caplog):
        picture = cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
        with tarfile.open(shards / "000002.tar", "w") as tar:
            for name, data in (("x.png", picture), ("x.json", b'{"landmarks68": [[1, 2]]}')):
                about = tarfile.TarInfo(name)
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))
        faces = dataset(shards)
        assert (
            faces[5]["path"].endswith("a.jpg")
            and "x.png is left out: its landmarks have the shape (1, 2)" in caplog.text
        )
