"""Land-cover products: which tiles there are, where they really lie, of which year, and what their codes mean.

Tiles are known by their footprint, never by their file name. The index is made once, by ``tile_index``, and looked up for
every scene. Where tiles of one year overlap, each piece of ground votes once: the tile whose centre is
nearest to the chip's centre takes precedence, the next one labels only for the ground that is left. Counting classes under chips is
the business of ``proportions``, which follows that rule. Of files on exactly the same grid in the same year, whose centres
are the same, the first by name takes precedence, and the index says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import shapely
from rasterio.crs import CRS
from rasterio.windows import Window

from geokr_core.errors import ConfigError, LandCoverError, MissingInputError, UnknownLegendCodeError
from geokr_core.land_cover.config import ProductConfig
from geokr_core.land_cover.legend import CommonLegend, ProductLegend, load_legend
from geokr_core.land_cover.open_tiles import open_tile
from geokr_core.land_cover.slots import CODE_TYPES, SEA, UNKNOWN, UNLISTED, translated
from geokr_core.rasters.grid import Grid, unwrap_lon
from geokr_core.rasters.masks import DeclaredMask
from geokr_core.rasters.open_raster import FILE_ERRORS, cause_of
from geokr_core.step.files import read_json


@dataclass(frozen=True)
class Tile:
    """One land-cover raster in one year.

    Attributes:
        product: name of its product.
        file: path relative to the land-cover folder.
        band: band that holds the codes, from 1.
        year: edition, the year that the codes describe.
        grid: where its cells lie, with the product's CRS override applied.
        footprint: outline in longitude and latitude; longitudes run on beyond 180° where it crosses the antimeridian.
        nodata: the file's declared nodata code, or None.
        masked: whether the file marks cells without data by a mask or an alpha band.
    """

    product: str
    file: str
    band: int
    year: int
    grid: Grid
    footprint: shapely.Polygon
    nodata: int | None
    masked: bool = False


@dataclass(frozen=True)
class PlacedTiles:
    """Tiles of one edition, ready to be asked which of them lie near some ground.

    Attributes:
        tiles: the tiles.
        bounds: float64 (T, 4), west, south, east and north of their footprints in degrees.
        centres: float64 (T, 2), longitude and latitude of their footprints' centres.
    """

    tiles: tuple[Tile, ...]
    bounds: np.ndarray
    centres: np.ndarray

    @classmethod
    def of(cls, tiles: tuple[Tile, ...]) -> "PlacedTiles":
        """Measure where tiles lie."""
        footprints = np.array([tile.footprint for tile in tiles], dtype=object)
        centres = shapely.get_coordinates(shapely.centroid(footprints)) if tiles else np.zeros((0, 2))
        return cls(tiles, shapely.bounds(footprints).reshape(-1, 4), centres)

    def near(self, box: tuple[float, float, float, float]) -> "PlacedTiles":
        """Tiles that may touch a box; none that does is left out.

        Args:
            box: west, south, east and north in degrees; longitudes on any turn.
        """
        west, south, east, north = box
        width, height = self.bounds[:, 2] - self.bounds[:, 0], self.bounds[:, 3] - self.bounds[:, 1]
        # A footprint follows a bent edge in 16 pieces, and may miss this much of the ground beyond it.
        across = (width + east - west) / 2 + width / 64 + 0.01
        apart = unwrap_lon((self.bounds[:, 0] + self.bounds[:, 2]) / 2 - (west + east) / 2, 0.0)
        margin = height / 64 + 0.01
        close = (
            (np.abs(apart) <= across) & (self.bounds[:, 1] - margin <= north) & (self.bounds[:, 3] + margin >= south)
        )
        chosen = np.flatnonzero(close)
        return PlacedTiles(tuple(self.tiles[k] for k in chosen), self.bounds[chosen], self.centres[chosen])


@dataclass(frozen=True)
class Product:
    """A product ready to be looked up.

    Attributes:
        config: files, legend and CRS override.
        legend: what its codes mean.
        tiles: its tiles of all years, in the order of year and file.
        slots: from code to index of the common class, or `UNKNOWN`, `SEA`, `EXCLUDED`.
    """

    config: ProductConfig
    legend: ProductLegend
    tiles: tuple[Tile, ...]
    slots: Mapping[int, int]

    @property
    def years(self) -> tuple[int, ...]:
        """Editions that there are tiles of, ascending."""
        return tuple(self._by_year)

    @cached_property
    def _by_year(self) -> Mapping[int, tuple[Tile, ...]]:
        years = sorted({tile.year for tile in self.tiles})
        return {year: tuple(tile for tile in self.tiles if tile.year == year) for year in years}

    def tiles_in(self, year: int) -> tuple[Tile, ...]:
        """Tiles of an edition; empty if there is no such edition."""
        return self._by_year.get(year, ())

    def placed_in(self, year: int) -> PlacedTiles:
        """`tiles_in` with where they lie; measured once a process."""
        if year not in self._placed:
            self._placed[year] = PlacedTiles.of(self.tiles_in(year))
        return self._placed[year]

    @cached_property
    def _placed(self) -> dict[int, PlacedTiles]:
        return {}

    def edition(self, acquired: str) -> int:
        """The edition for an image: the one whose epoch, the middle of its year, is nearest to the acquisition.

        Args:
            acquired: ISO date, or empty.

        Returns:
            A year of `years`; of two at the same distance the earlier, without a date the latest.
        """
        if not acquired:
            return self.years[-1]
        return min(self.years, key=lambda year: (abs(self.gap_days(acquired, year)), year))

    def gap_days(self, acquired: str, year: int) -> float:
        """Days from the middle of an edition's year (1 July) to the acquisition; NaN without a date."""
        return float((date.fromisoformat(acquired) - date(year, 7, 1)).days) if acquired else float("nan")


