"""Land-cover products: which tiles there are, where they really lie, of which year, and what their codes mean.

Tiles are known by their footprint, never by their file name; a name serves only to read the year. The index is made once
and looked up for every scene. Where tiles of one year overlap, each piece of ground votes once: the tile whose centre is
nearest to the chip's centre speaks first, the next one only for the ground that is left. Counting classes under chips is
the business of ``proportions``, which follows that rule. Of files on exactly the same grid in the same year, whose centres
are the same, the first by name speaks first, and the index says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pyproj
import shapely
from affine import Affine
from pyproj.exceptions import ProjError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError, RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from geokr_core.checksums import Checksums
from geokr_core.config import LandCoverConfig, ProductConfig, as_plain
from geokr_core.errors import ConfigError, LandCoverError, MissingInputError, UnknownLegendCodeError
from geokr_core.files import read_json, whole_folder, write_json
from geokr_core.grid import Grid
from geokr_core.legend import (
    EXCLUDED,
    SEA,
    UNKNOWN,
    UNLISTED,
    CommonLegend,
    ProductLegend,
    common_legend,
    load_legend,
)
from geokr_core.raster_files import open_raster
from geokr_core.reporter import Reporter
from geokr_core.summary import Number, Summary

CODE_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32")
"""Raster types that codes may be stored in."""


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


# ---- Making the index --------------------------------------------------------------------------------------------


def index_products(config: LandCoverConfig, out: Path, reporter: Reporter) -> Summary:
    """Index the tiles of every product by their real footprint and year, and check that their legends can be read.

    Only headers and checksums are read. The md5 of a file that has not changed since the last index is remembered in
    ``.<out>.checksums.json`` beside ``out``.

    Args:
        config: products and common legend.
        out: folder to write ``tiles.parquet`` (GeoParquet, one row a tile and year) and ``products.json`` into.
        reporter: shows progress, and hears the warnings.

    Returns:
        Counts, a table of the products with editions and licence, and what a person must know of the tiles: a datum
        that was assumed, names that contradict the file, copies that were left out.

    Raises:
        MissingInputError: no folder, or a product without files.
        ConfigError: a legend that cannot be read or used, a CRS that does not exist, tiles of which the year is not
            known.
        LandCoverError: a tile that cannot be used: unreadable, no CRS, codes that are not whole numbers.
    """
    if not config.folder.is_dir():
        raise MissingInputError(f"{config.folder}: no such land-cover folder; point `land_cover.folder` at your tiles.")
    legends = {product.name: load_legend(product.legend) for product in config.products}
    common = common_legend(config.legend, list(legends.values()))
    checksums = Checksums(out.with_name(f".{out.name}.checksums.json"))
    rows: list[dict[str, Any]] = []
    remarks = _Remarks()
    for product in config.products:
        files = _files(config.folder, product)
        with reporter.progress(f"land cover {product.name}", len(files)) as advance:
            for file in files:
                found = _tile_rows(config.folder, product, legends[product.name], file, remarks)
                md5 = checksums.md5(config.folder / file)
                rows += [{**row, "md5": md5} for row in found]
                advance(1)
    rows = _without_copies(rows, remarks)
    with whole_folder(out) as folder:
        _write_tiles(rows, folder / "tiles.parquet")
        # The products are named here so that proportions read the very files that were indexed.
        content = {
            "legend": {
                "name": common.name,
                "classes": common.classes,
                "colours": common.colours,
                "is_own": common.is_own,
            },
            "products": [{**as_plain(p), "legend_digest": legends[p.name].digest} for p in config.products],
        }
        write_json(folder / "products.json", content)
    checksums.save()
    summary = _index_summary(config, legends, rows, remarks)
    for warning in summary.warnings:
        reporter.warning(warning)
    return summary


def _index_summary(
    config: LandCoverConfig, legends: Mapping[str, ProductLegend], rows: list[dict[str, Any]], remarks: "_Remarks"
) -> Summary:
    table: list[dict[str, Number]] = []
    for product in config.products:
        mine = [row for row in rows if row["product"] == product.name]
        years = sorted({row["year"] for row in mine})
        legend = legends[product.name]
        for year in years:
            if legend.editions and year not in legend.editions:
                remarks.add(product.name, f"{year} is not among the editions that its legend knows", "")
        table.append(
            {
                "product": product.name,
                "editions": ", ".join(map(str, years)),
                "legend": product.legend,
                "tiles": len({row["file"] for row in mine}),
                "licence": legend.licence,
            }
        )
    numbers = {
        "num_products": len(config.products),
        "num_tiles": len({(row["product"], row["file"]) for row in rows}),
        "num_tile_years": len(rows),
    }
    return Summary(numbers=numbers, table=table, warnings=remarks.sentences())


class _Remarks:
    """What a person must know of the tiles, said once for all tiles that it is true of."""

    def __init__(self) -> None:
        self._files: dict[tuple[str, str], list[str]] = {}

    def add(self, product: str, remark: str, file: str) -> None:
        self._files.setdefault((product, remark), []).append(file)

    def sentences(self) -> tuple[str, ...]:
        return tuple(
            f"{product}: {remark}" + (f" ({len(files)} file(s), e.g. {files[0]})" if files[0] else "")
            for (product, remark), files in self._files.items()
        )


def _files(folder: Path, product: ProductConfig) -> list[str]:
    files = sorted(p.relative_to(folder).as_posix() for p in folder.glob(product.files) if p.is_file())
    if not files:
        raise MissingInputError(
            f"{folder}: no file matches `{product.files}` of product {product.name!r}; mend `land_cover.products`."
        )
    return files


def _tile_rows(
    folder: Path, product: ProductConfig, legend: ProductLegend, file: str, remarks: _Remarks
) -> list[dict[str, Any]]:
    """One row of the index for each year that a file holds."""
    try:
        with open_raster(folder / file) as source:
            crs = _crs(product, legend, source.crs, file, remarks)
            if source.transform.is_degenerate or source.transform == Affine.identity():
                raise LandCoverError(
                    f"{file}: no usable geotransform {tuple(source.transform)[:6]}; georeference the tile."
                )
            grid = Grid(crs, Affine(*tuple(source.transform)[:6]), source.height, source.width)
            editions = _editions(product, legend, file, _num_bands(source), remarks)
            bands = {band: _band(source, band, file) for band in sorted({band for band, _ in editions})}
    except RasterioError as error:
        raise LandCoverError(f"{file}: cannot be opened: {error}. Fetch the tile again, or leave it out.") from error
    if grid.crs.is_geographic and (grid.transform.b or grid.transform.d):
        raise LandCoverError(f"{file}: a rotated grid in degrees; warp it to a north-up grid first.")
    _compare_with_name(product, legend, file, grid, remarks)
    _compare_nodata(product, legend, {fields["nodata"] for fields in bands.values()}, file, remarks)
    common = {
        "product": product.name,
        "file": file,
        "crs_wkt": grid.wkt,
        "transform": list(tuple(grid.transform)[:6]),
        "height": grid.height,
        "width": grid.width,
        "geometry": _footprint(grid, file),
    }
    return [{**common, "band": band, "year": year, **bands[band]} for band, year in editions]


def _num_bands(source: DatasetReader) -> int:
    return sum(kind != ColorInterp.alpha for kind in source.colorinterp)


def _band(source: DatasetReader, band: int, file: str) -> dict[str, Any]:
    dtype = source.dtypes[band - 1]
    if dtype not in CODE_TYPES:
        raise LandCoverError(
            f"{file}: {dtype} found, expected whole-number codes ({', '.join(CODE_TYPES)}). If every value is a code, "
            f"convert the file, e.g. `gdal_translate -ot Int16 {PurePosixPath(file).name} codes.tif`; shares or "
            "probabilities a class are not a land-cover map."
        )
    # An alpha band and an internal mask are both "per dataset"; a declared nodata code is not.
    masked = MaskFlags.per_dataset in source.mask_flag_enums[band - 1]
    nodata, limits = source.nodatavals[band - 1], np.iinfo(dtype)
    # A declared value that the type cannot hold occurs nowhere.
    holds = nodata is not None and limits.min <= nodata <= limits.max and float(nodata).is_integer()
    return {"nodata": int(nodata) if holds else None, "masked": masked}


def _editions(
    product: ProductConfig, legend: ProductLegend, file: str, num_bands: int, remarks: _Remarks
) -> list[tuple[int, int]]:
    """(band, year) of all that a file holds: the configured year, else what the bands or the name say."""
    name = PurePosixPath(file).name
    years = legend.years_of_bands(name) if product.band is None and num_bands > 1 else ()
    if years:
        return _bands_of_years(product, file, num_bands, years)
    if product.band is None and num_bands != 1:
        raise LandCoverError(
            f"{file}: {num_bands} bands found, expected one band of codes. Give `band` for product {product.name!r} if one of "
            "them holds the codes, or `year_bands` in the legend if they are years."
        )
    band = product.band or 1
    if band > num_bands:
        raise LandCoverError(f"{file}: {num_bands} band(s) found, band {band} of product {product.name!r} expected.")
    named = legend.year_of(name)
    if product.year is None and named is None:
        raise ConfigError(
            f"land_cover.products.{product.name}: no `year`, and {file} does not give it by its name"
            + (f" (`{legend.tile_name}`)" if legend.tile_name else "")
            + ". Give `year`, and one product a year where the files hold several."
        )
    if product.year is not None and named is not None and named != product.year:
        remarks.add(product.name, f"`year` is {product.year}, the names say {named}: `year` has the last word", file)
    return [(band, product.year if product.year is not None else named or 0)]


def _bands_of_years(product: ProductConfig, file: str, num_bands: int, years: tuple[int, ...]) -> list[tuple[int, int]]:
    if len(years) != num_bands:
        raise LandCoverError(
            f"{file}: {num_bands} bands found, expected {len(years)} by its name (years {years[0]} … {years[-1]}). Fetch the "
            "tile again, or give `band` and `year`."
        )
    editions = [(band, year) for band, year in enumerate(years, start=1) if product.year in (None, year)]
    if not editions:
        raise ConfigError(
            f"land_cover.products.{product.name}.year: {product.year} is none of the years of {file}: {list(years)}."
        )
    return editions


def _crs(product: ProductConfig, legend: ProductLegend, found: CRS | None, file: str, remarks: _Remarks) -> CRS:
    if product.crs is not None:
        return _named_crs(f"land_cover.products.{product.name}.crs", product.crs)
    if found is None:
        raise LandCoverError(f"{file}: no CRS found; give `crs` for product {product.name!r}.")
    crs = CRS.from_wkt(found.to_wkt())
    datum = _unknown_datum(crs.to_wkt())
    if datum is None:
        return crs
    # Longitude and latitude on an unknown datum can only be meant as they stand; metres of a projection keep theirs.
    if crs.is_geographic and legend.crs_if_datum_unknown is not None:
        remark = f"datum {datum!r} taken as {legend.crs_if_datum_unknown}, as the legend of {legend.name} says"
        remarks.add(product.name, remark, file)
        return _named_crs(f"legend {product.legend}: crs_if_datum_unknown", legend.crs_if_datum_unknown)
    remark = (
        f"datum {datum!r}: longitudes and latitudes are taken as WGS 84 without a shift; give `crs` to say otherwise"
    )
    remarks.add(product.name, remark, file)
    return crs


def _named_crs(key: str, name: str) -> CRS:
    try:
        return CRS.from_user_input(name)
    except CRSError as error:
        raise ConfigError(f"{key}: {name!r} is no CRS: {error}") from error


@lru_cache(maxsize=256)
def _unknown_datum(wkt: str) -> str | None:
    """The datum's name if it says of itself that it is not known, else None."""
    try:
        datum = pyproj.CRS.from_wkt(wkt).datum
    except ProjError:
        return None
    name = "" if datum is None else datum.name
    return name if name.casefold().startswith(("unknown", "not specified", "not_specified", "unnamed")) else None


