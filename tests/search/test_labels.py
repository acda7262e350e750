"""Labels from the page are read back, refused where they do not belong, and learned from."""

from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest

from geokr_core.embeddings.read import open_embeddings
from geokr_core.errors import EmbeddingsError, MissingInputError
from geokr_core.search.find import Archive
from geokr_core.search.index import build_index
from geokr_core.search.labels import Learned, learn, read_labels, write_map

WriteLabels = Callable[..., Path]


def test_a_few_labels_tell_striped_from_plain(archive: Archive, write_labels: WriteLabels, tmp_path: Path) -> None:
    found = open_embeddings(archive.embeddings)
    path = write_labels(("a-000", "yes"), ("b-002", "yes"), ("a-001", "no"), ("b-005", "no"), ("a-009", "unsure"))
    learned = learn(read_labels(path, found), found, build_index(found))
    striped = np.array([int(chip.split("-")[1]) % 2 == 0 for chip in found.chips["chip_id"]])
    assert ((learned.probability > 0.5) == striped).all()
    assert (learned.num_yes, learned.num_no) == (2, 2)
    write_map(found, learned, tmp_path / "map.parquet")
    written = gpd.read_parquet(tmp_path / "map.parquet")
    assert len(written) == len(found)
    assert written.geometry.bounds["maxx"].sub(written.geometry.bounds["minx"]).max() < 0.02


def test_the_least_certain_come_first() -> None:
    learned = Learned(np.array([0.9, 0.52, 0.1, 0.4, 0.5]), 1, 1)
    assert learned.least_certain(np.array([True, True, True, True, False]), 3).tolist() == [1, 3, 0]


def test_the_last_label_of_a_chip_counts(archive: Archive, write_labels: WriteLabels) -> None:
    found = open_embeddings(archive.embeddings)
    labels = read_labels(write_labels(("a-000", "no"), ("a-001", "no"), ("a-000", "yes")), found)
    assert dict(zip(labels["chip_id"], labels["label"], strict=True)) == {"a-000": "yes", "a-001": "no"}


def test_labels_that_do_not_belong_are_refused(archive: Archive, write_labels: WriteLabels, tmp_path: Path) -> None:
    found = open_embeddings(archive.embeddings)
    with pytest.raises(EmbeddingsError, match="labelled with vectors of version old"):
        read_labels(write_labels(("a-000", "yes"), model_version="old"), found)
    with pytest.raises(EmbeddingsError, match=r"1 of 2 labelled chips are not in the archive, such as 'z-000'"):
        read_labels(write_labels(("a-000", "yes"), ("z-000", "no")), found)
    with pytest.raises(EmbeddingsError, match="label 'maybe'"):
        read_labels(write_labels(("a-000", "maybe")), found)
    with pytest.raises(EmbeddingsError, match="a row has no 'label'"):
        read_labels(write_labels(("a-000", "yes"), ("a-001", None)), found)
    with pytest.raises(EmbeddingsError, match="none of them 'no'"):
        learn(read_labels(write_labels(("a-000", "yes")), found), found, build_index(found))
    with pytest.raises(MissingInputError, match="no such file of labels"):
        read_labels(tmp_path / "none.parquet", found)
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(EmbeddingsError, match="not a GeoParquet file"):
        read_labels(tmp_path / "text.parquet", found)
    with pytest.raises(EmbeddingsError, match="column 'target' is missing"):
        read_labels(archive.embeddings / "a.parquet", found)
