"""Kills at random moments of what carries out the steps of a run in Dagster: the run's own process, and Celery workers."""

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from celery_workers import Workers, celery_workers, killed
from forked_runs import Undisturbed, killed_in_every_step, metrics_that_came_twice, run_worker, versions
from kill_moments import KILLS_OF_A_CHAIN, makers, seconds_of_steps, until_a_moment_of
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


KILLS_A_WHOLE_WORKER = 10
"""Of so many kills one takes the worker with its processes, as a power cut would. Of RabbitMQ: redis waits for a silence first (test_celery.py)."""

MOST_CHAINS_A_KILL = 4


def _kill(workers: Workers, maker: int, *, whole: bool) -> bool:
    """Kill the processes of the worker that one of them makes a step in, and the worker too; False: all that was over."""
    name = workers.of(maker)
    if name is None:
        return False
    worker = workers.running[name]
    if whole:
        killed(worker)
        worker.wait(timeout=60)
        workers.start(name)
        return True
    for process in psutil.Process(worker.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return True


def _begin_anew(workers: Workers, undisturbed: Undisturbed) -> None:
    """Compare the end of a chain with that of the undisturbed one, and empty its store."""
    assert versions(workers.params) == undisturbed.versions
    assert metrics_that_came_twice(workers.folder / "mlflow.db") == []
    assert not list(workers.folder.rglob("*.partial"))
    for name in ("store", "world"):
        shutil.rmtree(workers.folder / name)


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_celery_workers_killed_in_every_step(
    broker: str,
    tmp_path: Path,
    empty_database: Path,
    undisturbed: Undisturbed,
    record_property: Callable[[str, object], None],
) -> None:
    rng, kills, whole_workers = random.Random(SEED), Counter[str](), Counter[str]()
    with celery_workers(tmp_path, broker, empty_database) as workers:
        store = workers.store
        names = [step.name for step in steps_of(load_params(workers.params))]
        wanted, chains = set(names), 1
        code, seconds = seconds_of_steps(workers.launch().poll, store)
        assert code == 0, workers.said()
        while wanted:
            assert chains <= MOST_CHAINS_A_KILL * KILLS_A_STEP, f"not every step was hit: {kills}"
            _begin_anew(workers, undisturbed)
            run, of_this_chain = workers.launch(), Counter[str]()
            chains += 1
            while True:
                wanted = {name for name in names if kills[name] < KILLS_A_STEP}
                let_go = {name for name in names if of_this_chain[name] >= KILLS_OF_A_CHAIN}
                code = until_a_moment_of(wanted - let_go, run.poll, store, lambda name: rng.uniform(0, seconds[name]))
                if code is not None:
                    break
                made = makers(store)
                hit, whole = (
                    " and ".join(sorted(made)),
                    broker == "rabbitmq" and kills.total() % KILLS_A_WHOLE_WORKER == 0,
                )
                if made and _kill(workers, next(iter(made.values())), whole=whole):
                    kills[hit] += 1
                    of_this_chain.update(made)
                    whole_workers[hit] += whole
                    while set(makers(store).values()) & set(made.values()):
                        time.sleep(0.01)
            assert code == 0, workers.said()
            for name in wanted - set(of_this_chain):
                seconds[name] *= 0.7  # it ended before each moment that was drawn: the load has changed
        _begin_anew(workers, undisturbed)
    record_property("fault", "kill -9 of a Celery worker, or of its process that carries out a step")
    record_property("kills", kills.total())
    for kind, counts in (("hit", kills), ("with_the_worker", whole_workers)):
        record_property(kind, ", ".join(f"{step} {count}" for step, count in sorted(counts.items()) if count))
    record_property("chains", chains)
