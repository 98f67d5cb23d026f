"""Tests of FaceRestorationDataset: determinism, landmarks through resizing and flips, bad files, options."""

import json
import logging
import math
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage.data import astronaut
from torch.utils.data import DataLoader

from oracles.degradation import degrade
from sgpn_arch.errors import OptionError
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_data import build_dataset, register_datasets, sources
from sgpn_data import face_dataset as fd
from sgpn_data.alignment import template_points
from sgpn_data.sources import split_of
from sgpn_data.tensors import to_images
from sgpn_model.train import batches

FACES = os.environ.get("SGPN_TEST_FACES")
needs_faces = pytest.mark.skipif(not FACES, reason="SGPN_TEST_FACES names no folder of aligned faces with landmarks")

# The iBUG points that lie on the mirror axis of a face: they must stay where they are under the permutation.
ON_AXIS = [8, 27, 28, 29, 30, 33, 51, 57, 62, 66]


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


@pytest.fixture
def folder(tmp_path):
    """Six 96 px pictures; landmarks for all but the last."""
    photo = np.ascontiguousarray(astronaut()[..., ::-1])
    rng = np.random.default_rng(0)
    known = {}
    for number in range(6):
        top, left = rng.integers(0, 400, size=2)
        write(tmp_path / "faces" / f"{number}.png", photo[top : top + 96, left : left + 96])
        known[f"{number}.png"] = rng.uniform(10, 85, (68, 2)).tolist()
    del known["5.png"]
    (tmp_path / "faces" / "landmarks68.json").write_text(json.dumps(known))
    return tmp_path / "faces"


def dataset(folder, **options):
    return build_dataset({"type": "FaceRestorationDataset", "dataroot": str(folder), "size": 48, **options})


def same(first, second):
    return (
        all(torch.equal(first[key], second[key]) for key in ("lq", "hq", "points5")) and first["path"] == second["path"]
    )


class TestItems:
    def test_registers_by_being_there(self):
        assert "face_dataset" in register_datasets()
        with pytest.raises(KeyError, match="type"):
            build_dataset({})

    def test_what_an_item_holds(self, folder):
        item = dataset(folder, use_hflip=False)[2]
        assert item["lq"].shape == item["hq"].shape == (3, 48, 48)
        assert item["lq"].dtype == item["hq"].dtype == item["points5"].dtype == torch.float32
        assert item["lq"].abs().max() <= 1 and not torch.equal(item["lq"], item["hq"])
        stored = cv2.imread(item["path"])
        expected = cv2.resize(stored, (48, 48), interpolation=cv2.INTER_AREA)[..., ::-1] / 127.5 - 1
        np.testing.assert_allclose(item["hq"].permute(1, 2, 0).numpy(), expected, atol=1e-5)

    def test_no_degradation_leaves_the_photo(self, folder):
        item = dataset(folder, degradation=None)[0]
        assert torch.equal(item["lq"], item["hq"])

    @pytest.mark.parametrize("flip", [False, True])
    def test_lq_is_the_degraded_hq(self, folder, flip):
        """Replayed from the item's generator: one number for the flip, then the degradation's, on the picture as shown."""
        faces = dataset(folder, use_hflip=flip, seed=4, degradation={"preset": "codeformer", "jpeg": None})
        faces.set_epoch(2)
        for index in range(6):
            item, rng = faces[index], np.random.default_rng([4, 2, index])
            rng.random()
            bgr = (item["hq"].numpy()[::-1].transpose(1, 2, 0) + 1.0) / 2
            wanted = degrade(bgr, faces.degradation.sample(rng, 48), rng)
            np.testing.assert_allclose(item["lq"].numpy(), wanted[..., ::-1].transpose(2, 0, 1) * 2 - 1, atol=2e-4)

    def test_unknown_landmarks(self, folder):
        item = dataset(folder, use_hflip=False, template="gpen")[5]
        assert item["landmarks68"].isnan().all()
        np.testing.assert_allclose(item["points5"].numpy(), template_points("gpen", 48), atol=1e-4)
        item = dataset(folder, use_hflip=False, landmarks=None)[1]
        assert item["landmarks68"].isnan().all()

    def test_small_images_are_enlarged_with_one_warning(self, folder, caplog):
        faces = dataset(folder, size=128)
        with caplog.at_level(logging.WARNING, "sgpn"):
            assert faces[0]["hq"].shape == faces[1]["hq"].shape == (3, 128, 128)
        assert caplog.text.count("min_size") == 1
        for item in (faces[0], dataset(folder, size=128, cache="ram")[1]):
            assert item["stored_size"] == cv2.imread(item["path"]).shape[0] < 128


