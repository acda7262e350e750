"""A frozen Levir-KR as a STAC collection: one item a scene, its chips and their proportions as a GeoParquet table.

The pixels stay where they are: an item points at its shard. What it stands for is decided in
``docs/decisions/0012-stac-in-and-out.md``; the fields are listed in ``docs/stac.md``. Nothing is requested here, and no
raster is opened.
"""

import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pyproj
import pystac
import shapely
from pystac.layout import TemplateLayoutStrategy
from pystac.validation import validate_dict
from shapely.geometry.polygon import orient

from geokr_core.errors import DatasetError
from geokr_core.land_cover.legend import FRACTION, fraction_columns
from geokr_core.levir_kr.catalogue import scenes_of
from geokr_core.levir_kr.dataset import CATALOGUE_FILE, MANIFEST_FILE, LevirKR, open_levir_kr
from geokr_core.rasters.grid import unwrap_lon
from geokr_core.step.digests import file_md5, multihash
from geokr_core.step.files import whole_file, whole_folder
from geokr_core.step.reporter import LOG, Reporter
from geokr_core.step.summary import Summary

_SCHEMAS = "https://stac-extensions.github.io"
LABEL = f"{_SCHEMAS}/label/v1.0.1/schema.json"
PROJECTION = f"{_SCHEMAS}/projection/v2.0.0/schema.json"
RASTER = f"{_SCHEMAS}/raster/v1.1.0/schema.json"
CLASSIFICATION = f"{_SCHEMAS}/classification/v2.0.0/schema.json"
TABLE = f"{_SCHEMAS}/table/v1.2.0/schema.json"
FILE = f"{_SCHEMAS}/file/v2.1.0/schema.json"

PARQUET = "application/vnd.apache.parquet"
NUMPY = "application/x-npy"
_NEEDED = ("crs_wkt", "transform", "acquired", "sensor", "gsd_m", "geometry", "lon", "lat")
_EPOCH = "1970-01-01"
"""Beginning of the interval that an item gets whose acquisition date is unknown."""

Box = tuple[float, float, float, float]


def export_stac(levir_kr: Path, out: Path, reporter: Reporter = LOG, *, licence: str = "other") -> Summary:
    """Write a frozen data set as a self-contained STAC collection (STAC 1.1).

    Args:
        levir_kr: folder of the frozen data set.
        out: folder that gets ``collection.json``, ``items/<scene>.json`` and ``labels/<scene>.parquet``; replaced as a
            whole. Shards are pointed at by relative paths, so the two folders move together.
        reporter: shows progress.
        licence: SPDX name, or ``other``.

    Returns:
        Counts.

    Raises:
        MissingInputError: there is no frozen data set.
        DatasetError: the catalogue lacks a column, a shard is missing, or an item is not valid STAC.
        OSError: the file system refused.
    """
    dataset = open_levir_kr(levir_kr)
    path = levir_kr / CATALOGUE_FILE
    columns = pq.read_schema(path).names
    missing = [name for name in _NEEDED if name not in columns]
    if missing:
        raise DatasetError(
            f"{levir_kr}: the catalogue has no column {', '.join(missing)}; freeze the data set again with `geokr levir-kr`."
        )
    items: list[pystac.Item] = []
    with whole_folder(out) as folder, reporter.progress("STAC items", dataset.manifest["num_scenes"]) as advance:
        for scene_id, rows in scenes_of(path):
            items.append(_item(scene_id, rows, dataset, folder, out))
            advance(1)
        collection = _collection(dataset, items, out, licence)
        collection.add_items(items, strategy=None)
        # With the file's name: pystac takes a folder with a dot in its name for a file and writes beside it.
        collection.normalize_hrefs(
            str(folder / "collection.json"), strategy=TemplateLayoutStrategy(item_template="items")
        )
        collection.save(catalog_type=pystac.CatalogType.SELF_CONTAINED)
        for item in items:
            _validate(item.to_dict(include_self_link=False, transform_hrefs=False))
        _validate(collection.to_dict(include_self_link=False, transform_hrefs=False))
    return Summary(
        numbers={
            "num_items": len(items),
            "num_chips": len(dataset.catalogue),
            "num_unknown_dates": sum(item.datetime is None for item in items),
            "num_across_antimeridian": sum(bool(item.bbox and item.bbox[0] > item.bbox[2]) for item in items),
        }
    )


def _validate(content: dict[str, Any]) -> None:
    """Against the core schemas that pystac carries; those of the extensions would have to be downloaded."""
    try:
        validate_dict(content, extensions=[])
    except pystac.STACValidationError as error:
        raise DatasetError(f"{content['id']}: not valid STAC: {error}") from error


