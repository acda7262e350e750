"""The inventory and the reader: what makes a scene, where it lies, what it holds, and the named refusal of the rest."""

import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from rasterio.enums import MaskFlags

from geokr_core.errors import ConfigError, MissingInputError, SceneRefusedError
from geokr_core.rasters import checksums
from geokr_core.scenes.config import ScenesConfig
from geokr_core.scenes.inventory import forget, read_inventory, take_inventory, usable_scenes
from geokr_core.scenes.quarantine import quarantined
from geokr_core.scenes.reader import open_scene
from geokr_core.scenes.scene import Scene
from geokr_core.step.digests import file_md5, text_digest
from geokr_core.step.reporter import RecordingReporter
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
    assert reporter.warnings == []  # the error has said it
    assert not (tmp_path / "out").exists()


def test_why_none_is_usable_is_kept_until_one_is(tmp_path: Path, reporter: RecordingReporter) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tif").write_bytes(b"not a tiff")
    out = tmp_path / "store" / "scenes"
    with pytest.raises(MissingInputError, match="run `geokr scenes` first"):
        quarantined(out)
    with pytest.raises(SceneRefusedError):
        take_inventory(config(tmp_path / "in"), out, reporter)
    (row,) = quarantined(out)
    assert (row["scene"], row["step"]) == ("a", "scenes")
    assert "a.tif: cannot be opened" in row["reason"]
    write_raster(tmp_path / "in" / "b.tif", np.full((3, 8, 8), 9, np.uint8), "EPSG:32648", UTM)
    take_inventory(config(tmp_path / "in"), out, reporter)
    assert [row["scene"] for row in quarantined(out)] == ["a"]
    assert not list(out.parent.glob(".*refused*"))


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


def only_scene(tmp_path: Path, **collection: object) -> Scene:
    take_inventory(config(tmp_path / "in", **collection), tmp_path / "out", RecordingReporter())
    (scene,) = usable_scenes(tmp_path / "out").values()
    return scene


def read(folder: Path, scene: Scene, bands: tuple[str, ...] | None = None, **how: int) -> tuple[np.ndarray, np.ndarray]:
    with open_scene(folder, scene, bands or scene.bands) as reader:
        return reader.read(0, scene.grid.height, **how)


GRIDS = {
    "utm north": ("EPSG:32648", Affine(16, 0, 500000, 0, -16, 3300000), 16),
    "utm south": ("EPSG:32724", Affine(16, 0, 500000, 0, -16, 9000000), 16),
    "geographic": ("EPSG:4326", Affine(0.001, 0, 10, 0, -0.001, 60.016), 78.8),
    "web mercator at 60 degrees": ("EPSG:3857", Affine(100, 0, 1e6, 0, -100, 8.4e6), 50),
    "polar stereographic north": ("EPSG:3413", Affine(40, 0, 1e5, 0, -40, -1e6), 40),
    "polar stereographic south": ("EPSG:3031", Affine(40, 0, -1e6, 0, -40, 5e5), 40),
    "around the pole itself": ("EPSG:3031", Affine(1000, 0, -16000, 0, -1000, 16000), 1000),
    "albers": ("EPSG:5070", Affine(30, 0, -1e6, 0, -30, 1.8e6), 30),
    "south-up": ("EPSG:32648", Affine(16, 0, 500000, 0, 16, 3300000), 16),
    "east-west mirrored": ("EPSG:32648", Affine(-16, 0, 500000, 0, -16, 3300000), 16),
    "rotated": ("EPSG:32648", Affine.translation(500000, 3300000) @ Affine.rotation(30) @ Affine.scale(16, -16), 16),
    "not square": ("EPSG:26917", Affine(23.6, 0, 700000, 0, -29.5, 4400000), np.sqrt(23.6 * 29.5)),
    "utm zone 1 across the antimeridian": ("EPSG:32601", Affine(1000, 0, 152000, 0, -1000, 500000), 1000),
    "utm zone 60 across the antimeridian": ("EPSG:32760", Affine(1000, 0, 816000, 0, -1000, 9500000), 1000),
    "geographic across 180 degrees": ("EPSG:4326", Affine(0.01, 0, 179.84, 0, -0.01, 10), 1106),
}


