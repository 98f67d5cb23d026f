"""Comparison sheets: several pictures side by side at one height, each under its title."""

from collections.abc import Mapping

import cv2
import numpy as np

HEIGHT, GAP, TITLE = 384, 12, 44
PAPER, INK = (255, 255, 255), (40, 40, 40)


def comparison_sheet(panels: Mapping[str, np.ndarray], height: int = HEIGHT) -> np.ndarray:
    """title -> uint8 picture (BGR HxWx3 or grey HxW), to one uint8 BGR picture with the panels from left to right.

    Pictures are enlarged bicubically or reduced by averaging to ``height``, or to the tallest one's if that is more.
    """
    height = max(height, *(picture.shape[0] for picture in panels.values()))
    columns = []
    for title, picture in panels.items():
        columns += [_column(title, picture, height), _paper(TITLE + height + GAP, GAP)]
    return np.hstack([_paper(TITLE + height + GAP, GAP), *columns])


def _column(title: str, picture: np.ndarray, height: int) -> np.ndarray:
    if picture.ndim == 2:
        picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    how = cv2.INTER_AREA if height < picture.shape[0] else cv2.INTER_CUBIC
    header = _paper(TITLE, width)
    cv2.putText(header, title, (2, TITLE - 14), cv2.FONT_HERSHEY_SIMPLEX, 0.8, INK, 2, cv2.LINE_AA)
    return np.vstack([header, cv2.resize(picture, (width, height), interpolation=how), _paper(GAP, width)])


def _paper(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), PAPER, np.uint8)
