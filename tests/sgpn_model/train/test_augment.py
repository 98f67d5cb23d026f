"""The augmentation against NumPy and SciPy, its probabilities counted, its derivatives, and the controller of p."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles import augment as oracle
from sgpn_arch.errors import OptionError
from sgpn_model.train import augment
from sgpn_model.train.augment import AdaptiveProbability, Augmentation, AugmentOptions, KindOptions

SIZE = 32
MANY = 4000


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


KINDS = tuple(KindOptions.model_fields)


def only(*kinds):
    return Augmentation(KindOptions(**{kind: float(kind in kinds) for kind in KINDS}))


def pictures(count=4, size=SIZE, dtype=torch.float64):
    return torch.rand(count, 3, size, size, dtype=dtype) * 2 - 1


def smooth_pictures(count=3):
    """Cosines that continue as a mirrored picture does, with at least eight pixels a wave."""
    line = torch.arange(SIZE, dtype=torch.float64) * math.pi / (SIZE - 1)
    waves = torch.stack([torch.cos(k * line) for k in range(SIZE // 4)])
    amplitudes = torch.randn(count, 3, len(waves), len(waves), dtype=torch.float64) / len(waves)
    return torch.einsum("nckl,ky,lx->ncyx", amplitudes, waves, waves)


def turned_and_scaled(angle, scale, shift):
    cosine, sine = math.cos(angle) * scale, math.sin(angle) * scale
    return [[cosine, -sine, shift[0]], [sine, cosine, shift[1]]]


IDENTITY = [[1.0, 0, 0], [0, 1, 0]]


def as_batch(source, count):
    return torch.tensor(source, dtype=torch.float64).expand(count, 2, 3)


class TestPixels:
    @pytest.mark.parametrize("flip", [False, True])
    @pytest.mark.parametrize("turns", [0, 1, 2, 3])
    @pytest.mark.parametrize("shift", [(0, 0), (3, -2), (-SIZE + 1, 5)])
    def test_as_numpy(self, flip, turns, shift):
        images = pictures(2)
        count = len(images)
        mine = augment.blit(
            images, torch.tensor([flip] * count), torch.tensor([turns] * count), torch.tensor([shift] * count)
        )
        for picture, result in zip(images.numpy(), mine.numpy(), strict=True):
            np.testing.assert_array_equal(result, oracle.blit(picture, flip, turns, shift))

    def test_pictures_must_be_square(self):
        with pytest.raises(ValueError, match="square pictures, found 8x6"):
            only("flip")(torch.zeros(1, 3, 6, 8), 1.0)


class TestWarp:
    def test_filter_is_orthogonal_with_six_vanishing_moments(self):
        taps = np.array(augment.SYM6)
        doubles = [np.dot(taps[2 * k :], taps[: len(taps) - 2 * k]) for k in range(6)]
        np.testing.assert_allclose(doubles, [1, 0, 0, 0, 0, 0], atol=1e-11)
        place, sign = np.arange(12), (-1.0) ** np.arange(12)
        np.testing.assert_allclose([np.sum(sign * place**p * taps) for p in range(6)], 0, atol=1e-8)

    @pytest.mark.parametrize("shift", [(0, 0), (5, -3)])
    def test_whole_pixels_are_exact(self, shift):
        images = pictures()
        source = [[1.0, 0, -shift[0]], [0, 1, -shift[1]]]
        result = augment.warp(images, as_batch(source, 4))
        expected = np.stack([oracle.blit(picture, False, 0, shift) for picture in images.numpy()])
        inside = np.s_[..., 6:-6, 6:-6] if any(shift) else np.s_[...]  # the filter looks six pixels beyond a mirror
        np.testing.assert_allclose(result.numpy()[inside], expected[inside], atol=1e-9)

    @settings(max_examples=15, deadline=None)
    @given(
        angle=st.floats(-3.1, 3.1),
        scale=st.floats(0.5, 1.3),
        shift=st.tuples(st.floats(-20, 20), st.floats(-20, 20)),
    )
    def test_as_splines(self, angle, scale, shift):
        torch.manual_seed(1)
        images = smooth_pictures()
        source = turned_and_scaled(angle, scale, shift)
        mine = augment.warp(images, as_batch(source, 3)).numpy()
        expected = np.stack([oracle.warp(picture, source) for picture in images.numpy()])
        assert np.abs(mine - expected).max() < 0.12 * images.abs().max()
        # The worst of 150 draws was 0.0215: where the picture shrinks, the splines keep what the filter takes away.
        assert np.sqrt(np.square(mine - expected).mean()) < 0.025 * images.std()

    def test_enlarging_a_smooth_picture_is_nearly_exact(self):
        images = smooth_pictures()
        source = turned_and_scaled(0.4, 0.6, (1.3, -2.2))
        mine = augment.warp(images, as_batch(source, 3)).numpy()
        expected = np.stack([oracle.warp(picture, source) for picture in images.numpy()])
        assert np.sqrt(np.square(mine - expected).mean()) < 0.01 * images.std()

    def test_shrinking_does_not_alias(self):
        """Every second pixel of a chequerboard is white; the average of them all is grey."""
        board = torch.ones(1, 3, SIZE, SIZE, dtype=torch.float64)
        board[..., ::2, 1::2] = board[..., 1::2, ::2] = -1
        shrunk = augment.warp(board, as_batch([[2.0, 0, 0.5], [0, 2, 0.5]], 1))
        assert shrunk.abs().mean() < 0.05


class TestColour:
    amounts = torch.tensor([0.5, -0.3, 1.7], dtype=torch.float64)

    @pytest.mark.parametrize(
        ("matrices", "expected"),
        [
            (augment.brightened, lambda colours, amount: colours + amount),
            (augment.contrasted, lambda colours, amount: colours * amount),
            (augment.hue_turned, oracle.hue_turned),
            (augment.saturated, oracle.saturated),
        ],
    )
    def test_each(self, matrices, expected):
        images = pictures(3)
        mine = augment.recolour(images, matrices(self.amounts)[:, :3]).permute(0, 2, 3, 1).numpy()
        for result, picture, amount in zip(mine, images, self.amounts.tolist(), strict=True):
            colours = picture.permute(1, 2, 0).numpy()
            np.testing.assert_allclose(result, expected(colours, amount), atol=1e-12)

    def test_luma_flip(self):
        images = pictures(2)
        flips = torch.tensor([0.0, 1.0], dtype=torch.float64)
        mine = augment.recolour(images, augment.luma_flipped(flips)[:, :3])
        torch.testing.assert_close(mine[0], images[0])
        expected = oracle.luma_flipped(images[1].permute(1, 2, 0).numpy())
        np.testing.assert_allclose(mine[1].permute(1, 2, 0).numpy(), expected, atol=1e-12)

    def test_a_third_of_a_turn_swaps_the_channels(self):
        red = torch.tensor([1.0, 0, 0])[None, :, None, None]
        turned = augment.recolour(red, augment.hue_turned(torch.tensor([2 * math.pi / 3]))[:, :3])
        torch.testing.assert_close(turned.flatten(), torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0)

    def test_order_is_the_papers(self):
        """With everything on, brightness comes before contrast: black plus b, times c."""
        views = only("brightness", "contrast").draw(pictures(MANY, 8), 1.0)
        offset, factor = views.colour[:, 0, 3], views.colour[:, 0, 0]
        brightness = offset / factor
        assert brightness.std().item() == pytest.approx(0.2, rel=0.1)
        assert np.corrcoef(brightness, factor.log())[0, 1] == pytest.approx(0, abs=0.08)


# What an augmentation of one kind changed, per picture, from the views.
CHANGED = {
    "flip": lambda views: views.flip,
    "quarter_turn": lambda views: views.turns != 0,
    "shift": lambda views: (views.shift != 0).any(1),
    **{
        kind: lambda views: (views.source - torch.tensor(IDENTITY)).abs().amax((1, 2)) > 1e-6
        for kind in ("scale", "rotate", "stretch", "subpixel_shift")
    },
    **{
        kind: lambda views: (views.colour - torch.eye(4)[:3]).abs().amax((1, 2)) > 1e-6
        for kind in ("brightness", "contrast", "luma_flip", "hue", "saturation")
    },
}
# The share of draws of a kind that change anything.
EFFECTIVE = {"flip": 1 / 2, "quarter_turn": 3 / 4, "luma_flip": 1 / 2}


class TestProbability:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("p", [0.3, 1.0])
    def test_of_each_kind(self, kind, p):
        views = only(kind).draw(torch.empty(MANY, 1, 1, 4096), p)
        share = p * EFFECTIVE.get(kind, 1.0)
        found = CHANGED[kind](views).float().mean().item()
        assert abs(found - share) < 5 * math.sqrt(share * (1 - share) / MANY) + 1e-3
        for other in KINDS:
            if CHANGED[other] is not CHANGED[kind] and not same_part(other, kind):
                assert not CHANGED[other](views).any(), other

    def test_factors_multiply_it(self):
        views = Augmentation(KindOptions(**{**dict.fromkeys(KINDS, 0.0), "hue": 0.25})).draw(pictures(MANY, 8), 0.8)
        assert CHANGED["hue"](views).float().mean().item() == pytest.approx(0.2, abs=0.03)

    def test_kinds_are_drawn_apart(self):
        views = Augmentation().draw(pictures(MANY, 8), 0.5)
        parts = torch.stack([CHANGED[kind](views).float() for kind in ("flip", "shift", "scale", "hue")])
        assert (torch.corrcoef(parts) - torch.eye(4)).abs().max() < 0.08

    def test_none_at_zero_and_faces_stay_upright_by_default(self):
        images = pictures()
        assert Augmentation()(images, 0.0) is images
        assert not CHANGED["quarter_turn"](Augmentation().draw(pictures(MANY, 8), 1.0)).any()


def same_part(one, other):
    """Kinds whose change shows in the same attribute of the views."""
    geometry, colour = {"scale", "rotate", "stretch", "subpixel_shift"}, {"brightness", "contrast", "luma_flip", "hue"}
    colour |= {"saturation"}
    return any({one, other} <= part for part in (geometry, colour))


class TestStrength:
    def draw(self, *kinds, size=64):
        return only(*kinds).draw(torch.empty(MANY, 1, 1, size), 1.0)

    def test_scale(self):
        source = self.draw("scale").source
        logs = -torch.log2(source[:, 0, 0])
        assert logs.std().item() == pytest.approx(0.2, rel=0.06) and logs.mean().item() == pytest.approx(0, abs=0.02)
        assert torch.equal(source[:, 0, 0], source[:, 1, 1]) and not source[:, 0, 1].any()

    def test_stretch_keeps_the_area(self):
        linear = self.draw("stretch").source[:, :, :2]
        torch.testing.assert_close(torch.det(linear), torch.ones(MANY))
        assert torch.log2(linear[:, 1, 1]).std().item() == pytest.approx(0.2, rel=0.06)

    def test_rotations_before_and_after_stretching(self):
        """Rotation alone is orthogonal; with stretching the singular values are the stretch's, its axes any."""
        linear = self.draw("rotate").source[:, :, :2]
        torch.testing.assert_close(linear @ linear.mT, torch.eye(2).expand(MANY, 2, 2), atol=1e-5, rtol=0)
        angles = torch.atan2(linear[:, 1, 0], linear[:, 0, 0])
        assert np.histogram(angles, 4)[0].min() > 0.2 * MANY
        both = torch.linalg.svdvals(self.draw("rotate", "stretch").source[:, :, :2])
        assert torch.log2(both[:, 0] / both[:, 1]).square().mean().sqrt().item() == pytest.approx(0.4, rel=0.06)

    def test_shifts_come_after_scaling(self):
        views = self.draw("scale", "subpixel_shift")
        shift = -views.source[:, :, 2] / views.source[:, 0, 0, None]
        assert shift.std(dim=0).tolist() == pytest.approx([8, 8], rel=0.06)  # an eighth of 64
        assert np.corrcoef(shift[:, 0].abs(), views.source[:, 0, 0])[0, 1] == pytest.approx(0, abs=0.06)

    def test_whole_pixel_shift(self):
        shift = self.draw("shift").shift
        assert shift.abs().max() == 8 and shift.float().std().item() == pytest.approx(8 / math.sqrt(3), rel=0.06)

    def test_luma_flip_hue_and_saturation(self):
        for kind in ("luma_flip", "hue", "saturation"):
            colour = self.draw(kind).colour[:, :, :3]
            grey = torch.ones(MANY, 3, 1)
            assert torch.allclose((colour @ grey).abs(), grey, atol=1e-5), kind
        contrast = torch.log2(self.draw("contrast").colour[:, 0, 0])
        assert contrast.std().item() == pytest.approx(0.5, rel=0.06)


