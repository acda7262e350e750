"""Kills at random moments of what carries out the steps of a run in Dagster: the run's own process, and Celery workers."""

import contextlib
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from forked_runs import Undisturbed, killed_at_random, last_step, run_worker, versions
from running_stack import Started, started
from tiny_worlds import tiny_world

NUM_KILLS = int(os.environ.get("GEOKR_NUM_KILLS", "20"))
SEED = 46

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


def test_a_run_worker_killed_at_random_moments(
    tmp_path: Path,
    empty_database: Path,
    undisturbed: Undisturbed,
    record_property: Callable[[str, object], None],
) -> None:
    tiny_world(tmp_path)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    kills = killed_at_random(
        tmp_path,
        undisturbed,
        run_worker,
        # Every second time the training's own process is left behind, which has to notice that its run is gone.
        lambda process, before: process.kill(alone=before % 2 == 1),
        num_kills=NUM_KILLS,
        seed=SEED,
        shares=(0.05, 0.3),
    )
    record_property("fault", "kill -9 of a run's process in Dagster")
    record_property("kills", kills.total())
    record_property("after", ", ".join(f"{step} {count}" for step, count in sorted(kills.items())))


SILENCE_SECONDS = 90
"""Longer than any step of the tiny world takes, and short enough to wait for."""

KILLS_A_STEP = 2
"""Of one launch at most, so that all steps are met and not the first ones alone."""


def _working(stack: Started) -> psutil.Process | None:
    """A Celery worker that carries out a step now: the one whose processes have computed most within a moment."""
    workers = [psutil.Process(stack.pid(f"worker-{number}")) for number in (1, 2)]

    def computed(worker: psutil.Process) -> float:
        total = 0.0
        for process in worker.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    before = [computed(worker) for worker in workers]
    time.sleep(0.5)
    gained, worker = max(
        zip((computed(worker) - b for worker, b in zip(workers, before, strict=True)), workers, strict=True),
        key=lambda pair: pair[0],
    )
    return worker if gained > 0.02 else None


def _kill_children(worker: psutil.Process) -> None:
    for process in worker.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_celery_workers_killed_at_random_moments(
    open_folder: Path,
    undisturbed: Undisturbed,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    monkeypatch.setenv("GEOKR_CELERY_SILENCE_SECONDS", str(SILENCE_SECONDS))
    rng = random.Random(SEED)
    project, folder = open_folder / "killed_project", open_folder / "killed"
    params = tiny_world(project)
    folder.mkdir()
    kills: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    with started(folder, GEOKR_PARAMS=params, GEOKR_EXECUTOR="celery") as stack:
        while True:
            run, met = stack.launch("whole_chain"), Counter[str]()
            pause, status = time.monotonic() + rng.uniform(1, 8), ""
            while status not in ("SUCCESS", "FAILURE", "CANCELED"):
                time.sleep(0.5)
                status = stack.ask("query($id: ID!){runOrError(runId: $id){... on Run{status}}}", id=run)["runOrError"][
                    "status"
                ]
                if status != "STARTED" or time.monotonic() < pause or kills.total() >= NUM_KILLS:
                    continue
                if met[after := last_step(params)] >= KILLS_A_STEP:
                    continue
                with contextlib.suppress(psutil.NoSuchProcess):
                    if (worker := _working(stack)) is None:
                        continue
                    # The process that carries out the step; every fourth time its worker as well, as a power cut would.
                    if whole := kills.total() % 4 == 3:
                        worker.suspend()  # starts no successor for its child in between
                    _kill_children(worker)
                    if whole:
                        worker.kill()
                    kills[after] += 1
                    met[after] += 1
                pause = time.monotonic() + rng.uniform(1, 8)
            ends[status] += 1
            assert ends["FAILURE"] + ends["CANCELED"] <= 5, ends
            if status != "SUCCESS":
                continue
            assert versions(params) == undisturbed.versions
            if kills.total() >= NUM_KILLS // 2:
                break
            for name in ("store", "world"):
                shutil.rmtree(project / name, ignore_errors=True)
    assert not list(project.rglob("*.partial"))
    record_property("fault", "kill -9 of a Celery worker, or of its process that carries out a step")
    record_property("kills", kills.total())
    record_property("after", ", ".join(f"{step} {count}" for step, count in sorted(kills.items())))
    record_property("launches", ends.total())
