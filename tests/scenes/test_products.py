"""Products recognised by their names and metadata, and what strangers' metadata may not do."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from geokr_core.errors import SceneRefusedError
from geokr_core.rasters.checksums import Mark
from geokr_core.scenes.config import ScenesConfig
from geokr_core.scenes.discovery import discover
from geokr_core.scenes.inventory import read_inventory, take_inventory, usable_scenes
from geokr_core.scenes.listing import Listing
from geokr_core.scenes.products.families import describe, recognise
from geokr_core.scenes.reader import open_scene
from geokr_core.scenes.scene import Scene
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import write_raster

UTM = Affine(16, 0, 500000, 0, -16, 3300000)
GF1 = "GF1_PMS1_E105.0_N29.8_20180807_L1A0003376167"
BGRN = np.stack([np.full((32, 32), value, np.uint16) for value in (100, 200, 300, 400)])


def config(folder: Path, files: str = "**/*", **collection: object) -> ScenesConfig:
    return ScenesConfig(folder=folder, collections=({"name": "all", "files": files, "land_cover": "gl", **collection},))


def inventory(tmp_path: Path, files: str = "**/*", **collection: object) -> dict[str, Scene]:
    take_inventory(config(tmp_path / "in", files, **collection), tmp_path / "out", RecordingReporter())
    return dict(usable_scenes(tmp_path / "out"))


def reasons(tmp_path: Path) -> dict[str, str]:
    return dict(read_inventory(tmp_path / "out").set_index("scene_id")["reason"])


# --- Gaofen


@pytest.mark.parametrize(
    ("name", "sensor", "bands"),
    [
        ("GF1_PMS1_E106.6_N29.7_20180807_L1A0003376167-MSS1.tiff", "GF1_PMS1", "blue green red nir"),
        ("GF1_PMS2_E106.6_N29.7_20180807_L1A0003376167-PAN2.tiff", "GF1_PMS2", "pan"),
        ("GF1_WFV4_W60.6_S29.7_20180807_L1A0003376167.tiff", "GF1_WFV4", "blue green red nir"),
        ("GF1C_PMS_E108.7_N33.6_20210101_L1A1021691650-MUX.tiff", "GF1C_PMS", "blue green red nir"),
        ("GF1B_PMS_E108.7_N33.6_20210101_L1A1021691650-MSS.tif", "GF1B_PMS", "blue green red nir"),
        ("GF1D_PMS_E108.7_N33.6_20210101_L1A1021691650-PAN.tiff", "GF1D_PMS", "pan"),
        ("GF2_PMS2_E106.6_N29.7_20180807_L5A0003376167-MSS2_FUSION.tif", "GF2_PMS2", "blue green red nir"),
        ("GF2_PMS1_E106.6_N29.7_20180807_L2A0003376167_FUSION_GEO.tiff", "GF2_PMS1", "blue green red nir"),
        ("GF6_PMS_E106.6_N29.7_20200807_L1A1120034678-MUX.tiff", "GF6_PMS", "blue green red nir"),
        (
            "GF6_WFV_E131.2_N35.8_20200910_L1A1120034678-3.tiff",
            "GF6_WFV",
            "blue green red nir rededge1 rededge2 coastal yellow",
        ),
    ],
)
def test_gaofen_names(tmp_path: Path, name: str, sensor: str, bands: str) -> None:
    assert recognise(f"a/b/{name}", "auto") == "gaofen"
    product = describe("gaofen", tmp_path, name, None)
    assert (product.sensor, " ".join(product.bands or ())) == (sensor, bands)
    assert product.acquired == "-".join(re.search(r"_(\d{4})(\d\d)(\d\d)_L", name).groups())
    assert product.product_id == re.match(r".*?_L\d[A-Z]\d{10}", name)[0]
    assert product.in_sensor_geometry == ("L1A" in name)


@pytest.mark.parametrize(
    "name", ["GF1_PMS1.tif", "GF1_PMS1_E106.6_N29.7_20180807_L1A0003376167-MSS1.jpg", "m_3907833_nw_17_1_naip-new.tif"]
)
def test_what_only_resembles_a_product_is_none(name: str) -> None:
    assert recognise(name, "auto") == "generic"


def test_red_of_a_gaofen_scene_is_its_third_band(tmp_path: Path) -> None:
    """A four-band file looks like RGB with something more; taken so, red and blue change places."""
    write_raster(tmp_path / "in" / f"{GF1}-MSS1_GEO.tiff", BGRN, "EPSG:32648", UTM, photometric="RGB", ALPHA="NO")
    (scene,) = inventory(tmp_path).values()
    with open_scene(tmp_path / "in", scene, ["red", "green", "blue"]) as reader:
        pixels, valid = reader.read(0, 32)
    assert pixels[:, 0, 0].tolist() == [300, 200, 100]
    assert valid.all()


def test_bands_that_cannot_be_known_are_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_raster(folder / f"{GF1}-MSS1.tiff", BGRN, "EPSG:32648", UTM)
    write_raster(folder / f"{GF1}_FUSION.tiff", BGRN[:3], "EPSG:32648", UTM)
    write_raster(
        folder / f"{GF1}_8bit.tiff", (BGRN // 2).astype(np.uint8), "EPSG:32648", UTM, photometric="RGB", ALPHA="YES"
    )
    write_raster(folder / "GF7_XYZ_E105.0_N29.8_20180807_L1A0003376167.tiff", BGRN, "EPSG:32648", UTM)
    assert list(inventory(tmp_path)) == [f"{GF1}-MSS1"]
    found = reasons(tmp_path)
    assert re.search(r"3 band\(s\) of GF1_PMS1 found, expected 4 .*give `bands`", found[f"{GF1}_FUSION"])
    assert "tagged as transparency where GF1_PMS1 has nir" in found[f"{GF1}_8bit"]
    assert "expected a sensor with a known order" in found["GF7_XYZ_E105.0_N29.8_20180807_L1A0003376167"]
    given = inventory(tmp_path, f"{GF1}_FUSION.tiff", bands=("red", "green", "blue"))
    assert given[f"{GF1}_FUSION"].bands == ("red", "green", "blue")


def test_the_three_strips_of_gf6_wfv_are_scenes_of_one_product(tmp_path: Path) -> None:
    name = "GF6_WFV_E131.2_N35.8_20200910_L1A1120034678"
    for strip in (1, 2, 3):
        pixels = np.full((8, 32, 32), strip, np.uint16)
        write_raster(
            tmp_path / "in" / f"{name}-{strip}.tiff", pixels, "EPSG:32652", UTM @ Affine.translation(32 * strip, 0)
        )
    scenes = inventory(tmp_path)
    assert list(scenes) == [f"{name}-{strip}" for strip in (1, 2, 3)]
    assert {scene.product_id for scene in scenes.values()} == {name}
    assert len({scene.grid.transform.c for scene in scenes.values()}) == 3


def gaofen_xml(day: str = "2018-08-08", lon: float = 105.0, lat: float = 29.8) -> str:
    corners = "".join(
        f"<{corner}Latitude>{lat + dy}</{corner}Latitude><{corner}Longitude>{lon + dx}</{corner}Longitude>"
        for corner, dx, dy in (("TopLeft", -1, 1), ("TopRight", 1, 1), ("BottomRight", 1, -1), ("BottomLeft", -1, -1))
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><ProductMetaData><SatelliteID>GF1</SatelliteID>{corners}'
        f"<ReceiveTime>2018-08-07 19:00:00</ReceiveTime><CenterTime>{day} 03:41:10.0</CenterTime></ProductMetaData>"
    )


def test_the_side_file_dates_a_gaofen_scene_and_must_be_its_own(tmp_path: Path) -> None:
    raster, side = tmp_path / "in" / f"{GF1}-MSS1_GEO.tiff", tmp_path / "in" / f"{GF1}-MSS1.xml"
    write_raster(raster, BGRN, "EPSG:32648", UTM)
    side.write_text(gaofen_xml())
    (scene,) = inventory(tmp_path, "*.tiff").values()
    assert scene.acquired == "2018-08-08"  # the time of imaging, neither the name's nor the reception's day
    for content, reason in (
        (gaofen_xml(day="2018-09-08"), "the side file belongs to another scene"),
        (gaofen_xml(lon=20.0), r"places it at \[19.0, 30.8\], its grid at"),
        ("<ProductMetaData>", "not usable as XML"),
    ):
        side.write_text(content)
        with pytest.raises(SceneRefusedError, match=reason):
            inventory(tmp_path, "*.tiff")


@pytest.mark.parametrize(
    "declaration",
    [
        '<!DOCTYPE a [<!ENTITY secret SYSTEM "file:///etc/hostname">]>',
        '<!DOCTYPE a [<!ENTITY x "x"><!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;">]>',
        '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd">',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_hostile_xml_reads_nothing_and_ends_one_scene(tmp_path: Path, declaration: str, encoding: str) -> None:
    write_raster(tmp_path / "in" / f"{GF1}.tiff", BGRN, "EPSG:32648", UTM)
    write_raster(tmp_path / "in" / "good.tiff", BGRN, "EPSG:32648", UTM)
    text = f'<?xml version="1.0" encoding="{encoding}"?>{declaration}<a><CenterTime>&secret;</CenterTime></a>'
    (tmp_path / "in" / f"{GF1}.xml").write_bytes(text.encode(encoding))
    assert list(inventory(tmp_path, "*.tiff")) == ["good"]
    assert "declares a document type" in reasons(tmp_path)[GF1]


# --- Sentinel-2

SAFE = "S2B_MSIL2A_20230615T100559_N0509_R022_T32TNS_20230615T132222.SAFE"


def write_safe(folder: Path, level: str = "2A", safe: str = SAFE, scl: bool = True, offset: bool = True) -> Path:
    """A product of 240 m: what is 10 980 pixels there is 24 here."""
    images = folder / safe / "GRANULE" / f"L{level}_T32TNS_A032779_20230615T100601" / "IMG_DATA"
    bands = {10: ("B02", "B03", "B04", "B08"), 20: ("B02", "B03", "B04", "B05", "B06", "B07", "B8A", "B11", "B12")}
    for gsd, names in (*bands.items(), (60, ("B01", "B09"))):
        for name in names:
            if level == "1C" and gsd == 20 and name in bands[10]:
                continue
            size = 240 // gsd
            path = images / (f"R{gsd}m/x_{name}_{gsd}m.jp2" if level == "2A" else f"x_{name}.jp2")
            write_jp2(path, np.full((size, size), int(name[1:].replace("A", ""), 16) * 100, np.uint16), gsd)
    if scl and level == "2A":
        classes = np.full((12, 12), 4, np.uint8)
        classes[0, :8] = (0, 1, 2, 3, 8, 9, 10, 11)
        write_jp2(images / "R20m" / "x_SCL_20m.jp2", classes, 20)
    kind = "BOA" if level == "2A" else "RADIO"
    offsets = "".join(f'<{kind}_ADD_OFFSET band_id="{k}">-{1000 + k}</{kind}_ADD_OFFSET>' for k in range(13))
    quantification = "BOA_QUANTIFICATION_VALUE" if level == "2A" else "QUANTIFICATION_VALUE"
    (folder / safe / f"MTD_MSIL{level}.xml").write_text(
        '<n1:Level-2A_User_Product xmlns:n1="https://psd.example/x.xsd"><n1:General_Info>'
        f"<PRODUCT_URI>{safe}</PRODUCT_URI><SPACECRAFT_NAME>Sentinel-2B</SPACECRAFT_NAME>"
        "<DATATAKE_SENSING_START>2023-06-15T10:05:59.024Z</DATATAKE_SENSING_START>"
        f"<{quantification} unit='none'>10000</{quantification}>{offsets if offset else ''}"
        "</n1:General_Info></n1:Level-2A_User_Product>"
    )
    return folder / safe


def write_jp2(path: Path, pixels: np.ndarray, gsd_m: float) -> Path:
    transform = Affine(gsd_m, 0, 600000, 0, -gsd_m, 5100000)
    return write_raster(path, pixels, "EPSG:32632", transform, driver="JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES")


@pytest.mark.parametrize("files", ["*.SAFE", "*.SAFE/MTD_MSIL*.xml", "**/*"])
def test_a_sentinel2_safe_folder_is_one_scene_of_10_m(tmp_path: Path, files: str) -> None:
    write_safe(tmp_path / "in")
    (scene,) = inventory(tmp_path, files).values()
    assert scene.scene_id == SAFE.removesuffix(".SAFE") == scene.product_id
    assert (scene.product, scene.sensor, scene.acquired) == ("sentinel2", "Sentinel-2B_MSI_L2A", "2023-06-15")
    assert scene.bands == ("blue", "green", "red", "nir")
    assert (scene.grid.transform.a, scene.grid.height) == (10, 24)
    # (stored + offset) / quantification, by band and not by place in the list: B08 has band_id 7.
    assert scene.scales == (1e-4,) * 4
    assert scene.offsets == pytest.approx((-0.1001, -0.1002, -0.1003, -0.1007))
    with open_scene(tmp_path / "in", scene, ["red", "nir"]) as reader:
        pixels, valid = reader.read(0, 24)
        cloud = reader.read_cloud(1, 3)
    assert pixels[:, 0, 0].tolist() == [400, 800]
    assert valid.all()
    # Lines 1–3 lie in classification lines 0 and 1, each 2 pixels wide and high.
    expected = np.zeros((3, 24), bool)
    expected[0, 6:14] = True  # shadow, medium, high, cirrus; not saturated, dark or snow
    np.testing.assert_array_equal(cloud, expected)


def test_bands_of_sentinel2_have_one_resolution(tmp_path: Path) -> None:
    write_safe(tmp_path / "in")
    (scene,) = inventory(tmp_path, "*.SAFE", bands=("red", "rededge1", "swir2")).values()
    assert (scene.grid.transform.a, scene.bands) == (20, ("red", "rededge1", "swir2"))
    with open_scene(tmp_path / "in", scene, ["swir2"]) as reader:
        assert reader.read(0, 1)[0][0, 0, 0] == 0x12 * 100
        assert reader.read_cloud(0, 1)[0].nonzero()[0].tolist() == [3, 4, 5, 6]
    with pytest.raises(SceneRefusedError, match=r"no resolution has all of nir, swir1.*Bands are not resampled"):
        inventory(tmp_path, "*.SAFE", bands=("nir", "swir1"))
    with pytest.raises(SceneRefusedError, match="not of Sentinel-2; known: blue"):
        inventory(tmp_path, "*.SAFE", bands=("purple",))


def test_level_1c_and_old_baselines(tmp_path: Path) -> None:
    write_safe(tmp_path / "in", level="1C", offset=False)
    (scene,) = inventory(tmp_path, "*.SAFE").values()
    assert (scene.grid.transform.a, scene.offsets, scene.cloud_mask) == (10, (0.0,) * 4, "")
    with open_scene(tmp_path / "in", scene, ["red"]) as reader:
        assert reader.read_cloud(0, 4) is None


def test_stored_zero_of_sentinel2_is_no_data(tmp_path: Path) -> None:
    safe = write_safe(tmp_path / "in")
    for path in safe.rglob("R10m/*.jp2"):
        pixels = np.full((24, 24), 500, np.uint16)
        pixels[:, :5] = 0
        write_jp2(path, pixels, 10)
    (scene,) = inventory(tmp_path, "*.SAFE").values()
    with open_scene(tmp_path / "in", scene, ["red", "blue"]) as reader:
        valid = reader.read(0, 24)[1]
    assert (~valid).sum() == 5 * 24


def test_incomplete_safe_folders_end_one_scene_each(tmp_path: Path) -> None:
    write_safe(tmp_path / "in")
    bare = write_safe(tmp_path / "in", safe="S2A_MSIL2A_bare.SAFE")
    (bare / "MTD_MSIL2A.xml").unlink()
    two = write_safe(tmp_path / "in", safe="S2A_MSIL2A_two.SAFE")
    (two / "GRANULE" / "another").mkdir()
    lost = write_safe(tmp_path / "in", safe="S2A_MSIL2A_lost.SAFE")
    next(lost.rglob("*B04_10m.jp2")).unlink()
    next(lost.rglob("*B04_20m.jp2")).unlink()
    (tmp_path / "in" / "S2A_MSIL2A_file.SAFE").write_text("a file")
    (two / "broken").symlink_to("nowhere")
    assert list(inventory(tmp_path, "*.SAFE")) == [SAFE.removesuffix(".SAFE")]
    found = reasons(tmp_path)
    assert "deliver the whole SAFE folder" in found["S2A_MSIL2A_file"]
    assert "no MTD_MSIL1C.xml or MTD_MSIL2A.xml" in found["S2A_MSIL2A_bare"]
    assert "2 granules found" in found["S2A_MSIL2A_two"]
    assert "no resolution has all of blue, green, red, nir" in found["S2A_MSIL2A_lost"]


def test_an_offset_that_one_band_lacks_is_not_taken_for_none(tmp_path: Path) -> None:
    metadata = write_safe(tmp_path / "in") / "MTD_MSIL2A.xml"
    metadata.write_text(metadata.read_text().replace('<BOA_ADD_OFFSET band_id="3">-1003</BOA_ADD_OFFSET>', ""))
    with pytest.raises(SceneRefusedError, match="state offsets, but none of B04"):
        inventory(tmp_path, "*.SAFE")


def test_a_scene_folder_that_is_itself_a_product(tmp_path: Path) -> None:
    safe = write_safe(tmp_path)
    take_inventory(config(safe, "MTD_MSI*.xml"), tmp_path / "out", RecordingReporter())
    assert list(usable_scenes(tmp_path / "out")) == [SAFE.removesuffix(".SAFE")]


def test_a_cloud_mask_that_does_not_fit_ends_the_scene(tmp_path: Path) -> None:
    safe = write_safe(tmp_path / "in")
    write_raster(
        next(safe.rglob("*SCL_20m.jp2")),
        np.zeros((12, 12), np.uint8),
        "EPSG:32632",
        Affine(20, 0, 600020, 0, -20, 5100000),
        driver="JP2OpenJPEG",
    )
    with pytest.raises(SceneRefusedError, match="its cloud mask .* does not lie on its grid"):
        inventory(tmp_path, "*.SAFE")


# --- Landsat

L8 = "LC08_L2SP_038034_20150818_20200908_02_T1"
L7 = "LE07_L2SP_028030_20010817_20200912_02_T1"


def write_landsat(
    folder: Path, product: str, form: str, numbers: tuple[int, ...] = (1, 2, 3, 4, 5, 7), **changes: str
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    spacecraft = f"LANDSAT_{int(product[2:4])}"
    contents = {"LANDSAT_PRODUCT_ID": product, "COLLECTION_NUMBER": "02"}
    contents |= {f"FILE_NAME_BAND_{n}": f"{product}_SR_B{n}.TIF" for n in numbers}
    contents |= {
        "FILE_NAME_QUALITY_L1_PIXEL": f"{product}_QA_PIXEL.TIF",
        "FILE_NAME_BAND_ST_B10": f"{product}_ST_B10.TIF",
    }
    groups = {
        "PRODUCT_CONTENTS": contents | {k: v for k, v in changes.items() if k.startswith("FILE")},
        "IMAGE_ATTRIBUTES": {"SPACECRAFT_ID": spacecraft, "SENSOR_ID": "OLI_TIRS", "DATE_ACQUIRED": "2015-08-18"}
        | {k: v for k, v in changes.items() if not k.startswith(("FILE", "REFLECTANCE"))},
        "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS": {f"REFLECTANCE_MULT_BAND_{n}": "2.75e-05" for n in numbers}
        | {f"REFLECTANCE_ADD_BAND_{n}": f"-0.{n}" for n in numbers}
        | {k: v for k, v in changes.items() if k.startswith("REFLECTANCE")},
        # The level 1 record repeats keys with other values.
        "LEVEL1_PROCESSING_RECORD": {"LANDSAT_PRODUCT_ID": "other", "FILE_NAME_BAND_4": "other.TIF"},
        "LEVEL1_RADIOMETRIC_RESCALING": {f"REFLECTANCE_MULT_BAND_{n}": "9" for n in numbers},
    }
    path = folder / f"{product}_MTL.{form}"
    if form == "json":
        path.write_text(json.dumps({"LANDSAT_METADATA_FILE": groups}))
    elif form == "xml":
        body = "".join(f"<{g}>{''.join(f'<{k}>{v}</{k}>' for k, v in kv.items())}</{g}>" for g, kv in groups.items())
        path.write_text(f"<LANDSAT_METADATA_FILE>{body}</LANDSAT_METADATA_FILE>")
    else:
        body = ""
        for group, entries in groups.items():
            lines = "".join(f'    {key} = "{value}"\n' for key, value in entries.items())
            body += f"  GROUP = {group}\n{lines}  END_GROUP = {group}\n"
        path.write_text(f"GROUP = LANDSAT_METADATA_FILE\n{body}END_GROUP = LANDSAT_METADATA_FILE\nEND\n")
    for n in numbers:
        pixels = np.full((16, 16), 7000 + n, np.uint16)
        pixels[:2] = 0
        write_raster(folder / f"{product}_SR_B{n}.TIF", pixels, "EPSG:32612", Affine(30, 0, 300000, 0, -30, 4100000))
    quality = np.zeros((16, 16), np.uint16)
    quality[3] = 1 << np.arange(16, dtype=np.uint16)
    write_raster(folder / f"{product}_QA_PIXEL.TIF", quality, "EPSG:32612", Affine(30, 0, 300000, 0, -30, 4100000))


@pytest.mark.parametrize("form", ["txt", "xml", "json"])
def test_landsat_collection_2(tmp_path: Path, form: str) -> None:
    write_landsat(tmp_path / "in", L8, form, (1, 2, 3, 4, 5, 6, 7))
    (scene,) = inventory(tmp_path).values()
    assert (scene.scene_id, scene.product_id, scene.product) == (L8, L8, "landsat_c2")
    assert (scene.sensor, scene.acquired) == ("LANDSAT_8_OLI_TIRS", "2015-08-18")
    assert scene.bands == ("coastal", "blue", "green", "red", "nir", "swir1", "swir2")
    assert scene.scales == (2.75e-5,) * 7
    assert scene.offsets == (-0.1, -0.2, -0.3, -0.4, -0.5, -0.6, -0.7)
    with open_scene(tmp_path / "in", scene, ["red", "blue"]) as reader:
        pixels, valid = reader.read(0, 16)
        cloud = reader.read_cloud(0, 16)
    assert pixels[:, 5, 5].tolist() == [7004, 7002]
    assert (~valid).sum() == 2 * 16  # fill
    assert list(zip(*cloud.nonzero(), strict=True)) == [
        (3, 1),
        (3, 2),
        (3, 3),
        (3, 4),
    ]  # dilated, cirrus, cloud, shadow


def test_colours_of_older_landsats_have_other_numbers(tmp_path: Path) -> None:
    write_landsat(tmp_path / "in", L7, "txt")
    write_landsat(tmp_path / "in", L7, "json")  # both forms lie in a delivered folder: still one scene
    (scene,) = inventory(tmp_path, "*_MTL.*", bands=("red", "green", "blue")).values()
    with open_scene(tmp_path / "in", scene, ["red", "blue"]) as reader:
        assert reader.read(8, 1)[0][:, 0, 0].tolist() == [7003, 7001]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"FILE_NAME_BAND_4": "../../secret.TIF"}, "expected the name of a file beside it"),
        ({"FILE_NAME_BAND_4": "/etc/passwd"}, "expected the name of a file beside it"),
        ({"SPACECRAFT_ID": "LANDSAT_1"}, r"LANDSAT_1 .* found, expected TM, ETM\+ or OLI"),
        ({"DATE_ACQUIRED": "2015-13-40"}, "carries the date 2015-13-40, which does not exist"),
        ({"FILE_NAME_BAND_4": "gone.TIF"}, r"no file of band\(s\) red"),
        ({"REFLECTANCE_ADD_BAND_4": "N/A"}, "no usable reflectance factor of every band"),
    ],
)
def test_landsat_metadata_that_mislead_end_the_scene(tmp_path: Path, changes: dict[str, str], reason: str) -> None:
    write_landsat(tmp_path / "in", L8, "json", **changes)
    with pytest.raises(SceneRefusedError, match=reason):
        inventory(tmp_path, "*_MTL.json", bands=("red", "green", "blue"))


@pytest.mark.real_data
def test_real_landsat_pixels_under_their_names(real_data: Path, tmp_path: Path) -> None:
    """Zion's real bands as a delivered product: vegetation shines in near infrared, sky scatters blue."""
    product, source = "LC08_L1TP_038034_20150818_20200908_02_T1", real_data / "scenes" / "zion_landsat8_nlcd"
    contents = {"LANDSAT_PRODUCT_ID": product, "COLLECTION_NUMBER": "02"}
    (tmp_path / "in").mkdir()
    for number in (2, 3, 4, 5):
        contents[f"FILE_NAME_BAND_{number}"] = name = f"{product}_B{number}.TIF"
        (tmp_path / "in" / name).symlink_to(source / f"landsat8_b{number}.tif")
    image = {"SPACECRAFT_ID": "LANDSAT_8", "SENSOR_ID": "OLI_TIRS", "DATE_ACQUIRED": "2015-08-18"}
    groups = {"PRODUCT_CONTENTS": contents, "IMAGE_ATTRIBUTES": image}
    (tmp_path / "in" / f"{product}_MTL.json").write_text(json.dumps({"LANDSAT_METADATA_FILE": groups}))
    (scene,) = inventory(tmp_path, "*_MTL.json").values()
    assert scene.bands == ("blue", "green", "red", "nir")
    with open_scene(tmp_path / "in", scene, ["nir", "red", "blue"]) as reader:
        pixels, valid = reader.read(0, scene.grid.height, decimation=4)
        assert reader.read_cloud(0, 8) is None  # no QA_PIXEL was delivered
    nir, red, blue = pixels[:, valid].astype(float)
    assert nir.mean() > 1.2 * red.mean()
    assert np.corrcoef(red, blue)[0, 1] > 0.8 > np.corrcoef(nir, blue)[0, 1]
    np.testing.assert_array_equal(valid, (pixels != 65535).all(axis=0) & pixels.any(axis=0))


