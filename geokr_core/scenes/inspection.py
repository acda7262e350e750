"""Inspecting a scene: its header, place, bands and date; a refusal where it cannot be used."""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC

from geokr_core.errors import SceneRefusedError
from geokr_core.rasters.grid import Grid, unwrap_lon
from geokr_core.rasters.open_raster import RASTER_ERRORS, refuse_flood, unopened
from geokr_core.scenes.clouds import whole_factor
from geokr_core.scenes.config import SceneCollection
from geokr_core.scenes.discovery import Candidate
from geokr_core.scenes.known_files import Seen
from geokr_core.scenes.orthorectify import Terrain, ortho_grid
from geokr_core.scenes.products.families import describe
from geokr_core.scenes.products.product import Product
from geokr_core.scenes.reader import mask_beside, open_with_mask
from geokr_core.scenes.rpc_files import rpcs_of
from geokr_core.scenes.scene import Scene
from geokr_core.step.digests import text_digest


def inspect(folder: Path, candidate: Candidate, seen: Seen) -> Scene:
    """Read names, metadata and headers of a candidate and refuse it if correct chips are impossible.

    Args:
        folder: scene folder.
        candidate: from `discover`.
        seen: digests of files that have not changed.

    Raises:
        SceneRefusedError: a band file is missing, a file is unreadable or of another format, there is no CRS and no
            geotransform and no usable RPCs, files of one scene lie on different grids, the number of bands is not the
            expected one, or the metadata contradict the pixels.
        ConfigError: the elevation model cannot be read.
    """
    if candidate.missing:
        raise SceneRefusedError(f"band file(s) for {', '.join(candidate.missing)} missing beside {candidate.files[0]}")
    collection = candidate.collection
    product = describe(candidate.family, folder, candidate.files[0], collection.bands)
    if collection.band_files is not None:
        product = replace(product, files=candidate.files, bands=collection.bands)
    headers = [_header(folder / file, collection, product) for file in product.files]
    grid = headers[0].grid
    for file, header in zip(product.files, headers, strict=True):
        if header.grid != grid:
            raise SceneRefusedError(
                f"{file}: grid differs from {product.files[0]}; the files of a scene must share CRS, transform and size"
            )
    bands = _band_names(collection, product, headers)
    _check_place(grid, product)
    if product.cloud_mask:
        whole_factor(grid, _header(folder / product.cloud_mask, collection, product).grid)
    raw = headers[0].raw
    side = sorted({f for header in headers for f in header.side_files} | {folder / f for f in product.metadata})
    side += [folder / product.cloud_mask] if product.cloud_mask else []
    side += [collection.dem] if raw and collection.dem else []
    scales, offsets = _physical(product, headers, len(bands))
    return Scene(
        scene_id=candidate.scene_id,
        collection=collection.name,
        files=product.files,
        bands=bands,
        grid=grid,
        gsd_m=round(grid.gsd_m, 4),
        acquired=collection.acquired.isoformat() if collection.acquired else product.acquired or headers[0].acquired,
        sensor=product.sensor or collection.name,
        land_cover=collection.land_cover,
        nodata=product.nodata if collection.nodata is None else collection.nodata,
        max_abs_latitude_deg=collection.max_abs_latitude_deg,
        md5=_digest([folder / file for file in product.files], side, seen, collection.rpc_height_m if raw else None),
        product=product.name,
        product_id=product.product_id,
        cloud_mask=product.cloud_mask,
        scales=scales,
        offsets=offsets,
        orthorectified=raw,
        rpc_height_m=collection.rpc_height_m if raw else None,
        dem=collection.dem.as_posix() if raw and collection.dem else "",
    )


def _digest(files: Sequence[Path], side: Sequence[Path], seen: Seen, height_m: float | None) -> str:
    try:
        digests = [seen.md5(path) for path in (*files, *side)]
    except OSError as error:
        raise SceneRefusedError(f"{error.filename}: cannot be read: {error.strerror}") from error
    # One plain file: its md5 can be checked with md5sum.
    return digests[0] if len(digests) == 1 and height_m is None else text_digest([*digests, height_m])


def _check_place(grid: Grid, product: Product) -> None:
    if fault := grid.fault():
        raise SceneRefusedError(f"{product.files[0]}: {fault}")
    outline = shapely.get_coordinates(grid.footprint())
    corners = np.array(product.corners, dtype=np.float64).reshape(-1, 2)
    if len(corners) == 0 or not np.isfinite(corners).all() or not np.ptp(corners, axis=0).all():
        return
    corners[:, 0] = unwrap_lon(corners[:, 0], float(outline[0, 0]))
    if not shapely.MultiPoint(corners).convex_hull.intersects(shapely.Polygon(outline)):
        raise SceneRefusedError(
            f"{product.metadata[0]} places it at {corners[0].round(2).tolist()}, its grid at {outline[0].round(2).tolist()}; "
            "one of the two belongs to another scene"
        )


