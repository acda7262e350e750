"""Damage to what chips and proportions wrote: the next run names it and makes exactly that scene again, to the same bytes."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from geokr_core.chain.params import Params, load_params
from geokr_core.chips.cut import cut_chips
from geokr_core.errors import DamagedOutputError
from geokr_core.land_cover.tile_index import index_products
from geokr_core.levir_kr.catalogue import joined_scenes
from geokr_core.proportions.count import count_proportions, scene_summary
from geokr_core.scenes.inventory import take_inventory
from geokr_core.scenes.scene_outputs import chip_outputs, proportion_outputs
from geokr_core.step.digests import file_md5
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_small_archive

SCENES = ("scene_0000", "scene_0001", "scene_0002")
ENDINGS = {"chips": (".npy", ".parquet", ".record.json"), "proportions": (".cells.npy", ".parquet", ".record.json")}
SHARED = {"chips": "cut.json", "proportions": "legend.json"}


def run(params: Params, reporter: RecordingReporter) -> None:
    store = params.store
    cut_chips(params.chips, params.scenes.folder, store / "scenes", store / "chips", reporter)
    count_proportions(
        params.proportions,
        params.land_cover.folder,
        store / "land_cover",
        store / "chips",
        store / "proportions",
        reporter,
    )


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Params:
    params = load_params(make_small_archive(tmp_path_factory.mktemp("archive"), num_scenes=3, scene_size_px=64))
    take_inventory(params.scenes, params.store / "scenes", RecordingReporter())
    index_products(params.land_cover, params.store / "land_cover", RecordingReporter())
    run(params, RecordingReporter())
    return params


@pytest.fixture
def params(archive: Params, tmp_path: Path) -> Params:
    shutil.copytree(archive.store, tmp_path / "store")
    return archive.model_copy(update={"store": tmp_path / "store"})


def bytes_of(store: Path) -> dict[str, str]:
    return {
        str(path.relative_to(store)): file_md5(path)
        for step in ENDINGS
        for path in sorted((store / step).iterdir())
        if path.is_file()
    }


def damage(path: Path, kind: str, other: Path, rng: np.random.Generator) -> None:
    raw = bytearray(path.read_bytes())
    if kind == "delete":
        path.unlink()
        return
    if kind == "swap":
        raw = bytearray(other.read_bytes())
        other.write_bytes(path.read_bytes())
    elif kind == "flip":
        raw[int(rng.integers(len(raw)))] ^= 1 << int(rng.integers(8))
    elif kind == "zero":
        first = int(rng.integers(len(raw) - 8))
        raw[first : first + 64] = bytes(len(raw[first : first + 64]))
    else:
        raw = raw[: 0 if kind == "empty" else int(rng.integers(len(raw)))]
    path.write_bytes(raw)


@pytest.mark.parametrize("step", ENDINGS)
def test_each_damage_is_healed_to_the_same_bytes_and_no_other_scene_is_made_again(params: Params, step: str) -> None:
    rng, store = np.random.default_rng(5), params.store
    whole = bytes_of(store)
    for ending in (*ENDINGS[step], None):
        for kind in ("flip", "cut", "zero", "swap", "delete", "empty"):
            name = SHARED[step] if ending is None else f"{SCENES[1]}{ending}"
            path, other = store / step / name, store / step / f"{SCENES[2]}{ending}"
            if ending is None and kind == "swap":
                continue
            damage(path, kind, other, rng)
            damaged = bytes_of(store) != whole
            untouched = (store / step / f"{SCENES[0]}{ENDINGS[step][0]}").stat().st_mtime_ns
            reporter = RecordingReporter()
            run(params, reporter)
            assert bytes_of(store) == whole, (name, kind)
            assert (store / step / f"{SCENES[0]}{ENDINGS[step][0]}").stat().st_mtime_ns == untouched
            if damaged and ending is not None and (ending, kind) != (".record.json", "delete"):
                assert any(name in warning for warning in reporter.warnings), (name, kind, reporter.warnings)


def test_what_is_damaged_can_be_asked_for(params: Params) -> None:
    chips, proportions = chip_outputs(params.store / "chips"), proportion_outputs(params.store / "proportions")
    assert chips.damaged(deep=True) == proportions.damaged(deep=True) == {}
    rng = np.random.default_rng(0)
    damage(chips.path(SCENES[0], ".npy"), "flip", chips.path(SCENES[1], ".npy"), rng)
    damage(proportions.path(SCENES[1], ".cells.npy"), "delete", proportions.path(SCENES[0], ".cells.npy"), rng)
    assert chips.damaged() == {"scene_0000.npy": "not the bytes that were written"}
    assert proportions.damaged() == {"scene_0001.cells.npy": "missing"}


def test_two_class_columns_that_were_swapped_are_not_read(params: Params) -> None:
    import pandas as pd

    path = params.store / "proportions" / f"{SCENES[1]}.parquet"
    table = pd.read_parquet(path)
    table[["fraction_forest", "fraction_water"]] = table[["fraction_water", "fraction_forest"]].to_numpy()
    table.to_parquet(path, index=False)
    with pytest.raises(DamagedOutputError, match=r"scene_0001\.parquet: not the bytes.*run `geokr proportions`"):
        list(joined_scenes(params.store / "chips", params.store / "proportions"))
    with pytest.raises(DamagedOutputError, match=r"scene_0001\.parquet"):
        scene_summary(params.store / "proportions", params.store / "chips", SCENES[1])


def test_several_processes_cut_and_count_to_the_same_bytes_and_say_the_same(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geokr_core.step.processes.LEAST_ITEMS", 1)
    before = bytes_of(params.store)
    shutil.rmtree(params.store / "proportions")
    shutil.rmtree(params.store / "chips")
    two = {"workers": 2}
    sections = {"chips": params.chips, "proportions": params.proportions}
    several = params.model_copy(update={name: section.model_copy(update=two) for name, section in sections.items()})
    run(several, RecordingReporter())
    assert bytes_of(params.store) == before
    cells = params.store / "proportions" / f"{SCENES[1]}.cells.npy"
    shutil.rmtree(params.store / ".state" / "unfinished")
    for scene_id in SCENES[1:]:
        cells.with_name(f"{scene_id}.cells.npy").write_bytes(b"")
    reporter = RecordingReporter()
    run(several, reporter)
    assert bytes_of(params.store) == before
    assert [warning for warning in reporter.warnings if "is made again" in warning] == [
        f"{cells.with_name(f'{scene_id}.cells.npy')}: not the bytes that were written; scene {scene_id} is made again"
        for scene_id in SCENES[1:]
    ]
    run(params, again := RecordingReporter())
    assert again.warnings == []
