"""The metrics against their formulas and against torchmetrics and lpips, and what a distance must do."""

import copy
import dataclasses
import math
import re
import sys
import types
from pathlib import Path

import cv2
import lpips
import numpy as np
import pytest
import torch
from facexlib.recognition.arcface_arch import Backbone
from scipy import ndimage
from torch_fidelity import feature_extractor_inceptionv3, metric_fid
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.functional.image.lpips import _LPIPS
from torchmetrics.image.fid import NoTrainInceptionV3, _compute_fid
from torchvision import models
from torchvision.models import vgg

from oracles import metrics as oracle
from sgpn_arch.registry import METRIC_REGISTRY
from sgpn_data.alignment import template_points
from sgpn_model.evaluate import metrics
from sgpn_model.evaluate.metrics import (
    MetricUnavailable,
    arcface_crops,
    eye_colour,
    frechet_distance,
    frechet_mnv2,
    niqe,
    perceptual_mnv2,
    psnr,
    rendering_error,
    ssim,
)
from sgpn_model.train.losses import landmark_error
from sgpn_model.weights import catalogue

import basicsr  # isort: skip  (the registry makes it importable)


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
        features = [[stage.double() for stage in metric.network(picture)] for picture in pictures]
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


class TestEyeColour:
    POINTS = np.full((68, 2), 5.0)
    POINTS[36:42] = [[10, 20], [15, 15], [25, 15], [30, 20], [25, 25], [15, 25]]
    POINTS[42:48] = [[40, 20], [45, 15], [55, 15], [60, 20], [55, 25], [45, 25]]

    @staticmethod
    def face(iris, other, around=230, x=20):
        """(1, 3, 40, 70): grey, with an iris of 9 pixels' radius at x in the one eye, and at 30 px from it in the other."""
        picture = np.full((40, 70, 3), around, np.uint8)
        for centre, colour in ((x, iris), (x + 30, other)):
            cv2.circle(picture, (centre, 20), 9, colour, -1)
        return tensor(picture)

    def score(self, image, truth, points=POINTS):
        return eye_colour()(image, truth, torch.from_numpy(points)[None])[0]

    def test_of_greys_is_the_formulas_lightness_term(self):
        """CIEDE2000 of greys is the difference of L* over 1 + 0.015 (mean - 50)^2 / root(20 + (mean - 50)^2)."""
        wanted = []
        for grey in (60, 90):
            linear = [((value / 255 + 0.055) / 1.055) ** 2.4 for value in (grey, 30)]
            one, other = (116 * value ** (1 / 3) - 16 for value in linear)
            middle = ((one + other) / 2 - 50) ** 2
            wanted.append(abs(one - other) / (1 + 0.015 * middle / np.sqrt(20 + middle)))
        image, truth = self.face((60,) * 3, (90,) * 3), self.face((30,) * 3, (30,) * 3)
        assert self.score(image, truth) == pytest.approx(np.mean(wanted), rel=2e-3)

    def test_only_the_irises_count(self):
        brown, blue = (80, 50, 30), (90, 110, 140)
        truth = self.face(brown, brown)
        assert self.score(truth, truth) == 0
        assert self.score(self.face(brown, brown, around=180), truth) < 0.1 * self.score(self.face(blue, brown), truth)
        assert 20 < self.score(self.face(blue, blue), truth) < 50

    def test_looks_where_the_true_eyes_look(self):
        """Irises at the side of the eyes are compared as those in the middle; a place that stays would have much white in it."""
        brown, blue = (80, 50, 30), (90, 110, 140)
        aside, ahead = (self.score(self.face(blue, blue, x=x), self.face(brown, brown, x=x)) for x in (13, 20))
        assert aside == pytest.approx(ahead, rel=0.01)

    def test_is_nan_without_landmarks_and_for_eyes_outside_the_picture(self):
        truth = self.face((80, 50, 30), (80, 50, 30))
        assert math.isnan(self.score(truth, truth, np.full((68, 2), np.nan)))
        assert math.isnan(self.score(truth, truth, self.POINTS + 500))


