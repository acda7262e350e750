"""Whole files, whole folders, data versions."""

from pathlib import Path

import pytest

from geokr_core.step.digests import data_version, file_md5
from geokr_core.step.files import whole_file, whole_folder


class Interrupted(Exception):
    pass


def test_a_killed_write_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("earlier")
    with pytest.raises(Interrupted), whole_file(path) as partial:
        partial.write_text("half")
        raise Interrupted
    assert path.read_text() == "earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_killed_folder_leaves_the_earlier_folder(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with whole_folder(folder) as partial:
        (partial / "a").write_text("earlier")
    with pytest.raises(Interrupted), whole_folder(folder) as partial:
        (partial / "b").write_text("half")
        raise Interrupted
    assert [p.name for p in folder.iterdir()] == ["a"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with whole_folder(tmp_path / "out") as partial:
            (partial / name).write_text(name)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b"]


def test_data_version_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a").write_text("1")
    before = data_version(tmp_path / "x")
    assert before.endswith(".dir")
    (tmp_path / "x" / "a").rename(tmp_path / "x" / "b")
    renamed = data_version(tmp_path / "x")
    (tmp_path / "x" / "b").write_text("2")
    assert len({before, renamed, data_version(tmp_path / "x")}) == 3
    assert data_version(tmp_path / "x" / "b") == file_md5(tmp_path / "x" / "b")


def test_threads_that_write_one_file_do_not_take_each_others_half(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    together = Barrier(2)

    def write(text: str) -> None:
        with whole_file(tmp_path / "a.txt", staging=tmp_path / "elsewhere") as partial:
            together.wait(10)
            partial.write_text(text)
            together.wait(10)
            assert partial.read_text() == text
            assert not (tmp_path / "a.txt").exists()
            together.wait(10)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, ["first" * 1000, "second" * 1000]))
    assert (tmp_path / "a.txt").read_text() in ("first" * 1000, "second" * 1000)
    assert list((tmp_path / "elsewhere").iterdir()) == []
