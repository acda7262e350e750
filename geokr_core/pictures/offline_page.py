"""What pages share that a browser opens from the disk: style, a writer of Parquet files, and pictures on sheets.

A page is one file and loads nothing. What it asks and shows is written where it is made.
"""

import base64
import io
from collections.abc import Iterator
from functools import cache
from importlib import resources

import numpy as np
from PIL import Image

COLUMNS = 40
"""Pictures in a row of a sheet."""

PER_SHEET = 1000
_JPEG_QUALITY = 72


@cache
def part(name: str) -> str:
    """A shared part of a page, ``page.css`` or ``parquet.js``, as text."""
    return (resources.files("geokr_core.pictures") / "templates" / name).read_text(encoding="utf-8")


def sheets(pictures: Iterator[np.ndarray], number: int, thumb_px: int) -> Iterator[str]:
    """Pictures side by side, `PER_SHEET` on a sheet, as base64 of JPEG.

    Args:
        pictures: uint8 (H, W, 3) each.
        number: how many there are.
        thumb_px: side of each on the sheet.
    """
    for first in range(0, number, PER_SHEET):
        count = min(PER_SHEET, number - first)
        sheet = Image.new("RGB", (COLUMNS * thumb_px, -(-count // COLUMNS) * thumb_px))
        for place in range(count):
            small = Image.fromarray(next(pictures))
            if small.width != thumb_px:
                kind = Image.Resampling.BOX if small.width > 2 * thumb_px else Image.Resampling.BILINEAR
                small = small.resize((thumb_px, thumb_px), kind)
            sheet.paste(small, (place % COLUMNS * thumb_px, place // COLUMNS * thumb_px))
        buffer = io.BytesIO()
        sheet.save(buffer, format="JPEG", quality=_JPEG_QUALITY)
        yield base64.b64encode(buffer.getvalue()).decode()
