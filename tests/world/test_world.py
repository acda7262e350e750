"""The generated world: same bytes for one seed, and the layout, names and codes that the chain reads."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.transform
import rasterio.warp
from PIL import Image

from geokr_core.step.digests import data_version
from geokr_core.step.reporter import RecordingReporter
from geokr_core.step.summary import Summary
from geokr_core.world import land_cover, terrain
from geokr_core.world.atmosphere import Look
from geokr_core.world.config import WorldConfig
from geokr_core.world.generate import generate_world
from geokr_core.world.land_cover import COLOURS, Tile, plan_tiles, render_tile
from geokr_core.world.noise import Noise
from geokr_core.world.objects import write_detection
from geokr_core.world.plan import DESIGNS, plan_scene
from geokr_core.world.scenes import render_scene
from geokr_core.world.surface import reflectance
from geokr_core.world.tasks import SCENE_CLASSES

SEED = 7
SIZE_PX = 160
SCENE_NAME = re.compile(
    r"^(GF1_WFV[1-4]|GF1_PMS[12]|GF6_PMS)_[EW](\d+\.\d)_[NS](\d+\.\d)_(\d{8})_L1A\d{10}(-MSS[12]|-MUX)?\.tiff$"
)


CONFIG = WorldConfig(seed=SEED, scene_size_px=SIZE_PX, num_scenes=3, task_images_per_class=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    out = tmp_path_factory.mktemp("world") / "world"
    return out, generate_world(CONFIG, out, RecordingReporter())


@pytest.fixture(scope="module")
def world(made: tuple[Path, Summary]) -> Path:
    return made[0]


@pytest.fixture(scope="module")
def tiles() -> list[tuple[Tile, np.ndarray]]:
    planned = plan_tiles([plan_scene(SEED, index, 384) for index in range(len(DESIGNS))])
    return [(tile, render_tile(SEED, tile)) for tile in planned]


def test_one_seed_gives_the_same_bytes(world: Path, tmp_path: Path) -> None:
    generate_world(CONFIG, tmp_path / "again", RecordingReporter())
    assert data_version(tmp_path / "again") == data_version(world)


def test_another_seed_gives_other_scenes_tiles_and_objects(
    world: Path, tiles: list[tuple[Tile, np.ndarray]], tmp_path: Path
) -> None:
    scene = plan_scene(SEED, 0, 128)
    assert (render_scene(SEED, scene) != render_scene(SEED + 1, scene)).mean() > 0.9
    assert plan_scene(SEED + 1, 0, 128).look != scene.look
    tile, codes = tiles[0]
    assert (render_tile(SEED + 1, tile) != codes).mean() > 0.5
    write_detection(SEED + 1, tmp_path)
    assert (tmp_path / "annotations.json").read_bytes() != (world / "tasks/detection/annotations.json").read_bytes()


def test_a_scene_does_not_depend_on_other_scenes_or_on_what_was_drawn_before() -> None:
    scene = plan_scene(SEED, 2, 128)
    before = render_scene(SEED, scene)
    render_scene(SEED, plan_scene(SEED, 1, 128))
    again = plan_scene(SEED, 2, 128)
    assert again == scene
    np.testing.assert_array_equal(render_scene(SEED, again), before)


def test_noise_is_a_function_of_the_point_not_of_the_grid() -> None:
    noise = Noise(SEED, (1, 0))
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-30_000, 30_000, size=(2, 40_000)).astype(np.float32)
    whole = noise.octaves("test", x, y, 500.0, 4)
    np.testing.assert_array_equal(noise.octaves("test", x[1234:1240], y[1234:1240], 500.0, 4), whole[1234:1240])
    assert abs(float(whole.mean())) < 0.1
    assert 0.9 < float(whole.std()) < 1.1
    step = noise.values("test", x + np.float32(1), y, 500.0) - noise.values("test", x, y, 500.0)
    assert float(np.abs(step).max()) < 0.05  # continuous: a metre on 500 m changes little, across cells too


def test_scene_files_have_gaofen_names_and_lie_where_they_say(world: Path) -> None:
    paths = sorted((world / "scenes").iterdir())
    assert len(paths) == 3
    codes = set()
    for path in paths:
        match = SCENE_NAME.match(path.name)
        assert match, path.name
        with rasterio.open(path) as scene:
            assert (scene.count, scene.dtypes[0], scene.shape) == (4, "uint16", (SIZE_PX, SIZE_PX))
            assert scene.res[0] == (16.0 if "WFV" in path.name else 8.0)
            codes.add(scene.crs.to_epsg())
            assert set(scene.tags()) <= {"AREA_OR_POINT"}
            x, y = scene.xy(SIZE_PX / 2, SIZE_PX / 2)
            lon, lat = rasterio.warp.transform(scene.crs, "EPSG:4326", [x], [y])
            assert abs(abs(lon[0]) - float(match[2])) < 0.051
            assert abs(abs(lat[0]) - float(match[3])) < 0.051
            assert ("_S" in path.name) == (lat[0] < 0) == (scene.crs.to_epsg() > 32700)
            assert scene.nodata == (0 if "WFV" in path.name else None)
            assert scene.read().max() < 1024
    assert codes == {32648, 32649, 32734}


def test_pixels_without_data_are_zero_in_every_band_and_no_other_pixel_holds_a_zero(world: Path) -> None:
    path = next((world / "scenes").glob("*_S33*"))
    numbers = rasterio.open(path).read()
    empty = (numbers == 0).all(axis=0)
    assert 0.02 < empty.mean() < 0.4
    assert (numbers[:, ~empty] > 0).all()
    night = replace(plan_scene(SEED, 0, 128), look=Look(light=0.0, haze=0.0))
    assert render_scene(SEED, night).min() == 1


def test_first_scene_crosses_a_zone_and_a_band_of_tiles_and_the_second_meets_the_sea(world: Path) -> None:
    names = {path.parent.name for path in (world / "land_cover").rglob("*.tif")}
    assert names == {f"{name}_2020LC030" for name in ("N48_25", "N48_30", "N49_25", "N49_30", "S34_30")}
    corner, coast = plan_scene(SEED, 0, SIZE_PX), plan_scene(SEED, 1, 768)
    west, south, east, north = corner.grid.footprint().bounds
    assert west < 108 < east
    assert south < 30 < north
    x, y = (values[::8, ::8] for values in terrain.plane_coordinates(coast.grid, coast.place))
    sea = terrain.land_cover_truth(coast.place, coast.place.noise(SEED), x, y, 2019.0) == terrain.SEA
    assert 0.05 < sea.mean() < 0.7


def test_tiles_are_written_as_the_product_writes_them(world: Path) -> None:
    for path in (world / "land_cover").rglob("*.tif"):
        assert path.stem == path.parent.name.lower()
        with rasterio.open(path) as tile:
            zone, south = int(path.name[1:3]), path.name[0] == "s"
            assert tile.crs.to_epsg() == (32700 if south else 32600) + zone
            assert (tile.count, tile.dtypes[0], tile.res) == (1, "uint8", (30.0, 30.0))
            assert set(np.unique(tile.read(1)).tolist()) <= set(COLOURS)
            palette = tile.colormap(1)
            assert {code: palette[code][:3] for code in COLOURS} == COLOURS


@pytest.mark.parametrize("size_px", [128, 384, 768])
@pytest.mark.parametrize("num_scenes", [2, 12, 30])
def test_no_two_tiles_lie_on_one_grid(size_px: int, num_scenes: int) -> None:
    planned = plan_tiles([plan_scene(SEED, index, size_px) for index in range(num_scenes)])
    grids = [(tile.zone, tile.south, *tile.grid.transform, tile.grid.height, tile.grid.width) for tile in planned]
    assert len(set(grids)) == len(grids)


def test_every_class_and_sea_and_no_value_occur(tiles: list[tuple[Tile, np.ndarray]]) -> None:
    found = set(np.unique(np.concatenate([codes.ravel() for _, codes in tiles])).tolist())
    assert found == set(COLOURS)


def test_tiles_cover_the_scenes_and_agree_with_the_truth_mostly_but_not_wholly(
    tiles: list[tuple[Tile, np.ndarray]],
) -> None:
    for tile, codes in tiles:
        x, y = terrain.plane_coordinates(tile.grid, tile.place)
        truth = terrain.land_cover_truth(tile.place, tile.place.noise(SEED), x, y, 2020.0)
        known = codes != terrain.NO_VALUE
        assert 0.7 < float((codes == truth)[known].mean()) < 0.98, tile.name


def test_tiles_show_an_earlier_year_than_the_scenes(tiles: list[tuple[Tile, np.ndarray]]) -> None:
    for tile, codes in tiles:
        x, y = terrain.plane_coordinates(tile.grid, tile.place)
        known = codes != terrain.NO_VALUE
        earlier, later = (
            terrain.land_cover_truth(tile.place, tile.place.noise(SEED), x, y, year) for year in (2016.0, 2020.0)
        )
        assert (codes == earlier)[known].mean() > (codes == later)[known].mean()
        assert (later == terrain.ARTIFICIAL).mean() > (earlier == terrain.ARTIFICIAL).mean()


def test_small_patches_vanish_from_tiles(tiles: list[tuple[Tile, np.ndarray]], monkeypatch: pytest.MonkeyPatch) -> None:
    tile = tiles[-1][0]
    for name in ("_WRONG_ABOVE", "_UNMAPPED_ABOVE"):
        monkeypatch.setattr(land_cover, name, 99.0)
    monkeypatch.setattr(land_cover, "_speckle", lambda codes, rng: None)
    codes = render_tile(SEED, tile)
    x, y = terrain.plane_coordinates(tile.grid, tile.place)
    truth = terrain.land_cover_truth(tile.place, tile.place.noise(SEED), x, y, land_cover.IMAGE_YEAR)
    inside = codes != terrain.NO_VALUE
    assert inside.mean() > 0.9
    assert (codes[1:] != codes[:-1]).mean() < 0.9 * (truth[1:] != truth[:-1]).mean()


def test_every_class_is_painted_with_a_texture_and_smooth_classes_stay_smooth() -> None:
    x, y = np.meshgrid(np.arange(0, 1024, 8, dtype=np.float32), np.arange(0, 1024, 8, dtype=np.float32))
    roughness = {}
    for code in (*terrain.LAND_CODES, terrain.SEA):
        codes = np.full(x.shape, code, dtype=np.uint8)
        painted = reflectance(codes, x, y, 8.0, 0.6, Noise(SEED, (1, 0)))
        assert painted.dtype == np.float32
        assert painted.min() > 0
        assert painted.max() < 1
        roughness[code] = float(np.abs(np.diff(painted[..., 1], axis=1)).mean() / painted[..., 1].mean())
        assert roughness[code] > 1e-4
    for smooth in (terrain.WATER, terrain.SEA, terrain.GRASS):
        for rough in (terrain.ARTIFICIAL, terrain.FOREST, terrain.CULTIVATED):
            assert 2 * roughness[smooth] < roughness[rough]


def test_nearly_all_ground_of_a_scene_has_land_cover(tiles: list[tuple[Tile, np.ndarray]]) -> None:
    for index in range(len(DESIGNS)):
        scene = plan_scene(SEED, index, 384)
        rng = np.random.default_rng(index)
        row, col = rng.uniform(0, 384, size=(2, 500))
        lonlat = scene.grid.lonlat(scene.grid.xy(col, row))
        covered = np.zeros(500, dtype=bool)
        for tile, codes in tiles:
            xs, ys = rasterio.warp.transform("EPSG:4326", tile.grid.crs, lonlat[:, 0], lonlat[:, 1])
            u, v = ~tile.grid.transform @ (np.array(xs), np.array(ys))
            inside = (u >= 0) & (v >= 0) & (u < tile.grid.width) & (v < tile.grid.height)
            covered[inside] |= codes[v[inside].astype(int), u[inside].astype(int)] != terrain.NO_VALUE
        assert covered.mean() > 0.9, scene.name


def test_neighbouring_tiles_overlap_and_disagree_a_little(tiles: list[tuple[Tile, np.ndarray]]) -> None:
    (west, codes_west), (east, codes_east) = (
        next(pair for pair in tiles if pair[0].name.startswith(name)) for name in ("N48_30", "N49_30")
    )
    row, col = np.nonzero(codes_west)
    xs, ys = rasterio.transform.xy(west.grid.transform, row, col)
    xs, ys = rasterio.warp.transform(west.grid.crs, east.grid.crs, xs, ys)
    u, v = ~east.grid.transform @ (np.array(xs), np.array(ys))
    u, v = np.floor(u).astype(int), np.floor(v).astype(int)
    inside = (u >= 0) & (v >= 0) & (u < east.grid.width) & (v < east.grid.height)
    first, second = codes_west[row[inside], col[inside]], codes_east[v[inside], u[inside]]
    both = second != terrain.NO_VALUE
    assert both.sum() > 1000
    assert 0.6 < float((first == second)[both].mean()) < 0.92  # beyond what resampling alone moves


def read_split(folder: Path, name: str) -> list[str]:
    return (folder / f"split_{name}.txt").read_text(encoding="utf-8").split()


@pytest.mark.parametrize("task", ["scene_classification", "segmentation", "detection", "cloud_snow"])
def test_splits_are_disjoint_and_name_every_image_once(world: Path, task: str) -> None:
    folder = world / "tasks" / task
    train, test = read_split(folder, "train"), read_split(folder, "test")
    assert train
    assert test
    root = folder if task == "scene_classification" else folder / "images"
    images = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.suffix in (".png", ".tif"))
    assert sorted(train + test) == images


def test_scene_classification_is_balanced(world: Path) -> None:
    folder = world / "tasks" / "scene_classification"
    for split in ("train", "test"):
        assert sorted(line.split("/")[0] for line in read_split(folder, split)) == sorted(list(SCENE_CLASSES) * 2)
    for path in folder.rglob("*.png"):
        image = Image.open(path)
        assert (image.mode, image.size) == ("RGB", (64, 64))


def test_segmentation_masks_hold_only_colours_of_the_palette(world: Path) -> None:
    folder = world / "tasks" / "segmentation"
    with (folder / "palette.csv").open(encoding="utf-8", newline="") as stream:
        palette = {(int(r["red"]), int(r["green"]), int(r["blue"])) for r in csv.DictReader(stream)}
    for path in (folder / "masks").iterdir():
        mask = np.asarray(Image.open(path))
        found = {tuple(colour) for colour in np.unique(mask.reshape(-1, 3), axis=0).tolist()}
        assert found <= palette
        assert len(found) >= 3
        assert Image.open(folder / "images" / path.name).size == mask.shape[1::-1]


def test_boxes_lie_inside_their_images_around_something_drawn(world: Path) -> None:
    folder = world / "tasks" / "detection"
    content = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    images = {entry["id"]: entry for entry in content["images"]}
    assert {a["category_id"] for a in content["annotations"]} == {c["id"] for c in content["categories"]}
    assert {a["image_id"] for a in content["annotations"]} == set(images)
    ratios = []
    for annotation in content["annotations"]:
        left, top, width, height = annotation["bbox"]
        image = images[annotation["image_id"]]
        assert left >= 0
        assert top >= 0
        assert left + width <= image["width"]
        assert top + height <= image["height"]
        pixels = np.asarray(Image.open(folder / "images" / image["file_name"]), dtype=float).mean(axis=-1)
        inside = pixels[round(top) : round(top + height), round(left) : round(left + width)]
        ratios.append(inside.std() / pixels.std())
    assert np.median(ratios) > 1.2  # objects stand out; boxes on bare ground would not


def test_every_detection_category_is_in_both_splits(tmp_path: Path) -> None:
    write_detection(SEED + 5, tmp_path)
    content = json.loads((tmp_path / "annotations.json").read_text(encoding="utf-8"))
    names = {entry["id"]: entry["file_name"] for entry in content["images"]}
    for split in ("train", "test"):
        listed = set(read_split(tmp_path, split))
        seen = {a["category_id"] for a in content["annotations"] if names[a["image_id"]] in listed}
        assert seen == {1, 2, 3}


def test_sky_masks_hold_the_five_codes_and_mark_what_is_seen(world: Path) -> None:
    folder = world / "tasks" / "cloud_snow"
    for split in ("train", "test"):
        seen: set[int] = set()
        for name in read_split(folder, split):
            with rasterio.open(folder / "images" / name) as image, rasterio.open(folder / "masks" / name) as mask:
                assert (image.count, image.dtypes[0], mask.dtypes[0]) == (4, "float32", "uint8")
                assert image.transform == mask.transform
                pixels, codes = image.read(), mask.read(1)
            assert pixels.min() >= 0
            assert pixels.max() <= 1
            cloud, shadow, snow, clear = (pixels[:, codes == code].mean() for code in (1, 3, 4, 0))
            assert cloud > 1.2 * snow > 1.8 * clear
            assert cloud > 2 * shadow
            seen |= set(np.unique(codes).tolist())
        assert seen == {0, 1, 2, 3, 4}


def test_summary_counts_what_was_written(made: tuple[Path, Summary]) -> None:
    out, summary = made
    assert summary.numbers["num_scenes"] == len(list((out / "scenes").iterdir())) == len(summary.table)
    assert summary.numbers["num_tiles"] == len(list((out / "land_cover").rglob("*.tif")))
    images = [p for p in (out / "tasks").rglob("*") if p.suffix in (".png", ".tif") and p.parent.name != "masks"]
    assert summary.numbers["num_task_images"] == len(images)
    assert summary.picture_png is not None
    assert len(summary.picture_png) <= 200_000
