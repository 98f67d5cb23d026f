"""The synthetic degradation of a good face photo: blur, downsample, noise, JPEG, upsample.

The paper's model:  I_lq = upsample( JPEG_q( downsample_r( I_hq * k_sigma ) + n_delta ) ).

Images are float32 HxWx3 arrays in [0, 1], **BGR** throughout (JPEG's chroma and the grey weights depend on
the order). Functions return new arrays and take their randomness from a ``numpy.random.Generator`` only. The
paper does not give its ranges; the presets are those of GFP-GAN and CodeFormer, the closest published work.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Le
from pydantic import BeforeValidator, Field, model_validator

from sgpn_arch.by_name import check_plugin
from sgpn_arch.ranges import Amount, Count, Fraction, OddCount, Positive, Told
from sgpn_arch.schema import Options, Span
from sgpn_data.defects import BGR_LUMA, DefectOptions, add_defects

RESIZE_KERNELS = {
    "area": cv2.INTER_AREA,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
}
# From this kernel size on, spectra are quicker than sums: measured, twice as quick at 512 px and three times at 256.
FOURIER_FROM = 13

Kernel = Literal["area", "linear", "cubic", "lanczos"]
Kernels = Annotated[
    tuple[Kernel, ...],
    Field(min_length=1),
    BeforeValidator(
        lambda names: (names,) if isinstance(names, str) else tuple(names) if isinstance(names, list) else names
    ),
    Told("area, linear, cubic or lanczos, or a list of them"),
]
Preset = Literal["gfpgan", "gfpgan_code", "codeformer", "mild", "medium", "severe", "clean", "sr_x4", "sr_x8", "sr_x16"]
Quality = Annotated[float, Ge(1), Le(100)]


class RangeOptions(Options):
    """``datasets.PHASE.degradation``: a range is [lo, hi] or one number, drawn uniformly; ``~`` switches the step off."""

    blur_sigma: Span[Positive] | None = (0.2, 10.0)
    """Standard deviation of the blur, pixels."""
    kernel_size: OddCount = 41
    """Size of the blur's kernel, pixels."""
    isotropic_probability: Fraction = 0.5
    """Chance that the blur is the same in all directions."""
    downsample: Span[Positive] | None = (1.0, 8.0)
    """Factor r by which the picture is made smaller."""
    noise: Span[Amount] | None = (0.0, 15.0)
    """Standard deviation delta, grey levels of 255."""
    jpeg: Span[Quality] | None = (60, 100)
    """Quality q."""
    downsample_kernels: Kernels = ("linear",)
    """Drawn uniformly."""
    upsample_kernels: Kernels = ("linear",)
    """Drawn uniformly."""
    gray_probability: Fraction = 0.0
    """Chance that the picture is grey."""
    color_jitter_probability: Fraction = 0.0
    """Chance that its colours are shifted."""
    color_jitter_shift: Amount = 20.0
    """Largest shift of a channel, grey levels of 255."""
    defects: DefectOptions | None = None
    """What happens to the picture before all that; ~: nothing, as in the paper."""
    reference_size: Count | None = None
    """Side of the good face that the ranges are meant for, pixels: pictures of another size are degraded as if
    they were such a face, shown at their size. ~: the ranges are those of the pictures at hand."""


class DegradationOptions(RangeOptions):
    """``datasets.PHASE.degradation`` with type Degradation: one of PRESETS, and what differs from it."""

    preset: Preset = "gfpgan"
    """Published ranges (gfpgan, gfpgan_code, codeformer), levels to judge restorers at (mild, medium, severe, clean), or
    super-resolution alone (sr_x4, sr_x8, sr_x16)."""

    @model_validator(mode="before")
    @classmethod
    def _on_top_of_the_preset(cls, options: dict) -> dict:
        preset = options.get("preset", "gfpgan")
        return {**(PRESETS.get(preset, {}) if isinstance(preset, str) else {}), **options}


class MixtureOptions(RangeOptions):
    """``datasets.PHASE.degradation`` with type DegradationMixture: several presets; what else is said counts for all."""

    presets: Annotated[
        dict[Preset, Positive], Field(min_length=1), Told("a mapping of presets to frequencies, such as {mild: 1}")
    ]
    """Preset -> how often it is drawn, relative to the others."""


_PLAIN = {"blur_sigma": None, "noise": None, "jpeg": None, "downsample_kernels": ("area",)}

