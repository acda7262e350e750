"""What a person sees of a data set: where it lies, what it holds, what was quarantined and why."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geokr_core.chain.params import load_params
from geokr_core.chain.run import run_step
from geokr_core.chain.steps import Folders
from geokr_core.land_cover.legend import COMMON_LEGENDS
from geokr_core.levir_kr.footprints import footprint_map
from geokr_core.levir_kr.pictures import class_histogram
from geokr_core.pictures.images import beside_legend, paint, palette_of, png
from geokr_core.scenes.quarantine import markdown, quarantined
from geokr_core.step.reporter import RecordingReporter
from geokr_core.step.summary import Summary, read_summary, write_summary
from geokr_core.testing import make_levir_kr, make_small_archive

LEGEND = COMMON_LEGENDS["globeland30"]


def pixels(encoded: bytes) -> np.ndarray:
    assert len(encoded) <= 200_000
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def share_of(image: np.ndarray, colour: str) -> float:
    return float((image == palette_of([colour])[0]).all(axis=-1).mean())


def drawn(lon: list[float], lat: list[float], classes: list[int], size_deg: float = 0.5) -> np.ndarray:
    proportions = np.eye(len(LEGEND.classes))[classes]
    scenes = np.array(["a"] * len(lon))
    return pixels(
        footprint_map(np.array(lon), np.array(lat), size_deg, proportions, scenes, LEGEND.classes, LEGEND.colours)
    )


def test_chips_on_both_sides_of_the_antimeridian_lie_side_by_side() -> None:
    water, forest = LEGEND.classes.index("water"), LEGEND.classes.index("forest")
    image = drawn([179.8, -179.8], [0.0, 0.0], [water, forest])
    # Drawn over a whole turn each would be a dot; side by side they fill much of the map.
    west = np.flatnonzero((image == palette_of([LEGEND.colours[water]])[0]).all(axis=-1).any(axis=0))
    east = np.flatnonzero((image == palette_of([LEGEND.colours[forest]])[0]).all(axis=-1).any(axis=0))
    assert share_of(image, LEGEND.colours[water]) > 0.05
    assert np.median(west) < np.median(east)


def test_each_place_has_the_colour_of_the_class_with_most_ground() -> None:
    water, forest = LEGEND.classes.index("water"), LEGEND.classes.index("forest")
    # Three chips on one spot: two of water outweigh one of forest.
    image = drawn([10.0, 10.0, 10.0, 14.0], [5.0, 5.0, 5.0, 5.0], [water, water, forest, water])
    assert share_of(image, LEGEND.colours[water]) > 0.02
    assert share_of(image, LEGEND.colours[forest]) == 0.0


def test_a_million_chips_are_drawn_in_seconds() -> None:
    import time

    rng = np.random.default_rng(0)
    number = 1_000_000
    proportions = rng.dirichlet(np.ones(len(LEGEND.classes)), 1000)[rng.integers(0, 1000, number)]
    started = time.process_time()
    picture = footprint_map(
        rng.uniform(-180, 180, number),
        rng.uniform(-60, 75, number),
        0.01,
        proportions,
        rng.integers(0, 900, number).astype(str),
        LEGEND.classes,
        LEGEND.colours,
    )
    assert time.process_time() - started < 20
    assert len(picture) <= 200_000


def test_bars_are_as_long_as_shares_and_no_validation_is_no_error() -> None:
    shares = np.zeros(len(LEGEND.classes))
    shares[LEGEND.classes.index("water")], shares[LEGEND.classes.index("forest")] = 0.75, 0.25
    image = pixels(class_histogram(shares, None, LEGEND.classes, LEGEND.colours))
    ratio = share_of(image, LEGEND.colours[5]) / share_of(image, LEGEND.colours[1])
    assert ratio == pytest.approx(3.0, rel=0.05)
    assert LEGEND.classes[5] == "water"


def test_a_picture_of_noise_still_fits_into_the_event_log() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    slots = np.full((300, 300), 254, dtype=np.uint8)
    image = pixels(beside_legend([noise, paint(slots, LEGEND.colours)], [("water", "#0000FF", 1.0)]))
    assert image.shape[0] >= 300


def test_a_legend_keeps_its_colours_beside_photographs() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    noise[..., 2] //= 8
    picture = np.full((900, 400, 3), 255, dtype=np.uint8)
    picture[:400] = noise
    picture[500:520, :20] = palette_of(["#1C0DFF"])[0]
    assert share_of(np.asarray(Image.open(io.BytesIO(png(picture))).convert("RGB")), "#1C0DFF") == 0, "rare, so lost"
    kept = share_of(np.asarray(Image.open(io.BytesIO(png(picture, ["#1C0DFF"]))).convert("RGB")), "#1C0DFF")
    assert kept == 400 / (900 * 400)


def test_the_data_set_shows_where_it_lies_and_what_it_holds(tmp_path: Path) -> None:
    data = make_levir_kr(tmp_path, num_chips=40)
    from geokr_core.levir_kr.freeze import _summary

    summary = _summary(data.catalogue, 40, data)
    assert list(summary.pictures) == ["footprints", "class histogram"]
    for picture in summary.pictures.values():
        assert pixels(picture).std() > 10


def test_a_summary_comes_back_with_all_its_pictures_and_texts(tmp_path: Path) -> None:
    write_summary(tmp_path, Summary({}, pictures={"one": b"1", "two": b"2"}, texts={"quarantine": "none"}))
    write_summary(tmp_path, Summary({}, pictures={"only": b"3"}))
    assert read_summary(tmp_path).pictures == {"only": b"3"}
    write_summary(tmp_path, Summary({}, texts={"quarantine": "| a |"}))
    assert read_summary(tmp_path) == Summary(numbers={}, table=[], warnings=[], texts={"quarantine": "| a |"})


def test_every_scene_that_was_set_aside_is_listed_with_its_step_and_reason(tmp_path: Path) -> None:
    params = load_params(make_small_archive(tmp_path, num_scenes=4))
    scenes = params.scenes.folder
    (scenes / "broken.tif").write_bytes(b"no raster | at all")
    whole = (scenes / "scene_0001.tif").read_bytes()
    (scenes / "scene_0001.tif").write_bytes(whole[: len(whole) // 2])
    for step in ("scenes", "land_cover", "chips"):
        run_step(step, params, RecordingReporter())
    folders = Folders(params)
    rows = quarantined(folders["scenes"], folders["chips"], folders["proportions"])
    assert [(row["scene"], row["step"]) for row in rows] == [("broken", "scenes"), ("scene_0001", "chips")]
    assert all(row["reason"] for row in rows)
    text = markdown(rows)
    assert text.startswith("2 scene(s) quarantined")
    assert all(line.count("|") - line.count("\\|") == 4 for line in text.splitlines() if line.startswith("|"))
    assert "No scene" in markdown([])
    # A record of a scene that left the archive is not shown.
    shutil.copy(folders["chips"] / "scene_0001.quarantine.json", folders["chips"] / "gone.quarantine.json")
    assert quarantined(folders["scenes"], folders["chips"]) == rows
    assert "1 more: `geokr quarantine`" in markdown(rows, max_rows=1)
