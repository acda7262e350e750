"""Land cover as a product of coarser resolution would tell it: averaged over squares of ground, a control of what resolution is worth.

Not here: who asks for it (``pretraining.labels``).
"""

from typing import Final

import numpy as np
import pandas as pd

from geokr_core.rasters.grid import METRES_PER_DEGREE

_BLOCK: Final = 4096
"""Chips that are summed up at once: bounds the memory that positions take."""


def averaged_over_squares(catalogue: pd.DataFrame, cells: np.ndarray, chip_size_px: int, side_m: float) -> np.ndarray:
    """Give each cell the mean land cover of all cells whose centre lies in the same square of the ground.

    Squares lie on a grid of latitudes and longitudes whose columns have the length of ``side_m`` at the middle of each row, as
    those of a sinusoidal product do. Cells are placed as if chips lay north up with square pixels of ``gsd_m``; for chips of degrees
    or of a tilted grid that is off by some hundredths of a chip. Products are not mixed.

    Args:
        catalogue: columns ``lon``, ``lat`` (degrees, centre of the chip), ``gsd_m`` and ``product`` of N chips.
        cells: uint8 (N, n, n, K), share of each class in 255ths; what is missing from 255 is unknown and stays so in the mean.
        chip_size_px: side of a chip.
        side_m: side of a square in metres, above zero.

    Returns:
        uint8 (N, n, n, K).
    """
    count, side = cells.shape[:2]
    classes = cells.shape[3]
    squares = np.unique(_squares(catalogue, side, chip_size_px, side_m), axis=0, return_inverse=True)[1].reshape(
        count, side * side
    )
    sums = np.zeros((squares.max(initial=0) + 1, classes))
    for first in range(0, count, _BLOCK):
        part = slice(first, first + _BLOCK)
        np.add.at(sums, squares[part].ravel(), cells[part].reshape(-1, classes))
    means = sums / np.maximum(np.bincount(squares.ravel(), minlength=len(sums)), 1)[:, None]
    averaged: np.ndarray = np.rint(means).astype(np.uint8)[squares].reshape(cells.shape)
    return averaged


def _squares(catalogue: pd.DataFrame, side: int, chip_size_px: int, side_m: float) -> np.ndarray:
    """Product, row and column of the square of each cell, int64 (N · n · n, 3)."""
    cell_m = catalogue["gsd_m"].to_numpy(np.float64) * (chip_size_px / side)
    steps = np.arange(side) - (side - 1) / 2
    lat = catalogue["lat"].to_numpy(np.float64)
    metres_east = np.cos(np.radians(lat)) * METRES_PER_DEGREE
    lats = lat[:, None, None] - (cell_m[:, None] * steps)[:, :, None] / METRES_PER_DEGREE
    lons = (
        catalogue["lon"].to_numpy(np.float64)[:, None, None]
        + (cell_m[:, None] * steps)[:, None, :] / metres_east[:, None, None]
    )
    rows = np.floor(lats * METRES_PER_DEGREE / side_m)
    middle = np.radians((rows + 0.5) * side_m / METRES_PER_DEGREE)
    columns = np.floor(lons * METRES_PER_DEGREE * np.cos(middle) / side_m)
    products = pd.factorize(catalogue["product"])[0][:, None, None]
    stacked = np.stack(np.broadcast_arrays(products, rows, columns), axis=-1)
    found: np.ndarray = stacked.astype(np.int64).reshape(-1, 3)
    return found
