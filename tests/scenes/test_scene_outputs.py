"""Outputs scene by scene: whole, current or quarantined; every kind of damage is seen, named and made good."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geokr_core.errors import DamagedOutputError, MissingInputError
from geokr_core.scenes import scene_outputs
from geokr_core.scenes.quarantine import quarantine_of
from geokr_core.scenes.scene_outputs import PIXELS, QUARANTINE, RECORD, TABLE, SceneOutputs
from geokr_core.step.digests import file_md5
from geokr_core.step.files import read_json, write_json
from geokr_core.step.reporter import RecordingReporter


def outputs(tmp_path: Path) -> SceneOutputs:
    return SceneOutputs(tmp_path / "step", (PIXELS, TABLE), shared="all.json", command="geokr step")


def make(here: SceneOutputs, scene_id: str, value: int = 7, inputs: str = "i") -> None:
    with here.only_one(scene_id), here.making(scene_id, inputs, (PIXELS, TABLE)) as unfinished:
        with unfinished.paths[PIXELS].open("wb") as stream:
            np.save(stream, np.full((3, 4, 4, 1), value, np.uint8))
        pq.write_table(pa.table({"chip_id": ["a", "b", "c"], "value": [value] * 3}), unfinished.paths[TABLE])
        unfinished.notes["dropped"] = {"cloud": 2}


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once, as if they had been written a while ago."""
    monkeypatch.setattr("geokr_core.rasters.checksums._SETTLED_NS", -1)


def flip(path: Path, at: int = -3) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 255
    path.write_bytes(raw)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped": flip,
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)) and None,
    "emptied": lambda path: path.write_bytes(b"") and None,
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("ending", [PIXELS, TABLE, RECORD])
def test_damage_is_named_and_the_scene_is_not_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, damage: str, deep: bool
) -> None:
    settle(monkeypatch)
    here = outputs(tmp_path)
    make(here, "s")
    make(here, "t")
    here.finish(["s", "t"])
    assert here.damaged(deep=deep) == {}
    DAMAGES[damage](here.path("s", ending))
    again = outputs(tmp_path)
    assert list(again.damaged(deep=deep)) == [f"s{ending}"]
    assert again.current("s", "i") is None
    assert again.current("t", "i") is not None
    reporter = RecordingReporter()
    again.report_damage("s", "i", reporter)
    assert bool(reporter.warnings) == (ending != RECORD or damage != "deleted"), "a run that was killed is no damage"
    make(again, "s")
    assert again.damaged(deep=True) == {}


def test_two_scenes_that_were_swapped_are_both_named(tmp_path: Path) -> None:
    here = outputs(tmp_path)
    for scene, value in (("s", 1), ("t", 2)):
        make(here, scene, value)
    for ending in (PIXELS, TABLE, RECORD):
        one, other, aside = here.path("s", ending), here.path("t", ending), tmp_path / "aside"
        one.rename(aside), other.rename(one), aside.rename(other)
        assert set(here.damaged()) == {f"s{ending}", f"t{ending}"}
        one.rename(aside), other.rename(one), aside.rename(other)
    assert here.damaged(deep=True) == {}


def test_unchanged_files_cost_a_stat_and_a_deep_look_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(monkeypatch)
    here = outputs(tmp_path)
    make(here, "s")
    here.finish(["s"])
    monkeypatch.setattr("geokr_core.rasters.checksums.file_md5", _never)
    assert outputs(tmp_path).current("s", "i") is not None
    monkeypatch.setattr(scene_outputs, "file_md5", _never)
    with pytest.raises(AssertionError, match="read"):
        outputs(tmp_path).damaged(deep=True)


def _never(path: Path) -> str:
    raise AssertionError(f"{path} was read")