class TestDerivatives:
    def views(self, images):
        return Augmentation(KindOptions(**dict.fromkeys(KINDS, 1.0))).draw(images, 0.8)

    def test_first_and_second(self):
        images = pictures(2, 8).requires_grad_(True)
        views = self.views(images)
        assert torch.autograd.gradcheck(lambda x: augment.apply(x, views), images, fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda x: augment.apply(x, views) ** 3, images, fast_mode=True)

    def test_sampling_equals_pytorchs(self):
        images = pictures(2, 8).requires_grad_(True)
        places = torch.rand(2, 5, 6, 2, dtype=torch.float64) * 2.4 - 1.2
        weights = torch.randn(2, 3, 5, 6, dtype=torch.float64)
        ours = augment.BilinearSampling.apply(images, places)
        theirs = torch.nn.functional.grid_sample(images, places, align_corners=False)
        torch.testing.assert_close(ours, theirs)
        gradients = [torch.autograd.grad((result * weights).sum(), images)[0] for result in (ours, theirs)]
        torch.testing.assert_close(*gradients)

    def test_under_autocast_it_stays_float32(self):
        images = pictures(dtype=torch.float32)
        generator = torch.Generator().manual_seed(3)
        expected = Augmentation()(images, 0.8, generator)
        with torch.autocast("cpu", torch.bfloat16):
            result = Augmentation()(images, 0.8, generator.manual_seed(3))
        assert result.dtype == torch.float32 and torch.equal(result, expected)


