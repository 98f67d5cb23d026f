"""Fidelity: between the restoration and the photo, coarse bands first."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgpn_arch.errors import OptionError
from sgpn_data.degradation import Degradation
from sgpn_data.tensors import to_tensor
from sgpn_model.restore.fidelity import BANDS, blend, sharpness
from sgpn_model.restore.restorer import FaceRestorer


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1 for _ in range(2)]


def test_the_ends_are_the_pictures_themselves(pair):
    restored, photo = pair
    assert blend(restored, photo, 0.0) is restored
    assert blend(restored, photo, 1.0) is photo


def test_it_is_continuous_up_to_both_ends(pair):
    restored, photo = pair
    torch.testing.assert_close(blend(restored, photo, 1e-6), restored, atol=1e-4, rtol=0)
    torch.testing.assert_close(blend(restored, photo, 1 - 1e-6), photo, atol=1e-4, rtol=0)


def test_a_change_of_colour_is_the_first_to_be_taken_back():
    photo = torch.zeros(1, 3, 64, 64)
    half = blend(photo + 0.5, photo, 0.5)
    torch.testing.assert_close(half, photo, atol=1e-6, rtol=0)


def test_the_finest_detail_is_the_last():
    photo = torch.zeros(1, 3, 64, 64)
    checks = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 2.0 - 1
    restored = (photo + checks).contiguous()
    torch.testing.assert_close(blend(restored, photo, 0.5), restored, atol=5e-3, rtol=0)
    assert (blend(restored, photo, 0.97) - photo).abs().mean() < 0.2


@settings(deadline=None, max_examples=20)
@given(
    st.floats(0, 1), st.floats(0, 1), st.integers(1, 70), st.integers(1, 70)
)  # fmt: skip
def test_more_fidelity_is_never_further_from_the_photo(one, other, height, width):
    generator = torch.Generator().manual_seed(height * 100 + width)
    restored = torch.randn(1, 1, height, width, generator=generator, dtype=torch.float64).cumsum(-1)
    photo = torch.zeros_like(restored)
    near, far = (blend(restored, photo, value).norm() for value in (max(one, other), min(one, other)))
    assert near <= far * (1 + 0.2 / BANDS) + 1e-9  # the bands overlap a little


def test_wrong_arguments_are_named(pair):
    with pytest.raises(ValueError, match=r"fidelity is 1\.5"):
        blend(*pair, 1.5)
    with pytest.raises(ValueError, match="same shape"):
        blend(pair[0], pair[1][:1], 0.5)


def test_each_picture_can_have_its_own(pair):
    restored, photo = pair
    both = blend(restored, photo, torch.tensor([0.3, 1.0]))
    torch.testing.assert_close(both[:1], blend(restored[:1], photo[:1], 0.3))
    torch.testing.assert_close(both[1:], photo[1:], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="one for each"):
        blend(restored, photo, torch.tensor([0.3, 1.0, 0.2]))


class TestSharpness:
    @pytest.fixture
    def face(self, astronaut):
        """The astronaut's face at 256 px, where the photo is sharp."""
        return np.ascontiguousarray(astronaut[0:256, 96:352]).astype(np.float32) / 255

    def mean_estimate(self, face, level, count=8):
        rng = np.random.default_rng(0)
        degradation = Degradation(level, reference_size=512)
        pictures = [np.rint(degradation(face, rng) * 255).astype(np.uint8) for _ in range(count)]
        return sharpness(torch.stack([to_tensor(picture) for picture in pictures])).mean().item()

    def test_worse_photos_are_kept_less(self, face):
        clean, mild, medium, severe = (
            self.mean_estimate(face, level) for level in ("clean", "mild", "medium", "severe")
        )
        assert clean == pytest.approx(1)
        assert clean >= mild > medium >= severe
        assert severe == 0

    def test_contrast_and_brightness_do_not_matter(self, face):
        photo = to_tensor((face * 255).astype(np.uint8))[None]
        small = torch.nn.functional.interpolate(photo, scale_factor=0.4, mode="area")
        blurred = torch.nn.functional.interpolate(small, size=photo.shape[-2:], mode="bilinear")
        mixed = 0.6 * photo + 0.4 * blurred
        torch.testing.assert_close(sharpness(0.3 * mixed - 0.2), sharpness(mixed), atol=1e-4, rtol=0)

    def test_a_picture_of_one_colour_is_poor(self):
        assert sharpness(torch.full((1, 3, 64, 64), 0.2)).item() == 0


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
        assert cv2.absdiff(one.restored, other.restored).max() <= 1 and one.keep == pytest.approx(other.keep, abs=1e-4)


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


def test_of_itself_it_keeps_finer_detail_as_far_as_the_photo_is_sharp(large):
    restorer = FaceRestorer.from_pretrained(device="cpu")
    assert restorer.fidelity == "auto"
    blurred = cv2.GaussianBlur(large, (0, 0), 16)
    for photo, keep in ((large, 1), (blurred, 0)):
        result = restorer.restore(photo)
        assert result.faces[0].keep == keep
        bare = restorer.restore(photo, fidelity=0.0)
        assert np.array_equal(bare.faces[0].restored, result.faces[0].restored)
        images = bare.image.astype(int), result.image.astype(int)
        if not keep:
            assert np.array_equal(*images)
            continue
        inside = (np.abs(images[0] - photo).sum(axis=2) > 0) & (np.abs(images[0] - images[1]).sum(axis=2) > 0)
        assert inside.mean() > 0.1
        fine = [
            np.abs(image - cv2.GaussianBlur(image.astype(np.float32), (0, 0), 2))[inside].mean() for image in images
        ]
        assert fine[1] > 1.3 * fine[0]


def test_an_aligned_photo_comes_back_too(large):
    restorer = FaceRestorer.from_pretrained(device="cpu", fidelity=1)
    square = np.ascontiguousarray(large[:1100, :1100])
    assert np.abs(restorer.restore(square, aligned=True).image.astype(int) - square).max() <= 1


@pytest.mark.parametrize("fidelity", [-0.1, 1.1, "most", None])
def test_a_restorer_refuses_other_fidelities(fidelity):
    with pytest.raises(OptionError, match="fidelity"):
        FaceRestorer.from_pretrained(device="cpu", fidelity=fidelity)