@pytest.mark.parametrize("case", GRIDS)
def test_any_grid_keeps_its_pixels_and_finds_its_place(tmp_path: Path, case: str) -> None:
    crs, transform, gsd_m = GRIDS[case]
    data = pixels(2)
    write_raster(tmp_path / "in" / "a.tif", data, crs, transform)
    scene = only_scene(tmp_path)
    assert scene.grid.transform == transform
    assert scene.gsd_m == pytest.approx(gsd_m, rel=0.03)
    stored, valid = read(tmp_path / "in", scene)
    np.testing.assert_array_equal(stored, data)
    assert valid.all()
    # One pixel's place, found without the library.
    to_lonlat = pyproj.Transformer.from_crs(crs, 4326, always_xy=True)
    expected = to_lonlat.transform(*(transform @ (7.5, 20.5)))
    found = scene.grid.lonlat(np.array(scene.grid.window(20, 7, 1, 1).transform @ (0.5, 0.5)))
    assert found == pytest.approx(expected, abs=1e-9)
    outline = np.array(scene.grid.footprint().exterior.coords)
    if case != "around the pole itself":
        assert np.ptp(outline[:, 0]) < 3  # continuous, not once around the Earth
    if "across" in case:
        turns = np.floor((outline[:, 0] + 180) / 360)
        assert np.ptp(turns) == 1  # the case is what its name says


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "float32", "float64"])
def test_any_type_is_read_as_stored(tmp_path: Path, dtype: str) -> None:
    data = (
        (np.arange(2 * 32 * 32).reshape(2, 32, 32) % 250 - (120 if dtype[0] != "u" else 0))
        .clip(-120, 120)
        .astype(dtype)
    )
    path = write_raster(tmp_path / "in" / "a.tif", data, "EPSG:32648", UTM)
    with rasterio.open(path, "r+") as target:
        target.scales, target.offsets = (0.0001, 0.0002), (-0.1, 0.0)
    scene = only_scene(tmp_path)
    # Scale and offset are known and not applied.
    assert (scene.scales, scene.offsets) == ((0.0001, 0.0002), (-0.1, 0.0))
    stored, valid = read(tmp_path / "in", scene)
    assert stored.dtype == dtype
    np.testing.assert_array_equal(stored, data)
    assert valid.all()


def test_jp2_of_ten_bits_cog_and_hfa(tmp_path: Path) -> None:
    data = (pixels(4, 64) % 1024).astype(np.uint16)
    jp2 = {"driver": "JP2OpenJPEG", "QUALITY": 100, "REVERSIBLE": "YES", "NBITS": 10}
    for name, options in (
        ("a.jp2", jp2),
        ("b.tif", {"driver": "COG"}),
        ("c.img", {"driver": "HFA", "compress": "YES"}),
    ):
        write_raster(tmp_path / "in" / name, data, "EPSG:32648", UTM, **options)
    take_inventory(
        config(tmp_path / "in", files="*", bands=("b", "g", "r", "n")), tmp_path / "out", RecordingReporter()
    )
    scenes = usable_scenes(tmp_path / "out")
    assert list(scenes) == ["a", "b", "c"]
    for scene in scenes.values():
        np.testing.assert_array_equal(read(tmp_path / "in", scene, ("r", "b"))[0], data[[2, 0]])


def write_mask(path: Path, mask: np.ndarray, *, internal: bool) -> None:
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal), rasterio.open(path, "r+") as target:
        target.write_mask(mask)
    assert path.with_name(f"{path.name}.msk").exists() != internal


