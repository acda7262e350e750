"""Proportions end to end: rasters in, rows out, over the CRS cases; a shift by one pixel must be seen."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
from affine import Affine
from exactextract import exact_extract
from rasterio.crs import CRS

from geokr_core.chips import cut_chips
from geokr_core.config import ChipsConfig, LandCoverConfig, ProportionsConfig, ScenesConfig
from geokr_core.errors import LandCoverError, MissingInputError, UnknownLegendCodeError
from geokr_core.grid import Grid, reproject
from geokr_core.landcover import index_products, open_land_cover
from geokr_core.proportions import count_proportions, count_rows
from geokr_core.reporter import RecordingReporter
from geokr_core.scenes import take_inventory
from geokr_core.testing import write_raster

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
                "chip_id": f"c{number}", "crs_wkt": grid.wkt, "transform": list(tuple(chip.transform)[:6]), "size_px": size,
                "lon": lon, "lat": lat, "acquired": acquired, "land_cover": "gl",
            }
        )  # fmt: skip
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
    "degrees under polar stereographic": ("EPSG:4326", Affine(0.02, 0, -20, 0, -0.01, 72.5), "EPSG:3413", (200, 0, 0, -200)),
    "Albers under UTM, non-square": ("EPSG:5070", Affine(30, 0, -1400000, 0, -30, 1750000), "EPSG:32612", (11.8, 0, 0, -14.7)),
}  # fmt: skip


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
    tops, lefts = rng.integers(0, 300, 40).tolist(), rng.integers(0, 300, 40).tolist()
    rows = chip_rows(grid, 37, tops, lefts)
    ours = count(tmp_path, rows)
    assert (ours["unknown_fraction"] < 0.95).sum() > 20, "the case must put chips on the land cover"
    fractions = ours[[f"fraction_{name}" for name in CLASSES.values()]].to_numpy()
    assert fractions.min() >= 0.0, "rounding must not leave negative proportions: their logarithm is no number"
    if lc_transform.e > 0:  # the reference reads north-up files only
        flipped = lc_transform @ Affine(1, 0, 0, 0, -1, 160)
        path = write_raster(tmp_path / "flipped.tif", codes[::-1], lc_crs, flipped)
    expected = _reference(path, lc_crs, grid, rows, CRS.from_user_input(lc_crs).is_geographic)
    for name in CLASSES.values():
        np.testing.assert_allclose(ours[f"fraction_{name}"], expected[f"fraction_{name}"], atol=2e-6)
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
    np.testing.assert_allclose(rows["unknown_fraction"], [0.25, 0.25 + 0.5, 1.0])
    np.testing.assert_allclose(rows["excluded_fraction"], [0.25, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(rows["fraction_forest"], [0.5, 1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(rows["fraction_cultivated_land"], [0.5, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(rows["num_cells"], [32, 16, 0], atol=1e-9)
    assert rows["gap_days"].tolist() == [-731.0] * 3


def test_overlapping_tiles_vote_once_and_the_nearer_one_first(tmp_path: Path) -> None:
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
        match=r"none of 1 scenes lies on known land cover.*29\.\d+…29\.\d+° N.*tiles at 49\.000…50\.000° N",
    ):
        count_proportions(
            ProportionsConfig(), tmp_path / "lc", tmp_path / "index", tmp_path / "chips", tmp_path / "out", reporter
        )
    assert (tmp_path / "out" / "s.quarantine.json").exists()
