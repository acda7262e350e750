"""What pages share that a browser opens from the disk: style, a writer of Parquet files, and pictures on sheets.

A page is one file and loads nothing. What it asks and shows is written where it is made.
"""

import base64
import io
import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from geokr_core.step.files import whole_file

COLUMNS = 40
"""Pictures in a row of a sheet."""

PER_SHEET = 1000
_JPEG_QUALITY = 72


def write_offline_page(path: Path, package: str, name: str, content: Mapping[str, object], **shown: object) -> None:
    """Write a page from the templates of the package that makes it; the same inputs give the same bytes.

    Args:
        path: the file; replaced.
        package: its folder ``templates`` holds ``<name>.html.j2`` and ``<name>.js``.
        name: of the page.
        content: what the script gets: values that JSON can hold.
        shown: what the template asks for beside ``content`` (as JSON), ``style``, ``parquet`` and ``script``.

    Raises:
        OSError: the file system refused.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "templates"),
        autoescape=jinja2.select_autoescape(("html", "html.j2")),
        undefined=jinja2.StrictUndefined,
    )
    html = environment.get_template(f"{name}.html.j2").render(
        style=_part("geokr_core.pictures", "page.css"),
        parquet=_part("geokr_core.pictures", "parquet.js"),
        script=_part(package, f"{name}.js"),
        content=json.dumps(content, ensure_ascii=False).replace("<", "\\u003c"),
        **shown,
    )
    with whole_file(path) as partial:
        partial.write_text(html, encoding="utf-8")


@cache
def _part(package: str, name: str) -> str:
    return (resources.files(package) / "templates" / name).read_text(encoding="utf-8")


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
