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

from kill_moments import KILLS_OF_A_CHAIN, makers, seconds_of_steps, until_a_moment_of

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
    "mlflow.store.tracking.sqlalchemy_store",
    "torchvision",
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

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def wait(self, timeout: float) -> int:
        """The exit code, or ``subprocess.TimeoutExpired``."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("the run", timeout)
            time.sleep(0.02)
        return code

    def kill(self, *, alone: bool = False) -> None:
        """Kill all processes of the run, or its first one alone."""
        (os.kill if alone else os.killpg)(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def command(project: Path, *words: str, **environment: str) -> Forked:
    """A command of `geokr` in the folder of the project, so with its ``params.yaml``; `geokr run` where none is named."""

    def run() -> int:
        sys.argv = ["geokr", *(words or ("run",))]
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
    return Forked(
        project, run, loads=("dagster", "geokr_assets.assets", "geokr_assets.automation"), **settings, **environment
    )


def said(project: Path) -> str:
    """The last words of the runs of a project."""
    return (project / "run.log").read_text(encoding="utf-8", errors="replace")[-3000:]


def versions(params_file: Path) -> dict[str, str]:
    """The data version of every step but the promotion, which names its registry."""
    params = load_params(params_file)
    folders = Folders(params)
    return {step.name: data_version(folders[step.name]) for step in steps_of(params) if step.name != "champion"}


@dataclass(frozen=True)
class Undisturbed:
    """A run to which nothing happened.

    Attributes:
        project: its folder.
        versions: the data version of each step.
        seconds: how long it took.
        recorded: what its tracking server has of it, as `recorded` counts.
    """

    project: Path
    versions: dict[str, str]
    seconds: float
    recorded: tuple[Counter[str], Counter[str]]


def killed_in_every_step(
    project: Path,
    undisturbed: Undisturbed,
    start: Callable[[Path], Forked],
    kill: Callable[[Forked, int], None],
    *,
    kills_a_step: int,
    seed: int,
) -> Counter[str]:
    """Start runs of one store again and again, and kill each at a random moment of a step, until every step was hit so many times.

    A step is let go after `KILLS_OF_A_CHAIN` of them; the end of the chain is compared, and the next one begins in an empty store.

    Args:
        project: with ``params.yaml`` and ``mlflow.db``.
        undisturbed: what the end has to be.
        start: starts a run.
        kill: kills it; gets how many were killed before.
        kills_a_step: of each step of the chain.
        seed: of the moments.

    Returns:
        Kills by the step that was under way.
    """
    rng, params = random.Random(seed), load_params(project / "params.yaml")
    names = [step.name for step in steps_of(params)]
    kills, of_this_chain = Counter[str](), Counter[str]()
    # How long a step takes depends on how runs are started, and on the load.
    code, seconds = seconds_of_steps(start(project).poll, params.store)
    assert code == 0, said(project)
    _begin_anew(project, undisturbed)
    for _ in range(_MOST_STARTS_A_STEP * kills_a_step * len(names)):
        wanted = {name for name in names if kills[name] < kills_a_step}
        let_go = {name for name in names if of_this_chain[name] >= KILLS_OF_A_CHAIN}
        process = start(project)
        ended = until_a_moment_of(
            wanted - let_go, process.poll, params.store, lambda name: rng.uniform(0, seconds[name]), process.pid
        )
        if ended is None:
            hit = sorted(makers(params.store, process.pid))
            kill(process, kills.total())
            kills[where := " and ".join(hit) or "between two steps"] += 1
            of_this_chain.update(hit)
            with (project / "run.log").open("a", encoding="utf-8") as log:
                log.write(f"*** killed in {where}: {dict(kills)}\n")  # what was done, should this be stopped
            continue
        assert ended == 0, said(project)
        _begin_anew(project, undisturbed)
        if not wanted:
            return kills
        for name in wanted - set(of_this_chain):
            seconds[name] *= 0.7  # it ended before each moment that was drawn: the load has changed
        of_this_chain.clear()
    raise AssertionError(f"not every step was hit: {kills}")


def _begin_anew(project: Path, undisturbed: Undisturbed) -> None:
    """Compare the end of a chain with that of the undisturbed one, and empty its store."""
    assert versions(project / "params.yaml") == undisturbed.versions
    assert metrics_that_came_twice(project / "mlflow.db") == []
    assert not list(project.rglob("*.partial"))
    for name in ("store", "world"):
        shutil.rmtree(project / name)


_MOST_STARTS_A_STEP = 10


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
