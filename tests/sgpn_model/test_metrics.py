"""The metrics against second implementations, and what a distance must do."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from sgpn_arch.registry import METRIC_REGISTRY
from sgpn_model.metrics import OUTER_EYE_CORNERS, landmark_error, perceptual_mnv2, psnr, ssim


@pytest.fixture(scope="module")
def face(astronaut):
    """128x128 of the astronaut's face, uint8 RGB."""
    return np.ascontiguousarray(astronaut[50:178, 160:288, ::-1])


def tensor(rgb):
    return torch.from_numpy(np.asarray(rgb, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


def noisy(image, deviation, seed=0):
    noise = np.random.default_rng(seed).normal(0, deviation, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def blurred(image, sigma):
    return ndimage.gaussian_filter(image.astype(np.float64), (sigma, sigma, 0)).clip(0, 255)


class TestPSNR:
    @pytest.mark.parametrize("deviation", [1, 10, 60])
    def test_against_the_formula(self, face, deviation):
        other = noisy(face, deviation)
        error = np.mean((face.astype(np.float64) - other.astype(np.float64)) ** 2)
        assert psnr()(tensor(other), tensor(face)) == [pytest.approx(10 * math.log10(255**2 / error), rel=1e-6)]

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


def ssim_oracle(a, b):
    """Wang et al. 2004 on one channel, with the 11x11 Gaussian window of sigma 1.5, over windows within the picture."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(window, window) / np.outer(window, window).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean = lambda x: ndimage.correlate(x, window, mode="constant")[5:-5, 5:-5]  # noqa: E731
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()


class TestSSIM:
    @pytest.mark.parametrize("deviation", [5, 40])
    def test_against_the_formula(self, face, deviation):
        other = noisy(face, deviation)
        channels = [ssim_oracle(face[..., c].astype(np.float64), other[..., c].astype(np.float64)) for c in range(3)]
        assert ssim()(tensor(other), tensor(face)) == [pytest.approx(np.mean(channels), abs=1e-6)]

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

    def test_against_the_formula(self, metric, face):
        a, b = tensor(face), tensor(blurred(face, 2))
        wanted = 0.0
        for have, want in zip(metric.features(b), metric.features(a), strict=True):
            have, want = (x[0].double().numpy().reshape(x.shape[1], -1).T for x in (have, want))
            unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (have, want)]
            wanted += np.mean(np.sum((unit[0] - unit[1]) ** 2, axis=1))
        assert metric(b, a) == [pytest.approx(wanted, rel=1e-4)]

    def test_each_picture_has_its_own_value(self, metric, face):
        a, b = tensor(noisy(face, 20)), tensor(blurred(face, 2))
        truth = tensor(face)
        together = metric(torch.cat([a, b]), truth.expand(2, -1, -1, -1))
        assert together == pytest.approx([metric(a, truth)[0], metric(b, truth)[0]], rel=1e-4)


class TestLandmarkError:
    def test_by_hand(self):
        truth = torch.zeros(2, 68, 2)
        left, right = OUTER_EYE_CORNERS
        assert (left, right) == (36, 45)
        truth[:, right] = torch.tensor([30.0, 40.0])  # 50 px from the left corner
        points = truth.clone()
        points[0] += torch.tensor([3.0, 4.0])  # every point 5 px off: 10 %
        points[1, 0] += torch.tensor([0.0, 68.0])  # one point 68 px off, 1 px on average: 2 %
        assert landmark_error(points, truth).tolist() == pytest.approx([10.0, 2.0])

    def test_scale_does_not_matter_and_unknown_is_nan(self):
        generator = torch.Generator().manual_seed(0)
        points, truth = torch.rand(2, 68, 2, generator=generator), torch.rand(2, 68, 2, generator=generator)
        assert torch.allclose(landmark_error(points * 7, truth * 7), landmark_error(points, truth))
        truth[1] = torch.nan
        error = landmark_error(points, truth)
        assert torch.isfinite(error[0]) and torch.isnan(error[1])


def test_registered_metrics_say_which_way_is_better():
    ways = {name: METRIC_REGISTRY.get(name).higher_is_better for name in ("psnr", "ssim", "perceptual_mnv2")}
    assert ways == {"psnr": True, "ssim": True, "perceptual_mnv2": False}
