"""Land-cover products: which tiles there are, where they really lie, and what their codes mean.

Tiles are known by their footprint, never by their file name. The index is made once and looked up for every scene.
Counting classes under chips is the business of ``proportions``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from geokr_core.config import LandCoverConfig, ProductConfig, as_plain
from geokr_core.errors import ConfigError, LandCoverError, MissingInputError, UnknownLegendCodeError
from geokr_core.files import file_md5, read_json, whole_folder, write_json
from geokr_core.grid import Grid
from geokr_core.legend import COMMON_LEGENDS, EXCLUDED, UNKNOWN, UNLISTED, CommonLegend, load_legend
from geokr_core.raster_files import RASTER_ERRORS, open_raster, unopened
from geokr_core.reporter import Reporter
from geokr_core.summary import Summary


@dataclass(frozen=True)
class Tile:
    """One land-cover raster.

    Attributes:
        product: name of its product.
        file: path relative to the land-cover folder.
        grid: where its cells lie, with the product's CRS override applied.
        footprint: outline in longitude and latitude.
        nodata: the file's declared nodata code, or None.
    """

    product: str
    file: str
    grid: Grid
    footprint: shapely.Polygon
    nodata: int | None


@dataclass(frozen=True)
class Product:
    """A product ready to be looked up.

    Attributes:
        config: edition, legend and CRS override.
        tiles: its tiles.
        lookup: uint8 (256,), from code to slot of the common legend.
    """

    config: ProductConfig
    tiles: tuple[Tile, ...]
    lookup: np.ndarray


@dataclass(frozen=True)
class LandCover:
    """All products of an index.

    Attributes:
        legend: common legend of the proportions.
        products: by name.
    """

    legend: CommonLegend
    products: Mapping[str, Product]


def index_products(config: LandCoverConfig, out: Path, reporter: Reporter) -> Summary:
    """Index the tiles of every product by their real footprint, and check that their legends can be read.

    Args:
        config: products and common legend.
        out: folder to write ``tiles.parquet`` (GeoParquet) and ``products.json`` into.
        reporter: shows progress.

    Returns:
        Counts, and a table of the products.

    Raises:
        MissingInputError: no folder, or a product without files.
        ConfigError: a legend that cannot be read, a CRS that does not exist.
        LandCoverError: a tile that cannot be used: unreadable, no CRS, not one band of 8-bit codes.
    """
    if not config.folder.is_dir():
        raise MissingInputError(f"{config.folder}: no such land-cover folder; point `land_cover.folder` at your tiles.")
    rows: list[dict[str, Any]] = []
    legends: dict[str, str] = {}
    for product in config.products:
        legends[product.name] = load_legend(product.legend).digest
        files = sorted(
            p.relative_to(config.folder).as_posix() for p in config.folder.glob(product.files) if p.is_file()
        )
        if not files:
            raise MissingInputError(
                f"{config.folder}: no file matches `{product.files}` of product {product.name!r}; mend `land_cover.products`."
            )
        with reporter.progress(f"land cover {product.name}", len(files)) as advance:
            for file in files:
                rows.append(_tile_row(config.folder, product, file))
                advance(1)
    with whole_folder(out) as folder:
        _write_tiles(rows, folder / "tiles.parquet")
        # The folder is named here so that proportions read the very files that were indexed.
        content = {
            "legend": config.legend,
            "products": [{**as_plain(p), "legend_digest": legends[p.name]} for p in config.products],
        }
        write_json(folder / "products.json", content)
    table = [
        {"product": p.name, "year": p.year, "legend": p.legend, "tiles": sum(row["product"] == p.name for row in rows)}
        for p in config.products
    ]
    return Summary(numbers={"num_products": len(config.products), "num_tiles": len(rows)}, table=table)


def _tile_row(folder: Path, product: ProductConfig, file: str) -> dict[str, Any]:
    try:
        with open_raster(folder / file) as source:
            crs = _crs(product, source.crs, file)
            if source.count != 1 or source.dtypes[0] != "uint8":
                raise LandCoverError(
                    f"{file}: {source.count} band(s) of {source.dtypes[0]} found, expected one band of uint8 codes."
                )
            if source.transform.is_degenerate or source.transform == Affine.identity():
                raise LandCoverError(
                    f"{file}: no usable geotransform {tuple(source.transform)[:6]}; georeference the tile."
                )
            grid = Grid(crs, Affine(*tuple(source.transform)[:6]), source.height, source.width)
            nodata = source.nodata
    except RASTER_ERRORS as error:
        raise LandCoverError(unopened(file, error)) from error
    if fault := grid.fault():
        raise LandCoverError(f"{file}: {fault}")
    if grid.crs.is_geographic and (grid.transform.b or grid.transform.d):
        raise LandCoverError(f"{file}: a rotated grid in degrees; warp it to a north-up grid first.")
    return {
        "product": product.name,
        "file": file,
        "md5": file_md5(folder / file),
        "crs_wkt": grid.wkt,
        "transform": list(tuple(grid.transform)[:6]),
        "height": grid.height,
        "width": grid.width,
        "nodata": -1 if nodata is None else int(nodata),
        "geometry": grid.footprint(),
    }


def _crs(product: ProductConfig, found: CRS | None, file: str) -> CRS:
    if product.crs is not None:
        try:
            return CRS.from_user_input(product.crs)
        except CRSError as error:
            raise ConfigError(f"land_cover.products.{product.name}.crs: {product.crs!r} is no CRS: {error}") from error
    if found is None:
        raise LandCoverError(f"{file}: no CRS found; give `crs` for product {product.name!r}.")
    return CRS.from_wkt(found.to_wkt())


def _write_tiles(rows: list[dict[str, Any]], path: Path) -> None:
    import geopandas as gpd

    gpd.GeoDataFrame(rows, geometry="geometry", crs="EPSG:4326").to_parquet(path, index=False, compression="zstd")


def open_land_cover(folder: Path) -> LandCover:
    """Read an index back.

    Raises:
        MissingInputError: there is no index.
        ConfigError: a legend has vanished or changed since the index was made.
    """
    if not (folder / "products.json").is_file():
        raise MissingInputError(f"{folder}: no index of land-cover tiles; run `geokr land-cover` first.")
    content = read_json(folder / "products.json")
    legend = COMMON_LEGENDS[content["legend"]]
    table = pd.read_parquet(folder / "tiles.parquet")
    products = {}
    for entry in content["products"]:
        digest = entry.pop("legend_digest")
        config = ProductConfig.model_validate(entry)
        own = load_legend(config.legend)
        if own.digest != digest:
            raise ConfigError(
                f"legend {config.legend!r} changed since the tiles were indexed; run `geokr land-cover` again."
            )
        tiles = tuple(_tile_of(row) for row in table[table["product"] == config.name].to_dict("records"))
        products[config.name] = Product(config, tiles, own.lookup(legend))
    return LandCover(legend, products)


def _tile_of(row: Mapping[Any, Any]) -> Tile:
    return Tile(
        product=row["product"],
        file=row["file"],
        grid=Grid(CRS.from_wkt(row["crs_wkt"]), Affine(*row["transform"]), int(row["height"]), int(row["width"])),
        footprint=shapely.from_wkb(row["geometry"]),
        nodata=None if row["nodata"] < 0 else int(row["nodata"]),
    )


def slots_of(codes: np.ndarray, tile: Tile, lookup: np.ndarray) -> np.ndarray:
    """Translate a tile's codes to slots of the common legend.

    Args:
        codes: uint8 (H, W).
        tile: whose codes they are.
        lookup: uint8 (256,) of the product.

    Returns:
        uint8 (H, W): class index, `UNKNOWN` or `EXCLUDED`.

    Raises:
        UnknownLegendCodeError: a code that the legend does not list; names file, codes and counts.
    """
    table = lookup
    if tile.nodata is not None and table[tile.nodata] == UNLISTED:
        # The file may declare a filler of its own that no legend knows.
        table = table.copy()
        table[tile.nodata] = UNKNOWN
    slots = table[codes]
    if (slots == UNLISTED).any():
        counts = np.bincount(codes[slots == UNLISTED], minlength=1)
        found = ", ".join(f"{code} ({counts[code]} cells)" for code in np.flatnonzero(counts)[:8])
        listed = ", ".join(str(code) for code in np.flatnonzero(lookup != UNLISTED))
        raise UnknownLegendCodeError(
            f"{tile.file}: code(s) {found} are not in the legend of product {tile.product!r} (listed: {listed}). "
            "Add them to the legend: as a class, with `common: null` to leave them out, or under `nodata`."
        )
    return np.asarray(slots)


__all__ = ["EXCLUDED", "UNKNOWN", "LandCover", "Product", "Tile", "index_products", "open_land_cover", "slots_of"]
