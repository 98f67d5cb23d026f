"""Sheets of pictures: columns under their titles, a row for each face, grey where a picture is missing."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sgpn_arch.files import write_atomically
from sgpn_data.alignment import resize

# The sizes of cells, and how wide a whole sheet may be, in pixels.
SMALLEST_CELL, LARGEST_CELL, WIDEST = 192, 512, 6000
GAP, MARGIN = 6, 10
# What a page of the documentation carries, so that it loads quickly: pixels, and bytes.
PAGE_WIDTH, PAGE_BYTES = 1500, 300_000
PAPER, INK, MISSING = (255, 255, 255), (30, 30, 30), (215, 215, 215)


def labelled_grid(
    columns: Mapping[str, Sequence[np.ndarray | None]], names: Sequence[str], smallest: int = SMALLEST_CELL
) -> np.ndarray:
    """Pictures in columns under their titles, the rows' names at the left; grey where a picture is missing.

    Args:
        columns: title -> pictures, uint8 BGR (H, W, 3) or grey (H, W), one per row. names: of the rows.
        smallest: side of a cell, in pixels, that smaller pictures are enlarged to.
    """
    largest = max(picture.shape[0] for pictures in columns.values() for picture in pictures if picture is not None)
    cell = min(max(largest, smallest), LARGEST_CELL, max(SMALLEST_CELL // 2, WIDEST // (len(columns) + 1)))
    font: Any = ImageFont.load_default(max(12, cell // 16))
    titles = {title: _wrapped(title, font, cell) for title in columns}
    labels = [_wrapped(name, font, cell // 2) for name in names]
    line = sum(font.getmetrics()) + 2
    top = line * max(title.count("\n") + 1 for title in titles.values()) + 2 * MARGIN
    left = int(max(font.getlength(part) for label in labels for part in label.split("\n"))) + 2 * MARGIN
    height, width = top + len(names) * (cell + GAP), left + len(columns) * (cell + GAP)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(labels):
        draw.text((MARGIN, top + row * (cell + GAP) + MARGIN), label, INK, font)
    for column, (title, pictures) in enumerate(columns.items()):
        x = left + column * (cell + GAP)
        draw.text((x + 2, MARGIN), titles[title], INK, font)
        for row, picture in enumerate(pictures):
            y = top + row * (cell + GAP)
            sheet.paste(_cell_picture(picture, cell), (x, y))
            if picture is None:
                draw.text((x + cell / 2, y + cell / 2), "missing", INK, font, anchor="mm")
    return np.ascontiguousarray(np.asarray(sheet)[..., ::-1])


def _cell_picture(picture: np.ndarray | None, cell: int) -> Image.Image:
    if picture is None:
        return Image.new("RGB", (cell, cell), MISSING)
    if picture.ndim == 2:
        picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
    return Image.fromarray(np.ascontiguousarray(resize(picture, (cell, cell))[..., ::-1]))


def _wrapped(text: str, font: ImageFont.ImageFont, width: int) -> str:
    """Text in lines that fit the width; broken at blanks and behind underscores, and within words that are too long."""
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for part in re.findall(r"[^\s_]*[_\s]|[^\s_]+", paragraph):
            for piece in _pieces(part, font, width):
                if line and font.getlength((line + piece).rstrip()) > width:
                    lines.append(line.rstrip())
                    line = ""
                line += piece
        lines.append(line.rstrip())
    return "\n".join(lines)


def _pieces(part: str, font: ImageFont.ImageFont, width: int) -> list[str]:
    """A word, or as many letters of it at a time as fit."""
    if font.getlength(part) <= width:
        return [part]
    count = max(1, int(len(part) * width / font.getlength(part)))
    return [part[start : start + count] for start in range(0, len(part), count)]


def write_page_picture(path: str | Path, picture: np.ndarray) -> None:
    """Writes a JPEG for a page of the documentation: as wide and as good as 1,500 pixels and 300 kB allow.

    Args:
        picture: uint8 BGR (H, W, 3).

    Raises:
        ValueError: no quality from 95 down to 50 makes it small enough.
    """
    scale = min(1.0, PAGE_WIDTH / picture.shape[1])
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    for quality in range(95, 45, -5):
        data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        if len(data) <= PAGE_BYTES:
            break
    else:
        raise ValueError(f"{path}: over {PAGE_BYTES:,} bytes at any quality: draw fewer or smaller faces")
    write_atomically(path, lambda part: Path(part).write_bytes(data.tobytes()))
