"""A place whose map is shifted by a few pixels is called so, one that is not is not."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine

from geokr_core.audit.registration import Ground, shifted_places
from geokr_core.chain.params import Params, load_params
from geokr_core.chips.cut import cut_chips
from geokr_core.land_cover.tile_index import index_products
from geokr_core.scenes.inventory import take_inventory
from geokr_core.scenes.scene_outputs import chip_outputs, scenes_in
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_small_archive

SHIFTED = "scene_0001"


def prepared(folder: Path, move_px: tuple[int, int] | None) -> tuple[Params, pd.DataFrame]:
    """Four scenes cut into chips, of which one was georeferenced a few pixels beside its ground."""
    params = load_params(make_small_archive(folder, num_scenes=4, scene_size_px=256, seed=4), ["chips.stretch=none"])
    if move_px is not None:
        with rasterio.open(params.scenes.folder / f"{SHIFTED}.tif", "r+") as scene:
            scene.transform = scene.transform @ Affine.translation(*move_px)
    silent, store = RecordingReporter(), params.store
    take_inventory(params.scenes, store / "scenes", silent)
    index_products(params.land_cover, store / "land_cover", silent)
    cut_chips(params.chips, params.scenes.folder, store / "scenes", store / "chips", silent)
    chips = [chip_outputs(store / "chips").table(scene).to_pandas() for scene in scenes_in(store / "chips")]
    return params, pd.concat(chips)[["chip_id", "scene_id", "lon", "lat"]]


@pytest.mark.parametrize("move_px", [None, (3, 0), (-2, 3)])
def test_a_tile_shifted_by_three_pixels_is_called_misregistration(
    tmp_path: Path, move_px: tuple[int, int] | None
) -> None:
    params, chips = prepared(tmp_path, move_px)
    store = params.store
    ground = Ground(
        params.scenes.folder, store / "scenes", params.land_cover.folder, store / "land_cover", params.chips.bands
    )
    found = shifted_places(chips, store / "chips", ground, 1.0, RecordingReporter())
    if move_px is None:
        assert found == []
        return
    (one,) = found
    assert one.scene_id == SHIFTED
    assert len(one.chip_ids) == (chips["scene_id"] == SHIFTED).sum()
    # The image lies too far right: the map has to follow it.
    assert np.abs(np.subtract(one.alignment.peak_px, move_px)).max() <= 1
    assert one.as_json()["num_chips"] == len(one.chip_ids)