@dataclass(frozen=True)
class LandCover:
    """All products of an index.

    Attributes:
        legend: common legend of the proportions.
        products: by name.
    """

    legend: CommonLegend
    products: Mapping[str, Product]


def open_land_cover(folder: Path) -> LandCover:
    """Read an index back.

    Raises:
        MissingInputError: there is no index.
        ConfigError: a legend has vanished or changed since the index was made.
    """
    if not (folder / "products.json").is_file():
        raise MissingInputError(f"{folder}: no index of land-cover tiles; run `geokr land-cover` first.")
    content = read_json(folder / "products.json")
    common = content["legend"]
    legend = CommonLegend(common["name"], tuple(common["classes"]), tuple(common["colours"]), common["is_own"])
    tiles = _tiles(pd.read_parquet(folder / "tiles.parquet"))
    products = {}
    for entry in content["products"]:
        digest = entry.pop("legend_digest")
        config = ProductConfig.model_validate(entry)
        own = load_legend(config.legend)
        if own.digest != digest:
            raise ConfigError(
                f"legend {config.legend!r} changed since the tiles were indexed; run `geokr land-cover` again."
            )
        mine = tuple(tile for tile in tiles if tile.product == config.name)
        products[config.name] = Product(config, own, mine, own.slots(legend))
    return LandCover(legend, products)


def _tiles(table: pd.DataFrame) -> list[Tile]:
    crs = {wkt: CRS.from_wkt(wkt) for wkt in table["crs_wkt"].unique()}
    footprints = shapely.from_wkb(table["geometry"].to_numpy())
    return [
        Tile(
            product=row["product"],
            file=row["file"],
            band=int(row["band"]),
            year=int(row["year"]),
            grid=Grid.of_columns(row, crs[row["crs_wkt"]]),
            footprint=footprint,
            nodata=None if pd.isna(row["nodata"]) else int(row["nodata"]),
            masked=bool(row["masked"]),
        )
        for footprint, row in zip(footprints, table.to_dict("records"), strict=True)
    ]


def read_slots(folder: Path, tile: Tile, product: Product, window: Window) -> np.ndarray:
    """Read a part of a tile as slots of the common legend.

    Args:
        folder: the land-cover folder.
        tile: which tile.
        product: the tile's product.
        window: cells to read, within the tile.

    Returns:
        uint8 (H, W): class index, `UNKNOWN`, `SEA` or `EXCLUDED`.

    Raises:
        UnknownLegendCodeError: a code that the legend does not list.
        LandCoverError: the file cannot be read there.
    """
    try:
        with open_tile(folder / tile.file) as opened:
            codes = opened.dataset.read(tile.band, window=window)
            valid = DeclaredMask(opened, [tile.band]).read(window, codes.shape) if tile.masked else None
    except FILE_ERRORS as error:
        first = int(window.row_off)
        raise LandCoverError(
            f"{folder / tile.file}: unreadable at lines {first}–{first + int(window.height) - 1}: {cause_of(error)}. Fetch the tile again."
        ) from error
    return slots_of(codes, tile, product, valid)


def slots_of(codes: np.ndarray, tile: Tile, product: Product, valid: np.ndarray | None = None) -> np.ndarray:
    """Translate a tile's codes to slots of the common legend.

    Args:
        codes: any integer type of at most 32 bits, (H, W).
        tile: whose codes they are; its declared nodata code is no data, unless the legend knows it as sea.
        product: the tile's product.
        valid: bool (H, W), False where the file's mask says no data; None: valid everywhere.

    Returns:
        uint8 (H, W): class index, `UNKNOWN`, `SEA` or `EXCLUDED`.

    Raises:
        LandCoverError: codes that are not whole numbers.
        UnknownLegendCodeError: a code that the legend does not list; names file, codes and counts.
    """
    if codes.dtype.name not in CODE_TYPES:
        raise LandCoverError(f"{tile.file}: codes of {codes.dtype} found, expected one of {', '.join(CODE_TYPES)}.")
    listed = dict(product.slots)
    # The file may declare a filler that no legend knows, or one that hides a class: no label is better than a wrong one.
    if tile.nodata is not None and listed.get(tile.nodata) != SEA:
        listed[tile.nodata] = UNKNOWN
    slots = translated(codes, listed)
    if valid is not None:
        slots[~valid] = UNKNOWN
    if (unlisted := slots == UNLISTED).any():
        found, counts = np.unique(codes[unlisted], return_counts=True)
        shown = ", ".join(f"{code} ({count} cells)" for code, count in zip(found[:8], counts[:8], strict=True))
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        raise UnknownLegendCodeError(
            f"{tile.file}: code(s) {shown}{more} are not in the legend of product {tile.product!r} (listed: "
            f"{', '.join(map(str, sorted(product.slots)))}). Add them to the legend: as a class, without `common` to leave "
            "them out, or under `nodata` or `sea`."
        )
    return slots
