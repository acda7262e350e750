"""Legends: the codes of the products, how their tiles are named, and refusals of legends that contradict themselves."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geokr_core.errors import ConfigError
from geokr_core.land_cover.legend import (
    COMMON_LEGENDS,
    CommonLegend,
    builtin_legends,
    common_legend,
    load_legend,
)
from geokr_core.land_cover.slots import EXCLUDED, MAX_CLASSES, SEA, UNKNOWN, UNLISTED
from geokr_core.step.plugins import plugins

GLOBELAND30, GEOKR8 = COMMON_LEGENDS["globeland30"], COMMON_LEGENDS["geokr8"]
ROOT = Path(__file__).resolve().parents[2]

# Codes as published by each product, beside the product's files; every common class that the product has.
PUBLISHED = {
    "globeland30": {
        10: "cultivated_land",
        20: "forest",
        30: "grassland",
        40: "shrubland",
        50: "wetland",
        60: "water",
        70: "tundra",
        79: "tundra",
        80: "artificial_surfaces",
        90: "bareland",
        100: "snow_ice",
    },
    "worldcover": {
        40: "cultivated_land",
        10: "forest",
        30: "grassland",
        20: "shrubland",
        90: "wetland",
        95: "wetland",
        80: "water",
        50: "artificial_surfaces",
        60: "bareland",
        70: "snow_ice",
        100: "tundra",
    },
    "esri_annual": {
        5: "cultivated_land",
        2: "forest",
        11: "grassland",
        3: "grassland",
        6: "shrubland",
        4: "wetland",
        1: "water",
        7: "artificial_surfaces",
        8: "bareland",
        9: "snow_ice",
    },
    "dynamic_world": {
        4: "cultivated_land",
        1: "forest",
        2: "grassland",
        5: "shrubland",
        3: "wetland",
        0: "water",
        6: "artificial_surfaces",
        7: "bareland",
        8: "snow_ice",
    },
    "nlcd": {
        82: "cultivated_land",
        81: "cultivated_land",
        42: "forest",
        71: "grassland",
        52: "shrubland",
        95: "wetland",
        11: "water",
        21: "artificial_surfaces",
        24: "artificial_surfaces",
        31: "bareland",
        12: "snow_ice",
        72: "tundra",
    },
    "corine": {
        12: "cultivated_land",
        211: "cultivated_land",
        23: "forest",
        313: "forest",
        26: "grassland",
        27: "shrubland",
        35: "wetland",
        41: "water",
        1: "artificial_surfaces",
        142: "artificial_surfaces",
        31: "bareland",
        34: "snow_ice",
    },
    "glc_fcs30d": {
        10: "cultivated_land",
        20: "cultivated_land",
        52: "forest",
        92: "forest",
        130: "grassland",
        121: "shrubland",
        181: "wetland",
        187: "wetland",
        210: "water",
        190: "artificial_surfaces",
        202: "bareland",
        220: "snow_ice",
        140: "tundra",
    },
    "mcd12_igbp": {
        12: "cultivated_land",
        2: "forest",
        10: "grassland",
        7: "shrubland",
        11: "wetland",
        0: "water",
        17: "water",
        13: "artificial_surfaces",
        16: "bareland",
        15: "snow_ice",
    },
    "cgls_lc100": {
        40: "cultivated_land",
        111: "forest",
        126: "forest",
        30: "grassland",
        20: "shrubland",
        90: "wetland",
        80: "water",
        50: "artificial_surfaces",
        60: "bareland",
        70: "snow_ice",
        100: "tundra",
    },
}


@pytest.mark.parametrize("name", builtin_legends())
def test_published_codes_map_to_their_class(name: str) -> None:
    slots = load_legend(name).slots(GLOBELAND30)
    for code, expected in PUBLISHED[name].items():
        assert GLOBELAND30.classes[slots[code]] == expected
    portable = {GEOKR8.classes[slot] for slot in load_legend(name).slots(GEOKR8).values() if slot < UNLISTED}
    assert portable == set(GEOKR8.classes), "the eight classes are those that every product has"


@pytest.mark.parametrize("name", builtin_legends())
def test_a_product_says_all_that_is_to_be_known_of_it(name: str) -> None:
    legend = load_legend(name)
    for field in ("licence", "source", "crs", "resolution_m", "editions", "tile_name"):
        assert getattr(legend, field), field
    assert legend.editions == tuple(sorted(set(legend.editions)))
    assert legend.nodata, "a product without a code for no data would make gaps an error"
    assert all(entry.colour for entry in legend.classes)
    assert f"`{name}`" in (ROOT / "docs" / "land-cover.md").read_text()


def test_no_data_sea_left_out_and_unlisted_codes_are_told_apart() -> None:
    slots = load_legend("globeland30").slots(GEOKR8)
    assert (slots[0], slots[255], slots[40], slots.get(61)) == (UNKNOWN, SEA, EXCLUDED, None)
    assert {load_legend("corine").slots(GEOKR8)[code] for code in (44, 523)} == {SEA}
    assert load_legend("cgls_lc100").slots(GEOKR8)[200] == SEA
    assert len({UNLISTED, UNKNOWN, SEA, EXCLUDED}) == 4
    assert min(UNLISTED, UNKNOWN, SEA, EXCLUDED) >= MAX_CLASSES


def test_the_eight_classes_leave_out_shrubland_and_tundra() -> None:
    assert set(GLOBELAND30.classes) - set(GEOKR8.classes) == {"shrubland", "tundra"}
    assert len(GEOKR8.classes) == 8
    assert GEOKR8.digest != GLOBELAND30.digest


# Names as the products' own documents and archives show them.
NAMES = {
    "globeland30": {"n48_30_2020lc030.tif": 2020, "N48_30_2010LC030.tif": 2010, "S21_15_2000LC030.tif": 2000},
    "worldcover": {
        "ESA_WorldCover_10m_2021_v200_N00E006_Map.tif": 2021,
        "ESA_WorldCover_10m_2020_v100_S03W060_Map.tif": 2020,
    },
    "esri_annual": {"54R_20200101-20210101.tif": 2020, "01C_20170101-20180101.tif": 2017},
    "dynamic_world": {"20160711T084022_20160711T084751_T35PKT.tif": 2016},
    "nlcd": {
        "Annual_NLCD_LndCov_2023_CU_C1V0.tif": 2023,
        "nlcd_2011_land_cover_l48_20210604.img": 2011,
        "nlcd2011.tif": 2011,
    },
    "corine": {"U2018_CLC2018_V2020_20u1.tif": 2018, "g100_clc12_V18_5.tif": 2012, "g100_clc90_V18_5.tif": 1990},
    "mcd12_igbp": {
        "MCD12C1.A2019001.006.2020220162300.tif": 2019,
        "MCD12Q1.A2001001.h00v08.006.2018142182903.tif": 2001,
    },
    "cgls_lc100": {
        "E020N40_PROBAV_LC100_global_v3.0.1_2019-nrt_Discrete-Classification-map_EPSG-4326.tif": 2019,
        "PROBAV_LC100_global_v3.0.1_2015-base_Discrete-Classification-map_EPSG-4326.tif": 2015,
    },
}


@pytest.mark.parametrize("name", sorted({*builtin_legends()} - {"glc_fcs30d"}))
def test_tile_names_give_the_year(name: str) -> None:
    legend = load_legend(name)
    for file, year in NAMES[name].items():
        assert legend.year_of(file) == year
        assert year in legend.editions
    for other in ("clc_32632.tif", "tile.tif", "map_20150818.tif"):
        assert legend.year_of(other) is None
    assert legend.named(next(iter(NAMES[name]))).get("zone") == {
        "globeland30": "48",
        "esri_annual": "54",
        "dynamic_world": "35",
    }.get(name)


def test_bands_of_glc_fcs30d_are_years() -> None:
    legend = load_legend("glc_fcs30d")
    annual = legend.years_of_bands("GLC_FCS30D_20002022_E105N35_Annual_V1.1.tif")
    assert annual == tuple(range(2000, 2023))
    assert legend.years_of_bands("GLC_FCS30D_19852000_E105N35_5years_V1.1.tif") == (1985, 1990, 1995)
    assert legend.years_of_bands("E105N35.tif") == ()
    assert {*annual, 1985, 1990, 1995} == set(legend.editions)


def test_a_csv_legend_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(
        'code,name,colour,common\n-7,"Maize, irrigated",#a0b0c0,cultivated_land\n1100,Teak,,forest\n3,Quarry,,\n0,,,nodata\n9,open sea,,sea\n\n'
    )
    slots = load_legend(str(path)).slots(GLOBELAND30)
    assert slots == {-7: 0, 1100: 1, 3: EXCLUDED, 0: UNKNOWN, 9: SEA}
    # As a spreadsheet of another country saves it: byte-order mark, semicolons, names of any script.
    path.write_text("code;name\n1;Ackerland\n2;Grünland\n3;耕地\n", encoding="utf-8-sig")
    assert load_legend(str(path)).own.classes == ("ackerland", "grünland", "耕地")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-(2**31), 2**31 - 1), st.sampled_from([*GLOBELAND30.classes, "", "nodata", "sea"])),
        min_size=1,
        unique_by=lambda row: row[0],
        max_size=30,
    )
)
def test_every_code_of_a_csv_legend_gets_the_slot_it_names(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str]]
) -> None:
    if all(common in ("nodata", "sea") for _, common in rows):
        return
    path = tmp_path_factory.mktemp("legend") / "mine.csv"
    path.write_text("code,name,common\n" + "".join(f"{code},class {code},{common}\n" for code, common in rows))
    words = {"nodata": UNKNOWN, "sea": SEA, "": EXCLUDED}
    expected = {c: words[k] if k in words else GLOBELAND30.classes.index(k) for c, k in rows}
    if any(slot < UNLISTED for slot in expected.values()):
        assert load_legend(str(path)).slots(GLOBELAND30) == expected


def test_a_product_can_be_described_by_its_own_classes() -> None:
    tiles = load_legend("globeland30")
    own = common_legend("own", [tiles, tiles])
    assert own == tiles.own
    assert own.is_own
    assert own.classes.count("tundra") == 1, "codes 70 to 79 are one class"
    assert own.colours[own.classes.index("permanent_snow_and_ice")] == "#C8F0FF"
    slots = tiles.slots(own)
    assert {slots[code] for code in range(70, 80)} == {own.classes.index("tundra")}
    assert (slots[0], slots[255]) == (UNKNOWN, SEA)
    assert own.digest != GLOBELAND30.digest
    assert load_legend("nlcd").own.classes[3] == "developed_low_intensity"
    # Every name can be part of a column name, and every colour can be told from the others.
    for name in builtin_legends():
        classes = load_legend(name).own.classes
        assert all(re.fullmatch(r"[a-z0-9_]+", entry) for entry in classes)
        assert len(set(classes)) == len(classes)
    with pytest.raises(ConfigError, match=r"different legends \(GlobeLand30, NLCD\), which share no classes"):
        common_legend("own", [tiles, load_legend("nlcd")])


def test_classes_without_a_colour_get_distinct_ones(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("code,name\n" + "".join(f"{k},class {k}\n" for k in range(40)))
    own = load_legend(str(path)).own
    assert len(set(own.colours)) == 40
    with pytest.raises(
        ConfigError, match="none of its classes belongs to a class of 'geokr8'.*`land_cover.legend: own`"
    ):
        common_legend("geokr8", [load_legend(str(path))])


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "x.yaml",
            "{name: x, licence: x, source: x, nodata: [0], classes: [{code: 0, name: a}]}",
            r"codes listed twice: \[0\]",
        ),
        (
            "x.yaml",
            "{name: x, licence: x, source: x, sea: [4], classes: [{code: 3, also: [4], name: a}]}",
            r"codes listed twice: \[4\]",
        ),
        (
            "x.yaml",
            "{name: x, licence: x, source: x, classes: [{code: 1, name: a, common: forrest}]}",
            "classes.0.common: no such common class; use one of cultivated_land",
        ),
        ("x.yaml", "{name: x, licence: x, source: x, classes: [{code: 1, name: a, colour: red}]}", "classes.0.colour"),
        (
            "x.yaml",
            "{name: x, licence: x, source: x, tile_name: '(', classes: [{code: 1, name: a}]}",
            "not a regular expression",
        ),
        (
            "x.yaml",
            "{name: x, licence: x, source: x, year_bands: [{num_bands: 3}], classes: [{code: 1, name: a}]}",
            "give the first year",
        ),
        (
            "x.yaml",
            "{name: x, licence: x, source: x, nodatta: [0], classes: [{code: 1, name: a}]}",
            "nodatta: unknown key. Did you mean `nodata`",
        ),
        ("x.yaml", "name: [", "not valid YAML"),
        ("x.csv", "code;common\n1;forest\n", r"columns \['code', 'common'\] found, expected code and name"),
        ("x.csv", "code,name,common\n1,maize, irrigated,forest\n", "line 2 has more cells than the header"),
        ("x.csv", "code,name,common\n1.5,maize,forest\n", "classes.0.code"),
        ("x.csv", "code,name,common\n,filler,nodata\n", "nodata.0"),
    ],
)
def test_a_legend_that_contradicts_itself_is_refused(tmp_path: Path, file: str, text: str, message: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_legend(str(tmp_path / file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("code,name\n1,a-b\n2,a b\n", "'a-b' and 'a b' cannot be two classes"),
        ("code,name\n1,—\n", "'—' and '—' cannot be two"),
        ("code,name\n" + "".join(f"{k},class {k}\n" for k in range(253)), "253 classes found, at most 252"),
    ],
)
def test_own_classes_must_be_distinct_columns_and_fit_in_a_byte(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    legend = load_legend(str(tmp_path / "x.csv"))
    with pytest.raises(ConfigError, match=message):
        common_legend("own", [legend])


def test_what_is_no_legend_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="no legend 'globeland'; did you mean 'globeland30'.*nor is there such a file"
    ):
        load_legend("globeland")
    (tmp_path / "x.csv").write_bytes("code,name\n1,Grünland\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"x\.csv: not UTF-8"):
        load_legend(str(tmp_path / "x.csv"))


def test_the_digest_tells_sets_of_classes_apart() -> None:
    assert CommonLegend("own: a", ("x", "y"), ("", "")).digest != CommonLegend("own: a", ("y", "x"), ("", "")).digest


def test_a_package_brings_a_legend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an entry point of an installed package does; the toy package is found on the path like any other."""
    (tmp_path / "toy_package.py").write_text(
        "from pathlib import Path\n"
        "FILE = Path(__file__).with_name('crops.csv')\n"
        "def file():\n    return str(FILE)\n"
        "NOTHING = 3\n"
    )
    (tmp_path / "crops.csv").write_text("code,name,common\n1,maize,cultivated_land\n2,teak,forest\n")
    info = tmp_path / "toy_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-package\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[geokr.legends]\ncrops = toy_package:FILE\nlater = toy_package:file\nwrong = toy_package:NOTHING\n"
        "worldcover = toy_package:FILE\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plugins.cache_clear()
    try:
        assert load_legend("crops").slots(GLOBELAND30) == {1: 0, 2: 1}
        assert load_legend("later").classes == load_legend("crops").classes
        assert load_legend("worldcover").name == "ESA WorldCover", "a name of our own always wins"
        with pytest.raises(ConfigError, match="'wrong' names 3, expected the path of a legend file"):
            load_legend("wrong")
        with pytest.raises(ConfigError, match="did you mean 'crops'"):
            load_legend("crop")
    finally:
        plugins.cache_clear()
