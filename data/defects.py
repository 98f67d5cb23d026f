"""What real photos have beyond the paper's chain: fading, scratches, halftone, grain, sensor noise, motion blur, earlier JPEGs.

Choices of ours throughout. Images are as in degradation.py, float32 HxWx3 BGR in [0, 1]; functions return new arrays and take
their randomness from a ``numpy.random.Generator`` only. Lengths are in pixels of the image that is given.
"""

from collections.abc import Callable
from typing import Annotated, Any

import cv2
import numpy as np
from annotated_types import Ge, Gt, Le

from sgpn_arch.colour import LUMA
from sgpn_arch.ranges import Amount, Fraction
from sgpn_arch.schema import Options, Span

Part = Annotated[float, Ge(0), Le(1)]
Length = Annotated[float, Gt(0), Le(200)]
Quality = Annotated[int, Ge(1), Le(100)]
# Angles of the screens that blue, green and red are printed with (yellow, magenta, cyan ink), in degrees.
SCREEN_ANGLES = (0.0, 75.0, 15.0)
BGR_LUMA = np.array(LUMA[::-1], np.float32)
FINER = 3  # printed dots are drawn so many times as fine in each direction, then averaged


class Defect(Options):
    """One defect: how often it happens, and how strong it is then."""

    probability: Fraction = 0.1
    """Chance that a picture has it."""


class Fade(Defect):
    """``defects.fade``: dyes that have lost their strength."""

    strength: Span[Part] = (0.1, 0.6)
    """How far the darkest tone has risen and the colours have gone, from 0 to 1."""
    tint: Amount = 0.12
    """Standard deviation of the brightest tone's loss in each channel."""


class Scratches(Defect):
    """``defects.scratches``: light or dark lines and specks on a print or a film."""

    count: Span[Annotated[int, Ge(1), Le(200)]] = (1, 12)
    """Lines, and as many specks."""
    width: Span[Length] = (0.6, 2.5)
    """Width of a line, and diameter of a speck, pixels."""


class Halftone(Defect):
    """``defects.halftone``: the dots of a printed picture, as a scanner sees them."""

    pitch: Span[Annotated[float, Ge(2), Le(32)]] = (4.0, 9.0)
    """Distance of the dots, pixels."""
    blur: Span[Part] = (0.2, 0.45)
    """Standard deviation of the scanner's blur, in parts of the pitch."""


class Grain(Defect):
    """``defects.grain``: the grain of film, the same in all channels, strongest in the middle tones."""

    deviation: Span[Amount] = (3.0, 20.0)
    """Standard deviation at middle grey, grey levels of 255."""
    size: Span[Annotated[float, Ge(0), Le(50)]] = (0.4, 1.8)
    """Standard deviation of a grain's shape, pixels."""


class SensorNoise(Defect):
    """``defects.sensor_noise``: the noise of a sensor in poor light, at the photo's own resolution."""

    shot: Span[Amount] = (3.0, 25.0)
    """Standard deviation of the light's own noise at white, grey levels of 255; it grows with the root of the light."""
    floor: Span[Amount] = (0.0, 8.0)
    """Standard deviation of its own noise, the same everywhere, grey levels of 255."""


class MotionBlur(Defect):
    """``defects.motion_blur``: a camera or a face that moved along a line."""

    length: Span[Length] = (3.0, 24.0)
    """Length of the way, pixels."""


class Resampled(Defect):
    """``defects.resampled``: a screenshot, where the picture was shown smaller without smoothing, then sharpened."""

    factor: Span[Annotated[float, Gt(0), Le(1)]] = (0.4, 0.95)
    """Size at which it was shown."""
    sharpening: Span[Amount] = (0.0, 1.0)
    """How much of the detail is added once more."""


class RepeatedJpeg(Defect):
    """``defects.repeated_jpeg``: compressed before, each time with other blocks, as a picture that was cropped and sent on."""

    times: Span[Annotated[int, Ge(1), Le(10)]] = (1, 3)
    """How often."""
    quality: Span[Quality] = (25, 85)
    """Quality, drawn each time."""


class DefectOptions(Options):
    """``datasets.PHASE.degradation.defects``: they happen before the blur, in this order; ~ leaves one out. Their ranges are
    drawn uniformly, and lengths are meant for pictures of ``reference_size``."""

    fade: Fade | None = None
    """Faded colours."""
    scratches: Scratches | None = None
    """Scratches and specks."""
    halftone: Halftone | None = None
    """Printed dots."""
    grain: Grain | None = None
    """Film grain."""
    motion_blur: MotionBlur | None = None
    """Motion."""
    sensor_noise: SensorNoise | None = None
    """Noise of a sensor."""
    resampled: Resampled | None = None
    """A screenshot."""
    repeated_jpeg: RepeatedJpeg | None = None
    """Earlier JPEGs."""


