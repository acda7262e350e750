"""Where pixels lie: both ways between pixels and the CRS, and a grid as columns of a table."""

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS

from geokr_core.rasters.grid import Grid, carried
from geokr_core.testing import write_raster

ROTATED = Affine.translation(500000, 3300000) @ Affine.rotation(30) @ Affine.scale(16, -16)
GRID = Grid(CRS.from_epsg(32648), ROTATED, 5, 7)


def test_pixels_and_points_are_carried_both_ways() -> None:
    col, row = np.array([0.0, 3.5, -2.0]), np.array([0.0, 1.25, 9.0])
    points = GRID.xy(col, row)
    # The library that defines the transform does it point by point.
    assert [tuple(point) for point in points] == [ROTATED @ place for place in zip(col, row, strict=True)]
    np.testing.assert_allclose(GRID.pixel(points[:, 0], points[:, 1]), np.stack([col, row], axis=-1), atol=1e-9)


def test_one_transform_a_point() -> None:
    transforms = np.array([[2.0, 0.0, 10.0, 0.0, -2.0, 20.0], [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]])
    ring = np.array([[0.0, 0.0], [1.0, 3.0]])
    found = carried([part[:, None] for part in transforms.T], ring[:, 0], ring[:, 1])
    np.testing.assert_array_equal(found, [[[10, 20], [12, 14]], [[0, 0], [1, 3]]])


def test_a_grid_is_read_from_a_file_and_from_its_own_columns(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", np.zeros((1, 5, 7), np.uint8), "EPSG:32648", ROTATED)
    with rasterio.open(path) as dataset:
        assert Grid.of(dataset) == GRID
        assert Grid.of(dataset, CRS.from_epsg(32649)).crs.to_epsg() == 32649
    assert Grid.of_columns(GRID.columns()) == GRID
    assert list(GRID.columns()) == ["crs_wkt", "transform", "height", "width"]
