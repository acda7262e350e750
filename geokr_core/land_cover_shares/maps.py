"""Maps as cloud-optimised GeoTIFFs on the scene's own CRS, a pixel a cell: shares, largest class, intervals.

A share is stored as uint8: 0 to 250 stand for 0 to 1, 255 for no data. The file says so by its scale, offset and nodata.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window

from geokr_core.land_cover_shares.head import Head
from geokr_core.land_cover_shares.intervals import interval
from geokr_core.land_cover_shares.outputs import CLASSES, INTERVALS, SHARES
from geokr_core.land_cover_shares.windows import CellRows, Cells
from geokr_core.pictures.images import palette_of
from geokr_core.rasters.cloud_optimised import copy_cloud_optimised
from geokr_core.rasters.grid import Grid

STEPS: Final = 250
"""Stored value of a share of 1."""

NODATA: Final = 255


def cell_grid(grid: Grid, cells: Cells) -> Grid:
    """The grid of a scene's cells."""
    return Grid(grid.crs, grid.transform @ Affine.scale(cells.cell_px), cells.rows, cells.columns)


def write_maps(paths: Mapping[str, Path], grid: Grid, cells: Cells, rows: Iterable[CellRows], head: Head) -> int:
    """Write the three maps of a scene; the same values give the same bytes. Memory holds some rows, whatever the height.

    Args:
        paths: of the files, by ending.
        grid: of the scene.
        cells: how it is divided.
        rows: shares of the cells, from top to bottom.
        head: for classes, colours and intervals.

    Returns:
        The number of cells that hold data.

    Raises:
        OSError: the file system refused.
    """
    raw = {ending: paths[ending].with_suffix(".raw.tif") for ending in (SHARES, CLASSES, INTERVALS)}
    num_classes, own = len(head.classes), cell_grid(grid, cells)
    try:
        number = 0
        with (
            _new(raw[SHARES], own, num_classes) as shares,
            _new(raw[CLASSES], own, 1) as largest,
        ):
            for part in rows:
                stored = _stored(part, num_classes)
                window = Window(0, part.first, cells.columns, len(stored))
                shares.write(np.moveaxis(stored, -1, 0), window=window)
                winners = np.where(part.valid, stored.argmax(axis=-1), NODATA).astype(np.uint8)
                largest.write(winners, 1, window=window)
                number += int(part.valid.sum())
            _name_shares(shares, head)
            _name_classes(largest, head)
        _write_intervals(raw[SHARES], raw[INTERVALS], own, cells, head)
        copy_cloud_optimised(raw[SHARES], paths[SHARES], block_px=512, resampling="AVERAGE")
        copy_cloud_optimised(raw[CLASSES], paths[CLASSES], block_px=512, resampling="MODE")
        copy_cloud_optimised(raw[INTERVALS], paths[INTERVALS], block_px=512, resampling="AVERAGE")
    finally:
        for path in raw.values():
            path.unlink(missing_ok=True)
    return number


def _stored(part: CellRows, num_classes: int) -> np.ndarray:
    if part.values.shape[-1] != num_classes:  # no window held any data so far
        return np.full((*part.valid.shape, num_classes), NODATA, dtype=np.uint8)
    values = np.rint(part.values * STEPS).clip(0, STEPS).astype(np.uint8)
    return np.where(part.valid[..., None], values, np.uint8(NODATA))


def _new(path: Path, grid: Grid, count: int) -> Any:
    return rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="uint8",
        count=count,
        width=grid.width,
        height=grid.height,
        crs=grid.crs,
        transform=grid.transform,
        nodata=NODATA,
        BIGTIFF="IF_SAFER",
    )


def _name_shares(dataset: Any, head: Head) -> None:
    dataset.scales, dataset.offsets = (1 / STEPS,) * dataset.count, (0.0,) * dataset.count
    dataset.descriptions = head.classes
    for band, (name, colour) in enumerate(zip(head.classes, head.colours, strict=True), 1):
        dataset.update_tags(band, class_name=name, class_colour=colour)


def _name_classes(dataset: Any, head: Head) -> None:
    dataset.descriptions = ("class of the largest share",)
    dataset.write_colormap(1, {k: (*map(int, rgb), 255) for k, rgb in enumerate(palette_of(head.colours))})
    dataset.update_tags(1, **{f"class_{k}": name for k, name in enumerate(head.classes)})


def _write_intervals(shares: Path, path: Path, grid: Grid, cells: Cells, head: Head) -> None:
    """Intervals of chip-sized squares: the mean shares of their cells, and what lies around these."""
    side, num_classes = cells.per_window, len(head.classes)
    height, width = -(-grid.height // side), -(-grid.width // side)
    coarse = Grid(grid.crs, grid.transform @ Affine.scale(side), height, width)
    names = [f"{end}_{name}" for end in ("low", "high") for name in head.classes]
    with rasterio.open(shares) as source, _new(path, coarse, 2 * num_classes) as target:
        for row in range(height):
            lines = source.read(window=Window(0, row * side, grid.width, min(side, grid.height - row * side)))
            means, valid = _means(lines, width, side)
            low, high = interval(means, head.factors[:, None])
            ends = np.concatenate([np.floor(low * STEPS + 1e-6), np.ceil(high * STEPS - 1e-6)])
            stored = np.where(valid, ends, NODATA).astype(np.uint8)
            target.write(stored[:, None], window=Window(0, row, width, 1))
        target.scales, target.offsets = (1 / STEPS,) * target.count, (0.0,) * target.count
        target.descriptions = tuple(names)
        target.update_tags(confidence=str(head.about["confidence"]))


def _means(lines: np.ndarray, width: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean shares float64 (K, width) of squares of cells in one line of squares, and which of them hold data."""
    padded = np.pad(lines, ((0, 0), (0, 0), (0, width * side - lines.shape[2])), constant_values=NODATA)
    squares = padded.reshape(len(lines), lines.shape[1], width, side)
    held = squares != NODATA
    number = held[0].sum(axis=(0, 2))
    sums = np.where(held, squares, 0).sum(axis=(1, 3), dtype=np.int64)
    return sums / np.maximum(number, 1) / STEPS, number > 0
