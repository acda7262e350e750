"""Freezing Levir-KR: what enters, how places are held out, and that rows and pixels stay together."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from geokr_core.config import LevirKRConfig
from geokr_core.errors import DatasetError, MissingInputError
from geokr_core.files import data_version
from geokr_core.levir_kr import freeze, open_levir_kr
from geokr_core.reporter import RecordingReporter
from geokr_core.testing import make_levir_kr


def refreeze(store: Path, **changes: object) -> None:
    config = LevirKRConfig(place_size_deg=0.5, **changes)
    freeze(config, store / "chips", store / "proportions", store / "levir_kr", RecordingReporter())


def test_rows_pixels_and_labels_belong_together(tmp_path: Path) -> None:
    dataset = make_levir_kr(tmp_path, num_chips=30)
    order = np.array([29, 3, 17, 3])
    images = dataset.images(order)
    for image, row in zip(images, order, strict=True):
        entry = dataset.catalogue.loc[row]
        shard = np.load(tmp_path / "chips" / entry["shard"])
        np.testing.assert_array_equal(image, shard[entry["row"]])
        labels = pd.read_parquet(tmp_path / "proportions" / f"{entry['scene_id']}.parquet").set_index("chip_id")
        np.testing.assert_allclose(
            dataset.proportions[row],
            labels.loc[entry["chip_id"]][[f"fraction_{name}" for name in dataset.classes]].to_numpy(float),
            atol=1e-6,
        )
    np.testing.assert_allclose(dataset.proportions.sum(axis=1), 1.0, atol=1e-5)


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    make_levir_kr(tmp_path, num_chips=30, cells_per_side=0)
    before = data_version(tmp_path / "levir_kr")
    refreeze(tmp_path, validation_fraction=0.2)
    assert data_version(tmp_path / "levir_kr") == before


def test_no_place_is_in_both_splits(tmp_path: Path) -> None:
    catalogue = make_levir_kr(tmp_path, num_chips=400, chip_size_px=8).catalogue
    place = (catalogue["lon"] // 0.5).astype(int).astype(str) + "," + (catalogue["lat"] // 0.5).astype(int).astype(str)
    assert catalogue.groupby(place)["split"].nunique().max() == 1
    assert 0.1 < (catalogue["split"] == "validation").mean() < 0.3


def test_chips_of_unknown_ground_stay_out(tmp_path: Path) -> None:
    make_levir_kr(tmp_path, num_chips=30)
    path = tmp_path / "proportions" / "scene0.parquet"
    table = pd.read_parquet(path)
    table.loc[0, "unknown_fraction"] = 0.9
    table.loc[1, "num_cells"] = 0.2
    table.to_parquet(path, index=False)
    refreeze(tmp_path)
    ids = set(open_levir_kr(tmp_path / "levir_kr").catalogue["chip_id"])
    assert not {"scene0-00000", "scene0-00001"} & ids
    assert len(ids) == 28
    with pytest.raises(DatasetError, match=r"none of 30 chips may enter.*most voting cells 290\.0 \(asked: 1000"):
        refreeze(tmp_path, min_voting_cells=1000)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    dataset = make_levir_kr(tmp_path, num_chips=30)
    (tmp_path / "chips" / "scene1.npy").unlink()
    with pytest.raises(DatasetError, match=r"1 of 2 shards are missing \(first: scene1\.npy\).*dvc pull"):
        open_levir_kr(tmp_path / "levir_kr").images(np.array([0]))
    (tmp_path / "proportions" / "scene1.parquet").unlink()
    with pytest.raises(MissingInputError, match="scene scene1 has chips but no proportions"):
        refreeze(tmp_path)
    with pytest.raises(MissingInputError, match="no frozen Levir-KR"):
        open_levir_kr(tmp_path)
    assert dataset.manifest["num_chips"] == 30


def test_land_cover_within_chips_is_read_in_the_order_of_the_catalogue(tmp_path: Path) -> None:
    store = make_levir_kr(tmp_path, num_chips=24, cells_per_side=8)
    rows = np.array([7, 2, 2, 19])
    cells = store.cells(rows)
    assert cells is not None
    assert (cells.dtype, cells.shape) == (np.uint8, (4, 8, 8, len(store.classes)))
    np.testing.assert_allclose(cells.mean(axis=(1, 2)) / 255, store.proportions[rows], atol=0.01)
    assert make_levir_kr(tmp_path / "without", num_chips=24, cells_per_side=0).cells(rows) is None


def test_land_cover_within_chips_of_another_data_set_is_refused(tmp_path: Path) -> None:
    store = make_levir_kr(tmp_path, num_chips=24, cells_per_side=8)
    np.save(store.folder / "cells.npy", np.zeros((23, 8, 8, len(store.classes)), np.uint8))
    with pytest.raises(DatasetError, match=r"found uint8 of shape \(23, 8, 8.*expected uint8 of shape \(24"):
        open_levir_kr(store.folder).cells(np.array([0]))
    (store.folder / "cells.npy").unlink()
    with pytest.raises(DatasetError, match="no such file, though the manifest names 8"):
        open_levir_kr(store.folder).cells(np.array([0]))