def add_defects(
    image: np.ndarray, options: DefectOptions, scale: float, jpeg: Callable, rng: np.random.Generator
) -> np.ndarray:
    """``image`` with the defects that are drawn, not clipped in between.

    Args:
        scale: pixels of the image in a pixel that the options mean. jpeg: compresses an image, given a quality.
    """

    def drawn(limits: tuple) -> Any:
        return rng.uniform(*limits)

    def happens(defect: Defect | None) -> bool:
        return defect is not None and rng.random() < defect.probability

    if (fading := options.fade) and happens(fading):
        strength = drawn(fading.strength)
        image = fade(image, strength, 1 - np.abs(rng.normal(0, fading.tint * strength, 3)))
    if (lines := options.scratches) and happens(lines):
        count = int(rng.integers(*lines.count, endpoint=True))
        image = scratch(image, count, (scale * lines.width[0], scale * lines.width[1]), rng)
    if (printed := options.halftone) and happens(printed):
        pitch = max(2.0, scale * drawn(printed.pitch))
        image = halftone(image, pitch, pitch * drawn(printed.blur), drawn((0, 360)))
    if (film := options.grain) and happens(film):
        image = add_grain(image, drawn(film.deviation), scale * drawn(film.size), rng)
    if (motion := options.motion_blur) and happens(motion):
        kernel = motion_kernel(scale * drawn(motion.length), drawn((0, np.pi)))
        image = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    if (sensor := options.sensor_noise) and happens(sensor):
        image = add_sensor_noise(image, drawn(sensor.shot), drawn(sensor.floor), rng)
    if (shown := options.resampled) and happens(shown):
        image = resample(image, drawn(shown.factor), drawn(shown.sharpening))
    if (earlier := options.repeated_jpeg) and happens(earlier):
        for _ in range(int(rng.integers(*earlier.times, endpoint=True))):
            corner = rng.integers(0, 8, 2)
            image = shifted(image, corner, lambda part: jpeg(part, int(rng.integers(*earlier.quality, endpoint=True))))
    return image


# ---------------------------------------------------------------------------------------------------------------------
# Each on its own


def fade(image: np.ndarray, strength: float, white: np.ndarray) -> np.ndarray:
    """Colours lose half of ``strength`` of their distance from grey, black rises by 0.35 of it, and white becomes ``white``
    (3,) per channel; tones between black and white stay in proportion."""
    grey = image @ BGR_LUMA
    image = image + np.float32(0.5 * strength) * (grey[..., None] - image)
    black = 0.35 * strength
    return (black + image * (np.asarray(white) - black)).astype(np.float32)


