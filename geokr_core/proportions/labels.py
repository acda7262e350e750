"""The labels of one scene's chips, as columns and as squares. Files, and what makes them current, are in ``count``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from geokr_core.land_cover.legend import fraction_columns
from geokr_core.land_cover.product import LandCover, PlacedTiles, Product
from geokr_core.proportions.config import ProportionsConfig
from geokr_core.proportions.seams import TileCells
from geokr_core.proportions.tiles import look_up
from geokr_core.proportions.windows import Windows

_CHIPS_PER_PART = 512
"""Chips whose squares are counted at a time, to bound memory."""

CHIP_COLUMNS = ("chip_id", "crs_wkt", "transform", "size_px", "lon", "lat", "acquired", "land_cover")
"""Columns of a shard's table that labels are made from."""


@dataclass(frozen=True)
class SceneChips:
    """The chips of one scene, and the land cover that describes them.

    One scene, one acquisition: all its chips are described by the same edition of one product.

    Attributes:
        chip_ids: names of the N chips.
        windows: where they lie.
        acquired: ISO date of the scene, or empty.
        product: the product.
        year: its edition.
        cells: the cells of its tiles.
    """

    chip_ids: Any
    windows: Windows
    acquired: str
    product: Product
    year: int
    cells: TileCells

    @classmethod
    def of_table(cls, table: pa.Table, index: LandCover, source: Path) -> "SceneChips":
        """The chips of a shard's table.

        Args:
            table: with the columns `CHIP_COLUMNS`, one row or more.
            index: products and legend.
            source: the land-cover folder.
        """
        acquired = str(table["acquired"][0])
        product = index.products[str(table["land_cover"][0])]
        windows = Windows(
            crs_wkt=str(table["crs_wkt"][0]),
            transforms=table["transform"].combine_chunks().flatten().to_numpy().reshape(-1, 6),
            size_px=float(table["size_px"][0].as_py()),
            lon=table["lon"].to_numpy(),
            lat=table["lat"].to_numpy(),
        )
        cells = TileCells(source, product, len(index.legend.classes))
        return cls(table["chip_id"], windows, acquired, product, product.edition(acquired), cells)

    @property
    def placed(self) -> PlacedTiles:
        """The tiles of the edition."""
        return self.product.placed_in(self.year)


def count_chips(config: ProportionsConfig, index: LandCover, chips: SceneChips) -> dict[str, Any]:
    """Count land cover under the chips of one scene.

    Args:
        config: how chip edges are carried to another CRS.
        index: products and legend.
        chips: N chips.

    Returns:
        Columns of N values: ``chip_id``, ``product``, ``edition_year``; how the chip's ground divides into
        ``known_fraction`` (classes of the legend), ``excluded_fraction`` (classes outside it), ``sea_fraction`` (where
        the product separates it from inland water), ``unknown_fraction`` (no data) and ``outside_fraction`` (beyond
        every tile), which sum to 1; ``num_cells`` (cells of known class, in cells), ``gap_days`` (image minus middle of
        the edition year, NaN without a date), and one ``fraction_<class>`` of the known ground a class, summing to 1
        (all 0 where nothing is known).

    Raises:
        UnknownLegendCodeError: a code that the legend does not list.
        LandCoverError: a tile cannot be read.
    """
    ground = look_up(chips.windows, chips.placed, chips.cells, config.edge_segments)
    known = ground.classes.sum(axis=1)
    fractions = np.divide(ground.classes, known[:, None], out=np.zeros_like(ground.classes), where=known[:, None] > 0)
    number = len(known)
    return {
        "chip_id": chips.chip_ids,
        "product": pa.repeat(chips.product.config.name, number),
        "edition_year": np.full(number, chips.year),
        "known_fraction": known,
        "excluded_fraction": ground.excluded,
        "sea_fraction": ground.sea,
        "unknown_fraction": ground.unknown,
        "outside_fraction": ground.outside,
        "num_cells": ground.num_cells,
        "gap_days": np.full(number, chips.product.gap_days(chips.acquired, chips.year)),
        **dict(zip(fraction_columns(index.legend.classes), fractions.T, strict=True)),
    }


def count_squares(config: ProportionsConfig, chips: SceneChips) -> np.ndarray:
    """Count land cover under a grid of squares inside each chip, for labels that follow a crop.

    Args:
        config: ``cells_per_side`` n, and how edges are carried to another CRS.
        chips: N chips.

    Returns:
        uint8 (N, n, n, K): share of the square's whole ground in each class, times 255; rows and columns as in the
        chip's pixels. What is missing to 255 is not known.

    Raises:
        UnknownLegendCodeError: a code that the legend does not list.
        LandCoverError: a tile cannot be read.
    """
    side = config.cells_per_side
    # A square is small enough for straight edges wherever the chip's own are cut into as many pieces.
    segments = max(1, config.edge_segments // side)
    parts = []
    for first in range(0, len(chips.windows.lon), _CHIPS_PER_PART):
        squares = chips.windows[first : first + _CHIPS_PER_PART].cells(side)
        ground = look_up(squares, chips.placed, chips.cells, segments)
        parts.append(_as_bytes(ground.classes).reshape(-1, side, side, chips.cells.num_classes))
    return np.concatenate(parts)


def count_rows(config: ProportionsConfig, source: Path, index: LandCover, rows: pd.DataFrame) -> pd.DataFrame:
    """`count_chips` for catalogue rows of one scene with the columns `CHIP_COLUMNS`, as one table row a chip."""
    chips = SceneChips.of_table(pa.Table.from_pandas(rows[list(CHIP_COLUMNS)], preserve_index=False), index, source)
    counted: pd.DataFrame = pa.table(count_chips(config, index, chips)).to_pandas()
    return counted


def _as_bytes(shares: np.ndarray) -> np.ndarray:
    """Shares of 1 as bytes whose sum is that of the shares: the largest remainders are rounded up."""
    scaled = shares * 255.0
    whole = np.floor(scaled + 1e-6)
    missing = np.rint(scaled.sum(axis=1) - whole.sum(axis=1)).astype(int)
    rank = np.argsort(np.argsort(whole - scaled, axis=1, kind="stable"), axis=1, kind="stable")
    return np.asarray(whole + (rank < missing[:, None]), dtype=np.uint8)
