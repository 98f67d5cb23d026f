"""Free-form brush masks for inpainting: strokes of varying width and direction, ellipses and rectangles; hulls of points.

A mask is uint8 (S, S): 255 (white) is the hole, 0 the picture. Everything is drawn in parts of the picture's side, so the
same seed gives the same mask at every size. Free-form masks are those of Yu et al. (Free-Form Image Inpainting with Gated
Convolution, 2019); how ours are drawn is a choice of ours, for the paper does not describe its own.
"""

from typing import Annotated, Literal

import cv2
import numpy as np
from annotated_types import Ge, Gt, Le

from sgpn_arch.ranges import Amount, Fraction
from sgpn_arch.schema import Options, Span

HOLE = 255

Part = Annotated[float, Gt(0), Le(1)]
Fill = Literal["white", "rendering"]


class MaskOptions(Options):
    """``datasets.PHASE.inpaint``: the holes; a range is [lo, hi] or one number, drawn uniformly."""

    probability: Fraction = 1.0
    """Chance that a picture has a hole: below 1, one network learns to restore and to fill holes."""
    area: Span[Part] = (0.05, 0.35)
    """Part of the picture that the hole covers."""
    strokes: Span[Annotated[int, Ge(1), Le(100)]] = (1, 6)
    """Pieces that the hole is made of."""
    width: Span[Part] = (0.04, 0.14)
    """Width of the brush, in parts of the side; it varies along a stroke."""
    length: Span[Part] = (0.05, 0.2)
    """Length of a straight piece of a stroke, in parts of the side."""
    turn: Amount = 0.8
    """Standard deviation of the angle between two straight pieces, radians."""
    shape_probability: Fraction = 0.0
    """Chance that a piece is an ellipse or a rectangle instead of a stroke."""
    fill: Fill = "white"
    """What networks see in the hole: "white", or "rendering", the shape prior's, in colours that go on from the hole's border
    (both are choices of ours); the regressor, which comes first, sees the surroundings' colours there."""


# The grid on which a mask is composed before it is drawn at its size. What shows of it is below a pixel.
GRID = 128
# So many straight pieces at most: an area that the options cannot reach is reached by widening them.
MOST_SEGMENTS = 200


