"""The audit as rasters: by scene, how far map and image are apart, and the shares that each of them gives, side by side.

A cloud-optimised GeoTIFF on the scene's own CRS, float32, a band a figure. A pixel is a chip; where chips overlap, it is the step
between them and holds the mean of the chips that cover it. North up, also where the scene is not.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp

from geokr_core.audit.output import MAP_ENDING
from geokr_core.embeddings.cells import CHIP_PLACES, cells_per_side
from geokr_core.rasters.cloud_optimised import copy_cloud_optimised
from geokr_core.scenes.scene_outputs import chip_outputs

_FIGURES: Final = ("score", "moved_fraction")


def write_disagreement_maps(folder: Path, chips: Path, table: pd.DataFrame, classes: Sequence[str]) -> None:
    """Write a map a scene; the same table gives the same bytes.

    Args:
        folder: gets ``<scene>.disagreement.tif``; made if it is missing.
        chips: folder of shards, for where the chips lie in their scene.
        table: of the audit: ``chip_id``, ``scene_id``, ``score``, ``moved_fraction``, ``map_<class>``, ``image_<class>``.
        classes: K names.

    Raises:
        MissingInputError: the chips of a scene are missing.
        DamagedOutputError: their table is cut off.
        OSError: the file system refused.
    """
    folder.mkdir(exist_ok=True)
    bands = bands_of(classes)
    outputs = chip_outputs(chips)
    for scene_id, rows in table.groupby("scene_id", sort=True):
        where = outputs.table(str(scene_id), ["chip_id", *CHIP_PLACES]).to_pandas()
        _write(folder / f"{scene_id}{MAP_ENDING}", rows[["chip_id", *bands]].merge(where, on="chip_id"), bands)


def bands_of(classes: Sequence[str]) -> list[str]:
    """Names of the bands of a map: both sides' shares of a class stand side by side."""
    return [*_FIGURES, *(f"{said}_{name}" for name in classes for said in ("map", "image"))]


def _write(path: Path, rows: pd.DataFrame, bands: list[str]) -> None:
    places = rows[["pixel_row", "pixel_col"]].to_numpy(dtype=np.int64)
    first, size = places.min(axis=0), int(rows["size_px"].iloc[0])
    places = places - first
    # At least an eighth of a chip: a chip that is moved to the edge by some pixels must not make pixels of that size.
    pixel_px = max(int(np.gcd.reduce([size, *places.ravel().tolist()])), size // cells_per_side(size))
    values = _drawn(places, rows[bands].to_numpy(dtype=np.float64), size, pixel_px)
    transform = _origin(rows.iloc[0], first) @ Affine.scale(pixel_px)
    write_figures(path, values, transform, CRS.from_wkt(str(rows["crs_wkt"].iloc[0])), bands)


def write_figures(path: Path, values: np.ndarray, transform: Affine, crs: CRS, bands: Sequence[str]) -> None:
    """Write figures as a cloud-optimised GeoTIFF, north up.

    Args:
        path: the file.
        values: float32 (B, H, W) in the order of the scene's own rows; NaN is no data.
        transform: from column and row of the values to the CRS.
        crs: of the scene.
        bands: B names.

    Raises:
        OSError: the file system refused.
    """
    if transform.b == transform.d == 0 and transform.e > 0:
        transform = transform @ Affine.translation(0, values.shape[1]) @ Affine.scale(1, -1)
        values = values[:, ::-1]
    raw = path.with_suffix(".raw.tif")
    try:
        _write_raw(raw, values, transform, crs, bands)
        copy_cloud_optimised(raw, path)
    finally:
        raw.unlink(missing_ok=True)


def _origin(row: "pd.Series[Any]", first: np.ndarray) -> Affine:
    """Transform of the pixels of the scene, the upper left of all chips at (0, 0)."""
    moved = first - (int(row["pixel_row"]), int(row["pixel_col"]))
    return Affine(*row["transform"]) @ Affine.translation(int(moved[1]), int(moved[0]))


def _drawn(places: np.ndarray, figures: np.ndarray, size: int, pixel_px: int) -> np.ndarray:
    """Means of the chips that cover each pixel, float32 (B, height, width), NaN where none does.

    Chips that do not begin at a pixel, those moved to the edge of the scene, are left out; most of their ground is another chip's.
    """
    side = size // pixel_px
    height, width = (places.max(axis=0) // pixel_px + side).tolist()
    sums, number = np.zeros((figures.shape[1], height, width)), np.zeros((height, width))
    for (row, column), own in zip(places.tolist(), figures, strict=True):
        if row % pixel_px or column % pixel_px:
            continue
        part = slice(row // pixel_px, row // pixel_px + side), slice(column // pixel_px, column // pixel_px + side)
        sums[:, *part] += own[:, None, None]
        number[part] += 1
    means: np.ndarray = np.where(number > 0, sums / np.maximum(number, 1), np.nan).astype(np.float32)
    return means


def _write_raw(path: Path, values: np.ndarray, transform: Affine, crs: CRS, bands: Sequence[str]) -> None:
    profile: dict[str, Any] = {"driver": "GTiff", "dtype": "float32", "count": len(bands), "nodata": np.nan}
    profile |= {"height": values.shape[1], "width": values.shape[2], "crs": crs, "transform": transform}
    with rasterio.open(path, "w", **profile, photometric="MINISBLACK", BIGTIFF="IF_SAFER") as target:
        target.write(values)
        target.descriptions = tuple(bands)
        target.colorinterp = (ColorInterp.gray, *(ColorInterp.undefined,) * (len(bands) - 1))