class TestInpainting:
    def test_a_white_hole_of_the_drawn_area(self, folder):
        faces = dataset(folder, degradation=None, inpaint={"area": [0.1, 0.2]})
        for item in (faces[index] for index in range(6)):
            mask = item["mask"]
            assert mask.shape == (1, 48, 48) and mask.dtype == torch.float32 and set(mask.unique().tolist()) == {0, 1}
            assert 0.1 - 1e-3 <= mask.mean() <= 0.2 + 1e-3
            hole = mask.bool().expand(3, -1, -1)
            assert (item["lq"][hole] - 1).abs().max() < 1e-6
            assert torch.equal(item["lq"][~hole], item["hq"][~hole])

    def test_only_some_pictures_have_a_hole(self, folder):
        faces, holes = dataset(folder, degradation=None, inpaint={"probability": 0.3}), []
        for epoch in range(40):
            faces.set_epoch(epoch)
            holes += [bool(faces[index]["mask"].any()) for index in range(6)]
            assert torch.equal(faces[0]["lq"], faces[0]["hq"]) != holes[-6]
        assert 0.2 < np.mean(holes) < 0.4

    def test_the_hole_is_cut_into_the_degraded_photo(self, folder):
        """The last of an item's draws, so all else is as without it."""
        degradation = {"preset": "codeformer", "reference_size": 512}
        plain, cut = (dataset(folder, degradation=degradation, inpaint=inpaint) for inpaint in (None, {}))
        for index in range(6):
            before, after = plain[index], cut[index]
            hole = after["mask"].bool().expand(3, -1, -1)
            assert torch.equal(before["lq"][~hole], after["lq"][~hole]) and (after["lq"][hole] - 1).abs().max() < 1e-6
            assert all(torch.equal(before[key], after[key]) for key in ("hq", "points5"))
            assert "mask" not in before

    def test_every_epoch_and_picture_has_its_own(self, folder):
        faces = dataset(folder, inpaint={})
        first = [faces[index]["mask"] for index in range(2)]
        assert not torch.equal(*first) and torch.equal(first[0], faces[0]["mask"])
        faces.set_epoch(1)
        assert not torch.equal(first[0], faces[0]["mask"])
        held = dataset(folder, inpaint={}, phase="val")
        before = held[0]["mask"]
        held.set_epoch(1)
        assert torch.equal(before, held[0]["mask"])

    def test_wrong_options(self, folder):
        with pytest.raises(OptionError, match="inpaint.aera: unknown option.*'area'"):
            dataset(folder, inpaint={"aera": 0.2})
        with pytest.raises(ValueError, match="inpaint: expected a mapping"):
            dataset(folder, inpaint=True)