class TestRenderingError:
    def test_is_the_mean_difference_where_the_mesh_surely_is(self):
        render, truth = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
        mask = np.zeros((8, 8), np.uint8)
        assert math.isnan(rendering_error(render, mask, truth))
        mask[2:5, 3:7], mask[5, 3:7] = 255, 230
        differences = [abs(int(a) - int(b)) for a, b in zip(render[2:5, 3:7].flat, truth[2:5, 3:7].flat, strict=True)]
        assert rendering_error(render, mask, truth) == pytest.approx(np.mean(differences), rel=1e-9)


class TestFrechetDistance:
    @pytest.mark.parametrize("dimension", [1, 3, 20])
    def test_is_its_formula_and_three_other_libraries(self, dimension):
        rng = np.random.default_rng(dimension)
        a, b = (
            rng.normal(size=(60, dimension)),
            rng.normal(0.3, 1.7, (90, dimension)) @ np.diag(np.arange(dimension) + 1),
        )
        value = frechet_distance(torch.from_numpy(a), torch.from_numpy(b))
        assert value == pytest.approx(oracle.frechet_distance(a, b), rel=1e-7)
        statistics = [(x.mean(0), np.atleast_2d(np.cov(x, rowvar=False))) for x in (a, b)]
        (mean_a, cov_a), (mean_b, cov_b) = [[torch.from_numpy(part) for part in pair] for pair in statistics]
        assert value == pytest.approx(_compute_fid(mean_a, cov_a, mean_b, cov_b).item(), rel=1e-7)
        as_dicts = [{"mu": mean, "sigma": cov} for mean, cov in statistics]
        (theirs,) = metric_fid.fid_statistics_to_metric(*as_dicts, False).values()
        assert value == pytest.approx(theirs, rel=1e-7)

    def test_scaled_and_shifted_features_are_as_far_as_the_closed_form_says(self):
        """y = x s + t, each axis by its own: |t + (s - 1) m|^2 + sum of variance (s - 1)^2; singular ones too."""
        for faces in (200, 5):
            x = torch.randn(faces, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            axes = torch.linalg.qr(x.T @ x).Q
            shift, scale = torch.linspace(-1, 1, 12, dtype=torch.float64), 1.6
            means = (shift + (scale - 1) * x.mean(0)).square().sum()
            wanted = means + x.var(0).sum() * (scale - 1) ** 2
            assert frechet_distance(x * scale + shift, x) == pytest.approx(wanted.item(), rel=1e-9)
            # A rotation of all features changes nothing.
            assert frechet_distance((x * scale + shift) @ axes, x @ axes) == pytest.approx(wanted.item(), rel=1e-9)

    def test_zero_symmetric_and_unknown_for_one_picture(self):
        rng = np.random.default_rng(1)
        a, b = torch.from_numpy(rng.normal(size=(2, 30, 8)))
        assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
        assert frechet_distance(a, a.flip(0)[:, :]) == pytest.approx(0, abs=1e-9)
        assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
        assert math.isnan(frechet_distance(a[:1], b))


class TestFrechetMnv2:
    def test_features_are_a_stage_of_mobilenet_averaged_over_the_picture(self, metric, face):
        ours = frechet_mnv2()
        wanted = metric.network(tensor(face))[2].mean((2, 3))
        assert ours.features(tensor(face)).shape == (1, ours.DIMENSION) == (1, 32)
        assert torch.allclose(ours.features(tensor(face)), wanted)

    def test_grows_with_blur(self, face):
        ours = frechet_mnv2()
        faces = [np.roll(face, 5 * number, axis=1) for number in range(6)]
        target = ours.features(torch.cat([tensor(image) for image in faces]))
        values = [
            ours.distance(ours.features(torch.cat([tensor(blurred(image, sigma)) for image in faces])), target)
            for sigma in (0, 1, 2, 4)
        ]
        assert values[0] == pytest.approx(0, abs=1e-6) and all(np.diff(values) > 0)

    def test_says_when_there_are_too_few_faces(self):
        assert "too few" in frechet_mnv2().caution(32) and frechet_mnv2().caution(33) is None


@pytest.fixture(scope="module")
def natural(astronaut):
    """300x300 of the astronaut, uint8 RGB."""
    return np.ascontiguousarray(astronaut[:300, 60:360, ::-1])


class TestNIQE:
    @pytest.mark.parametrize("degrade, strength", [(noisy, 0), (noisy, 25), (blurred, 1.5)])
    def test_is_its_formula(self, natural, degrade, strength):
        image = degrade(natural, strength)
        stored = np.load(Path(basicsr.__file__).parent / "metrics" / "niqe_pris_params.npz")
        wanted = oracle.niqe(image[..., ::-1], stored["mu_pris_param"], stored["cov_pris_param"])
        # They look shapes up in a table with steps of 0.001, and shrink with MATLAB's rule at the border.
        assert niqe()(tensor(image))[0] == pytest.approx(wanted, rel=0.02)

    def test_degraded_pictures_are_less_natural(self, natural):
        good, noise, blur = niqe()(torch.cat([tensor(x) for x in (natural, noisy(natural, 40), blurred(natural, 3))]))
        assert good < noise and good < blur

    def test_a_picture_without_texture_has_no_value(self):
        assert math.isnan(niqe()(torch.zeros(1, 3, 192, 192))[0])
        assert niqe.min_size == 192 and not niqe.needs_reference


# ---------------------------------------------------------------------------------------------------------------------
# Metrics whose weights do not ship


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    """An empty cache folder, in which nothing is found but what a test puts there."""
    for variable in ("SGPN_HOME", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setitem(catalogue.HOMES, "facexlib", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def stored(no_weights, monkeypatch):
    """Puts weights where the catalogue's are looked for; the catalogue knows their hash."""
    entries = catalogue.load_catalogue()
    monkeypatch.setattr(metrics, "find_entry", lambda name: catalogue.find_entry(name, entries))

    def store(name, state):
        path = no_weights / entries[name].file
        torch.save(state, path)
        entries[name] = dataclasses.replace(entries[name], size=path.stat().st_size, sha256=catalogue.sha256_of(path))
        return path

    return store


NEEDS = {"lpips_vgg": "vgg16", "lpips_alex": "alexnet", "fid": "inception_fid", "identity_ir_se50": "arcface_ir_se50"}


@pytest.mark.parametrize("name", NEEDS)
class TestWithoutWeights:
    def test_the_file_and_the_command_are_named(self, name, no_weights):
        file = catalogue.find_entry(NEEDS[name]).file
        told = rf"{name} needs the weights '{NEEDS[name]}' \({re.escape(file)}\).*`sgpn weights fetch {NEEDS[name]}`"
        with pytest.raises(MetricUnavailable, match=told):
            METRIC_REGISTRY.get(name)()

    def test_another_file_of_that_name_is_refused(self, name, no_weights):
        path = no_weights / catalogue.find_entry(NEEDS[name]).file
        torch.save({"a": torch.zeros(3)}, path)
        with pytest.raises(catalogue.CatalogueError, match=f"{name}: {path} has .*sgpn weights fetch {NEEDS[name]}"):
            METRIC_REGISTRY.get(name)()

    def test_a_missing_package_is_named(self, name, no_weights, monkeypatch):
        modules = {
            "fid": "torch_fidelity.feature_extractor_inceptionv3",
            "identity_ir_se50": "facexlib.recognition.arcface_arch",
        }
        monkeypatch.setitem(sys.modules, modules.get(name, "lpips"), None)
        with pytest.raises(MetricUnavailable, match=r'needs the package \w+ \(pip install "sgpn\[metrics\]"\)'):
            METRIC_REGISTRY.get(name)()


@pytest.mark.parametrize("net, backbone", [("alex", "alexnet"), ("vgg", "vgg16")])
def test_lpips_is_torchmetrics(net, backbone, stored, monkeypatch, face):
    """With the same backbone of random weights, and the linear weights that each of the two packages ships."""
    torch.manual_seed(0)
    layers = vgg.make_layers(vgg.cfgs["D"]) if net == "vgg" else models.alexnet().features
    # Without the classifiers, whose hundred million weights take seconds to draw and which LPIPS throws away.
    monkeypatch.setattr(models, backbone, lambda **_: types.SimpleNamespace(features=copy.deepcopy(layers)))
    state = {f"features.{key}": value * 1.5 for key, value in layers.state_dict().items()}
    stored(backbone, {**state, "classifier.6.weight": torch.zeros(2, 2)})
    ours = METRIC_REGISTRY.get(f"lpips_{net}")()
    theirs = _LPIPS(pretrained=True, net=net, pnet_rand=True, use_dropout=True, eval_mode=True)
    theirs.net.load_state_dict({key: state[f"features.{key.partition('.')[2]}"] for key in theirs.net.state_dict()})
    face = np.ascontiguousarray(face[32:96, 24:88])
    other, truth = torch.cat([tensor(noisy(face, 20)), tensor(blurred(face, 2))]), tensor(face).expand(2, -1, -1, -1)
    assert ours(other, truth) == pytest.approx(theirs(other, truth).flatten().tolist(), rel=1e-4)
    assert ours(truth, truth) == pytest.approx([0, 0], abs=1e-7) and min(ours(other, truth)) > 0


@pytest.fixture
def random_inception(monkeypatch):
    """State dict of the FID network with random weights. It loads weights when built, so loading is left out."""
    with monkeypatch.context() as patch:
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        return FeatureExtractorInceptionV3("random", ["2048"]).state_dict()


def test_fid_features_are_torchmetrics(stored, random_inception, face):
    path = stored("inception_fid", random_inception)
    ours = METRIC_REGISTRY.get("fid")()
    pictures = torch.cat([tensor(face), tensor(noisy(face, 30))])
    theirs = NoTrainInceptionV3("random", ["2048"], str(path), antialias=False)
    bytes_ = torch.from_numpy(np.stack([face, noisy(face, 30)])).permute(0, 3, 1, 2)
    features = ours.features(pictures)
    assert features.shape == (2, 2048) and torch.allclose(features, theirs(bytes_), rtol=1e-4, atol=1e-5)
    assert ours.distance(features, features) == pytest.approx(0, abs=1e-6) and ours.distance(features, features * 2) > 0
    assert "88 faces for 2048" in ours.caution(88) and ours.caution(3000) is None


class TestIdentity:
    @pytest.fixture
    def metric(self, stored):
        torch.manual_seed(0)
        network = Backbone(50, 0.6, "ir_se").eval()
        stored("arcface_ir_se50", network.state_dict())
        return METRIC_REGISTRY.get("identity_ir_se50")()

    def test_is_the_cosine_of_the_embeddings(self, metric, face):
        points = torch.tensor(template_points("ffhq", 112), dtype=torch.float32)[None] + torch.tensor([0.0, 8.0])
        pair = tensor(noisy(face, 30)), tensor(face)
        (value,) = metric(*pair, points5=points)
        with torch.no_grad():
            one, other = (metric.network(arcface_crops(x, points))[0].double().numpy() for x in pair)
        assert value == pytest.approx(one @ other / np.linalg.norm(one) / np.linalg.norm(other), abs=1e-5)
        assert value < 0.9999 and metric(pair[1], pair[1], points5=points) == pytest.approx([1.0])

    def test_the_face_is_aligned_to_arcfaces_points_and_in_its_colours(self):
        """Dots where the eyes, the nose and the mouth are come to lie on the published points; red is the last channel."""
        size, published = (
            256,
            [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
        )
        # The points, turned by 20 degrees and enlarged by 1.4.
        turn = 1.4 * np.array([[math.cos(0.35), math.sin(0.35)], [-math.sin(0.35), math.cos(0.35)]])
        points = (np.array(published) - 56) @ turn + 120
        y, x = np.mgrid[:size, :size]
        for point, (wanted_x, wanted_y) in zip(points, published, strict=True):
            dot = np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / 18)
            picture = torch.full((1, 3, size, size), -1.0)
            picture[0, 0] = torch.from_numpy(2 * dot - 1)
            crop = arcface_crops(picture, torch.from_numpy(points)[None])[0]
            assert crop.shape == (3, 112, 112) and (crop[:2] == -1).all()
            weight = (crop[2].double().numpy() + 1).clip(0.05) - 0.05
            at_y, at_x = (np.indices(weight.shape) * weight).sum((1, 2)) / weight.sum()
            assert (at_x, at_y) == pytest.approx((wanted_x, wanted_y), abs=0.15)


def test_registered_metrics_say_which_way_is_better():
    names = ("psnr", "ssim", "perceptual_mnv2", "frechet_mnv2", "niqe", *NEEDS)
    better = {name for name in names if METRIC_REGISTRY.get(name).higher_is_better}
    assert better == {"psnr", "ssim", "identity_ir_se50"}
