"""Whole files, whole folders, data versions."""

import subprocess
import sys
from pathlib import Path

import pytest

from geokr_core.step.digests import data_version, file_md5
from geokr_core.step.files import shared_folder, sweep, whole_file, whole_folder


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


def test_a_shared_folder_keeps_what_others_put_there(tmp_path: Path) -> None:
    out = tmp_path / "world"
    with shared_folder(out) as partial:
        for name in ("a", "b", "c"):
            (partial / name).write_text(f"{name} 1")
    (out / "mine").write_text("mine")
    (out / "b").write_text("mine under a generated name")
    with shared_folder(out) as partial:
        (partial / "a").write_text("a 2")
        (partial / "b").write_text("b 2")
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "a": "a 2",
        "b": "b 2",
        "b~": "mine under a generated name",
        "mine": "mine",
    }


def test_a_shared_folder_that_nothing_is_remembered_of_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "world"
    out.mkdir()
    (out / "mine").write_text("mine")
    with shared_folder(out) as partial:
        (partial / "a").write_text("a")
    assert sorted(path.name for path in out.iterdir()) == ["a", "mine"]


def test_leftovers_of_dead_processes_are_swept_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    killed = (
        "import os, signal, sys; from pathlib import Path; from geokr_core.step.files import whole_folder\n"
        "with whole_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", killed, str(tmp_path / "out")], check=False)
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == 1
    with whole_folder(tmp_path / "living"):
        assert sweep(tmp_path) == left
        assert [path.name for path in tmp_path.iterdir()] != []
    assert [path.name for path in tmp_path.iterdir()] == ["living"]


def test_what_a_dead_process_had_just_replaced_comes_back(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with whole_folder(tmp_path / "probe") as partial:
        machine = partial.name.split(".")[2].split("-")[0]
    replaced = tmp_path / f".out.{machine}-{dead.pid}-1.replaced"
    replaced.mkdir()
    (replaced / "earlier").write_text("kept")
    sweep(tmp_path)
    assert (tmp_path / "out" / "earlier").read_text() == "kept"
