"""One process at a time makes a step of a store."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from geokr_core.chain.params import load_params
from geokr_core.chain.run import Outcome, run_step
from geokr_core.errors import BusyError
from geokr_core.step.files import whole_file
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_small_archive


@contextmanager
def held(store: Path, step: str) -> Iterator[None]:
    """Another process, as the system sees it, that makes a step."""
    folder = store / ".state" / "unfinished"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{step}.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        yield


def test_who_comes_second_waits_and_finds_it_made(tmp_path: Path) -> None:
    params, reporter = load_params(make_small_archive(tmp_path, num_scenes=1)), RecordingReporter()
    outcomes: list[Outcome] = []
    second = threading.Thread(target=lambda: outcomes.append(run_step("scenes", params, reporter)))
    with held(params.store, "scenes"):
        second.start()
        deadline = time.monotonic() + 30
        while not reporter.warnings and time.monotonic() < deadline:
            time.sleep(0.02)
        assert "another process makes it" in reporter.warnings[0]
        time.sleep(0.2)
        assert second.is_alive()
        assert not (params.store / "scenes").exists()
        run_step("land_cover", params, RecordingReporter())  # other steps need not wait
    second.join(timeout=30)
    assert not outcomes[0].was_current

    with held(params.store, "scenes"):
        second = threading.Thread(target=lambda: outcomes.append(run_step("scenes", params, reporter)))
        second.start()
    second.join(timeout=30)
    assert outcomes[1].was_current


def test_several_processes_of_torchrun_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params(make_small_archive(tmp_path, num_scenes=1))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("geokr_core.chain.turns._PATIENCE_TOGETHER_S", 0.1)
    with held(params.store, "scenes"), pytest.raises(BusyError, match=r"scenes: another process makes it.*torchrun"):
        run_step("scenes", params, RecordingReporter())
    assert not (params.store / "scenes").exists()


def test_a_store_that_is_made_and_cannot_be_written_is_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load_params(make_small_archive(tmp_path, num_scenes=1))
    run_step("scenes", params, RecordingReporter())
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with held(params.store, "scenes"):
        assert run_step("scenes", params, RecordingReporter()).was_current


def test_what_a_killed_process_left_in_the_memory_of_checksums_is_swept(tmp_path: Path) -> None:
    params = load_params(make_small_archive(tmp_path, num_scenes=1))
    folder = params.store / ".state" / "checksums"
    folder.mkdir(parents=True)
    with whole_file(folder / "of_scenes.json") as mine:
        mine.touch()
        dead = mine.with_name(mine.name.replace(f"-{os.getpid()}-", "-99999999-"))  # no process has such a number
        dead.touch()
        run_step("land_cover", params, RecordingReporter())
        assert not dead.exists()
        assert mine.exists(), "a process that lives keeps its own"
