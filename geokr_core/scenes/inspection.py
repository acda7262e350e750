"""Inspecting a scene: its header, place, bands and date; a refusal where it cannot be used."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from affine import Affine
from rasterio.rpc import RPC

from geokr_core.errors import GeoKRError, SceneRefusedError
from geokr_core.rasters.checksums import Checksums
from geokr_core.rasters.grid import Grid, unwrap_lon
from geokr_core.rasters.masks import mask_beside, open_with_mask, stored_value
from geokr_core.rasters.open_raster import FILE_ERRORS, RASTER_ERRORS, cause_of, refuse_flood, unopened
from geokr_core.scenes.clouds import whole_factor
from geokr_core.scenes.config import SceneCollection
from geokr_core.scenes.discovery import Candidate
from geokr_core.scenes.orthorectify import Terrain, ortho_grid
from geokr_core.scenes.products.families import describe, family
from geokr_core.scenes.products.generic import contradiction
from geokr_core.scenes.products.product import Description, SceneProduct, Stack
from geokr_core.scenes.rpc_files import rpcs_of
from geokr_core.scenes.scene import Scene
from geokr_core.step.digests import text_digest


def inspect(folder: Path, candidate: Candidate, checksums: Checksums) -> tuple[Scene, tuple[str, ...]]:
    """Read names, metadata and headers of a candidate and refuse it if correct chips are impossible.

    Args:
        folder: scene folder.
        candidate: from `discover`.
        checksums: remembers digests of files that have not changed.

    Returns:
        The scene, and what the user should know of it.

    Raises:
        SceneRefusedError: a band file is missing, a file is unreadable or of another format, there is no CRS and no
            geotransform and no usable RPCs, files of one scene lie on different grids, the number of bands is not the
            expected one, or the metadata contradict the pixels.
        ConfigError: the elevation model cannot be read.
    """
    if candidate.fault:
        raise SceneRefusedError(candidate.fault)
    try:
        return _inspect(folder, candidate, checksums)
    except GeoKRError:
        raise
    except FILE_ERRORS as error:
        # No single file ends an inventory, whatever a library makes of what it holds.
        raise SceneRefusedError(f"{candidate.files[0]}: cannot be read: {cause_of(error)}") from error


def _inspect(folder: Path, candidate: Candidate, checksums: Checksums) -> tuple[Scene, tuple[str, ...]]:
    collection = candidate.collection
    product = family(candidate.family)
    described = describe(candidate.family, folder, candidate.files[0], collection.bands)
    if collection.band_files is not None:
        described = replace(described, files=candidate.files, bands=collection.bands)
    headers = [_header(folder, file, collection, described) for file in described.files]
    grid = headers[0].grid
    for header in headers:
        if "palette" in header.stack.colours:
            raise SceneRefusedError(
                f"{header.stack.file}: its pixels are places in a colour table, not measurements; expand them, e.g. with "
                "gdal_translate -expand rgb"
            )
        if header.grid != grid:
            raise SceneRefusedError(
                f"{header.stack.file}: grid differs from {described.files[0]}; the files of a scene must share CRS, "
                "transform and size"
            )
    bands = _band_names(collection, product, described, headers)
    _check_place(grid, described)
    if described.cloud_mask:
        whole_factor(grid, _header(folder, described.cloud_mask, collection, described).grid)
    raw = headers[0].raw
    side = sorted({f for header in headers for f in header.side_files} | {folder / f for f in described.metadata})
    side += [folder / described.cloud_mask] if described.cloud_mask else []
    side += [collection.dem] if raw and collection.dem else []
    scales, offsets = _physical(described, headers, len(bands))
    scene = Scene(
        scene_id=candidate.scene_id,
        collection=collection.name,
        files=described.files,
        bands=bands,
        grid=grid,
        gsd_m=round(grid.gsd_m, 4),
        acquired=collection.acquired.isoformat() if collection.acquired else described.acquired or headers[0].acquired,
        sensor=described.sensor or collection.name,
        land_cover=collection.land_cover,
        nodata=described.nodata if collection.nodata is None else collection.nodata,
        max_abs_latitude_deg=collection.max_abs_latitude_deg,
        md5=_digest([folder / f for f in described.files], side, checksums, collection.rpc_height_m if raw else None),
        product=candidate.family,
        product_id=described.product_id,
        cloud_mask=described.cloud_mask,
        scales=scales,
        offsets=offsets,
        orthorectified=raw,
        rpc_height_m=collection.rpc_height_m if raw else None,
        dem=collection.dem.as_posix() if raw and collection.dem else "",
    )
    return scene, (*described.remarks, *_remarks(collection, bands, headers))


def _remarks(collection: SceneCollection, bands: tuple[str, ...], headers: Sequence["_Header"]) -> Iterator[str]:
    """What of a collection's settings can hardly be meant for this scene."""
    files = tuple(header.stack.descriptions[0] for header in headers)
    stack = headers[0].stack
    if collection.band_files is not None:
        told = tuple(described or name for described, name in zip(files, collection.band_files, strict=True))
        stack = Stack(stack.file, (), told)
    if (len(headers) == 1 or collection.band_files is not None) and (swapped := contradiction(bands, stack)):
        yield f"{swapped}: if the names are wrong, give `bands` of collection {collection.name!r}"
    dtypes = {dtype for header in headers for dtype in header.dtypes}
    nodata = collection.nodata
    if nodata is not None and np.isfinite(nodata) and all(stored_value(nodata, dtype) is None for dtype in dtypes):
        yield f"`nodata: {nodata:g}` of collection {collection.name!r} marks nothing: {', '.join(sorted(dtypes))} cannot hold it"


