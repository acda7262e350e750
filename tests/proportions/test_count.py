"""Proportions end to end: rasters in, rows out, over the CRS cases; a shift by one pixel must be seen."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import shapely
from affine import Affine
from exactextract import exact_extract
from rasterio.crs import CRS

from geokr_core.chips.config import ChipsConfig
from geokr_core.chips.cut import cut_chips
from geokr_core.errors import LandCoverError, MissingInputError, UnknownLegendCodeError
from geokr_core.land_cover.config import LandCoverConfig
from geokr_core.land_cover.product import open_land_cover
from geokr_core.land_cover.tile_index import index_products
from geokr_core.proportions.config import ProportionsConfig
from geokr_core.proportions.count import count_proportions
from geokr_core.proportions.labels import CHIP_COLUMNS, SceneChips, count_rows, count_squares
from geokr_core.rasters.grid import Grid, reproject
from geokr_core.scenes.config import ScenesConfig
from geokr_core.scenes.inventory import take_inventory
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import write_raster

NUM_CHIPS = 300
CODES = np.array([10, 20, 30, 60, 80, 255, 0], dtype=np.uint8)
CLASSES = {10: "cultivated_land", 20: "forest", 30: "grassland", 60: "water", 80: "artificial_surfaces"}


def index(tmp_path: Path, **product: object) -> Path:
    config = LandCoverConfig(
        folder=tmp_path / "lc",
        products=({"name": "gl", "files": "*.tif", "legend": "globeland30", "year": 2020, **product},),
    )
    index_products(config, tmp_path / "index", RecordingReporter())
    return tmp_path / "index"


def chip_rows(grid: Grid, size: int, tops: list[int], lefts: list[int], acquired: str = "") -> pd.DataFrame:
    rows = []
    for number, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        chip = grid.window(top, left, size, size)
        lon, lat = chip.lonlat(np.array([chip.transform @ (size / 2, size / 2)]))[0]
        rows.append(
            {
                "chip_id": f"c{number}",
                "crs_wkt": grid.wkt,
                "transform": list(tuple(chip.transform)[:6]),
                "size_px": size,
                "lon": lon,
                "lat": lat,
                "acquired": acquired,
                "land_cover": "gl",
            }
        )
    return pd.DataFrame(rows)


def count(tmp_path: Path, rows: pd.DataFrame, segments: int = 32) -> pd.DataFrame:
    return count_rows(
        ProportionsConfig(edge_segments=segments), tmp_path / "lc", open_land_cover(tmp_path / "index"), rows
    )


# Land cover: CRS and transform of 160 x 160 cells. Scene: CRS and pixel vectors (a, b, d, e); it is put on the middle of the cells.
CASES = {
    "same axes, 2 m on 30 m": ("EPSG:32648", Affine(30, 0, 500000, 0, -30, 3300000), "EPSG:32648", (2, 0, 0, -2)),
    "same axes, 16 m on 30 m": ("EPSG:32648", Affine(30, 0, 500000, 0, -30, 3300000), "EPSG:32648", (16, 0, 0, -16)),
    "same axes, whole cells": ("EPSG:32648", Affine(30, 0, 500000, 0, -30, 3300000), "EPSG:32648", (15, 0, 0, -15)),
    "chips finer than a cell": ("EPSG:32648", Affine(300, 0, 500000, 0, -300, 3300000), "EPSG:32648", (2, 0, 0, -2)),
    "neighbouring UTM zone": ("EPSG:32648", Affine(30, 0, 786000, 0, -30, 3300000), "EPSG:32649", (8, 0, 0, -8)),
    "rotated scene": ("EPSG:32648", Affine(30, 0, 500000, 0, -30, 3300000), "EPSG:32648", (8, 5, 5, -8)),
    "south-up land cover": ("EPSG:32748", Affine(30, 0, 500000, 0, 30, 7000000), "EPSG:32748", (8, 0, 0, -8)),
    "south-up scene": ("EPSG:32748", Affine(30, 0, 500000, 0, -30, 7000000), "EPSG:32748", (8, 0, 0, 8)),
    "degrees under UTM": ("EPSG:4326", Affine(1 / 3600, 0, 107.0, 0, -1 / 3600, 29.8), "EPSG:32648", (10, 0, 0, -10)),
    "degrees under Web Mercator": ("EPSG:4326", Affine(0.05, 0, 10, 0, -0.05, 65.0), "EPSG:3857", (2446, 0, 0, -2446)),
    "degrees under polar stereographic": (
        "EPSG:4326",
        Affine(0.02, 0, -20, 0, -0.01, 72.5),
        "EPSG:3413",
        (200, 0, 0, -200),
    ),
    "degrees under degrees": (
        "EPSG:4326",
        Affine(1 / 1200, 0, 8.0, 0, -1 / 1200, 47.0),
        "EPSG:4326",
        (1 / 5000, 0, 0, -1 / 7000),
    ),
    "degrees across the antimeridian": (
        "EPSG:4326",
        Affine(0.01, 0, 179.2, 0, -0.01, -16.0),
        "EPSG:32760",
        (550, 0, 0, -550),
    ),
    "polar stereographic under degrees": (
        "EPSG:3413",
        Affine(500, 0, -40000, 0, -500, -1960000),
        "EPSG:4326",
        (0.004, 0, 0, -0.002),
    ),
    "polar stereographic, rotated scene": (
        "EPSG:3031",
        Affine(500, 0, 1000000, 0, -500, 900000),
        "EPSG:3031",
        (150, 90, 90, -150),
    ),
    "equal area under UTM": ("EPSG:3035", Affine(100, 0, 4300000, 0, -100, 2700000), "EPSG:32632", (30, 0, 0, -30)),
    "Albers under Albers": ("EPSG:5070", Affine(30, 0, -1400000, 0, -30, 1750000), "EPSG:5070", (10, 0, 0, -10)),
    "south-up degrees": ("EPSG:4326", Affine(1 / 3600, 0, 30.0, 0, 1 / 3600, -12.0), "EPSG:32736", (9, 0, 0, -9)),
    "Albers under UTM, non-square": (
        "EPSG:5070",
        Affine(30, 0, -1400000, 0, -30, 1750000),
        "EPSG:32612",
        (11.8, 0, 0, -14.7),
    ),
}


def scene_grid(case: str) -> Grid:
    lc_crs, lc_transform, crs, (a, b, d, e) = CASES[case]
    middle = np.array([lc_transform @ (80.0, 80.0)])
    x, y = reproject(middle, CRS.from_user_input(lc_crs).to_wkt(), CRS.from_user_input(crs).to_wkt())[0]
    # Odd offsets, so that no chip border falls on a cell border by luck.
    return Grid(CRS.from_user_input(crs), Affine(a, b, x - 200.3 * (a + b), d, e, y - 200.7 * (d + e)), 400, 400)


@pytest.mark.parametrize("case", CASES)
def test_equals_an_independent_exact_method(tmp_path: Path, case: str) -> None:
    lc_crs, lc_transform, _, _ = CASES[case]
    rng = np.random.default_rng(1)
    codes = rng.choice(CODES, size=(160, 160))
    path = write_raster(tmp_path / "lc" / "a.tif", codes, lc_crs, lc_transform)
    index(tmp_path)
    grid = scene_grid(case)
    tops, lefts = rng.integers(0, 360, NUM_CHIPS).tolist(), rng.integers(0, 360, NUM_CHIPS).tolist()
    rows = chip_rows(grid, 37, tops, lefts)
    ours = count(tmp_path, rows)
    assert (ours["unknown_fraction"] < 0.95).sum() > NUM_CHIPS / 2, "the case must put chips on the land cover"
    fractions = ours[[f"fraction_{name}" for name in CLASSES.values()]].to_numpy()
    assert fractions.min() >= 0.0, "rounding must not leave negative proportions: their logarithm is no number"
    if lc_transform.e > 0:  # the reference reads north-up files only
        flipped = lc_transform @ Affine(1, 0, 0, 0, -1, 160)
        path = write_raster(tmp_path / "flipped.tif", codes[::-1], lc_crs, flipped)
    expected = _reference(path, lc_crs, grid, rows, CRS.from_user_input(lc_crs).is_geographic)
    for name in CLASSES.values():
        np.testing.assert_allclose(ours[f"fraction_{name}"], expected[f"fraction_{name}"], atol=1e-6)
    np.testing.assert_allclose(ours["num_cells"], expected["num_cells"], atol=2e-3, rtol=1e-4)
    # The same comparison must notice a grid that is off by one chip pixel.
    shifted = count(
        tmp_path, chip_rows(Grid(grid.crs, grid.transform @ Affine.translation(1, 0), 400, 400), 37, tops, lefts)
    )
    worst = max(np.abs(shifted[f"fraction_{name}"] - expected[f"fraction_{name}"]).max() for name in CLASSES.values())
    assert worst > 1e-4


def _reference(path: Path, lc_crs: str, grid: Grid, rows: pd.DataFrame, spherical: bool) -> pd.DataFrame:
    features = []
    for number, (_, row) in enumerate(rows.iterrows()):
        chip = Grid(grid.crs, Affine(*row["transform"]), 37, 37)
        outline = reproject(chip.outline_xy(32), grid.wkt, CRS.from_user_input(lc_crs).to_wkt())
        if spherical and grid.crs.to_epsg() == 32760:  # this map's columns run on beyond 180 degrees
            outline[:, 0] %= 360.0
        features.append(
            {"type": "Feature", "id": number, "geometry": shapely.geometry.mapping(shapely.Polygon(outline))}
        )
    weight = "coverage_weight=area_spherical_m2" if spherical else "coverage_weight=fraction"
    out = []
    found = exact_extract(
        str(path), features, [f"unique({weight})", f"frac({weight})", "count(coverage_weight=fraction)"]
    )
    for feature in found:
        values = feature["properties"]
        keys = [k for k in values if k.startswith(("unique", "frac"))]
        unique = values[next(k for k in keys if k.startswith("unique"))]
        shares = dict(zip((int(u) for u in unique), values[next(k for k in keys if k.startswith("frac"))], strict=True))
        known = sum(v for code, v in shares.items() if code in CLASSES)
        row = {f"fraction_{name}": (shares.get(code, 0.0) / known if known else 0.0) for code, name in CLASSES.items()}
        out.append({**row, "num_cells": known * next(v for k, v in values.items() if k.startswith("count"))})
    return pd.DataFrame(out)


def test_unknown_excluded_and_known_share_the_chip(tmp_path: Path) -> None:
    codes = np.array([[10, 255], [0, 20]], dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    write_raster(tmp_path / "lc" / "a.tif", codes, "EPSG:32648", Affine(30, 0, 500000, 0, -30, 3300000))
    index(tmp_path)
    grid = Grid(CRS.from_epsg(32648), Affine(30, 0, 500000, 0, -30, 3300000), 16, 8)
    rows = count(tmp_path, chip_rows(grid, 8, [0, 4, 12], [0, 0, 0], "2018-07-01"))
    np.testing.assert_allclose(rows["unknown_fraction"], [0.25, 0.25, 0.0], atol=1e-12)
    np.testing.assert_allclose(rows["outside_fraction"], [0.0, 0.5, 1.0], atol=1e-12)
    np.testing.assert_allclose(rows["excluded_fraction"] + rows["sea_fraction"], [0.25, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(rows["known_fraction"], [0.5, 0.25, 0.0], atol=1e-12)
    np.testing.assert_allclose(rows["fraction_forest"], [0.5, 1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(rows["fraction_cultivated_land"], [0.5, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(rows["num_cells"], [32, 16, 0], atol=1e-9)
    assert rows["gap_days"].tolist() == [-731.0] * 3


def test_ground_under_overlapping_tiles_is_counted_once_and_by_the_nearer_one_first(tmp_path: Path) -> None:
    # West tile all forest, east tile all water; they share the columns 40 to 60.
    write_raster(
        tmp_path / "lc" / "w.tif", np.full((60, 60), 20, np.uint8), "EPSG:32648", Affine(30, 0, 500000, 0, -30, 3300000)
    )
    write_raster(
        tmp_path / "lc" / "e.tif", np.full((60, 60), 60, np.uint8), "EPSG:32648", Affine(30, 0, 501200, 0, -30, 3300000)
    )
    index(tmp_path)
    grid = Grid(CRS.from_epsg(32648), Affine(30, 0, 500000, 0, -30, 3300000), 60, 100)
    rows = count(tmp_path, chip_rows(grid, 10, [20, 20, 20, 20], [42, 48, 38, 55]))
    np.testing.assert_allclose(rows["unknown_fraction"], 0.0, atol=1e-9)
    np.testing.assert_allclose(rows["fraction_forest"], [1.0, 0.0, 1.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(rows["num_cells"], 100.0, atol=1e-6)
    # Nearest to the west tile, yet partly beyond its edge: the rest is asked of the east tile, and nothing twice.
    wide = count(tmp_path, chip_rows(grid, 40, [10], [26]))
    np.testing.assert_allclose(wide["fraction_forest"], [34 / 40], atol=1e-6)
    np.testing.assert_allclose(wide["fraction_water"], [6 / 40], atol=1e-6)
    np.testing.assert_allclose(wide["unknown_fraction"], 0.0, atol=1e-6)


def test_ground_without_data_is_asked_of_the_next_tile(tmp_path: Path) -> None:
    # The west tile's last ten columns hold no data, as the collar of a tile cut along a meridian does.
    west = np.full((60, 60), 20, np.uint8)
    west[:, 50:] = 0
    west[45, 45] = 0
    write_raster(tmp_path / "lc" / "w.tif", west, "EPSG:32648", Affine(30, 0, 500000, 0, -30, 3300000))
    east = np.full((60, 60), 60, np.uint8)
    east[:, 30:] = 0
    write_raster(tmp_path / "lc" / "e.tif", east, "EPSG:32648", Affine(30, 0, 501200, 0, -30, 3300000))
    index(tmp_path)
    grid = Grid(CRS.from_epsg(32648), Affine(30, 0, 500000, 0, -30, 3300000), 60, 120)
    rows = count(tmp_path, chip_rows(grid, 20, [10, 40, 10, 10], [38, 36, 78, 95]))
    np.testing.assert_allclose(rows["fraction_forest"], [12 / 20, (20 * 14 - 1) / 400, 0, 0], atol=1e-9)
    np.testing.assert_allclose(rows["fraction_water"], [8 / 20, (20 * 6 + 1) / 400, 0, 0], atol=1e-9)
    np.testing.assert_allclose(rows["unknown_fraction"], [0, 0, 1, 5 / 20], atol=1e-9)
    np.testing.assert_allclose(rows["outside_fraction"], [0, 0, 0, 15 / 20], atol=1e-9)


def test_tiles_of_two_zones_share_a_chip_without_gap_or_overlap(tmp_path: Path) -> None:
    # Zone 48 tells the land west of 108 degrees, zone 49 the land east of it; both hold no data beyond.
    for name, zone, code, side in (("w", 32648, 20, -1), ("e", 32649, 60, 1)):
        x, y = reproject(np.array([[108.0, 29.5]]), "EPSG:4326", CRS.from_epsg(zone).to_wkt())[0]
        grid = Grid(CRS.from_epsg(zone), Affine(30, 0, x - 6000, 0, -30, y + 6000), 400, 400)
        cols, rows = np.meshgrid(np.arange(400) + 0.5, np.arange(400) + 0.5)
        lon = grid.lonlat(np.stack(grid.transform @ (cols, rows), axis=-1))[..., 0]
        write_raster(
            tmp_path / "lc" / f"{name}.tif",
            np.where(side * (lon - 108) > 0, code, 0).astype(np.uint8),
            f"EPSG:{zone}",
            grid.transform,
        )
    index(tmp_path)
    x, y = reproject(np.array([[108.0, 29.5]]), "EPSG:4326", CRS.from_epsg(32648).to_wkt())[0]
    scene = Grid(CRS.from_epsg(32648), Affine(8, 0, x - 2000, 0, -8, y + 2000), 500, 500)
    rows = count(tmp_path, chip_rows(scene, 64, [100, 200, 300] * 3, [100, 100, 100, 218, 218, 218, 330, 330, 330]))
    assert rows["fraction_forest"].iloc[:3].tolist() == pytest.approx([1, 1, 1], abs=1e-9)
    assert rows["fraction_water"].iloc[6:].tolist() == pytest.approx([1, 1, 1], abs=1e-9)
    assert rows["fraction_water"].iloc[3:6].between(0.2, 0.8).all()
    # Both maps cut cells at the meridian by their own grid: what neither tells is less than a row of cells.
    assert (rows["unknown_fraction"] < 30 / 512).all()
    np.testing.assert_allclose(rows["outside_fraction"], 0, atol=1e-9)
    np.testing.assert_allclose(rows[["fraction_forest", "fraction_water"]].sum(axis=1), 1, atol=1e-9)


@pytest.mark.parametrize(("crs", "cell"), [("EPSG:4326", 0.05), ("EPSG:3857", 8000.0)])
def test_cells_weigh_by_their_true_ground(tmp_path: Path, crs: str, cell: float) -> None:
    # A tall chip at high latitude: its northern half holds visibly less ground a cell than its southern.
    x, y = reproject(np.array([[15.0, 68.0]]), "EPSG:4326", CRS.from_user_input(crs).to_wkt())[0]
    codes = np.full((120, 80), 20, np.uint8)
    codes[:60] = 60
    lc = Grid(CRS.from_user_input(crs), Affine(cell, 0, x - 40 * cell, 0, -cell, y + 60 * cell), 120, 80)
    write_raster(tmp_path / "lc" / "a.tif", codes, crs, lc.transform)
    index(tmp_path)
    middle = reproject(np.array([[15.0, 68.0]]), "EPSG:4326", CRS.from_epsg(32633).to_wkt())[0]
    scene = Grid(CRS.from_epsg(32633), Affine(2000, 0, middle[0] - 70000, 0, -2000, middle[1] + 130000), 130, 70)
    row = count(tmp_path, chip_rows(scene, 64, [0], [0])).iloc[0]
    # The truth by another way: both outlines in an equal-area projection.
    equal_area = CRS.from_epsg(6933).to_wkt()
    chip = shapely.Polygon(reproject(scene.window(0, 0, 64, 64).outline_xy(256), scene.wkt, equal_area))
    north = shapely.Polygon(reproject(lc.window(0, 0, 60, 80).outline_xy(256), lc.wkt, equal_area))
    expected = chip.intersection(north).area / chip.area
    assert row["fraction_water"] == pytest.approx(expected, abs=3e-5)
    planar = codes[:60].size / codes.size
    assert abs(expected - planar) > 1e-3, "the case must tell weighting from plain counting"


def test_squares_inside_a_chip_add_up_to_the_chip(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    lc_crs, lc_transform, _, _ = CASES["degrees under UTM"]
    write_raster(tmp_path / "lc" / "a.tif", rng.choice(CODES[:5], (160, 160)), lc_crs, lc_transform)
    index(tmp_path)
    grid = scene_grid("degrees under UTM")
    rows = chip_rows(grid, 40, [100, 150, 180], [100, 170, 140])
    land_cover = open_land_cover(tmp_path / "index")
    config = ProportionsConfig(edge_segments=32, cells_per_side=5)
    chips = pa.Table.from_pandas(rows[list(CHIP_COLUMNS)], preserve_index=False)
    cells = count_squares(config, SceneChips.of_table(chips, land_cover, tmp_path / "lc"))
    assert cells.shape == (3, 5, 5, 10)
    assert cells.dtype == np.uint8
    np.testing.assert_array_equal(cells.sum(axis=-1, dtype=int), 255)
    whole = count_rows(config, tmp_path / "lc", land_cover, rows)
    fractions = whole[[f"fraction_{name}" for name in land_cover.legend.classes]].to_numpy()
    np.testing.assert_allclose(cells.mean(axis=(1, 2)) / 255, fractions, atol=1 / 255)
    # The third row, second column is the ground of exactly those pixels.
    part = chip_rows(Grid(grid.crs, grid.transform, 400, 400), 8, [100 + 16], [100 + 8])
    expected = count_rows(config, tmp_path / "lc", land_cover, part)
    np.testing.assert_allclose(
        cells[0, 2, 1] / 255, expected[[f"fraction_{n}" for n in land_cover.legend.classes]].to_numpy()[0], atol=1 / 255
    )


@pytest.mark.parametrize(("crs", "cell"), [("EPSG:4326", 0.02), ("EPSG:3857", 4000.0)])
def test_what_lies_outside_and_what_is_known_are_shares_of_the_true_ground(
    tmp_path: Path, crs: str, cell: float
) -> None:
    # Two tiles one above the other, with a gap between them, under a chip that sticks out of both to the north and west.
    equal_area, wkt = CRS.from_epsg(6933).to_wkt(), CRS.from_user_input(crs).to_wkt()
    x, y = reproject(np.array([[15.0, 60.0]]), "EPSG:4326", wkt)[0]
    tiles = [Grid(CRS.from_user_input(crs), Affine(cell, 0, x, 0, -cell, y + top * cell), 30, 100) for top in (30, -10)]
    for name, lc, code in zip("ab", tiles, (20, 60), strict=True):
        codes = np.full((30, 100), code, np.uint8)
        codes[:, 20:40] = 0
        write_raster(tmp_path / "lc" / f"{name}.tif", codes, crs, lc.transform)
    index(tmp_path)
    middle = reproject(np.array([[15.4, 60.0]]), "EPSG:4326", CRS.from_epsg(32633).to_wkt())[0]
    scene = Grid(CRS.from_epsg(32633), Affine(1500, 0, middle[0] - 48000, 0, -1500, middle[1] + 72000), 64, 64)
    row = count(tmp_path, chip_rows(scene, 64, [0], [0])).iloc[0]
    chip = shapely.Polygon(reproject(scene.outline_xy(256), scene.wkt, equal_area))

    def share(col: int, width: int) -> list[float]:
        parts = [lc.window(0, col, 30, width).outline_xy(256) for lc in tiles]
        return [chip.intersection(shapely.Polygon(reproject(part, wkt, equal_area))).area / chip.area for part in parts]

    inside, unknown = share(0, 100), share(20, 20)
    known = [a - b for a, b in zip(inside, unknown, strict=True)]
    assert 0.05 < 1 - sum(inside) < 0.9, "the case must put ground outside"
    assert row["outside_fraction"] == pytest.approx(1 - sum(inside), abs=2e-5)
    assert row["unknown_fraction"] == pytest.approx(sum(unknown), abs=2e-5)
    assert row["known_fraction"] == pytest.approx(sum(known), abs=2e-5)
    assert row["fraction_forest"] == pytest.approx(known[0] / sum(known), abs=2e-5)


def test_a_chip_over_more_cells_than_fit_in_memory_is_counted_in_strips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    rows = {}
    for case in ("degrees under UTM", "same axes, 16 m on 30 m"):
        lc_crs, lc_transform, _, _ = CASES[case]
        write_raster(tmp_path / "lc" / "a.tif", rng.choice(CODES, (160, 160)), lc_crs, lc_transform)
        index(tmp_path)
        chips = chip_rows(scene_grid(case), 300, [0, 60], [20, 40])
        rows[case] = count(tmp_path, chips)
        monkeypatch.setattr("geokr_core.proportions.tiles._CELLS_PER_BLOCK", 1000)
        pd.testing.assert_frame_equal(count(tmp_path, chips), rows[case], rtol=1e-9, atol=1e-12)
        monkeypatch.undo()


def test_a_global_map_serves_every_longitude(tmp_path: Path) -> None:
    # West half forest, east half water; chips on both hemispheres and across the antimeridian.
    codes = np.full((90, 180), 20, np.uint8)
    codes[:, 90:] = 60
    write_raster(tmp_path / "lc" / "world.tif", codes, "EPSG:4326", Affine(2, 0, -180, 0, -2, 90))
    index(tmp_path)
    for lon, forest in ((-120.0, 1.0), (5.0, 0.0), (120.0, 0.0), (178.0, 0.5)):
        grid = Grid(CRS.from_epsg(4326), Affine(0.1, 0, lon, 0, -0.1, 12.0), 40, 40)
        rows = count(tmp_path, chip_rows(grid, 40, [0], [0]))
        assert rows["unknown_fraction"].iloc[0] == pytest.approx(0.0, abs=1e-9)
        assert rows["fraction_forest"].iloc[0] == pytest.approx(forest, abs=1e-9)
    utm = Grid(CRS.from_epsg(32760), Affine(1000, 0, 780000, 0, -1000, 8000000), 100, 100)  # runs over 180 degrees
    rows = count(tmp_path, chip_rows(utm, 100, [0], [0]))
    assert rows["unknown_fraction"].iloc[0] == pytest.approx(0.0, abs=1e-9)
    assert 0.2 < rows["fraction_forest"].iloc[0] < 0.8


def test_an_unlisted_code_is_named(tmp_path: Path) -> None:
    codes = np.full((10, 10), 20, np.uint8)
    codes[0, 0] = 33
    write_raster(tmp_path / "lc" / "a.tif", codes, "EPSG:32648", Affine(30, 0, 500000, 0, -30, 3300000))
    index(tmp_path)
    grid = Grid(CRS.from_epsg(32648), Affine(30, 0, 500000, 0, -30, 3300000), 10, 10)
    with pytest.raises(UnknownLegendCodeError, match=r"a\.tif: code\(s\) 33 \(1 cells\).*listed: .*20.*Add them"):
        count(tmp_path, chip_rows(grid, 8, [0], [0]))


def test_a_wrong_datum_is_overruled_by_configuration(tmp_path: Path) -> None:
    clarke = 'GEOGCS["unknown",DATUM["unknown",SPHEROID["Clarke 1866",6378206.4,294.978698213898]],PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]]'
    codes = np.full((90, 180), 20, np.uint8)
    write_raster(tmp_path / "lc" / "a.tif", codes, clarke, Affine(2, 0, -180, 0, -2, 90))
    index(tmp_path, crs="EPSG:4326")
    tile = open_land_cover(tmp_path / "index").products["gl"].tiles[0]
    assert tile.grid.crs.to_epsg() == 4326


def test_index_refuses_what_is_no_map(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no such land-cover folder"):
        index(tmp_path)
    (tmp_path / "lc").mkdir()
    with pytest.raises(MissingInputError, match=r"no file matches `\*\.tif`"):
        index(tmp_path)
    write_raster(tmp_path / "lc" / "a.tif", np.zeros((4, 4), np.float32), "EPSG:4326", Affine(1, 0, 0, 0, -1, 0))
    with pytest.raises(LandCoverError, match="float32 found, expected whole-number codes"):
        index(tmp_path)
    write_raster(tmp_path / "lc" / "a.tif", np.zeros((4, 4), np.uint8), None, Affine(1, 0, 0, 0, -1, 0))
    with pytest.raises(LandCoverError, match="no CRS found; give `crs`"):
        index(tmp_path)


def test_land_cover_of_another_place_is_refused_by_name(tmp_path: Path) -> None:
    write_raster(
        tmp_path / "lc" / "a.tif", np.full((10, 10), 20, np.uint8), "EPSG:4326", Affine(0.1, 0, 10, 0, -0.1, 50)
    )
    index(tmp_path)
    grid = Grid(CRS.from_epsg(32648), Affine(30, 0, 500000, 0, -30, 3300000), 64, 64)
    write_raster(
        tmp_path / "in" / "s.tif",
        np.random.default_rng(0).integers(0, 99, (3, 64, 64), np.uint8),
        "EPSG:32648",
        grid.transform,
    )
    collection = {"name": "c", "files": "*.tif", "bands": ("red", "green", "blue"), "land_cover": "gl"}
    reporter = RecordingReporter()
    take_inventory(ScenesConfig(folder=tmp_path / "in", collections=(collection,)), tmp_path / "scenes", reporter)
    cut_chips(ChipsConfig(size_px=32, stride_px=32), tmp_path / "in", tmp_path / "scenes", tmp_path / "chips", reporter)
    with pytest.raises(
        LandCoverError,
        match=r"(?s)none of 1 scenes lies on known land cover.*29\.\d+…29\.\d+° N.*tiles at 49\.000…50\.000° N",
    ):
        count_proportions(
            ProportionsConfig(), tmp_path / "lc", tmp_path / "index", tmp_path / "chips", tmp_path / "out", reporter
        )
    assert (tmp_path / "out" / "s.quarantine.json").exists()
