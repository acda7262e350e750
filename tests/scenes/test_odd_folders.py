"""Folders as users have them: leftovers, links, names of any script, odd files, copies, contradictions. Built here."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from pydantic import ValidationError

from geokr_core.errors import MissingInputError, SceneRefusedError
from geokr_core.scenes.config import ScenesConfig
from geokr_core.scenes.discovery import discover
from geokr_core.scenes.inventory import read_inventory, take_inventory, usable_scenes
from geokr_core.scenes.reader import open_scene
from geokr_core.step.reporter import RecordingReporter
from geokr_core.step.summary import Summary
from geokr_core.testing import write_raster
from tests.scenes.test_products import listed, write_landsat, write_safe

UTM = Affine(16, 0, 500000, 0, -16, 3300000)


def write(path: Path, seed: int = 0, **options: object) -> Path:
    pixels = np.random.default_rng(seed).integers(1, 200, (3, 32, 32)).astype(np.uint8)
    return write_raster(path, pixels, "EPSG:32648", UTM, **options)


def take(tmp_path: Path, files: str = "**/*.tif", **collection: object) -> Summary:
    collections = ({"name": "all", "files": files, "land_cover": "gl", **collection},)
    config = ScenesConfig(folder=tmp_path / "in", collections=collections)
    return take_inventory(config, tmp_path / "out", RecordingReporter())


def usable(tmp_path: Path) -> list[str]:
    return list(usable_scenes(tmp_path / "out"))


def refused(tmp_path: Path) -> dict[str, str]:
    table = read_inventory(tmp_path / "out").set_index("scene_id")
    return dict(table[table["status"] == "quarantined"]["reason"])


@pytest.mark.parametrize("files", ["*.tif", "**/*"])
def test_leftovers_of_operating_systems_are_passed_over_and_counted(tmp_path: Path, files: str) -> None:
    for k, name in enumerate("ab"):
        write(tmp_path / "in" / f"{name}.tif", k)
        (tmp_path / "in" / f"._{name}.tif").write_bytes(b"\x00\x05\x16\x07" + bytes(122))
    summary = take(tmp_path, files)
    assert usable(tmp_path) == ["a", "b"]
    assert (summary.numbers["num_quarantined"], summary.numbers["num_leftovers"]) == (0, 2)


def test_leftovers_inside_a_product_do_not_take_the_place_of_its_files(tmp_path: Path) -> None:
    safe = write_safe(tmp_path / "in")
    for band in safe.rglob("*.jp2"):
        band.with_name(f"._{band.name}").write_bytes(bytes(126))
    (safe / "GRANULE" / "@eaDir").mkdir()
    assert take(tmp_path, "*.SAFE").numbers["num_scenes"] == 1


def test_side_files_of_viewers_are_no_scenes(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.tif")
    (tmp_path / "in" / "a.tif.aux.xml").write_text("<PAMDataset/>")
    (tmp_path / "in" / "a.tif.ovr").write_bytes(b"II*\x00")
    take(tmp_path, "*.tif*")
    assert (usable(tmp_path), refused(tmp_path)) == (["a"], {})


def test_names_of_any_script_are_as_many_scenes(tmp_path: Path) -> None:
    names = ["北京", "上海", "广州", "beijing", "2020/北京", "Zürich", "★", "☆"]
    for k, name in enumerate(names):
        write(tmp_path / "in" / f"{name}.tif", k)
    summary = take(tmp_path)
    scenes = usable_scenes(tmp_path / "out")
    assert summary.numbers["num_quarantined"] == 0
    assert sorted(scene.files[0] for scene in scenes.values()) == sorted(f"{name}.tif" for name in names)
    assert {"北京", "上海", "广州", "beijing", "Zürich"} <= set(scenes)


def test_a_name_that_is_not_text_is_a_row_that_can_be_stored(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.tif")
    (tmp_path / "in" / b"\xb1\xb1\xbe\xa9.tif".decode("utf-8", "surrogateescape")).write_bytes(b"GBK")
    take(tmp_path)
    assert usable(tmp_path) == ["a"]
    (reason,) = refused(tmp_path).values()
    assert "its name is not UTF-8 text; rename it" in reason


def test_linked_folders_are_scenes_and_dead_links_are_rows(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.tif", 1)
    write(tmp_path / "disk" / "deep" / "b.tif", 2)
    (tmp_path / "in" / "archive").symlink_to(tmp_path / "disk")
    (tmp_path / "in" / "dead.tif").symlink_to("nowhere.tif")
    (tmp_path / "in" / "disk2").symlink_to(tmp_path / "unmounted")
    (tmp_path / "in" / "loop").symlink_to(".")
    (tmp_path / "in" / "round.tif").symlink_to("round.tif")
    summary = take(tmp_path)
    assert usable(tmp_path) == ["a", "archive-deep-b"]
    found = refused(tmp_path)
    assert set(found) == {"dead", "disk2", "round"}
    assert "a link to nowhere.tif, where there is nothing" in found["dead"]
    assert "leads in a circle" in found["round"]
    assert any("read elsewhere already, skipped: loop" in warning for warning in summary.warnings)


def test_a_change_behind_a_link_is_noticed(tmp_path: Path) -> None:
    target = write(tmp_path / "disk" / "b.tif", 2)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "archive").symlink_to(tmp_path / "disk")
    config = ScenesConfig(
        folder=tmp_path / "in", collections=({"name": "all", "files": "**/*.tif", "land_cover": "gl"},)
    )
    before = listed(config)
    write(target, 3)
    assert listed(config) != before


def test_a_folder_of_nothing_but_dead_links_says_so(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "dead.tif").symlink_to("nowhere.tif")
    with pytest.raises(Exception, match=r"none of 1 scenes is usable:\n  dead: dead\.tif: a link to nowhere\.tif"):
        take(tmp_path)


@pytest.mark.parametrize("kind", ["complex_int16", "complex64", "complex128"])
def test_complex_pixels_end_one_scene(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "in" / "good.tif")
    profile = {"driver": "GTiff", "width": 8, "height": 8, "count": 1, "crs": "EPSG:32648", "transform": UTM}
    with rasterio.open(tmp_path / "in" / "slc.tif", "w", dtype=kind, **profile):
        pass
    take(tmp_path)
    assert usable(tmp_path) == ["good"]
    assert "complex pixels" in refused(tmp_path)["slc"]


@pytest.mark.parametrize(
    "error",
    [
        TypeError("data type 'x' not understood"),
        ValueError("nan"),
        OverflowError(),
        KeyError(3),
        MemoryError(),
        RuntimeError("proj"),
        OSError(5, "Input/output error"),
    ],
)
def test_whatever_a_library_raises_over_one_file_ends_that_scene_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from geokr_core.scenes import inspection

    for k, name in enumerate("ab"):
        write(tmp_path / "in" / f"{name}.tif", k)
    inspected = inspection.rpcs_of

    def broken(source: object, path: Path) -> object:
        if path.name == "a.tif":
            raise error
        return inspected(source, path)

    monkeypatch.setattr(inspection, "rpcs_of", broken)
    take(tmp_path)
    assert usable(tmp_path) == ["b"]
    assert refused(tmp_path)["a"].startswith("a.tif: cannot be read: ")
    assert type(error).__name__ in refused(tmp_path)["a"] or "Input/output" in refused(tmp_path)["a"]


@pytest.mark.parametrize(
    ("scale", "offset"), [(0.0, 0.0), (float("nan"), 0.0), (1.0, float("inf"))], ids=["zero", "nan", "inf"]
)
def test_scales_that_give_no_physical_value_end_one_scene(tmp_path: Path, scale: float, offset: float) -> None:
    write(tmp_path / "in" / "good.tif")
    with rasterio.open(write(tmp_path / "in" / "bad.tif", 1), "r+") as target:
        target.scales, target.offsets = (scale,) * 3, (offset,) * 3
    take(tmp_path)
    assert usable(tmp_path) == ["good"]
    assert "give no physical value" in refused(tmp_path)["bad"]


def valid_pixels(tmp_path: Path) -> np.ndarray:
    take(tmp_path)
    (scene,) = usable_scenes(tmp_path / "out").values()
    with open_scene(tmp_path / "in", scene, scene.bands) as reader:
        return reader.read(0, 32)[1]


def test_all_declarations_of_missing_data_count_together(tmp_path: Path) -> None:
    """GDAL honours the first alone. Nodata left above, an internal mask right below, a mask beside the file in the middle."""
    pixels = np.random.default_rng(0).integers(10, 200, (3, 32, 32)).astype(np.uint8)
    expected = np.ones((32, 32), bool)
    expected[:8, :8] = expected[24:, 24:] = expected[12:20, 12:20] = False
    pixels[:, :8, :8] = 7
    path = write_raster(tmp_path / "in" / "a.tif", pixels, "EPSG:32648", UTM, nodata=7)
    inside = np.ones((32, 32), bool)
    inside[24:, 24:] = False
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as target:
        target.write_mask(inside)
    beside = np.full((1, 32, 32), 255, np.uint8)
    beside[:, 12:20, 12:20] = 0
    write_raster(tmp_path / "in" / "m.tif", beside, "EPSG:32648", UTM).rename(tmp_path / "in" / "a.tif.msk")
    np.testing.assert_array_equal(valid_pixels(tmp_path), expected)


@pytest.mark.parametrize("internal_mask", [False, True])
def test_nodata_values_of_the_whole_data_set_count_where_all_bands_have_theirs(
    tmp_path: Path, internal_mask: bool
) -> None:
    pixels = np.random.default_rng(0).integers(10, 200, (3, 32, 32)).astype(np.uint8)
    pixels[:, :4] = np.array([1, 2, 3])[:, None, None]
    pixels[0, 8] = 1  # one band alone is a value like any other
    path = write_raster(tmp_path / "in" / "a.tif", pixels, "EPSG:32648", UTM)
    expected = np.ones((32, 32), bool)
    expected[:4] = False
    if internal_mask:
        inside = np.ones((32, 32), bool)
        inside[20:] = expected[20:] = False
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as target:
            target.write_mask(inside)
    with rasterio.open(path, "r+") as target:
        target.update_tags(NODATA_VALUES="1 2 3")
    np.testing.assert_array_equal(valid_pixels(tmp_path), expected)


def test_an_alpha_band_used_as_data_hides_nothing_and_nodata_still_counts(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(10, 200, (4, 32, 32)).astype(np.uint8)
    pixels[3, 9] = 0  # near infrared of water
    pixels[:, :4] = 7
    write_raster(tmp_path / "in" / "a.tif", pixels, "EPSG:32648", UTM, photometric="RGB", ALPHA="YES", nodata=7)
    take(tmp_path, bands=("red", "green", "blue", "nir"))
    (scene,) = usable_scenes(tmp_path / "out").values()
    with open_scene(tmp_path / "in", scene, ["red", "nir"]) as reader:
        valid = reader.read(0, 32)[1]
    assert not valid[:4].any()
    assert valid[4:].all()


def test_copies_and_two_deliveries_of_one_acquisition_are_named(tmp_path: Path) -> None:
    for safe in ("N0300_R022_T32TNS_20210615T132222", "N0500_R022_T32TNS_20230115T132222"):
        write_safe(tmp_path / "in", safe=f"S2B_MSIL2A_20210615T100559_{safe}.SAFE", offset="N0500" in safe)
    write_safe(tmp_path / "in", safe="S2B_MSIL2A_20210615T100559_N0500_R022_T32TPS_20230115T132222.SAFE")
    for day in ("20200908", "20230101"):
        write_landsat(tmp_path / "in", f"LC08_L2SP_038034_20150818_{day}_02_T1", "txt")
    warnings = take(tmp_path, "**/*").warnings
    sentinel, landsat = (next(w for w in warnings if w.split(" ")[-1] and name in w) for name in ("N0300", "LC08"))
    assert "one acquisition (sentinel2 S2B_20210615T100559_R022_T32TNS)" in sentinel
    assert "N0500" in sentinel
    assert "T32TPS" not in sentinel
    assert "one acquisition (landsat_c2 LC08_038034_20150818)" in landsat
    assert len(usable(tmp_path)) == 5


def test_a_copy_of_the_same_bytes_is_named(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("copy_of_a", 0), ("b", 1)):
        write(tmp_path / "in" / f"{name}.tif", seed)
    assert take(tmp_path).warnings == [
        "a, copy_of_a: copies of the same bytes. Their ground is cut once for each: keep one"
    ]


def test_a_product_read_coarser_than_it_was_measured_says_what_is_missing(tmp_path: Path) -> None:
    safe = write_safe(tmp_path / "in")
    gone = [path for path in safe.rglob("*.jp2") if "20m" in path.name]
    for path in gone:
        if "B05" in path.name or "B11" in path.name:
            write_copy = path.parent.parent / "R60m" / path.name.replace("20m", "60m")
            pixels = np.full((4, 4), 500, np.uint16)
            write_raster(write_copy, pixels, "EPSG:32632", Affine(60, 0, 600000, 0, -60, 5100000), driver="JP2OpenJPEG")
        path.unlink()
    (warning,) = take(tmp_path, "*.SAFE", bands=("rededge1", "swir1")).warnings
    assert "read at 60 m: of its 20 m files B05, B11 are missing" in warning
    (scene,) = usable_scenes(tmp_path / "out").values()
    assert scene.grid.transform.a == 60


@pytest.mark.parametrize(
    ("descriptions", "contradict"),
    [
        (("B2", "B3", "B4"), True),
        (("SR_B2", "SR_B3", "SR_B4"), True),
        (("blue", "green", "red"), True),
        (("B4", "B3", "B2"), False),
        (("Red", "Green", "Blue"), False),
        (("sur_refl_b01", "sur_refl_b04", "sur_refl_b03"), False),
        (("1", "2", "3"), False),
        (("", "", ""), False),
    ],
)
@pytest.mark.parametrize("given", [None, ("red", "green", "blue")])
def test_descriptions_that_contradict_the_names_are_a_warning(
    tmp_path: Path, descriptions: tuple[str, ...], contradict: bool, given: tuple[str, ...] | None
) -> None:
    path = write(tmp_path / "in" / "gee.tif", photometric="RGB")
    with rasterio.open(path, "r+") as target:
        target.descriptions = descriptions
    warnings = take(tmp_path, bands=given).warnings
    assert bool(warnings) == contradict
    assert all("described as" in warning and descriptions[0] in warning for warning in warnings)
    # Said again by the next inventory, which does not open the file.
    assert take(tmp_path, bands=given).warnings == warnings


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("blue", "green", "nir", "red"), "red for nir, nir for red"),
        (("blue", "green", "red", "nri"), "nir for nri"),
        (("blue", "green", "red", "nir08"), None),
        (("band1", "band2", "band3", "band4"), None),
    ],
)
def test_of_bands_that_are_described_otherwise_those_alone_are_listed(
    tmp_path: Path, given: tuple[str, ...], told: str | None
) -> None:
    path = write_raster(tmp_path / "in" / "a.tif", np.full((4, 8, 8), 9, np.uint8), "EPSG:32648", UTM)
    with rasterio.open(path, "r+") as target:
        target.descriptions = ("blue", "green", "red", "nir")
    warnings = take(tmp_path, bands=given).warnings
    assert [f"its bands are described as {told}: if the names" in warning for warning in warnings] == [True] * bool(
        told
    )


def test_a_band_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="'red' is named more than once"):
        take(tmp_path, bands=("blue", "green", "red", "red"))


@pytest.mark.parametrize(("band_files", "contradict"), [(("B2", "B3", "B4"), True), (("B4", "B3", "B2"), False)])
def test_files_of_bands_that_contradict_their_names_are_a_warning(
    tmp_path: Path, band_files: tuple[str, ...], contradict: bool
) -> None:
    for band in band_files:
        write_raster(tmp_path / "in" / f"s_{band}.tif", np.full((1, 8, 8), 9, np.uint8), "EPSG:32648", UTM)
    warnings = take(tmp_path, "*_{band}.tif", bands=("red", "green", "blue"), band_files=band_files).warnings
    assert [
        f"described as {', '.join(f'{b} for {c}' for b, c in zip(band_files, ('red', 'green', 'blue'), strict=True))}"
        in w
        for w in warnings
    ] == [True] * contradict


@pytest.mark.parametrize(("nodata", "told"), [(-9999, True), (0.5, True), (0, False), (float("nan"), False)])
def test_a_nodata_value_that_no_pixel_can_have_is_a_warning(tmp_path: Path, nodata: float, told: bool) -> None:
    write_raster(tmp_path / "in" / "a.tif", np.full((1, 8, 8), 9, np.uint16), "EPSG:32648", UTM)
    warnings = take(tmp_path, nodata=nodata).warnings
    assert any("marks nothing: uint16 cannot hold it" in warning for warning in warnings) == told


def test_places_in_a_colour_table_are_no_measurements(tmp_path: Path) -> None:
    path = tmp_path / "in" / "a.tif"
    write_raster(path, np.full((1, 8, 8), 1, np.uint8), "EPSG:32648", UTM, photometric="palette")
    with rasterio.open(path, "r+") as target:
        target.write_colormap(1, {0: (0, 0, 0, 255), 1: (0, 0, 255, 255)})
    with pytest.raises(SceneRefusedError, match="places in a colour table, not measurements"):
        take(tmp_path)


def test_a_pattern_that_finds_leftovers_only_finds_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "._a.tif").write_bytes(bytes(126))
    with pytest.raises(MissingInputError, match="no file at all"):
        take(tmp_path)


def test_band_files_at_the_top_of_the_folder_belong_to_a_pattern_of_any_depth(tmp_path: Path) -> None:
    for place in ("", "deep/er/"):
        for band in "rg":
            path = tmp_path / "in" / f"{place}s_{band}.tif"
            write_raster(path, np.full((1, 8, 8), ord(band), np.uint8), "EPSG:32648", UTM)
    config = ScenesConfig(
        folder=tmp_path / "in",
        collections=(
            {
                "name": "c",
                "files": "**/*_{band}.tif",
                "band_files": ("r", "g"),
                "bands": ("red", "green"),
                "land_cover": "gl",
            },
        ),
    )
    assert [c.files for c in discover(config).candidates] == [
        ("deep/er/s_r.tif", "deep/er/s_g.tif"),
        ("s_r.tif", "s_g.tif"),
    ]