class TestFlips:
    def test_the_mirror_order_is_the_ibug_figures(self):
        """The pairs written down from the iBUG figure; every point is in one of them or on the axis."""
        pairs = [(i, 16 - i) for i in range(8)] + [(17, 26), (18, 25), (19, 24), (20, 23), (21, 22)]
        pairs += [(31, 35), (32, 34), (36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46)]
        pairs += [(48, 54), (49, 53), (50, 52), (55, 59), (56, 58), (60, 64), (61, 63), (65, 67)]
        assert sorted([*np.ravel(pairs), *ON_AXIS]) == list(range(68))
        assert all(fd.MIRROR_68[a] == b and fd.MIRROR_68[b] == a for a, b in pairs)
        assert all(fd.MIRROR_68[i] == i for i in ON_AXIS)

    def test_the_mean_face_mirrors_onto_itself(self):
        """Of a symmetric face, each point's mirror image is nearest to its partner."""
        model = MorphableModel.open()
        points = model.shape_mean[model.landmarks].double()
        distances = torch.cdist(points * torch.tensor([-1.0, 1, 1], dtype=torch.float64), points)
        assert distances.argmin(dim=1).tolist() == fd.MIRROR_68.tolist()

    @pytest.mark.parametrize("stored, size", [(96, 96), (96, 48), (96, 36), (48, 96)])
    def test_points_stay_on_what_they_mark(self, tmp_path, stored, size):
        """A blue, a green and a red blob at three landmarks: their centres of mass in the item, plain and mirrored."""
        rng = np.random.default_rng(0)
        known = rng.uniform(0.3, 0.7, (68, 2)) * stored
        marked = {2: 36, 1: 42, 0: 8}  # plane of RGB: landmark
        y, x = np.mgrid[:stored, :stored]
        picture = np.zeros((stored, stored, 3))
        for plane, index in marked.items():
            picture[..., 2 - plane] = 255 * np.exp(-((x - known[index, 0]) ** 2 + (y - known[index, 1]) ** 2) / 18)
        for number in range(8):
            write(tmp_path / f"{number}.png", np.rint(picture).astype(np.uint8))
        (tmp_path / "landmarks68.json").write_text(json.dumps({f"{i}.png": known.tolist() for i in range(8)}))
        faces = dataset(tmp_path, size=size, degradation=None)
        grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="xy"), dim=-1).double()
        seen = set()
        for item in (faces[index] for index in range(8)):
            light = (item["hq"].double() + 1).unsqueeze(-1)
            centres = (light * grid).sum(dim=(1, 2)) / light.sum(dim=(1, 2))
            flipped = float(centres[0, 0] - centres[1, 0]) * (known[8, 0] - known[42, 0]) < 0
            seen.add(flipped)
            partner = {36: 45, 42: 39, 8: 8} if flipped else {36: 36, 42: 42, 8: 8}
            for plane, index in marked.items():
                found = item["landmarks68"][partner[index]].double()
                torch.testing.assert_close(centres[plane], found, atol=0.05, rtol=0)
        assert seen == {False, True}

    def test_the_five_points_are_those_of_the_mirrored_landmarks(self, folder):
        faces = dataset(folder, degradation=None)
        for item in (faces[index] for index in range(5)):
            points = item["landmarks68"].double().numpy()
            eyes = [sum(points[i] for i in range(first, first + 6)) / 6 for first in (36, 42)]
            wanted = [*eyes, points[30], points[48], points[54]]
            np.testing.assert_allclose(item["points5"].numpy(), wanted, atol=1e-3)

    def test_the_template_mirrors_too(self, folder):
        """Of a face without landmarks; and the picture is the mirrored picture."""
        plain, flipping = (dataset(folder, use_hflip=flip, template="gpen") for flip in (False, True))
        flips = 0
        for epoch in range(8):
            flipping.set_epoch(epoch)
            before, after = plain[5], flipping[5]
            x, y = np.array(template_points("gpen", 48)).T
            if not torch.equal(before["hq"], after["hq"]):
                flips += 1
                assert torch.equal(before["hq"].flip(-1), after["hq"])
                x, y = 47 - x[[1, 0, 2, 4, 3]], y[[1, 0, 2, 4, 3]]
            np.testing.assert_allclose(after["points5"].numpy(), np.stack([x, y], axis=1), atol=1e-4)
        assert 0 < flips < 8

    def test_flipping_half_of_the_time(self, folder):
        faces = dataset(folder, degradation=None, cache="ram")
        plain = dataset(folder, degradation=None, use_hflip=False)
        originals = [plain[index]["hq"] for index in range(6)]
        flips = 0
        for epoch in range(50):
            faces.set_epoch(epoch)
            flips += sum(not torch.equal(faces[index]["hq"], originals[index]) for index in range(6))
        assert 110 < flips < 190


