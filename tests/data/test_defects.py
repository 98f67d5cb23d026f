"""The defects of real photos against their definitions: statistics, closed forms, plain loops; and that options draw them."""

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from skimage.data import astronaut

from sgpn_arch.errors import OptionError
from sgpn_data import defects
from sgpn_data.degradation import Degradation, DegradationMixture, jpeg_compress

PLAIN = {"blur_sigma": None, "downsample": None, "noise": None, "jpeg": None}


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def photo():
    face = np.ascontiguousarray(astronaut()[:256, 96:352, ::-1])
    return cv2.resize(face, (128, 128), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def flat(tone, size=256):
    return np.full((size, size, 3), tone, np.float32)


class TestFade:
    def test_black_rises_and_white_takes_its_tint(self):
        white = np.array([0.8, 0.9, 1.0])
        assert np.allclose(defects.fade(flat(0, 4), 0.6, white), 0.21, atol=1e-6)
        assert np.allclose(defects.fade(flat(1, 4), 0.6, white), white, atol=1e-6)
        assert np.allclose(defects.fade(flat(0.5, 4), 0.6, white), (0.21 + white) / 2, atol=1e-6)

    def test_colours_lose_half_of_the_strength(self, photo):
        faded = defects.fade(photo, 0.4, np.ones(3))
        chroma = np.ptp(photo, axis=2) * (1 - 0.2) * (1 - 0.35 * 0.4)
        assert np.allclose(np.ptp(faded, axis=2), chroma, atol=1e-5)

    def test_no_strength_changes_nothing(self, photo):
        assert np.allclose(defects.fade(photo, 0, np.ones(3)), photo, atol=1e-6)


class TestScratches:
    def test_a_line_covers_its_length_times_its_width(self):
        for way in ([[20, 30], [90, 30]], [[20, 20], [80, 100]]):
            way = np.array(way, float)
            for width in (1.0, 2.5, 4.0):
                cover = defects._line((128, 128), way, width)
                length = np.linalg.norm(way[1] - way[0])
                assert cover.sum() == pytest.approx(length * width, rel=0.15, abs=width**2)
                assert cover.max() <= 1 and cover[:, :10].max() == 0

    def test_a_line_lies_where_it_was_drawn(self):
        cover = defects._line((64, 64), np.array([[10.0, 20.0], [50.0, 20.0]]), 2.0)
        y, x = np.nonzero(cover > 0.1)
        assert np.average(y, weights=cover[y, x]) == pytest.approx(20, abs=0.3)
        assert np.average(x, weights=cover[y, x]) == pytest.approx(30, abs=0.3)

    def test_little_of_the_picture_changes_and_the_rest_stays_bit_for_bit(self, photo):
        scratched = defects.scratch(photo, 4, (0.6, 1.5), generator())
        changed = (scratched != photo).any(axis=2).mean()
        assert 0.002 < changed < 0.15
        assert scratched.min() >= 0 and scratched.max() <= 1


class TestHalftone:
    @settings(deadline=None, max_examples=15)
    @given(st.floats(0.05, 0.95), st.floats(4.0, 9.0), st.floats(0, 360))
    @example(0.50390625, 4.0, 0.0)  # a screen that lies on the grid on which it is drawn
    def test_the_mean_tone_stays(self, tone, pitch, angle):
        """But for a hundredth or two, where whole pitches repeat the samples of a dot."""
        printed = defects.halftone(flat(tone, 128), pitch, 0.3 * pitch, angle)
        assert np.allclose(printed[16:-16, 16:-16].mean(axis=(0, 1)), tone, atol=0.03)

    def test_black_and_white_have_no_dots(self):
        for tone in (0.0, 1.0):
            assert np.allclose(defects.halftone(flat(tone, 64), 5, 1.5, 10), tone, atol=0.02)

    @pytest.mark.parametrize("angle", [0, 30])
    def test_dots_are_pitch_apart_along_the_turned_axes(self, angle):
        """Of the blue channel, whose screen is turned by ``angle``: the spectrum's peaks."""
        printed = defects.halftone(flat(0.5, 240), 8.0, 0.5, angle)[..., 0]
        spectrum = np.abs(np.fft.fft2(printed - printed.mean()))
        y, x = np.unravel_index(spectrum.argmax(), spectrum.shape)
        fy, fx = (np.fft.fftfreq(240)[place] for place in (y, x))
        assert np.hypot(fy, fx) == pytest.approx(1 / 8, rel=0.03)
        assert (
            np.rad2deg(np.arctan2(fy, fx)) % 90 == pytest.approx(angle, abs=2)
            or angle == 0
            and min(abs(fx), abs(fy)) < 0.003
        )


class TestGrain:
    @pytest.mark.parametrize("size", [0.0, 0.6, 1.5])
    def test_its_deviation_at_middle_grey_and_how_far_it_reaches(self, size):
        grain = defects.add_grain(flat(0.5, 512), 12, size, generator())[..., 0] - 0.5
        inner = grain[16:-16, 16:-16]
        assert inner.std() * 255 == pytest.approx(12, rel=0.04)
        # Of independent values filtered by a profile, neighbours correlate as the profile with itself, one pixel on.
        profile = np.exp(-0.5 * (np.arange(-20, 21) / max(size, 1e-9)) ** 2)
        wanted = (profile[1:] * profile[:-1]).sum() / (profile**2).sum()
        found = np.corrcoef(inner[:, :-1].ravel(), inner[:, 1:].ravel())[0, 1]
        assert found == pytest.approx(wanted, abs=0.03)

    def test_it_is_grey_and_weaker_at_black_and_white(self, photo):
        change = defects.add_grain(photo, 10, 1.0, generator()) - photo
        assert np.ptp(change, axis=2).max() < 1e-6
        dark, middle = (np.std(defects.add_grain(flat(tone), 10, 1.0, generator()) - tone) for tone in (0.0, 0.5))
        assert dark == pytest.approx(0.3 * middle, rel=1e-3)


class TestSensorNoise:
    @pytest.mark.parametrize("tone", [0.0, 0.25, 1.0])
    def test_its_variance_is_linear_in_the_light(self, tone):
        noise = defects.add_sensor_noise(flat(tone, 512), 20, 5, generator()) - tone
        assert noise.std() * 255 == pytest.approx(np.sqrt(400 * tone + 25), rel=0.01)
        assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.01


class TestMotion:
    @settings(deadline=None, max_examples=25)
    @given(st.floats(0.5, 30), st.floats(0, np.pi))
    def test_the_kernels_moments_are_those_of_the_way(self, length, angle):
        """Sum 1, centre 0, length^2 / 12 along, and at most the variance of bilinear interpolation, 1/4, added."""
        kernel = defects.motion_kernel(length, angle).astype(float)
        grid = np.arange(len(kernel)) - len(kernel) // 2
        x, y = np.meshgrid(grid, grid)
        assert kernel.sum() == pytest.approx(1, abs=1e-5)
        assert (kernel * x).sum() == pytest.approx(0, abs=1e-4) and (kernel * y).sum() == pytest.approx(0, abs=1e-4)
        along = (kernel * (np.cos(angle) * x + np.sin(angle) * y) ** 2).sum()
        across = (kernel * (np.cos(angle) * y - np.sin(angle) * x) ** 2).sum()
        assert -0.01 < along - length**2 / 12 < 0.27 and -1e-6 < across < 0.27

    def test_straight_ahead_it_is_the_exact_integral(self):
        """A way of 3 pixels: the triangle of bilinear interpolation integrated by hand."""
        kernel = defects.motion_kernel(3.0, 0.0)
        assert np.allclose(kernel[3, 1:6] * 3, [0.125, 0.875, 1, 0.875, 0.125], atol=1e-4)
        assert np.delete(kernel, 3, axis=0).max() < 1e-6


class TestResampled:
    def test_it_shows_the_nearest_pixels(self):
        """At half its size, one pixel of each two by two; brought back linearly."""
        image = generator().random((8, 8, 3), dtype=np.float32)
        shown = image[1::2, 1::2]  # centres: 2 (k + 0.5) = 2k + 1
        wanted = cv2.resize(shown, (8, 8), interpolation=cv2.INTER_LINEAR)
        assert np.allclose(defects.resample(image, 0.5, 0.0), wanted)

    def test_sharpening_adds_the_difference_from_a_blur(self, photo):
        plain, sharp = (defects.resample(photo, 1.0, amount) for amount in (0.0, 0.7))
        assert np.allclose(plain, photo)
        wanted = photo + 0.7 * (photo - cv2.GaussianBlur(photo, (0, 0), 1.0))
        assert np.allclose(sharp, wanted, atol=1e-5)


def test_blocks_are_shifted_by_the_corner(photo):
    """A step that marks the corners of its blocks of 8 shows where these lie in the picture."""

    def mark(image):
        image = image.copy()
        image[::8, ::8] = 2
        return image

    marked = defects.shifted(photo, np.array([3, 5]), mark)
    assert marked.shape == photo.shape
    assert set(np.nonzero((marked == 2).all(axis=2))[0] % 8) == {5}
    assert set(np.nonzero((marked == 2).all(axis=2))[1] % 8) == {3}


NAMES = tuple(defects.DefectOptions.model_fields)


class TestOptions:
    @pytest.mark.parametrize("name", NAMES)
    def test_each_happens_as_often_as_it_says(self, photo, name):
        small = photo[:32, :32]
        never, always = (Degradation(**PLAIN, defects={name: {"probability": chance}}) for chance in (0, 1))
        half = Degradation(**PLAIN, defects={name: {"probability": 0.5}})
        rng = generator(1)
        assert all(np.array_equal(never(small, rng), small) for _ in range(5))
        assert all(not np.array_equal(always(small, rng), small) for _ in range(5))
        happened = sum(not np.array_equal(half(small, rng), small) for _ in range(60))
        assert 15 <= happened <= 45

    def test_all_of_them_at_once_stay_a_picture(self, photo):
        everything = {name: {"probability": 1} for name in NAMES}
        degraded = DegradationMixture({"mild": 1, "severe": 1}, reference_size=512, defects=everything)(
            photo, generator()
        )
        assert degraded.shape == photo.shape and degraded.dtype == np.float32
        assert degraded.min() >= 0 and degraded.max() <= 1 and degraded.std() > 0.03

    def test_they_happen_before_the_chain_and_leave_its_draws_alone_without_them(self, photo):
        """With grain that changes nothing, the picture is the one without defects, but for the draws that it cost."""
        degraded = Degradation("mild", defects={})(photo, generator(3))
        assert np.array_equal(degraded, Degradation("mild")(photo, generator(3)))

    def test_lengths_shrink_with_the_picture(self, photo):
        """At a quarter of the reference, motion of 16 pixels blurs as 4 pixels do."""
        options = {"motion_blur": {"probability": 1, "length": 16}}
        large = Degradation(**PLAIN, reference_size=512, defects=options)(photo, generator(4))
        small = Degradation(**PLAIN, defects={"motion_blur": {"probability": 1, "length": 4}})(photo, generator(4))
        assert np.allclose(large, small, atol=1e-6)

    def test_repeated_jpeg_is_a_jpeg_on_a_shifted_grid(self, photo):
        options = {"repeated_jpeg": {"probability": 1, "times": 1, "quality": 30}}
        degraded = Degradation(**PLAIN, defects=options)(photo, generator(5))
        errors = []
        for down in range(8):
            for right in range(8):
                one = defects.shifted(photo, np.array([down, right]), lambda part: jpeg_compress(part, 30))
                errors.append(np.abs(one - degraded).max())
        assert min(errors) == 0 and sorted(errors)[1] > 0.01

    @pytest.mark.parametrize(
        "wrong, key",
        [
            ({"grain": {"size": -1}}, "defects.grain.size"),
            ({"halftone": {"pitch": [9, 3]}}, "defects.halftone.pitch"),
            ({"dust": {}}, "defects.dust"),
            ({"repeated_jpeg": {"quality": 0}}, "defects.repeated_jpeg.quality"),
            ({"motion_blur": {"probability": 2}}, "defects.motion_blur.probability"),
        ],
    )
    def test_what_is_wrong_is_named(self, wrong, key):
        with pytest.raises(OptionError, match=key):
            Degradation("mild", defects=wrong)