def write_masked(folder: Path, kind: str) -> None:
    """Three lines without data, marked in one of the ways that files know."""
    data = pixels(3) + 1
    hole = np.zeros((32, 32), bool)
    hole[4:7] = True
    if kind == "nodata":
        data[:, hole] = 65535
        write_raster(folder / "a.tif", data, "EPSG:32648", UTM, nodata=65535)
    elif kind == "NaN as nodata":
        data = data.astype(np.float32)
        data[:, hole] = np.nan
        write_raster(folder / "a.tif", data, "EPSG:32648", UTM, nodata=np.nan)
    elif kind == "infinity undeclared":
        data = data.astype(np.float64)
        data[:, hole] = np.inf
        write_raster(folder / "a.tif", data, "EPSG:32648", UTM)
    elif kind in ("internal mask", "external mask"):
        write_raster(folder / "a.tif", data, "EPSG:32648", UTM)
        write_mask(folder / "a.tif", ~hole, internal=kind == "internal mask")
    elif kind == "alpha":
        alpha = np.where(hole, 0, 65535).astype(np.uint16)
        write_raster(
            folder / "a.tif", np.concatenate([data, alpha[None]]), "EPSG:32648", UTM, photometric="RGB", ALPHA="YES"
        )
    elif kind == "alpha beside nodata":
        alpha = np.where(hole, 0, 255).astype(np.uint8)
        image = np.concatenate([data.clip(0, 200).astype(np.uint8), alpha[None]])
        write_raster(folder / "a.tif", image, "EPSG:32648", UTM, photometric="RGB", ALPHA="YES", nodata=255)


@pytest.mark.parametrize(
    "kind",
    [
        "nodata",
        "NaN as nodata",
        "infinity undeclared",
        "internal mask",
        "external mask",
        "alpha",
        "alpha beside nodata",
    ],
)
@pytest.mark.parametrize("bands", [("band1", "band2", "band3"), ("band3",)])
def test_each_way_to_say_no_data(tmp_path: Path, kind: str, bands: tuple[str, ...]) -> None:
    write_masked(tmp_path / "in", kind)
    scene = only_scene(tmp_path, files="*.tif")
    if "alpha" in kind:
        bands = tuple({"band1": "red", "band2": "green", "band3": "blue"}[name] for name in bands)
    _, valid = read(tmp_path / "in", scene, bands)
    assert (~valid).sum() == 3 * 32
    assert not valid[4:7].any()
    few = read(tmp_path / "in", scene, bands, decimation=4)[1]
    assert few.shape == (8, 8)
    assert not few[1].any()
    assert few.sum() == 7 * 8


def test_nodata_that_the_type_cannot_hold_marks_nothing(tmp_path: Path) -> None:
    """-9999 in unsigned pixels is common; compared carelessly it becomes 55537, a value like any other."""
    path = write_raster(tmp_path / "in" / "a.tif", np.full((1, 32, 32), 55537, np.uint16), "EPSG:32648", UTM)
    scene = only_scene(tmp_path, nodata=-9999)
    assert read(tmp_path / "in", scene)[1].all()
    with rasterio.open(path) as source:
        assert source.mask_flag_enums == ([MaskFlags.all_valid],)


