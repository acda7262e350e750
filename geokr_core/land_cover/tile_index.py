"""Making the index of land-cover tiles: where each really lies, of which year it is, and what should be known of it.

Only headers and checksums are read. Footprints place tiles; a name serves to read the year, and a name that contradicts
its file is a warning. Reading the index back, and what codes mean, is the business of ``product``.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyproj
import shapely
from affine import Affine
from pyproj.exceptions import ProjError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import CRSError
from rasterio.io import DatasetReader

from geokr_core.errors import ConfigError, GeoKRError, LandCoverError, MissingInputError
from geokr_core.land_cover.config import LandCoverConfig, ProductConfig
from geokr_core.land_cover.legend import ProductLegend, common_legend, load_legend
from geokr_core.land_cover.slots import CODE_TYPES
from geokr_core.rasters.checksums import Checksums, memory_of
from geokr_core.rasters.grid import Grid
from geokr_core.rasters.masks import SIDE_FILES, DeclaredMask, Opened, open_with_mask
from geokr_core.rasters.open_raster import FILE_ERRORS, RASTER_ERRORS, cause_of, unopened
from geokr_core.step.files import whole_folder, write_json
from geokr_core.step.found_files import find_files
from geokr_core.step.reporter import LOG, Reporter
from geokr_core.step.section import as_plain
from geokr_core.step.summary import Number, Summary


def index_products(config: LandCoverConfig, out: Path, reporter: Reporter = LOG) -> Summary:
    """Index the tiles of every product by their real footprint and year, and check that their legends can be read.

    Only headers and checksums are read. The md5 of a file that has not changed is remembered (``rasters.checksums``).

    Args:
        config: products and common legend.
        out: folder to write ``tiles.parquet`` (GeoParquet, one row a tile and year) and ``products.json`` into.
        reporter: shows progress, and hears the warnings.

    Returns:
        Counts, a table of the products with editions and licence, and warnings: a datum that was assumed, names
        that contradict the file, copies that were left out.

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
    checksums = Checksums(memory_of(out.parent, config.folder))
    rows: list[dict[str, Any]] = []
    remarks = _Remarks()
    for product in config.products:
        files = _files(config.folder, product, remarks)
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
    checksums.keep()
    summary = _index_summary(config, legends, rows, remarks)
    for warning in summary.warnings:
        reporter.warning(warning)
    return summary


def forget(config: LandCoverConfig, out: Path) -> None:
    """Forget the digests that are remembered, so that the next index reads every byte again."""
    memory_of(out.parent, config.folder).unlink(missing_ok=True)


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
    """Warnings about tiles, each given once for all the files that it is true of."""

    def __init__(self) -> None:
        self._files: dict[tuple[str, str], list[str]] = {}

    def add(self, product: str, remark: str, file: str) -> None:
        self._files.setdefault((product, remark), []).append(file)

    def sentences(self) -> tuple[str, ...]:
        return tuple(
            f"{product}: {remark}" + (f" ({len(files)} file(s), e.g. {files[0]})" if files[0] else "")
            for (product, remark), files in self._files.items()
        )


def _files(folder: Path, product: ProductConfig, remarks: _Remarks) -> list[str]:
    found = find_files(folder, product.files)
    if found.unreachable:
        # Ground under a tile that is not there would look like ground beyond the map.
        path, reason = next(iter(found.unreachable.items()))
        raise LandCoverError(
            f"{path}: {reason}. {len(found.unreachable)} such tile(s) or folder(s) of product {product.name!r}."
        )
    for file in found.leftovers:
        remarks.add(product.name, "left by an operating system or archive, skipped", file)
    for file in found.repeated:
        remarks.add(product.name, "linked folder that is read elsewhere already, skipped", file)
    files = [file for file in found.files if not file.casefold().endswith(SIDE_FILES)]
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
        return _rows(folder, product, legend, file, remarks)
    except GeoKRError:
        raise
    except RASTER_ERRORS as error:
        raise LandCoverError(unopened(file, error)) from error
    except FILE_ERRORS as error:
        raise LandCoverError(f"{file}: cannot be read: {cause_of(error)}") from error


def _rows(
    folder: Path, product: ProductConfig, legend: ProductLegend, file: str, remarks: _Remarks
) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        opened = open_with_mask(folder / file, stack)
        source = opened.dataset
        crs = _crs(product, legend, source.crs, file, remarks)
        if source.transform.is_degenerate or source.transform == Affine.identity():
            raise LandCoverError(
                f"{file}: no usable geotransform {tuple(source.transform)[:6]}; georeference the tile."
            )
        grid = Grid.of(source, crs)
        editions = _editions(product, legend, file, _num_bands(source), remarks)
        bands = {band: _band(opened, band, file) for band in sorted({band for band, _ in editions})}
    if grid.crs.is_geographic and (grid.transform.b or grid.transform.d):
        raise LandCoverError(f"{file}: a rotated grid in degrees; warp it to a north-up grid first.")
    _compare_with_name(product, legend, file, grid, remarks)
    _compare_nodata(product, legend, {fields["nodata"] for fields in bands.values()}, file, remarks)
    common = {
        "product": product.name,
        "file": file,
        **grid.columns(),
        "geometry": _footprint(grid, file),
    }
    return [{**common, "band": band, "year": year, **bands[band]} for band, year in editions]


def _num_bands(source: DatasetReader) -> int:
    return sum(kind != ColorInterp.alpha for kind in source.colorinterp)


def _band(opened: Opened, band: int, file: str) -> dict[str, Any]:
    source = opened.dataset
    dtype = source.dtypes[band - 1]
    if dtype not in CODE_TYPES:
        raise LandCoverError(
            f"{file}: {dtype} found, expected whole-number codes ({', '.join(CODE_TYPES)}). If every value is a code, "
            f"convert the file, e.g. `gdal_translate -ot Int16 {PurePosixPath(file).name} codes.tif`; shares or "
            "probabilities a class are not a land-cover map."
        )
    masked = bool(DeclaredMask(opened, [band]))
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
    two versions of one map: nothing in a header tells which, so both stay, with a warning.
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
                f"lies on exactly the grid of {earlier['file']} in {row['year']}: that one takes precedence. Keep one of them if "
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
