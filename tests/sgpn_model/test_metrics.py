"""The metrics against their formulas and against torchmetrics and lpips, and what a distance must do."""

import math

import lpips
import numpy as np
import pytest
import torch
from scipy import ndimage
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from oracles import metrics as oracle
from sgpn_arch.registry import METRIC_REGISTRY
from sgpn_model.metrics import landmark_error, perceptual_mnv2, psnr, ssim


@pytest.fixture(scope="module")
def face(astronaut):
    """128x112 of the astronaut's face, uint8 RGB."""
    return np.ascontiguousarray(astronaut[50:178, 160:272, ::-1])


def tensor(rgb):
    return torch.from_numpy(np.asarray(rgb, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


def levels(rgb):
    """uint8 (H, W, 3) -> float64 (1, 3, H, W) in 0..255, as the other libraries take it."""
    return torch.from_numpy(rgb).permute(2, 0, 1)[None].double()


def noisy(image, deviation, seed=0):
    noise = np.random.default_rng(seed).normal(0, deviation, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def blurred(image, sigma):
    blur = ndimage.gaussian_filter(image.astype(np.float64), (sigma, sigma, 0))
    return np.rint(blur.clip(0, 255)).astype(np.uint8)


DEGRADE = [(noisy, 1), (noisy, 60), (blurred, 0.6), (blurred, 3)]


class TestPSNR:
    @pytest.mark.parametrize("degrade, strength", DEGRADE)
    def test_is_its_formula_and_torchmetrics(self, face, degrade, strength):
        other = degrade(face, strength)
        (value,) = psnr()(tensor(other), tensor(face))
        assert value == pytest.approx(oracle.psnr(other, face), rel=1e-9)
        theirs = peak_signal_noise_ratio(levels(other), levels(face), data_range=255.0)
        assert value == pytest.approx(theirs.item(), rel=1e-6)

    def test_one_value_per_picture(self, face):
        pair = torch.cat([tensor(noisy(face, 5)), tensor(noisy(face, 20))])
        first, second = psnr()(pair, tensor(face).expand(2, -1, -1, -1))
        assert first > second > 0

    def test_counts_what_a_file_would_hold(self, face):
        """Values are clamped and rounded to 8 bits, so a quarter of a level is no error."""
        truth = tensor(face)
        assert psnr()(truth + 0.25 / 127.5, truth) == [math.inf]
        white = tensor(np.full((16, 16, 3), 255))
        assert psnr()(white + 3, white) == [math.inf]

    def test_needs_as_many_truths(self, face):
        with pytest.raises(ValueError):
            psnr()(tensor(face).expand(2, -1, -1, -1), tensor(face))


class TestSSIM:
    @pytest.mark.parametrize("degrade, strength", DEGRADE)
    def test_is_its_formula_and_torchmetrics(self, face, degrade, strength):
        other = degrade(face, strength)
        (value,) = ssim()(tensor(other), tensor(face))
        assert value == pytest.approx(oracle.ssim(other, face), abs=1e-6)
        pair = levels(other), levels(face)
        _, windows = structural_similarity_index_measure(*pair, data_range=255.0, return_full_image=True)
        # They mirror the border and count windows across it; Wang's code, scikit-image and we do not.
        assert value == pytest.approx(windows[..., 5:-5, 5:-5].mean().item(), abs=1e-6)

    def test_is_one_for_equal_pictures_and_falls_with_noise(self, face):
        values = [ssim()(tensor(noisy(face, d)), tensor(face))[0] for d in (0, 5, 20, 80)]
        assert values[0] == pytest.approx(1) and values == sorted(values, reverse=True)


@pytest.fixture(scope="module")
def metric():
    return perceptual_mnv2()


class TestPerceptualDistance:
    def test_zero_and_symmetric(self, metric, face):
        a, b = tensor(face), tensor(noisy(face, 20))
        assert metric(a, a) == pytest.approx([0.0], abs=1e-9)
        assert metric(a, b)[0] == pytest.approx(metric(b, a)[0], rel=1e-5) and metric(a, b)[0] > 0

    def test_grows_with_blur_and_with_noise(self, metric, face):
        for degrade, strengths in ((blurred, (0.5, 1, 2, 4, 8)), (noisy, (5, 15, 45))):
            values = [metric(tensor(degrade(face, strength)), tensor(face))[0] for strength in strengths]
            assert all(a < b for a, b in zip(values, values[1:], strict=False)), (degrade.__name__, values)

    @pytest.mark.parametrize("degrade, strength", DEGRADE)
    def test_is_its_formula_and_lpips_without_its_weights(self, metric, face, degrade, strength):
        """LPIPS's own functions normalise the features and average the squared differences, all with weight one."""
        pictures = tensor(degrade(face, strength)), tensor(face)
        (value,) = metric(*pictures)
        features = [[stage.double() for stage in metric.features(picture)] for picture in pictures]
        wanted = oracle.perceptual_distance(*([stage[0].numpy() for stage in stages] for stages in features))
        assert value == pytest.approx(wanted, rel=1e-4)
        theirs = 0.0
        for have, want in zip(*features, strict=True):
            difference = (lpips.normalize_tensor(have) - lpips.normalize_tensor(want)) ** 2
            theirs += lpips.spatial_average(difference.sum(dim=1, keepdim=True)).item()
        assert value == pytest.approx(theirs, rel=1e-4)

    def test_each_picture_has_its_own_value(self, metric, face):
        a, b = tensor(noisy(face, 20)), tensor(blurred(face, 2))
        truth = tensor(face)
        together = metric(torch.cat([a, b]), truth.expand(2, -1, -1, -1))
        assert together == pytest.approx([metric(a, truth)[0], metric(b, truth)[0]], rel=1e-4)


class TestLandmarkError:
    def test_is_its_formula(self):
        rng = np.random.default_rng(0)
        points, truth = rng.normal(size=(2, 5, 68, 2)) * 40
        error = landmark_error(torch.from_numpy(points), torch.from_numpy(truth))
        assert error.tolist() == pytest.approx(oracle.landmark_error(points, truth), rel=1e-9)

    def test_a_face_that_is_off_by_a_tenth_of_its_eyes_distance_scores_ten(self):
        truth = torch.rand(1, 68, 2)
        truth[:, 36], truth[:, 45] = torch.tensor([10.0, 20.0]), torch.tensor([40.0, 60.0])
        assert landmark_error(truth + torch.tensor([3.0, 4.0]), truth).tolist() == pytest.approx([10.0])

    def test_unknown_is_nan(self):
        truth = torch.rand(2, 68, 2, generator=torch.Generator().manual_seed(0))
        truth[1] = torch.nan
        assert torch.isnan(landmark_error(torch.zeros(2, 68, 2), truth)).tolist() == [False, True]


def test_registered_metrics_say_which_way_is_better():
    ways = {name: METRIC_REGISTRY.get(name).higher_is_better for name in ("psnr", "ssim", "perceptual_mnv2")}
    assert ways == {"psnr": True, "ssim": True, "perceptual_mnv2": False}
