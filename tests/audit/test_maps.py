"""The maps of an audit: every chip's figures on its own ground, in files that any GIS opens."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from geokr_core.audit.maps import write_disagreement_maps

CLASSES = ("forest", "water")
SIZE = 16
BANDS = ("score", "moved_fraction", "map_forest", "image_forest", "map_water", "image_water")


def mapped(folder: Path, places: list[tuple[int, int]], grid: Affine) -> Path:
    """The map of chips at some places of a scene; chip k has score k + 1 and a forest of k / 10 by the map."""
    number = len(places)
    ids = [f"s-{k}" for k in range(number)]
    chips = pd.DataFrame(
        {
            "chip_id": ids,
            "pixel_row": [row for row, _ in places],
            "pixel_col": [column for _, column in places],
            "size_px": SIZE,
            "crs_wkt": CRS.from_epsg(32643).to_wkt(),
            "transform": [list((grid @ Affine.translation(column, row))[:6]) for row, column in places],
        }
    )
    (folder / "chips").mkdir(parents=True)
    chips.to_parquet(folder / "chips" / "s.parquet", index=False)
    forest = np.arange(number) / 10
    table = pd.DataFrame(
        {
            "chip_id": ids,
            "scene_id": "s",
            "score": np.arange(number) + 1.0,
            "moved_fraction": 0.5,
            "map_forest": forest,
            "image_forest": 0.25,
            "map_water": 1 - forest,
            "image_water": 0.75,
        }
    ).sample(frac=1, random_state=0)
    write_disagreement_maps(folder / "maps", folder / "chips", table, CLASSES)
    return folder / "maps" / "s.disagreement.tif"


@pytest.mark.parametrize("height_m", [-10.0, 10.0])
def test_a_chip_s_figures_lie_on_its_ground(tmp_path: Path, height_m: float) -> None:
    grid = Affine(10.0, 0, 700_000.0, 0, height_m, 3_000_000.0)
    places = [(32, 16), (32, 32), (48, 16), (96, 64)]
    path = mapped(tmp_path, places, grid)
    with rasterio.open(path) as found:
        assert found.descriptions == BANDS
        assert found.crs == CRS.from_epsg(32643)
        assert found.res == (160.0, 160.0)
        assert found.transform.e < 0
        assert [band.name for band in found.colorinterp][:2] == ["gray", "undefined"]
        assert np.isfinite(found.read(1)).sum() == len(places)
        for k, (row, column) in enumerate(places):
            middle = grid @ (column + SIZE / 2, row + SIZE / 2)
            (values,) = found.sample([middle])
            assert values == pytest.approx([k + 1, 0.5, k / 10, 0.25, 1 - k / 10, 0.75])
            x, y = found.xy(*found.index(*middle))
            assert (x, y) == pytest.approx(middle, abs=1e-6)


def test_overlapping_chips_are_averaged_and_moved_ones_left_out(tmp_path: Path) -> None:
    grid = Affine(10.0, 0, 700_000.0, 0, -10.0, 3_000_000.0)
    with rasterio.open(mapped(tmp_path, [(0, 0), (0, 8), (0, 16), (0, 19)], grid)) as found:
        assert found.res == (20.0, 20.0)
        scores = found.read(1)
    assert scores[0, [0, 3, 4, 7, 8, 11, 12]] == pytest.approx([1, 1, 1.5, 1.5, 2.5, 2.5, 3])
    with rasterio.open(mapped(tmp_path / "plain", [(0, 0), (0, 8), (0, 16)], grid)) as found:
        assert found.res == (80.0, 80.0)


def test_the_map_is_a_valid_cog(tmp_path: Path) -> None:
    from rio_cogeo.cogeo import cog_validate

    places = [(row * SIZE, column * SIZE) for row in range(40) for column in range(40)]
    path = mapped(tmp_path, places, Affine(10.0, 0, 700_000.0, 0, -10.0, 3_000_000.0))
    valid, errors, _ = cog_validate(path, strict=True)
    assert valid, errors
    assert [one.name for one in path.parent.iterdir()] == [path.name]
