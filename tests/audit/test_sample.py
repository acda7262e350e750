"""A sample is drawn by class, judged on an offline page, and counted only as a whole; of two maps the better one is named."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from opened_pages import needs_chromium, opened_page
from typer.testing import CliRunner

from geokr_core.audit import estimate
from geokr_core.audit.judging_page import write_judging_page
from geokr_core.audit.sample import Sample, draw_sample, read_sample, write_sample
from geokr_core.cli import app
from geokr_core.errors import AuditError, MissingInputError
from geokr_core.step.files import write_json

CLASSES = ("forest", "water", "bare")
NUM = 300


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an audit of 300 chips: 200 forest, 80 water, 20 bare; a fifth of what the map calls water is bare."""
    store = tmp_path_factory.mktemp("store")
    mapped = np.repeat([0, 1, 2], [200, 80, 20])
    ids = [f"s-{k:04d}" for k in range(NUM)]
    shares = np.full((NUM, 3), 0.1)
    shares[np.arange(NUM), mapped] = 0.8
    columns = {f"map_{name}": shares[:, k] for k, name in enumerate(CLASSES)}
    boxes = shapely.box(np.arange(NUM) / 100, 0, np.arange(NUM) / 100 + 0.01, 0.01)
    frame = gpd.GeoDataFrame(
        {"chip_id": ids, "scene_id": "s", "row": np.arange(NUM), **columns}, geometry=boxes, crs="OGC:CRS84"
    )
    for name in ("map_audit", "chips", "proportions"):
        (store / name).mkdir()
    frame.to_parquet(store / "map_audit" / "audit.parquet")
    np.save(store / "chips" / "s.npy", np.random.default_rng(0).integers(0, 256, (NUM, 16, 16, 3), dtype=np.uint8))
    write_json(
        store / "chips" / "cut.json", {"bands": ["red", "green", "blue"], "size_px": 16, "generated_world": True}
    )
    legend = {"classes": list(CLASSES), "colours": ["#008000", "#0000ff", "#c0a080"]}
    write_json(store / "proportions" / "legend.json", legend)
    fractions = {f"fraction_{name}": shares[:, k] for k, name in enumerate(CLASSES)}
    pd.DataFrame({"chip_id": ids, **fractions}).to_parquet(store / "proportions" / "s.parquet", index=False)
    return store


def truth(chip_ids: pd.Series, wrong: int = 5) -> list[str]:
    """What the ground is: the map's class, but of every fifth water chip bare."""
    numbers = chip_ids.str[2:].astype(int)
    return ["forest" if k < 200 else "bare" if k >= 280 or k % wrong == 0 else "water" for k in numbers]


def judged(sample: Sample, path: Path, **changes: Any) -> Path:
    frame = pd.DataFrame({"chip_id": sample.chips["chip_id"], "label": truth(sample.chips["chip_id"])})
    frame = frame.assign(who="Ann", when="2026-01-01T00:00:00Z", sample_id=sample.sample_id).assign(**changes)
    gpd.GeoDataFrame(frame, geometry=[shapely.Point(0, 0)] * len(frame)).to_parquet(path)
    return path


def test_a_sample_has_so_many_chips_of_each_class_and_is_the_same_again(store: Path, tmp_path: Path) -> None:
    sample = draw_sample(store / "map_audit", 30, seed=1)
    assert sample.chips["map_class"].value_counts().to_dict() == {"forest": 30, "water": 30, "bare": 20}
    assert sample.weights == pytest.approx([200 / 300, 80 / 300, 20 / 300])
    assert sample.sample_id == draw_sample(store / "map_audit", 30, seed=1).sample_id
    assert sample.sample_id != draw_sample(store / "map_audit", 30, seed=2).sample_id
    write_sample(sample, tmp_path / "sample.parquet")
    again = read_sample(tmp_path / "sample.parquet")
    assert (again.sample_id, again.classes) == (sample.sample_id, sample.classes)
    assert again.chips["chip_id"].tolist() == sample.chips["chip_id"].tolist()
    with pytest.raises(AuditError, match="expected 2 or more"):
        draw_sample(store / "map_audit", 1)
    with pytest.raises(MissingInputError, match="geokr audit"):
        draw_sample(store / "nothing", 5)
    with pytest.raises(AuditError, match="not a sample"):
        read_sample(store / "map_audit" / "audit.parquet")


