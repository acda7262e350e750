"""The inventory of raw scenes: which files make a scene, what is known of it, and why it is refused.

`take_inventory` reads names, metadata and headers, and refuses, by name and reason, every scene that could not give
correct labels. Bytes are read for their digests alone, and only of files that are new or written to since the last
inventory. What a scene is stands in ``scene``, how its pixels are read in ``scene_reader``.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC

from geokr_core.clouds import whole_factor
from geokr_core.config import SceneCollection, ScenesConfig, as_plain
from geokr_core.errors import ConfigError, MissingInputError, SceneRefusedError
from geokr_core.files import text_digest, whole_folder, write_json
from geokr_core.grid import Grid, unwrap_lon
from geokr_core.raster_files import RASTER_ERRORS, refuse_flood, unopened
from geokr_core.reporter import Reporter
from geokr_core.rpc import Terrain, ortho_grid
from geokr_core.rpc_files import rpcs_of
from geokr_core.scene import Scene
from geokr_core.scene_files import Listing, Seen
from geokr_core.scene_reader import SceneReader, mask_beside, open_scene, open_with_mask
from geokr_core.sensors import FAMILIES, Product, describe, recognise, scene_heads
from geokr_core.summary import Summary

__all__ = [
    "WORLD_MARKER", "Scene", "SceneReader", "discover", "inspect", "open_scene", "read_inventory", "scene_listing",
    "take_inventory", "usable_scenes",
]  # fmt: skip

WORLD_MARKER = "world.json"
"""A file beside the scene folder that says that the scenes are generated."""

_FORMAT = 2
"""Counts up when a row of the inventory comes out otherwise for the same files."""


@dataclass(frozen=True)
class _Candidate:
    """Files that may be a scene.

    ``files`` are rasters, or for products of many files the one path that leads to them. ``roots`` are what the names
    of all its files, side files included, begin with.
    """

    scene_id: str
    collection: SceneCollection
    files: tuple[str, ...]
    roots: tuple[str, ...]
    family: str = "generic"
    missing: tuple[str, ...] = ()


def discover(config: ScenesConfig) -> list[_Candidate]:
    """Group the files below the scene folder into candidate scenes.

    Raises:
        MissingInputError: the folder is missing, or a collection's glob matches nothing.
        ConfigError: one file belongs to two collections.
    """
    if not config.folder.is_dir():
        raise MissingInputError(f"{config.folder}: no such scene folder; point `scenes.folder` at your scenes.")
    found: list[_Candidate] = []
    owner: dict[str, str] = {}
    for collection in config.collections:
        candidates = _candidates(config.folder, collection)
        if not candidates:
            some = sorted(p.relative_to(config.folder).as_posix() for p in config.folder.rglob("*") if p.is_file())[:3]
            raise MissingInputError(
                f"{config.folder}: no file matches `{collection.files}` of collection {collection.name!r}. "
                f"The folder holds {', '.join(some) + ' …' if some else 'no file at all'}; mend `scenes.collections`."
            )
        for file in (f for candidate in candidates for f in candidate.files):
            if owner.setdefault(file, collection.name) != collection.name:
                raise ConfigError(
                    f"{file}: matched by the collections {owner[file]} and {collection.name}; give each its own files."
                )
        found += candidates
    return sorted(found, key=lambda c: c.scene_id)


def scene_listing(config: ScenesConfig) -> Mapping[str, str]:
    """What lies in the scene folder at present, scene by scene, without opening a file.

    Args:
        config: folder and collections.

    Returns:
        By scene id, a digest of names, sizes and modification times of the scene's files: it changes whenever one of
        them comes, goes or is written to.

    Raises:
        MissingInputError: the folder is missing, or a collection's glob matches nothing.
        ConfigError: one file belongs to two collections.
    """
    listing = Listing(config.folder)
    return {c.scene_id: listing.digest(c.roots) for c in discover(config)}


def _candidates(folder: Path, collection: SceneCollection) -> list[_Candidate]:
    if collection.band_files is None:
        paths = (p.relative_to(folder).as_posix() for p in folder.glob(collection.files) if _is_scene_path(p))
        return [
            _Candidate(
                _scene_id(root) or _scene_id(folder.resolve().name),
                collection,
                (path,),
                (_root_of(path, family),),
                family,
            )
            for path, (family, root) in scene_heads(paths, collection.product).items()
        ]
    before, after = collection.files.split("{band}")
    tokens = "|".join(re.escape(token) for token in collection.band_files)
    pattern = re.compile(f"(?s:{_glob_regex(before)})(?P<band>{tokens})(?s:{_glob_regex(after)})\\Z")
    scenes: dict[str, dict[str, str]] = {}
    for path in sorted(p.relative_to(folder).as_posix() for p in folder.glob(before + "*" + after) if p.is_file()):
        if match := pattern.match(path):
            key = path[: match.start("band")] + path[match.end("band") :]
            scenes.setdefault(key, {})[match["band"]] = path
    result = []
    for key, by_band in scenes.items():
        missing = tuple(token for token in collection.band_files if token not in by_band)
        files = tuple(by_band[token] for token in collection.band_files if token in by_band)
        family = recognise(files[0], collection.product)
        if family in FAMILIES and FAMILIES[family].one_file_a_band:
            family = "generic"
        roots = tuple(_root_of(file, family) for file in files)
        result.append(_Candidate(_scene_id(key), collection, files, roots, family, missing))
    return result


def _is_scene_path(path: Path) -> bool:
    return (path.is_file() and path.suffix.lower() != ".msk") or path.suffix.upper() == ".SAFE"


def _root_of(path: str, family: str) -> str:
    root = FAMILIES[family].root(path) if family in FAMILIES else path
    return re.sub(r"\.(tiff?|jp2|img)$", "", root, flags=re.IGNORECASE)


def _glob_regex(glob: str) -> str:
    return re.sub(r"^\(\?s:(.*)\)\\[Zz]$", r"\1", fnmatch.translate(glob))


def _scene_id(path: str) -> str:
    stem = re.sub(r"\.(tiff?|jp2|img|safe)$", "", path, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")


def inspect(folder: Path, candidate: _Candidate, seen: Seen) -> Scene:
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
    return Grid(CRS.from_wkt(source.crs.to_wkt()), Affine(*tuple(source.transform)[:6]), source.height, source.width)


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


def take_inventory(config: ScenesConfig, out: Path, reporter: Reporter) -> Summary:
    """Take stock of the scene folder.

    Args:
        config: folder and collections.
        out: folder to write ``inventory.parquet`` (GeoParquet, one row a scene) and ``inventory.json`` into.
        reporter: hears each refusal.

    Returns:
        Counts, and a table of the refused scenes with their reasons.

    Raises:
        MissingInputError: no folder, or a collection without files.
        ConfigError: collections overlap, or an elevation model cannot be read.
        SceneRefusedError: not one scene is usable; lists the reasons.
    """
    rows: list[dict[str, Any]] = []
    candidates = discover(config)
    listing, owners = Listing(config.folder), dict[str, str]()
    seen = Seen(out, reporter)
    with reporter.progress("scenes", len(candidates)) as advance:
        for candidate in candidates:
            stamp = _stamp(candidate, listing)
            row = seen.row(candidate.scene_id, stamp) or _inventory_row(config.folder, candidate, owners, seen)
            owners.setdefault(candidate.scene_id, candidate.files[0])
            rows.append(row)
            if row["status"] == "usable":
                seen.note(candidate.scene_id, stamp)
            advance(1)
    refused = [row for row in rows if row["status"] == "quarantined"]
    for row in refused:
        reporter.warning(f"scene {row['scene_id']} quarantined: {row['reason']}")
    if len(refused) == len(rows):
        reasons = "\n".join(f"  {row['scene_id']}: {row['reason']}" for row in refused[:10])
        raise SceneRefusedError(f"{config.folder}: none of {len(rows)} scenes is usable:\n{reasons}")
    with whole_folder(out) as folder:
        _write_inventory(rows, folder / "inventory.parquet")
        generated = (config.folder.parent / WORLD_MARKER).exists()
        write_json(
            folder / "inventory.json",
            {
                "num_scenes": len(rows),
                "num_quarantined": len(refused),
                "generated_world": generated,
                "collections": as_plain(config)["collections"],
            },
        )
    seen.save()
    usable = [row for row in rows if row["status"] == "usable"]
    return Summary(
        numbers={
            "num_scenes": len(usable),
            "num_quarantined": len(refused),
            "megapixels": round(sum(row["height"] * row["width"] for row in usable) / 1e6, 2),
        },
        table=[{"scene": row["scene_id"], "reason": row["reason"]} for row in refused[:50]],
        warnings=[f"{row['scene_id']}: {row['reason']}" for row in refused],
    )


def _stamp(candidate: _Candidate, listing: Listing) -> str:
    """Changes when anything does that a row of the inventory is made from."""
    dem = candidate.collection.dem
    elevation = (dem.as_posix(), dem.stat().st_size, dem.stat().st_mtime_ns) if dem and dem.is_file() else ()
    settings = as_plain(candidate.collection)
    return text_digest([_FORMAT, candidate.files, settings, listing.digest(candidate.roots), elevation])


def _inventory_row(folder: Path, candidate: _Candidate, owners: dict[str, str], seen: Seen) -> dict[str, Any]:
    row: dict[str, Any] = {
        "scene_id": candidate.scene_id, "collection": candidate.collection.name, "status": "usable", "reason": "",
        "files": list(candidate.files), "bands": [], "crs_wkt": "", "transform": [], "height": 0, "width": 0, "gsd_m": np.nan,
        "acquired": "", "sensor": "", "land_cover": candidate.collection.land_cover, "nodata": np.nan,
        "max_abs_latitude_deg": candidate.collection.max_abs_latitude_deg, "md5": "", "product": candidate.family,
        "product_id": "", "cloud_mask": "", "scales": [], "offsets": [], "orthorectified": False, "rpc_height_m": np.nan,
        "dem": "", "geometry": None,
    }  # fmt: skip
    if (other := owners.get(candidate.scene_id, candidate.files[0])) != candidate.files[0]:
        reason = f"{candidate.files[0]}: same scene id as {other}; rename one of them"
        return {**row, "status": "quarantined", "reason": reason}
    try:
        scene = inspect(folder, candidate, seen)
    except SceneRefusedError as error:
        return {**row, "status": "quarantined", "reason": str(error)}
    return {
        **row, "files": list(scene.files), "bands": list(scene.bands), "crs_wkt": scene.grid.wkt, "transform": list(tuple(scene.grid.transform)[:6]),
        "height": scene.grid.height, "width": scene.grid.width, "gsd_m": scene.gsd_m, "acquired": scene.acquired,
        "sensor": scene.sensor, "nodata": np.nan if scene.nodata is None else scene.nodata, "md5": scene.md5,
        "product": scene.product, "product_id": scene.product_id, "cloud_mask": scene.cloud_mask,
        "scales": list(scene.scales), "offsets": list(scene.offsets), "orthorectified": scene.orthorectified,
        "rpc_height_m": np.nan if scene.rpc_height_m is None else scene.rpc_height_m, "dem": scene.dem,
        "geometry": scene.grid.footprint(),
    }  # fmt: skip


def _write_inventory(rows: list[dict[str, Any]], path: Path) -> None:
    import geopandas as gpd

    gpd.GeoDataFrame(rows, geometry="geometry", crs="EPSG:4326").to_parquet(path, index=False, compression="zstd")


def read_inventory(folder: Path) -> pd.DataFrame:
    """The inventory as a table, refused scenes included.

    Raises:
        MissingInputError: the inventory has not been taken.
    """
    path = folder / "inventory.parquet"
    if not path.is_file():
        raise MissingInputError(f"{path}: no inventory; run `geokr scenes` first.")
    return pd.read_parquet(path)


def usable_scenes(folder: Path) -> Mapping[str, Scene]:
    """Usable scenes of an inventory by scene id, in order.

    Raises:
        MissingInputError: the inventory has not been taken.
    """
    table = read_inventory(folder)
    return {str(row["scene_id"]): _scene_of(row) for row in table[table["status"] == "usable"].to_dict("records")}


def _scene_of(row: Mapping[Any, Any]) -> Scene:
    return Scene(
        scene_id=row["scene_id"],
        collection=row["collection"],
        files=tuple(row["files"]),
        bands=tuple(row["bands"]),
        grid=Grid(CRS.from_wkt(row["crs_wkt"]), Affine(*row["transform"]), int(row["height"]), int(row["width"])),
        gsd_m=float(row["gsd_m"]),
        acquired=row["acquired"],
        sensor=row["sensor"],
        land_cover=row["land_cover"],
        nodata=None if np.isnan(row["nodata"]) else float(row["nodata"]),
        max_abs_latitude_deg=float(row["max_abs_latitude_deg"]),
        md5=row["md5"],
        product=row["product"],
        product_id=row["product_id"],
        cloud_mask=row["cloud_mask"],
        scales=tuple(float(value) for value in row["scales"]),
        offsets=tuple(float(value) for value in row["offsets"]),
        orthorectified=bool(row["orthorectified"]),
        rpc_height_m=None if np.isnan(row["rpc_height_m"]) else float(row["rpc_height_m"]),
        dem=row["dem"],
    )
