"""Quality: the sums over lines must be what counting chip by chip gives, and water must survive."""

from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from geokr_core.chips import windows
from geokr_core.chips.config import ChipsConfig
from geokr_core.chips.cut import cut_chips
from geokr_core.chips.read import read_rows, scene_summary
from geokr_core.errors import SceneRefusedError
from geokr_core.scenes.config import ScenesConfig
from geokr_core.scenes.inventory import take_inventory
from geokr_core.scenes.reader import SceneReader
from geokr_core.step.reporter import RecordingReporter
from geokr_core.step.summary import Summary
from geokr_core.testing import write_raster

BANDS = ("blue", "green", "red", "nir")
GRID = Affine(8, 0, 500000, 0, -8, 3300000)


def cut(tmp_path: Path, pixels: np.ndarray, config: ChipsConfig, **profile: object) -> Summary:
    write_raster(tmp_path / "in" / "s.tif", pixels, "EPSG:32648", GRID, photometric="minisblack", **profile)
    collection = {"name": "c", "files": "*.tif", "bands": BANDS, "land_cover": "gl"}
    scenes = ScenesConfig.model_validate({"folder": tmp_path / "in", "collections": [collection]})
    take_inventory(scenes, tmp_path / "scenes", RecordingReporter())
    return cut_chips(config, tmp_path / "in", tmp_path / "scenes", tmp_path / "chips", RecordingReporter())


@pytest.mark.parametrize(("size", "stride"), [(16, 16), (16, 12), (13, 5), (8, 20), (96, 7)])
@pytest.mark.parametrize("edge", ["drop", "shift"])
@pytest.mark.parametrize("piece_values", [1, 5_000, 2_000_000])
def test_running_sums_are_what_counting_chip_by_chip_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, stride: int, edge: str, piece_values: int
) -> None:
    monkeypatch.setattr(windows, "_PIECE_VALUES", piece_values)
    rng = np.random.default_rng(0)
    pixels = rng.choice(np.array([0, 1, 12, 60, 251, 255], np.uint8), (4, 101, 110), p=[0.02, 0.3, 0.2, 0.08, 0.2, 0.2])
    pixels[:, :20, :30] = rng.integers(250, 256, (4, 20, 30))
    pixels[:, 60:, 70:] = rng.integers(1, 9, (4, 41, 40))
    cloud = rng.random((101, 110)) < 0.3
    monkeypatch.setattr(SceneReader, "read_cloud", lambda self, row, height: cloud[row : row + height])
    config = ChipsConfig(
        size_px=size,
        stride_px=stride,
        edge=edge,
        bands=BANDS,
        stretch="none",
        min_valid_fraction=0.0,
        max_saturated_fraction=1,
        max_cloud_fraction=1,
    )
    cut(tmp_path, pixels, config, nodata=12)
    rows, images = read_rows(tmp_path / "chips", "s"), np.load(tmp_path / "chips" / "s.npy")
    valid = (pixels != 12).all(axis=0)
    tops, lefts = sorted(set(rows["pixel_row"])), sorted(set(rows["pixel_col"]))
    assert len(rows) == len(images) == len(tops) * len(lefts)
    assert (tops[-1] == 101 - size and lefts[-1] == 110 - size) or edge == "drop"
    for row, image in zip(rows.to_dict("records"), images, strict=True):
        part = np.s_[row["pixel_row"] : row["pixel_row"] + size, row["pixel_col"] : row["pixel_col"] + size]
        good = valid[part]
        np.testing.assert_array_equal(image, np.moveaxis(pixels[:, *part], 0, -1) * good[..., None])
        seen = image[good].astype(np.float64)
        assert row["valid_fraction"] == pytest.approx(good.mean())
        assert row["dark_fraction"] == pytest.approx((seen.mean(axis=1) < 20).mean())
        assert row["saturated_fraction"] == pytest.approx((seen.min(axis=1) >= 250).mean())
        assert row["cloud_fraction"] == pytest.approx(cloud[part][good].mean())
        assert row["contrast"] == pytest.approx(seen.mean(axis=1).std(), abs=1e-5)


