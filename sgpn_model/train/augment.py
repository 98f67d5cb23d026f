"""Adaptive augmentation for GANs on few pictures: random views of a batch, and the probability that follows the discriminator.

Source: Karras et al., "Training Generative Adversarial Networks with Limited Data", NeurIPS 2020 (StyleGAN2-ADA), the kinds
that it calls blitting, geometry and colour. The discriminator sees nothing but augmented pictures, real and made, so the
generator still learns the distribution of the plain ones as long as each kind is left out often enough.

Why not kornia: its augmentations are differentiable, but each resamples the picture anew, colours are clamped (no gradient
where a generator overshoots), and the random numbers are the process's own. Here all geometry is one warp and all colour one
matrix, as in the paper. What differs from it: mirroring, quarter turns and whole-pixel shifts are exact copies rather than
part of the warp; and a warp mirrors the picture at its borders as often as needed, where the paper pads as far as the
batch's largest transformation reaches, at most by the picture's size.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional

from sgpn_arch.errors import OptionError
from sgpn_arch.ranges import Count, Fraction
from sgpn_arch.schema import Options


class KindOptions(Options):
    """``train.augment.kinds``: factor on p for each kind. Aligned faces never lie on their side, hence no quarter turns."""

    flip: Fraction = 1.0
    """Mirrored left to right."""
    quarter_turn: Fraction = 0.0
    """Turned by multiples of 90 degrees."""
    shift: Fraction = 1.0
    """Moved by whole pixels."""
    scale: Fraction = 1.0
    """Made larger or smaller."""
    rotate: Fraction = 1.0
    """Turned by any angle."""
    stretch: Fraction = 1.0
    """Made larger in one direction and smaller across it."""
    subpixel_shift: Fraction = 1.0
    """Moved by parts of pixels."""
    brightness: Fraction = 1.0
    """Made brighter or darker."""
    contrast: Fraction = 1.0
    """Differences from grey made larger or smaller."""
    luma_flip: Fraction = 1.0
    """Light made dark, colours kept."""
    hue: Fraction = 1.0
    """Colours turned about the grey axis."""
    saturation: Fraction = 1.0
    """Made more or less colourful."""


class AugmentOptions(Options):
    """``train.augment``: adaptive augmentation. For a folder of a few hundred faces, ramp_images of some 100000 is quicker."""

    p: Fraction = 0.0
    """Probability of each kind to start from; at most max_p."""
    target: Annotated[float, Ge(-1), Le(1)] | None = 0.6
    """Target for the discriminator's overfitting r_t; ~ keeps p as it is."""
    ramp_images: Count = 500_000
    """Real pictures seen by the discriminator in which p can go from 0 to 1."""
    every: Count = 4
    """Updates between two moves of p."""
    max_p: Fraction = 0.8
    """The greatest p (a choice of ours: the paper finds that above it the made pictures begin to look augmented themselves)."""
    kinds: KindOptions = KindOptions()
    """Factors on p."""

    @model_validator(mode="after")
    def _begins_within_its_limit(self) -> "AugmentOptions":
        if self.p > self.max_p:
            raise OptionError(f"p: is {self.p}, above max_p, which is {self.max_p}")
        return self


# Strengths of the paper. Shifts are parts of the picture's size; factors are 2 to the power of a normal number with this
# deviation.
SHIFT_MAX = 0.125
SUBPIXEL_SHIFT_STD = 0.125
SCALE_STD = 0.2
STRETCH_STD = 0.2
BRIGHTNESS_STD = 0.2
CONTRAST_STD = 0.5
SATURATION_STD = 1.0

# Symlet with six vanishing moments, the paper's filter (Daubechies 1992); the sum is sqrt(2).
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
# Where the filter has its centre of mass. Its vanishing moments make it exact: pixel i of the plain picture lies at
# 2 i + SYM6_CENTRE of the doubled one, for every polynomial up to the fifth degree.
SYM6_CENTRE = sum(i * tap for i, tap in enumerate(SYM6)) / sum(SYM6)
REACH = 3  # pixels beyond the border that the output's filter looks at
PADDING = 2 * REACH  # ... and that the input's filter needs in order to provide them


