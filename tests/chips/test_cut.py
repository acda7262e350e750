"""Chips: the pixels, the transform and the row must speak of the same ground, whatever happens on the way."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from affine import Affine

from geokr_core.chips.config import ChipsConfig
from geokr_core.chips.cut import cut_chips
from geokr_core.chips.read import read_rows, reread
from geokr_core.errors import ConfigError, SceneRefusedError
from geokr_core.scenes.config import ScenesConfig
from geokr_core.scenes.inventory import take_inventory, usable_scenes
from geokr_core.step.digests import data_version
from geokr_core.step.files import read_json
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import write_raster

ROTATED = Affine(8, 3, 500000, 3, -8, 3300000)
CONFIG = ChipsConfig(size_px=16, stride_px=12, bands=("red", "green", "blue"), stretch="none", min_valid_fraction=0.9)


def coordinate_raster(height: int, width: int) -> np.ndarray:
    """Pixels that say where they are: red is the row, green the column."""
    rows, cols = np.mgrid[:height, :width]
    return np.stack([rows, cols, np.full_like(rows, 7)]).astype(np.uint8)


def prepare(tmp_path: Path, **collection: object) -> Path:
    scenes = ScenesConfig(
        folder=tmp_path / "in",
        collections=(
            {"name": "c", "files": "*.tif", "bands": ("red", "green", "blue"), "land_cover": "gl", **collection},
        ),
    )
    take_inventory(scenes, tmp_path / "scenes", RecordingReporter())
    return tmp_path / "scenes"


def cut(tmp_path: Path, config: ChipsConfig = CONFIG, reporter: RecordingReporter | None = None) -> pd.DataFrame:
    cut_chips(config, tmp_path / "in", tmp_path / "scenes", tmp_path / "chips", reporter or RecordingReporter())
    return pd.concat([pd.read_parquet(p) for p in sorted((tmp_path / "chips").glob("*.parquet"))])


@pytest.mark.parametrize(
    "transform", [Affine(8, 0, 500000, 0, -8, 3300000), Affine(8, 0, 500000, 0, 8, 3300000), ROTATED]
)
def test_the_transform_of_a_chip_is_that_of_its_pixels(tmp_path: Path, transform: Affine) -> None:
    write_raster(tmp_path / "in" / "s.tif", coordinate_raster(100, 120), "EPSG:32648", transform)
    prepare(tmp_path)
    rows = cut(tmp_path)
    images = np.load(tmp_path / "chips" / "s.npy")
    assert len(rows) == len(images) == 8 * 9
    for _, row in rows.iterrows():
        top, left = images[row["row"], 0, 0, :2]
        assert (top, left) == (row["pixel_row"], row["pixel_col"])
        # From the recorded transform back to the scene's pixel: the very one that the pixel value names.
        col, line = ~transform @ (Affine(*row["transform"]) @ (0.5, 0.5))
        assert (line, col) == pytest.approx((top + 0.5, left + 0.5))
    last = images[-1]
    np.testing.assert_array_equal(last[:, 0, 0], np.arange(last[0, 0, 0], last[0, 0, 0] + 16))


def test_rereading_by_coordinates_gives_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raw = rng.integers(100, 3000, (3, 90, 70)).astype(np.uint16)
    write_raster(tmp_path / "in" / "s.tif", raw, "EPSG:32648", ROTATED)
    (scene,) = usable_scenes(prepare(tmp_path)).values()
    rows = cut(tmp_path, CONFIG.model_copy(update={"stretch": "percentile"}))
    images = np.load(tmp_path / "chips" / "s.npy")
    for _, row in rows.iterrows():
        np.testing.assert_array_equal(reread(row, tmp_path / "in", scene), images[row["row"]])
    shifted = rows.iloc[0].copy()
    shifted["transform"] = list(tuple(Affine(*shifted["transform"]) @ Affine.translation(1, 0))[:6])
    assert (reread(shifted, tmp_path / "in", scene) != images[0]).any()


def test_the_stretch_is_recorded_and_can_be_undone(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).integers(100, 3000, (3, 64, 64)).astype(np.uint16)
    write_raster(tmp_path / "in" / "s.tif", raw, "EPSG:32648", ROTATED)
    prepare(tmp_path)
    rows = cut(tmp_path, CONFIG.model_copy(update={"stretch": "percentile", "stretch_low": 0, "stretch_high": 100}))
    row, image = rows.iloc[5], np.load(tmp_path / "chips" / "s.npy")[5]
    low, high = np.array(row["stretch_low"]), np.array(row["stretch_high"])
    undone = image / 255.0 * (high - low) + low
    top, left = row["pixel_row"], row["pixel_col"]
    original = np.moveaxis(raw[:, top : top + 16, left : left + 16], 0, -1)
    assert np.abs(undone - original).max() <= (high - low).max() / 255 / 2 + 1e-6


def test_chips_without_data_or_in_cloud_are_left_out_and_water_stays(tmp_path: Path) -> None:
    raw = np.full((3, 16, 64), 90, np.uint8)
    raw[:, :, 0:16] = 0  # no data, declared by configuration
    raw[:, :, 16:32] = 255  # thick cloud
    raw[:, :, 32:48] = 3  # deep water: dark, but data
    write_raster(tmp_path / "in" / "s.tif", raw, "EPSG:32648", ROTATED)
    prepare(tmp_path, nodata=0)
    rows = cut(tmp_path, CONFIG.model_copy(update={"stride_px": 16}))
    assert rows["pixel_col"].tolist() == [32, 48]
    assert rows["dark_fraction"].tolist() == [1.0, 0.0]


def test_one_bad_scene_is_quarantined_and_the_run_goes_on(tmp_path: Path) -> None:
    good = write_raster(tmp_path / "in" / "good.tif", coordinate_raster(64, 64), "EPSG:32648", ROTATED)
    write_raster(tmp_path / "in" / "tiny.tif", coordinate_raster(8, 8), "EPSG:32648", ROTATED)
    raw = good.read_bytes()
    (tmp_path / "in" / "cut_off.tif").write_bytes(raw[: len(raw) - 6000])
    prepare(tmp_path)
    reporter = RecordingReporter()
    rows = cut(tmp_path, reporter=reporter)
    assert set(rows["scene_id"]) == {"good"}
    reasons = {p.name.split(".")[0]: read_json(p)["reason"] for p in (tmp_path / "chips").glob("*.quarantine.json")}
    assert "smaller than one chip" in reasons["tiny"]
    assert "corrupt or cut off" in reasons["cut_off"]
    assert len(reporter.warnings) == 2
    assert not (tmp_path / "chips" / "cut_off.npy").exists()


def test_no_chip_at_all_is_an_error_that_lists_the_reasons(tmp_path: Path) -> None:
    write_raster(tmp_path / "in" / "tiny.tif", coordinate_raster(8, 8), "EPSG:32648", ROTATED)
    prepare(tmp_path)
    reporter = RecordingReporter()
    with pytest.raises(SceneRefusedError, match=r"none of 1 scenes gave a chip:\n  tiny: 8 x 8 pixels: smaller"):
        cut(tmp_path, reporter=reporter)
    assert reporter.warnings == []  # the error has said it


def test_wanted_bands_must_be_there_and_unstretched_data_8_bit(tmp_path: Path) -> None:
    write_raster(tmp_path / "in" / "s.tif", coordinate_raster(32, 32).astype(np.uint16), "EPSG:32648", ROTATED)
    prepare(tmp_path)
    with pytest.raises(
        SceneRefusedError, match=r"band\(s\) nir not among its bands red, green, blue; mend `chips.bands`"
    ):
        cut(tmp_path, CONFIG.model_copy(update={"bands": ("nir",)}))
    with pytest.raises(ConfigError, match="stored as uint16; `chips.stretch: none` needs uint8"):
        cut(tmp_path)


def test_a_second_run_gives_the_same_bytes_and_touches_nothing(tmp_path: Path) -> None:
    write_raster(tmp_path / "in" / "s.tif", coordinate_raster(64, 64), "EPSG:32648", ROTATED)
    prepare(tmp_path)
    cut(tmp_path)
    shard = tmp_path / "chips" / "s.npy"
    version, written = data_version(tmp_path / "chips"), shard.stat().st_mtime_ns
    cut(tmp_path)
    assert shard.stat().st_mtime_ns == written
    # A run killed between pixels and table leaves no table: the scene is cut again to the same bytes.
    (tmp_path / "chips" / "s.parquet").unlink()
    cut(tmp_path)
    assert data_version(tmp_path / "chips") == version


def test_every_scene_is_cut_again_by_code_that_gives_another_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_raster(tmp_path / "in" / "s.tif", coordinate_raster(64, 64), "EPSG:32648", ROTATED)
    prepare(tmp_path)
    cut(tmp_path)
    written = (tmp_path / "chips" / "s.npy").stat().st_mtime_ns
    monkeypatch.setattr(ChipsConfig, "code_version", ChipsConfig.code_version + 1)
    cut(tmp_path)
    assert (tmp_path / "chips" / "s.npy").stat().st_mtime_ns > written


def test_changed_pixels_or_parameters_are_cut_again_and_vanished_scenes_go(tmp_path: Path) -> None:
    write_raster(tmp_path / "in" / "s.tif", coordinate_raster(64, 64), "EPSG:32648", ROTATED)
    write_raster(tmp_path / "in" / "t.tif", coordinate_raster(64, 64), "EPSG:32648", ROTATED)
    prepare(tmp_path)
    assert len(cut(tmp_path)) == 2 * 25
    assert len(cut(tmp_path, CONFIG.model_copy(update={"stride_px": 48}))) == 2 * 4
    write_raster(tmp_path / "in" / "s.tif", coordinate_raster(64, 64) + 1, "EPSG:32648", ROTATED)
    (tmp_path / "in" / "t.tif").unlink()
    prepare(tmp_path)
    cut(tmp_path)
    assert np.load(tmp_path / "chips" / "s.npy")[0, 0, 0, 0] == 1
    assert sorted(p.name for p in (tmp_path / "chips").iterdir()) == ["cut.json", "s.npy", "s.parquet", "s.record.json"]


def test_high_latitudes_can_be_left_out(tmp_path: Path) -> None:
    write_raster(tmp_path / "in" / "s.tif", coordinate_raster(64, 16), "EPSG:4326", Affine(0.1, 0, 10, 0, -0.1, 72))
    prepare(tmp_path, max_abs_latitude_deg=70)
    rows = cut(tmp_path, CONFIG.model_copy(update={"stride_px": 16}))
    assert rows["lat"].max() <= 70
    assert rows["row"].tolist() == list(range(len(rows)))
    assert np.load(tmp_path / "chips" / "s.npy")[0, 0, 0, 0] == rows["pixel_row"].iloc[0]


def test_rows_of_a_missing_shard(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run `geokr chips` first"):
        read_rows(tmp_path, "s")


def test_what_the_rows_repeat_of_a_scene_is_written_anew_when_it_changes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_raster(
        tmp_path / "in" / "a.tif",
        rng.integers(0, 200, (3, 64, 64), np.uint8),
        "EPSG:32648",
        Affine(30, 0, 5e5, 0, -30, 33e5),
    )
    for land_cover, acquired in (("old", "2019-06-01"), ("new", "2019-06-01"), ("new", "2021-06-01")):
        collection = {
            "name": "c",
            "files": "*.tif",
            "bands": ("red", "green", "blue"),
            "land_cover": land_cover,
            "acquired": acquired,
        }
        config = ScenesConfig(folder=tmp_path / "in", collections=(collection,))
        take_inventory(config, tmp_path / "scenes", RecordingReporter())
        cut_chips(
            ChipsConfig(size_px=32, stride_px=32),
            tmp_path / "in",
            tmp_path / "scenes",
            tmp_path / "chips",
            RecordingReporter(),
        )
        rows = read_rows(tmp_path / "chips", "a")
        assert set(rows["land_cover"]) == {land_cover}, (
            "chips would be labelled by the product that was configured before"
        )
        assert set(rows["acquired"]) == {acquired}