def test_the_estimate_finds_the_errors_that_there_are(store: Path, tmp_path: Path) -> None:
    sample = draw_sample(store / "map_audit", 80)
    labels = estimate.read_judgements(judged(sample, tmp_path / "j.parquet"), sample)
    found = estimate.estimate(sample, labels)
    assert found.users[0].value == 1.0
    assert found.users[1].value == pytest.approx(0.8)  # all 80 chips of water were drawn
    assert found.overall.value == pytest.approx(1 - 16 / 300, abs=1e-9)
    assert found.areas[2].low < 36 / 300 < found.areas[2].high


def test_a_part_of_a_sample_and_judgements_of_another_are_refused(store: Path, tmp_path: Path) -> None:
    sample = draw_sample(store / "map_audit", 20)
    path = judged(sample, tmp_path / "j.parquet")
    whole = gpd.read_parquet(path)
    whole.head(50).to_parquet(tmp_path / "part.parquet")
    with pytest.raises(AuditError, match=r"50 of 60 chips are judged. Judge the other 10"):
        estimate.read_judgements(tmp_path / "part.parquet", sample)
    with pytest.raises(AuditError, match="judgements of sample abc"):
        estimate.read_judgements(judged(sample, tmp_path / "o.parquet", sample_id="abc"), sample)
    with pytest.raises(AuditError, match="'marsh' is no class"):
        estimate.read_judgements(judged(sample, tmp_path / "o.parquet", label="marsh"), sample)
    with pytest.raises(AuditError, match="a row has no 'sample_id'"):
        estimate.read_judgements(judged(sample, tmp_path / "o.parquet", sample_id=None), sample)
    pd.concat([whole, whole.head(1)]).to_parquet(tmp_path / "twice.parquet")
    with pytest.raises(AuditError, match="is judged 2 times"):
        estimate.read_judgements(tmp_path / "twice.parquet", sample)
    unsure = estimate.read_judgements(judged(sample, tmp_path / "u.parquet", label="unsure"), sample)
    with pytest.raises(AuditError, match="class forest fewer than two"):
        estimate.estimate(sample, unsure)
    with pytest.raises(MissingInputError):
        estimate.read_judgements(tmp_path / "nothing.parquet", sample)


def other_map(store: Path, folder: Path, classes_of: list[str]) -> Path:
    folder.mkdir()
    shutil.copy(store / "proportions" / "legend.json", folder)
    rows = {f"fraction_{name}": [float(one == name) for one in classes_of] for name in CLASSES}
    pd.DataFrame({"chip_id": [f"s-{k:04d}" for k in range(NUM)], **rows}).to_parquet(folder / "s.parquet", index=False)
    return folder


def test_the_better_of_two_maps_is_named_and_equal_ones_are_not(store: Path, tmp_path: Path) -> None:
    sample = draw_sample(store / "map_audit", 80)
    half = truth(sample.chips["chip_id"], wrong=2)  # of the map's water
    labels = estimate.read_judgements(judged(sample, tmp_path / "j.parquet", label=half), sample)
    ids = pd.Series([f"s-{k:04d}" for k in range(NUM)])
    better = estimate.compare(sample, labels, other_map(store, tmp_path / "better", truth(ids, wrong=2)))
    assert better.verdict == "second"
    assert better.lead == pytest.approx(-40 / 300)
    worse = ["water" if k % 3 == 0 else name for k, name in enumerate(truth(ids, wrong=2))]
    assert estimate.compare(sample, labels, other_map(store, tmp_path / "worse", worse)).verdict == "first"
    same = estimate.compare(sample, labels, store / "proportions")
    assert same.verdict == "undecided"
    assert same.low < 0 < same.high


