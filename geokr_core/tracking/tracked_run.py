"""One MLflow run a materialisation, and one below it for each of its parts: all that is recorded, and how it ended."""

import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self
from uuid import uuid4

import pandas as pd
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from geokr_core import __version__
from geokr_core.step.logs import log_fields, trace_id
from geokr_core.step.reporter import Part, Reporter, Source, TeeReporter
from geokr_core.step.summary import Summary
from geokr_core.step.termination import terminable
from geokr_core.tracking.delivery import Delivery, Link, deliver_all_kept, spool_of_opening
from geokr_core.tracking.runs import (
    FINGERPRINT_TAG,
    MAX_PARAM_CHARS,
    NOTE_TAG,
    PAGE_MODE,
    PARENT_KEY_TAG,
    TRAINED_TAG,
    Opening,
    open_run,
    process_tags,
)
from geokr_core.tracking.server import AWAY, Connection, connect, tracking_uri, without_password
from geokr_core.tracking.spool import spool_of

UI_VARIABLE: Final = "GEOKR_MLFLOW_UI_URL"
DATA_VERSION_TAG: Final = "geokr/data_version"
TRACE_TAG: Final = "geokr/trace_id"
"""What all log lines and runs of one run of the chain share."""
_BATCH: Final = 500
"""Metrics a request; MLflow takes 1000."""
_FLUSH_SECONDS: Final = 5.0
_DURATION: Final = "seconds"
"""A run's page shows its duration anyhow."""


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
class _MlflowReporter(Reporter):
    """Sends curves in batches and keeps the log lines for the end."""

    delivery: Delivery
    prefix: str = ""
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

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve; sent some seconds later, with others."""
        now = int(time.time() * 1000)
        for name, value in values.items():
            key = metric_key(_behind_the_loss(name.removeprefix(self.prefix)))
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

    def source(self, source: Source) -> None:
        """Show the data set on the page of the run."""
        self.delivery.send({"kind": "source", "source": asdict(source)})

    def figures(self, values: Mapping[str, float]) -> None:
        """Record them beside the curves, whose names they do not share."""
        now = int(time.time() * 1000)
        metrics = [(metric_key(f"result/{name}"), float(value), now, 0) for name, value in values.items()]
        self.delivery.send({"kind": "batch", "metrics": metrics, "at_start": True})

    @contextmanager
    def part(self, part: Part) -> Iterator[Reporter]:
        """A run below this one, whose curves bear plain names; of a part that is kept, a link to the run that made it."""
        known = {TRAINED_TAG: part.fingerprint} if part.is_kept else {FINGERPRINT_TAG: part.fingerprint}
        tags = {PARENT_KEY_TAG: self.delivery.opening.key, **known, **({NOTE_TAG: part.about} if part.about else {})}
        step, is_away = f"{self.delivery.opening.step}/part", self.delivery.link is None
        child = _open_run(step, part.parameters, tags, Reporter(), part.name, is_away=is_away)
        child._curves.prefix = f"{part.key}/"
        with child:
            yield child.reporter

    def flush(self) -> None:
        """Send the points that are waiting."""
        points, self._points = self._points, []
        for start in range(0, len(points), _BATCH):
            batch = points[start : start + _BATCH]
            self.delivery.send({"kind": "batch", "metrics": batch})
        self._flushed = time.monotonic()


def _behind_the_loss(name: str) -> str:
    """The name of a curve such that the page of a training shows it after the loss.

    MLflow makes a section of what stands before a slash, and shows names without a slash after all sections, by the alphabet: ten curves
    of ``bias/`` would be the first that one sees.
    """
    return f"validation_bias_{rest}" if (rest := name.removeprefix("bias/")) != name else name


def metric_key(name: str) -> str:
    """The name in the characters that MLflow takes for one."""
    return re.sub(r"[^\w\-./ ]", "_", name, flags=re.ASCII)[:250]


@dataclass
class TrackedRun:
    """The MLflow run of one materialisation.

    Attributes:
        reporter: tells the given reporter and MLflow.
        run_id: MLflow's id; None where MLflow could not be reached, and the run is opened when it is back.
        url: page of the run in the browser; ``runs:/<id>`` where MLflow has no server; None where there is no run yet.
        log_name: artifact that gets the lines of this attempt; those of earlier ones stay.
    """

    reporter: Reporter
    run_id: str | None
    url: str | None
    log_name: str
    _delivery: Delivery
    _curves: _MlflowReporter
    _monitor: SystemMetricsMonitor | None = None

    def __enter__(self) -> Self:
        """The run, which ends with the block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """End as FINISHED, as FAILED after an exception, as KILLED after an interruption."""
        status = "FINISHED" if error is None else "FAILED" if isinstance(error, Exception) else "KILLED"
        self._close(status, error)

    def finish(self, summary: Summary, data_version: str) -> None:
        """Record what came out: numbers as metrics, table and picture as artifacts, the data version as tag.

        Args:
            summary: what the step returned.
            data_version: data version of its output.
        """
        delivery, curves = self._delivery, self._curves
        now = int(time.time() * 1000)
        curves.flush()
        # A figure that ends a curve is put at the curve's last step, where MLflow takes the latest value from.
        metrics = [
            (metric_key(name), float(value), now, curves.last_steps.get(metric_key(name), 0))
            for name, value in summary.numbers.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and name != _DURATION
        ]
        metrics.append(("num_warnings", float(len(summary.warnings)), now, 0))
        shown = {"numbers": dict(summary.numbers), "table": list(summary.table), "warnings": list(summary.warnings)}
        # A process that is killed after this is followed by one that makes the same again, in the same run.
        ending = {"metrics": metrics, "tags": {DATA_VERSION_TAG: data_version}, "once": DATA_VERSION_TAG}
        delivery.send({"kind": "batch", **ending})
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
        """Attach a file to the run.

        Args:
            path: the file.
            folder: folder within the run's artifacts.
        """
        self._delivery.send({"kind": "file", "folder": folder}, path)

    def _close(self, status: str, error: BaseException | None) -> None:
        delivery, curves = self._delivery, self._curves
        curves.flush()
        if self._monitor is not None:
            self._monitor.finish()  # type: ignore[no-untyped-call]
        if curves.lines:
            delivery.send(
                {"kind": "text", "name": self.log_name, "text": without_password("\n".join(curves.lines)) + "\n"}
            )
        text = None if error is None else without_password(f"{type(error).__name__}: {error}")[:MAX_PARAM_CHARS]
        end_ms = int(time.time() * 1000)
        delivery.send(
            {"kind": "end", "key": delivery.opening.key, "status": status, "end_ms": end_ms, "error": text}, last=True
        )

    def _opened(self, link: Link, has_ended: bool) -> None:
        """Know the run that could only be opened now, and show from here on that it is alive."""
        self.run_id, self.url = link.run_id, _page(link.connection, link.run_id)
        if self._monitor is None and not has_ended:
            self._monitor = _started_monitor(link)


