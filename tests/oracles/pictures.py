"""A picture and a transform that are known exactly, as formulas."""

import numpy as np


def similarity(scale, angle, x, y):
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c, -s, x], [s, c, y]])


def smooth_picture(width, height, centre, wavelength=60.0):
    """A picture known at every real point, as a function and as uint8 (H, W, 3)."""

    def value(x, y):
        waves = [np.sin((x - centre[0]) / wavelength), np.cos((y - centre[1]) / wavelength)]
        return 127 + 50 * np.stack([waves[0], waves[1], waves[0] * waves[1]], axis=-1)

    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return value, np.rint(value(x, y)).astype(np.uint8)