class TestRandomness:
    def test_depends_on_the_generator_alone(self):
        images = pictures(dtype=torch.float32)
        generator = torch.Generator().manual_seed(5)
        state = torch.get_rng_state()
        first = Augmentation()(images, 0.7, generator)
        assert torch.equal(state, torch.get_rng_state())
        assert not torch.equal(first, Augmentation()(images, 0.7, generator))
        assert torch.equal(first, Augmentation()(images, 0.7, generator.manual_seed(5)))

    def test_nothing_leaks_between_pictures(self):
        images = pictures(5, dtype=torch.float32)
        other = images.clone()
        other[2] = 100.0
        results = [Augmentation()(x, 0.9, torch.Generator().manual_seed(1)) for x in (images, other)]
        same = [torch.equal(a, b) for a, b in zip(*results, strict=True)]
        assert same == [True, True, False, True, True]

    def test_each_picture_gets_its_own(self):
        images = pictures(1, dtype=torch.float32).repeat(6, 1, 1, 1)
        results = Augmentation()(images, 1.0)
        assert min((a - b).abs().max() for i, a in enumerate(results) for b in results[:i]) > 0.01


class TestController:
    def test_rises_while_the_discriminator_is_sure_and_falls_when_it_is_not(self):
        controller = AdaptiveProbability(AugmentOptions(target=0.6, ramp_images=1000, every=2, max_p=0.8))
        for _ in range(10):  # sure of all: r_t = 1
            controller.update(16, 16)
        assert controller.p == pytest.approx(160 / 1000) and controller.overfitting == 1
        for _ in range(4):  # of 12 against 4: r_t = 0.5
            controller.update(8, 16)
        assert controller.p == pytest.approx(96 / 1000) and controller.overfitting == 0.5
        for _ in range(20):
            controller.update(-16, 16)
        assert controller.p == 0
        for _ in range(200):
            controller.update(16, 16)
        assert controller.p == 0.8

    def test_moves_only_now_and_then_by_the_mean_in_between(self):
        controller = AdaptiveProbability(AugmentOptions(ramp_images=100, every=4))
        for signs in (8, -8, 8):
            controller.update(signs, 8)
            assert controller.p == 0 and controller.overfitting == 0
        controller.update(8, 8)
        assert controller.overfitting == 0.5 and controller.p == 0

    def test_fixed_without_a_target(self):
        controller = AdaptiveProbability(AugmentOptions(p=0.3, target=None, every=1, ramp_images=10))
        controller.update(8, 8)
        assert controller.p == 0.3 and controller.overfitting == 1

    def test_goes_on_where_it_was(self):
        one, other = (AdaptiveProbability(AugmentOptions(ramp_images=100, every=3)) for _ in range(2))
        for _ in range(4):
            one.update(7, 8)
        other.load_state_dict(one.state_dict())
        for controller in (one, other):
            for _ in range(5):
                controller.update(8, 8)
        assert one.state_dict() == other.state_dict() and one.p > 0.4

    @pytest.mark.parametrize(
        ("section", "message"),
        [
            ({"p": 0.9}, "p: is 0.9, above max_p, which is 0.8"),
            ({"every": 0}, "every: expected a whole number of at least 1, found 0"),
            ({"target": 2}, "target: expected a number from -1 to 1 or ~ .nothing., found 2"),
            ({"kinds": {"rotation": 1}}, "kinds.rotation: unknown option; did you mean 'rotate'"),
            ({"kinds": {"hue": 1.5}}, "kinds.hue: expected a number from 0 to 1, found 1.5"),
        ],
    )
    def test_refusals(self, section, message):
        with pytest.raises(OptionError, match=message):
            AugmentOptions.read(section)