def _digest(files: Sequence[Path], side: Sequence[Path], checksums: Checksums, height_m: float | None) -> str:
    try:
        digests = [checksums.md5(path) for path in (*files, *side)]
    except OSError as error:
        raise SceneRefusedError(f"{error.filename}: cannot be read: {error.strerror}") from error
    # One plain file: its md5 can be checked with md5sum.
    return digests[0] if len(digests) == 1 and height_m is None else text_digest([*digests, height_m])


def _check_place(grid: Grid, product: Description) -> None:
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
    product: Description, headers: Sequence["_Header"], num_bands: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scale and offset of each band; empty where pixels are stored as what they are."""
    scales = product.scales or tuple(value for header in headers for value in header.scales)[:num_bands]
    offsets = product.offsets or tuple(value for header in headers for value in header.offsets)[:num_bands]
    if not np.isfinite([*scales, *offsets]).all() or 0.0 in scales:
        raise SceneRefusedError(
            f"{product.files[0]}: scale {list(scales)} and offset {list(offsets)} give no physical value; mend its tags, e.g. "
            "with gdal_edit"
        )
    if product.scales:
        return scales, offsets
    told = any(value != 1.0 for value in scales) or any(value != 0.0 for value in offsets)
    return (scales, offsets) if told else ((), ())


@dataclass(frozen=True)
class _Header:
    stack: Stack
    grid: Grid
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    dtypes: tuple[str, ...]
    side_files: tuple[Path, ...]
    raw: bool
    acquired: str


def _header(folder: Path, file: str, collection: SceneCollection, product: Description) -> _Header:
    path = folder / file
    try:
        with ExitStack() as stack:
            source = open_with_mask(path, stack).dataset
            if complex_kind := next((kind for kind in source.dtypes if "complex" in kind), None):
                raise SceneRefusedError(f"{path.name}: complex pixels ({complex_kind}); expected integers or floats")
            refuse_flood(source, path)
            rpcs, rpc_file = rpcs_of(source, path)
            raw = rpcs is not None and _is_raw(source, collection, product)
            return _Header(
                stack=Stack(
                    file,
                    tuple(colour.name for colour in source.colorinterp),
                    tuple(text or "" for text in source.descriptions),
                ),
                grid=_raw_grid(path, source, rpcs, collection) if rpcs and raw else _map_grid(path, source),
                scales=tuple(source.scales),
                offsets=tuple(source.offsets),
                dtypes=tuple(source.dtypes),
                side_files=tuple(f for f in (rpc_file if raw else None, mask_beside(path)) if f),
                raw=raw,
                # GDAL's own tag, "2021-07-04 18:12:01": `geokr fetch` writes it.
                acquired=_leading_date(source.tags(ns="IMAGERY").get("ACQUISITIONDATETIME", "")),
            )
    except RASTER_ERRORS as error:
        raise SceneRefusedError(unopened(path.name, error)) from error


def _leading_date(text: str) -> str:
    found = re.match(r"\d{4}-\d{2}-\d{2}", text)
    return found[0] if found else ""


def _is_raw(source: Any, collection: SceneCollection, product: Description) -> bool:
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


def _band_names(
    collection: SceneCollection, product: SceneProduct, described: Description, headers: Sequence[_Header]
) -> tuple[str, ...]:
    if len(headers) > 1 or collection.band_files is not None or product.one_file_a_band:
        for header in headers:
            if header.stack.num_bands != 1:
                raise SceneRefusedError(
                    f"{header.stack.file}: {header.stack.num_bands} bands found, expected one band a file"
                )
        return tuple(described.bands or ())
    stack = headers[0].stack
    if collection.bands is None:
        return product.band_names(described, stack)
    # A fourth band may be tagged as alpha though it holds near infrared: the user's list decides.
    num_colours = sum(colour != "alpha" for colour in stack.colours)
    if len(collection.bands) not in (stack.num_bands, num_colours):
        raise SceneRefusedError(
            f"{stack.file}: {num_colours} bands found, expected {len(collection.bands)} ({', '.join(collection.bands)}); "
            f"mend `bands` of collection {collection.name!r}"
        )
    return collection.bands
