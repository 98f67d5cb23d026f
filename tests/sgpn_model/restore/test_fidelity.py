"""Fidelity: between the restoration and the photo, coarse bands first."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgpn_arch.errors import OptionError
from sgpn_model.restore.fidelity import BANDS, _resized, blend
from sgpn_model.restore.restorer import FaceRestorer


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    return [rng.uniform(-1, 1, (2, 3, 64, 64)).astype(np.float32) for _ in range(2)]


def test_the_ends_are_the_pictures_themselves(pair):
    restored, photo = pair
    assert blend(restored, photo, 0.0) is restored
    assert blend(restored, photo, 1.0) is photo


def test_it_is_continuous_up_to_both_ends(pair):
    restored, photo = pair
    np.testing.assert_allclose(blend(restored, photo, 1e-6), restored, atol=1e-4, rtol=0)
    np.testing.assert_allclose(blend(restored, photo, 1 - 1e-6), photo, atol=1e-4, rtol=0)


def test_a_change_of_colour_is_the_first_to_be_taken_back():
    photo = np.zeros((1, 3, 64, 64), np.float32)
    half = blend(photo + 0.5, photo, 0.5)
    np.testing.assert_allclose(half, photo, atol=1e-6, rtol=0)


def test_the_finest_detail_is_the_last():
    photo = np.zeros((1, 3, 64, 64), np.float32)
    checks = (np.arange(64)[:, None] + np.arange(64)) % 2 * np.float32(2) - 1
    restored = photo + checks
    np.testing.assert_allclose(blend(restored, photo, 0.5), restored, atol=5e-3, rtol=0)
    assert np.abs(blend(restored, photo, 0.97) - photo).mean() < 0.2


@settings(deadline=None, max_examples=20)
@given(
    st.floats(0, 1), st.floats(0, 1), st.integers(1, 70), st.integers(1, 70)
)  # fmt: skip
def test_more_fidelity_is_never_further_from_the_photo(one, other, height, width):
    restored = np.random.default_rng(height * 100 + width).normal(size=(1, 1, height, width)).cumsum(-1)
    photo = np.zeros_like(restored)
    near, far = (np.linalg.norm(blend(restored, photo, value)) for value in (max(one, other), min(one, other)))
    assert near <= far * (1 + 0.2 / BANDS) + 1e-9  # the bands overlap a little


def test_bands_are_those_of_pytorchs_bilinear_resizing():
    """What is resized in the pyramid, against PyTorch: reduced with all pixels counting, enlarged with the border repeated."""
    interpolate = torch.nn.functional.interpolate
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 37, 64)))
    for size in ((18, 32), (9, 16), (1, 1)):
        wanted = interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
        np.testing.assert_allclose(_resized(image.numpy(), *size), wanted, atol=1e-9)
    for size in ((74, 128), (75, 129)):
        wanted = interpolate(image, size=size, mode="bilinear", align_corners=False)
        np.testing.assert_allclose(_resized(image.numpy(), *size), wanted, atol=1e-9)


def test_wrong_arguments_are_named(pair):
    with pytest.raises(ValueError, match=r"fidelity is 1\.5"):
        blend(*pair, 1.5)
    with pytest.raises(ValueError, match="same shape"):
        blend(pair[0], pair[1][:1], 0.5)


def test_each_picture_can_have_its_own(pair):
    restored, photo = pair
    both = blend(restored, photo, [0.3, 1.0])
    np.testing.assert_allclose(both[:1], blend(restored[:1], photo[:1], 0.3), atol=1e-6)
    np.testing.assert_allclose(both[1:], photo[1:], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="one for each"):
        blend(restored, photo, [0.3, 1.0, 0.2])


def test_a_restorer_blends_by_it():
    restorer = FaceRestorer.from_pretrained(device="cpu", precision="fp32")
    photo = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    restored, apart = {}, {}
    for fidelity in ("auto", 0, 0.5, 1.0):
        (face,) = restorer.restore(photo, aligned=True, fidelity=fidelity).faces
        restored[fidelity], apart[fidelity] = face.restored, np.abs(face.restored - face.crop.astype(int)).mean()
    assert apart[0] > apart[0.5] > apart[1.0] == 0
    assert np.array_equal(restored["auto"], restored[0])
    assert restorer.fidelity == "auto"
    with pytest.raises(OptionError, match="fidelity is 'most'"):
        restorer.restore(photo, aligned=True, fidelity="most")


def test_faces_of_one_batch_each_have_their_own():
    restorer = FaceRestorer.from_pretrained(device="cpu", precision="fp32")
    photo = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    wishes = ("auto", 1.0, 0.5, 1.0)
    alone = [restorer.restore(photo, aligned=True, fidelity=wish).faces[0] for wish in wishes]
    together = [restorer.prepare(photo, aligned=True, fidelity=wish).faces[0] for wish in wishes]
    restorer.run(together)
    for one, other in zip(alone, together, strict=True):
        # The regressor's sums come in another order in a batch; another's fidelity would change tens of grey levels.
        assert cv2.absdiff(one.restored, other.restored).max() <= 1


@pytest.fixture(scope="module")
def large(astronaut):
    """A photo whose face, some 380 px wide, is larger than the network's picture, with detail of its own."""
    large = cv2.resize(astronaut[:300, 80:380], None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    grain = np.random.default_rng(0).normal(0, 12, large.shape)
    return np.clip(large + grain, 0, 255).astype(np.uint8)


def test_the_photo_comes_back_with_detail_that_the_crop_cannot_show(large):
    restorer = FaceRestorer.from_pretrained(device="cpu")
    apart = []
    for fidelity in (0.0, 0.5, 1.0):
        apart.append(np.abs(restorer.restore(large, fidelity=fidelity).image.astype(int) - large).mean())
    assert apart[0] > 1.3 * apart[1] > 1
    assert apart[2] < 0.02  # rounding


def test_of_itself_it_keeps_a_sharp_photo_and_cleans_a_noisy_one(astronaut):
    """Twice the network's size: fine structure in the middle of a photo stays, and noise goes as with fidelity 0."""
    restorer = FaceRestorer.from_pretrained(device="cpu")
    size = 2 * restorer.size
    good = cv2.resize(np.ascontiguousarray(astronaut[:300, 80:380]), (size, size), interpolation=cv2.INTER_CUBIC)
    squares = np.random.default_rng(5).choice([-20, 20], (size // 2, size // 2)).repeat(2, 0).repeat(2, 1)
    middle = np.hypot(*(np.mgrid[:size, :size] - size / 2)) < size / 5
    good = np.clip(good + (squares * middle)[..., None], 0, 255).astype(np.uint8)
    noisy = np.clip(good + np.random.default_rng(0).normal(0, 20, good.shape), 0, 255).astype(np.uint8)
    error = {}
    for name, photo in (("good", good), ("noisy", noisy)):
        for fidelity in ("auto", 0, 1):
            image = restorer.restore(photo, aligned=True, fidelity=fidelity).image
            error[name, fidelity] = np.mean((image.astype(float) - good) ** 2)
    assert 10 * np.log10(255**2 / error["good", "auto"]) > 35
    assert error["good", "auto"] < 0.7 * error["good", 0]
    assert error["noisy", "auto"] < 1.02 * error["noisy", 0] < 0.5 * error["noisy", 1]


def test_an_aligned_photo_comes_back_too(large):
    restorer = FaceRestorer.from_pretrained(device="cpu", fidelity=1)
    square = np.ascontiguousarray(large[:1100, :1100])
    assert np.abs(restorer.restore(square, aligned=True).image.astype(int) - square).max() <= 1


@pytest.mark.parametrize("fidelity", [-0.1, 1.1, "most", None])
def test_a_restorer_refuses_other_fidelities(fidelity):
    with pytest.raises(OptionError, match="fidelity"):
        FaceRestorer.from_pretrained(device="cpu", fidelity=fidelity)
