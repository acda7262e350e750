"""Raw scenes with RPCs: orthorectified pixels lie where the sensor saw them, and nothing else may say where.

The synthetic sensor is known in closed form: its lines run south and its columns east, and ground ``h`` metres high is
seen ``SHIFT_LINES * h`` lines and ``SHIFT_COLUMNS * h`` columns further. Pixels hold their own line and column, so what
a map pixel shows says where it was taken from.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from rasterio.rpc import RPC
from rasterio.windows import Window

from geokr_core.chips.config import ChipsConfig
from geokr_core.chips.cut import cut_scene
from geokr_core.chips.read import read_rows, reread
from geokr_core.errors import ConfigError, SceneRefusedError
from geokr_core.rasters.grid import METRES_PER_DEGREE, unwrap_lon
from geokr_core.scenes.config import ScenesConfig
from geokr_core.scenes.inventory import read_inventory, take_inventory, usable_scenes
from geokr_core.scenes.orthorectify import TILE_ROWS, Orthorectifier, Terrain, ortho_grid
from geokr_core.scenes.reader import open_scene
from geokr_core.scenes.scene import Scene
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import write_raster

NAME = "GF2_PMS1_E106.0_N30.0_20200807_L1A0003376167-MSS1"
SIZE = 600
GSD_M = 4.0
LON, LAT = 106.0, 30.0
HALF = SIZE / 2 * GSD_M / METRES_PER_DEGREE  # degrees of latitude from the centre to an edge
SHIFT_LINES, SHIFT_COLUMNS = 0.06, -0.03  # pixels a metre of height: about 14 and 7 degrees off nadir


def rpcs(lon: float = LON, lat: float = LAT) -> RPC:
    """RPCs of the synthetic sensor; height is counted from 500 m in steps of 500 m."""
    # Terms of RPC00B: 1, longitude, latitude, height, then products.
    line, sample, one = [0.0] * 20, [0.0] * 20, [1.0] + [0.0] * 19
    line[0], line[2], line[3] = 2 * SHIFT_LINES * 500 / SIZE, -1.0, 2 * SHIFT_LINES * 500 / SIZE
    sample[0], sample[1], sample[3] = 2 * SHIFT_COLUMNS * 500 / SIZE, 1.0, 2 * SHIFT_COLUMNS * 500 / SIZE
    return RPC(
        height_off=500.0,
        height_scale=500.0,
        lat_off=lat,
        lat_scale=HALF,
        long_off=lon,
        long_scale=float(HALF / np.cos(np.radians(lat))),
        line_off=SIZE / 2 - 0.5,
        line_scale=SIZE / 2,
        samp_off=SIZE / 2 - 0.5,
        samp_scale=SIZE / 2,
        line_num_coeff=line,
        line_den_coeff=one,
        samp_num_coeff=sample,
        samp_den_coeff=one,
        err_bias=0.0,
        err_rand=0.0,
    )


def truth(scene: Scene, heights_m: np.ndarray | float, centre: float = LON) -> tuple[np.ndarray, np.ndarray]:
    """Line and column, counted in pixel centres, at which the sensor saw each map pixel."""
    row, col = np.indices((scene.grid.height, scene.grid.width)) + 0.5
    lon, lat = np.moveaxis(scene.grid.lonlat(np.stack(scene.grid.transform @ (col, row), axis=-1)), -1, 0)
    line = SIZE / 2 - 0.5 - (lat - LAT) / HALF * SIZE / 2 + SHIFT_LINES * heights_m
    column = (
        SIZE / 2
        - 0.5
        + unwrap_lon(lon - centre, 0.0) * np.cos(np.radians(LAT)) / HALF * SIZE / 2
        + SHIFT_COLUMNS * heights_m
    )
    return line, column


def ramps(dtype: type = np.float32) -> np.ndarray:
    row, col = np.indices((SIZE, SIZE))
    return np.stack([row, col, row + col, row]).astype(dtype) + np.array(1000, dtype)


def raw_scene(folder: Path, pixels: np.ndarray, form: str = "tags", name: str = NAME, **profile: object) -> Path:
    path = write_raster(
        folder / f"{name}.tiff",
        pixels,
        profile.pop("crs", None),
        profile.pop("transform", Affine.identity()),
        **({"rpcs": rpcs()} if form == "tags" else {}),
        **profile,
    )
    if form in ("rpb", "RPB"):
        path.with_name(f"{name}.{form}").write_text(rpb(rpcs()))
    elif form != "tags":
        path.with_name(f"{name}{form}").write_text(rpc_text(rpcs()))
    return path


def rpb(r: RPC) -> str:
    def series(name: str, values: list[float]) -> str:
        return f"\t{name} = (\n" + ",\n".join(f"\t\t\t{value:.15e}" for value in values) + ");\n"

    singles = {
        "errBias": 0.0,
        "errRand": 0.0,
        "lineOffset": r.line_off,
        "sampOffset": r.samp_off,
        "latOffset": r.lat_off,
        "longOffset": r.long_off,
        "heightOffset": r.height_off,
        "lineScale": r.line_scale,
        "sampScale": r.samp_scale,
        "latScale": r.lat_scale,
        "longScale": r.long_scale,
        "heightScale": r.height_scale,
    }
    body = "".join(f"\t{name} = {value!r};\n" for name, value in singles.items())
    body += series("lineNumCoef", r.line_num_coeff) + series("lineDenCoef", r.line_den_coeff)
    body += series("sampNumCoef", r.samp_num_coeff) + series("sampDenCoef", r.samp_den_coeff)
    return f'satId = "GF02";\nbandId = "MSS";\nSpecId = "RPC00B";\nBEGIN_GROUP = IMAGE\n{body}END_GROUP = IMAGE\nEND;\n'


def rpc_text(r: RPC) -> str:
    singles = {
        "LINE_OFF": r.line_off,
        "SAMP_OFF": r.samp_off,
        "LAT_OFF": r.lat_off,
        "LONG_OFF": r.long_off,
        "HEIGHT_OFF": r.height_off,
        "LINE_SCALE": r.line_scale,
        "SAMP_SCALE": r.samp_scale,
        "LAT_SCALE": r.lat_scale,
        "LONG_SCALE": r.long_scale,
        "HEIGHT_SCALE": r.height_scale,
    }
    lines = [f"{name}: {value!r}" for name, value in singles.items()]
    for name in ("line_num", "line_den", "samp_num", "samp_den"):
        lines += [f"{name.upper()}_COEFF_{k}: {v!r}" for k, v in enumerate(getattr(r, f"{name}_coeff"), start=1)]
    return "\n".join(lines) + "\n"


def write_dem(path: Path, lon: float = LON, relief: bool = True) -> tuple[Path, object]:
    """Ridges 300 m high and 400 m apart on a geographic grid; the file and a function of lon, lat."""
    step, size = 0.0004, 200
    west, north = lon - size / 2 * step, LAT + size / 2 * step
    heights = (500 + 150 * np.sin(np.arange(size) * 2 * np.pi / 10)[None] * relief + np.zeros((size, 1))).astype(
        np.float32
    )
    write_raster(path, heights, "EPSG:4326", Affine(step, 0, west, 0, -step, north), nodata=-9999)

    def at(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        return np.interp((lon - west) / step - 0.5, np.arange(size), heights[0])

    return path, at


def config(folder: Path, **collection: object) -> ScenesConfig:
    return ScenesConfig(
        folder=folder, collections=({"name": "raw", "files": "*.tiff", "land_cover": "gl", **collection},)
    )


def inventory(tmp_path: Path, **collection: object) -> Scene:
    take_inventory(config(tmp_path / "in", **collection), tmp_path / "out", RecordingReporter())
    (scene,) = usable_scenes(tmp_path / "out").values()
    return scene


def read(tmp_path: Path, scene: Scene, bands: tuple[str, ...] = ("blue", "green")) -> tuple[np.ndarray, np.ndarray]:
    with open_scene(tmp_path / "in", scene, bands) as reader:
        return reader.read(0, scene.grid.height)


def misplacement_px(tmp_path: Path, scene: Scene, heights_m: np.ndarray | float, centre: float = LON) -> np.ndarray:
    """Distance in source pixels between where valid map pixels were taken from and where they lie in truth."""
    pixels, valid = read(tmp_path, scene)
    line, column = truth(scene, heights_m, centre)
    # The outermost half pixel has one neighbour only, which interpolation repeats.
    inside = valid & (line > 0.5) & (line < SIZE - 1.5) & (column > 0.5) & (column < SIZE - 1.5)
    assert inside.sum() > 0.5 * SIZE**2
    return np.hypot(pixels[0] - 1000 - line, pixels[1] - 1000 - column)[inside]


@pytest.mark.parametrize("form", ["tags", "rpb", "RPB", ".rpc", "_rpc.txt", "_RPC.TXT"])
def test_pixels_land_where_the_sensor_saw_them(tmp_path: Path, form: str) -> None:
    raw_scene(tmp_path / "in", ramps(), form)
    scene = inventory(tmp_path, rpc_height_m=500.0)
    assert scene.orthorectified
    assert scene.grid.crs.to_epsg() == 32648
    assert scene.grid.transform.a == -scene.grid.transform.e == pytest.approx(GSD_M, rel=0.01)
    assert scene.bands == ("blue", "green", "red", "nir")
    assert misplacement_px(tmp_path, scene, 500.0).max() < 0.1


def test_every_nth_pixel_lies_there_too(tmp_path: Path) -> None:
    raw_scene(tmp_path / "in", ramps())
    scene = inventory(tmp_path, rpc_height_m=500.0)
    with open_scene(tmp_path / "in", scene, ("blue", "green")) as reader:
        pixels, valid = reader.read(0, scene.grid.height, decimation=6)
    line, column = truth(scene, 500.0)
    rows = ((np.arange(pixels.shape[1]) + 0.5) * scene.grid.height / pixels.shape[1]).astype(int)
    cols = ((np.arange(pixels.shape[2]) + 0.5) * scene.grid.width / pixels.shape[2]).astype(int)
    line, column = line[np.ix_(rows, cols)], column[np.ix_(rows, cols)]
    inside = valid & (np.minimum(line, column) > 6) & (np.maximum(line, column) < SIZE - 7)
    # Each is the nearest of what was read, up to half a step off; on average they are not off.
    assert abs((pixels[0] - 1000 - line)[inside].mean()) < 0.6
    assert abs((pixels[1] - 1000 - column)[inside].mean()) < 0.6


def test_another_height_moves_them(tmp_path: Path) -> None:
    raw_scene(tmp_path / "in", ramps())
    scene = inventory(tmp_path, rpc_height_m=700.0)
    assert misplacement_px(tmp_path, scene, 700.0).max() < 0.1
    wrong = misplacement_px(tmp_path, scene, 500.0)
    assert wrong.min() > 0.9 * 200 * np.hypot(SHIFT_LINES, SHIFT_COLUMNS)


@pytest.mark.parametrize("centre", [179.9999, -179.9999])
def test_a_raw_scene_may_lie_across_the_antimeridian(tmp_path: Path, centre: float) -> None:
    write_raster(tmp_path / "in" / f"{NAME}.tiff", ramps(), None, Affine.identity(), rpcs=rpcs(lon=centre))
    scene = inventory(tmp_path, rpc_height_m=500.0)
    assert misplacement_px(tmp_path, scene, 500.0, centre).max() < 0.1
    assert np.ptp(np.array(scene.grid.footprint().exterior.coords)[:, 0]) < 0.1


def test_an_elevation_model_with_relief_straightens_them(tmp_path: Path) -> None:
    raw_scene(tmp_path / "in", ramps())
    dem, at = write_dem(tmp_path / "dem.tif")
    scene = inventory(tmp_path, dem=dem)
    row, col = np.indices((scene.grid.height, scene.grid.width)) + 0.5
    lon, lat = np.moveaxis(scene.grid.lonlat(np.stack(scene.grid.transform @ (col, row), axis=-1)), -1, 0)
    heights_m = at(lon, lat)
    assert np.ptp(heights_m) > 250
    assert misplacement_px(tmp_path, scene, heights_m).max() < 0.5
    # The same scene on level ground is wrong by the height of the ridges.
    flat = inventory(tmp_path, rpc_height_m=500.0)
    row, col = np.indices((flat.grid.height, flat.grid.width)) + 0.5
    lon, lat = np.moveaxis(flat.grid.lonlat(np.stack(flat.grid.transform @ (col, row), axis=-1)), -1, 0)
    assert misplacement_px(tmp_path, flat, at(lon, lat)).max() > 5
    assert flat.md5 != scene.md5


def test_ground_that_the_elevation_model_does_not_cover_is_no_data(tmp_path: Path) -> None:
    raw_scene(tmp_path / "in", ramps())
    dem, _ = write_dem(tmp_path / "dem.tif", lon=LON - 0.04)  # its eastern edge runs through the scene's middle
    scene = inventory(tmp_path, dem=dem)
    _, valid = read(tmp_path, scene)
    half = scene.grid.width // 2
    assert valid[:, : half - 40].mean() > 0.8
    assert not valid[:, half + 40 :].any()
    far, _ = write_dem(tmp_path / "far.tif", lon=LON - 5)
    with pytest.raises(SceneRefusedError, match=r"elevation model far\.tif has no height under the scene"):
        inventory(tmp_path, dem=far)
    with pytest.raises(ConfigError, match=r"gone\.tif: elevation model cannot be read.*mend `dem`"):
        inventory(tmp_path, dem=tmp_path / "gone.tif")


def test_a_made_up_crs_beside_rpcs_does_not_win(tmp_path: Path) -> None:
    raw_scene(tmp_path / "in", ramps(), "rpb", crs="EPSG:32610", transform=Affine(4, 0, 500000, 0, -4, 9000000))
    scene = inventory(tmp_path, rpc_height_m=500.0)
    assert misplacement_px(tmp_path, scene, 500.0).max() < 0.1
    with pytest.raises(
        SceneRefusedError, match=r"only RPCs \(not orthorectified\)\. Give its collection `rpc_height_m`.*500 m"
    ):
        inventory(tmp_path)


def test_what_users_orthorectified_keeps_its_own_grid(tmp_path: Path) -> None:
    """Tools carry RPC tags over into map projections, where they mean nothing any more."""
    transform = Affine(4, 0, 596000, 0, -4, 3320000)
    raw_scene(tmp_path / "in", ramps(np.uint16), crs="EPSG:32648", transform=transform, name=f"{NAME}_GEO")
    scene = inventory(tmp_path)
    assert not scene.orthorectified
    assert scene.grid.transform == transform


def test_strips_do_not_depend_on_who_asks(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 4000, (4, SIZE, SIZE)).astype(np.uint16)
    raw_scene(tmp_path / "in", noise)
    scene = inventory(tmp_path, rpc_height_m=500.0)
    assert scene.grid.height > 2 * TILE_ROWS
    with open_scene(tmp_path / "in", scene, ("red", "nir")) as reader:
        whole = reader.read(0, scene.grid.height)
        for row, height in ((0, 64), (TILE_ROWS - 3, 7), (17, 500), (3, 1), (TILE_ROWS, TILE_ROWS)):
            pixels, valid = reader.read(row, height)
            np.testing.assert_array_equal(pixels, whole[0][:, row : row + height])
            np.testing.assert_array_equal(valid, whole[1][row : row + height])
        few, some = reader.read(0, scene.grid.height, decimation=5)
    assert few.shape == (2, scene.grid.height // 5, scene.grid.width // 5)
    assert some.mean() == pytest.approx(whole[1].mean(), abs=0.02)
    assert few[:, some].mean() == pytest.approx(whole[0][:, whole[1]].mean(), rel=0.05)


def test_what_is_read_at_a_time_does_not_grow_with_the_scene() -> None:
    """A scene four times as long is read in more windows, not in larger ones, whether whole or decimated."""
    terrain = Terrain(500.0, None)
    largest: dict[tuple[int, int], int] = {}
    for lines in (SIZE, 4 * SIZE):
        coefficients = rpcs()
        coefficients.line_scale, coefficients.line_off = lines / 2, lines / 2 - 0.5
        coefficients.lat_scale *= lines / SIZE
        grid = ortho_grid(coefficients, lines, SIZE, terrain)
        sizes: list[int] = []

        def window_of(
            window: Window, shape: tuple[int, int], sizes: list[int] = sizes
        ) -> tuple[np.ndarray, np.ndarray]:
            sizes.append(shape[0] * shape[1])
            return np.ones((1, *shape), np.uint16), np.ones(shape, bool)

        reader = Orthorectifier(coefficients, (lines, SIZE), grid, terrain, 1, np.dtype(np.uint16), window_of)
        for decimation in (1, 4):
            sizes.clear()
            reader.read(0, grid.height, decimation)
            largest[lines, decimation] = max(sizes)
    assert largest[4 * SIZE, 1] <= 1.05 * largest[SIZE, 1]
    assert largest[4 * SIZE, 4] <= 2.2 * largest[SIZE, 4]  # the short one fills half a tile
    assert max(largest.values()) < 2 * TILE_ROWS * SIZE


def test_no_data_does_not_bleed_into_what_is_valid(tmp_path: Path) -> None:
    pixels = np.full((4, SIZE, SIZE), 3000, np.uint16)
    pixels[:, 200:260, 300:380] = 0
    raw_scene(tmp_path / "in", pixels)
    scene = inventory(tmp_path, rpc_height_m=500.0, nodata=0)
    values, valid = read(tmp_path, scene)
    assert (values[:, valid] == 3000).all()
    line, column = truth(scene, 500.0)
    hole = (line > 201) & (line < 258) & (column > 301) & (column < 378)
    assert not valid[hole].any()


def test_chips_of_a_raw_scene_are_read_again_by_their_transform(tmp_path: Path) -> None:
    raw_scene(tmp_path / "in", (ramps() % 97 * 20).astype(np.uint16), "rpb")
    scene = inventory(tmp_path, rpc_height_m=480.0)
    cut = ChipsConfig(size_px=48, stride_px=40, bands=("red", "green", "blue"))
    result = cut_scene(cut, tmp_path / "in", tmp_path / "out", scene, tmp_path / "chips")
    assert result.num_chips > 100
    rows = read_rows(tmp_path / "chips", scene.scene_id)
    images = np.load(tmp_path / "chips" / f"{scene.scene_id}.npy")
    for index in (0, 50, len(rows) - 1):
        np.testing.assert_array_equal(reread(rows.iloc[index], tmp_path / "in", scene), images[index])


def test_other_rpcs_or_heights_are_another_scene_to_whoever_cut_it(tmp_path: Path) -> None:
    raw_scene(tmp_path / "in", ramps(np.uint16), "rpb")
    first = inventory(tmp_path, rpc_height_m=500.0)
    assert inventory(tmp_path, rpc_height_m=510.0).md5 != first.md5
    (tmp_path / "in" / f"{NAME}.rpb").write_text(rpb(rpcs(lon=LON + 0.01)))
    moved = inventory(tmp_path, rpc_height_m=500.0)
    assert moved.md5 != first.md5
    assert moved.grid != first.grid


def test_damaged_rpcs_end_one_scene(tmp_path: Path) -> None:
    raw_scene(tmp_path / "in", ramps(np.uint16), "rpb")
    good = rpb(rpcs())
    raw_scene(tmp_path / "in", ramps(np.uint16), "rpb", name="zero")
    (tmp_path / "in" / "zero.rpb").write_text(
        good.replace("longScale = ", "longScale = 4000").replace("latScale = ", "latScale = 999")
    )
    raw_scene(tmp_path / "in", ramps(np.uint16), "rpb", name="cut")
    (tmp_path / "in" / "cut.rpb").write_text(good[: len(good) // 2])
    scene = inventory(tmp_path, rpc_height_m=500.0)
    assert scene.scene_id == NAME
    reasons = read_inventory(tmp_path / "out").set_index("scene_id")["reason"]
    assert "RPCs" in reasons["zero"]
    assert "no CRS" in reasons["cut"] or "RPC" in reasons["cut"]


def test_a_raw_file_that_is_cut_off_ends_its_scene_by_name(tmp_path: Path) -> None:
    path = raw_scene(tmp_path / "in", ramps(np.uint16), "rpb")
    scene = inventory(tmp_path, rpc_height_m=500.0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with open_scene(tmp_path / "in", scene, ("red",)) as reader:
        reader.read(0, 64)
        with pytest.raises(SceneRefusedError, match="unreadable at lines 400–463: the file is corrupt or cut off"):
            reader.read(400, 64)
    (tmp_path / "in" / f"{NAME}.rpb").unlink()
    with pytest.raises(SceneRefusedError, match="RPCs have vanished"), open_scene(tmp_path / "in", scene, ("red",)):
        pass


@pytest.mark.real_data
def test_real_rpcs_place_a_real_scene(real_data: Path, tmp_path: Path) -> None:
    """The file claims geographic coordinates with an identity geotransform; its RPCs say 46.8 E, 39.8 N."""
    cfg = config(real_data / "hard_cases", files="rioxarray_test_rpcs.tif", rpc_height_m=1000.0)
    take_inventory(cfg, tmp_path / "out", RecordingReporter())
    (scene,) = usable_scenes(tmp_path / "out").values()
    with open_scene(real_data / "hard_cases", scene, scene.bands) as reader:
        pixels, valid = reader.read(0, scene.grid.height)
    lon, lat = np.array(scene.grid.footprint().centroid.coords[0])
    assert (lon, lat) == pytest.approx((46.8, 39.8), abs=0.15)
    assert scene.grid.crs.to_epsg() == 32638
    assert valid.mean() > 0.2
    assert pixels[:, valid].std() > 0


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text.replace("RPC00B", "RPC00A"), "terms in the order RPC00A, expected RPC00B"),
        (lambda text: text.replace("lineOffset = ", "lineOffset = x"), "damaged or incomplete: could not convert"),
        (lambda text: text.replace("sampScale", "other"), "damaged or incomplete: 'sampScale'"),
        (lambda text: text.replace("\t0.000000000000000e+00,\n", "", 1), "lineNumCoef has 19 terms, expected 20"),
        (lambda text: text.replace("heightOffset = 500.0", "heightOffset = nan"), "not every value is finite"),
    ],
)
def test_an_rpc_file_that_cannot_be_meant_is_named(tmp_path: Path, damage: Callable[[str], str], reason: str) -> None:
    raw_scene(tmp_path / "in", ramps(np.uint16), "rpb")
    side = tmp_path / "in" / f"{NAME}.rpb"
    side.write_text(damage(side.read_text()))
    with pytest.raises(SceneRefusedError, match=re.escape(reason)):
        inventory(tmp_path, rpc_height_m=500.0)
