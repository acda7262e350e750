"""The map of cells: where the chips lie, north up in both hemispheres, valid COG, and nothing of it unless asked for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from geokr_core.embeddings.cells import write_cell_map
from geokr_core.embeddings.config import EmbeddingsConfig
from geokr_core.embeddings.embed import embed_scenes
from geokr_core.scenes.scene_outputs import chip_outputs
from geokr_core.step.files import read_json
from geokr_core.step.reporter import RecordingReporter

COLUMNS = ["pixel_row", "pixel_col", "transform", "crs_wkt", "size_px"]


def embedded(store: Path, weights: Path, name: str, *, cells: bool) -> Path:
    config = EmbeddingsConfig.model_validate(
        {"architecture": "squeezenet1_1", "weights": weights, "workers": 1, "cells": cells}
    )
    embed_scenes(config, None, store / "chips", store / name, RecordingReporter())
    return store / name


@pytest.mark.parametrize("place", ["north", "south_up", "antimeridian", "degrees"])
def test_coordinates_written_as_vectors_lie_where_they_say(
    archive: Callable[..., Path], tmp_path: Path, place: str
) -> None:
    """Vectors that are the coordinates of the cells' centres: overlapping chips agree, and the map must agree with them."""
    chips = chip_outputs(archive(place) / "chips").table(place, COLUMNS).to_pandas()
    inside = (np.arange(8) + 0.5) * 4
    batch = np.empty((len(chips), 8, 8, 2), dtype=np.float32)
    origin = Affine(*chips["transform"].iloc[0])
    for k, transform in enumerate(chips["transform"]):
        columns, rows = np.meshgrid(inside, inside)
        x, y = Affine(*transform) @ (columns, rows)
        batch[k] = np.stack([x - origin.c, y - origin.f], axis=-1)
    write_cell_map(tmp_path / "cells.tif", chips, [batch[:10], batch[10:]], 2)
    with rasterio.open(tmp_path / "cells.tif") as found:
        assert found.transform.e < 0
        assert found.crs.to_wkt() == chips["crs_wkt"].iloc[0] or found.crs is not None
        values = found.read() * np.asarray(found.scales)[:, None, None] + np.asarray(found.offsets)[:, None, None]
        columns, rows = np.meshgrid(np.arange(found.width) + 0.5, np.arange(found.height) + 0.5)
        x, y = found.transform @ (columns, rows)
        assert (found.read() != -128).all()
    half_step = np.asarray([np.ptp(batch[..., 0]), np.ptp(batch[..., 1])]) / 254 / 2
    assert np.abs(values[0] - (x - origin.c)).max() <= half_step[0] * 1.01
    assert np.abs(values[1] - (y - origin.f)).max() <= half_step[1] * 1.01


def test_the_switch_writes_a_valid_map_whose_mean_is_the_chip_s_vector(
    archive: Callable[..., Path], weights: Path
) -> None:
    from rio_cogeo.cogeo import cog_validate

    store = archive("north")
    plain, dense = embedded(store, weights, "plain", cells=False), embedded(store, weights, "dense", cells=True)
    assert not (plain / "north.cells.tif").exists()
    assert (plain / "north.parquet").read_bytes() == (dense / "north.parquet").read_bytes()
    valid, errors, _ = cog_validate(dense / "north.cells.tif", strict=True)
    assert valid, errors
    with rasterio.open(dense / "north.cells.tif") as found:
        assert (found.count, found.dtypes[0], found.nodata) == (512, "int8", -128)
        assert found.shape == (96 // 4, 112 // 4)
    item = read_json(dense / "north.stac.json")
    assert item["assets"]["cells"]["href"] == "./north.cells.tif"
    again = embedded(store, weights, "dense", cells=False)
    assert not (again / "north.cells.tif").exists()
    assert (again / "north.stac.json").read_bytes() == (plain / "north.stac.json").read_bytes()
