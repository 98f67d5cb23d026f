"""What BasicSR registers, used here, and what is registered here, used by BasicSR: metrics and datasets, with its own classes."""

import cv2
import pytest
import torch
from skimage import data

import sgpn_data
from sgpn_arch.registry import METRIC_REGISTRY, load_basicsr
from sgpn_model.config.registries import build_metric, is_metric
from sgpn_model.evaluate.metrics import niqe, psnr
from sgpn_model.evaluate.report import heading


@pytest.fixture(autouse=True)
def basicsr():
    load_basicsr()


def pictures(size=256):
    """A face, and the same face blurred: (1, 3, size, size) each."""
    photo = cv2.resize(data.astronaut()[30:158, 160:288, ::-1], (size, size))
    return tuple(sgpn_data.tensors.to_tensor(image)[None] for image in (photo, cv2.GaussianBlur(photo, (0, 0), 2)))


def test_its_psnr_is_ours():
    truth, blurred = pictures()
    assert build_metric("calculate_psnr")(blurred, truth) == pytest.approx(psnr()(blurred, truth), abs=1e-6)


def test_its_niqe_is_called_without_the_truth():
    truth, _ = pictures()
    metric = build_metric("calculate_niqe")
    assert not metric.needs_reference and metric.min_size == 192
    assert metric(truth) == pytest.approx(niqe()(truth), abs=1e-6)


def test_the_table_says_which_way_is_better():
    assert [heading(name) for name in ("calculate_psnr", "calculate_niqe")] == [
        "calculate_psnr, dB ↑",
        "calculate_niqe ↓",
    ]


def test_every_metric_of_basicsrs_is_named_or_not_one():
    """Those for tensors are the same again, and have another call."""
    theirs = {name for name, found in METRIC_REGISTRY if found.__module__.startswith("basicsr.")}
    assert {name for name in theirs if is_metric(METRIC_REGISTRY.get(name))} == {
        "calculate_psnr", "calculate_ssim", "calculate_niqe",
    }  # fmt: skip


def test_a_function_that_does_not_say_which_way_is_better_is_no_metric():
    def calculate_mean(img, **kwargs):
        return img.mean()

    assert not is_metric(calculate_mean)
    calculate_mean.higher_is_better = True
    assert is_metric(calculate_mean)


def test_basicsr_builds_our_dataset_and_its_loader(tmp_path):
    from basicsr.data import build_dataloader, build_dataset

    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), data.astronaut()[30:94, 160:224, ::-1])
    sgpn_data.register_datasets()
    options = {
        "name": "faces",
        "type": "FaceRestorationDataset",
        "phase": "train",
        "dataroot": str(tmp_path),
        "size": 64,
        # what BasicSR's loop and loader read
        "use_shuffle": True,
        "dataset_enlarge_ratio": 10,
        "prefetch_mode": None,
        "pin_memory": False,
        "num_worker_per_gpu": 0,
        "batch_size_per_gpu": 3,
    }
    dataset = build_dataset(options)
    assert type(dataset) is sgpn_data.face_dataset.FaceRestorationDataset
    (batch,) = build_dataloader(dataset, options)
    assert batch["lq"].shape == batch["hq"].shape == (3, 3, 64, 64)
    assert not torch.equal(batch["lq"], batch["hq"])
    with pytest.raises((KeyError, ValueError), match="degradatoin"):
        build_dataset({**options, "degradatoin": {}})
