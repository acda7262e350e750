"""Maps judged by forest that people drew: each chip by its own window of the mask, and the table says what was measured."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from rasterio.transform import from_origin

from geokr_core.bench.forest_maps import Judged, drawn_forest, table


def test_each_chip_has_the_forest_of_its_own_window(tmp_path: Path) -> None:
    drawn = np.full((16, 16), 2, np.uint8)
    drawn[:8, 8:] = 1
    drawn[8:12, :8] = 1
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": 16, "width": 16}
    profile |= {"crs": "EPSG:4326", "transform": from_origin(-60.0, -9.0, 1e-4, 1e-4)}
    for name, values in (("a.tif", drawn), ("b.tif", np.full_like(drawn, 1))):
        with rasterio.open(tmp_path / name, "w", **profile) as target:
            target.write(values, 1)
    catalogue = pd.DataFrame({"pixel_row": [0, 0, 8, 8], "pixel_col": [0, 8, 0, 8]})
    found = drawn_forest(tmp_path, ["a.tif", "a.tif", "a.tif", "b.tif"], catalogue, 8)
    assert found.tolist() == [0.0, 1.0, 0.5, 1.0]


def test_the_table_holds_what_was_measured() -> None:
    drawn = np.array([1.0, 0.0, 0.8, 0.2] * 5)
    given = {"map": 0.8 * drawn + 0.1, "colours": 1 - drawn, "mean": np.full(20, 0.25)}
    lines = table(Judged(drawn, given, np.arange(20) // 4)).splitlines()
    assert lines[0] == "20 chips in 5 tiles; 50.0% of the ground is forest as people drew it."
    assert "| `geokr predict` | 50.0% | 0.080 | – | 100.0% | 1.00 |" in lines
    assert "| 54 colour numbers, ridge | 50.0% | 0.800 | +0.720 [+0.720, +0.720] | 0.0% | -1.00 |" in lines
    assert lines[-1].endswith("| 50.0% | – |"), "a constant has no ranks"


def test_chips_of_a_mask_that_is_missing_are_not_passed_over(tmp_path: Path) -> None:
    catalogue = pd.DataFrame({"pixel_row": [0], "pixel_col": [0]})
    with pytest.raises(OSError, match=r"gone\.tif"):
        drawn_forest(tmp_path, ["gone.tif"], catalogue, 8)
