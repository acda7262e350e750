"""Counting land cover under a scene's chips against the obvious way: open, warp and count, chip by chip."""

from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import Resampling
from rasterio.warp import reproject as warp

from geokr_core.bench.measure import Measurement, seconds
from geokr_core.config import LandCoverConfig, ProportionsConfig
from geokr_core.reporter import RecordingReporter
from geokr_core.testing import write_raster


def bench_align(folder: Path) -> Measurement:
    """Ratio of chips a second, the per-chip way as one; same axes first, across CRS beside it."""
    same, chips = _align(folder / "same", "EPSG:32648", Affine(30, 0, 500000, 0, -30, 3300000))
    across, _ = _align(folder / "across", "EPSG:4326", Affine(1 / 3600, 0, 105.0, 0, -1 / 3600, 29.83))
    on = "8 m chips of 64 px on 30 m land cover of the same zone"
    return Measurement("align", same, 100.0, chips, on, {"ratio_across_crs": across, "budget_across_crs": 10.0})


def _align(folder: Path, lc_crs: str, lc_transform: Affine) -> tuple[float, int]:
    from geokr_core.landcover import index_products, open_land_cover
    from geokr_core.proportions import count_rows

    rng = np.random.default_rng(0)
    codes = rng.choice(np.array([10, 20, 30, 60, 80], np.uint8), (1200, 1200))
    tile = write_raster(folder / "lc" / "t.tif", codes, lc_crs, lc_transform, tiled=True)
    product = {"name": "gl", "files": "*.tif", "legend": "globeland30", "year": 2020}
    index_products(LandCoverConfig(folder=folder / "lc", products=(product,)), folder / "index", RecordingReporter())
    rows = _chip_rows(num_side=60, size_px=64, gsd_m=8.0)
    index = open_land_cover(folder / "index")
    ours = seconds(lambda: count_rows(ProportionsConfig(), folder / "lc", index, rows))
    sample = rows.iloc[:: max(1, len(rows) // 200)]
    naive = seconds(lambda: [_open_warp_count(tile, row) for _, row in sample.iterrows()]) * len(rows) / len(sample)
    return naive / ours, len(rows)


def _chip_rows(num_side: int, size_px: int, gsd_m: float) -> pd.DataFrame:
    crs = CRS.from_epsg(32648)
    rows = []
    for top in range(num_side):
        for left in range(num_side):
            x, y = 500303.0 + left * size_px * gsd_m, 3299701.0 - top * size_px * gsd_m
            rows.append(
                {"chip_id": f"{top}-{left}", "transform": [gsd_m, 0.0, x, 0.0, -gsd_m, y], "lon": 105.1, "lat": 29.7}
            )
    return pd.DataFrame(rows).assign(crs_wkt=crs.to_wkt(), size_px=size_px, acquired="", land_cover="gl")


def _open_warp_count(tile: Path, row: pd.Series) -> np.ndarray:
    """The obvious way: open the product, warp it onto the chip's pixels, count them."""
    size = int(row["size_px"])
    target = np.zeros((size, size), np.uint8)
    with rasterio.open(tile) as source:
        warp(
            rasterio.band(source, 1), target, dst_crs=row["crs_wkt"], dst_transform=Affine(*row["transform"]),
            resampling=Resampling.nearest, dst_nodata=0,
        )  # fmt: skip
    return np.bincount(target.ravel(), minlength=256)
