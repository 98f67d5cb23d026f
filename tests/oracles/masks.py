"""Slow definitions for masks: connected parts by flooding, distances to cones of circles by trying many points."""

import math

import numpy as np


def parts(mask, diagonal=True):
    """The number of connected parts of what is not 0 in (H, W), found by flooding from pixel to pixel."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if diagonal or not (dy and dx)]
    count = 0
    while left:
        count += 1
        front = [left.pop()]
        while front:
            y, x = front.pop()
            for place in ((y + dy, x + dx) for dy, dx in steps):
                if place in left:
                    left.remove(place)
                    front.append(place)
    return count


def brush_distance(size, start, end, start_radius, end_radius, steps=4000):
    """(size, size): distance from the nearest point of a line, over the radius there; points are parts of the side."""
    result = np.empty((size, size))
    along = np.linspace(0, 1, steps)
    line = np.outer(1 - along, start) + np.outer(along, end)
    for row, column in np.ndindex(size, size):
        place = np.array([(column + 0.5) / size, (row + 0.5) / size])
        gaps = np.hypot(*(line - place).T)
        nearest = gaps.argmin()
        result[row, column] = gaps[nearest] / (start_radius + along[nearest] * (end_radius - start_radius))
    return result


def grown(hole, reach):
    """(H, W) bool: what is within ``reach`` pixels of a hole, pixel by pixel."""
    result = np.zeros_like(hole)
    places = np.argwhere(hole)
    for row, column in np.ndindex(*hole.shape):
        result[row, column] = len(places) > 0 and min(math.hypot(y - row, x - column) for y, x in places) <= reach
    return result
