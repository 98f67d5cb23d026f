"""Oracles of the augmentation: one picture at a time, in float64, with NumPy's turns, SciPy's splines and rotations."""

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation


def blit(picture, flip, turns, shift):
    """(C, S, S) mirrored, then turned counter-clockwise, then shifted right and down by ``shift`` = (x, y)."""
    size = picture.shape[-1]
    picture = picture[..., ::-1] if flip else picture
    picture = np.rot90(picture, turns, axes=(1, 2))
    x, y = shift
    padded = np.pad(picture, ((0, 0), (size - 1, size - 1), (size - 1, size - 1)), mode="reflect")
    top, left = size - 1 - y, size - 1 - x
    return padded[:, top : top + size, left : left + size]


def warp(picture, source):
    """(C, S, S) seen through source (2, 3), from (x, y) of the result to the picture, in pixels from the centre; splines."""
    size = picture.shape[-1]
    centre = (size - 1) / 2
    y, x = np.mgrid[:size, :size] - centre
    was_x, was_y = (row[0] * x + row[1] * y + row[2] + centre for row in np.asarray(source, np.float64))
    return np.stack([ndimage.map_coordinates(channel, [was_y, was_x], order=5, mode="mirror") for channel in picture])


def hue_turned(colours, angle):
    """(..., 3) turned around the grey axis."""
    return Rotation.from_rotvec(angle * np.ones(3) / np.sqrt(3)).apply(colours.reshape(-1, 3)).reshape(colours.shape)


def saturated(colours, factor):
    """(..., 3) with the distance from their own grey multiplied."""
    grey = colours.mean(axis=-1, keepdims=True)
    return grey + factor * (colours - grey)


def luma_flipped(colours):
    """(..., 3) with grey negated and the distance from grey kept."""
    grey = colours.mean(axis=-1, keepdims=True)
    return colours - 2 * grey