class TestDeterminism:
    def test_independent_of_the_workers(self, folder):
        faces = dataset(folder)
        faces.set_epoch(3)
        alone, together = (list(DataLoader(faces, batch_size=None, num_workers=n)) for n in (0, 2))
        assert all(same(a, b) for a, b in zip(alone, together, strict=True))

    def test_live_workers_see_the_new_epoch(self, folder):
        faces = dataset(folder)
        loader = DataLoader(faces, batch_size=None, num_workers=1, persistent_workers=True)
        for epoch in (0, 1):
            faces.set_epoch(epoch)
            assert all(same(item, faces[index]) for index, item in enumerate(loader))

    def test_epochs_and_seeds_differ(self, folder):
        faces, other = dataset(folder, use_hflip=False), dataset(folder, use_hflip=False, seed=1)
        first = faces[0]
        assert not torch.equal(first["lq"], other[0]["lq"])
        faces.set_epoch(1)
        assert not torch.equal(first["lq"], faces[0]["lq"])
        faces.set_epoch(0)
        assert same(first, faces[0])

    def test_validation_is_the_same_in_every_epoch(self, folder):
        faces = dataset(folder, phase="val")
        first = faces[1]
        faces.set_epoch(9)
        assert same(first, faces[1])

    def test_the_cache_changes_nothing(self, folder):
        cached, read = dataset(folder, cache="ram"), dataset(folder)
        assert all(same(cached[index], read[index]) for index in range(6))


