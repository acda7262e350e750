"""The inventory of raw scenes: which files make a scene, what is known of it, and why it is refused.

`take_inventory` reads names, metadata and headers, and refuses, by name and reason, every scene that could not give
correct labels. Bytes are read for their digests alone, and only of files that are new or written to since the last
inventory. What a scene is stands in ``scene``, how it becomes a row in ``rows``, how its pixels are read in ``reader``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from geokr_core.errors import MissingInputError, SceneRefusedError
from geokr_core.rasters.checksums import Checksums, Mark, file_mark, is_settled, memory_of
from geokr_core.scenes.config import ScenesConfig
from geokr_core.scenes.discovery import Candidate, Discovery, discover
from geokr_core.scenes.duplicates import taken_twice
from geokr_core.scenes.inspection import inspect
from geokr_core.scenes.known_rows import KnownRows
from geokr_core.scenes.listing import Listing
from geokr_core.scenes.refusals import Refusals
from geokr_core.scenes.rows import QUARANTINED, USABLE, refused_row, row_of, scene_of
from geokr_core.scenes.scene import Scene
from geokr_core.step.digests import text_digest
from geokr_core.step.files import read_json, whole_folder, write_json
from geokr_core.step.reporter import LOG, Reporter
from geokr_core.step.section import as_plain
from geokr_core.step.summary import Summary

WORLD_MARKER = "world.json"
"""A file beside the scene folder that says that the scenes are generated."""

_FORMAT = 3
"""Counts up when a row of the inventory comes out otherwise for the same files."""


def take_inventory(config: ScenesConfig, out: Path, reporter: Reporter = LOG) -> Summary:
    """Inventory the scene folder.

    Args:
        config: folder and collections.
        out: folder to write ``inventory.parquet`` (GeoParquet, one row a scene) and ``inventory.json`` into.
        reporter: hears each refusal and each remark.

    Returns:
        Counts, a table of the refused scenes with their reasons, and what the user should know of the others.

    Raises:
        MissingInputError: no folder, or a collection without files.
        ConfigError: collections overlap, or an elevation model cannot be read.
        SceneRefusedError: not one scene is usable; lists the reasons.
    """
    found = discover(config)
    rows, remarks, (known, checksums) = _take(config, found, out, reporter)
    refusals = Refusals(reporter)
    for row in rows:
        if row["status"] == QUARANTINED:
            refusals.refused(row["scene_id"], row["reason"])
        else:
            refusals.usable()
    refused = refusals.reasons
    if len(refused) == len(rows):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(_all_refused(out), list(map(list, refused.items())))
        raise SceneRefusedError(f"{config.folder}: none of {len(rows)} scenes is usable:\n{refusals.named()}")
    usable = [row for row in rows if row["status"] == USABLE]
    remarks += taken_twice(usable)
    if found.repeated:
        remarks.append(f"linked folder(s) that are read elsewhere already, skipped: {', '.join(found.repeated[:5])}")
    for remark in remarks:
        reporter.warning(remark)
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
    _all_refused(out).unlink(missing_ok=True)
    known.save()
    checksums.keep()
    return Summary(
        numbers={
            "num_scenes": len(usable),
            "num_quarantined": len(refused),
            "num_leftovers": len(found.leftovers),
            "megapixels": round(sum(row["height"] * row["width"] for row in usable) / 1e6, 2),
        },
        table=[{"scene": scene_id, "reason": reason} for scene_id, reason in list(refused.items())[:50]],
        warnings=[f"{scene_id}: {reason}" for scene_id, reason in refused.items()] + remarks,
    )


def forget(config: ScenesConfig, out: Path) -> None:
    """Forget all that earlier inventories remember, so that the next one reads every byte and header again."""
    _rows_memory(out).unlink(missing_ok=True)
    memory_of(out.parent, config.folder).unlink(missing_ok=True)


def _rows_memory(out: Path) -> Path:
    """Where it is remembered what the rows were made from: beside the inventory, hidden."""
    return out.with_name(f".{out.name}.rows.json")


def _all_refused(out: Path) -> Path:
    """Why each scene was refused where none is usable, so that there is no inventory: beside it, hidden."""
    return out.with_name(f".{out.name}.refused.json")


def refused_without_inventory(folder: Path) -> list[tuple[str, str]]:
    """Each scene id with its reason if the last attempt found no usable scene and there is no inventory; else empty."""
    path = _all_refused(folder)
    if (folder / "inventory.parquet").is_file() or not path.is_file():
        return []
    return [(scene, reason) for scene, reason in read_json(path)]


def _take(
    config: ScenesConfig, found: Discovery, out: Path, reporter: Reporter
) -> tuple[list[dict[str, Any]], list[str], tuple[KnownRows, Checksums]]:
    """A row a candidate, what is remarked of usable scenes, and what to remember of both."""
    listing, owners = Listing(config.folder), dict[str, str]()
    checksums = Checksums(memory_of(out.parent, config.folder))
    known = KnownRows(out / "inventory.parquet", _rows_memory(out), reporter)
    rows: list[dict[str, Any]] = []
    remarks: list[str] = []
    with reporter.progress("scenes", len(found.candidates)) as advance:
        for candidate in found.candidates:
            marks = listing.marks(candidate.roots)
            stamp = _stamp(candidate, marks)
            kept = known.row(candidate.scene_id, stamp)
            row, of_scene = kept or _inspected(config.folder, candidate, owners, checksums)
            owners.setdefault(candidate.scene_id, candidate.files[0])
            rows.append(row)
            remarks += [f"{candidate.scene_id}: {remark}" for remark in of_scene]
            # A file that may still change under the same mark is looked at again next time.
            if row["status"] == USABLE and all(is_settled(mark) for mark in marks.values()):
                known.note(candidate.scene_id, stamp, of_scene)
            checksums.keep(every_s=30.0)
            advance(1)
    return rows, remarks, (known, checksums)


def _stamp(candidate: Candidate, marks: Mapping[str, Mark]) -> str:
    """Changes when anything does that a row of the inventory is made from."""
    dem = candidate.collection.dem
    elevation = (dem.as_posix(), file_mark(dem)) if dem and dem.is_file() else ()
    settings = as_plain(candidate.collection)
    return text_digest([_FORMAT, candidate.files, settings, sorted(marks.items()), elevation])


def _inspected(
    folder: Path, candidate: Candidate, owners: Mapping[str, str], checksums: Checksums
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The row of a candidate, and what is remarked of it."""
    if (other := owners.get(candidate.scene_id, candidate.files[0])) != candidate.files[0]:
        return _refused(candidate, f"{candidate.files[0]}: same scene id as {other}; rename one of them"), ()
    try:
        scene, remarks = inspect(folder, candidate, checksums)
    except SceneRefusedError as error:
        return _refused(candidate, str(error)), ()
    return row_of(scene), remarks


def _refused(candidate: Candidate, reason: str) -> dict[str, Any]:
    collection = candidate.collection
    return refused_row(
        reason,
        scene_id=candidate.scene_id,
        collection=collection.name,
        files=candidate.files,
        land_cover=collection.land_cover,
        max_abs_latitude_deg=collection.max_abs_latitude_deg,
        product=candidate.family,
    )


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
    return {str(row["scene_id"]): scene_of(row) for row in table[table["status"] == USABLE].to_dict("records")}