@lru_cache(maxsize=256)
def _utm_zone(wkt: str) -> str | None:
    try:
        return pyproj.CRS.from_wkt(wkt).utm_zone
    except ProjError:
        return None


def _compare_with_name(product: ProductConfig, legend: ProductLegend, file: str, grid: Grid, remarks: _Remarks) -> None:
    """Say where a name contradicts the file; the file has the last word."""
    if legend.tile_name is None:
        return
    named = legend.named(PurePosixPath(file).name)
    if not named:
        remarks.add(product.name, f"not named like a tile of {legend.name}; placed by the footprint all the same", file)
    zone = _utm_zone(grid.wkt)
    said = named.get("zone", "")
    if said.isdecimal() and zone is not None and int(said) != int(zone[:-1]):
        remarks.add(product.name, "the name's UTM zone is not the file's: placed where the file says", file)


def _compare_nodata(
    product: ProductConfig, legend: ProductLegend, declared: set[int | None], file: str, remarks: _Remarks
) -> None:
    """Say where a file declares as no data what is a class in the legend."""
    for code in sorted(code for code in declared if code is not None):
        meaning = legend.meaning(code)
        if meaning not in (None, "no data", "sea"):
            remark = (
                f"the files declare code {code}, {meaning!r} in the legend, as no data: it is taken as unknown. If the "
                "declaration is wrong, take it out of the files (`gdal_edit.py -unsetnodata`)"
            )
            remarks.add(product.name, remark, file)