def test_more_bands_than_narrow_sums_can_hold_are_summed_wider() -> None:
    from geokr_core.chips.quality import ChipColumns, chip_sums, fractions, max_group_lines

    for num_bands in (1, 4, 16, 17, 300):
        lines = max_group_lines(num_bands)
        planes = [np.full((lines, 8), 255, dtype=np.uint8)] * num_bands
        planes[0] = planes[0] - np.arange(8, dtype=np.uint8)
        sums = chip_sums(planes, None, None, ChipColumns(np.array([0]), 8), lines)
        mean = np.stack(planes).mean(axis=0)
        found = fractions(sums[:, 0], 8, num_bands, has_cloud_mask=False)
        assert found["contrast"][0] == pytest.approx(mean.std(), abs=1e-5), num_bands
        assert np.isnan(found["cloud_fraction"][0])


def test_deep_water_survives_the_default_thresholds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(300, 3000, (4, 128, 128)).astype(np.uint16)
    pixels[:, :, 64:] = rng.integers(20, 24, (4, 128, 64))
    summary = cut(tmp_path, pixels, ChipsConfig(size_px=32, stride_px=32, bands=BANDS))
    rows = read_rows(tmp_path / "chips", "s")
    water = rows[rows["pixel_col"] >= 64]
    assert len(water) == 8
    assert (water["dark_fraction"] == 1).all()
    assert summary.numbers["num_dropped"] == 0


def test_every_window_that_gives_no_chip_is_counted_by_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(60, 200, (4, 16, 96)).astype(np.uint8)
    pixels[:, :, 16:32] = 0  # no data
    pixels[:, :, 32:48] = 255  # saturated, and cloud by the mask too: counted once
    pixels[:, :, 64:80] = 3  # dark, and without contrast
    pixels[:, :, 80:96] = 99  # without contrast
    cloud = np.zeros((16, 96), dtype=bool)
    cloud[:, 32:64] = True
    monkeypatch.setattr(SceneReader, "read_cloud", lambda self, row, height: cloud[row : row + height])
    config = ChipsConfig(size_px=16, stride_px=16, bands=BANDS, stretch="none", max_dark_fraction=0.9, min_contrast=1)
    summary = cut(tmp_path, pixels, config, nodata=0)
    expected = {
        "dropped_by_min_valid_fraction": 1,
        "dropped_by_max_saturated_fraction": 1,
        "dropped_by_max_cloud_fraction": 1,
        "dropped_by_max_dark_fraction": 1,
        "dropped_by_min_contrast": 1,
    }
    assert summary.numbers["num_dropped"] == 5
    assert summary.table[0] == {"scene": "s", "chips": 1, **expected, "quarantined": ""}
    again = cut(tmp_path, pixels, config, nodata=0)
    assert again.table == summary.table, "a scene that is skipped still says what it dropped"
    one = scene_summary(tmp_path / "chips", "s")
    assert one.table == [{"threshold": name.removeprefix("dropped_by_"), "dropped": 1} for name in sorted(expected)]
    with pytest.raises(SceneRefusedError, match="passes: 1 fail min_valid_fraction 0.98, 5 fail min_contrast 200"):
        cut(
            tmp_path,
            pixels,
            ChipsConfig(
                size_px=16,
                stride_px=16,
                bands=BANDS,
                stretch="none",
                max_saturated_fraction=1,
                max_cloud_fraction=1,
                min_contrast=200,
            ),
            nodata=0,
        )


def test_a_product_without_a_mask_loses_nothing_to_cloud(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(60, 200, (4, 32, 32)).astype(np.uint8)
    cut(tmp_path, pixels, ChipsConfig(size_px=16, stride_px=16, bands=BANDS, max_cloud_fraction=0))
    assert read_rows(tmp_path / "chips", "s")["cloud_fraction"].isna().tolist() == [True] * 4
