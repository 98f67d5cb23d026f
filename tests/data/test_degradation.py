"""The degradation against plain definitions: each step on its own, the whole chain replayed, the ranges, the options."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from skimage.data import astronaut

from oracles import degradation as oracle
from sgpn_arch.errors import OptionError
from sgpn_data import degradation as deg

# sigma in pixels, r, delta in grey levels, q: the ranges printed in GFP-GAN's paper, in its code, and in CodeFormer's.
RANGES = {
    "gfpgan": ((0.2, 10), (1, 8), (0, 15), (60, 100)),
    "gfpgan_code": ((0.1, 10), (0.8, 8), (0, 20), (60, 100)),
    "codeformer": ((1, 15), (4, 30), (0, 20), (30, 80)),
}


@pytest.fixture(scope="module")
def photo():
    """A 128 px BGR face photo, float32 in [0, 1]."""
    face = np.ascontiguousarray(astronaut()[:256, 96:352, ::-1])
    return cv2.resize(face, (128, 128), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


class TestBlur:
    @settings(deadline=None, max_examples=30)
    @given(
        st.sampled_from([1, 3, 11, 21]),
        st.floats(0.05, 15.0),
        st.floats(0.05, 15.0),
        st.floats(0, np.pi),
        st.booleans(),
    )
    def test_kernel_is_the_normalised_gaussian_of_the_turned_covariance(self, size, along, across, angle, isotropic):
        """Also where the kernel is cut off, and where sigma is far below a pixel."""
        ours = deg.gaussian_kernel(size, along, None if isotropic else across, angle)
        wanted = oracle.gaussian_kernel(size, along, along if isotropic else across, angle)
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-7)
        assert ours.dtype == np.float32 and ours.sum() == pytest.approx(1, abs=1e-5)

    def test_a_long_kernel_at_45_degrees_smears_down_and_to_the_right(self):
        """The direction with y down, seen on a dot: from the upper left to the lower right."""
        dot = np.zeros((21, 21, 3), np.float32)
        dot[10, 10] = 1
        smeared = deg.blur(dot, deg.gaussian_kernel(21, 4.0, 0.5, np.pi / 4))[..., 0]
        assert smeared[14, 14] > 100 * smeared[6, 14] and smeared[14, 14] == pytest.approx(smeared[6, 6])

    def test_filtering_is_scipys_convolution(self, photo):
        kernel = deg.gaussian_kernel(15, 3.0, 1.2, 0.7)
        np.testing.assert_allclose(deg.blur(photo, kernel), oracle.convolve(photo, kernel), atol=1e-5)

    @settings(deadline=None, max_examples=30)
    @given(
        st.integers(2, 50),
        st.integers(2, 50),
        st.sampled_from([11, 13, 15, 41]),
        st.sampled_from([1, 3, 13, 21]),
        st.data(),
    )
    def test_any_kernel_on_any_picture_is_scipys_correlation(self, height, width, rows, columns, data):
        """Also one that is not symmetric, is larger than the picture, or goes through spectra instead of sums."""
        rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
        image = rng.random((height, width, 3), dtype=np.float32)
        kernel = rng.random((rows, columns), dtype=np.float32)
        kernel /= kernel.sum()
        wanted = oracle.convolve(image, kernel[::-1, ::-1])
        np.testing.assert_allclose(deg.blur(image, kernel), wanted, atol=2e-6)

    @pytest.mark.parametrize("sigma", [0.3, 2.0, 7.0, 15.0])
    def test_isotropic_blur_is_scipys_gaussian_filter(self, photo, sigma):
        wanted = ndimage.gaussian_filter(photo.astype(np.float64), (sigma, sigma, 0), mode="mirror", radius=(20, 20, 0))
        np.testing.assert_allclose(deg.blur_isotropic(photo, sigma, 41), wanted, atol=1e-5)

    @pytest.mark.parametrize("size, sigma", [(4, 1.0), (0, 1.0), (5, 0.0), (5, -1.0)])
    def test_bad_arguments(self, size, sigma):
        with pytest.raises(ValueError, match="gaussian_kernel"):
            deg.gaussian_kernel(size, sigma)


@pytest.mark.parametrize("kernel, sizes", [("area", (1, 30)), ("linear", (1, 70)), ("cubic", (1, 70))])
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_resizing_is_its_definition_at_every_size(kernel, sizes, data):
    """OpenCV's area, linear and cubic against weights written out from intervals and half-pixel centres."""
    width, height = (data.draw(st.integers(*sizes)) for _ in range(2))
    image = np.random.default_rng(width * 1000 + height).random((30, 30, 3), dtype=np.float32)
    wanted = oracle.resize(image, width, height, kernel)
    np.testing.assert_allclose(deg.resize(image, width, height, kernel), wanted, atol=2e-5)


