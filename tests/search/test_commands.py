"""``geokr search`` and ``geokr label`` as a person types them."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import pytest
import yaml
from typer.testing import CliRunner

from geokr_core.cli import app
from geokr_core.errors import ConfigError
from geokr_core.search.find import Archive


@pytest.fixture
def params(archive: Archive, tmp_path: Path) -> Path:
    content = {
        "store": str(archive.embeddings.parent),
        "scenes": {
            "folder": str(tmp_path),
            "collections": [{"name": "any", "files": "*.tif", "land_cover": "globe"}],
        },
        "land_cover": {
            "folder": str(tmp_path),
            "products": [{"name": "globe", "files": "*.tif", "legend": "globeland30", "year": 2020}],
        },
        "embeddings": {"architecture": "squeezenet1_1", "weights": str(archive.config.weights)},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return tmp_path / "params.yaml"


def test_a_search_prints_a_table_and_writes_what_is_asked_for(params: Path, tmp_path: Path) -> None:
    files = [
        "--geojson",
        str(tmp_path / "a.geojson"),
        "--sheet",
        str(tmp_path / "a.png"),
        "--page",
        str(tmp_path / "a.html"),
    ]
    arguments = ["search", "-p", str(params), "--at", "20.02,10", "-n", "3", "--sensor", "GF1", *files]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert all(row["sensor"] == "GF1" and row["land_cover"] in ("forest", "") for row in rows)
    assert len(json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))["features"]) == 3
    assert (tmp_path / "a.png").stat().st_size > 0
    assert "40 chips" in done.stderr


def test_a_page_needs_no_example(params: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["search", "-p", str(params), "--page", str(tmp_path / "b.html")], catch_exceptions=False
    )
    assert "80 chips" in done.stderr
    assert done.stdout == ""


def test_labels_lead_to_the_next_page_and_to_a_map(
    params: Path, write_labels: Callable[..., Path], tmp_path: Path
) -> None:
    labels = write_labels(("a-000", "yes"), ("a-002", "yes"), ("a-001", "no"), ("b-003", "no"))
    files = ["--page", str(tmp_path / "next.html"), "--map", str(tmp_path / "map.parquet")]
    done = CliRunner().invoke(app, ["label", str(labels), "-p", str(params), "-n", "4", *files], catch_exceptions=False)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == 4
    assert not {"a-000", "a-001", "a-002", "b-003"} & {row["chip_id"] for row in rows}
    assert len(gpd.read_parquet(tmp_path / "map.parquet")) == 80
    text = (tmp_path / "next.html").read_text(encoding="utf-8")
    assert '"order": "uncertain"' in text
    assert '"target": "stripes"' in text


def test_a_mistake_is_named(params: Path) -> None:
    with pytest.raises(ConfigError, match="expected LON,LAT"):
        CliRunner().invoke(app, ["search", "-p", str(params), "--at", "here"], catch_exceptions=False)
