"""Tests of sgpn_data.degradation against plain definitions: SciPy convolution, analytic kernels, moments,
Pillow's JPEG."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from skimage.data import astronaut

from sgpn_data import degradation as deg


@pytest.fixture(scope="module")
def photo():
    """A 128 px BGR face photo, float32 in [0, 1]."""
    face = np.ascontiguousarray(astronaut()[:256, 96:352, ::-1])
    return cv2.resize(face, (128, 128), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def covariance(kernel):
    reach = np.arange(kernel.shape[0]) - kernel.shape[0] // 2
    x, y = np.meshgrid(reach, reach)
    weights = kernel.astype(np.float64)
    return np.array([[(weights * a * b).sum() for b in (x, y)] for a in (x, y)])


class TestKernel:
    @settings(deadline=None, max_examples=30)
    @given(st.floats(1.0, 3.0), st.floats(1.0, 3.0), st.floats(0, np.pi))
    def test_second_moments_are_the_rotated_covariance(self, along, across, angle):
        kernel = deg.gaussian_kernel(41, along, across, angle)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        assert kernel.sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(covariance(kernel), turn @ np.diag([along**2, across**2]) @ turn.T, atol=2e-3)

    def test_one_entry_by_hand(self):
        kernel = deg.gaussian_kernel(5, 2.0)
        assert kernel[2, 4] / kernel[2, 2] == pytest.approx(np.exp(-0.5), rel=1e-5)
        assert kernel[1, 3] / kernel[2, 2] == pytest.approx(np.exp(-2 / 8), rel=1e-5)

    def test_a_tiny_sigma_is_the_identity(self):
        kernel = deg.gaussian_kernel(41, 0.01)
        assert kernel[20, 20] == 1 and kernel.sum() == 1

    @pytest.mark.parametrize("size, sigma", [(4, 1.0), (0, 1.0), (5, 0.0), (5, -1.0)])
    def test_bad_arguments(self, size, sigma):
        with pytest.raises(ValueError, match="gaussian_kernel"):
            deg.gaussian_kernel(size, sigma)


class TestSteps:
    def test_blur_is_scipys_convolution(self, photo):
        kernel = deg.gaussian_kernel(15, 3.0, 1.2, 0.7)
        planes = [ndimage.convolve(photo[..., c].astype(np.float64), kernel, mode="mirror") for c in range(3)]
        np.testing.assert_allclose(deg.blur(photo, kernel), np.stack(planes, -1), atol=1e-5)

    def test_separable_blur_is_the_full_blur(self, photo):
        full = deg.blur(photo, deg.gaussian_kernel(41, 7.0))
        np.testing.assert_allclose(deg.blur_isotropic(photo, 7.0, 41), full, atol=1e-5)

    def test_noise_has_the_moments_asked_for(self):
        flat = np.full((200, 200, 3), 0.5, np.float32)
        noise = deg.add_gaussian_noise(flat, 10.0, np.random.default_rng(0)) - flat
        assert noise.dtype == np.float32
        assert abs(noise.mean()) < 5 * 10 / 255 / np.sqrt(noise.size)
        assert noise.std() * 255 == pytest.approx(10, rel=0.01)
        correlation = np.corrcoef(noise.reshape(-1, 3).T)
        np.testing.assert_allclose(correlation, np.eye(3), atol=0.03)  # the channels are independent

    def test_jpeg_keeps_the_colour_order_that_pillow_sees(self, photo):
        levels = np.rint(photo * 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(levels[..., ::-1]).save(stream, "JPEG", quality=40)
        pillow = np.asarray(Image.open(stream))[..., ::-1].astype(np.float64)
        ours = deg.jpeg_compress(photo, 40) * 255
        assert np.abs(ours - pillow).mean() < 1.0  # libjpeg builds differ in rounding only
        assert np.abs(ours - levels).mean() > 2.0

    def test_jpeg_decoding_agrees_with_pillow(self, photo):
        levels = np.rint(photo * 255).astype(np.uint8)
        _, data = cv2.imencode(".jpg", levels, [cv2.IMWRITE_JPEG_QUALITY, 30])
        pillow = np.asarray(Image.open(io.BytesIO(data.tobytes())))[..., ::-1].astype(int)
        ours = np.rint(deg.jpeg_compress(photo, 30) * 255).astype(int)
        assert np.abs(ours - pillow).max() <= 2

    def test_a_lower_quality_is_further_away(self, photo):
        errors = [np.abs(deg.jpeg_compress(photo, q) - photo).mean() for q in (95, 60, 20)]
        assert errors[0] < errors[1] < errors[2]

    def test_gray_weighs_bgr(self):
        blue = np.zeros((1, 1, 3), np.float32)
        blue[..., 0] = 1
        np.testing.assert_allclose(deg.to_gray(blue), 0.114, atol=1e-6)

    def test_color_shift(self, photo):
        shifted = deg.shift_colors(photo, (0.1, 0.0, -0.1))
        np.testing.assert_allclose(shifted, np.clip(photo + np.float32([0.1, 0, -0.1]), 0, 1), atol=1e-6)


class TestDegradation:
    @settings(deadline=None, max_examples=40)
    @given(st.sampled_from(sorted(deg.PRESETS)), st.integers(0, 2**31), st.sampled_from([None, 512]))
    def test_shape_type_and_range_survive(self, preset, seed, reference):
        image = np.random.default_rng(seed).random((48, 48, 3), dtype=np.float32)
        before = image.copy()
        result = deg.Degradation(preset, reference_size=reference)(image, np.random.default_rng(seed))
        assert result.shape == image.shape and result.dtype == np.float32
        assert result.min() >= 0 and result.max() <= 1
        np.testing.assert_array_equal(image, before)

    def test_the_seed_decides(self, photo):
        chain = deg.Degradation("codeformer")
        first, again, other = (chain(photo, np.random.default_rng(seed)) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - other).max() > 0.02

    def test_the_chain_is_its_steps_in_the_papers_order(self, photo):
        drawn = deg.DegradationParameters((2.0, 2.0), 0.0, 41, 4.0, "linear", "cubic", 5.0, 50, False, None)
        small = cv2.resize(ndimage.gaussian_filter(photo, (2, 2, 0), mode="mirror", radius=(10, 10, 0)), (32, 32))
        noisy = small + np.random.default_rng(3).standard_normal(small.shape, dtype=np.float32) * 5 / 255
        squeezed = deg.jpeg_compress(noisy, 50)
        expected = np.clip(cv2.resize(squeezed, (128, 128), interpolation=cv2.INTER_CUBIC), 0, 1)
        result = deg.Degradation.apply(photo, drawn, np.random.default_rng(3))
        assert np.abs(result - expected).mean() < 1e-3  # a level may round the other way before JPEG
        assert np.abs(result - expected).max() < 0.05

    def test_the_cut_kernel_gives_the_full_kernels_picture(self, photo):
        drawn = deg.DegradationParameters((2.0, 1.0), 0.5, 41, 1.0, "linear", "linear", None, None, False, None)
        full = deg.blur(photo, deg.gaussian_kernel(41, 2.0, 1.0, 0.5))
        result = deg.Degradation.apply(photo, drawn, np.random.default_rng(0))
        np.testing.assert_allclose(result, full, atol=2e-5)

    @pytest.mark.parametrize("preset", ["gfpgan", "gfpgan_code", "codeformer"])
    def test_draws_fill_their_ranges_evenly(self, preset):
        chain, rng = deg.Degradation(preset), np.random.default_rng(0)
        draws = [chain.sample(rng, 512) for _ in range(2000)]
        columns = {
            "blur_sigma": np.array([drawn.sigma[0] for drawn in draws]),
            "downsample": np.array([drawn.downsample for drawn in draws]),
            "noise": np.array([drawn.noise for drawn in draws]),
            "jpeg": np.array([drawn.jpeg for drawn in draws]),
        }
        for key, values in columns.items():
            low, high = chain.options[key]
            assert low <= values.min() and values.max() <= high
            assert values.mean() == pytest.approx((low + high) / 2, abs=0.03 * (high - low))
            assert values.std() == pytest.approx((high - low) / np.sqrt(12), rel=0.06)
        assert np.mean([drawn.sigma[0] == drawn.sigma[1] for drawn in draws]) == pytest.approx(0.5, abs=0.05)

    def test_paper_ranges(self):
        options = deg.Degradation("gfpgan").options
        assert (options["blur_sigma"], options["downsample"]) == ((0.2, 10), (1, 8))
        assert (options["noise"], options["jpeg"], options["kernel_size"]) == ((0, 15), (60, 100), 41)
        options = deg.Degradation("codeformer").options
        assert (options["blur_sigma"], options["downsample"]) == ((1, 15), (4, 30))
        assert (options["noise"], options["jpeg"]) == ((0, 20), (30, 80))

    def test_reference_size_keeps_the_draw_in_face_units(self):
        chain = deg.Degradation("codeformer", reference_size=512)
        large, small = (chain.sample(np.random.default_rng(7), size) for size in (512, 128))
        assert small.sigma == pytest.approx(np.array(large.sigma) / 4)
        assert 128 / small.downsample == pytest.approx(min(128, 512 / large.downsample))
        assert (large.kernel_size, small.kernel_size) == (41, 11)
        assert (small.noise, small.jpeg) == (large.noise, large.jpeg)
        literal = deg.Degradation("codeformer").sample(np.random.default_rng(7), 128)
        assert literal.sigma == large.sigma and literal.downsample == large.downsample

    def test_reference_size_looks_the_same_at_both_sizes(self):
        """Degrading at 512 and shrinking is close to shrinking and degrading at 128, far from the literal ranges."""
        large = np.ascontiguousarray(astronaut()[..., ::-1]).astype(np.float32) / 255
        small = cv2.resize(large, (128, 128), interpolation=cv2.INTER_AREA)
        fixed = {"blur_sigma": 8.0, "downsample": 8.0, "noise": None, "jpeg": None, "isotropic_probability": 1}
        rng = np.random.default_rng(0)
        target = cv2.resize(deg.Degradation(**fixed)(large, rng), (128, 128), interpolation=cv2.INTER_AREA)
        scaled = deg.Degradation(**fixed, reference_size=512)(small, rng)
        literal = deg.Degradation(**fixed)(small, rng)
        assert np.abs(scaled - target).mean() < 0.01 < 0.03 < np.abs(literal - target).mean()

    def test_none_switches_every_step_off(self, photo):
        off = deg.Degradation(blur_sigma=None, downsample=None, noise=None, jpeg=None)
        np.testing.assert_array_equal(off(photo, np.random.default_rng(0)), photo)

    def test_super_resolution_is_box_average_then_bilinear(self, photo):
        result = deg.Degradation("sr_x8")(photo, np.random.default_rng(0))
        means = photo.reshape(16, 8, 16, 8, 3).mean(axis=(1, 3))
        np.testing.assert_allclose(result, cv2.resize(means, (128, 128)), atol=1e-5)

    def test_probabilities(self, photo):
        gray = deg.Degradation(gray_probability=1)(photo, np.random.default_rng(0))
        plain = deg.Degradation()(photo, np.random.default_rng(0))
        assert np.abs(gray.max(axis=2) - gray.min(axis=2)).mean() < 0.05  # the colour noise is all that is left
        assert np.abs(plain.max(axis=2) - plain.min(axis=2)).mean() > 0.1
        drawn = deg.Degradation(color_jitter_probability=1).sample(np.random.default_rng(0), 128)
        assert all(abs(shift) <= 20 / 255 for shift in drawn.color_shift)


class TestOptions:
    def test_unknown_key_names_the_nearest(self):
        with pytest.raises(KeyError, match="did you mean 'downsample'"):
            deg.Degradation(downsampel=(1, 2))

    def test_unknown_preset_names_the_nearest(self):
        with pytest.raises(ValueError, match="did you mean 'gfpgan'"):
            deg.Degradation("gfpgann")

    @pytest.mark.parametrize(
        "key, value",
        [
            ("blur_sigma", (5, 1)),
            ("blur_sigma", (0, 1)),
            ("downsample", (0, 4)),
            ("noise", (-1, 4)),
            ("noise", "loud"),
            ("jpeg", (0, 90)),
            ("jpeg", (50, 101)),
            ("jpeg", (50, 60, 70)),
            ("kernel_size", 40),
            ("kernel_size", 4.0),
            ("isotropic_probability", 1.5),
            ("downsample_kernels", ["sinc"]),
            ("upsample_kernels", []),
            ("reference_size", 0),
        ],
    )
    def test_bad_values_name_their_key(self, key, value):
        with pytest.raises(ValueError, match=key):
            deg.Degradation(**{key: value})

    def test_bad_image(self):
        with pytest.raises(ValueError, match="uint8"):
            deg.Degradation()(np.zeros((8, 8, 3), np.uint8), np.random.default_rng(0))

    def test_build_by_name(self, monkeypatch):
        monkeypatch.setattr(deg, "DEGRADATIONS", dict(deg.DEGRADATIONS))

        @deg.register_degradation
        class Invert:
            def __init__(self, strength):
                self.strength = strength

        assert deg.build_degradation({"type": "Invert", "strength": 2}).strength == 2
        assert deg.build_degradation({"preset": "codeformer", "jpeg": [40, 90]}).options["jpeg"] == (40, 90)
        with pytest.raises(ValueError, match="did you mean 'Invert'"):
            deg.build_degradation({"type": "Inverted"})
        with pytest.raises(KeyError, match="registered already"):
            deg.register_degradation(type("Invert", (), {}))
