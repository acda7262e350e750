"""Mutual information finds a known shift, says nothing where the ground says nothing, and peaks at none on real pairs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from geokr_core.chain.checks import land_cover_lies_on_image
from geokr_core.chain.params import Params, load_params
from geokr_core.chain.run import run_step
from geokr_core.chain.steps import Folders
from geokr_core.land_cover.product import open_land_cover
from geokr_core.land_cover.slots import UNKNOWN
from geokr_core.proportions.agreement import complaint
from geokr_core.proportions.alignment import align_scene, mutual_information_shifts
from geokr_core.proportions.config import AlignmentConfig
from geokr_core.proportions.quicklook import QuickLook, land_cover_on, picture_of
from geokr_core.rasters.grid import Grid, reproject
from geokr_core.scenes.inventory import usable_scenes
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_small_archive, write_raster


def archive(folder: Path, shift_px: tuple[int, int] = (0, 0)) -> Params:
    params = load_params(make_small_archive(folder, num_scenes=1, scene_size_px=256, shift_px=shift_px))
    for step in ("scenes", "land_cover"):
        run_step(step, params, RecordingReporter())
    return params


def finding(params: Params, tolerance_px: float = 1.0):  # type: ignore[no-untyped-def]
    folders = Folders(params)
    return land_cover_lies_on_image(
        AlignmentConfig(tolerance_px=tolerance_px),
        params.chips.bands,
        params.scenes.folder,
        folders["scenes"],
        params.land_cover.folder,
        folders["land_cover"],
        folders["chips"],
        folders["proportions"],
        "scene_0000",
    )


@pytest.mark.parametrize("shift_px", [(0, 0), (2, 0), (-1, 3)])
def test_a_known_shift_is_found(tmp_path: Path, shift_px: tuple[int, int]) -> None:
    params = archive(tmp_path, shift_px)
    folders = Folders(params)
    (scene,) = usable_scenes(folders["scenes"]).values()
    index = open_land_cover(folders["land_cover"])
    found = align_scene(
        params.alignment,
        params.scenes.folder,
        scene,
        params.chips.bands,
        params.land_cover.folder,
        index.products["globe"],
        len(index.legend.classes),
    )
    assert found.peak_px == shift_px
    np.testing.assert_allclose(found.refined_px, shift_px, atol=0.3)
    assert found.verdict(1.0) == ("aligned" if shift_px == (0, 0) else "shifted")
    assert found.num_pixels == 250 * 250


def test_where_nothing_was_compared_there_is_no_shift(tmp_path: Path) -> None:
    params = archive(tmp_path)
    folders = Folders(params)
    (scene,) = usable_scenes(folders["scenes"]).values()
    index = open_land_cover(folders["land_cover"])
    elsewhere = replace(scene.grid, transform=Affine.translation(200_000, 0) @ scene.grid.transform)
    found = align_scene(
        params.alignment,
        params.scenes.folder,
        replace(scene, grid=elsewhere),
        params.chips.bands,
        params.land_cover.folder,
        index.products["globe"],
        len(index.legend.classes),
    )
    assert (found.peak_px, found.refined_px, found.num_pixels) == ((0, 0), (0.0, 0.0), 0)
    assert found.verdict(1.0) == "unclear"


def test_a_shift_of_two_pixels_is_reported_and_one_within_the_tolerance_is_not(tmp_path: Path) -> None:
    params = archive(tmp_path, (2, 0))
    shifted = finding(params)
    assert not shifted.passed
    assert "+2.0 px to the right" in shifted.message
    assert shifted.picture_png is not None
    assert len(shifted.picture_png) < 200_000
    assert (shifted.table[0]["right_px"], shifted.table[0]["down_px"]) == (2, 0)
    assert finding(params, tolerance_px=2.0).passed


@pytest.mark.parametrize("slots", ["one class", "noise", "unknown"])
def test_ground_that_says_nothing_is_called_unclear_and_not_shifted(tmp_path: Path, slots: str) -> None:
    params = archive(tmp_path)
    tile = params.land_cover.folder / "tile.tif"
    import rasterio

    with rasterio.open(tile) as source:
        shape, transform = source.shape, source.transform
    codes = {
        "one class": np.full(shape, 10),
        "noise": np.random.default_rng(0).choice([10, 20, 60], shape),
        "unknown": np.zeros(shape),
    }[slots]
    write_raster(tile, codes.astype(np.uint8), "EPSG:4326", transform)
    run_step("land_cover", params, RecordingReporter())
    found = finding(params)
    assert found.passed
    assert found.numbers["verdict"] == "unclear"


def test_the_score_is_the_mutual_information_of_its_definition() -> None:
    slots = np.zeros((64, 64), dtype=np.uint8)
    slots[:, 32:] = 1
    part = QuickLook(
        slots[None] * 100, np.ones_like(slots, dtype=bool), slots, Grid(CRS.from_epsg(3857), Affine.identity(), 64, 64)
    )
    scores, _, num_pixels = mutual_information_shifts([part], 2, (-1, 0, 1))
    # Two halves that tell each other exactly: ln 2; one column of 62 told wrongly takes a little away.
    assert scores[1, 1] == pytest.approx(np.log(2), abs=1e-3)
    assert num_pixels == 62 * 62
    assert scores[1, 0] < scores[1, 1] > scores[1, 2]
    np.testing.assert_allclose(scores[:, 1], scores[1, 1])


def test_the_score_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import mutual_info_score

    rng = np.random.default_rng(0)
    slots = rng.integers(0, 5, (80, 80)).astype(np.uint8)
    image = (slots * 20 + rng.integers(0, 60, slots.shape)).astype(np.uint8)
    grid = Grid(CRS.from_epsg(3857), Affine.identity(), 80, 80)
    part = QuickLook(image[None], np.ones(slots.shape, dtype=bool), slots, grid)
    scores, _, _ = mutual_information_shifts([part], 5, (-2, -1, 0, 1, 2))
    edges = np.quantile(image, np.arange(1, 32) / 32)
    bins = np.searchsorted(edges, image[2:-2, 2:-2], side="right")
    # Moved one to the right and two down, a pixel meets the class that lay one to its left and two above.
    assert scores[4, 3] == pytest.approx(mutual_info_score(bins.ravel(), slots[0:-4, 1:-3].ravel()), abs=1e-9)
    assert scores[2, 2] == pytest.approx(mutual_info_score(bins.ravel(), slots[2:-2, 2:-2].ravel()), abs=1e-9)


def test_the_nearest_land_cover_is_that_of_each_pixels_centre(tmp_path: Path) -> None:
    params = archive(tmp_path)
    folders = Folders(params)
    index = open_land_cover(folders["land_cover"])
    (tile,) = index.products["globe"].tiles
    # A rotated grid, and one that leaves the tile.
    crs = CRS.from_epsg(32652)
    grid = Grid(crs, Affine(25.0, 8.0, 497_500.0, 8.0, -25.0, 4_149_000.0), 90, 120)
    slots = land_cover_on(grid, params.land_cover.folder, index.products["globe"], 2020)
    row, col = np.mgrid[:90, :120] + 0.5
    a, b, c, d, e, f = tuple(grid.transform)[:6]
    lonlat = reproject(np.stack([a * col + b * row + c, d * col + e * row + f], axis=-1), grid.wkt, tile.grid.wkt)
    a, _, c, _, e, f = tuple(tile.grid.transform)[:6]
    x, y = np.floor((lonlat[..., 0] - c) / a).astype(int), np.floor((lonlat[..., 1] - f) / e).astype(int)
    inside = (x >= 0) & (x < tile.grid.width) & (y >= 0) & (y < tile.grid.height)
    import rasterio

    with rasterio.open(params.land_cover.folder / tile.file) as source:
        codes = source.read(1)
    expected = np.full(slots.shape, UNKNOWN, dtype=np.uint8)
    expected[inside] = np.vectorize(index.products["globe"].slots.__getitem__)(codes[y[inside], x[inside]])
    assert 0.1 < inside.mean() < 0.95
    assert (slots == expected).mean() > 0.999


def test_land_cover_is_found_on_both_sides_of_the_antimeridian(tmp_path: Path) -> None:
    params = archive(tmp_path)
    for name, west, code in (("east", 178.0, 60), ("west", -180.0, 10)):
        write_raster(
            params.land_cover.folder / f"tile_{name}.tif",
            np.full((200, 200), code, np.uint8),
            "EPSG:4326",
            Affine(0.01, 0, west, 0, -0.01, 1.0),
        )
    (params.land_cover.folder / "tile.tif").unlink()
    params = params.model_copy(
        update={
            "land_cover": params.land_cover.model_copy(
                update={"products": (params.land_cover.products[0].model_copy(update={"files": "tile_*.tif"}),)}
            )
        }
    )
    run_step("land_cover", params, RecordingReporter())
    index = open_land_cover(Folders(params)["land_cover"])
    water, field = index.legend.classes.index("water"), index.legend.classes.index("cultivated_land")
    for grid in (
        Grid(CRS.from_epsg(4326), Affine(0.01, 0, 179.5, 0, -0.01, 0.5), 100, 100),
        Grid(CRS.from_epsg(32660), Affine(1000.0, 0, 784_000.0, 0, -1000.0, 50_000.0), 100, 100),
    ):
        slots = land_cover_on(grid, params.land_cover.folder, index.products["globe"], 2020)
        assert set(np.unique(slots)) == {water, field}
        assert (slots[:, :45] == water).all()
        assert (slots[:, 55:] == field).all()


def test_the_picture_is_small_enough_for_the_event_log(tmp_path: Path) -> None:
    params = archive(tmp_path)
    folders = Folders(params)
    (scene,) = usable_scenes(folders["scenes"]).values()
    picture = picture_of(
        params.scenes.folder, scene, params.chips.bands, params.land_cover.folder, folders["land_cover"]
    )
    assert picture[:4] == b"\x89PNG"
    assert 10_000 < len(picture) <= 200_000


@pytest.mark.real_data
def test_a_real_exact_pair_is_aligned_and_moving_it_is_noticed(real_data: Path, tmp_path: Path) -> None:
    # Garrett's Landsat and its NLCD lie on one grid; the data's README calls the pair exact.
    folder = real_data / "scenes" / "zion_landsat8_nlcd"
    content = {
        "store": str(tmp_path / "store"),
        "scenes": {
            "folder": str(folder),
            "collections": [
                {
                    "name": "zion",
                    "files": "landsat8_b{band}.tif",
                    "band_files": ["2", "3", "4", "5"],
                    "bands": ["blue", "green", "red", "nir"],
                    "land_cover": "nlcd",
                }
            ],
        },
        "land_cover": {
            "folder": str(folder),
            "products": [{"name": "nlcd", "files": "nlcd2011.tif", "legend": "nlcd", "year": 2011}],
        },
        "chips": {"bands": ["red", "nir"]},
        "evaluation": {"folder": str(tmp_path), "tasks": [{"name": "scene_classification"}]},
        "champion": {"primary": [{"task": "scene_classification"}]},
    }
    params = Params.model_validate(content)
    for step in ("scenes", "land_cover"):
        run_step(step, params, RecordingReporter())
    folders = Folders(params)
    (scene,) = usable_scenes(folders["scenes"]).values()
    index = open_land_cover(folders["land_cover"])
    config = AlignmentConfig(max_pixels=400_000)
    product, num_classes = index.products["nlcd"], len(index.legend.classes)
    found = align_scene(config, folder, scene, params.chips.bands, folder, product, num_classes)
    assert found.verdict(1.0) == "aligned"
    assert np.abs(found.refined_px).max() < 0.8
    grid = replace(scene.grid, transform=scene.grid.transform @ Affine.translation(3, 0))
    moved = align_scene(config, folder, replace(scene, grid=grid), params.chips.bands, folder, product, num_classes)
    assert moved.verdict(1.0) == "shifted"
    assert moved.peak_px[0] == pytest.approx(found.peak_px[0] + 3, abs=1)


@pytest.mark.parametrize(
    ("aligned", "shifted", "unclear", "words"),
    [
        (151, 1, 29, None),  # a right map of the whole globe, as it was measured
        (1, 1, 30, "different ground"),
        (2, 14, 0, "common shift"),
        (4, 0, 4, None),
        (0, 0, 7, None),  # too few scenes to say
    ],
)
def test_an_archive_whose_map_is_of_other_ground_is_called_so(
    aligned: int, shifted: int, unclear: int, words: str | None
) -> None:
    found = complaint(["aligned"] * aligned + ["shifted"] * shifted + ["unclear"] * unclear)
    assert found is None if words is None else words in str(found)