# --- NAIP, and products as a whole


@pytest.mark.parametrize("alpha", ["YES", "NO"])
def test_naip_has_near_infrared_after_red_green_blue(tmp_path: Path, alpha: str) -> None:
    """Delivered files tag near infrared as transparency; taken so, dark water would be no data."""
    pixels = (BGRN // 2).astype(np.uint8)
    pixels[3, :4] = 0
    name = "m_3907833_nw_17_060_20180712_20190101.tif"
    write_raster(tmp_path / "in" / name, pixels, "EPSG:26917", UTM, photometric="RGB", ALPHA=alpha)
    (scene,) = inventory(tmp_path).values()
    assert (scene.sensor, scene.acquired, scene.bands) == ("NAIP", "2018-07-12", ("red", "green", "blue", "nir"))
    with open_scene(tmp_path / "in", scene, ["red", "nir"]) as reader:
        assert reader.read(0, 32)[1].all()


@pytest.mark.real_data
def test_real_naip_pixels_show_vegetation_in_near_infrared(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "scenes" / "garrett_md_naip_landsat_nlcd"
    cfg = config(folder, "*naip-new.tif", product="naip")
    take_inventory(cfg, tmp_path / "out", RecordingReporter())
    (scene,) = usable_scenes(tmp_path / "out").values()
    assert scene.bands == ("red", "green", "blue", "nir")
    with open_scene(folder, scene, ["red", "nir"]) as reader:
        red, nir = reader.read(0, scene.grid.height)[0].astype(float)
    assert nir.mean() > red.mean() + 10  # a wooded county in summer


def test_generic_takes_nothing_from_a_name(tmp_path: Path) -> None:
    write_raster(tmp_path / "in" / f"{GF1}-MSS1.tiff", BGRN, "EPSG:32648", UTM)
    (scene,) = inventory(tmp_path, product="generic").values()
    assert (scene.sensor, scene.acquired, scene.bands) == ("all", "", ("band1", "band2", "band3", "band4"))
    with pytest.raises(SceneRefusedError, match="not recognised as landsat_c2"):
        inventory(tmp_path, product="landsat_c2")
    write_raster(tmp_path / "in" / "plain.tiff", BGRN, "EPSG:32648", UTM)
    with pytest.raises(SceneRefusedError, match="not a Gaofen name"):
        inventory(tmp_path, "plain.tiff", product="gaofen")


def listed(config: ScenesConfig) -> dict[str, dict[str, Mark]]:
    """What the file system lists of each scene's files."""
    listing = Listing(config.folder)
    return {candidate.scene_id: listing.marks(candidate.roots) for candidate in discover(config).candidates}


def test_the_listing_follows_every_file_of_a_scene(tmp_path: Path) -> None:
    write_safe(tmp_path / "in")
    write_landsat(tmp_path / "in", L8, "json")
    write_raster(tmp_path / "in" / f"{GF1}-MSS1.tiff", BGRN, "EPSG:32648", UTM)
    cfg = config(tmp_path / "in")
    before = listed(cfg)
    assert len(before) == 3
    (tmp_path / "in" / f"{GF1}-MSS1.rpb").write_text("new")
    (tmp_path / "in" / f"{L8}_SR_B4.TIF").touch()
    after = listed(cfg)
    assert {scene for scene in before if before[scene] != after[scene]} == {f"{GF1}-MSS1", L8}