def _item(scene_id: str, rows: pd.DataFrame, dataset: LevirKR, folder: Path, out: Path) -> pystac.Item:
    footprints = on_one_turn(shapely.from_wkb(rows["geometry"].to_numpy()))
    hull = shapely.MultiPoint(shapely.get_coordinates(footprints)).convex_hull
    geometry, bbox = within_half_turn(hull)
    labels = folder / "labels" / f"{scene_id}.parquet"
    table = _labels(rows, footprints, dataset)
    _write_table(table, labels)
    moment, span = _when(rows)
    first = rows.iloc[0]
    columns = [{"name": str(name), "type": str(kind)} for name, kind in table.dtypes.items()]
    item = pystac.Item(
        id=scene_id,
        geometry=geometry,
        bbox=list(bbox),
        datetime=moment,
        properties={
            **span,
            "title": f"{len(rows)} chips of scene {scene_id} with land-cover proportions",
            "platform": str(first["sensor"]),
            "gsd": round(float(rows["gsd_m"].median()), 4),
            **_projection(str(first["crs_wkt"])),
            **_label_fields(rows, table, dataset),
            "table:columns": columns,
            "table:row_count": len(rows),
            "table:primary_geometry": "geometry",
            "geokr:num_train": int((rows["split"] == "train").sum()),
            "geokr:num_validation": int((rows["split"] == "validation").sum()),
            "geokr:products": sorted(rows["product"].astype(str).unique()),
        },
        stac_extensions=[LABEL, PROJECTION, RASTER, CLASSIFICATION, TABLE, FILE],
    )
    for name, shard in _shards(rows, dataset).items():
        item.add_asset(name, _shard_asset(shard, rows, dataset, out))
    item.add_asset(
        "labels",
        pystac.Asset(
            href=f"../labels/{labels.name}",
            title="One row a chip: footprint, place in the shard, split, land-cover proportions",
            media_type=PARQUET,
            roles=["labels", "data"],
            extra_fields={
                "classification:classes": _classes(dataset),
                "file:size": labels.stat().st_size,
                "file:checksum": multihash("md5", file_md5(labels)),
            },
        ),
    )
    return item


def _shards(rows: pd.DataFrame, dataset: LevirKR) -> Mapping[str, Path]:
    folder = (dataset.folder / dataset.manifest["chips_folder"]).resolve()
    names = sorted(rows["shard"].astype(str).unique())
    return {"chips" if len(names) == 1 else f"chips_{k}": folder / name for k, name in enumerate(names)}


def _shard_asset(shard: Path, rows: pd.DataFrame, dataset: LevirKR, out: Path) -> pystac.Asset:
    if not shard.is_file():
        raise DatasetError(
            f"{shard}: the shard is missing; run `geokr chips`, or `dvc pull` where it is versioned elsewhere."
        )
    bands = [{"name": name} for name in dataset.bands]
    raster = [{"data_type": "uint8", "spatial_resolution": round(float(rows["gsd_m"].median()), 4)} for _ in bands]
    if {"stretch_low", "stretch_high"} <= set(rows.columns):
        low, high = (np.asarray(rows.iloc[0][name], dtype=float) for name in ("stretch_low", "stretch_high"))
        for band, offset, top in zip(raster, low, high, strict=True):
            band |= {"scale": float((top - offset) / 255.0), "offset": float(offset)}
    return pystac.Asset(
        href=Path(os.path.relpath(shard, out.resolve() / "items")).as_posix(),
        title="Pixels of the chips",
        description="numpy array, uint8 (N, height, width, band); row `row` of the table is element `row`",
        media_type=NUMPY,
        roles=["data"],
        extra_fields={
            "bands": bands,
            "raster:bands": raster,
            "geokr:shape": [None, dataset.chip_size_px, dataset.chip_size_px, len(dataset.bands)],
            "file:size": shard.stat().st_size,
            "file:checksum": multihash("md5", dataset.manifest["shards"][shard.name]),
        },
    )


def _labels(rows: pd.DataFrame, footprints: np.ndarray, dataset: LevirKR) -> pd.DataFrame:
    fractions = fraction_columns(dataset.classes)
    kept = [
        name
        for name in (
            "chip_id",
            "shard",
            "row",
            "split",
            "lon",
            "lat",
            "gsd_m",
            "transform",
            "num_cells",
            "known_fraction",
            "product",
            "edition_year",
        )
        if name in rows
    ]
    largest = rows[fractions].to_numpy().argmax(axis=1)
    bounds = shapely.bounds(footprints)
    outside = (bounds[:, 0] < -180.0) | (bounds[:, 2] > 180.0)
    split = footprints.copy()
    split[outside] = [shapely.geometry.shape(within_half_turn(f)[0]) for f in footprints[outside]]
    return rows[[*kept, *fractions]].assign(
        largest_class=np.array(dataset.classes)[largest],
        largest_class_value=largest.astype(np.uint8),
        geometry=shapely.to_wkb(split),
    )


