"""Legends: the codes of the products, and refusals of legends that contradict themselves."""

from pathlib import Path

import pytest

from geokr_core.errors import ConfigError
from geokr_core.legend import COMMON_LEGENDS, EXCLUDED, UNKNOWN, UNLISTED, builtin_legends, load_legend

# One code of each common class, as published by each product.
PUBLISHED = {
    "globeland30": {10: "cultivated_land", 20: "forest", 30: "grassland", 40: "shrubland", 50: "wetland", 60: "water", 70: "tundra", 79: "tundra", 80: "artificial_surfaces", 90: "bareland", 100: "snow_ice"},
    "worldcover": {40: "cultivated_land", 10: "forest", 30: "grassland", 20: "shrubland", 90: "wetland", 80: "water", 50: "artificial_surfaces", 60: "bareland", 70: "snow_ice"},
    "nlcd": {82: "cultivated_land", 42: "forest", 71: "grassland", 52: "shrubland", 95: "wetland", 11: "water", 23: "artificial_surfaces", 31: "bareland", 12: "snow_ice"},
    "mcd12_igbp": {12: "cultivated_land", 2: "forest", 10: "grassland", 7: "shrubland", 11: "wetland", 0: "water", 13: "artificial_surfaces", 16: "bareland", 15: "snow_ice"},
    "io_lulc": {5: "cultivated_land", 2: "forest", 11: "grassland", 4: "wetland", 1: "water", 7: "artificial_surfaces", 8: "bareland", 9: "snow_ice"},
}  # fmt: skip


@pytest.mark.parametrize("name", builtin_legends())
def test_published_codes_map_to_their_class(name: str) -> None:
    common = COMMON_LEGENDS["globeland30"]
    lookup = load_legend(name).lookup(common)
    for code, expected in PUBLISHED[name].items():
        assert common.classes[lookup[code]] == expected


def test_no_data_sea_and_unlisted_codes_are_told_apart() -> None:
    lookup = load_legend("globeland30").lookup(COMMON_LEGENDS["globeland30"])
    assert (lookup[0], lookup[255], lookup[61]) == (UNKNOWN, EXCLUDED, UNLISTED)


def test_the_eight_classes_leave_out_shrubland_and_tundra() -> None:
    eight = COMMON_LEGENDS["geokr8"]
    assert len(eight.classes) == 8
    lookup = load_legend("globeland30").lookup(eight)
    assert lookup[40] == lookup[70] == EXCLUDED
    assert eight.digest != COMMON_LEGENDS["globeland30"].digest


def test_a_legend_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "{name: own, licence: x, source: x, nodata: [0], classes: [{code: 0, name: a, common: forrest}, {code: 300, name: b}]}"
    )
    with pytest.raises(
        ConfigError, match=r"outside 0–255: \[300\]; codes listed twice: \[0\]; unknown common classes: \['forrest'\]"
    ):
        load_legend(str(path))
    with pytest.raises(ConfigError, match="neither a built-in legend .*globeland30.* nor a file"):
        load_legend("globeland")
