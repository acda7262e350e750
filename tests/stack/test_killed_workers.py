"""Kills at random moments of what carries out the steps of a run in Dagster: the run's own process, and Celery workers."""

import contextlib
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from forked_runs import Undisturbed, killed_in_every_step, run_worker, versions
from running_stack import Started, started
from tiny_worlds import tiny_world

from geokr_core.chain.params import load_params
from geokr_core.chain.steps import steps_of

KILLS_A_STEP = int(os.environ.get("GEOKR_KILLS_A_STEP", "2"))
SEED = 46

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


def test_a_run_worker_killed_in_every_step(
    tmp_path: Path,
    empty_database: Path,
    undisturbed: Undisturbed,
    record_property: Callable[[str, object], None],
) -> None:
    tiny_world(tmp_path)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    kills = killed_in_every_step(
        tmp_path,
        undisturbed,
        run_worker,
        # Every second time the training's own process is left behind, which has to notice that its run is gone.
        lambda process, before: process.kill(alone=before % 2 == 1),
        kills_a_step=KILLS_A_STEP,
        seed=SEED,
    )
    record_property("fault", "kill -9 of a run's process in Dagster")
    record_property("kills", kills.total())
    record_property("hit", ", ".join(f"{step} {count}" for step, count in sorted(kills.items())))


SILENCE_SECONDS = 90
"""Longer than any step of the tiny world takes, and short enough to wait for."""

KILLS_OF_A_LAUNCH = 2
"""In one step."""

STEPS = """query($id: ID!){runOrError(runId: $id){... on Run{status
  stepStats{stepKey startTime endTime status}}}}"""


def _under_way(run: dict[str, Any]) -> list[str]:
    """Steps of a run that have begun and not ended."""
    return [
        str(step["stepKey"]).removeprefix("run_")
        for step in run["stepStats"]
        if step["startTime"] is not None and step["endTime"] is None
    ]


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
    time.sleep(0.2)
    gained, worker = max(
        zip((computed(worker) - b for worker, b in zip(workers, before, strict=True)), workers, strict=True),
        key=lambda pair: pair[0],
    )
    return worker if gained > 0.01 else None


def _kill_children(worker: psutil.Process) -> None:
    for process in worker.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_celery_workers_killed_in_every_step(
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
    names = [step.name for step in steps_of(load_params(params))]
    kills: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    with started(folder, GEOKR_PARAMS=params, GEOKR_EXECUTOR="celery") as stack:
        while True:
            run, met = stack.launch("whole_chain"), Counter[str]()
            pause, status = time.monotonic() + rng.uniform(0, 3), ""
            while status not in ("SUCCESS", "FAILURE", "CANCELED"):
                time.sleep(0.2)
                now = stack.ask(STEPS, id=run)["runOrError"]
                status, hit = now["status"], " and ".join(_under_way(now))
                if status != "STARTED" or time.monotonic() < pause or not hit:
                    continue
                if met[hit] >= KILLS_OF_A_LAUNCH or kills[hit] >= KILLS_A_STEP:
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
                    kills[hit] += 1
                    met[hit] += 1
                pause = time.monotonic() + rng.uniform(0, 3)
            ends[status] += 1
            assert ends["FAILURE"] + ends["CANCELED"] <= 5, ends
            if status != "SUCCESS":
                continue
            assert versions(params) == undisturbed.versions
            if all(kills[step] for step in names):
                break
            for name in ("store", "world"):
                shutil.rmtree(project / name, ignore_errors=True)
    assert not list(project.rglob("*.partial"))
    record_property("fault", "kill -9 of a Celery worker, or of its process that carries out a step")
    record_property("kills", kills.total())
    record_property("hit", ", ".join(f"{step} {count}" for step, count in sorted(kills.items())))
    record_property("launches", ends.total())