def _footprint(grid: Grid, file: str) -> shapely.Polygon:
    """Outline in longitude and latitude, round the pole where the tile holds it.

    Points of the outline that have no image (corners of a world projection's tiles) are left out.
    """
    try:
        lonlat = grid.lonlat(grid.outline_xy(16))
    except ProjError as error:
        raise LandCoverError(f"{file}: no way from its CRS to longitude and latitude: {error}; give `crs`.") from error
    lonlat = lonlat[np.isfinite(lonlat).all(axis=1)]
    if len(lonlat) < 4:
        raise LandCoverError(f"{file}: its grid has no place on the earth: {grid.crs}, {tuple(grid.transform)[:6]}.")
    lonlat[:, 0] = np.unwrap(lonlat[:, 0], period=360.0)
    turned = lonlat[-1, 0] - lonlat[0, 0]
    if abs(turned) > 180.0:
        pole = np.copysign(90.0, lonlat[:, 1].mean())
        lonlat = np.vstack([lonlat, [lonlat[-1, 0], pole], [lonlat[0, 0], pole]])
    return shapely.Polygon(lonlat)


def _without_copies(rows: list[dict[str, Any]], remarks: _Remarks) -> list[dict[str, Any]]:
    """Rows in the order of product, year and file; of files with the same bytes on one grid in one year, the first.

    Different files on one grid may be tiles that were cut to the same window, each filled beyond its own border, or
    two versions of one map: nothing in a header tells which, so both stay and a person is told.
    """
    kept: list[dict[str, Any]] = []
    first: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row["product"], row["year"], row["file"])):
        grid = (row["crs_wkt"], *row["transform"], row["height"], row["width"])
        earlier = first.setdefault((row["product"], row["year"], *grid), row)
        if earlier is not row and earlier["md5"] == row["md5"]:
            remarks.add(row["product"], "left out: a copy of another file with the same bytes", row["file"])
            continue
        if earlier is not row:
            remark = (
                f"lies on exactly the grid of {earlier['file']} in {row['year']}: that one speaks first. Keep one of them if "
                "they are versions of one map"
            )
            remarks.add(row["product"], remark, row["file"])
        kept.append(row)
    return kept