def scratch(image: np.ndarray, count: int, width: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """``count`` wavy lines and as many specks over the picture, each light or dark and partly transparent."""
    height, across = image.shape[:2]
    result = image.copy()
    for number in range(2 * count):
        size = rng.uniform(*width)
        if number < count:
            ends = rng.uniform(0, 1, (2, 2)) * (across, height)
            way = np.linspace(ends[0], ends[1], 12) + rng.normal(0, 0.004 * height, (12, 2)).cumsum(axis=0)
        else:
            way = np.repeat(rng.uniform(0, 1, (1, 2)) * (across, height), 2, axis=0)
        first = np.maximum(way.min(axis=0) - size - 1, 0).astype(int)
        part = result[first[1] : int(way[:, 1].max() + size + 2), first[0] : int(way[:, 0].max() + size + 2)]
        cover = rng.uniform(0.4, 1.0) * _line(part.shape[:2], way - first, size)[..., None]
        tone = rng.uniform(0.75, 1.0) if rng.random() < 0.6 else rng.uniform(0.0, 0.2)
        part += (cover * (tone - part)).astype(np.float32)
    return result


def _line(shape: tuple[int, int], way: np.ndarray, width: float) -> np.ndarray:
    """How much of each pixel a line covers that follows the points of ``way`` (N, 2): (H, W) in 0..1."""
    fine, bits = 2, 4  # drawn so many times as large; OpenCV takes points in parts of 2^-bits pixels
    empty = np.full((fine * shape[0], fine * shape[1]), 255, np.uint8)
    points = np.rint(((way + 0.5) * fine - 0.5) * 2**bits).astype(np.int32)
    cv2.polylines(empty, [points], False, 0, 1, cv2.LINE_8, bits)
    # Thickness by the distance: OpenCV's own thick lines are a pixel wider than they should be.
    distance = cv2.distanceTransform(empty, cv2.DIST_L2, cv2.DIST_MASK_5)
    cover = np.clip(0.5 * fine * width + 0.5 - distance, 0, 1)
    return cv2.resize(cover, shape[::-1], interpolation=cv2.INTER_AREA)


def halftone(image: np.ndarray, pitch: float, blur: float, angle: float) -> np.ndarray:
    """Printed with round dots, ``pitch`` pixels apart, on a screen turned by ``angle`` degrees and SCREEN_ANGLES, and blurred.

    Paper is left where two crossing waves together are below the picture's level. A tone's level is the quantile of the waves'
    sum that it stands for, so that the mean tone stays.
    """
    height, width = image.shape[:2]
    y, x = (np.mgrid[: FINER * height, : FINER * width].astype(np.float32) + 0.5) / FINER - 0.5
    # Whole pitches repeat the samples of a period: where these lie symmetrically about the dots, many have one value, all of
    # which a level takes or leaves together. A screen that is moved a little has far fewer ties.
    y, x = y + np.float32(0.04), x + np.float32(0.09)
    phases = np.cos(np.linspace(0, np.pi, 400))
    quantiles = np.sort((phases[:, None] + phases).ravel())[::100]
    levels = np.interp(image, np.linspace(0, 1, len(quantiles)), quantiles).astype(np.float32)
    levels = cv2.resize(levels, (FINER * width, FINER * height), interpolation=cv2.INTER_LINEAR)
    printed = []
    for channel, own in enumerate(SCREEN_ANGLES):
        turn = np.deg2rad(angle + own)
        cosine, sine = np.float32(np.cos(turn) * 2 * np.pi / pitch), np.float32(np.sin(turn) * 2 * np.pi / pitch)
        waves = np.cos(cosine * x + sine * y) + np.cos(cosine * y - sine * x)
        paper = (waves < levels[..., channel]).astype(np.float32)
        printed.append(cv2.resize(paper, (width, height), interpolation=cv2.INTER_AREA))
    return cv2.GaussianBlur(np.dstack(printed), (0, 0), max(blur, 1e-3), borderType=cv2.BORDER_REFLECT_101)


def add_grain(image: np.ndarray, deviation: float, size: float, rng: np.random.Generator) -> np.ndarray:
    """Grain of one brightness in all channels: normal noise, smoothed by a Gaussian of ``size`` pixels and brought back to
    ``deviation`` grey levels of 255 at middle grey; 0.3 of it is left at black and white."""
    noise: np.ndarray = rng.standard_normal(image.shape[:2], dtype=np.float32)
    if size > 0:
        reach = int(np.ceil(4 * size))
        profile = np.exp(-0.5 * (np.arange(-reach, reach + 1) / size) ** 2)
        profile /= np.sqrt((profile**2).sum())  # the sum of independent values then keeps their deviation
        noise = cv2.sepFilter2D(noise, -1, profile, profile, borderType=cv2.BORDER_REFLECT_101)
    light = np.clip(image.mean(axis=2), 0, 1)
    strength = (0.3 + 0.7 * 4 * light * (1 - light)) * (deviation / 255)
    return (image + (strength * noise)[..., None]).astype(np.float32)


def add_sensor_noise(image: np.ndarray, shot: float, floor: float, rng: np.random.Generator) -> np.ndarray:
    """Normal noise per pixel and channel of variance ``shot``^2 x + ``floor``^2 (grey levels of 255) where the light is x."""
    deviation = np.sqrt(shot**2 * np.clip(image, 0, 1) + floor**2) / 255
    return (image + deviation * rng.standard_normal(image.shape, dtype=np.float32)).astype(np.float32)


def motion_kernel(length: float, angle: float) -> np.ndarray:
    """The way of a dot that moves ``length`` pixels at ``angle`` radians (towards +y): odd-sized square, float32, sum 1.

    Each place of the way is shared by the four pixels around it, as in bilinear interpolation.
    """
    reach = int(np.ceil(length / 2)) + 1
    places = (np.arange(64 * reach) + 0.5) / (64 * reach) * length - length / 2
    grid = np.arange(-reach, reach + 1)
    across, down = (
        np.clip(1 - np.abs(grid[:, None] - places * part), 0, None) for part in (np.cos(angle), np.sin(angle))
    )
    kernel = down @ across.T
    return (kernel / kernel.sum()).astype(np.float32)


def resample(image: np.ndarray, factor: float, sharpening: float) -> np.ndarray:
    """Shown at ``factor`` of its size by the nearest pixels, brought back linearly, and ``sharpening`` times its difference
    from a Gaussian blur of one pixel added."""
    height, width = image.shape[:2]
    small = max(1, round(factor * width)), max(1, round(factor * height))
    image = cv2.resize(image, small, interpolation=cv2.INTER_NEAREST_EXACT)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image + np.float32(sharpening) * (image - cv2.GaussianBlur(image, (0, 0), 1.0))


def shifted(image: np.ndarray, corner: np.ndarray, step: Callable) -> np.ndarray:
    """``step`` of the image whose grid of blocks begins ``corner`` (down, right) pixels before its own."""
    down, right = map(int, corner)
    framed = cv2.copyMakeBorder(image, down, 0, right, 0, cv2.BORDER_REPLICATE)
    return step(framed)[down:, right:]