def test_a_mask_file_of_another_format_is_never_opened(tmp_path: Path, reporter: RecordingReporter) -> None:
    """GDAL opens what lies beside a file in any format, also one that names other files or addresses."""
    for name in ("a", "b"):
        write_raster(tmp_path / "in" / f"{name}.tif", pixels(3), "EPSG:32648", UTM)
    (tmp_path / "in" / "a.tif.msk").write_text('<VRTDataset rasterXSize="32" rasterYSize="32"></VRTDataset>')
    take_inventory(config(tmp_path / "in", files="*.tif"), tmp_path / "out", reporter)
    assert list(usable_scenes(tmp_path / "out")) == ["b"]
    assert "'a.tif.msk' not recognized as being in a supported file format" in reporter.warnings[0]
    write_raster(tmp_path / "in" / "small.tif", np.full((16, 16), 255, np.uint8), "EPSG:32648", UTM)
    (tmp_path / "in" / "small.tif").rename(tmp_path / "in" / "a.tif.msk")
    take_inventory(config(tmp_path / "in", files="*.tif"), tmp_path / "out", reporter)
    assert "expected a mask of a.tif with 32 x 32 pixels" in reporter.warnings[1]


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files whose bytes were read for their digest; files count as settled at once."""
    names: list[str] = []

    def md5(path: Path) -> str:
        names.append(path.name)
        return file_md5(path)

    monkeypatch.setattr(checksums, "_SETTLED_NS", 0)
    monkeypatch.setattr(checksums, "file_md5", md5)
    return names


def test_what_has_not_changed_is_not_read_again(tmp_path: Path, read_files: list[str]) -> None:
    for name in ("a", "b"):
        write_raster(tmp_path / "in" / f"{name}.tif", pixels(3) + ord(name), "EPSG:32648", UTM)
    take_inventory(config(tmp_path / "in"), tmp_path / "out", RecordingReporter())
    first = usable_scenes(tmp_path / "out")
    assert read_files == ["a.tif", "b.tif"]
    written = (tmp_path / "out" / "inventory.parquet").read_bytes()
    for _ in range(2):  # the memory outlives an inventory that needed none of it
        take_inventory(config(tmp_path / "in"), tmp_path / "out", RecordingReporter())
    assert (tmp_path / "out" / "inventory.parquet").read_bytes() == written
    # Other settings describe it anew without reading it again.
    take_inventory(config(tmp_path / "in", land_cover="other"), tmp_path / "out", RecordingReporter())
    assert {name: scene.md5 for name, scene in usable_scenes(tmp_path / "out").items()} == {
        name: scene.md5 for name, scene in first.items()
    }
    assert read_files == ["a.tif", "b.tif"]


def test_other_bytes_of_the_same_size_under_the_same_time_are_noticed(tmp_path: Path, read_files: list[str]) -> None:
    path = write_raster(tmp_path / "in" / "a.tif", pixels(3), "EPSG:32648", UTM)
    only_scene(tmp_path)
    stat, content = path.stat(), path.read_bytes()
    replacement = tmp_path / "delivered_again.tif"
    replacement.write_bytes(content[:-2] + b"xy")
    os.utime(replacement, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    replacement.replace(path)  # as `rsync -t` does
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert only_scene(tmp_path).md5 == hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    assert read_files == ["a.tif", "a.tif"]


def test_what_is_forgotten_is_read_again(tmp_path: Path, read_files: list[str]) -> None:
    path = write_raster(tmp_path / "in" / "a.tif", pixels(3), "EPSG:32648", UTM)
    right = only_scene(tmp_path).md5
    # As if the disk had changed the bytes and no time: only reading them again finds out.
    (memory,) = (tmp_path / ".state" / "checksums").iterdir()
    files = {key: [*mark, "0" * 32] for key, (*mark, _) in json.loads(memory.read_text())["files"].items()}
    memory.write_text(json.dumps({"digest": text_digest(sorted(files.items())), "files": files}))
    (tmp_path / ".out.rows.json").unlink()
    assert only_scene(tmp_path).md5 == "0" * 32
    forget(config(tmp_path / "in"), tmp_path / "out")
    assert only_scene(tmp_path).md5 == right == file_md5(path)
    assert read_files == ["a.tif", "a.tif"]


def test_a_file_that_was_just_written_is_looked_at_again(tmp_path: Path) -> None:
    """Within one tick of the clock a file can change twice under one time."""
    write_raster(tmp_path / "in" / "a.tif", pixels(3), "EPSG:32648", UTM)
    only_scene(tmp_path)
    assert json.loads((tmp_path / ".out.rows.json").read_text())["scenes"] == {}
    (memory,) = (tmp_path / ".state" / "checksums").iterdir()
    assert json.loads(memory.read_text())["files"] == {}


def test_a_side_file_that_comes_later_is_noticed(tmp_path: Path) -> None:
    write_raster(tmp_path / "in" / "a.tif", pixels(3), "EPSG:32648", UTM)
    first = only_scene(tmp_path, files="*.tif")
    write_mask(tmp_path / "in" / "a.tif", np.zeros((32, 32), bool), internal=False)
    assert only_scene(tmp_path, files="*.tif").md5 != first.md5


def test_a_memory_that_is_broken_or_gone_costs_time_only(tmp_path: Path, reporter: RecordingReporter) -> None:
    write_raster(tmp_path / "in" / "a.tif", pixels(3), "EPSG:32648", UTM)
    first = only_scene(tmp_path)
    written = (tmp_path / "out" / "inventory.parquet").read_bytes()
    memory = tmp_path / ".out.rows.json"
    memory.write_text("{")
    next((tmp_path / ".state" / "checksums").iterdir()).write_text("{")
    take_inventory(config(tmp_path / "in"), tmp_path / "out", reporter)
    assert "every scene is read anew" in reporter.warnings[0]
    memory.unlink()
    assert only_scene(tmp_path) == first
    assert (tmp_path / "out" / "inventory.parquet").read_bytes() == written


REAL = {
    "zion_landsat8_nlcd/landsat8_b4.tif": (32612, 30, "uint16"),
    "gewata_landsat7_lulc/gewata_landsat7_sr_b123457.tif": (32636, 30, "uint16"),
    "garrett_md_naip_landsat_nlcd/*landsat-leaf-on.tif": (26917, 26.4, "float32"),
    "global_bluemarble_mcd12c1/bmng_epsg4326.tif": (4326, None, "uint8"),
    "lombardy_modis500_clc/*.tif": (3035, 500, None),
    "sf_bay_landsat7/*.tif": (3857, 23.7, "uint8"),
}


@pytest.mark.real_data
@pytest.mark.parametrize("files", REAL)
def test_real_scenes_are_known_by_what_they_are(real_data: Path, tmp_path: Path, files: str) -> None:
    epsg, gsd_m, dtype = REAL[files]
    cfg = config(real_data / "scenes", files=files)
    take_inventory(cfg, tmp_path / "out", RecordingReporter())
    scenes = [s for s in usable_scenes(tmp_path / "out").values() if s.grid.crs.to_epsg() == epsg]
    assert scenes
    scene = scenes[0]
    if gsd_m is not None:
        assert scene.gsd_m == pytest.approx(gsd_m, rel=0.03)
    with (
        open_scene(real_data / "scenes", scene, scene.bands[:1]) as reader,
        rasterio.open(real_data / "scenes" / scene.files[0]) as source,
    ):
        data, valid = reader.read(50, 64)
        np.testing.assert_array_equal(data[0], source.read(1, window=((50, 114), (0, source.width))))
        np.testing.assert_array_equal(valid, source.read_masks(1, window=((50, 114), (0, source.width))) > 0)
    if dtype is not None:
        assert data.dtype == dtype


def test_zero_in_one_band_is_dark_water_and_zero_in_all_is_a_margin(tmp_path: Path) -> None:
    pixels = np.full((3, 64, 64), 90, np.uint8)
    pixels[0, :, :32] = 0  # near infrared over water
    pixels[:, :4] = 0
    write_raster(tmp_path / "in" / "a.tif", pixels, "EPSG:32648", Affine(30, 0, 5e5, 0, -30, 33e5), nodata=0)
    pixels[0, 32:] = 255
    write_raster(tmp_path / "in" / "b.tif", pixels, "EPSG:32648", Affine(30, 0, 5e5, 0, -30, 33e5), nodata=255)
    collection = {"name": "c", "files": "*.tif", "bands": ("nir", "red", "green"), "land_cover": "gl"}
    config = ScenesConfig(folder=tmp_path / "in", collections=(collection,))
    take_inventory(config, tmp_path / "scenes", RecordingReporter())
    found = usable_scenes(tmp_path / "scenes")
    with open_scene(tmp_path / "in", found["a"], ["nir", "red", "green"]) as reader:
        _, valid = reader.read(0, 64)
    assert not valid[:4].any()
    assert valid[4:].all()
    with open_scene(tmp_path / "in", found["b"], ["nir", "red", "green"]) as reader:
        _, valid = reader.read(0, 64)
    assert valid[:32].all(), "0 is an ordinary value there"
    assert not valid[32:].any(), "a band at its filler is missing, whatever the others hold"
