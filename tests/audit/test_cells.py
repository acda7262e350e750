"""The audit of cells: errors smaller than a chip are found where they are, and what was not kept is refused by name."""

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
import yaml
from affine import Affine
from rasterio.crs import CRS

from geokr_core.audit.cell_judge import scores_of_cells
from geokr_core.audit.cell_planting import plant_on_ground
from geokr_core.audit.config import MapAuditConfig
from geokr_core.audit.run import audit_map
from geokr_core.chain.params import Params
from geokr_core.embeddings.cells import write_cell_map
from geokr_core.embeddings.outputs import NETWORK_FILE
from geokr_core.embeddings.quantisation import quantise
from geokr_core.embeddings.table import write_table
from geokr_core.errors import AuditError, DamagedOutputError
from geokr_core.step.files import read_json, write_json
from geokr_core.step.reporter import RecordingReporter
from geokr_core.step.summary import Summary

CLASSES, D, SIZE, PER_LINE, NUM = ("forest", "water", "bare"), 10, 8, 20, 240
NETWORK = {"model": "toy", "model_version": "1", "features": "last", "num_dimensions": D, "chip_size_px": SIZE}
CONFIG = {"place_size_deg": 0.005, "plantings": 2, "cells": {"listed": 300}}


def toy(noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Pure cells in patches, and vectors that say their class up to noise: (N, 8, 8, K) and (N, 8, 8, D)."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, len(CLASSES), (NUM, 2, 2)).repeat(4, axis=1).repeat(4, axis=2)
    shares = np.eye(len(CLASSES))[codes]
    vectors = shares @ rng.normal(size=(len(CLASSES), D)) + rng.normal(0, noise, (NUM, 8, 8, D))
    return vectors.astype(np.float32), shares


def write_store(store: Path, vectors: np.ndarray, shares: np.ndarray, height_m: float = -10.0) -> None:
    """A store of one scene in Delhi's zone, chips side by side, a pixel a cell."""
    grid = Affine(10.0, 0, 700_000.0, 0, height_m, 3_000_000.0)
    rows, columns = np.arange(NUM) // PER_LINE * SIZE, np.arange(NUM) % PER_LINE * SIZE
    x, y = grid @ (columns + SIZE / 2, rows + SIZE / 2)
    to_lonlat = gpd.GeoSeries(shapely.points(x, y), crs=32643).to_crs("OGC:CRS84")
    lon, lat = to_lonlat.x.to_numpy(), to_lonlat.y.to_numpy()
    ids = [f"s-{k:04d}" for k in range(NUM)]
    chips = pd.DataFrame(
        {
            "chip_id": ids,
            "scene_id": "s",
            "row": np.arange(NUM),
            "acquired": "2020-07-01",
            "sensor": "toy",
            "gsd_m": 10.0,
            "lon": lon,
            "lat": lat,
            "footprint": shapely.to_wkb(shapely.box(lon - 4e-4, lat - 4e-4, lon + 4e-4, lat + 4e-4)),
            "cloud_fraction": 0.0,
            "pixel_row": rows,
            "pixel_col": columns,
            "size_px": SIZE,
            "crs_wkt": CRS.from_epsg(32643).to_wkt(),
            "transform": [list((grid @ Affine.translation(c, r))[:6]) for r, c in zip(rows, columns, strict=True)],
        }
    )
    for name in ("chips", "proportions", "embeddings"):
        (store / name).mkdir(parents=True)
    np.save(store / "chips" / "s.npy", np.full((NUM, SIZE, SIZE, 3), 120, dtype=np.uint8))
    chips.to_parquet(store / "chips" / "s.parquet", index=False)
    write_json(store / "chips" / "cut.json", {"bands": ["red", "green", "blue"], "size_px": SIZE, "config": {}})
    means = shares.mean(axis=(1, 2))
    columns_of = {f"fraction_{name}": means[:, k] for k, name in enumerate(CLASSES)}
    table = pd.DataFrame({"chip_id": ids, "known_fraction": 1.0, "gap_days": 0.0, **columns_of})
    table.to_parquet(store / "proportions" / "s.parquet", index=False)
    np.save(store / "proportions" / "s.cells.npy", np.rint(shares * 255).astype(np.uint8))
    write_json(store / "proportions" / "legend.json", {"classes": list(CLASSES), "colours": ["#008000"] * len(CLASSES)})
    write_table(store / "embeddings" / "s.parquet", chips, quantise(vectors.mean(axis=(1, 2))), NETWORK, "v")
    write_json(store / "embeddings" / NETWORK_FILE, NETWORK)
    write_cell_map(store / "embeddings" / "s.cells.tif", chips, [vectors], D)


def audited(store: Path, **more: Any) -> tuple[Path, Summary]:
    config = MapAuditConfig.model_validate({**CONFIG, **more})
    folders = [store / name for name in ("embeddings", "chips", "proportions", "map_audit")]
    summary = audit_map(config, 2.0, *folders[:3], folders[3], RecordingReporter())
    return folders[3], summary


@pytest.mark.parametrize("height_m", [-10.0, 10.0])
def test_a_wrong_quarter_of_a_chip_is_found_on_its_ground(tmp_path: Path, height_m: float) -> None:
    vectors, shares = toy()
    wrong = 87  # in the fifth line of chips
    shares[wrong, :4, 4:] = np.eye(3)[(shares[wrong, 0, 4].argmax() + 1) % 3]
    write_store(tmp_path, vectors, shares, height_m)
    out, _ = audited(tmp_path)
    cells = gpd.read_parquet(out / "cells.parquet")
    first = cells.head(12)
    assert set(first["chip_id"]) == {f"s-{wrong:04d}"}
    assert (first["surplus_class"] != first["missing_class"]).all()
    grid = Affine(10.0, 0, 700_000.0, 0, height_m, 3_000_000.0)
    corners = [grid @ (wrong % PER_LINE * SIZE + c, wrong // PER_LINE * SIZE + r) for r, c in ((0, 4), (4, 8))]
    (left, upper), (right, lower) = corners
    quarter = shapely.box(min(left, right), min(upper, lower), max(left, right), max(upper, lower))
    assert quarter.buffer(1.0).covers(first.to_crs(32643).geometry.centroid).all()
    with rasterio.open(out / "maps" / "s.cells.disagreement.tif") as found:
        assert (found.res, found.transform.e < 0) == ((10.0, 10.0), True)
        score = found.read(1)
        worst = cells.iloc[0]
        assert score[worst["cell_row"], worst["cell_column"]] == pytest.approx(worst["score"], abs=1e-3)
        x, y = found.transform @ (worst["cell_column"] + 0.5, worst["cell_row"] + 0.5)
        assert quarter.contains(shapely.Point(x, y))
        assert found.descriptions[:4] == ("score", "moved_fraction", "map_forest", "image_forest")
    assert gpd.read_parquet(out / "audit.parquet").iloc[0]["chip_id"] == f"s-{wrong:04d}"
    assert len(cells) == 300
    assert cells["score"].is_monotonic_decreasing


def test_each_run_tells_what_it_found_of_cells_with_planted_errors(tmp_path: Path) -> None:
    for name, noise in (("told", 0.3), ("noise", 1e3)):
        write_store(tmp_path / name, *toy(noise))
        out, summary = audited(tmp_path / name)
        content = read_json(out / "audit.json")
        planted = content["cells"]["planted"]["gentle"]
        assert content["cells"]["num_cells"] == planted["num_cells"] == NUM * 64
        assert 0 < planted["num_planted"] < 0.05 * NUM * 64
        assert summary.numbers["gentle_cells_average_precision"] == planted["average_precision"]
        assert (planted["average_precision"] > 0.8) is (name == "told")
        assert (content["planted"]["gentle"]["average_precision"] > 0.8) is (name == "told")


def test_a_gentle_error_moves_a_quarter_to_a_half_of_a_chip_in_one_piece() -> None:
    _, shares = toy()
    shares[:] = np.eye(3)[0]
    changed, moved = plant_on_ground(shares, "gentle", 0.2, np.random.default_rng(0))
    of_chips = moved.mean(axis=(1, 2))
    planted = of_chips > 0
    assert planted.sum() == round(0.2 * NUM)
    assert ((of_chips[planted] >= 0.25) & (of_chips[planted] <= 0.5)).all()
    assert np.allclose(changed.sum(axis=-1), 1)
    alone = scores_of_cells(moved.astype(np.float32), np.ones_like(moved, dtype=np.float32), moved >= 0)
    assert (alone[moved > 0.9] >= 1 / 3).all()


def test_a_cell_that_is_not_judged_counts_for_no_neighbour() -> None:
    residual, expected = np.ones((3, 3), np.float32), np.ones((3, 3), np.float32)
    residual[0, 0], residual[2, 2], known = 9.0, 4.0, np.ones((3, 3), bool)
    known[0, 0] = False
    scores = scores_of_cells(residual, expected, known)
    assert np.isnan(scores[0, 0])
    assert scores[1, 1] == pytest.approx((7 + 4) / 8)
    assert scores[2, 2] == pytest.approx((3 + 4) / 4)
    assert scores[0, 1] == pytest.approx(1.0)


def test_a_chip_that_was_moved_to_the_edge_is_judged_by_the_cells_that_lie_in_it(tmp_path: Path) -> None:
    vectors, shares = toy()
    last = NUM - 1  # begins between two cells where a cell is two pixels wide
    shares[last] = np.eye(3)[(shares[last].argmax(axis=-1) + 1) % 3]
    write_store(tmp_path, vectors, shares)
    path = tmp_path / "chips" / "s.parquet"
    chips = pd.read_parquet(path)
    wide = Affine(5.0, 0, 700_000.0, 0, -5.0, 3_000_000.0)
    chips["size_px"] *= 2
    chips[["pixel_row", "pixel_col"]] *= 2
    chips.loc[last, "pixel_col"] -= 3
    chips["transform"] = [
        list((wide @ Affine.translation(c, r))[:6]) for r, c in zip(chips["pixel_row"], chips["pixel_col"], strict=True)
    ]
    chips.to_parquet(path, index=False)
    write_cell_map(tmp_path / "embeddings" / "s.cells.tif", chips, [vectors], D)
    out, _ = audited(tmp_path)
    table = gpd.read_parquet(out / "audit.parquet").set_index("chip_id")
    assert np.isfinite(table["score"]).all()
    with rasterio.open(out / "maps" / "s.cells.disagreement.tif") as found:
        score = found.read(1)
    # No chip that begins at a cell covers the last ones, so that they have no data.
    assert np.isnan(score[-8:, -8:]).all()
    assert not np.isnan(score[:-8]).any()


def test_an_audit_of_cells_is_refused_before_it_runs_where_none_are_kept() -> None:
    content = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"))
    content["map_audit"] = {"cells": {}}
    with pytest.raises(ValueError, match=r"embeddings\.cells: true"):
        Params.model_validate(content)
    content["embeddings"] = {"cells": True}
    Params.model_validate(content)
    content["proportions"] = {"cells_per_side": 0}
    with pytest.raises(ValueError, match="set it to 8"):
        Params.model_validate(content)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("embeddings/s.cells.tif", r"embeddings\.cells: true"),
        ("proportions/s.cells.npy", r"proportions\.cells_per_side: 8"),
    ],
)
def test_cells_that_were_not_kept_are_asked_for_by_name(tmp_path: Path, name: str, told: str) -> None:
    write_store(tmp_path, *toy())
    (tmp_path / name).unlink()
    with pytest.raises(AuditError, match=told):
        audited(tmp_path)
    audited(tmp_path, cells=None)


def test_land_cover_of_other_cells_and_vectors_of_other_chips_are_refused(tmp_path: Path) -> None:
    vectors, shares = toy()
    write_store(tmp_path, vectors, shares)
    np.save(tmp_path / "proportions" / "s.cells.npy", np.zeros((NUM, 4, 4, 3), dtype=np.uint8))
    with pytest.raises(AuditError, match="4 x 4 cells a chip, vectors of 8 x 8"):
        audited(tmp_path)
    np.save(tmp_path / "proportions" / "s.cells.npy", np.rint(shares * 255).astype(np.uint8))
    chips = pd.read_parquet(tmp_path / "chips" / "s.parquet")
    write_cell_map(tmp_path / "embeddings" / "s.cells.tif", chips.iloc[:-PER_LINE], [vectors[:-PER_LINE]], D)
    with pytest.raises(DamagedOutputError, match="cut anew"):
        audited(tmp_path)