def _write_tiles(rows: list[dict[str, Any]], path: Path) -> None:
    import geopandas as gpd

    table = gpd.GeoDataFrame(rows, geometry="geometry", crs="EPSG:4326")
    table["nodata"] = table["nodata"].astype("Int64")
    table.to_parquet(path, index=False, compression="zstd")


# ---- Looking things up -------------------------------------------------------------------------------------------


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
    columns = ("product", "file", "band", "year", "crs_wkt", "transform", "height", "width", "nodata", "masked")
    return [
        Tile(
            product=product,
            file=file,
            band=int(band),
            year=int(year),
            grid=Grid(crs[wkt], Affine(*transform), int(height), int(width)),
            footprint=footprint,
            nodata=None if pd.isna(nodata) else int(nodata),
            masked=bool(masked),
        )
        for footprint, (product, file, band, year, wkt, transform, height, width, nodata, masked) in zip(
            footprints, zip(*(table[name] for name in columns), strict=True), strict=True
        )
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
        with open_raster(folder / tile.file) as source:
            codes = source.read(tile.band, window=window)
            valid = source.read_masks(tile.band, window=window) > 0 if tile.masked else None
    except RasterioError as error:
        first = int(window.row_off)
        raise LandCoverError(
            f"{folder / tile.file}: unreadable at lines {first}–{first + int(window.height) - 1}: {error}. Fetch the tile again."
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
    slots = _by_table(codes, listed) if codes.dtype.itemsize <= 2 else _by_search(codes, listed)
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


def _by_table(codes: np.ndarray, listed: Mapping[int, int]) -> np.ndarray:
    """Codes of 8 or 16 bits: one look-up by the code's bit pattern, so that signed codes need no case of their own."""
    bits = np.dtype(f"u{codes.dtype.itemsize}")
    limits = np.iinfo(codes.dtype)
    table = np.full(np.iinfo(bits).max + 1, UNLISTED, dtype=np.uint8)
    for code, slot in listed.items():
        if limits.min <= code <= limits.max:
            table[code & int(np.iinfo(bits).max)] = slot
    return np.asarray(table[codes.view(bits)])


def _by_search(codes: np.ndarray, listed: Mapping[int, int]) -> np.ndarray:
    """Wider codes: search among the few that are listed."""
    keys = np.array(sorted(listed), dtype=np.int64)
    values = np.array([listed[int(key)] for key in keys], dtype=np.uint8)
    wide = codes.astype(np.int64)
    places = np.searchsorted(keys, wide).clip(max=len(keys) - 1)
    return np.where(keys[places] == wide, values[places], np.uint8(UNLISTED))


__all__ = [
    "EXCLUDED",
    "SEA",
    "UNKNOWN",
    "LandCover",
    "Product",
    "Tile",
    "index_products",
    "open_land_cover",
    "read_slots",
    "slots_of",
]
