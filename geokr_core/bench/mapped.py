"""What maps of shares say of single chips."""

from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
from rasterio.windows import Window

from geokr_core.embeddings.cells import cells_per_side
from geokr_core.land_cover_shares.maps import NODATA, STEPS
from geokr_core.land_cover_shares.outputs import SHARES


def mapped_shares(maps: Path, catalogue: pd.DataFrame, chip_size_px: int) -> np.ndarray:
    """Mean shares of the cells of each chip, as the maps give them, float64 (N, K); NaN where a map has no data.

    Args:
        maps: folder of ``<scene>.shares.tif``.
        catalogue: ``scene_id``, ``pixel_row``, ``pixel_col`` of chips that begin at a cell.
        chip_size_px: side of the chips.

    Raises:
        OSError: a map is missing.
    """
    cells = cells_per_side(chip_size_px)
    cell_px = chip_size_px // cells
    rows = catalogue.reset_index(drop=True)
    found: dict[int, np.ndarray] = {}
    for scene_id, own in rows.groupby("scene_id", sort=True):
        with rasterio.open(maps / f"{scene_id}{SHARES}") as source:
            for number, row, column in zip(own.index, own["pixel_row"], own["pixel_col"], strict=True):
                stored = source.read(window=Window(column // cell_px, row // cell_px, cells, cells))
                known = stored[0] != NODATA
                found[int(number)] = (
                    stored[:, known].mean(axis=1) / STEPS if known.any() else np.full(len(stored), np.nan)
                )
    return np.stack([found[number] for number in range(len(rows))])
