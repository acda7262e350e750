"""The inventory of raw scenes: which files make a scene, what is known of it, and why it is refused.

`take_inventory` reads names, metadata and headers, and refuses, by name and reason, every scene that could not give
correct labels. Bytes are read for their digests alone, and only of files that are new or written to since the last
inventory. What a scene is stands in ``scene``, how its pixels are read in ``scene_reader``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from affine import Affine
from rasterio.crs import CRS

from geokr_core.errors import MissingInputError, SceneRefusedError
from geokr_core.rasters.grid import Grid
from geokr_core.scenes.config import ScenesConfig
from geokr_core.scenes.discovery import Candidate, discover
from geokr_core.scenes.inspection import inspect
from geokr_core.scenes.known_files import Listing, Seen
from geokr_core.scenes.scene import Scene
from geokr_core.step.digests import text_digest
from geokr_core.step.files import whole_folder, write_json
from geokr_core.step.reporter import LOG, Reporter
from geokr_core.step.section import as_plain
from geokr_core.step.summary import Summary

WORLD_MARKER = "world.json"
"""A file beside the scene folder that says that the scenes are generated."""

_FORMAT = 2
"""Counts up when a row of the inventory comes out otherwise for the same files."""


def take_inventory(config: ScenesConfig, out: Path, reporter: Reporter = LOG) -> Summary:
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


def _stamp(candidate: Candidate, listing: Listing) -> str:
    """Changes when anything does that a row of the inventory is made from."""
    dem = candidate.collection.dem
    elevation = (dem.as_posix(), dem.stat().st_size, dem.stat().st_mtime_ns) if dem and dem.is_file() else ()
    settings = as_plain(candidate.collection)
    return text_digest([_FORMAT, candidate.files, settings, listing.digest(candidate.roots), elevation])


def _inventory_row(folder: Path, candidate: Candidate, owners: dict[str, str], seen: Seen) -> dict[str, Any]:
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
