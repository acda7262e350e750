"""Steps on Celery workers with RabbitMQ between them: lost workers, and a step that is lost whenever it is tried."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from forked_runs import Undisturbed, versions
from kill_moments import makers
from message_broker import rabbitmq
from running_stack import require_packages
from tiny_worlds import tiny_world

from geokr_assets.executors import MAX_LOST_PROCESSES
from geokr_core.chain.params import load_params

REPOSITORY = Path(__file__).parents[2]
SOON_SECONDS = 120
"""On a busy machine; redis would wait for the six hours of silence that are the default."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def _killed(process: subprocess.Popen[bytes]) -> None:
    """A process and all that it started, at once, as a power cut would."""
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(process.pid)
        first.suspend()  # starts no successor for a child in between
        for one in [*first.children(recursive=True), first]:
            with suppress(psutil.NoSuchProcess):
                one.kill()


@contextmanager
def _program(words: list[str], log: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=REPOSITORY, env=environment, stdout=stream, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        _killed(process)
        process.wait(timeout=60)


def _until(what: str, holds: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.01)


@dataclass(frozen=True)
class Running:
    """A run of the chain on two workers.

    Attributes:
        params: its parameter file.
        store: of its steps.
        workers: that carry out its steps.
        run: its own process.
        logs: of the run and the workers.
    """

    params: Path
    store: Path
    workers: tuple[subprocess.Popen[bytes], ...]
    run: subprocess.Popen[bytes]
    logs: tuple[Path, ...]

    def said(self) -> str:
        return "\n".join(log.read_text(errors="replace")[-3000:] for log in self.logs)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    require_packages()
    params = tiny_world(tmp_path)
    home = tmp_path / "dagster_home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
    with ExitStack() as ending:
        environment = {
            **{name: value for name, value in os.environ.items() if name != "CELERY_RESULT_BACKEND"},
            "DAGSTER_HOME": str(home),
            "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
            "PYTHONPATH": str(REPOSITORY),
            "GEOKR_PARAMS": str(params),
            "GEOKR_EXECUTOR": "celery",
            "CELERY_BROKER_URL": ending.enter_context(rabbitmq(tmp_path / "rabbitmq")),
        }
        command = ["celery", "--app", "geokr_assets.celery_worker", "worker", "--queues", "dagster"]
        command += ["--concurrency", "1", "--loglevel", "INFO"]
        logs = tuple(tmp_path / f"worker_{number}.log" for number in range(2))
        workers = tuple(
            ending.enter_context(_program([*command, "--hostname", f"{log.stem}@%h"], log, environment)) for log in logs
        )
        _until("the workers are ready", lambda: all(b" ready." in log.read_bytes() for log in logs), 300)
        job = ["dagster", "job", "execute", "-m", "geokr_assets.definitions", "-j", "whole_chain"]
        run = ending.enter_context(_program(job, tmp_path / "run.log", environment))
        yield Running(params, load_params(params).store, workers, run, (tmp_path / "run.log", *logs))


def test_the_step_of_a_lost_worker_is_given_to_another_at_once(
    running: Running, undisturbed: Undisturbed, record_property: Callable[[str, object], None]
) -> None:
    store, run = running.store, running.run
    _until("the step begins", lambda: "levir_kr" in makers(store) or run.poll() is not None, 600)
    assert run.poll() is None, running.said()
    family = {one.pid for one in psutil.Process(makers(store)["levir_kr"]).parents()}
    (lost,) = [worker for worker in running.workers if worker.pid in family]
    _killed(lost)
    killed_at = time.monotonic()
    lost.wait(timeout=60)
    _until("another worker makes the step", lambda: "levir_kr" in makers(store), SOON_SECONDS)
    seconds = time.monotonic() - killed_at
    assert run.wait(timeout=900) == 0, running.said()
    (left,) = [worker for worker in running.workers if worker is not lost]
    assert left.poll() is None
    assert lost.returncode == -signal.SIGKILL
    assert versions(running.params) == undisturbed.versions
    assert not list(store.rglob("*.partial"))
    record_property("seconds_until_given_again", round(seconds, 1))


def test_a_step_that_is_lost_whenever_it_is_tried_fails_its_run(running: Running) -> None:
    """As one would that asks for more memory than there is; without a bound it would be tried for ever."""
    deadline, lost = time.monotonic() + 900, set[int]()
    while running.run.poll() is None:
        assert time.monotonic() < deadline, running.said()
        maker = makers(running.store).get("levir_kr")
        if maker is not None and maker not in lost:
            lost.add(maker)
            os.kill(maker, signal.SIGKILL)
        time.sleep(0.01)
    assert running.run.returncode != 0
    assert len(lost) == MAX_LOST_PROCESSES + 1
    assert "Worker exited prematurely" in running.said()
    assert all(worker.poll() is None for worker in running.workers)