PRESETS: dict[str, dict[str, Any]] = {
    "gfpgan": {},  # the ranges printed in GFP-GAN's paper: the defaults of RangeOptions
    "gfpgan_code": {"blur_sigma": (0.1, 10.0), "downsample": (0.8, 8.0), "noise": (0.0, 20.0)},
    "codeformer": {
        "blur_sigma": (1.0, 15.0),
        "downsample": (4.0, 30.0),
        "noise": (0.0, 20.0),
        "jpeg": (30, 80),
    },
    # Three levels to judge restorers at, and nothing at all (choices of ours); meant for reference_size 512.
    "mild": {"blur_sigma": (0.2, 4.0), "downsample": (1.0, 4.0), "noise": (0.0, 10.0), "jpeg": (60, 100)},
    "medium": {"blur_sigma": (1.0, 8.0), "downsample": (4.0, 12.0), "noise": (0.0, 15.0), "jpeg": (40, 80)},
    "severe": {"blur_sigma": (2.0, 12.0), "downsample": (12.0, 24.0), "noise": (5.0, 20.0), "jpeg": (30, 60)},
    "clean": {"blur_sigma": None, "downsample": 1.0, "noise": None, "jpeg": None},
    # Pure super-resolution, for the paper's x4, x8, x16 tables (the box filter is a choice of ours).
    "sr_x4": {**_PLAIN, "downsample": 4.0},
    "sr_x8": {**_PLAIN, "downsample": 8.0},
    "sr_x16": {**_PLAIN, "downsample": 16.0},
}


# ------------------------------------------------------------------------------------------------------------
# Steps


def gaussian_kernel(size: int, sigma_x: float, sigma_y: float | None = None, angle: float = 0.0) -> np.ndarray:
    """A normalised (size, size) float32 Gaussian, sampled at pixel centres.

    ``k(d) ~ exp(-d^T C^-1 d / 2)`` with ``C = R(angle) diag(sigma_x^2, sigma_y^2) R(angle)^T``: sigma_x along
    the axis that makes ``angle`` radians with x (towards +y, that is clockwise on the screen), sigma_y across
    it. Isotropic when sigma_y is None. Raises ValueError for an even size or a sigma that is not positive.
    """
    sigma_y = sigma_x if sigma_y is None else sigma_y
    if size < 1 or size % 2 == 0:
        raise ValueError(f"gaussian_kernel: size must be odd and positive, got {size}")
    if not (sigma_x > 0 and sigma_y > 0):
        raise ValueError(f"gaussian_kernel: sigmas must be positive, got {sigma_x} and {sigma_y}")
    reach = np.arange(size, dtype=np.float64) - size // 2
    x, y = reach[None, :], reach[:, None]
    along = (np.cos(angle) * x + np.sin(angle) * y) / sigma_x
    across = (np.cos(angle) * y - np.sin(angle) * x) / sigma_y
    kernel = np.exp(-0.5 * (along**2 + across**2))
    return (kernel / kernel.sum()).astype(np.float32)


