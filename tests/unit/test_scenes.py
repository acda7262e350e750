"""The inventory: what makes a scene, and the named refusal of what cannot be one."""

import re
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from geokr_core.config import ScenesConfig
from geokr_core.errors import ConfigError, MissingInputError, SceneRefusedError
from geokr_core.reporter import RecordingReporter
from geokr_core.scenes import open_scene, read_inventory, take_inventory, usable_scenes
from geokr_core.testing import write_raster

UTM = Affine(16, 0, 500000, 0, -16, 3300000)


def config(folder: Path, **collection: object) -> ScenesConfig:
    return ScenesConfig(
        folder=folder, collections=({"name": "all", "files": "**/*.tif*", "land_cover": "gl", **collection},)
    )


def pixels(bands: int = 3, size: int = 32, dtype: type = np.uint16) -> np.ndarray:
    return np.arange(bands * size * size).reshape(bands, size, size).astype(dtype)


def test_names_dates_and_grids_are_read(tmp_path: Path, reporter: RecordingReporter) -> None:
    name = "GF1_WFV1_E105.0_N29.8_20180807_L1A0003376167.tiff"
    write_raster(tmp_path / "in" / name, pixels(4), "EPSG:32648", UTM)
    take_inventory(config(tmp_path / "in", bands=("blue", "green", "red", "nir")), tmp_path / "out", reporter)
    (scene,) = usable_scenes(tmp_path / "out").values()
    assert (scene.sensor, scene.acquired, scene.bands) == ("GF1_WFV1", "2018-08-07", ("blue", "green", "red", "nir"))
    assert scene.grid.transform == UTM
    assert scene.gsd_m == pytest.approx(16, rel=2e-3)


def test_one_file_a_band_is_one_scene_and_a_missing_band_is_named(tmp_path: Path, reporter: RecordingReporter) -> None:
    for scene, bands in (("a", "234"), ("b", "24")):
        for band in bands:
            write_raster(tmp_path / "in" / f"{scene}_b{band}.tif", pixels(1) * int(band), "EPSG:32648", UTM)
    cfg = config(tmp_path / "in", files="*_b{band}.tif", band_files=("2", "3", "4"), bands=("blue", "green", "red"))
    take_inventory(cfg, tmp_path / "out", reporter)
    (scene,) = usable_scenes(tmp_path / "out").values()
    assert scene.files == ("a_b2.tif", "a_b3.tif", "a_b4.tif")
    with open_scene(tmp_path / "in", scene, ["red", "blue"]) as reader:
        data, valid = reader.read(0, 32)
    np.testing.assert_array_equal(data, np.concatenate([pixels(1) * 4, pixels(1) * 2]))
    assert valid.all()
    assert reporter.warnings == ["scene b_b quarantined: band file(s) for 3 missing beside b_b2.tif"]


@pytest.mark.parametrize(
    ("crs", "transform", "bands", "reason"),
    [
        (None, UTM, 3, "no CRS; without it land cover cannot be looked up"),
        ("EPSG:32648", Affine.identity(), 3, "no geotransform; orthorectify"),
        ("EPSG:32648", UTM, 5, r"5 bands found, expected 3 \(red, green, blue\)"),
        ("EPSG:4326", Affine(1, 0, 10, 0, -1, 150), 3, "no place on Earth"),
    ],
)
def test_a_scene_is_refused_by_name(
    tmp_path: Path, reporter: RecordingReporter, crs: str | None, transform: Affine, bands: int, reason: str
) -> None:
    write_raster(tmp_path / "in" / "bad.tif", pixels(bands), crs, transform)
    write_raster(tmp_path / "in" / "good.tif", pixels(3), "EPSG:32648", UTM)
    summary = take_inventory(config(tmp_path / "in", bands=("red", "green", "blue")), tmp_path / "out", reporter)
    assert list(usable_scenes(tmp_path / "out")) == ["good"]
    row = read_inventory(tmp_path / "out").set_index("scene_id").loc["bad"]
    assert row["status"] == "quarantined"
    assert re.search(reason, row["reason"])
    assert summary.numbers["num_quarantined"] == 1


def test_other_formats_are_never_opened(tmp_path: Path, reporter: RecordingReporter) -> None:
    good = write_raster(tmp_path / "in" / "good.tif", pixels(3), "EPSG:32648", UTM)
    vrt = f'<VRTDataset rasterXSize="32" rasterYSize="32"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource><SourceFilename>{good}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>'
    (tmp_path / "in" / "hidden.tif").write_text(vrt)
    (tmp_path / "in" / "plain.vrt").write_text(vrt)
    take_inventory(config(tmp_path / "in", files="*", bands=("red", "green", "blue")), tmp_path / "out", reporter)
    assert list(usable_scenes(tmp_path / "out")) == ["good"]
    assert len(reporter.warnings) == 2


def test_missing_empty_and_hopeless_folders(tmp_path: Path, reporter: RecordingReporter) -> None:
    with pytest.raises(MissingInputError, match="no such scene folder; point `scenes.folder`"):
        take_inventory(config(tmp_path / "in"), tmp_path / "out", reporter)
    (tmp_path / "in").mkdir()
    with pytest.raises(MissingInputError, match=r"no file matches `\*\*/\*\.tif\*`.*no file at all"):
        take_inventory(config(tmp_path / "in"), tmp_path / "out", reporter)
    (tmp_path / "in" / "a.tif").write_bytes(b"not a tiff")
    with pytest.raises(SceneRefusedError, match=r"none of 1 scenes is usable:\n  a: a\.tif: cannot be opened"):
        take_inventory(config(tmp_path / "in"), tmp_path / "out", reporter)
    assert not (tmp_path / "out").exists()


def test_one_file_in_two_collections_is_a_mistake(tmp_path: Path, reporter: RecordingReporter) -> None:
    write_raster(tmp_path / "a.tif", pixels(3), "EPSG:32648", UTM)
    both = ScenesConfig(
        folder=tmp_path, collections=tuple({"name": n, "files": "*.tif", "land_cover": "gl"} for n in ("one", "two"))
    )
    with pytest.raises(ConfigError, match=r"a\.tif: matched by the collections one and two"):
        take_inventory(both, tmp_path / "out", reporter)


def test_masks_of_every_kind_are_heeded(tmp_path: Path, reporter: RecordingReporter) -> None:
    data = pixels(1, dtype=np.float32)[:, :, :] + 1
    data[0, 0, :4] = np.nan
    data[0, 1, :3] = -9999
    write_raster(tmp_path / "in" / "f.tif", data, "EPSG:32648", UTM, nodata=-9999)
    rgba = np.full((4, 32, 32), 200, np.uint8)
    rgba[3, 5] = 0
    write_raster(tmp_path / "in" / "rgba.tif", rgba, "EPSG:32648", UTM, photometric="RGB", ALPHA="YES")
    black = np.full((3, 32, 32), 9, np.uint8)
    black[:, 0, :2] = 0
    black[0, 1, :2] = 0  # one band of three is zero: a colour, not a hole
    write_raster(tmp_path / "in" / "undeclared.tif", black, "EPSG:32648", UTM)
    take_inventory(config(tmp_path / "in", nodata=0), tmp_path / "out", reporter)
    scenes = usable_scenes(tmp_path / "out")
    invalid = {}
    for name, scene in scenes.items():
        with open_scene(tmp_path / "in", scene, scene.bands) as reader:
            invalid[name] = int((~reader.read(0, 32)[1]).sum())
    assert invalid == {"f": 7, "rgba": 32, "undeclared": 2}
