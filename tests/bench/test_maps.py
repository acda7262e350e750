"""Maps judged by a product: each chip is compared with its own cells, and the tables say what was measured."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine

from geokr_core.bench.mapped import mapped_shares
from geokr_core.bench.maps import Judged, paired_interval, table

SIZE = 64


def write_map(folder: Path, scene_id: str, shares: np.ndarray) -> None:
    """Cells of a scene, uint8 (K, rows, columns)."""
    profile = {"driver": "GTiff", "dtype": "uint8", "count": len(shares), "nodata": 255, "crs": "EPSG:32643"}
    size = {"height": shares.shape[1], "width": shares.shape[2], "transform": Affine(80.0, 0, 7e5, 0, -80.0, 3e6)}
    with rasterio.open(folder / f"{scene_id}.shares.tif", "w", **profile, **size) as target:
        target.write(shares)


def test_a_chip_is_compared_with_the_mean_of_its_own_cells(tmp_path: Path) -> None:
    shares = np.zeros((2, 16, 24), dtype=np.uint8)
    shares[0, :8], shares[0, 8:, 8:16] = 250, 125
    shares[1] = 250 - shares[0]
    shares[:, 8:12, 8:16] = 255
    shares[:, 8:, 16:] = 255
    write_map(tmp_path, "a", shares)
    write_map(tmp_path, "b", np.full((2, 8, 8), 125, dtype=np.uint8))
    places = [("b", 0, 0), ("a", 64, 128), ("a", 0, 64), ("a", 64, 64)]
    catalogue = pd.DataFrame(places, columns=["scene_id", "pixel_row", "pixel_col"], index=[7, 5, 3, 1])
    found = mapped_shares(tmp_path, catalogue, SIZE)
    assert found[[0, 2, 3]] == pytest.approx(np.array([[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]]))
    assert np.isnan(found[1]).all()


def test_places_are_drawn_as_a_whole() -> None:
    values = np.array([1.0] * 50 + [0.0] * 50)
    low, high = paired_interval(values, np.arange(100) // 50)
    assert (low, high) == (0.0, 1.0)
    low, high = paired_interval(values, np.arange(100))
    assert 0.35 < low < 0.5 < high < 0.65


def test_the_tables_hold_what_was_measured() -> None:
    product = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]] * 10)
    swapped = product[:, [1, 0, 2]]
    given = {"map": product * 0.8 + 0.1 * (1 - product), "colours": swapped, "mean": np.full((20, 3), 1 / 3)}
    lines = table(Judged(("forest", "open_water", "snow"), product, given, np.arange(20) // 2)).splitlines()
    assert lines[0] == "20 chips in 10 places."
    assert "| `geokr predict` | 0.400 | – | 100.0% |" in lines
    assert "| 54 colour numbers, ridge | 2.000 | +1.600 [+1.600, +1.600] | 0.0% |" in lines
    assert "| open water | 50.0% | 45.0% | 0.150 | 1.000 | 0.500 | 100% of 10 | 0% of 10 |" in lines
    assert not any(line.startswith("| snow") for line in lines)
