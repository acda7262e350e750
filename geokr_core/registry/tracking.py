"""One MLflow run a materialisation: parameters, tags, curves, pictures, files, and how it ended."""

import json
import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pandas as pd
import psutil
from mlflow.entities import Param, Run, RunTag
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient

from geokr_core import __version__
from geokr_core.registry.delivery import Delivery, deliver_all_kept
from geokr_core.registry.server import AWAY, Connection, connect, first_line, tracking_uri, without_password
from geokr_core.reporter import Advance, Reporter, TeeReporter
from geokr_core.spool import spool_of
from geokr_core.summary import Summary

UI_VARIABLE: Final = "GEOKR_MLFLOW_UI_URL"
DATA_VERSION_TAG: Final = "geokr/data_version"
FINGERPRINT_TAG: Final = "geokr/fingerprint"
"""Digest of everything that a step depends on: by it a step that is gone on with finds the run it began."""

_PROCESS_TAG: Final = "geokr/process"
"""Host, process id and its start: whether a run that says it is running still has somebody who runs it."""
_ATTEMPT_TAG: Final = "geokr/attempt"
_SIGN_OF_LIFE: Final = "system/cpu_utilization_percentage"
_SILENCE_SECONDS: Final = 300.0
_MAX_PARAM_CHARS: Final = 500
_BATCH: Final = 500
"""Metrics a request; MLflow takes 1000."""
_FLUSH_SECONDS: Final = 5.0


def git_sha() -> str:
    """Commit of the working directory, ``+dirty`` with uncommitted changes, ``unknown`` outside git."""
    try:
        head = _git("rev-parse", "HEAD")
        dirty = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{head}+dirty" if dirty else head


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


@dataclass
class _MlflowReporter:
    """Sends curves in batches and keeps the log lines for the end."""

    delivery: Delivery
    lines: list[str] = field(default_factory=list)
    last_steps: dict[str, int] = field(default_factory=dict)
    _points: list[tuple[str, float, int, int]] = field(default_factory=list)
    _flushed: float = field(default_factory=time.monotonic)

    def info(self, message: str) -> None:
        """Keep the line for ``log.txt``."""
        self.lines.append(message)

    def warning(self, message: str) -> None:
        """Keep the line for ``log.txt``."""
        self.lines.append(f"warning: {message}")

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Advance]:
        """Show nothing: curves tell more."""
        yield lambda units: None

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve; sent some seconds later, with others."""
        now = int(time.time() * 1000)
        for name, value in values.items():
            key = metric_key(name)
            self.last_steps[key] = step
            self._points.append((key, float(value), now, step))
        if len(self._points) >= _BATCH or time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def picture(self, name: str, content_png: bytes) -> None:
        """Attach the picture to the run."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, Path(name).name)
            path.write_bytes(content_png)
            parent = Path(name).parent.as_posix()
            self.delivery.send({"kind": "file", "folder": None if parent == "." else parent}, path)

    def flush(self) -> None:
        """Send what is waiting."""
        points, self._points = self._points, []
        for start in range(0, len(points), _BATCH):
            batch = points[start : start + _BATCH]
            self.delivery.send({"kind": "batch", "metrics": batch})
        self._flushed = time.monotonic()


def metric_key(name: str) -> str:
    """The name in the characters that MLflow takes for one."""
    return re.sub(r"[^\w\-./ ]", "_", name, flags=re.ASCII)[:250]


