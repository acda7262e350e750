"""The stretch: measured from a sample that represents the scene, applied to every kind of number, and undone."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from pydantic import ValidationError

from geokr_core.chips.config import ChipsConfig
from geokr_core.chips.cut import cut_chips
from geokr_core.chips.read import read_rows
from geokr_core.chips.stretch import Stretch, choose_stretch, percentiles, sample_strips
from geokr_core.errors import SceneRefusedError
from geokr_core.scenes.config import ScenesConfig
from geokr_core.scenes.inventory import take_inventory, usable_scenes
from geokr_core.scenes.reader import SceneReader, open_scene
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import write_raster

GRID = Affine(8, 0, 500000, 0, -8, 3300000)
BANDS = ("red", "green", "blue")


def opened(tmp_path: Path, pixels: np.ndarray, config: ChipsConfig, **profile: object) -> Stretch:
    write_raster(tmp_path / "in" / "s.tif", pixels, "EPSG:32648", GRID, **profile)
    return chosen(tmp_path, config, BANDS[: len(pixels)])


def chosen(tmp_path: Path, config: ChipsConfig, bands: tuple[str, ...] = BANDS) -> Stretch:
    collection = {"name": "c", "files": "*.tif", "bands": bands, "land_cover": "gl"}
    scenes = ScenesConfig.model_validate({"folder": tmp_path / "in", "collections": [collection]})
    take_inventory(scenes, tmp_path / "scenes", RecordingReporter())
    (scene,) = usable_scenes(tmp_path / "scenes").values()
    with open_scene(tmp_path / "in", scene, config.bands) as reader:
        return choose_stretch(config, scene, reader)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "float32", "float64"])
def test_undoing_brings_every_kind_of_number_back_to_half_a_step(dtype: str) -> None:
    rng = np.random.default_rng(0)
    low, high = (3 if dtype[0] == "u" else -100), (120 if dtype.endswith("8") else 30000)
    values = rng.integers(low, high + 1, (2, 64, 64)).astype(dtype)
    stretch = Stretch((low, low + 5.5), (high, high - 7.25))
    image = stretch.apply(values, np.ones((64, 64), dtype=bool))
    undone = np.moveaxis(stretch.undo(image), -1, 0)
    assert image.dtype == np.uint8
    assert undone.dtype == np.float32
    for band in range(2):
        limits = stretch.low[band], stretch.high[band]
        error = np.abs(undone[band] - np.clip(values[band].astype(np.float64), *limits))
        assert error.max() <= (limits[1] - limits[0]) / 255 / 2 * (1 + 1e-4)


def test_pixels_without_data_become_zero_also_where_the_scale_says_otherwise() -> None:
    values = np.array([[[np.nan, 5.0]], [[9.0, 5.0]]], dtype=np.float32)
    image = Stretch((0.0, 0.0), (10.0, 10.0)).apply(values, np.array([[False, True]]))
    assert image.tolist() == [[[0, 0], [128, 128]]]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_counting_gives_the_percentiles_that_sorting_gives(dtype: str) -> None:
    values = (np.random.default_rng(1).normal(60, 20, 10_007)).astype(dtype)
    wanted = (0.0, 2.0, 50.0, 98.7, 100.0)
    np.testing.assert_allclose(percentiles(values, wanted), np.percentile(values.astype(np.float64), wanted))


def test_strips_are_spread_over_the_scene_and_hold_a_million_pixels() -> None:
    for height, width in ((30_000, 30_000), (2_500, 2_500), (100_000, 300), (16, 1_000_000)):
        strips = sample_strips(height, width)
        ends = [row + lines for row, lines in strips]
        assert sum(lines for _, lines in strips) * width >= 1_000_000
        assert min(row for row, _ in strips) >= 0
        assert max(ends) <= height
        assert all(end <= row for end, (row, _) in zip(ends, strips[1:], strict=False)), "no line twice"
        thirds = {int(3 * row / height) for row, _ in strips}
        assert thirds == {0, 1, 2}
    assert sum(lines for _, lines in sample_strips(1999, 2000)) == 1999, "small scenes are measured whole"


def test_a_large_scene_is_stretched_by_what_lies_all_over_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    height, width = 2600, 2000
    rows = np.linspace(1000, 9000, height)[:, None]
    pixels = (rows + np.random.default_rng(0).normal(0, 50, (height, width))).astype(np.uint16)[None]
    read = []
    original = SceneReader.read
    monkeypatch.setattr(
        SceneReader, "read", lambda self, row, h, **kw: (read.append(h), original(self, row, h, **kw))[1]
    )
    stretch = opened(tmp_path, pixels, ChipsConfig(bands=("red",)))
    low, high = np.percentile(pixels, [2, 98])
    assert stretch.low[0] == pytest.approx(low, abs=0.02 * (high - low))
    assert stretch.high[0] == pytest.approx(high, abs=0.02 * (high - low))
    assert sum(read) <= height / 4, "the scene is not read a second time"


def test_percentiles_leave_pixels_without_data_out(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(100, 200, (3, 64, 64)).astype(np.uint16)
    pixels[:, :40] = 0
    stretch = opened(tmp_path, pixels, ChipsConfig(), nodata=0)
    assert min(stretch.low) >= 100


def test_joint_percentiles_keep_the_bands_in_proportion(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(100, 200, (3, 64, 64)).astype(np.uint16)
    pixels[2] *= 10
    stretch = opened(tmp_path, pixels, ChipsConfig(stretch="joint_percentile"))
    low, high = np.percentile(pixels, [2, 98])
    assert stretch == Stretch((low,) * 3, (high,) * 3)


def test_joint_percentiles_compare_physical_values_where_bands_are_stored_by_different_scales(tmp_path: Path) -> None:
    """The same ground is the same grey in each band, however its file writes it."""
    reflectance = np.linspace(0.01, 0.34, 32 * 32).reshape(32, 32)
    scales, offsets = (1e-4, 2.75e-5, 1e-3), (0.0, -0.2, 0.05)
    stored = [np.rint((reflectance - offset) / scale) for scale, offset in zip(scales, offsets, strict=True)]
    pixels = np.stack(stored).clip(0).astype(np.uint16)
    path = write_raster(tmp_path / "in" / "s.tif", pixels, "EPSG:32648", GRID)
    with rasterio.open(path, "r+") as target:
        target.scales, target.offsets = scales, offsets
    stretch = chosen(tmp_path, ChipsConfig(stretch="joint_percentile"))
    physical = [(np.array(limits) * scales + offsets).tolist() for limits in (stretch.low, stretch.high)]
    assert physical[0] == pytest.approx([physical[0][0]] * 3)
    assert physical[1] == pytest.approx([physical[1][0]] * 3)
    grey = stretch.apply(pixels, np.ones((32, 32), bool)).astype(int)
    inside = (reflectance > 0.06) & (reflectance < 0.33)  # the third band cannot hold less than its offset
    assert np.abs(grey[inside] - grey[inside][:, :1]).max() <= 1 + 255 * 1e-3 / 0.3 / 2
    assert np.ptp(grey[inside]) > 150


def test_a_fixed_scale_is_recorded_with_every_chip(tmp_path: Path) -> None:
    config = ChipsConfig(
        size_px=16, stride_px=16, stretch="fixed", stretch_fixed={"low": [0], "high": [4000]}, max_saturated_fraction=1
    )
    pixels = np.random.default_rng(0).integers(0, 5000, (3, 32, 32)).astype(np.uint16)
    assert opened(tmp_path, pixels, config) == Stretch((0.0,) * 3, (4000.0,) * 3)
    cut_chips(config, tmp_path / "in", tmp_path / "scenes", tmp_path / "chips", RecordingReporter())
    rows = read_rows(tmp_path / "chips", "s")
    assert rows["stretch_high"].map(list).tolist() == [[4000.0] * 3] * 4
    image = np.load(tmp_path / "chips" / "s.npy")[3]
    undone = Stretch(tuple(rows["stretch_low"][3]), tuple(rows["stretch_high"][3])).undo(image)
    original = np.moveaxis(pixels[:, 16:, 16:], 0, -1).clip(0, 4000)
    assert np.abs(undone - original).max() <= 4000 / 255 / 2 + 1e-2


@pytest.mark.parametrize(("scale", "offset"), [(1e-4, 0.0), (1e-4, -0.1), (2.75e-5, -0.2), (0.5, 3.0)])
def test_a_fixed_scale_gives_one_reflectance_one_grey(tmp_path: Path, scale: float, offset: float) -> None:
    """Stored values differ with the processing baseline; what is on the ground does not."""
    reflectance = np.linspace(0.01, 0.34, 3 * 32 * 32).reshape(3, 32, 32)
    unit = 1.0 if scale < 0.1 else 1e4  # a coarse scale stands for a coarser quantity
    stored = np.rint((reflectance * unit - offset) / scale).astype(np.uint16)
    limits = {"low": [0.0, 0.1 * unit, 0.0], "high": [0.3 * unit] * 3}
    config = ChipsConfig(stretch="fixed", stretch_fixed=limits)
    path = write_raster(tmp_path / "in" / "s.tif", stored, "EPSG:32648", GRID)
    with rasterio.open(path, "r+") as target:
        target.scales, target.offsets = (scale,) * 3, (offset,) * 3
    stretch = chosen(tmp_path, config)
    low = np.array([0.0, 0.1, 0.0])[:, None, None]
    expected = np.rint(((reflectance - low) / (0.3 - low)).clip(0, 1) * 255)
    grey = np.moveaxis(stretch.apply(stored, np.ones((32, 32), bool)), -1, 0)
    # The stored numbers are whole: half a stored step, in greys, and the rounding.
    assert np.abs(grey - expected).max() <= 1 + 255 * scale / unit / 0.2 / 2


def test_a_fixed_scale_beyond_all_pixels_is_refused_and_says_the_units(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "in" / "s.tif", np.full((3, 32, 32), 1500, np.uint16), "EPSG:32648", GRID)
    with rasterio.open(path, "r+") as target:
        target.scales, target.offsets = (1e-4,) * 3, (-0.1,) * 3
    with pytest.raises(SceneRefusedError, match=r"physical values.*stored x 0.0001 \+ -0.1.*-0.1 … 6.4535"):
        chosen(tmp_path, ChipsConfig(stretch="fixed", stretch_fixed={"low": [0], "high": [3000]}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stretch": "fixed"}, "go together"),
        ({"stretch_fixed": {"low": [0], "high": [1]}}, "go together"),
        ({"stretch": "fixed", "stretch_fixed": {"low": [0, 0], "high": [1, 1]}}, "2 values a limit, expected 1 or 3"),
        ({"stretch": "fixed", "stretch_fixed": {"low": [5], "high": [5]}}, "each high above its low"),
    ],
)
def test_a_fixed_scale_that_cannot_be_meant_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ChipsConfig.model_validate(values)


def test_a_band_without_contrast_is_named(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(100, 200, (3, 64, 64)).astype(np.uint16)
    pixels[1] = 7
    with pytest.raises(SceneRefusedError, match="band green has no contrast: percentiles 2.0 and 98.0 are both 7"):
        opened(tmp_path, pixels, ChipsConfig())
