"""Vectors of the cells of all chips of a scene as one map: a cloud-optimised GeoTIFF, a band a dimension.

Each chip is divided into 8 x 8 cells, or as many as divide it evenly. Where chips overlap, a cell is the weighted mean of what the
chips say, each the more the nearer the cell lies to its middle. Sums are kept in a file while they are made: memory holds a batch of
chips, whatever the scene's size. The map is north up, also where the scene is not. Reading it back is in ``cell_reading``.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from geokr_core.embeddings.quantisation import STEPS
from geokr_core.rasters.cloud_optimised import copy_cloud_optimised

CHIP_PLACES: Final = ("pixel_row", "pixel_col", "transform", "crs_wkt", "size_px")
"""What must be known of a chip to put its cells on a map."""

NODATA: Final = -128
_MOST_CELLS: Final = 8
_ROWS_AT_ONCE: Final = 16


def cells_per_side(size_px: int) -> int:
    """Cells along each side of a chip: 8, or what divides the chip evenly."""
    return math.gcd(size_px, _MOST_CELLS)


@dataclass(frozen=True)
class CellGrid:
    """Where the cells of a scene lie, in the order of the scene's own rows and columns.

    Attributes:
        rows: cells from top to bottom.
        columns: cells from left to right.
        cell_px: side of a cell in pixels of the scene.
        per_chip: cells along each side of a chip.
        places: int64 (N, 2), row and column of each chip's upper left pixel, counted from the upper left cell.
        transform: from column and row of cells to the CRS.
        crs: of the scene.
    """

    rows: int
    columns: int
    cell_px: int
    per_chip: int
    places: np.ndarray
    transform: Affine
    crs: CRS

    @classmethod
    def of_chips(cls, chips: pd.DataFrame) -> "CellGrid":
        """The grid of a scene's chips.

        Args:
            chips: the columns `CHIP_PLACES`, one row a chip.
        """
        size = int(chips["size_px"].iloc[0])
        side = cells_per_side(size)
        cell_px = size // side
        first = chips[["pixel_row", "pixel_col"]].min().to_numpy(dtype=np.int64)
        places = chips[["pixel_row", "pixel_col"]].to_numpy(dtype=np.int64) - first
        rows, columns = (places.max(axis=0) // cell_px + side).tolist()
        row = chips.iloc[0]
        moved = first - (int(row["pixel_row"]), int(row["pixel_col"]))
        origin = Affine(*row["transform"]) @ Affine.translation(int(moved[1]), int(moved[0]))
        crs = CRS.from_wkt(str(row["crs_wkt"]))
        return cls(rows, columns, cell_px, side, places, origin @ Affine.scale(cell_px), crs)

    @property
    def flipped(self) -> bool:
        """Whether the scene lies south up, so that its map has the rows in reverse."""
        return bool(self.transform.b == self.transform.d == 0 and self.transform.e > 0)

    @property
    def north_up(self) -> Affine:
        """The transform of the map."""
        turned = self.transform @ Affine.translation(0, self.rows) @ Affine.scale(1, -1)
        return turned if self.flipped else self.transform


def write_cell_map(path: Path, chips: pd.DataFrame, batches: Iterable[np.ndarray], num_dimensions: int) -> None:
    """Write the map of a scene; the same vectors give the same bytes.

    Args:
        path: the file.
        chips: the columns `CHIP_PLACES`, one row a chip.
        batches: vectors of the chips' cells in the order of the rows, float32 (B, n, n, D).
        num_dimensions: D.

    Raises:
        OSError: the file system refused.
    """
    grid = CellGrid.of_chips(chips)
    raw, sums_file = path.with_suffix(".raw.tif"), path.with_suffix(".sums")
    try:
        sums = np.memmap(sums_file, dtype=np.float32, mode="w+", shape=(grid.rows, grid.columns, num_dimensions))
        weights = np.zeros((grid.rows, grid.columns), dtype=np.float32)
        _add(sums, weights, grid.places, grid.cell_px, batches)
        _write(raw, sums, weights, grid)
        copy_cloud_optimised(raw, path)
    finally:
        for left in (raw, sums_file):
            left.unlink(missing_ok=True)


def _add(
    sums: np.ndarray, weights: np.ndarray, places: np.ndarray, cell_px: int, batches: Iterable[np.ndarray]
) -> None:
    """Add the cells of all chips; a chip that does not begin at a cell of the others is left out."""
    number = 0
    for batch in batches:
        side = batch.shape[1]
        ramp = np.minimum(np.arange(side) + 0.5, side - np.arange(side) - 0.5)
        pyramid = np.outer(ramp, ramp).astype(np.float32)
        for vectors in batch:
            row, column = places[number].tolist()
            number += 1
            if row % cell_px or column % cell_px:
                continue
            part = slice(row // cell_px, row // cell_px + side), slice(column // cell_px, column // cell_px + side)
            sums[part] += vectors * pyramid[..., None]
            weights[part] += pyramid


def _write(path: Path, sums: np.ndarray, weights: np.ndarray, grid: CellGrid) -> None:
    height, width, num_dimensions = sums.shape
    low, high = np.full(num_dimensions, np.inf), np.full(num_dimensions, -np.inf)
    for first in range(0, height, _ROWS_AT_ONCE):
        values, known = _values(sums, weights, first)
        if known.any():
            low, high = np.minimum(low, values[known].min(axis=0)), np.maximum(high, values[known].max(axis=0))
    offset, scale = (low + high) / 2, np.where(high > low, (high - low) / STEPS, 1.0)
    profile: dict[str, Any] = {"driver": "GTiff", "dtype": "int8", "count": num_dimensions, "nodata": NODATA}
    profile |= {"width": width, "height": height, "crs": grid.crs, "transform": grid.north_up, "interleave": "pixel"}
    with rasterio.open(path, "w", **profile, BIGTIFF="IF_SAFER") as target:
        for first in range(0, height, _ROWS_AT_ONCE):
            values, known = _values(sums, weights, first)
            codes = np.rint((values - offset) / scale).clip(-127, 127)
            stored = np.where(known[..., None], codes, NODATA).astype(np.int8)
            stored = stored[::-1] if grid.flipped else stored
            top = height - first - len(stored) if grid.flipped else first
            target.write(np.moveaxis(stored, -1, 0), window=Window(0, top, width, len(stored)))
        target.scales, target.offsets = tuple(scale.tolist()), tuple(offset.tolist())


def _values(sums: np.ndarray, weights: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    part = weights[first : first + _ROWS_AT_ONCE]
    values: np.ndarray = sums[first : first + _ROWS_AT_ONCE] / np.maximum(part, 1e-12)[..., None]
    return values, part > 0
