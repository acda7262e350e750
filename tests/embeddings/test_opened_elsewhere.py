"""Vectors opened as the page says, by programs that know nothing of this project."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from installing import made, output_of

from geokr_core.embeddings.config import EmbeddingsConfig
from geokr_core.embeddings.embed import embed_scenes
from geokr_core.embeddings.read import open_embeddings
from geokr_core.step.reporter import RecordingReporter

PAGE = Path(__file__).parents[2] / "docs" / "embeddings.md"
_DUCKDB_SCRIPT = """
import json
import sys

import duckdb

rows = duckdb.sql(sys.argv[1]).fetchall()
print(json.dumps([[chip_id, west, south, list(codes)] for chip_id, west, south, codes in rows]))
"""
_TORCHGEO_SCRIPT = """
import json
import sys

from torchgeo.datasets import EarthIndexEmbeddings

found = EarthIndexEmbeddings(sys.argv[1])
rows = [found[k] for k in range(len(found))]
print(json.dumps([[float(row["x"]), float(row["y"]), row["embedding"].tolist()] for row in rows]))
"""


@pytest.fixture
def folder(archive: Callable[..., Path], weights: Path) -> Path:
    store = archive("north", "antimeridian")
    config = EmbeddingsConfig(architecture="squeezenet1_1", weights=weights, device="cpu", workers=1)
    embed_scenes(config, None, store / "chips", store / "embeddings", RecordingReporter())
    return store / "embeddings"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_duckdb_answers_the_query_of_the_page(folder: Path, tmp_path: Path) -> None:
    query = _query().replace("data/store/embeddings", str(folder)).split("WHERE")[0]  # these chips have no date
    (line,) = output_of(made(tmp_path, "duckdb"), _DUCKDB_SCRIPT, query)
    expected = open_embeddings(folder)
    kept = {
        chip_id: codes.tolist()
        for file in folder.glob("*.parquet")
        for chip_id, codes in pd.read_parquet(file)[["chip_id", "embedding"]].itertuples(index=False)
    }
    rows = {chip_id: (west, south, codes) for chip_id, west, south, codes in json.loads(line)}
    assert len(rows) == len(expected)
    for place, chip_id in enumerate(expected.chips["chip_id"]):
        west, south, codes = rows[chip_id]
        assert (west, south) == tuple(expected.chips.loc[place, ["west", "south"]])
        assert codes == kept[chip_id]


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.skipif(sys.version_info < (3, 12), reason="the TorchGeo that reads such vectors needs Python 3.12")
def test_torchgeo_reads_a_scene_s_vectors(folder: Path, tmp_path: Path) -> None:
    (line,) = output_of(made(tmp_path, "torchgeo>=0.9", "pyarrow"), _TORCHGEO_SCRIPT, str(folder / "north.parquet"))
    expected = open_embeddings(folder, ["north"])
    places = [(x, y) for x, y, _ in json.loads(line)]
    assert np.allclose(places, expected.chips[["lon", "lat"]], atol=1e-4)  # float32 degrees
    assert all(len(codes) == expected.vectors.shape[1] for _, _, codes in json.loads(line))


def _query() -> str:
    return PAGE.read_text(encoding="utf-8").split("```sql\n")[1].split("```")[0].strip().rstrip(";")