def _write_table(table: pd.DataFrame, path: Path) -> None:
    import geopandas as gpd

    frame = gpd.GeoDataFrame(
        table.drop(columns="geometry"), geometry=gpd.GeoSeries.from_wkb(table["geometry"]), crs="EPSG:4326"
    )
    with whole_file(path) as partial:
        frame.to_parquet(partial, index=False, compression="zstd", write_covering_bbox=True)


def _label_fields(rows: pd.DataFrame, table: pd.DataFrame, dataset: LevirKR) -> dict[str, Any]:
    counts = table["largest_class"].value_counts()
    overviews: list[dict[str, Any]] = [
        {
            "property_key": "largest_class",
            "counts": [{"name": name, "count": int(counts.get(name, 0))} for name in dataset.classes],
        }
    ]
    for name in dataset.classes:
        column = rows[f"{FRACTION}{name}"]
        statistics = {"mean": column.mean(), "min": column.min(), "max": column.max()}
        overviews.append(
            {
                "property_key": f"{FRACTION}{name}",
                "statistics": [{"name": key, "value": round(float(value), 6)} for key, value in statistics.items()],
            }
        )
    return {
        "label:type": "vector",
        "label:tasks": ["regression", "classification"],
        "label:methods": ["automated"],
        "label:properties": ["largest_class", *fraction_columns(dataset.classes)],
        "label:classes": [{"name": "largest_class", "classes": list(dataset.classes)}],
        "label:overviews": overviews,
        "label:description": (
            "Share of each land-cover class in the known ground of a chip, counted from a land-cover product; "
            "`largest_class` is the class with the largest share."
        ),
    }


def _classes(dataset: LevirKR) -> list[dict[str, Any]]:
    return [
        {"value": value, "name": name, "description": name.replace("_", " "), "color_hint": colour.lstrip("#").upper()}
        for value, (name, colour) in enumerate(zip(dataset.classes, dataset.class_colours, strict=True))
    ]


def _projection(wkt: str) -> dict[str, Any]:
    crs = pyproj.CRS.from_wkt(wkt)
    authority = crs.to_authority(min_confidence=100)
    if authority is not None:
        return {"proj:code": ":".join(authority)}
    return {"proj:code": None, "proj:wkt2": crs.to_wkt("WKT2_2019")}


def _when(rows: pd.DataFrame) -> tuple[datetime | None, dict[str, Any]]:
    known = sorted({str(day) for day in rows["acquired"] if day})
    if len(known) == 1:
        return datetime.fromisoformat(known[0]).replace(tzinfo=UTC), {}
    if known:
        return None, {"start_datetime": f"{known[0]}T00:00:00Z", "end_datetime": f"{known[-1]}T23:59:59Z"}
    # STAC wants an interval where there is no date: the widest that the land cover's edition allows, and it says so.
    last = int(rows["edition_year"].max()) + 10
    return None, {
        "start_datetime": f"{_EPOCH}T00:00:00Z",
        "end_datetime": f"{last}-12-31T23:59:59Z",
        "geokr:acquired_unknown": True,
    }


def on_one_turn(footprints: np.ndarray) -> np.ndarray:
    """Footprints shifted by whole turns to lie beside the first one; they may run beyond 180 degrees."""
    bounds = shapely.bounds(footprints)
    centre = (bounds[:, 0] + bounds[:, 2]) / 2
    shift = unwrap_lon(centre, centre[0]) - centre
    coordinates, index = shapely.get_coordinates(footprints, return_index=True)
    coordinates[:, 0] += shift[index]
    return np.asarray(shapely.set_coordinates(footprints.copy(), coordinates))


def within_half_turn(polygon: shapely.Polygon) -> tuple[dict[str, Any], Box]:
    """A polygon of continuous longitudes as GeoJSON wants it: cut at the antimeridian, rings oriented.

    Args:
        polygon: in degrees; longitudes may run beyond ±180.

    Returns:
        GeoJSON geometry (Polygon, or MultiPolygon where it was cut), and its bounding box, west > east where it crosses
        (RFC 7946, sections 3.1.9 and 5.2).
    """
    west, south, east, north = polygon.bounds
    turn = 360.0 * math.floor((west + 180.0) / 360.0)
    coordinates = shapely.get_coordinates(polygon)
    polygon = shapely.set_coordinates(polygon, coordinates - np.array([turn, 0.0]))
    west, east = west - turn, east - turn
    if east - west >= 360.0:
        return shapely.geometry.mapping(shapely.box(-180.0, south, 180.0, north)), (-180.0, south, 180.0, north)
    if east <= 180.0:
        return shapely.geometry.mapping(orient(polygon)), (west, south, east, north)
    parts = []
    for shift in (0.0, 360.0):
        part = shapely.intersection(polygon, shapely.box(-180.0 + shift, -90.0, 180.0 + shift, 90.0))
        for piece in getattr(part, "geoms", [part]):
            if piece.geom_type == "Polygon" and not piece.is_empty:
                moved = shapely.get_coordinates(piece) - np.array([shift, 0.0])
                parts.append(orient(shapely.set_coordinates(piece, moved)))
    return shapely.geometry.mapping(shapely.MultiPolygon(parts)), (west, south, east - 360.0, north)