# ---------------------------------------------------------------------------------------------------------------------
# The random views


@dataclass
class Views:
    """What happens to each of N pictures.

    Attributes:
        flip: (N,) bool, mirrored left to right. turns: (N,) int64, quarter turns counter-clockwise, after the mirroring.
        shift: (N, 2) int64, pixels to the right and down, after the turns.
        source: (N, 2, 3), from a point of the result to the point of the picture that is seen there; both (x, y) in
            pixels from the centre.
        colour: (N, 3, 4), from (r, g, b, 1) in [-1, 1] to the new colour.
    """

    flip: Tensor
    turns: Tensor
    shift: Tensor
    source: Tensor
    colour: Tensor


class Augmentation:
    """Draws views and applies them. Every kind is drawn by itself, with a probability of p times its factor.

    Args:
        kinds: factor on p for each.
    """

    def __init__(self, kinds: KindOptions | None = None):
        self.factors: dict[str, float] = dict(kinds or KindOptions())

    def __call__(self, images: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor:
        """Augments every picture by itself.

        Args:
            images: (N, 3, S, S) RGB in [-1, 1]. p: probability of each kind, 0 to 1; at 0 the pictures come back as they
                are. generator: source of the random numbers, the global one of the pictures' device if None.

        Returns:
            (N, 3, S, S) float32, not clamped, differentiable in ``images`` twice.
        """
        if p <= 0:
            return images
        with torch.autocast(images.device.type, enabled=False):
            return apply(images, self.draw(images, p, generator))

    def draw(self, images: Tensor, p: float, generator: torch.Generator | None = None) -> Views:
        """Random views for a batch (N, 3, S, S); the same for the same state of the generator."""
        dice = Dice(len(images), p, self.factors, generator, images)
        size = images.shape[-1]
        flip = dice.if_chosen("flip", dice.choice(2))
        turns = dice.if_chosen("quarter_turn", dice.choice(4))
        shift = (dice.uniform(2) * SHIFT_MAX * size).round().long()
        shift = dice.if_chosen("shift", shift)
        return Views(flip.bool(), turns, shift, self._geometry(dice, size), self._colour(dice))

    @staticmethod
    def _geometry(dice: "Dice", size: int) -> Tensor:
        """Scaling, rotation, stretching, rotation, shift: the inverse of their product, i.e. from result to picture.

        Either rotation has the probability that makes at least one of them as likely as any other kind.
        """
        half = 1 - math.sqrt(1 - dice.probability("rotate"))
        zoom = torch.exp2(dice.if_chosen("scale", dice.normal() * SCALE_STD))
        before = dice.if_chosen("rotate", dice.uniform() * math.pi, half)
        stretch = torch.exp2(dice.if_chosen("stretch", dice.normal() * STRETCH_STD))
        after = dice.if_chosen("rotate", dice.uniform() * math.pi, half)
        shift = dice.if_chosen("subpixel_shift", dice.normal(2) * SUBPIXEL_SHIFT_STD * size)
        linear = rotation(-before) @ torch.diag_embed(torch.stack([1 / stretch, stretch], dim=1)) @ rotation(-after)
        linear = linear / zoom[:, None, None]
        return torch.cat([linear, -linear @ shift[:, :, None]], dim=2)

    @staticmethod
    def _colour(dice: "Dice") -> Tensor:
        """Brightness, contrast, luma flip, hue and saturation, in this order, as one matrix."""
        matrix = brightened(dice.if_chosen("brightness", dice.normal() * BRIGHTNESS_STD))
        matrix = contrasted(torch.exp2(dice.if_chosen("contrast", dice.normal() * CONTRAST_STD))) @ matrix
        matrix = luma_flipped(dice.if_chosen("luma_flip", dice.choice(2)).float()) @ matrix
        matrix = hue_turned(dice.if_chosen("hue", dice.uniform() * math.pi)) @ matrix
        matrix = saturated(torch.exp2(dice.if_chosen("saturation", dice.normal() * SATURATION_STD))) @ matrix
        return matrix[:, :3]


class Dice:
    """Random numbers for N pictures: always the same count of them, whatever is chosen."""

    def __init__(
        self, count: int, p: float, factors: dict[str, float], generator: torch.Generator | None, like: Tensor
    ):
        self.count, self.p, self.factors, self.generator = count, p, factors, generator
        self.device = like.device
        self.source = like.device if generator is None else generator.device

    def probability(self, kind: str) -> float:
        """Of a kind, at the present p."""
        return min(self.p, 1.0) * self.factors[kind]

    def if_chosen(self, kind: str, values: Tensor, probability: float | None = None) -> Tensor:
        """The values where the kind is drawn, 0, which changes nothing, elsewhere."""
        chosen = self._rand() < (self.probability(kind) if probability is None else probability)
        return torch.where(chosen.reshape(-1, *[1] * (values.ndim - 1)), values, torch.zeros_like(values))

    def _shape(self, width: int) -> tuple[int, ...]:
        return (self.count, width) if width else (self.count,)

    def _rand(self, width: int = 0) -> Tensor:
        return torch.rand(self._shape(width), generator=self.generator, device=self.source).to(self.device)

    def uniform(self, width: int = 0) -> Tensor:
        """From -1 to 1: (N,) or (N, width)."""
        return self._rand(width) * 2 - 1

    def normal(self, width: int = 0) -> Tensor:
        """N(0, 1): (N,) or (N, width)."""
        return torch.randn(self._shape(width), generator=self.generator, device=self.source).to(self.device)

    def choice(self, options: int) -> Tensor:
        """(N,) int64 from 0 to options - 1, all equally likely."""
        return (self._rand() * options).long().clamp_max(options - 1)


def apply(images: Tensor, views: Views) -> Tensor:
    """The views of the pictures (N, 3, S, S): exact copies, then one warp, then one colour matrix."""
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    images = blit(images, views.flip, views.turns, views.shift)
    return recolour(warp(images, views.source), views.colour)


# ---------------------------------------------------------------------------------------------------------------------
# Pixels


def blit(images: Tensor, flip: Tensor, turns: Tensor, shift: Tensor) -> Tensor:
    """Mirrors, turns and shifts (N, C, S, S) by whole pixels, see :class:`Views`; borders are mirrored.

    Raises:
        ValueError: the pictures are not square.
    """
    count, channels, height, size = images.shape
    if height != size:
        raise ValueError(f"augmentation takes square pictures, found {size}x{height}")
    line = torch.arange(size, device=images.device)
    x = _mirrored(line - shift[:, :1], size)[:, None, :].expand(-1, size, -1)
    y = _mirrored(line - shift[:, 1:], size)[:, :, None].expand(-1, -1, size)
    last, turn = size - 1, turns[:, None, None]
    # np.rot90 turns counter-clockwise: the pixel (x, y) of the turned picture was at (last - y, x).
    was_x = torch.where(turn == 0, x, torch.where(turn == 1, last - y, torch.where(turn == 2, last - x, y)))
    was_y = torch.where(turn == 0, y, torch.where(turn == 1, x, torch.where(turn == 2, last - y, last - x)))
    was_x = torch.where(flip[:, None, None], last - was_x, was_x)
    index = (was_y * size + was_x).reshape(count, 1, -1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, index).reshape(images.shape)


def _mirrored(places: Tensor, size: int) -> Tensor:
    """Numbers folded into 0..size-1 at the centres of the outermost pixels, as numpy's padding "reflect"."""
    period = 2 * (size - 1)
    places = places.remainder(period)
    return torch.minimum(places, period - places)


# ---------------------------------------------------------------------------------------------------------------------
# Geometry


def rotation(angle: Tensor) -> Tensor:
    """(N,) radians -> (N, 2, 2), from x towards y, which is clockwise to the eye, since y points down."""
    cosine, sine = torch.cos(angle), torch.sin(angle)
    return torch.stack([cosine, -sine, sine, cosine], dim=1).reshape(-1, 2, 2)


def warp(images: Tensor, source: Tensor) -> Tensor:
    """Warps each picture by an affine map, without aliasing down to half its scale.

    The picture is doubled by the orthogonal wavelet filter, sampled there bilinearly, and halved by the same filter; the
    identity and shifts by whole pixels therefore come out exactly.

    Args:
        images: (N, C, S, S), S at least 7. source: (N, 2, 3), see :class:`Views`. No gradient reaches it.
    """
    doubled = _double(functional.pad(images, [PADDING] * 4, mode="reflect"))
    places = _places(images.shape[-1], source.to(images.dtype))
    normal = (places * 2 + 1) / doubled.shape[-1] - 1
    return _halve(BilinearSampling.apply(doubled, normal))


def _places(size: int, source: Tensor) -> Tensor:
    """(N, M, M, 2): for each pixel of the doubled result, the pixel of the doubled and padded picture that it shows."""
    centre = (size - 1) / 2
    doubled_pixels = torch.arange(2 * (size - 1) + len(SYM6), device=source.device, dtype=source.dtype)
    line = (doubled_pixels - SYM6_CENTRE) / 2 - centre
    x, y = line[None, None, :, None], line[None, :, None, None]
    places = x * source[:, None, None, :, 0] + y * source[:, None, None, :, 1] + source[:, None, None, :, 2] + centre
    places = torch.where((places < -REACH) | (places > size - 1 + REACH), _mirrored(places, size), places)
    return 2 * (places + PADDING) + SYM6_CENTRE - (len(SYM6) - 2)  # as many come before the first that _double makes


def _double(images: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, 2 H - 10, 2 W - 10): zeros put between the pixels, and the filter, wherever it fits whole.

    Each of the four kinds of new pixels meets every second tap only, so that they are four small convolutions.
    """
    x = images.flatten(0, 1)[:, None]
    kernel = _filter_2d(images).flip(2, 3) * 2
    return functional.pixel_shuffle(functional.conv2d(x, kernel), 2).unflatten(0, images.shape[:2])[:, :, 0]


def _halve(images: Tensor) -> Tensor:
    """What undoes :func:`_double`: the filter the other way round, and every second pixel."""
    x = functional.pixel_unshuffle(images.flatten(0, 1)[:, None], 2)
    kernel = _filter_2d(images).transpose(0, 1) / 2
    return functional.conv2d(x, kernel).unflatten(0, images.shape[:2])[:, :, 0]


def _filter_2d(like: Tensor) -> Tensor:
    """(4, 1, 6, 6): the outer product of the taps, those for even and odd rows and columns apart."""
    taps = torch.tensor(SYM6, dtype=like.dtype, device=like.device)
    return torch.outer(taps, taps).reshape(6, 2, 6, 2).permute(1, 3, 0, 2).reshape(4, 1, 6, 6)


class BilinearSampling(torch.autograd.Function):
    """``grid_sample`` (bilinear, zeros outside) with second derivatives in the picture, which not every PyTorch has.

    Sampling at fixed places is linear, so the derivative of its adjoint is sampling again. None reaches the places.
    """

    @staticmethod
    def forward(ctx, images: Tensor, places: Tensor) -> Tensor:
        """(N, C, H, W) and places (N, h, w, 2) in [-1, 1] -> (N, C, h, w)."""
        ctx.save_for_backward(places)
        ctx.shape = images.shape
        return functional.grid_sample(images, places, mode="bilinear", padding_mode="zeros", align_corners=False)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        """The adjoint, differentiable in ``gradient``."""
        return BilinearSpreading.apply(gradient, ctx.saved_tensors[0], ctx.shape), None


class BilinearSpreading(torch.autograd.Function):
    """The adjoint of :class:`BilinearSampling`: (N, C, h, w) values are added to the pixels that they were sampled from."""

    @staticmethod
    def forward(ctx, values: Tensor, places: Tensor, shape: torch.Size) -> Tensor:
        """(N, C, h, w) -> ``shape``, (N, C, H, W)."""
        ctx.save_for_backward(places)
        pictures = values.new_empty(1).expand(shape)  # only the shape is looked at
        needed = (True, False)
        return torch.ops.aten.grid_sampler_2d_backward(values.contiguous(), pictures, places, 0, 0, False, needed)[0]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Sampling at the same places."""
        return BilinearSampling.apply(gradient, ctx.saved_tensors[0]), None, None


# ---------------------------------------------------------------------------------------------------------------------
# Colour: (N,) amounts -> (N, 4, 4) matrices on (r, g, b, 1), colours in [-1, 1]


def brightened(amount: Tensor) -> Tensor:
    """Adds the amount to every channel."""
    matrix = _identity(amount)
    matrix[:, :3, 3] = amount[:, None]
    return matrix


def contrasted(factor: Tensor) -> Tensor:
    """Multiplies the distance from middle grey."""
    return torch.diag_embed(torch.stack([factor, factor, factor, torch.ones_like(factor)], dim=1))


def luma_flipped(flip: Tensor) -> Tensor:
    """Where ``flip`` is 1, mirrors the grey axis: dark becomes light, hue and saturation stay."""
    return _identity(flip) - 2 * flip[:, None, None] * _grey_axis(flip)


def hue_turned(angle: Tensor) -> Tensor:
    """Turns colours around the grey axis by an angle in radians, red towards green (Rodrigues' formula)."""
    grey = _grey_axis(angle)
    third = 1 / math.sqrt(3)
    rows = [[0, -third, third, 0], [third, 0, -third, 0], [-third, third, 0, 0], [0] * 4]
    cross = torch.tensor(rows, dtype=angle.dtype, device=angle.device)
    cosine, sine = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    turned = grey + cosine * (_identity(angle) - grey) + sine * cross
    turned[:, 3, 3] = 1
    return turned


def saturated(factor: Tensor) -> Tensor:
    """Multiplies the distance from the grey axis."""
    grey = _grey_axis(factor)
    matrix = grey + factor[:, None, None] * (_identity(factor) - grey)
    matrix[:, 3, 3] = 1
    return matrix


def recolour(images: Tensor, colour: Tensor) -> Tensor:
    """Applies matrices (N, 3, 4) to the colours of pictures (N, 3, H, W)."""
    colour = colour.to(images.dtype)
    changed = torch.baddbmm(colour[:, :, 3:], colour[:, :, :3], images.flatten(2))
    return changed.reshape(images.shape)


def _identity(like: Tensor) -> Tensor:
    return torch.eye(4, dtype=like.dtype, device=like.device).repeat(len(like), 1, 1)


def _grey_axis(like: Tensor) -> Tensor:
    """(4, 4) projection onto the grey axis; it maps the 1 of (r, g, b, 1) to 0."""
    matrix = torch.zeros(4, 4, dtype=like.dtype, device=like.device)
    matrix[:3, :3] = 1 / 3
    return matrix


# ---------------------------------------------------------------------------------------------------------------------
# The probability


class AdaptiveProbability:
    """Moves p until the discriminator's overfitting is as wished (StyleGAN2-ADA, section 3.1).

    Overfitting is measured by ``r_t = E[sign(D(real))]``: 0 if reals look like anything, 1 if the discriminator is sure of
    each. If r_t is above the target p rises, else it falls, by as much as brings it from 0 to 1 in ``ramp_images``.

    Args:
        options: where p starts, and how it moves.

    Attributes:
        p: the present probability. overfitting: r_t at the last move, 0 before.
    """

    def __init__(self, options: AugmentOptions | None = None):
        self.options = options or AugmentOptions()
        self.p, self.overfitting = self.options.p, 0.0
        self._updates, self._signs, self._count = 0, 0.0, 0.0

    def update(self, signs: float, count: float) -> None:
        """Takes the sum of sign(D(real)) over ``count`` real pictures; moves p if it is time."""
        self._updates, self._signs, self._count = self._updates + 1, self._signs + signs, self._count + count
        options = self.options
        if self._updates < options.every:
            return
        self.overfitting = self._signs / self._count
        if options.target is not None:
            direction = (self.overfitting > options.target) - (self.overfitting < options.target)
            self.p = min(max(self.p + direction * self._count / options.ramp_images, 0.0), options.max_p)
        self._updates, self._signs, self._count = 0, 0.0, 0.0

    def state_dict(self) -> dict[str, float]:
        """All that changes, as plain numbers."""
        return {name: getattr(self, name) for name in ("p", "overfitting", "_updates", "_signs", "_count")}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Takes what :meth:`state_dict` gave."""
        for name in self.state_dict():
            setattr(self, name, state[name])