def _physical(
    product: Product, headers: Sequence["_Header"], num_bands: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if product.scales:
        return product.scales, product.offsets
    scales = tuple(value for header in headers for value in header.scales)[:num_bands]
    offsets = tuple(value for header in headers for value in header.offsets)[:num_bands]
    told = any(value != 1.0 for value in scales) or any(value != 0.0 for value in offsets)
    return (scales, offsets) if told else ((), ())


@dataclass(frozen=True)
class _Header:
    grid: Grid
    count: int
    colours: tuple[ColorInterp, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    side_files: tuple[Path, ...]
    raw: bool
    acquired: str


def _header(path: Path, collection: SceneCollection, product: Product) -> _Header:
    try:
        with ExitStack() as stack:
            source = open_with_mask(path, stack).dataset
            if any(np.dtype(kind).kind == "c" for kind in source.dtypes):
                raise SceneRefusedError(
                    f"{path.name}: complex pixels ({source.dtypes[0]}); expected integers or floats"
                )
            refuse_flood(source, path)
            rpcs, rpc_file = rpcs_of(source, path)
            raw = rpcs is not None and _is_raw(source, collection, product)
            return _Header(
                grid=_raw_grid(path, source, rpcs, collection) if rpcs and raw else _map_grid(path, source),
                count=source.count,
                colours=tuple(source.colorinterp),
                scales=tuple(source.scales),
                offsets=tuple(source.offsets),
                side_files=tuple(file for file in (rpc_file if raw else None, mask_beside(path)) if file),
                raw=raw,
                # GDAL's own tag, "2021-07-04 18:12:01": `geokr fetch` writes it.
                acquired=_leading_date(source.tags(ns="IMAGERY").get("ACQUISITIONDATETIME", "")),
            )
    except RASTER_ERRORS as error:
        raise SceneRefusedError(unopened(path.name, error)) from error


def _leading_date(text: str) -> str:
    found = re.match(r"\d{4}-\d{2}-\d{2}", text)
    return found[0] if found else ""


def _is_raw(source: Any, collection: SceneCollection, product: Product) -> bool:
    """Whether the RPCs say where the pixels lie. A raw product often carries a made-up CRS beside its RPCs."""
    asked = collection.rpc_height_m is not None or collection.dem is not None
    return asked or product.in_sensor_geometry or source.crs is None or source.transform == Affine.identity()


def _raw_grid(path: Path, source: Any, rpcs: RPC, collection: SceneCollection) -> Grid:
    if collection.rpc_height_m is None and collection.dem is None:
        raise SceneRefusedError(
            f"{path.name}: only RPCs (not orthorectified). Give its collection `rpc_height_m` (its RPCs are made for ground "
            f"around {rpcs.height_off:.0f} m) or, where there is relief, `dem`"
        )
    return ortho_grid(rpcs, source.height, source.width, Terrain(collection.rpc_height_m, collection.dem))


def _map_grid(path: Path, source: Any) -> Grid:
    if source.crs is None:
        if source.gcps[0]:
            raise SceneRefusedError(
                f"{path.name}: only ground control points; warp the scene to a map grid first, e.g. with gdalwarp."
            )
        raise SceneRefusedError(
            f"{path.name}: no CRS; without it land cover cannot be looked up. Assign one, e.g. with gdal_edit."
        )
    if source.transform == Affine.identity():
        raise SceneRefusedError(
            f"{path.name}: no geotransform; orthorectify the scene to a map grid first, or put its RPC file beside it. Other "
            "files beside it (.tfw, .aux.xml) are not read: gdal_translate writes what they say into the file."
        )
    if source.transform.is_degenerate:
        raise SceneRefusedError(f"{path.name}: degenerate geotransform {tuple(source.transform)[:6]}")
    return Grid.of(source)


def _band_names(collection: SceneCollection, product: Product, headers: Sequence[_Header]) -> tuple[str, ...]:
    if len(product.files) > 1 or collection.band_files is not None or product.name in ("sentinel2", "landsat_c2"):
        for file, header in zip(product.files, headers, strict=True):
            if header.count != 1:
                raise SceneRefusedError(f"{file}: {header.count} bands found, expected one band a file")
        return tuple(product.bands or ())
    header, file = headers[0], product.files[0]
    colours = [c for c in header.colours if c != ColorInterp.alpha]
    if product.name != "generic" and collection.bands is None:
        return _sensor_bands(product, header, file)
    if collection.bands is None:
        known = {ColorInterp.red: "red", ColorInterp.green: "green", ColorInterp.blue: "blue"}
        return tuple(known.get(c, f"band{k}") for k, c in enumerate(colours, start=1))
    # A fourth band may be tagged as alpha though it holds near infrared: the user's list decides.
    if len(collection.bands) not in (header.count, len(colours)):
        raise SceneRefusedError(
            f"{file}: {len(colours)} bands found, expected {len(collection.bands)} ({', '.join(collection.bands)}); "
            f"mend `bands` of collection {collection.name!r}"
        )
    return collection.bands


def _sensor_bands(product: Product, header: _Header, file: str) -> tuple[str, ...]:
    """Bands of a sensor with a fixed order, where the file has exactly these; otherwise nobody can know."""
    if product.bands is None or len(product.bands) != header.count:
        expected = (
            f"{len(product.bands)} ({', '.join(product.bands)})" if product.bands else "a sensor with a known order"
        )
        raise SceneRefusedError(
            f"{file}: {header.count} band(s) of {product.sensor} found, expected {expected}; what they are and in which "
            "order cannot be known from outside: give `bands`"
        )
    # NAIP is often tagged so though its fourth band is near infrared; a Gaofen scene is only by whoever made it over.
    if product.name == "gaofen" and ColorInterp.alpha in header.colours:
        raise SceneRefusedError(
            f"{file}: its last band is tagged as transparency where {product.sensor} has {product.bands[-1]}; give `bands` "
            "if it is data, or name the colours in their order"
        )
    return product.bands
