"""One scene's vectors as GeoParquet 1.1: a point a chip, its box as covering, rows along a Hilbert curve.

Reading the files of a whole archive is in ``read``.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import shapely

from geokr_core.embeddings.quantisation import Quantised

CHIP_COLUMNS: Final = ("chip_id", "scene_id", "row", "acquired", "sensor", "gsd_m", "lon", "lat", "footprint")
"""What is read of a chip's row."""

METADATA_KEY: Final = b"geokr"
"""Entry of the file's footer: model, scale and offset, as JSON."""

_WORLD: Final = (-180.0, -90.0, 180.0, 90.0)
_ROWS_PER_GROUP: Final = 200_000
"""About 128 MB of 512-dimensional vectors, as cloud-native readers like row groups."""


def along_curve(lon: np.ndarray, lat: np.ndarray, chip_ids: Sequence[str]) -> np.ndarray:
    """The order of chips along a Hilbert curve around the globe; chips of one cell of the curve go by their id.

    Args:
        lon: float (N,), degrees.
        lat: float (N,), degrees.
        chip_ids: N names.

    Returns:
        int64 (N,), positions of the chips in their new order.
    """
    distance = gpd.GeoSeries(shapely.points(lon, lat)).hilbert_distance(total_bounds=_WORLD).to_numpy()
    return np.lexsort((np.asarray(chip_ids, dtype=str), distance))


def boxes(footprints: np.ndarray) -> np.ndarray:
    """Bounding boxes of footprints, west > east where one crosses the antimeridian.

    Args:
        footprints: shapely polygons (N,), continuous longitudes that may run beyond ±180.

    Returns:
        float64 (N, 4): west, south, east, north.
    """
    found: np.ndarray = shapely.bounds(footprints)
    for column in (0, 2):
        outside = (found[:, column] < -180.0) | (found[:, column] > 180.0)
        found[outside, column] = (found[outside, column] + 180.0) % 360.0 - 180.0
    return found


def write_table(
    path: Path, chips: pd.DataFrame, quantised: Quantised, network: Mapping[str, Any], data_version: str
) -> None:
    """Write the vectors of a scene; the same values give the same bytes.

    Args:
        path: the file.
        chips: the columns `CHIP_COLUMNS`, one row a chip.
        quantised: vectors of the same chips in the same order.
        network: what made them; see `encoder.described`.
        data_version: of the scene's chips.

    Raises:
        OSError: the file system refused.
    """
    order = along_curve(chips["lon"].to_numpy(), chips["lat"].to_numpy(), chips["chip_id"].tolist())
    rows = chips.iloc[order]
    points = shapely.points(rows["lon"].to_numpy(), rows["lat"].to_numpy())
    bounds = boxes(shapely.from_wkb(rows["footprint"].to_numpy()))
    codes = np.ascontiguousarray(quantised.codes[order])
    number = len(rows)
    dates = [date.fromisoformat(day[:10]) if day else None for day in rows["acquired"]]
    table = pa.table(
        {
            "chip_id": pa.array(rows["chip_id"], pa.string()),
            "scene_id": pa.array(rows["scene_id"], pa.string()),
            "row": pa.array(rows["row"], pa.int64()),
            "acquired": pa.array(dates, pa.date32()),
            "sensor": pa.array(rows["sensor"], pa.string()),
            "gsd_m": pa.array(rows["gsd_m"], pa.float64()),
            "model": pa.repeat(str(network["model"]), number),
            "model_version": pa.repeat(str(network["model_version"]), number),
            "data_version": pa.repeat(data_version, number),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), codes.shape[1]),
            "geometry": pa.array(shapely.to_wkb(points), pa.binary()),
            "bbox": pa.StructArray.from_arrays(
                [pa.array(bounds[:, k]) for k in range(4)], names=["xmin", "ymin", "xmax", "ymax"]
            ),
        }
    )
    own = {**network, "data_version": data_version, "dtype": "int8"}
    own |= {"scale": quantised.scale.tolist(), "offset": quantised.offset.tolist()}
    footer = {b"geo": _geo(rows["lon"].to_numpy(), rows["lat"].to_numpy()), METADATA_KEY: json.dumps(own).encode()}
    pq.write_table(table.replace_schema_metadata(footer), path, compression="zstd", row_group_size=_ROWS_PER_GROUP)


def _geo(lon: np.ndarray, lat: np.ndarray) -> bytes:
    """The entry ``geo`` of the footer, as GeoParquet 1.1 wants it."""
    covering = {"bbox": {name: ["bbox", name] for name in ("xmin", "ymin", "xmax", "ymax")}}
    geometry = {
        "encoding": "WKB",
        "geometry_types": ["Point"],
        "crs": pyproj.CRS("OGC:CRS84").to_json_dict(),
        "bbox": [float(lon.min()), float(lat.min()), float(lon.max()), float(lat.max())],
        "covering": covering,
    }
    content = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    return json.dumps(content).encode()


def footer_of(schema: pa.Schema) -> dict[str, Any]:
    """What the footer of a file says of its vectors; empty where it says nothing."""
    content = (schema.metadata or {}).get(METADATA_KEY)
    return {} if content is None else dict(json.loads(content))