class TestNoise:
    def test_is_normal_and_independent_in_place_and_colour(self):
        flat = np.full((200, 200, 3), 0.99, np.float32)
        noise = (deg.add_gaussian_noise(flat, 10.0, np.random.default_rng(0)) - flat) * 255
        assert noise.dtype == np.float32 and noise.max() > 30, "not clipped at white"
        assert abs(noise.mean()) < 5 * 10 / np.sqrt(noise.size)
        assert stats.kstest(noise.ravel(), "norm", (0, 10)).pvalue > 0.01
        neighbours = [(noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1]), (noise[..., 1:], noise[..., :-1])]
        for here, there in neighbours:
            assert abs(np.corrcoef(here.ravel(), there.ravel())[0, 1]) < 0.015

    @pytest.mark.parametrize("delta", [0.0, 1.0, 20.0])
    def test_delta_is_the_deviation_in_grey_levels(self, photo, delta):
        noise = deg.add_gaussian_noise(photo, delta, np.random.default_rng(1)) - photo
        assert noise.std() * 255 == pytest.approx(delta, rel=0.01)


class TestJPEG:
    @pytest.mark.parametrize("quality", [10, 30, 60, 75, 95])
    def test_a_grey_picture_is_compressed_as_the_standard_says(self, photo, quality):
        """Far nearer to the standard at its own quality than one step up or down.

        Codecs round within the cosine transform, so now and then a coefficient goes the other way than exact sums do.
        """
        plane = np.rint(photo[..., 1] * 255)
        ours = deg.jpeg_compress(np.repeat(plane[..., None] / 255, 3, axis=2).astype(np.float32), quality) * 255
        assert np.ptp(ours, axis=2).max() == 0
        errors = [np.abs(ours[..., 0] - oracle.jpeg_gray(plane, q)).mean() for q in (quality - 1, quality, quality + 1)]
        assert errors[1] < 0.3 and errors[1] < 0.4 * min(errors[0], errors[2]), errors

    @pytest.mark.parametrize("quality", [10, 60, 95])
    def test_a_coloured_picture_is_compressed_as_pillow_does(self, photo, quality):
        """Blue, green, red in, the same out. Builds of libjpeg differ in rounding only."""
        ours, pillows = deg.jpeg_compress(photo, quality), oracle.jpeg(photo, quality)
        assert np.abs(ours - pillows).mean() * 255 < 0.5 < 0.7 < np.abs(ours - photo).mean() * 255

    def test_shows_blocks_of_eight(self, photo):
        """Steps between columns stand out where blocks meet, and only there."""
        step = np.abs(np.diff(deg.jpeg_compress(photo, 10), axis=1)).mean(axis=(0, 2))
        seams = np.arange(len(step)) % 8 == 7
        before = np.abs(np.diff(photo, axis=1)).mean(axis=(0, 2))
        assert step[seams].mean() > 2 * step[~seams].mean()
        assert before[seams].mean() < 1.2 * before[~seams].mean()

    def test_clips_and_rounds_first(self):
        image = np.linspace(-1, 2, 64, dtype=np.float32).reshape(8, 8, 1).repeat(3, axis=2)
        np.testing.assert_allclose(deg.jpeg_compress(image, 100), np.clip(image, 0, 1), atol=2 / 255)


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

    @settings(deadline=None, max_examples=20)
    @given(st.integers(0, 2**31), st.sampled_from([None, 256]))
    def test_the_chain_is_the_papers_formula(self, seed, reference):
        """up(down(I * k) + n) recomputed from the drawn parameters in double precision; the same seed, the same noise."""
        image = np.random.default_rng(seed).random((56, 72, 3), dtype=np.float32)
        chain = deg.Degradation(
            jpeg=None,
            kernel_size=31,
            downsample=(1.5, 8),
            downsample_kernels=["area", "linear", "cubic"],
            upsample_kernels=["linear", "cubic"],
            gray_probability=0.3,
            color_jitter_probability=0.5,
            reference_size=reference,
        )
        rng = np.random.default_rng(seed)
        wanted = oracle.degrade(image, chain.sample(rng, 72), rng)
        # What the kernel loses beyond five sigmas, and sums in single precision.
        np.testing.assert_allclose(chain(image, np.random.default_rng(seed)), wanted, atol=1e-5)

    @pytest.mark.parametrize("preset", [*RANGES, "sr_x4", "sr_x8", "sr_x16"])
    @pytest.mark.parametrize("seed", range(2))
    def test_the_chain_with_pillows_jpeg(self, photo, preset, seed):
        """up(JPEG(down(I * k) + n)): a grey level may round the other way before the codec, and a little come of it."""
        rng = np.random.default_rng(seed)
        chain = deg.Degradation(preset)
        wanted = oracle.degrade(photo, chain.sample(rng, 128), rng)
        difference = np.abs(chain(photo, np.random.default_rng(seed)) - wanted)
        assert difference.mean() < 0.5 / 255 and np.percentile(difference, 99) < 4 / 255

    @pytest.mark.parametrize("preset", RANGES)
    def test_draws_fill_the_published_ranges_evenly(self, preset):
        rng = np.random.default_rng(0)
        draws = [deg.Degradation(preset).sample(rng, 512) for _ in range(2000)]
        unequal = [drawn for drawn in draws if drawn.sigma[0] != drawn.sigma[1]]
        assert len(unequal) / 2000 == pytest.approx(0.5, abs=0.05)
        steps = {(drawn.kernel_size, drawn.downsample_kernel, drawn.upsample_kernel) for drawn in draws}
        assert steps == {(41, "linear", "linear")}
        assert not any(drawn.gray or drawn.color_shift for drawn in draws)
        sigma, factor, delta, quality = RANGES[preset]
        columns = [
            ([drawn.sigma[0] for drawn in draws], sigma),
            ([drawn.sigma[1] for drawn in unequal], sigma),
            ([drawn.angle for drawn in unequal], (0, np.pi)),
            ([drawn.downsample for drawn in draws], factor),
            ([drawn.noise for drawn in draws], delta),
        ]
        for values, (low, high) in columns:
            assert stats.kstest(values, "uniform", (low, high - low)).pvalue > 0.005
            edge = 0.01 * (high - low)
            assert low <= min(values) < low + edge and high - edge < max(values) <= high
        counts = np.unique([drawn.jpeg for drawn in draws], return_counts=True)
        assert counts[0].tolist() == list(range(quality[0], quality[1] + 1)), "both ends are drawn"
        assert stats.chisquare(counts[1]).pvalue > 0.005
        along, across = np.array([drawn.sigma for drawn in unequal]).T
        assert abs(np.corrcoef(along, across)[0, 1]) < 0.1

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
        with pytest.raises(OptionError, match="did you mean 'downsample'"):
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
        assert deg.build_degradation({"preset": "codeformer", "jpeg": [40, 90]}).options.jpeg == (40, 90)
        with pytest.raises(ValueError, match="did you mean 'Invert'"):
            deg.build_degradation({"type": "Inverted"})
        with pytest.raises(KeyError, match="registered already"):
            deg.register_degradation(type("Invert", (), {}))
