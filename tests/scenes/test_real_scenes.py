"""Real files: the Zion pair from raw bands to Levir-KR, and rasters that break careless readers."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from geokr_core.chain.params import Params, load_params
from geokr_core.chain.run import run_step
from geokr_core.chain.scene_by_scene import scene_ids
from geokr_core.chain.steps import Folders
from geokr_core.chips.config import ChipsConfig
from geokr_core.chips.cut import cut_chips
from geokr_core.chips.read import read_rows, reread
from geokr_core.levir_kr.dataset import open_levir_kr
from geokr_core.scenes.config import ScenesConfig
from geokr_core.scenes.inventory import read_inventory, take_inventory, usable_scenes
from geokr_core.step.reporter import RecordingReporter

pytestmark = pytest.mark.real_data

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def zion(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(ROOT)
    overrides = [f"store={tmp_path / 'store'}", "chips.stride_px=64"]
    overrides += [f"{section}.folder={real_data / 'scenes'}" for section in ("scenes", "land_cover")]
    return load_params(Path("params/zion.yaml"), overrides)


def test_the_zion_pair_from_raw_bands_to_levir_kr(zion: Params, reporter: RecordingReporter) -> None:
    for name in ("scenes", "land_cover", "chips", "proportions"):
        run_step(name, zion, reporter)
    folders = Folders(zion)
    (scene,) = usable_scenes(folders["scenes"]).values()
    assert scene.bands == ("blue", "green", "red", "nir")
    assert scene.gsd_m == pytest.approx(30, rel=1e-3)
    rows = read_rows(folders["chips"], scene.scene_id)
    assert len(rows) == 374  # 22 x 17 whole chips
    images = np.load(folders["chips"] / f"{scene.scene_id}.npy")
    for index in (0, 100, 373):
        np.testing.assert_array_equal(reread(rows.iloc[index], zion.scenes.folder, scene), images[index])
    from geokr_core.levir_kr.freeze import freeze

    freeze(zion.levir_kr, folders["chips"], folders["proportions"], folders["levir_kr"], reporter)
    dataset = open_levir_kr(folders["levir_kr"])
    mean = dict(zip(dataset.classes, dataset.proportions.mean(axis=0), strict=True))
    # Zion National Park: forest and shrubland, some bare rock, hardly a field.
    assert 0.45 < mean["forest"] < 0.6
    assert 0.3 < mean["shrubland"] < 0.45
    assert mean["cultivated_land"] < 0.02
    assert (dataset.catalogue["gap_days"] == 1509).all()  # 2015-08-18 after the middle of 2011


def test_land_cover_explains_the_pixels_best_where_it_lies(zion: Params, reporter: RecordingReporter) -> None:
    """A shift of labels against images by some chips must lower what colour tells of forest."""
    for name in ("scenes", "land_cover", "chips", "proportions"):
        run_step(name, zion, reporter)
    folders = Folders(zion)
    (scene_id,) = scene_ids(zion)
    rows = read_rows(folders["chips"], scene_id)
    import pandas as pd

    forest = pd.read_parquet(folders["proportions"] / f"{scene_id}.parquet")["fraction_forest"].to_numpy()
    brightness = np.load(folders["chips"] / f"{scene_id}.npy")[..., 0].mean(axis=(1, 2))
    grid_shape = (rows["pixel_row"].nunique(), rows["pixel_col"].nunique())
    forest, brightness = forest.reshape(grid_shape), brightness.reshape(grid_shape)

    def correlation(dy: int, dx: int) -> float:
        moved = np.roll(brightness, (dy, dx), axis=(0, 1))[1:-1, 1:-1]
        return abs(float(np.corrcoef(forest[1:-1, 1:-1].ravel(), moved.ravel())[0, 1]))

    shifts = {(dy, dx): correlation(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    assert max(shifts, key=lambda shift: shifts[shift]) == (0, 0)


# What each file must become: the number of chips of 32 pixels, or the reason of its refusal.
HARD_CASES = {
    "rasterio_RGBA.uint16.tif": "band blue has no contrast",  # every pixel is 10000
    "rasterio_all-nodata.tif": "no pixel holds data",
    "rasterio_alpha.tif": 14,  # alpha covers 98 % of it
    "rasterio_corrupt.tif": "corrupt or cut off",
    "riostac_no_crs.tif": "no CRS",
    "riotiler_cog_dateline.tif": range(3000, 5256),
    "riotiler_cog_nodata_nan.tif": range(100, 289),
    "riotiler_cog_scale.tif": 64,
    "riotiler_hro_internal_mask.tif": range(1, 77),
    "riotiler_inverted_lat.tif": "no pixel holds data",
    "rioxarray_test_rpcs.tif": "only RPCs",
    "stars_geomatrix_rotated.tif": "smaller than one chip",
    "zion_b4_truncated_300kB.tif": "corrupt or cut off",
}


@pytest.fixture(scope="module")
def hard_cases(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("hard")
    scenes = ScenesConfig(
        folder=real_data / "hard_cases", collections=({"name": "hard", "files": "*.tif", "land_cover": "none"},)
    )
    take_inventory(scenes, store / "scenes", RecordingReporter())
    inventory = usable_scenes(store / "scenes")
    for scene in inventory.values():
        config = ChipsConfig(size_px=32, stride_px=32, bands=scene.bands[:1])
        from geokr_core.chips.cut import cut_scene

        cut_scene(config, scenes.folder, store / "scenes", scene, store / "chips")
    return store


def test_every_hard_case_is_listed(real_data: Path) -> None:
    assert sorted(HARD_CASES) == sorted(p.name for p in (real_data / "hard_cases").glob("*.tif"))


@pytest.mark.parametrize("name", HARD_CASES)
def test_a_hard_case_ends_in_correct_chips_or_a_named_refusal(hard_cases: Path, real_data: Path, name: str) -> None:
    scene_id, expected = name.removesuffix(".tif"), HARD_CASES[name]
    refused = read_inventory(hard_cases / "scenes").set_index("scene_id")["reason"][scene_id]
    record = hard_cases / "chips" / f"{scene_id}.quarantine.json"
    reason = refused or (record.read_text() if record.exists() else "")
    if isinstance(expected, str):
        assert re.search(expected, reason), reason
        assert not (hard_cases / "chips" / f"{scene_id}.npy").exists()
        return
    assert not reason
    rows = read_rows(hard_cases / "chips", scene_id)
    assert len(rows) in (expected if isinstance(expected, range) else (expected,))
    scene = usable_scenes(hard_cases / "scenes")[scene_id]
    images = np.load(hard_cases / "chips" / f"{scene_id}.npy")
    for index in (0, len(rows) // 2, len(rows) - 1):
        np.testing.assert_array_equal(reread(rows.iloc[index], real_data / "hard_cases", scene), images[index])
        assert (np.abs(rows.iloc[index][["lon", "lat"]].to_numpy(float)) <= [180, 90]).all()


def test_the_dateline_scene_lies_on_both_sides(hard_cases: Path) -> None:
    lon = read_rows(hard_cases / "chips", "riotiler_cog_dateline")["lon"]
    assert (lon > 179).any()
    assert (lon < -179).any()


def test_a_truncated_band_spoils_its_scene_alone(real_data: Path, tmp_path: Path, reporter: RecordingReporter) -> None:
    folder = tmp_path / "in"
    for place in ("good", "bad"):
        (folder / place).mkdir(parents=True)
        for band in "234":
            shutil.copy(
                real_data / "scenes" / "zion_landsat8_nlcd" / f"landsat8_b{band}.tif", folder / place / f"b{band}.tif"
            )
    shutil.copy(real_data / "hard_cases" / "zion_b4_truncated_300kB.tif", folder / "bad" / "b4.tif")
    scenes = ScenesConfig(
        folder=folder,
        collections=(
            {
                "name": "z",
                "files": "*/b{band}.tif",
                "band_files": ("2", "3", "4"),
                "bands": ("blue", "green", "red"),
                "land_cover": "n",
            },
        ),
    )
    take_inventory(scenes, tmp_path / "scenes", reporter)
    summary = cut_chips(ChipsConfig(), folder, tmp_path / "scenes", tmp_path / "chips", reporter)
    assert (summary.numbers["num_shards"], summary.numbers["num_quarantined"]) == (1, 1)
    assert "bad-b: unreadable" in summary.warnings[0]
