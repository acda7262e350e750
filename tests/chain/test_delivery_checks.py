"""Checks of raw data and of what is delivered, on good and on broken files."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from geokr_core.chain import delivery_checks as checks
from geokr_core.errors import MissingInputError


def test_a_world_without_land_cover_fails(tmp_path: Path) -> None:
    for name in ("scenes", "land_cover"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.tif").touch()
    assert checks.raw_data_are_there(tmp_path).passed
    (tmp_path / "land_cover" / "a.tif").unlink()
    finding = checks.raw_data_are_there(tmp_path)
    assert not finding.passed
    assert "land_cover" in finding.message
    with pytest.raises(MissingInputError, match="geokr world"):
        checks.raw_data_are_there(tmp_path / "nowhere")


def test_a_product_without_tiles_is_named(tmp_path: Path) -> None:
    products = [{"name": "globe"}, {"name": "esa"}]
    (tmp_path / "products.json").write_text(json.dumps({"products": products}), encoding="utf-8")
    pd.DataFrame({"product": ["globe", "globe", "esa"]}).to_parquet(tmp_path / "tiles.parquet")
    assert checks.every_product_has_tiles(tmp_path).numbers == {"num_tiles_globe": 2, "num_tiles_esa": 1}
    pd.DataFrame({"product": ["globe"]}).to_parquet(tmp_path / "tiles.parquet")
    finding = checks.every_product_has_tiles(tmp_path)
    assert not finding.passed
    assert "Scenes that use esa get no labels" in finding.message


@pytest.mark.parametrize(("values", "passed"), [([0.5, 0.7], True), ([0.5, math.nan], False), ([], False)])
def test_a_score_that_is_no_number_fails(tmp_path: Path, values: list[float], passed: bool) -> None:
    table = pd.DataFrame({"task": ["clouds"] * len(values), "metric": "miou", "value": pd.Series(values, dtype=float)})
    table.to_parquet(tmp_path / "results.parquet")
    assert checks.scores_are_numbers(tmp_path).passed == passed


@pytest.mark.parametrize(
    ("markup", "passed"),
    [
        ('<img alt="a" src="data:image/png;base64,AAAA"><a href="https://example.org">further</a>', True),
        ('<img alt="a" src="picture.png">', False),
        ('<script src="https://example.org/a.js"></script>', False),
        ('<link rel="stylesheet" href="style.css">', False),
    ],
)
def test_a_report_that_loads_something_is_no_single_file(tmp_path: Path, markup: str, passed: bool) -> None:
    (tmp_path / "report.html").write_text(f"<html><body>{markup}</body></html>", encoding="utf-8")
    assert checks.report_stands_alone(tmp_path).passed == passed


def test_a_promotion_that_the_registry_does_not_know_fails(tmp_path: Path) -> None:
    decision = {"model_name": "m", "challenger": {"version": 3}, "data_version": "a.dir", "champion_version": 3}
    (tmp_path / "decision.json").write_text(json.dumps(decision), encoding="utf-8")
    finding = checks.promotion_stands(tmp_path)
    assert not finding.passed
    assert "There is no registry" in finding.message
    assert "geokr promote" in finding.message
