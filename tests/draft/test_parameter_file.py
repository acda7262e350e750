"""`geokr init`: the file it writes is read by the chain, and what it could not decide is said."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from rasterio.transform import from_origin

from geokr_core.chain.params import load_params
from geokr_core.chain.run import run
from geokr_core.chain.steps import Folders
from geokr_core.chips.read import read_rows
from geokr_core.draft.labelled_sets import find_labelled_sets
from geokr_core.draft.parameter_file import Draft, write_draft
from geokr_core.errors import ConfigError, MissingInputError
from geokr_core.levir_kr.catalogue import Places
from geokr_core.scenes.inventory import usable_scenes
from geokr_core.step.reporter import RecordingReporter
from geokr_core.world.config import WorldConfig
from geokr_core.world.generate import generate_world

FIRST_STEPS = ("scenes", "land_cover", "chips", "proportions")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    generate_world(
        WorldConfig(seed=3, num_scenes=2, scene_size_px=224, task_images_per_class=4), folder, RecordingReporter()
    )
    return folder


@pytest.fixture
def drafted(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Draft:
    monkeypatch.chdir(tmp_path)
    return write_draft(Path(), world / "scenes", world / "land_cover", world / "tasks")


def _write_map(path: Path, codes: np.ndarray, *, crs: str = "EPSG:32632") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=1,
        dtype=codes.dtype,
        height=codes.shape[0],
        width=codes.shape[1],
        crs=crs,
        transform=from_origin(500_000, 5_000_000, 30, 30),
    ) as target:
        target.write(codes, 1)


def _write_image(
    path: Path, *, bands: int = 3, size_px: int = 80, cell_m: float = 30, empty: int = 0, nodata: int | None = None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(1, 255, (bands, size_px, size_px), dtype=np.uint8)
    values[:, :empty] = 0
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=bands,
        dtype="uint8",
        height=size_px,
        width=size_px,
        crs="EPSG:32632",
        transform=from_origin(500_000, 5_000_000, cell_m, cell_m),
        nodata=nodata,
        photometric="RGB" if bands == 3 else "MINISBLACK",
    ) as target:
        target.write(values)


def test_the_generated_world_is_recognised_and_the_first_steps_run(drafted: Draft) -> None:
    params = load_params(drafted.path)
    assert [one.product for one in drafted.collections] == ["gaofen"]
    assert drafted.collections[0].seen_bands == ("blue", "green", "red", "nir")
    assert [(one.legend, one.year) for one in drafted.products] == [("globeland30", None)]
    assert {one.name: one.kind for one in drafted.labelled_sets} == {
        "scene_classification": "scene_classification",
        "segmentation": "segmentation",
        "cloud_snow": "cloud_snow",
        "detection": "detection",
    }
    run(params, RecordingReporter(), steps=FIRST_STEPS)
    assert len(list(Folders(params)["proportions"].glob("*.parquet"))) == 2
    chips = Folders(params)["chips"]
    rows = pd.concat(read_rows(chips, scene_id) for scene_id in usable_scenes(Folders(params)["scenes"]))
    assert set(Places(params.levir_kr).split_of(rows)) == {"train", "validation"}


def _marked(draft: Draft) -> list[str]:
    return [line.split("CHECK ", 1)[1] for line in draft.path.read_text().splitlines() if "# CHECK" in line]


def _said(draft: Draft) -> list[str]:
    return [question.split(": ", 1)[1] for question in draft.questions]


def test_what_could_not_be_decided_stands_in_the_file_and_in_the_answer(world: Path, tmp_path: Path) -> None:
    draft = write_draft(tmp_path, world / "scenes", world / "land_cover", None)
    assert any("--tasks" in question for question in draft.questions)
    assert load_params(draft.path).evaluation is None
    assert sorted(_marked(draft)) == sorted(_said(draft))


def test_every_doubt_is_marked(tmp_path: Path) -> None:
    _write_map(tmp_path / "maps" / "N32_45_2020LC030.tif", np.tile(np.uint8([10, 20]), (80, 40)))
    _write_map(tmp_path / "maps" / "odd.tif", np.tile(np.uint8([101, 202]), (80, 40)))
    _write_image(tmp_path / "images" / "one.tif", bands=5)
    (tmp_path / "tasks" / "notes").mkdir(parents=True)
    draft = write_draft(tmp_path, tmp_path / "images", tmp_path / "maps", tmp_path / "tasks")
    assert len(draft.questions) >= 6
    assert sorted(_marked(draft)) == sorted(_said(draft))


def test_dates_and_resolutions_are_those_of_all_scenes(tmp_path: Path) -> None:
    _write_map(tmp_path / "maps" / "N32_45_2020LC030.tif", np.tile(np.uint8([10, 20]), (80, 40)))
    for day, cell_m in (("20190105", 8), ("20181230", 16), ("20200302", 2), ("20190601", 8)):
        name = f"GF1_PMS1_E9.0_N45.1_{day}_L1A0003736464-MSS1.tiff"
        _write_image(tmp_path / "images" / name, bands=4, cell_m=cell_m)
    (collection,) = write_draft(tmp_path, tmp_path / "images", tmp_path / "maps", None).collections
    assert collection.acquired == ("2018-12-30", "2020-03-02")
    assert [round(gsd_m) for gsd_m in collection.gsd_m] == [2, 16]
    assert "2 to 16 m a pixel" in (tmp_path / "params.yaml").read_text()
    assert "2018-12-30 to 2020-03-02" in (tmp_path / "params.yaml").read_text()


@pytest.mark.parametrize(("declared", "expected"), [(None, 0), (0, 0), (255, None)])
def test_ground_without_data_is_looked_for_in_all_scenes(
    declared: int | None, expected: int | None, tmp_path: Path
) -> None:
    _write_map(tmp_path / "maps" / "N32_45_2020LC030.tif", np.tile(np.uint8([10, 20]), (80, 40)))
    for number in range(4):
        whole = number != 2
        _write_image(
            tmp_path / "images" / f"scene_{number}.tif", empty=0 if whole else 20, nodata=declared if whole else None
        )
    draft = write_draft(tmp_path, tmp_path / "images", tmp_path / "maps", None)
    assert [one.nodata for one in draft.collections] == [expected]
    assert any("many pixels are zero in all bands of scene_2.tif" in text for text in _marked(draft))


def test_bands_of_labelled_images_are_guessed_from_the_scenes_or_the_set_is_left_out(
    drafted: Draft, world: Path, tmp_path: Path
) -> None:
    (clouds,) = (task for task in load_params(drafted.path).evaluation.tasks if task.name == "cloud_snow")
    assert clouds.bands == ("blue", "green", "red", "nir")
    assert any("`bands` are taken from the scenes" in text for text in _marked(drafted))
    _write_image(tmp_path / "rgb" / "one.tif")
    draft = write_draft(tmp_path / "project", tmp_path / "rgb", world / "land_cover", world / "tasks")
    assert "cloud_snow" not in {one.name for one in draft.labelled_sets}
    assert any("cloud_snow (images of 4 bands, and nothing says which)" in text for text in _marked(draft))


def test_a_map_without_a_known_legend_gets_a_legend_file_to_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = np.array([[1001, 1002], [1003, 1001]], dtype=np.uint16).repeat(40, 0).repeat(40, 1)
    _write_map(tmp_path / "maps" / "own.tif", codes)
    _write_image(tmp_path / "images" / "one.tif")
    monkeypatch.chdir(tmp_path)
    draft = write_draft(Path("project"), Path("images"), Path("maps"), None)
    assert [one.legend for one in draft.products] == ["legend_own_2020.csv"]
    assert "class 1002" in Path("project/legend_own_2020.csv").read_text()
    assert any("legend_own" in one.legend for one in draft.products)
    assert draft.path.read_text().count("CHECK") >= len(draft.questions) - 1  # the one about --tasks is a comment
    monkeypatch.chdir("project")
    params = load_params()
    run(params, RecordingReporter(), steps=FIRST_STEPS)
    assert params.land_cover.legend == "own"


@pytest.mark.parametrize(
    ("folder", "legend", "by", "year"),
    [
        ("maps", "globeland30", "the size of its cells", 2020),
        ("maps/worldcover", "worldcover", "the path", 2020),  # whoever has one product gives its own folder
        ("ESA_WorldCover_2021", "worldcover", "the path", 2021),
    ],
)
def test_a_legend_that_shares_its_codes_with_another_is_said_to(
    tmp_path: Path, folder: str, legend: str, by: str, year: int
) -> None:
    """10 is cultivated land to the one and trees to the other: whoever takes the wrong one learns nonsense."""
    codes = np.tile(np.uint8([10, 20, 30, 40, 50, 60, 80]), (80, 10))
    _write_map(tmp_path / folder / "resampled.tif", codes)
    _write_image(tmp_path / "images" / "one.tif")
    draft = write_draft(tmp_path, tmp_path / "images", tmp_path / folder, None)
    assert [(one.legend, one.year) for one in draft.products] == [(legend, year)]
    (marked,) = (text for text in _marked(draft) if "7 codes" in text)
    other = "globeland30" if legend == "worldcover" else "worldcover"
    assert f"fit {legend} and {other}, which mean other land cover" in marked
    assert marked.endswith(f"`legend: {legend}` is concluded from {by}")


def test_scenes_and_maps_of_one_folder_are_distinguished(tmp_path: Path) -> None:
    codes = np.array([[10, 20], [30, 60]], dtype=np.uint8).repeat(40, 0).repeat(40, 1)
    _write_map(tmp_path / "data" / "N32_45_2020LC030.tif", codes)
    for name in ("one.tif", "two.tif"):
        _write_image(tmp_path / "data" / name)
    draft = write_draft(tmp_path, tmp_path / "data", tmp_path / "data", None)
    assert [(one.num_scenes, one.paths) for one in draft.collections] == [(1, ("one.tif",)), (1, ("two.tif",))]
    assert [one.paths for one in draft.products] == [("N32_45_2020LC030.tif",)]


def test_bands_in_single_files_become_one_scene(tmp_path: Path) -> None:
    codes = np.array([[10, 20], [30, 60]], dtype=np.uint8).repeat(40, 0).repeat(40, 1)
    _write_map(tmp_path / "maps" / "N32_45_2020LC030.tif", codes)
    for band in ("B2", "B3", "B4"):
        _write_image(tmp_path / "images" / f"S2_20210704_{band}.tif", bands=1)
    draft = write_draft(tmp_path, tmp_path / "images", tmp_path / "maps", None)
    (collection,) = draft.collections
    assert collection.files == "S2_20210704_B{band}.tif"
    assert collection.seen_bands == ("blue", "green", "red")


def test_bands_that_nothing_names_are_asked_for(tmp_path: Path) -> None:
    _write_map(tmp_path / "maps" / "N32_45_2020LC030.tif", np.tile(np.uint8([10, 20]), (80, 40)))
    _write_image(tmp_path / "images" / "one.tif", bands=5)
    draft = write_draft(tmp_path, tmp_path / "images", tmp_path / "maps", None)
    assert any("give `bands`" in question for question in draft.questions)
    assert load_params(draft.path).chips.bands == ("band1", "band2", "band3")


@pytest.mark.parametrize(
    ("descriptions", "bands"),
    [
        (("blue", "Green", "RED", "nir"), ("blue", "green", "red", "nir")),
        (("blue", "green", "red", "haze"), None),
        (("blue", "green", "red", ""), None),
        (("blue", "green", "red", "red"), None),
    ],
)
def test_bands_are_named_by_the_descriptions_where_each_is_a_known_name(
    tmp_path: Path, descriptions: tuple[str, ...], bands: tuple[str, ...] | None
) -> None:
    _write_map(tmp_path / "maps" / "N32_45_2020LC030.tif", np.tile(np.uint8([10, 20]), (80, 40)))
    for name in ("one.tif", "two.tif"):
        _write_image(tmp_path / "images" / name, bands=4)
        with rasterio.open(tmp_path / "images" / name, "r+") as target:
            target.descriptions = descriptions
    draft = write_draft(tmp_path, tmp_path / "images", tmp_path / "maps", None)
    params = load_params(draft.path)
    assert params.scenes.collections[0].bands == bands
    assert params.chips.bands == (("red", "green", "blue") if bands else ("band1", "band2", "band3"))
    assert any("give `bands`" in question for question in draft.questions) == (bands is None)


def test_a_file_that_is_there_is_left_alone(drafted: Draft, world: Path) -> None:
    before = drafted.path.read_text()
    with pytest.raises(ConfigError, match="there already"):
        write_draft(Path(), world / "scenes", world / "land_cover", None)
    assert drafted.path.read_text() == before


@pytest.mark.parametrize(("scenes", "land_cover"), [("nowhere", "images"), ("images", "nowhere"), ("images", "images")])
def test_nothing_is_written_without_scenes_and_land_cover(tmp_path: Path, scenes: str, land_cover: str) -> None:
    _write_image(tmp_path / "images" / "one.tif")
    with pytest.raises(MissingInputError):
        write_draft(tmp_path / "project", tmp_path / scenes, tmp_path / land_cover, None)
    assert not (tmp_path / "project").exists()


@pytest.mark.real_data
def test_the_zion_folder_runs_as_it_is_written(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = real_data / "scenes" / "zion_landsat8_nlcd"
    monkeypatch.chdir(tmp_path)
    draft = write_draft(Path(), folder, folder, None)
    assert [one.legend for one in draft.products] == ["nlcd"]
    assert draft.collections[0].seen_bands == ("blue", "green", "red", "nir")
    params = load_params(draft.path)
    run(params, RecordingReporter(), steps=FIRST_STEPS)
    (scene_id,) = usable_scenes(Folders(params)["scenes"])
    assert len(read_rows(Folders(params)["chips"], scene_id)) == 374


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "legend", "num_scenes"),
    [("hls30_worldcover", "worldcover", 84), ("global_bluemarble_mcd12c1", "mcd12_igbp", 1)],
)
def test_real_folders_are_recognised(real_data: Path, tmp_path: Path, name: str, legend: str, num_scenes: int) -> None:
    folder = real_data / "scenes" / name
    draft = write_draft(tmp_path, folder, folder, None)
    assert [one.legend for one in draft.products] == [legend]
    assert sum(one.num_scenes for one in draft.collections) == num_scenes


@pytest.mark.real_data
def test_real_labelled_sets_are_recognised(real_data: Path, tmp_path: Path) -> None:
    for name in ("amazon_forest", "eurosat", "l8_biome"):
        (tmp_path / name).symlink_to(real_data / "tasks" / name)
    (tmp_path / "notes").mkdir()
    found, unknown = find_labelled_sets(tmp_path)
    kinds = {"amazon_forest": "segmentation", "eurosat": "scene_classification", "l8_biome": "cloud_snow"}
    assert {one.name: one.kind for one in found} == kinds
    assert unknown == ["notes"]
