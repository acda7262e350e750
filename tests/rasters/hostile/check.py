"""An independent reading of scenes and land cover: plain rasterio and a count by points."""

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from tests.rasters.hostile.valid_tiffs import CHIP_PX


def check_scene(scenes: Path, tiles: Path, store: Path, scene_id: str, alone: Path) -> list[str]:
    """Compare chips and labels with an independent reading of the same file; a list of what differs.

    The file is copied into a separate folder (``alone``), read as a whole by plain rasterio, and its land cover is
    counted by looking up many points, with nothing of the code under test but the stretch that the rows record.
    """
    import pandas as pd

    from geokr_core.chips.read import read_rows, reread
    from geokr_core.scenes.inventory import usable_scenes

    wrong: list[str] = []
    copy = alone / "alone.tif"
    copy.write_bytes((scenes / f"{scene_id}.tif").read_bytes())
    rows = read_rows(store / "chips", scene_id)
    images = np.load(store / "chips" / f"{scene_id}.npy")
    scene = usable_scenes(store / "scenes")[scene_id]
    with rasterio.open(copy, driver="GTiff") as source:
        pixels = source.read([1, 2, 3])
        is_mask = not (source.count == 3 and ColorInterp.alpha in source.colorinterp)
        valid = (source.read_masks([1, 2, 3]) > 0).all(axis=0) if is_mask else np.ones(source.shape, bool)
        transform, crs = source.transform, source.crs
    valid &= np.isfinite(pixels).all(axis=0)
    for index, row in enumerate(rows.to_dict("records")):
        top, left = int(row["pixel_row"]), int(row["pixel_col"])
        part = np.s_[top : top + CHIP_PX, left : left + CHIP_PX]
        low, high = (np.asarray(row[k], np.float32)[:, None, None] for k in ("stretch_low", "stretch_high"))
        with np.errstate(all="ignore"):
            values = np.nan_to_num(pixels[(slice(None), *part)]).astype(np.float32)
            expected = np.rint(((values - low) / (high - low)).clip(0, 1) * 255).astype(np.uint8)
        expected[:, ~valid[part]] = 0
        if not (images[index] == expected.transpose(1, 2, 0)).all():
            wrong.append(f"chip {index}: pixels differ from an independent reading")
        if not (reread(row, scenes, scene) == images[index]).all():
            wrong.append(f"chip {index}: pixels differ from reading by place")
        place = np.array(tuple(transform @ Affine.translation(left, top))[:6])
        if not np.allclose(row["transform"], place, rtol=1e-12, atol=0):
            wrong.append(f"chip {index}: {list(row['transform'])} is not its place {place.tolist()}")
        if CRS.from_wkt(row["crs_wkt"]) != CRS.from_wkt(crs.to_wkt()):
            wrong.append(f"chip {index}: another CRS than the file's")
    path = store / "proportions" / f"{scene_id}.parquet"
    if path.exists():
        wrong += check_labels(pd.read_parquet(path), rows, crs, tiles)
    return wrong


def check_labels(labels: Any, rows: Any, crs: CRS, tiles: Path) -> list[str]:
    """Compare proportions with the share of 48 x 48 points of each chip in each class."""
    import pyproj

    (tile,) = tiles.glob("*.tif")
    with rasterio.open(tile, driver="GTiff") as source:
        inverse, target, shape = ~source.transform, source.crs, source.shape
    carry = pyproj.Transformer.from_crs(crs.to_wkt(), target.to_wkt(), always_xy=True)
    steps = (np.arange(48) + 0.5) / 48 * CHIP_PX
    col, line = (v.ravel() for v in np.meshgrid(steps, steps))
    names = (
        "cultivated_land",
        "forest",
        "grassland",
        "shrubland",
        "wetland",
        "water",
        "artificial_surfaces",
        "bareland",
    )
    wrong = []
    for index in range(len(rows)):
        a, b, c, d, e, f = rows["transform"].iloc[index]
        x, y = carry.transform(a * col + b * line + c, d * col + e * line + f)
        tile_col, tile_row = inverse @ (np.asarray(x), np.asarray(y))
        inside = (tile_col >= 0) & (tile_row >= 0) & (tile_col < shape[1]) & (tile_row < shape[0])
        found = _codes_at(tile, tile_row[inside].astype(int), tile_col[inside].astype(int))
        label = labels.iloc[index]
        known = label["known_fraction"]
        total = sum(label[f"fraction_{n}"] for n in names)
        if not (np.isfinite(known) and (abs(total - 1.0) < 1e-6 or (total == 0.0 and known < 1e-6))):
            wrong.append(f"label {index}: fractions sum to {total}, known {known}")
        for name, code in zip(names, (10, 20, 30, 40, 50, 60, 80, 90), strict=True):
            share = float((found == code).sum()) / len(col)
            if not abs(share - label[f"fraction_{name}"] * known) <= 0.04:
                wrong.append(f"label {index}: {name} {label[f'fraction_{name}'] * known:.3f}, by points {share:.3f}")
    return wrong


def _codes_at(tile: Path, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Codes of some cells; blocks that hold none of them may be damaged."""
    if not len(rows):
        return np.zeros(0, np.uint8)
    top, left = int(rows.min()), int(cols.min())
    part = Window(left, top, int(cols.max()) - left + 1, int(rows.max()) - top + 1)
    with rasterio.open(tile, driver="GTiff") as source:
        return np.asarray(source.read(1, window=part)[rows - top, cols - left])
