"""The audit of the generated world is judged by the world's own truth, at the day of the image."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely

from geokr_core.bench.world_audit import WorldAudit, judge_audit, table, true_shares
from geokr_core.errors import ConfigError
from geokr_core.land_cover.legend import COMMON_LEGENDS
from geokr_core.step.files import write_json
from geokr_core.world import terrain
from geokr_core.world.config import WorldConfig
from geokr_core.world.plan import plan_scene

WORLD = WorldConfig(scene_size_px=128, num_scenes=2)
CLASSES = COMMON_LEGENDS["globeland30"].classes
NAMES = {
    terrain.FOREST: "forest",
    terrain.GRASS: "grassland",
    terrain.SHRUB: "shrubland",
    terrain.CULTIVATED: "cultivated_land",
    terrain.WATER: "water",
    terrain.BARE: "bareland",
    terrain.WETLAND: "wetland",
    terrain.ARTIFICIAL: "artificial_surfaces",
}
CHIPS = pd.DataFrame({"pixel_row": [0, 0, 96, 64], "pixel_col": [0, 96, 32, 64], "size_px": 32})


def write_audit(store: Path, scene_id: str, mapped: np.ndarray) -> None:
    """An audited store of four chips, ranked the other way round."""
    chips = CHIPS.assign(chip_id=[f"c{k}" for k in range(len(CHIPS))])
    (store / "chips").mkdir(parents=True)
    (store / "map_audit").mkdir()
    chips.to_parquet(store / "chips" / f"{scene_id}.parquet")
    columns = {f"map_{name}": mapped[:, k] for k, name in enumerate(CLASSES)}
    rows = gpd.GeoDataFrame(
        {"chip_id": chips["chip_id"], "scene_id": scene_id, **columns}, geometry=[shapely.Point(0, 0)] * 4
    )
    rows.iloc[::-1].to_parquet(store / "map_audit" / "audit.parquet")
    result = {"classes": CLASSES, "model": "toy", "planted": {"gross": {"average_precision": 0.5}}}
    write_json(store / "map_audit" / "audit.json", result)


def test_shares_are_those_of_the_ground_below_a_chip_at_its_day() -> None:
    scene = plan_scene(WORLD.seed, 0, WORLD.scene_size_px)
    shares = true_shares(WORLD, scene, CHIPS, CLASSES)
    x, y = terrain.plane_coordinates(scene.grid, scene.place)
    day = scene.design.acquired
    codes = terrain.land_cover_truth(scene.place, scene.place.noise(7), x, y, day.year + day.timetuple().tm_yday / 365)
    own = codes[96:128, 32:64]
    assert len(np.unique(own)) > 1
    for code in np.unique(own):
        assert shares[2, CLASSES.index(NAMES[code])] == pytest.approx((own == code).mean())
    assert shares.sum(axis=1) == pytest.approx(1.0)


def test_a_chip_is_wrong_by_the_ground_that_the_map_calls_otherwise(tmp_path: Path) -> None:
    scene = plan_scene(WORLD.seed, 0, WORLD.scene_size_px)
    scene_id = Path(scene.name).stem
    mapped = true_shares(WORLD, scene, CHIPS, CLASSES)
    largest = int(mapped[1].argmax())
    other = (largest + 1) % len(CLASSES)
    share = mapped[1, largest]
    mapped[1, other] += share
    mapped[1, largest] = 0.0
    write_audit(tmp_path, scene_id, mapped)
    found = judge_audit(WORLD, tmp_path)
    assert found.moved == pytest.approx([0.0, 0.0, share, 0.0])
    assert found.wrong.tolist() == [False, False, True, False]
    assert "Average precision of the ranking 0.33, of a blind one 0.25" in table(found)


def test_a_scene_that_was_not_generated_is_refused(tmp_path: Path) -> None:
    write_audit(tmp_path, "delhi", np.full((4, len(CLASSES)), 0.1))
    with pytest.raises(ConfigError, match="none of the 2 scenes of the world of seed 7, 128 px"):
        judge_audit(WORLD, tmp_path)


def test_the_first_hundred_are_told_only_where_there_are_so_many() -> None:
    found = WorldAudit(np.repeat([0.5, 0.0], 75), "toy", {})
    assert "| the first 100 | 75% | 38% |" in table(found)
    assert "the first 500" not in table(found)