def test_same_size_and_time_but_other_bytes_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(monkeypatch)
    here = outputs(tmp_path)
    make(here, "s")
    here.finish(["s"])
    path = here.path("s", PIXELS)
    stat = path.stat()
    flip(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert outputs(tmp_path).faults("s") == {"s.npy": "not the bytes that were written"}


def test_reading_damage_names_the_file(tmp_path: Path) -> None:
    here = outputs(tmp_path)
    make(here, "s")
    table, pixels = here.path("s", TABLE), here.path("s", PIXELS)
    assert here.table("s", ["value"]).column_names == ["value"]
    flip(table, at=10)
    with pytest.raises(DamagedOutputError, match=r"s\.parquet: not the bytes .* run `geokr step`"):
        here.table("s")
    here.path("s", RECORD).unlink()
    os.truncate(table, 20)
    with pytest.raises(DamagedOutputError, match=r"s\.parquet: "):
        here.table("s")
    os.truncate(pixels, 140)
    with pytest.raises(DamagedOutputError, match=r"s\.npy: "):
        here.array("s", PIXELS)
    np.save(pixels, np.array([None, "a"], dtype=object), allow_pickle=True)
    with pytest.raises(DamagedOutputError, match=r"s\.npy: .*[Oo]bject"):
        here.array("s", PIXELS)
    np.save(pixels, np.zeros((3, 4), np.float32))
    with pytest.raises(DamagedOutputError, match=r"s\.npy: holds float32, expected uint8"):
        here.array("s", PIXELS)
    with pytest.raises(MissingInputError, match=r"run `geokr step` first"):
        here.table("t")


def test_a_quarantined_scene_has_a_reason_and_no_files(tmp_path: Path) -> None:
    here = outputs(tmp_path)
    make(here, "s")
    here.quarantine("s", "j", "cut off")
    assert sorted(path.name for path in here.folder.iterdir()) == ["s.quarantine.json"]
    record = here.current("s", "j")
    assert record is not None
    assert record.reason == "cut off"
    assert here.current("s", "i") is None
    flip(here.path("s", QUARANTINE), at=30)
    assert here.damaged() == {"s.quarantine.json": "no readable record"}
    here.path("s", QUARANTINE).write_text("{", encoding="utf-8")
    with pytest.raises(DamagedOutputError, match=r"s\.quarantine\.json: not a readable quarantine record"):
        quarantine_of("s", here.folder)
    make(here, "s")
    assert here.reason("s") is None
    assert here.damaged() == {}


def test_a_failing_block_leaves_the_earlier_output_and_a_finished_one_leaves_nothing_behind(tmp_path: Path) -> None:
    here = outputs(tmp_path)
    make(here, "s")
    before = {path.name: file_md5(path) for path in here.folder.iterdir()}
    with pytest.raises(OSError, match="full"), here.making("s", "j", (PIXELS,)) as unfinished:
        unfinished.paths[PIXELS].write_bytes(b"half")
        raise OSError(28, "disk full")
    assert {path.name: file_md5(path) for path in here.folder.iterdir()} == before
    assert [path.name for path in here.staging.iterdir()] == ["s.lock"]


def test_a_run_removes_what_vanished_scenes_left_and_nothing_else(tmp_path: Path) -> None:
    here = outputs(tmp_path)
    here.share({"size": 4})
    make(here, "s")
    make(here, "gone")
    here.quarantine("refused", "i", "no data")
    (here.folder / "README.txt").write_text("mine")
    (here.staging / "gone.npy").write_bytes(b"half")
    here.finish(["s"])
    assert [p.name for p in here.staging.iterdir()] == ["s.lock"]
    assert sorted(p.name for p in here.folder.iterdir()) == [
        "README.txt",
        "all.json",
        "s.npy",
        "s.parquet",
        "s.record.json",
    ]


def test_what_all_scenes_share_is_written_once_and_mended(tmp_path: Path) -> None:
    here = outputs(tmp_path)
    here.share({"classes": ("a", "b")})
    written = (here.folder / "all.json").stat().st_mtime_ns
    here.share({"classes": ("a", "b")})
    assert (here.folder / "all.json").stat().st_mtime_ns == written
    (here.folder / "all.json").write_text("{", encoding="utf-8")
    assert here.damaged() == {"all.json": "not JSON"}
    here.share({"classes": ("a", "b")})
    assert read_json(here.folder / "all.json") == {"classes": ["a", "b"]}


def test_the_version_of_a_scene_is_that_of_its_bytes(tmp_path: Path) -> None:
    here = outputs(tmp_path)
    make(here, "s", 1)
    first = here.version("s")
    make(here, "s", 2)
    assert here.version("s") != first
    make(here, "s", 1, inputs="other inputs, same bytes")
    assert here.version("s") == first
    assert here.version("t") not in {first, here.version("s")}


def test_records_of_earlier_versions_are_read_but_not_current(tmp_path: Path) -> None:
    here = outputs(tmp_path)
    write_json(here.path("s", QUARANTINE), {"scene_id": "s", "reason": "no data", "inputs": "i"})
    assert here.reason("s") == "no data"
    assert here.current("s", "i") is None
