"""What a chip's row says besides its pixels: centre, footprint, ground sampling distance."""

from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from geokr_core.chips.config import ChipsConfig
from geokr_core.chips.stretch import Stretch
from geokr_core.rasters.grid import METRES_PER_DEGREE, unwrap_lon
from geokr_core.scenes.scene import Scene


def centres(outlines: np.ndarray) -> np.ndarray:
    """Centre of each chip in the scene's CRS, (N, 2), from the first corners of its outline."""
    return np.asarray(outlines[:, :4].mean(axis=1))


def describe_chips(
    config: ChipsConfig, scene: Scene, stretch: Stretch, kept: dict[str, np.ndarray], outlines: np.ndarray
) -> dict[str, Any]:
    """Columns of the chips kept: where each lies, and how its pixels came to be."""
    top, left, number = kept["pixel_row"], kept["pixel_col"], len(outlines)
    a, b, c, d, e, f = tuple(scene.grid.transform)[:6]
    transforms = np.empty((number, 6))
    transforms[:] = [a, b, c, d, e, f]
    transforms[:, 2] += a * left + b * top
    transforms[:, 5] += d * left + e * top
    centre = centres(outlines)
    return kept | {
        "chip_id": [f"{scene.scene_id}-r{r:06d}c{k:06d}" for r, k in zip(top.tolist(), left.tolist(), strict=True)],
        "scene_id": pa.repeat(scene.scene_id, number),
        "shard": pa.repeat(f"{scene.scene_id}.npy", number),
        "size_px": np.full(number, config.size_px),
        "crs_wkt": pa.repeat(scene.grid.wkt, number),
        "transform": _lists(transforms.ravel(), number),
        "gsd_m": _gsd_m(outlines, config.size_px),
        "acquired": pa.repeat(scene.acquired, number),
        "sensor": pa.repeat(scene.sensor, number),
        "bands": pa.repeat(pa.scalar(list(config.bands)), number),
        "stretch_low": _lists(np.tile(stretch.low, number), number),
        "stretch_high": _lists(np.tile(stretch.high, number), number),
        "land_cover": pa.repeat(scene.land_cover, number),
        "lon": unwrap_lon(centre[:, 0], 0.0),
        "lat": centre[:, 1],
        "footprint": shapely.to_wkb(shapely.polygons(outlines)),
    }


def _lists(values: np.ndarray, number: int) -> pa.Array:
    """``number`` lists of equal length from their values in a row."""
    return pa.ListArray.from_arrays(np.arange(number + 1, dtype=np.int32) * (len(values) // number), values)


def _gsd_m(outlines: np.ndarray, size_px: int) -> np.ndarray:
    """Metres a pixel from lon/lat outlines (N, 5, 2), as the square root of the ground area on the sphere."""
    lat = np.radians(outlines[:, :4, 1].mean(axis=1, keepdims=True))
    x = (outlines[..., 0] - outlines[:, :1, 0]) * METRES_PER_DEGREE * np.cos(lat)
    y = (outlines[..., 1] - outlines[:, :1, 1]) * METRES_PER_DEGREE
    area = 0.5 * np.abs((x[:, :-1] * y[:, 1:] - x[:, 1:] * y[:, :-1]).sum(axis=1))
    return np.asarray(np.round(np.sqrt(area) / size_px, 4))