def blur(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """``image`` filtered by ``kernel``; the border is mirrored about the outermost pixels' centres."""
    if max(kernel.shape) < FOURIER_FROM:
        return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    return _blur_by_fourier(image, kernel)


def blur_isotropic(image: np.ndarray, sigma: float, size: int) -> np.ndarray:
    """The same as :func:`blur` with ``gaussian_kernel(size, sigma)``, by its two one-dimensional factors."""
    profile = gaussian_kernel(size, sigma).sum(axis=0)
    return cv2.sepFilter2D(image, -1, profile, profile, borderType=cv2.BORDER_REFLECT_101)


def _blur_by_fourier(image, kernel):
    """The same sums as a product of spectra, up to rounding below 1e-6."""
    height, width = image.shape[:2]
    rows, columns = kernel.shape
    size = [cv2.getOptimalDFTSize(side + reach - 1) for side, reach in ((height, rows), (width, columns))]
    top, left = rows // 2, columns // 2
    edges = top, size[0] - height - top, left, size[1] - width - left
    response = np.zeros(size, np.float32)
    response[:rows, :columns] = kernel
    cv2.dft(response, response)
    # One buffer for all channels, worked on in place: memory that is new costs as much as the sums.
    result, plane = np.empty_like(image), np.empty(size, np.float32)
    for channel in range(image.shape[2]):
        cv2.copyMakeBorder(cv2.extractChannel(image, channel), *edges, cv2.BORDER_REFLECT_101, plane)
        cv2.dft(plane, plane)
        cv2.mulSpectrums(plane, response, 0, plane, conjB=True)
        cv2.idft(plane, plane, flags=cv2.DFT_SCALE)
        cv2.insertChannel(plane[:height, :width], result, channel)
    return result


def resize(image: np.ndarray, width: int, height: int, kernel: str = "linear") -> np.ndarray:
    """``image`` at (height, width) by OpenCV's ``kernel``: area, linear, cubic or lanczos. All but area do not
    antialias, so they keep (and fold) what the blur left, as in the field's training code."""
    return cv2.resize(image, (width, height), interpolation=RESIZE_KERNELS[kernel])


def add_gaussian_noise(image: np.ndarray, delta: float, rng: np.random.Generator) -> np.ndarray:
    """``image`` plus independent normal noise per pixel and channel, standard deviation ``delta`` / 255. Not
    clipped."""
    return image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(delta / 255)


def jpeg_compress(image: np.ndarray, quality: int) -> np.ndarray:
    """``image`` (BGR) clipped, rounded to 8 bits, encoded as JPEG of ``quality`` 1..100 and decoded again."""
    levels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    done, data = cv2.imencode(".jpg", levels, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    if not done:
        raise ValueError(f"jpeg_compress: an image of shape {image.shape} cannot be encoded")
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None  # it was encoded a line above
    return decoded.astype(np.float32) / np.float32(255)


def to_gray(image: np.ndarray) -> np.ndarray:
    """``image`` (BGR) with its Rec. 601 luma in all three channels."""
    return np.repeat((image @ BGR_LUMA)[..., None], 3, axis=2)


def shift_colors(image: np.ndarray, shift: npt.ArrayLike) -> np.ndarray:
    """``image`` plus a constant per channel ((3,), on the 0..1 scale), clipped to [0, 1]."""
    return np.clip(image + np.asarray(shift, np.float32), 0, 1)


# ------------------------------------------------------------------------------------------------------------
# The chain


@dataclass(frozen=True)
class DegradationParameters:
    """One draw of :class:`Degradation`, in the pixels of the image to degrade. None: the step is left out."""

    sigma: tuple[float, float] | None  # along and across `angle`; equal when isotropic
    angle: float
    kernel_size: int
    downsample: float
    downsample_kernel: str
    upsample_kernel: str
    noise: float | None
    jpeg: int | None
    gray: bool
    color_shift: tuple[float, float, float] | None


class Degradation:
    """A random degradation: ``Degradation("gfpgan", jpeg=(30, 90))(image, rng)`` -> image of the same size.

    :class:`DegradationOptions` has all options; ``options`` holds their values.

    Anisotropic kernels draw both sigmas from the range and the angle from [0, pi). Grey and colour shift come
    first, as they belong to the scene or the film; where they come in the chain is a choice of ours.

    ``reference_size`` (a choice of ours). The presets were made for 512 px faces. None applies the numbers
    literally at whatever size S is given. With 512, the draw describes a photo of a face that would be 512 px
    wide if it were good, and the image at hand is that face shown at S: sigma and the kernel are multiplied
    by S/512, so the blur covers the same part of the face, and r becomes r*S/512, so the small image keeps
    the same number of pixels across the face (512/r). Its noise and JPEG blocks, which live on that small
    grid, then need no change. A photo with more than S pixels across the face (r*S/512 < 1) cannot be told
    apart at S by its resolution, and r stops at 1 (or at the drawn r if that is below 1); its noise and JPEG
    are then applied on the S grid, slightly harsher than the truth.

    Raises OptionError, a ValueError, for an unknown option or preset, or a bad value.
    """

    OPTIONS = DegradationOptions

    def __init__(self, preset: str = "gfpgan", **overrides):
        self.options = DegradationOptions.read({"preset": preset, **overrides}, "degradation")

    def __repr__(self) -> str:
        return f"Degradation({self.options})"

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """``image`` float32 HxWx3 BGR in [0, 1] -> the same shape and range, degraded by a fresh draw."""
        _check_image(image)
        size, options = max(image.shape[:2]), self.options
        if options.defects is not None:
            scale = size / options.reference_size if options.reference_size else 1.0
            image = np.clip(add_defects(image, options.defects, scale, jpeg_compress, rng), 0, 1)
        return self.apply(image, self.sample(rng, size), rng)

    def sample(self, rng: np.random.Generator, size: int) -> DegradationParameters:
        """Draws the parameters for an image of ``size`` pixels."""
        options = self.options
        scale = size / options.reference_size if options.reference_size else 1.0
        sigma, angle = self._sample_blur(rng)
        factor = _draw(rng, options.downsample)
        noise, quality = _draw(rng, options.noise), _draw_quality(rng, options.jpeg)
        gray = bool(rng.random() < options.gray_probability)
        return DegradationParameters(
            sigma=sigma and (sigma[0] * scale, sigma[1] * scale),
            angle=angle,
            kernel_size=_odd(options.kernel_size * scale),
            downsample=1.0 if factor is None else max(min(factor, 1.0), factor * scale),
            downsample_kernel=_pick(rng, options.downsample_kernels),
            upsample_kernel=_pick(rng, options.upsample_kernels),
            noise=noise,
            jpeg=quality,
            gray=gray,
            color_shift=self._sample_color_shift(rng),
        )

    @staticmethod
    def apply(image: np.ndarray, drawn: DegradationParameters, rng: np.random.Generator) -> np.ndarray:
        """``image`` degraded by ``drawn``; ``rng`` makes the noise."""
        height, width = image.shape[:2]
        given = image
        if drawn.color_shift is not None:
            image = shift_colors(image, drawn.color_shift)
        if drawn.gray:
            image = to_gray(image)
        image = _apply_blur(image, drawn)
        small = max(1, round(width / drawn.downsample)), max(1, round(height / drawn.downsample))
        if small != (width, height):
            image = resize(image, *small, drawn.downsample_kernel)
        if drawn.noise:
            image = add_gaussian_noise(image, drawn.noise, rng)
        if drawn.jpeg is not None:
            image = jpeg_compress(image, drawn.jpeg)
        if small != (width, height):
            image = resize(image, width, height, drawn.upsample_kernel)
        return np.clip(image, 0, 1, out=None if image is given else image)

    def _sample_blur(self, rng):
        if self.options.blur_sigma is None:
            return None, 0.0
        isotropic = rng.random() < self.options.isotropic_probability
        first, second = rng.uniform(*self.options.blur_sigma, size=2)
        angle = rng.uniform(0, np.pi)
        return ((first, first), 0.0) if isotropic else ((first, second), angle)

    def _sample_color_shift(self, rng):
        if rng.random() >= self.options.color_jitter_probability:
            return None
        limit = self.options.color_jitter_shift / 255
        return tuple(rng.uniform(-limit, limit, size=3))


class DegradationMixture:
    """One of several degradations, drawn anew for each image (a choice of ours, so that one network meets all levels).

    ``DegradationMixture({"mild": 1, "severe": 2}, reference_size=512)``: presets and how often each is drawn, relative
    to the others; the other options are those of :class:`Degradation` and count for all. Raises what Degradation raises.
    """

    OPTIONS = MixtureOptions

    def __init__(self, presets: Mapping[str, float], **options):
        frequencies = MixtureOptions.read({"presets": presets, **options}, "degradation").presets
        self.parts = [Degradation(preset, **options) for preset in frequencies]
        self.probabilities = np.array(list(frequencies.values()), float) / sum(frequencies.values())

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """As :meth:`Degradation.__call__`."""
        return self.parts[rng.choice(len(self.parts), p=self.probabilities)](image, rng)


# ------------------------------------------------------------------------------------------------------------
# Degradations by name

DEGRADATIONS = {"Degradation": Degradation, "DegradationMixture": DegradationMixture}


def register_degradation(cls):
    """Class decorator: lets option files name ``cls`` as a degradation's ``type``. It must be callable as
    ``(image, rng) -> image`` once constructed with the other options. Raises KeyError if the name is
    taken."""
    if cls.__name__ in DEGRADATIONS:
        raise KeyError(f"a degradation named {cls.__name__!r} is registered already; choose another class name")
    DEGRADATIONS[cls.__name__] = cls
    return cls


def build_degradation(opt: Mapping):
    """The degradation of an option dictionary: ``type`` (default Degradation) names the class, the rest are
    its options. Raises OptionError, a ValueError, for an unknown name or a bad option.

    Example: ``{"preset": "codeformer", "jpeg": [40, 90], "reference_size": 512}``.
    """
    check_plugin(opt, DEGRADATIONS, "degradation", default="Degradation")
    options = dict(opt)
    return DEGRADATIONS[options.pop("type", "Degradation")](**options)


# ------------------------------------------------------------------------------------------------------------
# Helpers


def _apply_blur(image, drawn):
    if drawn.sigma is None:
        return image
    # Beyond five sigmas a Gaussian is below 4e-6 of its peak: a smaller kernel gives the same picture sooner.
    size = min(drawn.kernel_size, 2 * int(np.ceil(5 * max(drawn.sigma))) + 1)
    if drawn.sigma[0] == drawn.sigma[1]:
        return blur_isotropic(image, drawn.sigma[0], size)
    return blur(image, gaussian_kernel(size, *drawn.sigma, drawn.angle))


def _odd(size: float) -> int:
    """The odd number nearest to ``size``, at least 1."""
    return 2 * max(0, round((size - 1) / 2)) + 1


def _draw(rng, limits):
    return None if limits is None else rng.uniform(*limits)


def _draw_quality(rng, limits):
    return None if limits is None else int(rng.integers(round(limits[0]), round(limits[1]), endpoint=True))


def _pick(rng, names):
    return names[int(rng.integers(len(names)))]


def _check_image(image):
    if not (isinstance(image, np.ndarray) and image.dtype == np.float32 and image.ndim == 3 and image.shape[2] == 3):
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"degradation: expected a float32 HxWx3 array in [0, 1], got {found}")
