"""Counting land cover under a scene's chips against the obvious way: open, warp and count, chip by chip."""

from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import Resampling
from rasterio.warp import reproject as warp

from geokr_core.bench.measure import Measurement, seconds
from geokr_core.errors import ConfigError
from geokr_core.land_cover.config import LandCoverConfig
from geokr_core.proportions.config import ProportionsConfig
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import write_raster

UTM48, DEGREES = "EPSG:32648", "EPSG:4326"


def bench_align(folder: Path) -> Measurement:
    """Ratio of chips a second, the per-chip way as one; same axes first, the other cases beside it."""
    same = _align(folder / "same", UTM48, Affine(30, 0, 500000, 0, -30, 3300000), gsd_m=8.0)
    exact = _against_exactextract(folder / "same", gsd_m=8.0)
    fine = _align(folder / "fine", UTM48, Affine(30, 0, 500000, 0, -30, 3300000), gsd_m=2.0)
    degrees = _align(folder / "degrees", DEGREES, Affine(1 / 3600, 0, 105.0, 0, -1 / 3600, 29.83), gsd_m=8.0)
    zone = _align(folder / "zone", "EPSG:32649", Affine(30, 0, -85000, 0, -30, 3318000), gsd_m=8.0)
    ten = _align(folder / "ten", UTM48, Affine(10, 0, 500000, 0, -10, 3300000), gsd_m=10.0)
    ten_degrees = _align(folder / "ten_degrees", DEGREES, Affine(1 / 12000, 0, 105.0, 0, -1 / 12000, 29.83), gsd_m=10.0)
    details = {
        **({} if exact is None else {"ratio_to_exactextract": exact}),
        "ratio_2_m_on_30_m": fine,
        "ratio_across_crs": degrees,
        "budget_across_crs": 10.0,
        "ratio_other_utm_zone": zone,
        "ratio_10_m_on_10_m": ten,
        "budget_10_m_on_10_m": 20.0,
        "ratio_10_m_on_10_m_across_crs": ten_degrees,
    }
    on = "one scene's 8 m chips of 64 px on 30 m land cover of the same zone (5,400 x 5,400 cells, deflate)"
    return Measurement("align", same, 100.0, CHIPS_PER_SIDE**2, on, details)


CHIPS_PER_SIDE = 60
CELLS_PER_SIDE = 5400


def _align(folder: Path, lc_crs: str, lc_transform: Affine, gsd_m: float) -> float:
    from geokr_core.land_cover.product import open_land_cover
    from geokr_core.land_cover.tile_index import index_products
    from geokr_core.proportions.labels import count_rows

    rng = np.random.default_rng(0)
    patches = rng.choice(np.array([10, 20, 30, 60, 80], np.uint8), (CELLS_PER_SIDE // 5, CELLS_PER_SIDE // 5))
    codes = patches.repeat(5, axis=0).repeat(5, axis=1)
    tile = write_raster(folder / "lc" / "t.tif", codes, lc_crs, lc_transform, tiled=True, compress="deflate")
    product = {"name": "gl", "files": "*.tif", "legend": "globeland30", "year": 2020}
    index_products(LandCoverConfig(folder=folder / "lc", products=(product,)), folder / "index", RecordingReporter())
    rows = _chip_rows(CHIPS_PER_SIDE, size_px=64, gsd_m=gsd_m)
    index = open_land_cover(folder / "index")
    ours, naive = float("inf"), float("inf")
    sample = rows.iloc[:: max(1, len(rows) // 200)]
    for _ in range(3):  # in turns: what else the machine does meets both alike
        ours = min(ours, seconds(lambda: count_rows(ProportionsConfig(), folder / "lc", index, rows), 1))
        naive = min(naive, seconds(lambda: [_open_warp_count(tile, row) for _, row in sample.iterrows()], 1))
    if count_rows(ProportionsConfig(), folder / "lc", index, rows)["unknown_fraction"].max() > 1e-6:
        raise ConfigError(f"bench align: the chips do not lie on the land cover of {lc_crs}; mend the benchmark.")
    return naive * len(rows) / len(sample) / ours


def _against_exactextract(folder: Path, gsd_m: float) -> float | None:
    """Ratio of chips a second, those of exactextract over the same polygons as one; None where it is not installed."""
    from geokr_core.land_cover.product import open_land_cover
    from geokr_core.proportions.labels import count_rows

    try:
        from exactextract import exact_extract
    except ImportError:
        return None
    rows, index = _chip_rows(CHIPS_PER_SIDE, size_px=64, gsd_m=gsd_m), open_land_cover(folder / "index")
    left, top = (np.array([transform[place] for transform in rows["transform"]]) for place in (2, 5))
    squares = shapely.box(left, top - 64 * gsd_m, left + 64 * gsd_m, top)
    features = [
        {"type": "Feature", "id": number, "geometry": shapely.geometry.mapping(square)}
        for number, square in enumerate(squares)
    ]
    ours = seconds(lambda: count_rows(ProportionsConfig(), folder / "lc", index, rows), 2)
    rival = seconds(lambda: exact_extract(str(folder / "lc" / "t.tif"), features, ["unique", "frac"]), 2)
    return rival / ours


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
            rasterio.band(source, 1),
            target,
            dst_crs=row["crs_wkt"],
            dst_transform=Affine(*row["transform"]),
            resampling=Resampling.nearest,
            dst_nodata=0,
        )
    return np.bincount(target.ravel(), minlength=256)
