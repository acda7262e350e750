"""The audit: planted errors come first, places are held out, every row says what is wrong, refusals are named."""

import io
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from PIL import Image
from rasterio.crs import CRS

from geokr_core.audit.config import MapAuditConfig
from geokr_core.audit.disagreement import disagreement, folds_by_place
from geokr_core.audit.gallery import gallery
from geokr_core.audit.kinds import Causes, kinds_of
from geokr_core.audit.pairs import Pairs
from geokr_core.audit.planting import average_precision, measure, plant
from geokr_core.audit.run import audit_map
from geokr_core.embeddings.outputs import NETWORK_FILE
from geokr_core.embeddings.quantisation import quantise
from geokr_core.embeddings.regression import Predictor
from geokr_core.embeddings.table import write_table
from geokr_core.errors import AuditError, MissingInputError
from geokr_core.pictures.images import palette_of
from geokr_core.step.files import read_json, write_json
from geokr_core.step.reporter import RecordingReporter

NUM, D, CLASSES = 600, 12, ("forest", "water", "bare")
SIZE, PER_LINE = 8, 25
NETWORK = {"model": "toy", "model_version": "1", "features": "last", "num_dimensions": D, "chip_size_px": SIZE}


def toy(noise: float = 0.15) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Vectors that say the shares up to noise, and where the chips lie."""
    rng, num = np.random.default_rng(0), NUM
    shares = rng.dirichlet(np.full(len(CLASSES), 0.5), num)
    features = shares @ rng.normal(size=(len(CLASSES), D)) + rng.normal(0, noise, (num, D))
    return features.astype(np.float32), shares, rng.uniform(0, 1, num), rng.uniform(0, 1, num)


def write_store(
    store: Path, features: np.ndarray, shares: np.ndarray, lon: np.ndarray, lat: np.ndarray, **more: Any
) -> None:
    """A store of one scene, as embedding and counting leave it."""
    num = len(features)
    ids = [f"s-{k:04d}" for k in range(num)]
    boxes = shapely.box(lon - 0.001, lat - 0.001, lon + 0.001, lat + 0.001)
    chips = pd.DataFrame(
        {
            "chip_id": ids,
            "scene_id": "s",
            "row": np.arange(num),
            "acquired": "2020-07-01",
            "sensor": "toy",
            "gsd_m": 10.0,
            "lon": lon,
            "lat": lat,
            "footprint": shapely.to_wkb(boxes),
            "cloud_fraction": more.get("cloud_fraction", np.zeros(num)),
            "pixel_row": np.arange(num) // PER_LINE * SIZE,
            "pixel_col": np.arange(num) % PER_LINE * SIZE,
            "size_px": SIZE,
            "crs_wkt": CRS.from_epsg(32643).to_wkt(),
            "transform": [
                [10.0, 0.0, 7e5 + 10.0 * SIZE * (k % PER_LINE), 0.0, -10.0, 3e6 - 10.0 * SIZE * (k // PER_LINE)]
                for k in range(num)
            ],
        }
    )
    for name in ("chips", "proportions", "embeddings"):
        (store / name).mkdir(parents=True)
    np.save(store / "chips" / "s.npy", np.full((num, 8, 8, 3), 120, dtype=np.uint8))
    chips.to_parquet(store / "chips" / "s.parquet", index=False)
    write_json(store / "chips" / "cut.json", {"bands": ["red", "green", "blue"], "size_px": 8, "config": {}})
    columns = {f"fraction_{name}": shares[:, k] for k, name in enumerate(CLASSES)}
    known = {
        "known_fraction": more.get("known_fraction", np.ones(num)),
        "gap_days": more.get("gap_days", np.zeros(num)),
    }
    pd.DataFrame({"chip_id": ids, **known, **columns}).to_parquet(store / "proportions" / "s.parquet", index=False)
    colours = ["#008000", "#0000ff", "#c0a080"]
    write_json(store / "proportions" / "legend.json", {"classes": list(CLASSES), "colours": colours})
    write_table(store / "embeddings" / "s.parquet", chips, quantise(features), NETWORK, "v")
    write_json(store / "embeddings" / NETWORK_FILE, NETWORK)


def audited(store: Path, name: str = "map_audit", **more: Any) -> Path:
    config = MapAuditConfig(place_size_deg=0.1, plantings=2, **more)
    audit_map(
        config, 2.0, store / "embeddings", store / "chips", store / "proportions", store / name, RecordingReporter()
    )
    return store / name


def test_planted_errors_stand_at_the_head_of_the_list(tmp_path: Path) -> None:
    features, shares, lon, lat = toy()
    wrong, planted = plant(shares, "gross", 0.05, np.random.default_rng(9))
    write_store(tmp_path, features, wrong, lon, lat)
    out = audited(tmp_path)
    table = gpd.read_parquet(out / "audit.parquet")
    first = table.head(int(planted.sum()))["chip_id"].str[2:].astype(int)
    assert planted[first].mean() > 0.85
    assert table["rank"].tolist() == list(range(1, NUM + 1))
    assert table["score"].is_monotonic_decreasing
    row = table.iloc[0]
    assert row["surplus_class"] != row["missing_class"]
    assert row[f"map_{row['surplus_class']}"] > row[f"image_{row['surplus_class']}"] + 0.3
    assert row[f"map_{row['missing_class']}"] < row[f"image_{row['missing_class']}"] - 0.3
    assert np.allclose(table[[f"image_{name}" for name in CLASSES]].sum(axis=1), 1, atol=1e-3)
    assert table.crs == "OGC:CRS84"


def test_a_map_of_other_ground_is_called_so(tmp_path: Path) -> None:
    features, shares, lon, lat = toy()
    elsewhere = shares[np.random.default_rng(1).permutation(NUM)]
    for name, shown in (("own", shares), ("other", elsewhere)):
        write_store(tmp_path / name, features, shown, lon, lat)
        inputs, reporter = (
            [tmp_path / name / part for part in ("embeddings", "chips", "proportions")],
            RecordingReporter(),
        )
        summary = audit_map(
            MapAuditConfig(place_size_deg=0.1, plantings=1), 2.0, *inputs, tmp_path / name / "out", reporter
        )
        told = [line for line in summary.warnings if "have next to nothing to do with each other" in line]
        assert bool(told) is (name == "other")
        assert told == [line for line in reporter.warnings if "next to nothing" in line]
        assert (float(summary.numbers["explained_fraction"]) > 0.5) is (name == "own")


def test_each_run_tells_what_it_found_of_errors_of_its_own(tmp_path: Path) -> None:
    write_store(tmp_path, *toy(noise=0.5))
    reporter = RecordingReporter()
    config = MapAuditConfig(place_size_deg=0.1, plantings=3)
    inputs = [tmp_path / name for name in ("embeddings", "chips", "proportions")]
    summary = audit_map(config, 2.0, *inputs, tmp_path / "out", reporter)
    planted = read_json(tmp_path / "out" / "audit.json")["planted"]
    assert planted["gross"]["plantings"] == 3
    assert planted["gross"]["num_planted"] == 30
    assert planted["gross"]["average_precision"] > planted["gentle"]["average_precision"] > 0.05
    assert summary.numbers["gross_average_precision"] == planted["gross"]["average_precision"]
    assert summary.picture_png is not None
    assert len(summary.table) == 20


def test_vectors_that_say_nothing_find_nothing() -> None:
    features, shares, lon, lat = toy()
    noise = np.random.default_rng(1).normal(size=features.shape).astype(np.float32)
    folds = folds_by_place(lon, lat, 0.1, 5)
    predictor = Predictor(noise, folds)
    found = measure(shares, lambda s: disagreement(predictor, s, folds).score, "gentle", 0.05, np.random.default_rng(0))
    assert found is not None
    assert found.average_precision < 0.2


def test_no_chip_is_judged_by_its_own_place() -> None:
    features, shares, lon, lat = toy()
    folds = folds_by_place(lon, lat, 0.1, 5)
    cells = np.floor(np.stack([lon, lat], axis=1) / 0.1).astype(int)
    for cell in np.unique(cells, axis=0):
        assert len(set(folds[(cells == cell).all(axis=1)])) == 1
    part = next(part for part in Predictor(features, folds)._parts if 0 in part.rows)
    assert not set(part.rows) & set(part.others)
    changed = shares.copy()
    changed[part.rows] = changed[part.rows][:, ::-1]
    assert np.array_equal(part.predictions(shares), part.predictions(changed))


def test_a_chip_stays_in_its_fold_when_others_come() -> None:
    _, _, lon, lat = toy()
    assert np.array_equal(folds_by_place(lon, lat, 0.1, 5)[:100], folds_by_place(lon[:100], lat[:100], 0.1, 5))


def test_planting_changes_what_it_says_and_nothing_else() -> None:
    shares = np.random.default_rng(0).dirichlet(np.full(4, 0.4), 500)
    for kind, least, most in (("gross", 1.0, 2.0), ("gentle", 0.5, 1.0)):
        changed, planted = plant(shares, kind, 0.1, np.random.default_rng(1))  # type: ignore[arg-type]
        distance = np.abs(changed - shares).sum(axis=1)
        assert 40 <= planted.sum() <= 50
        assert (distance[planted] >= least - 1e-9).all()
        assert (distance[planted] <= most + 1e-9).all()
        assert (distance[~planted] == 0).all()
        assert np.allclose(changed.sum(axis=1), 1)
    same = np.full((60, 2), 0.5)
    assert measure(same, lambda s: s[:, 0], "gross", 0.1, np.random.default_rng(0)) is None


def test_average_precision_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    wanted, scores = rng.random(300) < 0.1, rng.random(300)
    ours = average_precision(wanted[np.argsort(-scores)])
    assert ours == pytest.approx(average_precision_score(wanted, scores))


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    write_store(tmp_path, *toy())
    one, two = audited(tmp_path, "one"), audited(tmp_path, "two")
    bytes_of = [
        {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} for out in (one, two)
    ]
    assert bytes_of[0] == bytes_of[1]
    assert len(bytes_of[0]) == 4


def test_kinds_go_by_cloud_then_time_then_how_often_the_confusion_returns() -> None:
    chips = pd.DataFrame(
        {"cloud_fraction": [0.5, 0, np.nan, 0, 0] + [0] * 10, "gap_days": [9999, 2000, np.nan, 0, 0] + [0] * 10}
    )
    shares = np.full((15, 2), 0.5)
    pairs = Pairs(chips, np.zeros((15, 1), dtype=np.float32), shares, ("a", "b"), ("#000000", "#ffffff"), {}, 0)
    surplus = ["a", "a", "b", "b", "c"] + ["a"] * 10
    missing = ["b", "b", "a", "a", "a"] + ["b"] * 10
    kinds = kinds_of(MapAuditConfig(), pairs.chips, (surplus, missing), np.arange(15), Causes.none(15))
    assert kinds[:5] == ["cloud", "image_map_gap", "single", "single", "single"]
    assert set(kinds[5:]) == {"class_confusion"}
    everywhere, one = np.ones(15, dtype=bool), np.arange(15) == 1
    kinds = kinds_of(MapAuditConfig(), pairs.chips, (surplus, missing), np.arange(15), Causes(one, everywhere))
    assert kinds[:3] == ["cloud", "changed_between_editions", "misregistration"]
    assert set(kinds[2:]) == {"misregistration"}


def test_a_change_between_editions_is_told_from_an_error(tmp_path: Path) -> None:
    """Errors planted into the map, of which another edition has half right."""
    features, shares, lon, lat = toy()
    wrong, planted = plant(shares, "gross", 0.1, np.random.default_rng(9))
    write_store(tmp_path, features, wrong, lon, lat)
    changed = planted & (np.arange(NUM) % 2 == 0)
    write_store(tmp_path / "newer", features, np.where(changed[:, None], shares, wrong), lon, lat)
    table = gpd.read_parquet(audited(tmp_path, other_edition=tmp_path / "newer" / "proportions") / "audit.parquet")
    called = table[table["kind"] == "changed_between_editions"]["chip_id"].str[2:].astype(int)
    assert set(called) <= set(np.flatnonzero(changed))
    assert len(called) > 0.9 * changed.sum()
    legend = tmp_path / "newer" / "proportions" / "legend.json"
    write_json(legend, {"classes": ["a", "b", "c"], "colours": ["#000000"] * 3})
    with pytest.raises(AuditError, match="two editions are compared by one legend"):
        audited(tmp_path, "again", other_edition=tmp_path / "newer" / "proportions")
    with pytest.raises(MissingInputError, match="map_audit.other_edition"):
        audited(tmp_path, "again", other_edition=tmp_path / "nothing")


def test_the_gallery_says_what_its_colours_are(tmp_path: Path) -> None:
    """Grey chips of which the map has two classes; the third of the legend is on none of them."""
    features, shares, lon, lat = toy()
    write_store(tmp_path, features, shares, lon, lat)
    colours = ("#008000", "#0000ff", "#c0a080")
    pairs = Pairs(pd.DataFrame(), (), shares, CLASSES, colours, {}, 0)
    row = {"scene_id": "s", "row": 3, "rank": 1, "kind": "single", "map_forest": 1.0, "image_water": 1.0}
    rows = pd.DataFrame([row, {**row, "row": 4, "rank": 2}])
    rows = rows.reindex(columns=[*rows, "map_water", "map_bare", "image_forest", "image_bare"], fill_value=0.0)
    with Image.open(io.BytesIO(gallery(tmp_path / "chips", rows, pairs))) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    chip_px, lines = 184, [16, 16, 16]
    assert pixels.shape[0] == chip_px + sum(lines) + 10 + 4 + 18, (
        "a chip below its rank, two bars, and a line of legend"
    )
    forest, water, bare = ((np.abs(pixels - colour).max(axis=2) < 8) for colour in palette_of(colours))
    for colour, top in ((forest, 16 + chip_px), (water, 32 + chip_px)):
        assert colour[top : top + 16].sum() > 2 * 100 * 10, "a bar in each of two chips"
        assert colour[-18:].sum() > 80, "and a square in the legend"
    assert not bare.any()
    assert (pixels[:16, :184] < 100).any(), "its rank"


def test_what_cannot_be_audited_is_named(tmp_path: Path) -> None:
    features, shares, lon, lat = toy()
    write_store(tmp_path / "few", features, shares, lon, lat, known_fraction=np.where(np.arange(NUM) < 40, 1.0, 0.2))
    with pytest.raises(AuditError, match=r"40 of 600 chips have land cover on 90% of their ground"):
        audited(tmp_path / "few")
    one = np.tile([1.0, 0.0, 0.0], (NUM, 1))
    write_store(tmp_path / "one", features, one, lon, lat)
    with pytest.raises(AuditError, match=r"shows forest on 100\.0% of the ground"):
        audited(tmp_path / "one")
    write_store(tmp_path / "place", features, shares, lon * 0.01, lat * 0.01)
    with pytest.raises(AuditError, match="no place can be held out"):
        audited(tmp_path / "place")
    (tmp_path / "place" / "proportions" / "legend.json").unlink()
    with pytest.raises(MissingInputError, match="geokr proportions"):
        audited(tmp_path / "place")
    write_store(tmp_path / "none", features, shares, lon, lat)
    (tmp_path / "none" / "proportions" / "s.parquet").unlink()
    with pytest.raises(AuditError, match="can be embedded and searched, not audited"):
        audited(tmp_path / "none")


def test_a_second_network_finds_what_the_first_does_not_see(tmp_path: Path) -> None:
    """One network tells forest from the rest, the other water from the rest; the order of chips in its folder is another one."""
    _, shares, lon, lat = toy()
    noise = np.random.default_rng(3).normal(0, 0.1, (NUM, D))
    seen = [np.outer(shares[:, k], np.ones(D)) + noise[:, ::step] for k, step in ((0, 1), (1, -1))]
    write_store(tmp_path, seen[0].astype(np.float32), shares, lon, lat)
    write_store(tmp_path / "other", seen[1].astype(np.float32), shares, lon, lat)
    _rewritten_as(tmp_path / "other" / "embeddings", seen[1].astype(np.float32), NETWORK | {"model": "second"})
    results = [
        read_json(audited(tmp_path, f"out{k}", other_embeddings=other) / "audit.json")
        for k, other in enumerate((None, (tmp_path / "other" / "embeddings",)))
    ]
    one, both = (result["planted"]["gross"]["average_precision"] for result in results)
    assert one < 0.85
    assert both > one + 0.05
    assert "other_networks" not in results[0]
    assert results[1]["other_networks"] == [{"model": "second", "model_version": "1", "features": "last"}]


def _rewritten_as(folder: Path, features: np.ndarray, network: dict[str, Any]) -> None:
    """The vectors of a folder made anew by another network, and their chips along another curve."""
    chips = pd.read_parquet(folder.parent / "chips" / "s.parquet")
    write_table(folder / "s.parquet", chips.assign(lon=-chips["lon"]), quantise(features), network, "v")
    write_json(folder / NETWORK_FILE, network)


def test_vectors_that_cannot_be_asked_together_are_refused(tmp_path: Path) -> None:
    features, shares, lon, lat = toy()
    for name in (".", "other", "few"):
        write_store(tmp_path / name, features, shares, lon, lat)
    other = tmp_path / "other" / "embeddings"
    for network, told in (
        ({}, "the same network a second time adds nothing"),
        ({"model": "second", "chip_size_px": 16}, "chips of 16 px, those of toy are of 8 px"),
    ):
        _rewritten_as(other, features, NETWORK | network)
        with pytest.raises(AuditError, match=told):
            audited(tmp_path, other_embeddings=(other,))
    chips = pd.read_parquet(tmp_path / "few" / "chips" / "s.parquet").head(500)
    network = NETWORK | {"model": "second"}
    write_table(tmp_path / "few" / "embeddings" / "s.parquet", chips, quantise(features[:500]), network, "v")
    write_json(tmp_path / "few" / "embeddings" / NETWORK_FILE, network)
    with pytest.raises(AuditError, match=r"no vector of 100 of the 600 audited chips, 's-05\d\d' first"):
        audited(tmp_path, other_embeddings=(tmp_path / "few" / "embeddings",))
    with pytest.raises(MissingInputError, match="geokr embed"):
        audited(tmp_path, other_embeddings=(tmp_path / "nothing",))
