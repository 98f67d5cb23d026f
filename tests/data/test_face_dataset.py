"""Tests of FaceRestorationDataset: determinism, landmarks through resizing and flips, bad files, options."""

import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage.data import astronaut
from torch.utils.data import DataLoader

from sgpn_data import build_dataset, register_datasets
from sgpn_data import face_dataset as fd
from sgpn_data.alignment import template_points

FACES = Path(__file__).parents[3] / "shared" / "faces512" / "val"
needs_faces = pytest.mark.skipif(
    not FACES.is_dir(), reason="the shared face photos (../shared/faces512/val) are absent"
)

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

    def test_landmarks_follow_the_resize(self, folder):
        item = dataset(folder, use_hflip=False)[1]
        stored = np.array(json.loads((folder / "landmarks68.json").read_text())["1.png"])
        np.testing.assert_allclose(item["landmarks68"].numpy(), (stored + 0.5) / 2 - 0.5, atol=1e-4)
        eyes = item["landmarks68"][36:42].mean(0), item["landmarks68"][42:48].mean(0)
        rest = (item["landmarks68"][index] for index in (30, 48, 54))
        torch.testing.assert_close(item["points5"], torch.stack([*eyes, *rest]))

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


class TestFlips:
    def test_mirror_order_is_an_involution_that_keeps_the_axis(self):
        np.testing.assert_array_equal(fd.MIRROR_68[fd.MIRROR_68], np.arange(68))
        assert np.flatnonzero(np.arange(68) == fd.MIRROR_68).tolist() == ON_AXIS

    def test_a_symmetric_face_mirrors_onto_itself(self):
        """Pairs written down from the iBUG figure, apart from the permutation under test."""
        pairs = [
            (0, 16),
            (3, 13),
            (17, 26),
            (21, 22),
            (31, 35),
            (32, 34),
            (36, 45),
            (37, 44),
            (39, 42),
            (40, 47),
        ]
        pairs += [(41, 46), (48, 54), (50, 52), (49, 53), (59, 55), (58, 56), (60, 64), (61, 63), (67, 65)]
        assert all(fd.MIRROR_68[a] == b and fd.MIRROR_68[b] == a for a, b in pairs)

    def test_the_image_and_its_points_flip_together(self, folder):
        plain, flipping = dataset(folder, use_hflip=False), dataset(folder, use_hflip=True)
        flipped = 0
        for index in range(len(plain)):
            before, after = plain[index], flipping[index]
            if torch.equal(before["hq"], after["hq"]):
                torch.testing.assert_close(before["points5"], after["points5"])
                continue
            flipped += 1
            assert torch.equal(before["hq"].flip(-1), after["hq"])
            for key in ("points5", "landmarks68"):
                order = [1, 0, 2, 4, 3] if key == "points5" else fd.MIRROR_68
                mirrored = before[key][order] * torch.tensor([-1, 1]) + torch.tensor([47, 0])
                torch.testing.assert_close(after[key], mirrored, equal_nan=True)
        assert 0 < flipped < len(plain)

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
        assert sorted(faces.unusable) == [2, 3, 4]
        assert caplog.text.count("is left out") == 3
        assert "2.png" in caplog.text and "60x40, not square" in caplog.text

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
        with pytest.raises(ValueError, match="dataroot is missing"):
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
        with pytest.raises(ValueError, match=r"0\.png has points of shape"):
            dataset(folder, landmarks=tmp_path / "bad.json")
        (tmp_path / "bad.json").write_text("[]")
        with pytest.raises(ValueError, match="bad.json is not JSON of the form"):
            dataset(folder, landmarks=tmp_path / "bad.json")


class TestOptions:
    def test_unknown_key(self, folder):
        with pytest.raises(KeyError, match="did you mean 'use_hflip'"):
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
