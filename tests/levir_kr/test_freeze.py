"""Freezing Levir-KR: what enters, how places are held out, and that rows and pixels stay together."""

import io
import os
import re
import resource
import signal
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest

from geokr_core.errors import DamagedOutputError, DatasetError, MissingInputError
from geokr_core.levir_kr.catalogue import scenes_of
from geokr_core.levir_kr.config import LevirKRConfig
from geokr_core.levir_kr.dataset import open_levir_kr
from geokr_core.levir_kr.freeze import freeze
from geokr_core.scenes.scene_outputs import chip_outputs
from geokr_core.step.digests import data_version, file_md5
from geokr_core.step.files import read_json, write_json
from geokr_core.step.reporter import RecordingReporter
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
    table.loc[0, "known_fraction"] = 0.1
    table.loc[1, "num_cells"] = 0.2
    table.to_parquet(path, index=False)
    refreeze(tmp_path)
    ids = set(open_levir_kr(tmp_path / "levir_kr").catalogue["chip_id"])
    assert not {"scene0-00000", "scene0-00001"} & ids
    assert len(ids) == 28
    with pytest.raises(
        DatasetError, match=r"none of 30 chips may enter.*most cells of known class 290\.0 \(asked: 1000"
    ):
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


def test_the_catalogue_is_geoparquet_in_several_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geokr_core.levir_kr.catalogue.ROWS_PER_GROUP", 10)
    dataset = make_levir_kr(tmp_path, num_chips=30)
    path = tmp_path / "levir_kr" / "catalogue.parquet"
    assert pq.read_metadata(path).num_row_groups == 2  # a scene of 15 chips fills a group of 10
    table = gpd.read_parquet(path)
    assert table.crs.to_epsg() == 4326
    assert table["chip_id"].tolist() == dataset.catalogue["chip_id"].tolist()
    centres = gpd.GeoSeries.from_xy(table["lon"], table["lat"], crs="EPSG:4326")
    assert table.geometry.intersects(centres).all()
    scenes = dict(scenes_of(path))
    assert list(scenes) == ["scene0", "scene1"], "a scene may go on in the next group"
    assert [len(rows) for rows in scenes.values()] == [15, 15]
    assert not {"geometry", "transform", "crs_wkt"} & set(dataset.catalogue.columns), "read only where needed"


def test_squares_are_frozen_in_the_order_of_the_catalogue(tmp_path: Path) -> None:
    make_levir_kr(tmp_path, num_chips=30)
    folder = tmp_path / "proportions"
    legend = read_json(folder / "legend.json")
    write_json(folder / "legend.json", {**legend, "config": {**legend["config"], "cells_per_side": 2}})
    num_classes = len(legend["classes"])
    for scene in ("scene0", "scene1"):
        table = pd.read_parquet(folder / f"{scene}.parquet")
        cells = np.zeros((len(table), 2, 2, num_classes), np.uint8)
        cells[..., 0] = np.arange(len(table))[:, None, None] + 100 * int(scene[-1])
        np.save(folder / f"{scene}.cells.npy", cells)
        table.loc[3, "known_fraction"] = 0.0
        table.to_parquet(folder / f"{scene}.parquet", index=False)
    refreeze(tmp_path)
    dataset = open_levir_kr(tmp_path / "levir_kr")
    cells = np.load(tmp_path / "levir_kr" / "cells.npy")
    assert dataset.manifest["cells_per_side"] == 2
    number = dataset.catalogue["scene_id"].astype(str).str[-1].astype(int)
    assert (cells[:, 1, 0, 0] == dataset.catalogue["row"] + 100 * number).all()
    assert len(cells) == 28


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


def test_more_scenes_than_open_files_are_granted_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_levir_kr(tmp_path, num_chips=100, num_scenes=100, chip_size_px=8, cells_per_side=0)
    monkeypatch.setattr("resource.getrlimit", lambda kind: (80, 80))
    before, rows = psutil.Process().num_fds(), np.arange(len(data.catalogue))
    images = data.images(rows)
    assert psutil.Process().num_fds() - before <= 64
    for row in (0, len(rows) - 1):
        assert np.array_equal(data.images(rows[row : row + 1])[0], images[row])


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 255
    path.write_bytes(raw)


