"""Older maps beside the maps of shares: they are read chip by chip, and a table says which is nearer to the product."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine

from geokr_core.bench.maps import Judged, table
from geokr_core.bench.older_maps import OlderMap, read_older_map, said_by
from geokr_core.errors import AuditError
from geokr_core.step.files import write_json

CLASSES = ("forest", "water")
CHIPS = pd.DataFrame(
    {"chip_id": ["b-0", "a-1", "a-0"], "scene_id": ["b", "a", "a"], "pixel_row": [0, 0, 0], "pixel_col": [0, 64, 0]}
)


def write_store(store: Path) -> None:
    """An older product of scene ``a`` alone, which knows one of its two chips, and a map of the whole scene."""
    (store / "proportions").mkdir(parents=True)
    write_json(store / "proportions" / "legend.json", {"classes": list(CLASSES), "colours": ["#008000", "#0000ff"]})
    rows = {"chip_id": ["a-0", "a-1"], "product": "coarse_2001", "fraction_forest": [0.3, 0.0]}
    pd.DataFrame({**rows, "fraction_water": [0.1, 0.0]}).to_parquet(store / "proportions" / "a.parquet", index=False)


def test_each_chip_gets_what_the_older_map_says_of_it(tmp_path: Path) -> None:
    write_store(tmp_path)
    found = read_older_map(tmp_path, CHIPS, CLASSES, 64)
    assert found.product == "coarse_2001"
    assert found.learned is None
    assert found.shares[2] == pytest.approx([0.75, 0.25])
    assert np.isnan(found.shares[:2]).all(), "of no product, and of no known ground"
    with pytest.raises(AuditError, match="compared by one legend"):
        read_older_map(tmp_path, CHIPS, ("forest", "snow"), 64)


def test_maps_that_learned_from_it_come_from_the_same_store(tmp_path: Path) -> None:
    write_store(tmp_path)
    maps = tmp_path / "land_cover_shares"
    maps.mkdir()
    write_json(maps / "land_cover_shares.json", {})
    size = {"height": 8, "width": 16, "transform": Affine(80.0, 0, 7e5, 0, -80.0, 3e6), "crs": "EPSG:32643"}
    stored = np.repeat(np.array([[250, 0], [0, 250]], dtype=np.uint8), 8, axis=1)[:, None].repeat(8, axis=1)
    for scene in ("a", "b"):
        with rasterio.open(
            maps / f"{scene}.shares.tif", "w", driver="GTiff", dtype="uint8", count=2, nodata=255, **size
        ) as target:
            target.write(stored)
    found = read_older_map(tmp_path, CHIPS, CLASSES, 64)
    assert found.learned is not None
    assert found.learned.tolist() == [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    given, words = said_by([found])
    assert list(given) == list(words) == ["coarse_2001", "learned_from_coarse_2001"]


def test_a_table_says_whether_the_map_of_before_is_beaten() -> None:
    product = np.array([[1.0, 0.0], [0.0, 1.0]] * 10)
    older, words = said_by([OlderMap("coarse_2001", np.full((20, 2), 0.5), 0.9 * product + 0.1 * (1 - product))])
    given = {"map": product, "colours": 1 - product, "mean": np.full((20, 2), 0.5), **older}
    lines = table(Judged(CLASSES, product, given, np.arange(20) // 2, words)).splitlines()
    assert "| `coarse_2001`, the map of before | 1.000 | +1.000 [+1.000, +1.000] | 50.0% |" in lines
    assert "| `geokr predict` that knows `coarse_2001` alone | 0.200 | +0.200 [+0.200, +0.200] | 100.0% |" in lines
    beaten = "is off by +0.800 [+0.800, +0.800] more than the maps that learned from it alone."
    assert any(line.endswith(beaten) for line in lines)
    head = next(line for line in lines if line.startswith("| class"))
    assert head.count("`coarse_2001`") == 2
    assert "| forest | 50.0% | 50.0% | 0.000 | 0.500 | 1.000 | 0.500 | 100% of 10 | 100% of 10 | 0% of 10 |" in lines