@dataclass
class TrackedRun:
    """The MLflow run of one materialisation, or nothing where MLflow could not be reached.

    Attributes:
        reporter: tells the given reporter and MLflow.
        run_id: MLflow's id, or None.
        url: page of the run in the browser; ``runs:/<id>`` where MLflow has no server; None where untracked.
        log_name: artifact that gets the lines of this attempt; those of earlier ones stay.
    """

    reporter: Reporter
    run_id: str | None = None
    url: str | None = None
    log_name: str = "log.txt"
    _delivery: Delivery | None = None
    _curves: _MlflowReporter | None = None
    _monitor: SystemMetricsMonitor | None = None

    def finish(self, summary: Summary, data_version: str) -> None:
        """Record what came out: numbers as metrics, table and picture as artifacts, the data version as tag.

        Args:
            summary: what the step returned.
            data_version: data version of its output.
        """
        delivery, curves = self._delivery, self._curves
        if delivery is None or curves is None or self.run_id is None:
            return
        now = int(time.time() * 1000)
        curves.flush()
        # A figure that ends a curve is put at the curve's last step, where MLflow takes the latest value from.
        metrics = [
            (metric_key(name), float(value), now, curves.last_steps.get(metric_key(name), 0))
            for name, value in summary.numbers.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        tags = {DATA_VERSION_TAG: data_version, "geokr/num_warnings": str(len(summary.warnings))}
        shown = {"numbers": dict(summary.numbers), "table": list(summary.table), "warnings": list(summary.warnings)}
        delivery.send({"kind": "batch", "metrics": metrics, "tags": tags})
        delivery.send({"kind": "text", "name": "summary.json", "text": json.dumps(shown, indent=2, default=str)})
        if summary.table:
            text = pd.DataFrame(list(summary.table)).to_csv(index=False)
            delivery.send({"kind": "text", "name": "table.csv", "text": text})
        if summary.picture_png is not None:
            self._log_bytes("preview.png", summary.picture_png)

    def _log_bytes(self, name: str, content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.write_bytes(content)
            self.log_file(path)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Attach a file to the run, if it is tracked.

        Args:
            path: the file.
            folder: folder within the run's artifacts.
        """
        if self._delivery is not None and self.run_id is not None:
            self._delivery.send({"kind": "file", "folder": folder}, path)

    def _close(self, status: str, error: BaseException | None) -> None:
        delivery, curves = self._delivery, self._curves
        if delivery is None or curves is None or self.run_id is None:
            return
        curves.flush()
        if self._monitor is not None:
            self._monitor.finish()  # type: ignore[no-untyped-call]
        if error is not None:
            text = f"{type(error).__name__}: {error}"[:_MAX_PARAM_CHARS]
            delivery.send({"kind": "batch", "tags": {"geokr/error": text}})
        if curves.lines:
            delivery.send({"kind": "text", "name": self.log_name, "text": "\n".join(curves.lines) + "\n"})
        delivery.send({"kind": "end", "status": status, "end_ms": int(time.time() * 1000)}, last=True)


current_run: ContextVar[TrackedRun | None] = ContextVar("geokr_current_run", default=None)
"""The run that `track_step` has open, so that a promotion puts its artifacts there and opens no second one."""


@contextmanager
def track_step(
    step: str, parameters: Mapping[str, Any], tags: Mapping[str, str], reporter: Reporter
) -> Iterator[TrackedRun]:
    """Open one MLflow run for the block, with parameters, tags and system metrics.

    The run ends as FINISHED, as FAILED if the block raises an exception, as KILLED if it is interrupted. Where MLflow
    cannot be reached, now or later, the reporter hears a warning and the block goes on untracked.

    Args:
        step: name of the run.
        parameters: configuration; scalars become parameters, the whole becomes ``params.json``.
        tags: more tags, e.g. ``dagster/asset_key``. With `FINGERPRINT_TAG` among them, the run of a step that was
            killed or failed with the same fingerprint is gone on with: its curves stay whole. One that still runs is left
            alone.
        reporter: who listens beside MLflow.

    Yields:
        The run; use its ``reporter`` inside the block and call `TrackedRun.finish` at its end.
    """
    run = _open_run(step, parameters, tags, reporter)
    token = current_run.set(run)
    try:
        yield run
    except BaseException as error:
        run._close("FAILED" if isinstance(error, Exception) else "KILLED", error)
        raise
    else:
        run._close("FINISHED", None)
    finally:
        current_run.reset(token)


def _open_run(step: str, parameters: Mapping[str, Any], tags: Mapping[str, str], reporter: Reporter) -> TrackedRun:
    dagster = {"dagster/run_id": os.environ["DAGSTER_RUN_ID"]} if os.environ.get("DAGSTER_RUN_ID") else {}
    sha = git_sha()
    all_tags = {
        "geokr/step": step,
        "geokr/git_sha": sha,
        "geokr/version": __version__,
        "mlflow.source.name": f"geokr/{step}",
        "mlflow.source.git.commit": sha.removesuffix("+dirty"),
        _PROCESS_TAG: _process_mark(os.getpid()),
        _ATTEMPT_TAG: "1",
        **dagster,
        **tags,
    }
    try:
        connection = connect()
        deliver_all_kept(connection, reporter)
        unfinished = _unfinished(connection, all_tags)
        if unfinished is not None:
            run_id = unfinished.info.run_id
            all_tags[_ATTEMPT_TAG] = str(int(unfinished.data.tags.get(_ATTEMPT_TAG, "1")) + 1)
            _reopen(connection.client, unfinished, all_tags)
            reporter.info(f"{step}: going on with MLflow's run {run_id}")
        else:
            run_id = connection.client.create_run(connection.experiment_id, tags=all_tags, run_name=step).info.run_id
        _log_parameters(connection.client, run_id, parameters)
    except AWAY as error:
        reporter.warning(
            f"MLflow at {without_password(tracking_uri())} cannot be reached: {first_line(error)} This run of `{step}` goes on "
            "untracked: its parameters, curves and system metrics will not be in MLflow; output and summary are written "
            "as always. To have it recorded, start the server (or set MLFLOW_TRACKING_URI) and run the step again "
            "with --force."
        )
        return TrackedRun(reporter)
    delivery = Delivery(connection, run_id, step, reporter, spool_of(connection.uri, run_id))
    curves = _MlflowReporter(delivery)
    monitor = SystemMetricsMonitor(run_id, sampling_interval=5, tracking_uri=connection.uri)  # type: ignore[no-untyped-call]
    monitor.start()  # type: ignore[no-untyped-call]
    attempt = all_tags[_ATTEMPT_TAG]
    log_name = "log.txt" if attempt == "1" else f"log_attempt_{attempt}.txt"
    page = _page(connection, run_id)
    return TrackedRun(TeeReporter(reporter, curves), run_id, page, log_name, delivery, curves, monitor)


def _unfinished(connection: Connection, tags: Mapping[str, str]) -> Run | None:
    """The newest run of the same step and fingerprint that did not end well and that nobody runs any more."""
    mark = tags.get(FINGERPRINT_TAG)
    if mark is None:
        return None
    same = f"tags.`{FINGERPRINT_TAG}` = '{mark}' AND tags.`geokr/step` = '{tags['geokr/step']}'"
    found = connection.client.search_runs(
        [connection.experiment_id], f"{same} AND attributes.status != 'FINISHED'", order_by=["start_time DESC"]
    )
    return next((run for run in found if run.info.status != "RUNNING" or _is_left(connection.client, run)), None)


def _process_mark(pid: int) -> str:
    return f"{platform.node()}/{pid}/{psutil.Process(pid).create_time():.2f}"


def _is_left(client: MlflowClient, run: Run) -> bool:
    """Whether the process of a run that says it is running is gone.

    On this machine one can look; one of another machine is taken for gone when its system metrics have long stopped.
    """
    mark = run.data.tags.get(_PROCESS_TAG, "")
    host, _, process = mark.partition("/")
    if host != platform.node():
        signs = client.get_metric_history(run.info.run_id, _SIGN_OF_LIFE)
        last_ms = max([run.info.start_time, *(sign.timestamp for sign in signs)])
        return bool(time.time() - last_ms / 1000 > _SILENCE_SECONDS)
    try:
        return _process_mark(int(process.partition("/")[0])) != mark
    except psutil.NoSuchProcess:
        return True


def _reopen(client: MlflowClient, run: Run, tags: Mapping[str, str]) -> None:
    run_id = run.info.run_id
    client.update_run(run_id, status="RUNNING")
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    if "geokr/error" in run.data.tags:
        client.delete_tag(run_id, "geokr/error")


def _page(connection: Connection, run_id: str) -> str:
    base = os.environ.get(UI_VARIABLE, "") or connection.uri
    if not base.startswith(("http://", "https://")):
        return f"runs:/{run_id}"
    return f"{without_password(base).rstrip('/')}/#/experiments/{connection.experiment_id}/runs/{run_id}"


def _log_parameters(client: MlflowClient, run_id: str, parameters: Mapping[str, Any]) -> None:
    flat = [Param(key[:250], value) for key, value in _flattened(parameters)]
    for start in range(0, len(flat), 100):  # MLflow's limit a request
        client.log_batch(run_id, params=flat[start : start + 100])
    client.log_dict(run_id, json.loads(json.dumps(dict(parameters), default=str)), "params.json")


def _flattened(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield f"{prefix}{name}", text[:_MAX_PARAM_CHARS]
