"""The network of identity_faceres against plain sums with TensorFlow's padding, on a file of random numbers."""

import numpy as np
import pytest
import torch

from sgpn_model.evaluate import faceres
from sgpn_model.evaluate.faceres import FaceRes, faceres_crops, identity_faceres
from sgpn_model.evaluate.metrics import MetricUnavailable
from sgpn_model.weights.catalogue import find_entry


def same(x, kernel, stride):
    """TensorFlow's "same" convolution of x (H, W, I) with kernel (3, 3, I, O), or with each channel its own (3, 3, I, 1)."""
    out = -(-x.shape[0] // stride)
    total = max((out - 1) * stride + 3 - x.shape[0], 0)
    before = total // 2
    padded = np.pad(x, ((before, total - before), (before, total - before), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1))[::stride, ::stride]
    return np.einsum("yxikl,klio->yxo" if kernel.shape[3] > 1 else "yxikl,klio->yxi", windows, kernel, optimize=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file with random numbers, and the features that plain sums give a picture."""
    random = np.random.default_rng(0)
    parts = [np.zeros(faceres.HEADS)]

    def add(*shape, deviation=1.0, mean=0.0):
        parts.append(random.normal(mean, deviation, shape).astype(np.float16))
        return parts[-1].astype(np.float64)

    picture = random.integers(0, 256, (224, 224, 3)).astype(float)
    x = picture - np.array(faceres.BGR_MEAN)
    kernel, bias = add(3, 3, 3, 32, deviation=0.005), add(32, deviation=0.1, mean=0.5)
    parts.append(np.array([6, 0], np.float16))
    x = np.clip(same(x, kernel, 2) + bias, 0, 6)
    for outputs, stride in faceres.PAIRS:
        inputs = x.shape[2]
        kernel, scale, bias = (
            add(3, 3, inputs, 1, deviation=0.4),
            add(inputs, mean=1, deviation=0.1),
            add(inputs, deviation=0.1),
        )
        parts.append(np.array([6, 0], np.float16))
        x = np.clip(same(x, kernel, stride) * scale + bias, 0, 6)
        kernel, bias = add(inputs, outputs, deviation=1.4 / np.sqrt(inputs)), add(outputs, deviation=0.1)
        parts.append(np.array([6, 0], np.float16))
        x = np.clip(x @ kernel + bias, 0, 6)
    path = tmp_path_factory.mktemp("faceres") / "faceres.bin"
    axes = np.array([1, 2], "<i4")
    path.write_bytes(b"".join(part.astype("<f2").tobytes() for part in parts) + axes.tobytes())
    assert path.stat().st_size == find_entry("faceres").size
    return path, picture, x.mean(axis=(0, 1))


def test_features_are_those_of_plain_sums(written):
    path, picture, wanted = written
    have = FaceRes(path)(torch.from_numpy(picture).permute(2, 0, 1)[None].float())[0].numpy()
    assert wanted.std() > 0.1 and np.abs(have - wanted).max() < 1e-4 * wanted.max()


def test_a_file_of_another_size_is_refused(written, tmp_path):
    data = written[0].read_bytes()
    for wrong in (data[:-1000], data + bytes(100), b""):
        (tmp_path / "faceres.bin").write_bytes(wrong)
        with pytest.raises(ValueError, match="faceres.bin"):
            FaceRes(tmp_path / "faceres.bin")


def test_the_metric_is_one_for_the_same_picture_and_less_for_another(written, monkeypatch):
    monkeypatch.setattr(faceres, "weights_file", lambda name, metric: written[0])
    faces = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    metric = identity_faceres()
    assert np.allclose(metric(faces, faces), 1, atol=1e-5)
    assert all(value < 0.9999 for value in metric(faces, faces.flip(0)))


def test_crops_are_bgr_levels_of_the_middle():
    picture = torch.zeros(1, 3, 100, 100)
    picture[:, 0] = 1  # red
    picture[:, :, :10] = picture[:, :, :, :10] = picture[:, :, :, 90:] = -1
    crop = faceres_crops(picture)
    assert crop.shape == (1, 3, 224, 224)
    assert torch.allclose(crop[0, :, 100, 100], torch.tensor([127.5, 127.5, 255.0]))
    assert crop.min() > 100  # the dark frame is left out


def test_without_the_file_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SGPN_HOME", str(tmp_path))
    with pytest.raises(MetricUnavailable, match="faceres"):
        identity_faceres()
