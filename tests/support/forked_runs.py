"""Runs of the chain in processes forked from one that has loaded the libraries, so that killing one and starting the next costs no
seconds; and what is compared at their end. Found through ``pythonpath`` in pyproject.toml.
"""

import contextlib
import importlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geokr_core.chain.params import load_params
from geokr_core.chain.steps import Folders, steps_of
from geokr_core.step.digests import data_version

LOADED = (
    "geokr_core.cli",
    "geokr_core.chain.run",
    "geokr_core.proportions.count",
    "geokr_core.levir_kr.freeze",
    "geokr_core.pretraining.pretrain",
    "geokr_core.evaluation.evaluate",
    "geokr_core.report.page",
    "geokr_core.registry.champion",
    "mlflow",
)


class Forked:
    """A run in a separate process group, which writes to ``run.log`` of its project."""

    def __init__(
        self, project: Path, run: Callable[[], int], *, loads: tuple[str, ...] = (), **environment: str
    ) -> None:
        for module in (*LOADED, *loads):
            importlib.import_module(module)
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                code = self._run(project, run, environment)
            finally:
                os._exit(code)  # nothing of the tests is done twice

    @staticmethod
    def _run(project: Path, run: Callable[[], int], environment: dict[str, str]) -> int:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        log = os.open(project / "run.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        os.chdir(project)
        os.environ.update({"MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlflow.db'}", **environment})
        return run()

    def wait(self, timeout: float) -> int:
        """The exit code, or ``subprocess.TimeoutExpired``."""
        deadline = time.monotonic() + timeout
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("the run", timeout)
            time.sleep(0.02)

    def kill(self, *, alone: bool = False) -> None:
        """Kill all processes of the run, or its first one alone."""
        (os.kill if alone else os.killpg)(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def command(project: Path, **environment: str) -> Forked:
    """`geokr run` with ``params.yaml`` of the project."""

    def run() -> int:
        sys.argv = ["geokr", "run", "--params", str(project / "params.yaml")]
        try:
            importlib.import_module("geokr_core.cli").main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return Forked(project, run, **environment)


def run_worker(project: Path, **environment: str) -> Forked:
    """The process of a run of the job ``whole_chain``, with the Dagster instance in ``dagster_home`` of the project."""

    def run() -> int:
        import dagster as dg

        definitions = importlib.import_module("geokr_assets.definitions").defs
        with dg.DagsterInstance.get() as instance:
            job = definitions.resolve_job_def("whole_chain")
            return 0 if job.execute_in_process(instance=instance, raise_on_error=False).success else 1

    home = project / "dagster_home"
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
    repository = str(Path(__file__).parents[2])
    settings = {"DAGSTER_HOME": str(home), "GEOKR_PARAMS": str(project / "params.yaml"), "PYTHONPATH": repository}
    return Forked(project, run, loads=("dagster",), **settings, **environment)


def said(project: Path) -> str:
    """The last words of the runs of a project."""
    return (project / "run.log").read_text(encoding="utf-8", errors="replace")[-3000:]


def versions(params_file: Path) -> dict[str, str]:
    """The data version of every step but the promotion, which names its registry."""
    params = load_params(params_file)
    folders = Folders(params)
    return {step.name: data_version(folders[step.name]) for step in steps_of(params) if step.name != "champion"}


def last_step(params_file: Path) -> str:
    """The last step of the chain that has an output, or a beginning of one."""
    folders = Folders(load_params(params_file))
    found = [step.name for step in steps_of(load_params(params_file)) if folders[step.name].exists()]
    return (found or ["nothing"])[-1]


@dataclass(frozen=True)
class Undisturbed:
    """A run to which nothing happened.

    Attributes:
        versions: the data version of each step.
        seconds: how long it took.
        recorded: what its tracking server has of it, as `recorded` counts.
    """

    versions: dict[str, str]
    seconds: float
    recorded: tuple[Counter[str], Counter[str]]


def killed_at_random(
    project: Path,
    undisturbed: Undisturbed,
    start: Callable[[Path], Forked],
    kill: Callable[[Forked, int], None],
    *,
    num_kills: int,
    seed: int,
    shares: tuple[float, float],
) -> Counter[str]:
    """Start runs of one store again and again, kill each after a share of the undisturbed time, and look at each one that ends.

    Args:
        project: with ``params.yaml`` and ``mlflow.db``.
        undisturbed: what the end has to be.
        start: starts a run.
        kill: kills it; gets how many were killed before.
        num_kills: after these a run is left to end.
        seed: of the moments.
        shares: least and largest share of the undisturbed time after which a run is killed.

    Returns:
        Kills by the last step that had an output.
    """
    rng, params = random.Random(seed), project / "params.yaml"
    kills: Counter[str] = Counter()
    while True:
        done = kills.total() >= num_kills
        process = start(project)
        try:
            code = process.wait(timeout=1200 if done else rng.uniform(*shares) * undisturbed.seconds)
        except subprocess.TimeoutExpired:
            kill(process, kills.total())
            kills[last_step(params)] += 1
            continue
        assert code == 0, said(project)
        assert versions(params) == undisturbed.versions
        assert metrics_that_came_twice(project / "mlflow.db") == []
        if done:
            assert not list(project.rglob("*.partial"))
            return kills
        for name in ("store", "world"):  # ended between two kills: from the beginning
            shutil.rmtree(project / name)


def metrics_that_came_twice(database: Path) -> list[tuple[Any, ...]]:
    """Metrics of a run that were recorded more than once for the same step."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(
            "SELECT run_uuid, key, step, COUNT(*) FROM metrics WHERE key NOT LIKE 'system/%' GROUP BY 1, 2, 3"
        )
        return [row for row in rows if row[3] > 1]


def recorded(database: Path) -> tuple[Counter[str], Counter[str]]:
    """Runs by step and name, and figures by run name, key and step: what a tracking server has of a chain."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        runs = connection.execute(
            "SELECT t.value || ' ' || r.name FROM runs r JOIN tags t USING (run_uuid) "
            "WHERE t.key = 'geokr/step' AND r.lifecycle_stage = 'active'"
        )
        figures = connection.execute(
            "SELECT r.name || ' ' || m.key || ' ' || m.step FROM metrics m JOIN runs r USING (run_uuid) "
            "WHERE m.key NOT LIKE 'system/%'"
        )
        return Counter(row[0] for row in runs), Counter(row[0] for row in figures)
