"""Requests and files of catalogues: what is refused before or after the search, and in which words."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from affine import Affine
from rasterio.crs import CRS

from geokr_core.acquisition.catalogues import load_catalogues
from geokr_core.acquisition.plan import window_of
from geokr_core.acquisition.search import Area
from geokr_core.errors import AcquisitionError, ConfigError
from geokr_core.land_cover.legend import load_legend
from geokr_core.rasters.grid import Grid, reproject
from tests.acquisition.served import Loop, run


def test_bands_of_two_grids_are_refused_by_name(loop: Loop, tmp_path: Path) -> None:
    catalogue = loop.catalogue()
    catalogue["collections"][0]["bands"] = {"red": "B04", "scl": "SCL"}
    with pytest.raises(AcquisitionError, match=r"band scl has pixels of 20\.0 m on another grid than red \(10\.0 m\)"):
        run(loop.one_scene(catalogue=catalogue), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dates": ("2020-07-01", "2020-07-31")}, "has nothing over"),
        ({"max_cloud_cover_percent": 1}, "at most 1 % cloud"),
        ({"bbox": (10.0, 50.0, 10.1, 50.1)}, "west,south,east,north"),
    ],
)
@pytest.mark.parametrize("root", ["/", "/static/catalog.json"])
def test_nothing_found_says_what_was_asked(loop: Loop, tmp_path: Path, changes: Any, message: str, root: str) -> None:
    with pytest.raises(AcquisitionError, match=message):
        run(loop.config(root, **changes), tmp_path)


def test_an_unknown_collection_is_named_with_those_that_are_there(loop: Loop, tmp_path: Path) -> None:
    catalogue = loop.catalogue("/static/catalog.json")
    catalogue["collections"][0]["collection"] = "sentinel-3"
    with pytest.raises(AcquisitionError, match="no collection 'sentinel-3'; it holds esa-worldcover, sentinel-2-l2a"):
        run(loop.config(catalogue=catalogue), tmp_path)


def test_a_box_across_the_antimeridian_is_one_window(tmp_path: Path) -> None:
    grid = Grid(CRS.from_epsg(32701), Affine(10, 0, 175_000, 0, -10, 8_010_000), 4000, 4000)
    west, south, east, north = 179.98, -18.1, -179.98, -18.05
    window = window_of(grid, Area.of((west, south, east, north)))
    assert window is not None
    row, col, height, width = window
    ring = np.array([[west, south], [west, north], [east, south], [east, north]])
    xy = reproject(ring, "EPSG:4326", grid.wkt)
    assert col <= (xy[:, 0].min() - 175_000) / 10 < col + 2
    assert col + width - 2 < (xy[:, 0].max() - 175_000) / 10 <= col + width
    assert row <= (8_010_000 - xy[:, 1].max()) / 10 < row + 2
    assert 400 < width < 450
    assert height < 600
    globe = Grid(CRS.from_epsg(4326), Affine(0.05, 0, -180, 0, -0.05, 90), 3600, 7200)
    with pytest.raises(AcquisitionError, match="fetch each side by itself"):
        window_of(globe, Area.of((west, south, east, north)))
    assert window_of(globe, Area.of((10.0, 20.0, 10.1, 20.1))) == (1398, 3800, 2, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bbox": (0, 5, 1, 4)}, "south < north"),
        ({"collections": ["s3"]}, "'s3' is none of"),
        ({"dates": ("2021-08-01", "2021-07-01")}, "lies after"),
    ],
)
def test_requests_that_cannot_be_meant_are_refused(loop: Loop, changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loop.config(**changes)


def test_secrets_in_the_file_or_over_plain_http_are_refused(tmp_path: Path) -> None:
    collection = {"name": "m", "collection": "m", "kind": "land_cover", "asset": "a", "legend": "nlcd", "year": 2021}
    base = {"name": "c", "url": "https://stac.example/", "collections": [collection]}
    for changes, message in (
        ({"headers": {"Authorization": "Bearer abc"}}, "must take their values from"),
        ({"url": "http://stac.example/", "headers": {"Authorization": "${TOKEN}"}}, "must be https"),
        ({"url": "s3://bucket/catalog.json"}, "http, https or a local path expected"),
    ):
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({"catalogues": [base | changes]}))
        with pytest.raises(ConfigError, match=message):
            load_catalogues(tmp_path / "c.yaml")


def test_the_delivered_file_of_catalogues_is_valid() -> None:
    catalogues = load_catalogues(Path(__file__).resolve().parents[2] / "params" / "catalogues.yaml")
    names = {c.name for catalogue in catalogues for c in catalogue.collections}
    assert {"sentinel2_l2a", "landsat_c2_l2", "worldcover_2021", "io_lulc_2021"} <= names
    for catalogue in catalogues:
        for collection in catalogue.collections:
            if collection.legend:
                load_legend(collection.legend)