def joint_bbox(boxes: list[Box]) -> Box:
    """The narrowest box that holds boxes which may cross the antimeridian.

    Args:
        boxes: west, south, east, north; west > east across the antimeridian.

    Returns:
        A box of the same kind: the longitudes outside it are the widest gap between the given ones.
    """
    spans = sorted((west, east + 360.0 if west > east else east) for west, _, east, _ in boxes)
    south, north = min(box[1] for box in boxes), max(box[3] for box in boxes)
    reach, widest, start = spans[0][1], -1.0, spans[0][0]
    end = reach
    for west, east in spans[1:]:
        if west - reach > widest:
            widest, start, end = west - reach, west, reach
        reach = max(reach, east)
    # The gap from the last one round the Earth to the first.
    if spans[0][0] + 360.0 - reach >= widest:
        widest, start, end = spans[0][0] + 360.0 - reach, spans[0][0], reach
    if widest <= 0:
        return (-180.0, south, 180.0, north)
    end = (end + 180.0) % 360.0 - 180.0
    return (start, south, 180.0 if end == -180.0 else end, north)


def _collection(dataset: LevirKR, items: list[pystac.Item], out: Path, licence: str) -> pystac.Collection:
    manifest = dataset.manifest
    moments = [
        (item.common_metadata.start_datetime or item.datetime, item.common_metadata.end_datetime or item.datetime)
        for item in items
    ]
    first = min(start for start, _ in moments if start is not None)
    last = max(end for _, end in moments if end is not None)
    extent = pystac.Extent(
        pystac.SpatialExtent([list(joint_bbox([tuple(item.bbox) for item in items if item.bbox]))]),  # type: ignore[misc]
        pystac.TemporalExtent([[first, last]]),
    )
    origin = " The scenes are generated, not observed." if manifest.get("generated_world") else ""
    collection = pystac.Collection(
        id=f"levir-kr-{dataset.data_version[:12]}",
        title="Levir-KR",
        description=(
            f"{manifest['num_chips']} chips of {manifest['num_scenes']} scenes, each with the proportions of the "
            f"{len(dataset.classes)} classes of {manifest['legend']} on its ground.{origin}"
        ),
        license=licence,
        keywords=["remote sensing", "land cover", "pretraining", "label proportions"],
        extent=extent,
        summaries=pystac.Summaries(
            {
                "gsd": {"minimum": manifest["gsd_m_min"], "maximum": manifest["gsd_m_max"]},
                "platform": sorted({str(item.properties["platform"]) for item in items}),
                "classification:classes": _classes(dataset),
                "label:overviews": [_mean_proportions(dataset)],
            }
        ),
        stac_extensions=[LABEL, CLASSIFICATION, FILE],
        extra_fields={
            "geokr:data_version": dataset.data_version,
            "geokr:legend_hash": manifest["legend_hash"],
            "geokr:num_chips": manifest["num_chips"],
        },
    )
    base = out.resolve()
    for key, name, kind, title in (
        ("manifest", MANIFEST_FILE, "application/json", "Counts, legend, md5 of every shard, configuration"),
        ("catalogue", CATALOGUE_FILE, PARQUET, "GeoParquet: all chips with every column"),
    ):
        path = dataset.folder.resolve() / name
        collection.add_asset(
            key,
            pystac.Asset(
                href=Path(os.path.relpath(path, base)).as_posix(),
                title=title,
                media_type=kind,
                roles=["metadata"],
                extra_fields={"file:size": path.stat().st_size, "file:checksum": multihash("md5", file_md5(path))},
            ),
        )
    return collection


def _mean_proportions(dataset: LevirKR) -> dict[str, Any]:
    means = dataset.proportions.mean(axis=0, dtype=np.float64)
    statistics = [{"name": name, "value": round(float(v), 6)} for name, v in zip(dataset.classes, means, strict=True)]
    return {"property_key": "mean of fraction_<class>", "statistics": statistics}