class BrushMasks:
    """Random masks: ``BrushMasks(area=(0.1, 0.3))(256, rng)`` -> uint8 (256, 256), 255 in the hole.

    :class:`MaskOptions` has all options; ``options`` holds their values.

    The hole's area is drawn first and divided among the pieces, each a connected stroke that goes on until its share is
    painted, so a stroke is as long as the area needs. At last all widths are narrowed by one factor, rarely below 0.8,
    that makes the area exactly the drawn one, to a pixel.

    Raises OptionError, a ValueError, for an unknown option or a bad value.
    """

    def __init__(self, **options):
        self.options = MaskOptions.read(options, "inpaint")

    def __repr__(self) -> str:
        return f"BrushMasks({self.options})"

    def __call__(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """A mask of ``size`` pixels: uint8 (size, size), 255 in the hole, 0 elsewhere."""
        area = rng.uniform(*self.options.area)
        return draw(self.compose(rng, area), size, area)

    def compose(self, rng: np.random.Generator, area: float) -> np.ndarray:
        """The distance (GRID, GRID) float32 of each place from the pieces' middle lines, 1 at the brush's edge."""
        low, high = self.options.strokes
        count = int(rng.integers(low, high, endpoint=True))
        distance = np.full((GRID, GRID), np.inf, np.float32)
        for number in range(count):
            share = area * (number + 1) / count
            shaped = rng.random() < self.options.shape_probability
            distance = self._shape(distance, rng, area / count) if shaped else self._stroke(distance, rng, share)
        return distance

    def _stroke(self, distance, rng, area):
        """``distance`` with one more stroke, which ends as soon as the hole has ``area``."""
        here, heading = rng.random(2), rng.uniform(0, 2 * np.pi)
        radius = rng.uniform(*self.options.width) / 2
        for _ in range(MOST_SEGMENTS):
            step = rng.uniform(*self.options.length)
            there, heading = _walk(here, heading, step)
            other = rng.uniform(*self.options.width) / 2
            distance = np.minimum(distance, stroke_distance(here, there, radius, other))
            if painted_area(distance) >= area:
                break
            here, radius = there, other
            heading += rng.normal(0, self.options.turn)
        return distance

    @staticmethod
    def _shape(distance, rng, area):
        """``distance`` with one more ellipse or rectangle of about ``area``, turned anyhow."""
        ratio, angle, middle = rng.uniform(0.4, 1), rng.uniform(0, np.pi), rng.uniform(0.2, 0.8, size=2)
        if rng.random() < 0.5:
            across = np.sqrt(area * ratio / np.pi)
            return np.minimum(distance, ellipse_distance(middle, across / ratio, across, angle))
        across = np.sqrt(area * ratio) / 2
        return np.minimum(distance, rectangle_distance(middle, across / ratio, across, angle))


def draw(distance: np.ndarray, size: int, area: float) -> np.ndarray:
    """The nearest places of ``distance`` that together have ``area``, as a mask uint8 (size, size)."""
    field = cv2.resize(distance, (size, size), interpolation=cv2.INTER_LINEAR)
    count = min(max(round(area * field.size), 0), field.size)
    if count == 0:
        return np.zeros((size, size), np.uint8)
    edge = np.partition(field, count - 1, axis=None)[count - 1]
    return (field <= edge) * np.uint8(HOLE)


def hull_mask(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The convex hull of points (K, 2) in OpenCV pixels, float32 (H, W): 1 in it and on its edge, 0 elsewhere."""
    mask = np.zeros(shape, np.float32)
    return cv2.fillConvexPoly(mask, cv2.convexHull(np.rint(points).astype(np.int32)), 1.0)


def painted_area(distance: np.ndarray) -> float:
    """The part of the picture that is under the brush at its drawn width."""
    return np.count_nonzero(distance <= 1) / distance.size


def stroke_distance(start, end, start_radius: float, end_radius: float) -> np.ndarray:
    """Distance of each place from a line between two points, over the brush's radius there, which changes evenly.

    Points (x, y) and radii are parts of the side. Returns (GRID, GRID) float32; up to 1 is under the brush.
    """
    x, y = _places()
    (left, top), (right, bottom) = np.asarray(start, np.float32), np.asarray(end, np.float32)
    across, down = right - left, bottom - top
    along = ((x - left) * across + (y - top) * down) / max(across**2 + down**2, np.float32(1e-12))
    along = np.clip(along, 0, 1)
    gap = np.hypot(x - left - along * across, y - top - along * down)
    return gap / (np.float32(start_radius) + along * np.float32(end_radius - start_radius))


def ellipse_distance(middle, along: float, across: float, angle: float) -> np.ndarray:
    """As :func:`stroke_distance`, of an ellipse with these half axes; ``angle`` radians between the first and x."""
    first, second = _turned(middle, angle)
    return np.hypot(first / np.float32(along), second / np.float32(across))


def rectangle_distance(middle, along: float, across: float, angle: float) -> np.ndarray:
    """As :func:`ellipse_distance`, of a rectangle with these half sides."""
    first, second = _turned(middle, angle)
    return np.maximum(np.abs(first) / np.float32(along), np.abs(second) / np.float32(across))


def _places():
    """The middles of the grid's cells, in parts of the side: x (1, GRID) and y (GRID, 1)."""
    middles = (np.arange(GRID, dtype=np.float32) + np.float32(0.5)) / GRID
    return middles[None, :], middles[:, None]


def _turned(middle, angle):
    x, y = _places()
    x, y = x - np.float32(middle[0]), y - np.float32(middle[1])
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _walk(here, heading, step):
    """Where a step leads, and the heading then: like a billiard ball, a stroke is thrown back at the picture's edge."""
    direction = np.array([np.cos(heading), np.sin(heading)])
    there = here + step * direction
    for axis in range(2):
        if not 0 <= there[axis] <= 1:
            direction[axis] = -direction[axis]
            there[axis] = np.clip(here[axis] + step * direction[axis], 0, 1)
    return there, float(np.arctan2(direction[1], direction[0]))