class TestBadFiles:
    @pytest.mark.parametrize("cache", ["none", "ram"])
    def test_bad_images_are_named_counted_and_replaced(self, folder, caplog, cache):
        (folder / "2.png").write_bytes(b"not a picture")
        (folder / "3.png").write_bytes(b"")
        write(folder / "4.png", np.zeros((40, 60, 3), np.uint8))
        with caplog.at_level(logging.WARNING, "sgpn"):
            faces = dataset(folder, cache=cache)
            item = faces[2]
            faces[2]
        assert item["path"].endswith("5.png") and item["landmarks68"].isnan().all()
        assert sorted(faces.unusable) == [2, 3, 4] and faces.unusable_count == 3
        assert caplog.text.count("is left out") == 3
        assert "2.png" in caplog.text and "60x40, not square" in caplog.text

    def test_the_main_process_counts_what_workers_leave_out(self, folder):
        """Each bad image once, whichever workers meet it and however often."""
        (folder / "2.png").write_bytes(b"not a picture")
        (folder / "4.png").write_bytes(b"")
        faces = dataset(folder)
        assert faces.unusable_count == 0
        for epoch in range(2):
            faces.set_epoch(epoch)
            paths = [Path(item["path"]).name for item in DataLoader(faces, batch_size=None, num_workers=2)]
            assert paths == ["0.png", "1.png", "3.png", "3.png", "5.png", "5.png"]
            assert faces.unusable_count == 2

    def test_a_header_that_says_more_pixels_than_there_can_be(self, folder, caplog):
        head = struct.pack(">II5B", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
        chunk = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
        (folder / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
        (folder / "1.bmp").write_bytes(
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 90, 0, 0, 54, 40, 2**30, 2**30, 1, 24, *[0] * 6)
        )
        faces = dataset(folder, min_size=2)
        assert faces[0]["path"].endswith("1.png") and 0 in faces.unusable and faces[1]["path"].endswith("1.png")
        assert "0.png is left out: it cannot be read as an image" in caplog.text

    def test_pictures_of_other_depths(self, folder, caplog):
        grey = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
        write(folder / "0.png", grey)
        write(folder / "00.tif", np.zeros((64, 64, 3), np.float32))
        sources._DEEP.clear()
        faces = dataset(folder, size=64, degradation=None, use_hflip=False)
        shown = to_images(faces[0]["hq"][None])[0]
        np.testing.assert_array_equal(shown, np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, 2))
        assert caplog.text.count("0.png has 16 bits a channel, of which the upper 8 are used") == 1
        assert faces[1]["path"].endswith("1.png") and "numbers of type float32; save it with 8 bits" in caplog.text

    def test_what_is_no_file_deserves_a_word(self, folder, caplog):
        (folder / "6.png").mkdir()
        write(folder / "6.png" / "7.png", np.zeros((64, 64, 3), np.uint8))
        os.mkfifo(folder / "8.png")
        assert len(dataset(folder)) == 7
        assert "6.png is no file, so it is left out (1 more like it)" in caplog.text

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
    def test_a_folder_of_no_pictures_some_of_which_cannot_be_read(self):
        with pytest.raises(OptionError, match=r"^datasets.train: dataset: /proc/self holds no images"):
            batches.build_dataset({"type": "FaceRestorationDataset", "dataroot": "/proc/self"}, "train")

    def test_none_is_usable_and_training_says_so_before_it_begins(self, tmp_path):
        for name in ("a.jpg", "b.png"):
            (tmp_path / name).write_bytes(b"x")
        expected = "datasets.val: dataset: none of the 2 images can be used; the first is .*a.jpg: it cannot be read"
        with pytest.raises(OptionError, match=expected):
            batches.build_dataset({"type": "FaceRestorationDataset", "dataroot": str(tmp_path)}, "val")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[" * 100_000, "is not JSON of the form"),
            (json.dumps({"0.png": [[10**400, 1]] * 68}), "0.png: its landmarks are no 68 x"),
            (json.dumps({"0.png": [[math.nan, 1]] * 68}), "0.png: its landmarks have a point that is not finite"),
        ],
    )
    def test_landmarks_that_are_none(self, folder, text, message):
        (folder / "landmarks68.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            dataset(folder)

    def test_landmarks_of_other_pictures_deserve_a_word(self, folder, caplog):
        (folder / "landmarks68.json").write_text(json.dumps({"elsewhere/0.png": [[1, 2]] * 68}))
        assert dataset(folder)[0]["landmarks68"].isnan().all()
        assert "names no picture of" in caplog.text

    def test_a_file_that_vanishes_is_replaced(self, folder):
        faces = dataset(folder)
        (folder / "0.png").unlink()
        assert faces[0]["path"].endswith("1.png")

    def test_nothing_usable(self, tmp_path):
        (tmp_path / "a.jpg").write_bytes(b"x")
        with pytest.raises(ValueError, match="none of the 1 images"):
            dataset(tmp_path)[0]

    def test_min_size(self, folder):
        write(folder / "small.png", np.zeros((20, 20, 3), np.uint8))
        assert len(dataset(folder)) == 7
        assert len(dataset(folder, min_size=96)) == 6
        with pytest.raises(ValueError, match="min_size 97"):
            dataset(folder, min_size=97)

    def test_missing_and_empty_folders(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            dataset(tmp_path / "nowhere")
        with pytest.raises(ValueError, match="holds no images"):
            dataset(tmp_path)
        with pytest.raises(ValueError, match="dataroot: this option is missing"):
            build_dataset({"type": "FaceRestorationDataset"})

    def test_several_folders(self, folder, tmp_path):
        write(tmp_path / "more" / "deep" / "x.png", np.zeros((48, 48, 3), np.uint8))
        faces = dataset(folder)
        both = build_dataset(
            {"type": "FaceRestorationDataset", "dataroot": [str(folder), tmp_path / "more"], "size": 48}
        )
        assert len(both) == 7 and both[6]["path"].endswith("x.png")
        assert same(both[0], faces[0])

    def test_landmark_files(self, folder, tmp_path):
        with pytest.raises(FileNotFoundError, match="no.json"):
            dataset(folder, landmarks=str(tmp_path / "no.json"))
        with pytest.raises(ValueError, match="one each"):
            dataset(folder, landmarks=[folder / "landmarks68.json"] * 2)
        (tmp_path / "bad.json").write_text('{"0.png": [[1, 2]]}')
        with pytest.raises(ValueError, match=r"0\.png: its landmarks have the shape"):
            dataset(folder, landmarks=tmp_path / "bad.json")
        (tmp_path / "bad.json").write_text("[]")
        with pytest.raises(ValueError, match="bad.json is not JSON of the form"):
            dataset(folder, landmarks=tmp_path / "bad.json")


class TestSplit:
    """Which pictures of a folder are to train on, and which are held back."""

    NAMES = [f"{number:03d}.png" for number in range(60)]

    @pytest.fixture
    def flat(self, tmp_path):
        for name in self.NAMES:
            write(tmp_path / "flat" / name, np.zeros((16, 16, 3), np.uint8))
        return tmp_path / "flat"

    @staticmethod
    def names(root, split, **options):
        return [Path(path).name for path in dataset(root, split=split, **options).paths]

    def test_a_hash_holds_one_in_ten_back(self, flat):
        train, val = (self.names(flat, split) for split in ("train", "val"))
        assert sorted(train + val) == self.NAMES and train and val
        parts = [split_of(Path(f"face_{number}.jpg")) for number in range(5000)]
        assert 0.085 < parts.count("val") / len(parts) < 0.115

    def test_it_stays_when_others_come_or_the_folder_moves(self, flat, tmp_path):
        before = self.names(flat, "val")
        for number in range(40):
            write(flat / f"new_{number}.png", np.zeros((16, 16, 3), np.uint8))
        flat.rename(tmp_path / "elsewhere")
        after = self.names(tmp_path / "elsewhere", "val")
        assert [name for name in after if not name.startswith("new")] == before
        assert split_of(Path("a/b.png")) == split_of(Path("a/b.webp"))

    def test_folders_inside_say_it_and_several_are_joined(self, folder, flat, tmp_path):
        (tmp_path / "sorted").mkdir()
        folder.rename(tmp_path / "sorted" / "train")
        write(tmp_path / "sorted" / "other" / "x.png", np.zeros((16, 16, 3), np.uint8))
        assert self.names(tmp_path / "sorted", "train") == [f"{number}.png" for number in range(6)]
        roots = [str(tmp_path / "sorted"), str(flat)]
        options = {"type": "FaceRestorationDataset", "dataroot": roots, "size": 48}
        both = {split: build_dataset({**options, "split": split}) for split in ("train", "val")}
        assert len(both["train"]) == 6 + len(self.names(flat, "train"))
        assert [path.name for path in both["val"].paths] == self.names(flat, "val")  # the other has none
        # Their landmarks come along.
        assert both["train"][0]["landmarks68"].isfinite().all() and both["train"][6]["landmarks68"].isnan().all()

    def test_nothing_to_take_is_an_error_that_says_what_to_do(self, folder, tmp_path):
        (tmp_path / "sorted").mkdir()
        folder.rename(tmp_path / "sorted" / "train")
        with pytest.raises(ValueError, match=r"for split 'val'; add pictures .* or sort them into .*sorted/train and"):
            dataset(tmp_path / "sorted", split="val")
        with pytest.raises(ValueError, match="split: unknown value 'test'"):
            dataset(folder.parent, split="test")


class TestOptions:
    def test_unknown_key(self, folder):
        with pytest.raises(OptionError, match="did you mean 'use_hflip'"):
            dataset(folder, use_flip=True)

    def test_loader_keys_are_left_alone(self, folder):
        assert len(dataset(folder, name="faces", phase="train", batch_size_per_gpu=2, num_worker_per_gpu=0)) == 6

    @pytest.mark.parametrize(
        "options",
        [
            {"size": 0},
            {"size": "big"},
            {"cache": "disk"},
            {"template": "x"},
            {"seed": -1},
            {"min_size": None},
        ],
    )
    def test_bad_values_name_their_key(self, folder, options):
        with pytest.raises(ValueError, match=next(iter(options))):
            dataset(folder, **options)


@needs_faces
class TestRealFaces:
    def test_landmarks_sit_on_the_template(self):
        faces = dataset(FACES, size=256, phase="val", degradation=None)
        points = np.stack([faces[index]["points5"].numpy() for index in range(0, len(faces), 4)])
        assert not faces.unusable
        # Two detectors and many poses: their medians agree within a few pixels of 256.
        np.testing.assert_allclose(np.median(points, axis=0), template_points("ffhq", 256), atol=6)

    def test_degraded_faces_stay_near_but_lose_detail(self):
        faces = dataset(FACES, size=128, phase="val", degradation={"preset": "codeformer", "reference_size": 512})
        for index in range(0, len(faces), 11):
            lq, hq = faces[index]["lq"], faces[index]["hq"]
            assert (lq - hq).abs().mean() < 0.25
            detail = [(image[:, 2:] - 2 * image[:, 1:-1] + image[:, :-2]).abs().mean() for image in (lq, hq)]
            assert detail[0] < detail[1]
