"""A map with planted mistakes is wrong where it was meant to be, and nowhere else."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from geokr_core.bench.wrong_map import exchanged, write_wrong_map
from geokr_core.errors import ConfigError

WINDOWS = [Window(8 * column, 8 * row, 6, 6) for row in range(4) for column in range(5)]


def _raster(path: Path, values: np.ndarray, west: float, north: float, crs: str = "EPSG:4326") -> Path:
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": values.shape[0], "width": values.shape[1]}
    with rasterio.open(path, "w", crs=crs, transform=from_origin(west, north, 0.1, 0.1), **profile) as target:
        target.write(values, 1)
    return path


@pytest.mark.parametrize(("fraction", "wrong"), [(0.0, 0), (0.3, 6), (1.0, 20)])
def test_as_many_windows_as_asked_for_hold_what_another_held(fraction: float, wrong: int) -> None:
    land_cover = np.zeros((32, 40), np.uint8)
    for number, window in enumerate(WINDOWS, start=1):
        land_cover[window.toslices()] = number
    changed = exchanged(land_cover, WINDOWS, fraction)
    held = [int(np.unique(changed[window.toslices()]).item()) for window in WINDOWS]
    assert sorted(held) == list(range(1, 21)), "every window's land cover is somewhere"
    assert sum(number != own for own, number in enumerate(held, start=1)) == wrong
    assert not changed[land_cover == 0].any()


def test_scenes_are_found_on_the_grid_of_the_map(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1, 250, (40, 40)).astype(np.uint8)
    path = _raster(tmp_path / "map.tif", values, 10.0, 50.0)
    scenes = [
        _raster(tmp_path / f"{number}.tif", np.ones((5, 5), np.uint8), west, north)
        for number, (west, north) in enumerate([(10.02, 49.99), (11.0, 48.0)])
    ]
    write_wrong_map(path, 1.0, tmp_path / "new/wrong.tif", scenes)
    with rasterio.open(tmp_path / "new/wrong.tif") as target:
        found, transform = target.read(1), target.transform
    assert transform == from_origin(10.0, 50.0, 0.1, 0.1)
    expected = values.copy()
    expected[0:5, 0:5], expected[20:25, 10:15] = values[20:25, 10:15], values[0:5, 0:5]
    np.testing.assert_array_equal(found, expected)


def test_a_scene_that_sticks_out_by_a_part_of_a_cell_takes_the_border(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1, 250, (40, 40)).astype(np.uint8)
    path = _raster(tmp_path / "map.tif", values, 10.0, 50.0)
    corners = [(9.93, 50.06), (13.56, 46.44)]  # the map ends at 14.0 and 46.0
    scenes = [_raster(tmp_path / f"{n}.tif", np.ones((5, 5), np.uint8), *corner) for n, corner in enumerate(corners)]
    write_wrong_map(path, 1.0, tmp_path / "wrong.tif", scenes)
    with rasterio.open(tmp_path / "wrong.tif") as target:
        found = target.read(1)
    np.testing.assert_array_equal(found[:5, :5], values[35:, 35:])
    np.testing.assert_array_equal(found[35:, 35:], values[:5, :5])


def test_scenes_that_are_not_on_the_map_are_refused(tmp_path: Path) -> None:
    path = _raster(tmp_path / "map.tif", np.ones((40, 40), np.uint8), 10.0, 50.0)
    elsewhere = _raster(tmp_path / "elsewhere.tif", np.ones((5, 5), np.uint8), 13.8, 50.0)
    with pytest.raises(ConfigError, match="does not lie within"):
        write_wrong_map(path, 1.0, tmp_path / "wrong.tif", [elsewhere])
    metres = _raster(tmp_path / "metres.tif", np.ones((5, 5), np.uint8), 0.0, 0.0, "EPSG:32643")
    with pytest.raises(ConfigError, match="expected scenes in the map's own"):
        write_wrong_map(path, 1.0, tmp_path / "wrong.tif", [metres])
    assert not (tmp_path / "wrong.tif").exists()