@pytest.mark.parametrize("name", ["manifest.json", "catalogue.parquet", "cells.npy"])
@pytest.mark.parametrize("damage", ["flipped", "cut off", "emptied", "other bytes"])
def test_a_damaged_file_of_the_data_set_is_named(tmp_path: Path, name: str, damage: str) -> None:
    store = make_levir_kr(tmp_path, num_chips=24, cells_per_side=8)
    assert open_levir_kr(store.folder).damaged(deep=True) == {}
    path = store.folder / name
    if damage == "flipped":
        flip(path, at=path.stat().st_size // 2)
    elif damage == "other bytes":
        path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))
    else:
        os.truncate(path, path.stat().st_size // 2 if damage == "cut off" else 0)
    with pytest.raises(DatasetError, match=rf"{re.escape(str(path))}: .*run `geokr levir-kr` again"):
        open_levir_kr(store.folder).cells(np.array([0]))
    refreeze(tmp_path)
    assert open_levir_kr(store.folder).damaged(deep=True) == {}


@pytest.mark.parametrize("deep", [False, True])
def test_a_shard_that_is_not_the_frozen_one_is_named(tmp_path: Path, deep: bool) -> None:
    store = make_levir_kr(tmp_path, num_chips=24)
    flip(tmp_path / "chips" / "scene1.npy", at=-1)
    assert list(store.damaged(deep=deep)) == [str(tmp_path / "chips" / "scene1.npy")]


def test_a_shard_of_another_kind_is_named_where_it_is_read(tmp_path: Path) -> None:
    store = make_levir_kr(tmp_path, num_chips=24, num_scenes=2)
    path, last = tmp_path / "chips" / "scene1.npy", np.array([23])
    shard = np.load(path)
    for wrong, words in (
        (shard[:5], "5 chips found, the catalogue knows 12 or more"),
        (shard[:, :8], r"chips of \(8, 32, 3\) found, expected \(32, 32, 3\)"),
        (shard.astype(np.float32), "holds float32, expected uint8"),
    ):
        np.save(path, wrong)
        with pytest.raises(DatasetError, match=rf"scene1\.npy: .*{words}"):
            open_levir_kr(store.folder).images(last)
    np.save(path, np.array([None], dtype=object), allow_pickle=True)
    with pytest.raises(DatasetError, match=r"scene1\.npy: .*[Oo]bject"):
        open_levir_kr(store.folder).images(last)
    os.truncate(path, 3)
    with pytest.raises(DatasetError, match=r"scene1\.npy: "):
        open_levir_kr(store.folder).images(last)


def test_damaged_outputs_of_a_scene_are_not_frozen(tmp_path: Path) -> None:
    make_levir_kr(tmp_path, num_chips=24)
    outputs = chip_outputs(tmp_path / "chips")
    pixels = np.load(tmp_path / "chips" / "scene0.npy")
    table = (tmp_path / "chips" / "scene0.parquet").read_bytes()
    with outputs.making("scene0", "inputs", (".npy", ".parquet")) as unfinished:
        with unfinished.paths[".npy"].open("wb") as stream:
            np.save(stream, pixels)
        unfinished.paths[".parquet"].write_bytes(table)
    refreeze(tmp_path)
    frozen = open_levir_kr(tmp_path / "levir_kr").manifest["shards"]["scene0.npy"]
    assert frozen == file_md5(tmp_path / "chips" / "scene0.npy")
    before = data_version(tmp_path / "levir_kr")
    flip(tmp_path / "chips" / "scene0.npy", at=-1)
    with pytest.raises(DamagedOutputError, match=r"scene0\.npy: not the bytes.*run `geokr chips`"):
        refreeze(tmp_path)
    flip(tmp_path / "chips" / "scene0.npy", at=-1)
    flip(tmp_path / "chips" / "scene0.parquet", at=40)
    with pytest.raises(DamagedOutputError, match=r"scene0\.parquet: not the bytes"):
        refreeze(tmp_path)
    assert data_version(tmp_path / "levir_kr") == before


def test_squares_are_byte_for_byte_what_numpy_saves(tmp_path: Path) -> None:
    test_squares_are_frozen_in_the_order_of_the_catalogue(tmp_path)
    path, again = tmp_path / "levir_kr" / "cells.npy", io.BytesIO()
    np.save(again, np.load(path))
    assert again.getvalue() == path.read_bytes()


def test_a_full_disk_ends_freezing_with_an_error_and_leaves_the_earlier_data_set(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    test_squares_are_frozen_in_the_order_of_the_catalogue(tmp_path)
    before = data_version(tmp_path / "levir_kr")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limit[1]))
        with pytest.raises(OSError, match="too large"):
            refreeze(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert data_version(tmp_path / "levir_kr") == before
