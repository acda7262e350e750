"""Celery workers of the code location with a broker beside them, and runs of the chain on them. Found through ``pythonpath``.

Not here: the stack with PostgreSQL, MLflow's server and the guard (``running_stack``).
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from message_broker import rabbitmq
from ports import free_port
from running_stack import require_packages
from tiny_worlds import tiny_world

from geokr_core.chain.params import load_params

REPOSITORY = Path(__file__).parents[2]


def killed(process: psutil.Process | subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started, at once, as a power cut would."""
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(process.pid)
        first.suspend()  # starts no successor for a child in between
        for one in [*first.children(recursive=True), first]:
            with suppress(psutil.NoSuchProcess):
                one.kill()


@contextmanager
def program(words: list[str], log: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A module of Python in a process that ends with the block."""
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=REPOSITORY, env=environment, stdout=stream, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        killed(process)
        process.wait(timeout=60)


def until(what: str, holds: Callable[[], object], seconds: float) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.01)


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """A redis at a free port of 127.0.0.1; its address."""
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("redis is missing: apt-get install redis-server")
    folder.mkdir(parents=True)
    port = free_port()
    command = [server, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", ""]
    with (folder / "output.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        until("redis", lambda: b"Ready to accept connections" in (folder / "output.log").read_bytes(), 60)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(timeout=60)


BROKERS = {"redis": redis, "rabbitmq": rabbitmq}


@dataclass
class Workers:
    """Two workers on one project.

    Attributes:
        folder: of the project, with ``params.yaml`` and ``mlflow.db``.
        environment: of workers and runs.
        ending: ends what was started.
        running: the workers, by name.
    """

    folder: Path
    environment: Mapping[str, str]
    ending: ExitStack
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def params(self) -> Path:
        return self.folder / "params.yaml"

    @property
    def store(self) -> Path:
        return load_params(self.params).store

    def start(self, name: str) -> None:
        """Start a worker, and wait until it takes steps."""
        log = self.folder / f"{name}.log"
        before = log.read_bytes().count(b" ready.") if log.exists() else 0
        words = ["celery", "--app", "geokr_assets.celery_worker", "worker", "--queues", "dagster", "--concurrency", "1"]
        words += ["--loglevel", "INFO", "--hostname", f"{name}@%h"]
        self.running[name] = self.ending.enter_context(program(words, log, self.environment))
        until(f"{name} is ready", lambda: log.read_bytes().count(b" ready.") > before, 300)

    def launch(self) -> subprocess.Popen[bytes]:
        """Launch the whole chain; the run's own process."""
        words = ["dagster", "job", "execute", "-m", "geokr_assets.definitions", "-j", "whole_chain"]
        return self.ending.enter_context(program(words, self.folder / "run.log", self.environment))

    def of(self, pid: int) -> str | None:
        """Which worker a process belongs to; None: it is gone."""
        with suppress(psutil.NoSuchProcess):
            family = {pid, *(parent.pid for parent in psutil.Process(pid).parents())}
            return next((name for name, worker in self.running.items() if worker.pid in family), None)
        return None

    def said(self) -> str:
        """The last words of all."""
        return "\n".join(log.read_text(errors="replace")[-3000:] for log in sorted(self.folder.glob("*.log")))


@contextmanager
def celery_workers(folder: Path, broker: str, database: Path | None = None) -> Iterator[Workers]:
    """Start a broker and two workers in a folder, for the tiny world.

    Args:
        folder: of the project.
        broker: one of `BROKERS`.
        database: an empty one of MLflow's, which spares the making of its tables.
    """
    require_packages()
    params = tiny_world(folder)
    if database is not None:
        shutil.copy(database, folder / "mlflow.db")
    home = folder / "dagster_home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
    with ExitStack() as ending:
        environment = {
            **{name: value for name, value in os.environ.items() if name != "CELERY_RESULT_BACKEND"},
            "DAGSTER_HOME": str(home),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            "PYTHONPATH": str(REPOSITORY),
            "GEOKR_PARAMS": str(params),
            "GEOKR_EXECUTOR": "celery",
            "CELERY_BROKER_URL": ending.enter_context(BROKERS[broker](folder / broker)),
        }
        workers = Workers(folder, environment, ending)
        for number in range(2):
            workers.start(f"worker_{number}")
        yield workers