current_run: ContextVar[TrackedRun | None] = ContextVar("geokr_current_run", default=None)
"""The run that `track_step` has open, so that a promotion puts its artifacts there and opens no second one."""


@contextmanager
def track_step(
    step: str, parameters: Mapping[str, Any], tags: Mapping[str, str], reporter: Reporter, name: str = ""
) -> Iterator[TrackedRun]:
    """Open one MLflow run for the block, with parameters, tags and system metrics.

    The run ends as FINISHED, as FAILED if the block raises an exception, as KILLED if it is interrupted (Ctrl-C, SIGTERM). Where MLflow
    cannot be reached, now or later, the reporter hears a warning and the block goes on; what there is to record waits in
    files, and the run is opened when the server is back.

    Args:
        step: the step.
        parameters: configuration; scalars become parameters, the whole becomes ``params.json``.
        tags: more tags, e.g. ``dagster/asset_key``. With `FINGERPRINT_TAG` among them, the run of a step that was
            killed or failed with the same fingerprint is resumed: its curves stay whole. One that still runs is left alone.
        reporter: who listens beside MLflow.
        name: of the run, for people; empty: the step's.

    Yields:
        The run; use its ``reporter`` inside the block and call `TrackedRun.finish` at its end.
    """
    with terminable():
        yield from _tracked(_open_run(step, parameters, tags, reporter, name))


def _tracked(run: TrackedRun) -> Iterator[TrackedRun]:
    token = current_run.set(run)
    try:
        with run, log_fields(**({"run": run.run_id} if run.run_id else {})):
            yield run
    finally:
        current_run.reset(token)


def _open_run(
    step: str,
    parameters: Mapping[str, Any],
    tags: Mapping[str, str],
    reporter: Reporter,
    name: str,
    *,
    is_away: bool = False,
) -> TrackedRun:
    opening = Opening(uuid4().hex, step, _all_tags(step, tags), _as_json(parameters), int(time.time() * 1000), name)
    try:
        if is_away:  # known of the run above: to find it out once more takes seconds
            raise ConnectionError("the server is away.")
        connection = connect()
        deliver_all_kept(connection, reporter)
        opened = open_run(connection, opening)
    except AWAY as error:
        delivery = Delivery(spool_of_opening(tracking_uri(), opening.key), step, reporter, opening)
        delivery.begin_later(error)
        curves = _MlflowReporter(delivery)
        run = TrackedRun(TeeReporter(reporter, curves), None, None, f"log_{opening.key[:8]}.txt", delivery, curves)
        delivery.on_open = run._opened
        return run
    run_id = opened.run_id
    if opened.attempt > 1:
        reporter.info(f"{step}: MLflow's run {run_id} is resumed")
    link = Link(connection, run_id)
    delivery = Delivery(spool_of(connection.uri, run_id), step, reporter, opening, link)
    curves, monitor = _MlflowReporter(delivery), _started_monitor(link)
    log_name = "log.txt" if opened.attempt == 1 else f"log_attempt_{opened.attempt}.txt"
    page = _page(connection, run_id)
    return TrackedRun(TeeReporter(reporter, curves), run_id, page, log_name, delivery, curves, monitor)


def _started_monitor(link: Link) -> SystemMetricsMonitor:
    monitor = SystemMetricsMonitor(link.run_id, sampling_interval=5, tracking_uri=link.connection.uri)  # type: ignore[no-untyped-call]
    monitor.start()  # type: ignore[no-untyped-call]
    return monitor


def _all_tags(step: str, tags: Mapping[str, str]) -> Mapping[str, str]:
    dagster = {"dagster/run_id": os.environ["DAGSTER_RUN_ID"]} if os.environ.get("DAGSTER_RUN_ID") else {}
    sha = git_sha()
    return {
        "geokr/step": step,
        "geokr/git_sha": sha,
        "geokr/version": __version__,
        TRACE_TAG: trace_id(),
        "mlflow.source.name": f"geokr/{step}",
        "mlflow.source.git.commit": sha.removesuffix("+dirty"),
        **process_tags(),
        **dagster,
        **tags,
    }


def _as_json(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    plain: Mapping[str, Any] = json.loads(json.dumps(dict(parameters), default=str))
    return plain


def _page(connection: Connection, run_id: str) -> str:
    base = os.environ.get(UI_VARIABLE, "") or connection.uri
    if not base.startswith(("http://", "https://")):
        return f"runs:/{run_id}"
    return f"{without_password(base).rstrip('/')}/#/experiments/{connection.experiment_id}/runs/{run_id}{PAGE_MODE}"
