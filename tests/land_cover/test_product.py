"""The index of land-cover tiles: where they lie, of which year they are, and what their codes become."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.windows import Window

from geokr_core.errors import ConfigError, LandCoverError, UnknownLegendCodeError
from geokr_core.land_cover.config import LandCoverConfig
from geokr_core.land_cover.product import LandCover, Product, Tile, open_land_cover, read_slots, slots_of
from geokr_core.land_cover.slots import CODE_TYPES, EXCLUDED, SEA, UNKNOWN
from geokr_core.land_cover.tile_index import index_products
from geokr_core.step.reporter import RecordingReporter
from geokr_core.step.summary import Summary
from geokr_core.testing import write_raster

UTM48 = Affine(30, 0, 500000, 0, -30, 3300000)
DEGREES = Affine(0.01, 0, 105, 0, -0.01, 35)


def tile(
    path: Path, pixels: np.ndarray | int = 20, crs: str = "EPSG:32648", at: Affine = UTM48, **more: object
) -> Path:
    pixels = np.full((8, 8), pixels, np.uint8) if isinstance(pixels, int) else pixels
    return write_raster(path, pixels, crs, at, **more)


def index(tmp_path: Path, legend: str = "globeland30", common: str = "globeland30", **product: object) -> Summary:
    entry = {"name": "lc", "files": "**/*.tif", "legend": legend, **product}
    config = LandCoverConfig.model_validate({"folder": tmp_path / "lc", "products": [entry], "legend": common})
    return index_products(config, tmp_path / "index", RecordingReporter())


def opened(tmp_path: Path) -> Product:
    return open_land_cover(tmp_path / "index").products["lc"]


def whole(tmp_path: Path, one: Tile) -> np.ndarray:
    return read_slots(tmp_path / "lc", one, opened(tmp_path), Window(0, 0, one.grid.width, one.grid.height))


# ---- Years -------------------------------------------------------------------------------------------------------


@pytest.fixture
def three_editions(tmp_path: Path) -> Product:
    for year in (2000, 2010, 2020):
        tile(tmp_path / "lc" / f"n48_30_{year}lc030.tif", {2000: 20, 2010: 30, 2020: 80}[year])
    index(tmp_path)
    return opened(tmp_path)


@pytest.mark.parametrize(
    ("acquired", "year"),
    [
        ("1987-05-01", 2000),
        ("2004-08-15", 2000),
        ("2005-06-30", 2000),
        ("2005-07-03", 2010),
        ("2014-12-31", 2010),
        ("2015-08-18", 2020),
        ("2031-01-01", 2020),
        ("", 2020),
    ],
)
def test_the_edition_is_the_one_whose_middle_is_nearest(three_editions: Product, acquired: str, year: int) -> None:
    assert three_editions.years == (2000, 2010, 2020)
    assert three_editions.edition(acquired) == year
    assert [t.file for t in three_editions.tiles_in(year)] == [f"n48_30_{year}lc030.tif"]


def test_the_gap_is_counted_from_the_middle_of_the_edition(tmp_path: Path) -> None:
    for year in (2020, 2021):
        tile(tmp_path / "lc" / f"ESA_WorldCover_10m_{year}_v100_N00E006_Map.tif")
    index(tmp_path, legend="worldcover")
    product = opened(tmp_path)
    # 365 days lie between the first of July of either year.
    assert (product.gap_days("2020-12-30", 2020), product.gap_days("2020-12-30", 2021)) == (182.0, -183.0)
    assert product.edition("2020-12-31") == 2021
    assert np.isnan(product.gap_days("", 2020))
    assert product.tiles_in(1999) == ()
    tile(tmp_path / "lc" / "ESA_WorldCover_10m_2024_v300_N00E006_Map.tif")
    summary = index(tmp_path, legend="worldcover")
    assert opened(tmp_path).years == (2020, 2021, 2024)
    assert any("2024 is not among the editions" in warning for warning in summary.warnings)


def test_a_tie_goes_to_the_earlier_edition(tmp_path: Path) -> None:
    for year in (2021, 2023):
        tile(tmp_path / "lc" / f"54R_{year}0101-{year + 1}0101.tif", 2)
    index(tmp_path, legend="esri_annual")
    product = opened(tmp_path)
    assert product.gap_days("2022-07-01", 2021) == -product.gap_days("2022-07-01", 2023) == 365.0
    assert product.edition("2022-07-01") == 2021
    assert product.edition("2022-07-02") == 2023


def test_a_scene_is_described_by_the_edition_of_its_time(tmp_path: Path, three_editions: Product) -> None:
    from geokr_core.proportions.config import ProportionsConfig
    from geokr_core.proportions.labels import count_rows

    row = {
        "chip_id": "c",
        "crs_wkt": three_editions.tiles[0].grid.wkt,
        "transform": [15.0, 0.0, 500030.0, 0.0, -15.0, 3299970.0],
        "size_px": 8,
        "lon": 105.0,
        "lat": 29.83,
        "land_cover": "lc",
    }
    land_cover = open_land_cover(tmp_path / "index")
    for acquired, year, name in (
        ("2003-07-01", 2000, "forest"),
        ("2011-07-01", 2010, "grassland"),
        ("", 2020, "artificial_surfaces"),
    ):
        counted = count_rows(
            ProportionsConfig(), tmp_path / "lc", land_cover, pd.DataFrame([{**row, "acquired": acquired}])
        )
        assert counted["edition_year"].tolist() == [year]
        assert counted[f"fraction_{name}"].tolist() == pytest.approx([1.0])


def test_bands_are_years_where_the_product_says_so(tmp_path: Path) -> None:
    five = np.stack([np.full((8, 8), code, np.uint8) for code in (10, 130, 210)])
    tile(tmp_path / "lc" / "GLC_FCS30D_19852000_E105N35_5years_V1.1.tif", five, "EPSG:4326", DEGREES)
    annual = np.stack([np.full((8, 8), 52 if band % 2 else 190, np.uint8) for band in range(23)])
    tile(tmp_path / "lc" / "GLC_FCS30D_20002022_E105N35_Annual_V1.1.tif", annual, "EPSG:4326", DEGREES)
    summary = index(tmp_path, legend="glc_fcs30d")
    assert (summary.numbers["num_tiles"], summary.numbers["num_tile_years"]) == (2, 26)
    product = opened(tmp_path)
    assert product.years == (1985, 1990, 1995, *range(2000, 2023))
    classes = open_land_cover(tmp_path / "index").legend.classes
    for acquired, year, band, name in (
        ("1991-01-01", 1990, 2, "grassland"),
        ("2013-07-01", 2013, 14, "forest"),
        ("", 2022, 23, "artificial_surfaces"),
    ):
        assert product.edition(acquired) == year
        (one,) = product.tiles_in(year)
        assert one.band == band
        assert (whole(tmp_path, one) == classes.index(name)).all()
    index(tmp_path, legend="glc_fcs30d", files="*Annual*.tif", year=2005)
    assert [(t.year, t.band) for t in opened(tmp_path).tiles] == [(2005, 6)]
    with pytest.raises(ConfigError, match=r"year: 1999 is none of the years of .*_Annual_V1\.1\.tif"):
        index(tmp_path, legend="glc_fcs30d", files="*Annual*.tif", year=1999)


def test_bands_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    two = np.full((2, 8, 8), 10, np.uint8)
    tile(tmp_path / "lc" / "GLC_FCS30D_20002022_E105N35_Annual_V1.1.tif", two, "EPSG:4326", DEGREES)
    with pytest.raises(LandCoverError, match=r"2 bands found, expected 23 by its name \(years 2000 … 2022\)"):
        index(tmp_path, legend="glc_fcs30d")
    index(tmp_path, legend="glc_fcs30d", band=2, year=2010)
    assert [(t.year, t.band) for t in opened(tmp_path).tiles] == [(2010, 2)]
    with pytest.raises(LandCoverError, match="2 bands found, expected one band of codes"):
        index(tmp_path, legend="worldcover", year=2020)
    with pytest.raises(LandCoverError, match="band 3 of product 'lc' expected"):
        index(tmp_path, legend="worldcover", year=2020, band=3)


def test_without_any_sign_of_the_year_it_must_be_given(tmp_path: Path) -> None:
    tile(tmp_path / "lc" / "map.tif")
    with pytest.raises(ConfigError, match=r"products\.lc: no `year`, and map\.tif does not give it"):
        index(tmp_path)
    assert any("year` is 2010, the names say 2020" in w for w in _named_2020(tmp_path).warnings)
    assert opened(tmp_path).years == (2010,)


def _named_2020(tmp_path: Path) -> Summary:
    (tmp_path / "lc" / "map.tif").rename(tmp_path / "lc" / "n48_30_2020lc030.tif")
    return index(tmp_path, year=2010)


# ---- Places ------------------------------------------------------------------------------------------------------


def test_footprints_are_real_whatever_the_names_say(tmp_path: Path) -> None:
    # The name says zone 13 at 60° south; the file lies in zone 48 at 30° north.
    tile(tmp_path / "lc" / "S13_60_2020LC030.tif", np.full((1000, 1000), 20, np.uint8))
    tile(tmp_path / "lc" / "renamed copy.tif", 20, at=Affine(30, 0, 600000, 0, -30, 3300000))
    warnings = index(tmp_path, year=2020).warnings
    assert any("the name's UTM zone is not the file's" in w and "S13_60_2020LC030.tif" in w for w in warnings)
    assert any("not named like a tile of GlobeLand30" in w and "renamed copy.tif" in w for w in warnings)
    (one,) = (t for t in opened(tmp_path).tiles if t.file.startswith("S13"))
    assert one.footprint.contains(shapely.Point(105.1, 29.7))
    west, south, east, north = one.footprint.bounds
    assert (east - west, north - south) == pytest.approx((0.31, 0.27), abs=0.01)
    table = pd.read_parquet(tmp_path / "index" / "tiles.parquet")
    assert {"band", "year", "nodata", "md5", "file", "product"} <= set(table.columns)
    import geopandas as gpd

    assert gpd.read_parquet(tmp_path / "index" / "tiles.parquet").crs.to_epsg() == 4326


def test_tiles_across_the_antimeridian_and_round_a_pole_have_an_outline(tmp_path: Path) -> None:
    tile(
        tmp_path / "lc" / "dateline.tif",
        np.full((100, 100), 20, np.uint8),
        "EPSG:32601",
        Affine(3000, 0, 100000, 0, -3000, 3300000),
    )
    tile(
        tmp_path / "lc" / "south.tif",
        np.full((100, 100), 90, np.uint8),
        "EPSG:3031",
        Affine(20000, 0, -1e6, 0, -20000, 1e6),
    )
    # A tile of the MODIS sinusoidal grid of which the left half is beyond the edge of the earth.
    sinusoidal = "+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R=6371007.181 +units=m +no_defs"
    tile(
        tmp_path / "lc" / "edge.tif",
        np.full((100, 100), 10, np.uint8),
        sinusoidal,
        Affine(11119.5, 0, -15567307, 0, -11119.5, 6671703),
    )
    index(tmp_path, year=2020)
    at = {t.file: t.footprint for t in opened(tmp_path).tiles}
    assert at["dateline.tif"].bounds[2] - at["dateline.tif"].bounds[0] < 6
    assert at["dateline.tif"].bounds[0] < -180 or at["dateline.tif"].bounds[2] > 180
    assert at["south.tif"].is_valid
    assert at["south.tif"].bounds[1] == -90
    assert at["south.tif"].buffer(1e-9).contains(shapely.Point(float(np.mean(at["south.tif"].bounds[::2])), -89.0))
    assert np.isfinite(at["edge.tif"].bounds).all()


def test_an_unknown_datum_is_named_and_degrees_are_read_as_the_legend_says(tmp_path: Path) -> None:
    clarke = 'GEOGCS["unknown",DATUM["Unknown based on Clarke 1866 ellipsoid",SPHEROID["Clarke 1866",6378206.4,294.978698213898]],PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]]'
    codes = np.full((90, 180), 10, np.uint8)
    tile(tmp_path / "lc" / "MCD12C1.A2019001.006.tif", codes, clarke, Affine(2, 0, -180, 0, -2, 90))
    summary = index(tmp_path, legend="mcd12_igbp")
    assert summary.warnings == (
        "lc: datum 'Unknown based on Clarke 1866 ellipsoid' taken as EPSG:4326, as the legend of MODIS MCD12 (IGBP) says "
        "(1 file(s), e.g. MCD12C1.A2019001.006.tif)",
    )
    assert opened(tmp_path).tiles[0].grid.crs.to_epsg() == 4326
    # Another legend says nothing of it: the file is taken as it is, and that is said.
    (warning,) = (w for w in index(tmp_path, legend="nlcd", year=2019).warnings if "datum" in w)
    assert "taken as WGS 84 without a shift" in warning
    # Metres of a projection on an unknown sphere must not become degrees.
    (tmp_path / "lc" / "MCD12C1.A2019001.006.tif").unlink()
    tile(
        tmp_path / "lc" / "MCD12Q1.A2019001.h25v06.006.tif",
        10,
        "+proj=sinu +lon_0=0 +R=6371007.181 +units=m +no_defs",
        Affine(463.3, 0, 7783653, 0, -463.3, 3335851),
    )
    index(tmp_path, legend="mcd12_igbp")
    (one,) = opened(tmp_path).tiles
    assert not one.grid.crs.is_geographic
    assert 29.9 < one.footprint.bounds[3] < 30.1


def test_the_real_mcd12c1_lies_on_plain_longitude_and_latitude(tmp_path: Path, real_data: Path) -> None:
    folder = real_data / "scenes" / "global_bluemarble_mcd12c1"
    entry = {"name": "lc", "files": "MCD12C1.*.tif", "legend": "mcd12_igbp"}
    config = LandCoverConfig.model_validate({"folder": folder, "products": [entry]})
    reporter = RecordingReporter()
    (warning,) = index_products(config, tmp_path / "index", reporter).warnings
    assert "Clarke 1866" in warning
    assert reporter.warnings == [warning], "who looks on in a terminal must hear it too"
    product = opened(tmp_path)
    (one,) = product.tiles
    assert (one.year, one.grid.crs.to_epsg(), one.nodata) == (2019, 4326, 255)
    # Every code of the whole earth is listed; the Sahara is bare, Antarctica's middle ice.
    slots = read_slots(folder, one, product, Window(0, 0, 7200, 3600))
    classes = open_land_cover(tmp_path / "index").legend.classes
    at = {(23.0, 10.0): "bareland", (-85.0, 60.0): "snow_ice", (-3.0, -62.0): "forest", (0.0, -30.0): "water"}
    for (lat, lon), name in at.items():
        assert classes[slots[int((90 - lat) / 0.05), int((lon + 180) / 0.05)]] == name


# ---- Codes -------------------------------------------------------------------------------------------------------


def product_of(tmp_path: Path, rows: str, common: str = "globeland30", **file: object) -> LandCover:
    (tmp_path / "mine.csv").write_text("code,name,common\n" + rows)
    tile(tmp_path / "lc" / "map.tif", **file)  # type: ignore[arg-type]
    index(tmp_path, legend=str(tmp_path / "mine.csv"), common=common, year=2018)
    return open_land_cover(tmp_path / "index")


@pytest.mark.parametrize("dtype", CODE_TYPES)
def test_codes_of_every_integer_type_become_slots(tmp_path: Path, dtype: str) -> None:
    limits = np.iinfo(dtype)
    low, high = int(limits.min), int(limits.max)
    codes = np.array([[low, 5, high], [6, 5, 7]], dtype)
    meanings = f"{low},lowest,forest\n{high},highest,water\n5,five,cultivated_land\n6,six,\n"
    if high > 2**31 - 1:  # codes are 32-bit signed in a legend, which holds every code in use
        codes[codes == high] = 2**31 - 1
        meanings = meanings.replace(str(high), str(2**31 - 1))
    land_cover = product_of(tmp_path, meanings, pixels=codes, nodata=7)
    index_of = land_cover.legend.classes.index
    (one,) = land_cover.products["lc"].tiles
    expected = [
        [index_of("forest"), index_of("cultivated_land"), index_of("water")],
        [EXCLUDED, index_of("cultivated_land"), UNKNOWN],
    ]
    assert one.nodata == 7
    assert whole(tmp_path, one).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_slots_are_what_the_legend_says_code_by_code(data: st.DataObject) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(CODE_TYPES)))
    low, high = int(np.iinfo(dtype).min), min(int(np.iinfo(dtype).max), 2**31 - 1)
    slots = data.draw(
        st.dictionaries(st.integers(low, high), st.sampled_from([0, 1, 9, SEA, EXCLUDED, UNKNOWN]), min_size=1)
    )
    # Codes that the type cannot hold must not alias those that it can.
    slots |= (
        data.draw(
            st.dictionaries(st.integers(-(2**31), low - 1) | st.integers(high + 1, 2**32), st.just(3), max_size=3)
        )
        if low > -(2**31)
        else {}
    )
    fitting = [code for code in slots if low <= code <= high]
    codes = np.array(data.draw(st.lists(st.sampled_from(fitting), min_size=2, max_size=40)), dtype)
    product = Product(None, None, (), slots)  # type: ignore[arg-type]
    one = Tile("lc", "a.tif", 1, 2020, None, None, None)  # type: ignore[arg-type]
    view = np.stack([codes, codes])[:, ::2]  # not contiguous, as windows of an array are
    assert slots_of(view, one, product).tolist() == [[slots[int(code)] for code in codes[::2]]] * 2


def test_an_unlisted_code_names_file_codes_and_cells(tmp_path: Path) -> None:
    codes = np.full((8, 8), 1100, np.int16)
    codes[0, :3], codes[1, 0] = -5, 77
    land_cover = product_of(tmp_path, "1100,teak,forest\n0,filler,nodata\n", pixels=codes)
    (one,) = land_cover.products["lc"].tiles
    with pytest.raises(
        UnknownLegendCodeError, match=r"map\.tif: code\(s\) -5 \(3 cells\), 77 \(1 cells\) are not .*listed: 0, 1100"
    ):
        whole(tmp_path, one)
    with pytest.raises(LandCoverError, match="codes of float32 found"):
        slots_of(codes.astype(np.float32), one, land_cover.products["lc"])


def test_corine_of_both_numberings_and_signed_fillers(tmp_path: Path) -> None:
    old = np.array([[1, 44, -128], [23, 42, 48]], np.int8)
    new = np.array([[111, 523, 999], [311, 521, 990]], np.uint16)
    tile(tmp_path / "lc" / "clc2018.tif", old, nodata=-128)
    tile(tmp_path / "lc" / "clc2012.tif", new)
    index(tmp_path, legend="corine")
    product = opened(tmp_path)
    classes = open_land_cover(tmp_path / "index").legend.classes
    for one in product.tiles:
        slots = whole(tmp_path, one)
        assert [classes[s] for s in slots[:, 0]] == ["artificial_surfaces", "forest"]
        assert slots[:, 1].tolist() == [SEA, classes.index("water")]
        assert (slots[:, 2] == UNKNOWN).all()
    assert [t.nodata for t in product.tiles] == [None, -128]


def test_a_code_that_the_file_declares_as_no_data_is_no_class(tmp_path: Path) -> None:
    codes = np.array([[0, 1], [2, 0]], np.uint8)
    tile(tmp_path / "lc" / "20160711T084022_20160711T084751_T48RPK.tif", codes, nodata=0)
    warnings = index(tmp_path, legend="dynamic_world").warnings
    assert any("declare code 0, 'water' in the legend, as no data: it is taken as unknown" in w for w in warnings)
    (one,) = opened(tmp_path).tiles
    assert (whole(tmp_path, one) == UNKNOWN).tolist() == [[True, False], [False, True]]


def test_sea_stays_sea_where_the_file_calls_it_no_data(tmp_path: Path) -> None:
    tile(tmp_path / "lc" / "n48_30_2020lc030.tif", np.array([[255, 0], [20, 60]], np.uint8), nodata=255)
    assert index(tmp_path).warnings == ()
    (one,) = opened(tmp_path).tiles
    assert whole(tmp_path, one)[0].tolist() == [SEA, UNKNOWN]


def test_cells_behind_a_mask_or_an_alpha_band_are_unknown(tmp_path: Path) -> None:

    # Code 0 is water in Dynamic World: only the mask tells filler from lake.
    codes, mask = np.array([[0, 0], [1, 99]], np.uint8), np.array([[255, 0], [255, 0]], np.uint8)
    path = tile(tmp_path / "lc" / "20160711T084022_20160711T084751_T48RPK.tif", codes)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as target:
        target.write_mask(mask)
    with_alpha = tile(tmp_path / "lc" / "20170711T084022_20170711T084751_T48RPK.tif", np.stack([codes, mask]))
    with rasterio.open(with_alpha, "r+") as target:
        target.colorinterp = (rasterio.enums.ColorInterp.gray, rasterio.enums.ColorInterp.alpha)
    index(tmp_path, legend="dynamic_world")
    product = opened(tmp_path)
    assert product.years == (2016, 2017)
    for one in product.tiles:
        assert one.masked
        assert (whole(tmp_path, one) == UNKNOWN).tolist() == [[False, True], [False, True]]


# ---- Own classes -------------------------------------------------------------------------------------------------


def test_chips_can_be_described_by_the_products_own_classes(tmp_path: Path) -> None:
    codes = np.array([[-7, 1100], [3, 9]], np.int16)
    rows = "-7,Maize (irrigated),cultivated_land\n1100,Teak,\n3,Quarry,\n9,,sea\n"
    land_cover = product_of(tmp_path, rows, common="own", pixels=codes)
    assert land_cover.legend.is_own
    assert land_cover.legend.classes == ("maize_irrigated", "teak", "quarry")
    assert len(set(land_cover.legend.colours)) == 3
    (one,) = land_cover.products["lc"].tiles
    assert whole(tmp_path, one).tolist() == [[0, 1], [2, SEA]]


def test_own_classes_of_different_products_do_not_mix(tmp_path: Path) -> None:
    tile(tmp_path / "lc" / "a.tif")
    products = [
        {"name": name, "files": "a.tif", "legend": name, "year": 2020} for name in ("worldcover", "globeland30")
    ]
    config = LandCoverConfig.model_validate({"folder": tmp_path / "lc", "products": products, "legend": "own"})
    with pytest.raises(
        ConfigError, match=r"legend: own: the products have different legends \(ESA WorldCover, GlobeLand30\)"
    ):
        index_products(config, tmp_path / "index", RecordingReporter())


def test_a_legend_edited_after_indexing_is_noticed(tmp_path: Path) -> None:
    product_of(tmp_path, "20,teak,forest\n")
    (tmp_path / "mine.csv").write_text("code,name,common\n20,teak,grassland\n")
    with pytest.raises(ConfigError, match="changed since the tiles were indexed"):
        open_land_cover(tmp_path / "index")
