"""Steps on Celery workers with RabbitMQ between them: lost workers, and a step that is lost whenever it is tried."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery_workers import Workers, celery_workers, killed, until
from forked_runs import Undisturbed, versions
from kill_moments import makers

from geokr_assets.executors import MAX_LOST_PROCESSES

SOON_SECONDS = 120
"""On a busy machine; redis would wait for the six hours of silence that are the default."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    with celery_workers(tmp_path, "rabbitmq") as started:
        yield started


def test_the_step_of_a_lost_worker_is_given_to_another_at_once(
    workers: Workers, undisturbed: Undisturbed, record_property: Callable[[str, object], None]
) -> None:
    store, run = workers.store, workers.launch()
    until("the step begins", lambda: "levir_kr" in makers(store) or run.poll() is not None, 600)
    assert run.poll() is None, workers.said()
    maker = makers(store)["levir_kr"]
    name = workers.of(maker)
    assert name is not None
    lost = workers.running.pop(name)
    killed(lost)
    killed_at = time.monotonic()
    lost.wait(timeout=60)
    until("another worker makes the step", lambda: makers(store).get("levir_kr", maker) != maker, SOON_SECONDS)
    seconds = time.monotonic() - killed_at
    assert run.wait(timeout=900) == 0, workers.said()
    (left,) = workers.running.values()
    assert left.poll() is None
    assert lost.returncode == -signal.SIGKILL
    assert versions(workers.params) == undisturbed.versions
    assert not list(store.rglob("*.partial"))
    record_property("seconds_until_given_again", round(seconds, 1))


def test_a_step_that_is_lost_whenever_it_is_tried_fails_its_run(workers: Workers) -> None:
    """As one would that asks for more memory than there is; without a bound it would be tried for ever."""
    run, deadline, lost = workers.launch(), time.monotonic() + 900, set[int]()
    while run.poll() is None:
        assert time.monotonic() < deadline, workers.said()
        maker = makers(workers.store).get("levir_kr")
        if maker is not None and maker not in lost:
            lost.add(maker)
            os.kill(maker, signal.SIGKILL)
        time.sleep(0.01)
    assert run.returncode != 0
    assert len(lost) == MAX_LOST_PROCESSES + 1
    assert "Worker exited prematurely" in workers.said()
    assert all(worker.poll() is None for worker in workers.running.values())