def test_the_lead_lies_in_its_interval_in_nearly_all_draws() -> None:
    """Two maps of known accuracy, many samples."""
    from geokr_core.audit.accuracy import exact_share

    rng, covered = np.random.default_rng(0), 0
    weights, first, second = np.array([0.7, 0.25, 0.05]), np.array([0.05, 0.1, 0.3]), np.array([0.1, 0.02, 0.2])
    lead = float((weights * (first - second)).sum())
    for _ in range(2000):
        drawn = np.stack([rng.multinomial(40, [a, b, 1 - a - b]) for a, b in zip(first, second, strict=True)])
        one, two = (exact_share(drawn[:, k], drawn.sum(axis=1), weights, 0.975) for k in (0, 1))
        covered += one.low - two.high <= lead <= one.high - two.low
    assert covered / 2000 >= 0.95


def test_the_commands_lead_from_a_sample_to_an_estimate(store: Path, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    collection = "{name: a, files: '*.tif', bands: [red, green, blue], land_cover: p}"
    product = "{name: p, files: '*.tif', legend: globeland30, year: 2020}"
    params.write_text(
        f"store: {store}\nscenes: {{folder: x, collections: [{collection}]}}\n"
        f"land_cover: {{folder: y, products: [{product}]}}\nembeddings: {{}}\nmap_audit: {{}}\n"
    )
    sample, page = tmp_path / "sample.parquet", tmp_path / "judge.html"
    words = ["audit", "sample", str(sample), "--page", str(page), "-n", "80", "-p", str(params)]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    judgements = judged(read_sample(sample), tmp_path / "judgements.parquet")
    words = ["audit", "estimate", str(sample), str(judgements), "--against", str(store / "proportions")]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "water,user's accuracy,0.8000" in done.stdout
    assert "the sample cannot tell,lead of the audited map,0.0000" in done.stdout


@pytest.fixture
def page(store: Path, tmp_path: Path) -> Iterator[Any]:
    sample = draw_sample(store / "map_audit", 12)
    write_judging_page(sample, store / "chips", ("#008000", "#0000ff", "#c0a080"), tmp_path / "judge.html")
    text = (tmp_path / "judge.html").read_text()
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text)
    assert "map_class" not in text
    with opened_page(tmp_path / "judge.html") as opened:
        yield opened, sample


@pytest.mark.browser
@needs_chromium
def test_a_sample_is_judged_in_a_browser_and_read_back(page: Any, tmp_path: Path) -> None:
    opened, sample = page
    opened.click(".chip >> nth=0 >> button >> nth=1")
    opened.hover(".chip >> nth=1")
    opened.keyboard.press("3")
    assert "2 of 36 judged" in opened.inner_text("#status")
    opened.click("#brighter")
    assert opened.eval_on_selector(".chip canvas", "canvas => getComputedStyle(canvas).filter") == "brightness(2.5)"
    assert opened.is_disabled("#save"), "a part of a sample is not saved"
    for chip_id, label in zip(sample.chips["chip_id"], truth(sample.chips["chip_id"]), strict=True):
        opened.evaluate(
            f"judged.set(data.ids.indexOf('{chip_id}'), {{label: '{label}', when: new Date().toISOString()}})"
        )
    opened.click("#next")
    assert "36 of 36 judged; chips 25 to 36" in opened.inner_text("#status")
    opened.click("#save")
    assert "Say first who judges" in opened.inner_text("#status")
    opened.fill("#who", "Ann Müller")
    with opened.expect_download() as download:
        opened.click("#save")
    download.value.save_as(tmp_path / "judgements.parquet")
    labels = estimate.read_judgements(tmp_path / "judgements.parquet", sample)
    assert labels.tolist() == truth(sample.chips["chip_id"])
