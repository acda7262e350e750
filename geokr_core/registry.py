"""MLflow: one run a materialisation, the model registry, and the challenger that becomes champion. All of it is here.

No other module imports MLflow. The rule of promotion and the record that it compares are in ``promotion``; the files
that are registered in ``bundle``. Everything goes through a client of its own, so that MLflow's global state (the
tracking URI, the active run) is neither read nor changed.

Environment:
    MLFLOW_TRACKING_URI: the server; ``sqlite:///mlflow.db`` in the working directory where it is not set.
    GEOKR_MLFLOW_UI_URL: where people open that server in a browser, if not at the tracking URI.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

# MLflow reads these when it is imported. A server that is away must cost seconds, not the minutes of MLflow's own
# 120 s x 8 attempts; nothing is sent to third parties.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# Otherwise MLflow copies pyproject.toml and uv.lock of the working directory into every model.
os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import numpy as np
import pandas as pd
import psutil
from mlflow.artifacts import download_artifacts
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import save_model
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient
from mlflow.types.schema import Schema, TensorSpec
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from geokr_core import __version__
from geokr_core.bundle import BUNDLE_FILES, DESCRIPTION, MODEL_CARD, Bundle, open_bundle, verify_bundle
from geokr_core.config import ChampionConfig, Criterion, EvaluationConfig
from geokr_core.errors import BackboneError, GeoKRError, MissingInputError, RegistryError
from geokr_core.files import whole_folder
from geokr_core.promotion import Scorecard, Verdict, decide, margins_of, require_evaluated, write_decision
from geokr_core.reporter import Advance, Reporter, TeeReporter
from geokr_core.spool import Record, Spool, spool_of, spools_of
from geokr_core.summary import Number, Summary

EXPERIMENT: Final = "geokr"
CHALLENGER: Final = "challenger"
CHAMPION: Final = "champion"
UI_VARIABLE: Final = "GEOKR_MLFLOW_UI_URL"

_DEFAULT_URI: Final = "sqlite:///mlflow.db"
_PYFUNC_CODE: Final = Path(__file__).parent / "loader" / "backbone_pyfunc.py"
_REQUIREMENTS: Final = ("mlflow", "torch", "torchvision", "safetensors", "numpy")
_MAX_PARAM_CHARS: Final = 500
_BATCH: Final = 500
"""Metrics a request; MLflow takes 1000."""
_FLUSH_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 60.0
"""Between two attempts to reach a server that was lost: an attempt costs some seconds of the step's time."""
_AWAY: Final = (MlflowException, SQLAlchemyError, OSError)
"""What the client raises when server, database or artifact store cannot be reached or refuse."""

DATA_VERSION_TAG: Final = "geokr/data_version"
FINGERPRINT_TAG: Final = "geokr/fingerprint"
"""Digest of everything that a step depends on: by it a step that is gone on with finds the run it began."""
_PROCESS_TAG: Final = "geokr/process"
"""Host, process id and its start: whether a run that says it is running still has somebody who runs it."""
_ATTEMPT_TAG: Final = "geokr/attempt"
_SIGN_OF_LIFE: Final = "system/cpu_utilization_percentage"
_SILENCE_SECONDS: Final = 300.0
_EVIDENCE: Final = "evidence"
"""Folder of a run's artifacts with the results and the report that a promotion rests on."""
_DECISION_TAG: Final = "geokr/decision"
_SCORES_TAG: Final = "geokr/scores"
_REPLACED_TAG: Final = "replaced_version"
_WITHDRAWN_TAG: Final = "withdrawn_because"
_REFUSED_TAG: Final = "refused_because"
_REFUSED_DELTA_TAG: Final = "refused_delta"
_ABOVE_CARD: Final = "\n\n<!-- model card -->\n\n"
_MAX_DESCRIPTION_CHARS: Final = 4900
"""MLflow's database keeps 5000."""


# --- connecting -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Connection:
    """A client, the experiment, and the folder for locks between processes."""

    uri: str
    client: MlflowClient
    experiment_id: str
    locks: Path


def tracking_uri() -> str:
    """The MLflow server or database that is used; the path of an SQLite file is made absolute."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "") or _DEFAULT_URI
    path = _sqlite_file(uri)
    return uri if path is None else f"sqlite:///{path}"


def _sqlite_file(uri: str) -> Path | None:
    if not uri.startswith("sqlite:"):
        return None
    database = make_url(uri).database
    return None if database in (None, "", ":memory:") else Path(str(database)).resolve()


def _shown(uri: str) -> str:
    """The URI without the password that may stand in it."""
    return re.sub(r"//[^/@]*@", "//", uri)


def _connect() -> _Connection:
    """Connect, and create database and experiment where they are missing.

    Two processes that create a fresh SQLite file at once would spoil each other's tables: hence the lock.
    """
    uri = tracking_uri()
    database = _sqlite_file(uri)
    artifacts = None if database is None else database.parent / "mlruns"
    locks = _lock_folder(uri, artifacts)
    with _lock(locks / "setup.lock"):
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            # A server chooses the place itself. A bare SQLite file has its artifacts beside it, wherever we run.
            location = None if artifacts is None else (artifacts / EXPERIMENT).as_uri()
            return _Connection(uri, client, client.create_experiment(EXPERIMENT, artifact_location=location), locks)
    if experiment.lifecycle_stage == "deleted":
        raise MlflowException(
            f"The experiment {EXPERIMENT!r} is deleted; bring it back with "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`."
        )
    return _Connection(uri, client, experiment.experiment_id, locks)


def _lock_folder(uri: str, artifacts: Path | None) -> Path:
    if artifacts is not None:
        folder = artifacts / ".locks"
    else:
        digest = hashlib.sha256(uri.encode()).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"geokr-{os.getuid()}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _lock(path: Path, reporter: Reporter | None = None) -> Iterator[None]:
    """Hold a lock between processes of this machine; the system frees it when its holder dies."""
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if reporter is not None:
                reporter.info("Another promotion is going on; waiting for it to end.")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def _refusals(doing: str) -> Iterator[None]:
    try:
        yield
    except GeoKRError:
        raise  # some are OSErrors too, and say better what is wrong
    except _AWAY as error:
        raise RegistryError(
            f"{doing}: MLflow at {_shown(tracking_uri())} cannot be reached or refused: {_first_line(error)} "
            "Nothing that was built is lost. Start the server or set MLFLOW_TRACKING_URI, then run this again."
        ) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return _shown(text.splitlines()[0][:300])


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


# --- tracking ---------------------------------------------------------------------------------------------------------


@dataclass
class _Delivery:
    """Sends to one MLflow run. While the server is away, everything is kept in files, and handed over when it is back."""

    connection: _Connection
    run_id: str
    step: str
    reporter: Reporter
    spool: Spool
    lost: bool = False
    _tried: float = 0.0
    _owning: ExitStack = field(default_factory=ExitStack)

    def send(self, record: Record, attached: Path | None = None, *, last: bool = False) -> None:
        """Send a record, or keep it.

        Args:
            record: see `_take`.
            attached: the file that a record of the kind ``file`` attaches.
            last: the run ends with it: try the server once more, however short ago it was found away.
        """
        if not self.lost:
            self._try(record, attached)
        else:
            self._keep(record, attached)
            if last or time.monotonic() - self._tried > _RETRY_SECONDS:
                self._hand_over()
        if last:
            self._owning.close()

    def _try(self, record: Record, attached: Path | None) -> None:
        try:
            _take(self.connection.client, self.run_id, {**record, "attached": str(attached)} if attached else record)
        except _AWAY as error:
            self.lost, self._tried = True, time.monotonic()
            self.reporter.warning(
                f"MLflow at {_shown(self.connection.uri)} was lost: {_first_line(error)} The rest of this run of "
                f"`{self.step}` is kept in {self.spool.folder} and handed over when the server is back, at the latest by "
                "the next tracked step; the step goes on and its output is complete."
            )
            self._owning.enter_context(self.spool.owned())
            self._keep(record, attached)

    def _keep(self, record: Record, attached: Path | None) -> None:
        try:
            self.spool.keep(record, attached)
        except OSError as error:
            self.reporter.warning(f"{self.spool.folder}: not kept for MLflow either: {error}")

    def _hand_over(self) -> None:
        self._tried = time.monotonic()
        try:
            self.spool.hand_over(lambda record: _take(self.connection.client, self.run_id, record))
        except _AWAY:
            return
        self.lost = False
        self.reporter.info(f"MLflow at {_shown(self.connection.uri)} is back and has everything of `{self.step}`.")


def _take(client: MlflowClient, run_id: str, record: Record) -> None:
    """Put a record into a run.

    Kinds: ``batch`` (``metrics``: rows of key, value, timestamp and step; ``tags``), ``text`` (``name``, ``text``),
    ``file`` (``attached``, ``folder``), ``end`` (``status``, ``end_ms``). Taken twice, each leaves the run as it was.
    """
    kind = record["kind"]
    if kind == "batch":
        metrics = [Metric(*row) for row in record.get("metrics", ())]
        tags = [RunTag(key, value) for key, value in record.get("tags", {}).items()]
        client.log_batch(run_id, metrics=metrics, tags=tags)
    elif kind == "text":
        client.log_text(run_id, record["text"], record["name"])
    elif kind == "file":
        client.log_artifact(run_id, record["attached"], record["folder"])
    else:
        client.set_terminated(run_id, record["status"], end_time=record["end_ms"])


def deliver_kept(reporter: Reporter) -> int:
    """Hand over what earlier runs kept while the server was away, but for those that are still running.

    Args:
        reporter: hears what was delivered.

    Returns:
        Records that were handed over.

    Raises:
        RegistryError: the server is still away.
    """
    with _refusals("Delivering what was kept for MLflow"):
        return _deliver_kept(_connect(), reporter)


def _deliver_kept(connection: _Connection, reporter: Reporter) -> int:
    taken = 0
    for spool in spools_of(connection.uri):
        with spool.owned() as ours:
            if not ours or not spool:
                continue
            try:
                taken += spool.hand_over(lambda record, run=spool.run_id: _take(connection.client, run, record))  # type: ignore[misc]
            except _AWAY as error:
                reporter.warning(
                    f"{spool.folder}: kept for MLflow's run {spool.run_id}, but not taken: {_first_line(error)} It stays for "
                    "the next time; delete the folder if that run is gone for good."
                )
                continue
            reporter.info(f"MLflow: what was kept of run {spool.run_id} is delivered.")
    return taken


@dataclass
class _MlflowReporter:
    """Sends curves in batches and keeps the log lines for the end."""

    delivery: _Delivery
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
            key = _metric_key(name)
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


def _metric_key(name: str) -> str:
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
    _delivery: _Delivery | None = None
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
            (_metric_key(name), float(value), now, curves.last_steps.get(_metric_key(name), 0))
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


_current_run: ContextVar[TrackedRun | None] = ContextVar("geokr_current_run", default=None)
"""The run that `track_step` has open, so that `promote` puts its artifacts there and opens no second one."""


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
    token = _current_run.set(run)
    try:
        yield run
    except BaseException as error:
        run._close("FAILED" if isinstance(error, Exception) else "KILLED", error)
        raise
    else:
        run._close("FINISHED", None)
    finally:
        _current_run.reset(token)


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
        connection = _connect()
        _deliver_kept(connection, reporter)
        unfinished = _unfinished(connection, all_tags)
        if unfinished is not None:
            run_id = unfinished.info.run_id
            all_tags[_ATTEMPT_TAG] = str(int(unfinished.data.tags.get(_ATTEMPT_TAG, "1")) + 1)
            _reopen(connection.client, unfinished, all_tags)
            reporter.info(f"{step}: going on with MLflow's run {run_id}")
        else:
            run_id = connection.client.create_run(connection.experiment_id, tags=all_tags, run_name=step).info.run_id
        _log_parameters(connection.client, run_id, parameters)
    except _AWAY as error:
        reporter.warning(
            f"MLflow at {_shown(tracking_uri())} cannot be reached: {_first_line(error)} This run of `{step}` goes on "
            "untracked: its parameters, curves and system metrics will not be in MLflow; output and summary are written "
            "as always. To have it recorded, start the server (or set MLFLOW_TRACKING_URI) and run the step again "
            "with --force."
        )
        return TrackedRun(reporter)
    delivery = _Delivery(connection, run_id, step, reporter, spool_of(connection.uri, run_id))
    curves = _MlflowReporter(delivery)
    monitor = SystemMetricsMonitor(run_id, sampling_interval=5, tracking_uri=connection.uri)  # type: ignore[no-untyped-call]
    monitor.start()  # type: ignore[no-untyped-call]
    attempt = all_tags[_ATTEMPT_TAG]
    log_name = "log.txt" if attempt == "1" else f"log_attempt_{attempt}.txt"
    page = _page(connection, run_id)
    return TrackedRun(TeeReporter(reporter, curves), run_id, page, log_name, delivery, curves, monitor)


def _unfinished(connection: _Connection, tags: Mapping[str, str]) -> Run | None:
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


def _page(connection: _Connection, run_id: str) -> str:
    base = os.environ.get(UI_VARIABLE, "") or connection.uri
    if not base.startswith(("http://", "https://")):
        return f"runs:/{run_id}"
    return f"{_shown(base).rstrip('/')}/#/experiments/{connection.experiment_id}/runs/{run_id}"


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


# --- registering ------------------------------------------------------------------------------------------------------


def _register_once(
    connection: _Connection, bundle: Bundle, run_id: str, evaluation_tags: Mapping[str, str]
) -> ModelVersion:
    """The version of this very bundle, registered now if it is not there yet; its latest evaluation counts."""
    client, name, version = connection.client, bundle.model_name, bundle.bundle_data_version
    known = [found for found in _versions(client, name) if found.tags.get(DATA_VERSION_TAG) == version]
    if known:
        newest = max(known, key=lambda found: int(found.version))
        for key, value in evaluation_tags.items():
            if newest.tags.get(key) != value:
                client.set_model_version_tag(name, str(newest.version), key, value)
        return newest
    if name not in _model_names(client):
        client.create_registered_model(name, description="Backbones pretrained on land-cover proportions.")
    tags = {
        DATA_VERSION_TAG: version,
        "geokr/levir_kr_data_version": bundle.data_version,
        "geokr/legend_hash": bundle.legend_hash,
        "geokr/git_sha": git_sha(),
        "geokr/architecture": bundle.architecture,
        "geokr/bands": ",".join(bundle.bands),
        **evaluation_tags,
    }
    logged = client.create_logged_model(
        connection.experiment_id,
        name=re.sub(r"[^\w-]", "-", name),
        source_run_id=run_id,
        tags=tags,
        model_type="backbone",
    )
    with tempfile.TemporaryDirectory() as folder:
        model = Model(
            artifact_path=logged.artifact_location,
            run_id=run_id,
            model_uuid=logged.model_id,
            model_id=logged.model_id,
        )
        package = _package(bundle, model, Path(folder) / "model")
        client.log_model_artifacts(logged.model_id, str(package))
    client.finalize_logged_model(logged.model_id, "READY")
    return client.create_model_version(
        name,
        source=f"models:/{logged.model_id}",
        run_id=run_id,
        tags=tags,
        description=(bundle.folder / MODEL_CARD).read_text(encoding="utf-8")[:_MAX_DESCRIPTION_CHARS],
        model_id=logged.model_id,
    )


def _package(bundle: Bundle, model: Model, folder: Path) -> Path:
    """Write an MLflow model of code and plain files, the bundle's files at its top.

    ``mlflow artifacts download`` then gives a usable bundle without this project. MLflow itself would put them into a
    folder ``artifacts`` and write down where they came from on this machine.
    """
    num_bands, dim = len(bundle.bands), bundle.feature_dim
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it asks for an input example and for type hints of its own kind
        save_model(
            path=str(folder),
            python_model=str(_PYFUNC_CODE),
            artifacts={name: str(bundle.folder / name) for name in BUNDLE_FILES},
            signature=ModelSignature(
                inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, num_bands, -1, -1))]),
                outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, dim))]),
            ),
            pip_requirements=[f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in _REQUIREMENTS],
            mlflow_model=model,
        )
    flavour = model.flavors["python_function"]
    for name, entry in flavour["artifacts"].items():
        (folder / entry["path"]).rename(folder / name)
        entry.update(path=name, uri=name)
    flavour["model_code_path"] = _PYFUNC_CODE.name
    del flavour["cloudpickle_version"]  # nothing here is pickled
    (folder / "artifacts").rmdir()
    model.save(str(folder / "MLmodel"))
    for cache in folder.rglob("__pycache__"):
        shutil.rmtree(cache)
    return folder


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    return list(client.search_model_versions(f"name = '{name}'"))


def _model_names(client: MlflowClient) -> list[str]:
    return [model.name for model in client.search_registered_models()]


def _aliases(client: MlflowClient, name: str) -> dict[str, int]:
    return {alias: int(version) for alias, version in client.get_registered_model(name).aliases.items()}


# --- promoting --------------------------------------------------------------------------------------------------------


def promote(
    config: ChampionConfig,
    evaluation: EvaluationConfig,
    inputs: Mapping[str, Path],
    cells: Path,
    out: Path,
    reporter: Reporter,
) -> Summary:
    """Register the backbone as challenger; make it champion if it is better beyond noise and worse on nothing.

    Both sides are scored as the bundles that are delivered, on today's data by today's settings: figures that were kept
    are used where they were measured so, and measured again otherwise. Registered twice, the same bundle stays one
    version. Run again on the same registry and inputs, the decision is the same, byte for byte.

    Args:
        config: primary criteria, guards and margins.
        evaluation: settings of the evaluation.
        inputs: folders ``backbone``, ``evaluation`` and ``report``.
        cells: folder of finished cells of the evaluation.
        out: folder that gets ``decision.json``; replaced as a whole.
        reporter: hears what is decided.

    Returns:
        Whether it was promoted, and both sides criterion by criterion.

    Raises:
        MissingInputError: an input has not been made.
        BackboneError: the bundle is damaged.
        EvaluationError: a criterion cannot be measured on one of the two. It never counts as 0.
        RegistryError: MLflow cannot be reached, or the evaluation is of another bundle.
    """
    bundle = open_bundle(inputs["backbone"])
    verify_bundle(bundle.folder)
    results, report = inputs["evaluation"] / "results.parquet", inputs["report"] / "report.html"
    require_evaluated(results, bundle.bundle_data_version)
    if not report.is_file():
        raise MissingInputError(f"{report}: no report of the evaluation; run `geokr report` first.")
    judge = _Judge(evaluation, config.criteria, cells, reporter)
    with _refusals(f"Promoting {bundle.model_name}"), _run_for_promotion(config, reporter) as run:
        challenger = judge.score(bundle.folder)
        connection, run_id = _connect(), str(run.run_id)
        with _lock(connection.locks / "promotion.lock", reporter):
            for path in (results, report):
                connection.client.log_artifact(run_id, str(path), _EVIDENCE)
            places = {f"geokr/{path.stem}": f"runs:/{run_id}/{_EVIDENCE}/{path.name}" for path in (results, report)}
            tags = {_SCORES_TAG: challenger.as_text(), **places, "geokr/evaluation_run": run_id}
            version = _register_once(connection, bundle, run_id, tags)
            _enter(connection, version, run_id, challenger)
            decision = _Contest(connection, bundle.model_name, int(version.version), config, judge).settle(challenger)
    with whole_folder(out) as folder:
        write_decision(folder, decision)
    reporter.info(decision["reason"])
    return _promotion_summary(decision)


@contextmanager
def _run_for_promotion(config: ChampionConfig, reporter: Reporter) -> Iterator[TrackedRun]:
    current = _current_run.get()
    if current is not None and current.run_id is not None:
        yield current
        return
    with track_step("champion", {"champion": config.model_dump(mode="json")}, {}, reporter) as run:
        if run.run_id is None:
            raise MlflowException("no run could be opened.")
        yield run


def _enter(connection: _Connection, version: ModelVersion, run_id: str, card: Scorecard) -> None:
    """Give the version its scores and the alias of the challenger."""
    # The source of a version is its logged model; the field `model_id` comes back empty from a database.
    logged = str(version.source).removeprefix("models:/")
    for name, score in card.scores.items():
        connection.client.log_metric(run_id, _metric_key(name), score.value, model_id=logged)
    connection.client.set_registered_model_alias(version.name, CHALLENGER, str(version.version))


@dataclass(frozen=True)
class _Judge:
    """Scores bundles by the same criteria."""

    evaluation: EvaluationConfig
    criteria: tuple[Criterion, ...]
    cells: Path
    reporter: Reporter

    def score(self, bundle: Path) -> Scorecard:
        from geokr_core.evaluate import score_backbone

        return score_backbone(bundle, self.evaluation, self.criteria, self.cells, self.reporter)


@dataclass(frozen=True)
class _Contest:
    """One version against the champion of its model."""

    connection: _Connection
    name: str
    version: int
    config: ChampionConfig
    judge: _Judge

    def settle(self, challenger: Scorecard) -> dict[str, Any]:
        """Compare, and move the alias if the challenger wins.

        The lock keeps other promotions on this machine away. For those on other machines, the champion is looked up
        again right before the alias moves.
        """
        for _ in range(3):
            champion = _aliases(self.connection.client, self.name).get(CHAMPION)
            if champion == self.version:
                return self._already_champion(challenger)
            if (withdrawn := self._tags(self.version).get(_WITHDRAWN_TAG)) is not None:
                reason = (
                    f"it was champion before and was withdrawn ({withdrawn}); `geokr rollback --to` can bring it back"
                )
                withdrawn_verdict = Verdict(False, reason)
                return self._refused(withdrawn_verdict, self._decision(challenger, champion, None, withdrawn_verdict))
            other = None if champion is None else self._scorecard_of(champion, challenger)
            verdict = decide(self.config, challenger, other)
            decision = self._decision(challenger, champion, other, verdict)
            if not verdict.promoted:
                return self._refused(verdict, decision)
            reasons = {
                "promoted_because": verdict.reason,
                _REPLACED_TAG: "none" if champion is None else str(champion),
                "delta": _delta(verdict),
                _DECISION_TAG: json.dumps(decision, sort_keys=True),
            }
            self._tag(self.version, reasons)
            if _aliases(self.connection.client, self.name).get(CHAMPION) == champion:
                self.connection.client.set_registered_model_alias(self.name, CHAMPION, str(self.version))
                _drop_tags(self.connection.client, self.name, self.version, _REFUSED_TAG, _REFUSED_DELTA_TAG)
                _describe(self.connection.client, self.name, self.version, decision["reason"])
                return decision
            _drop_tags(self.connection.client, self.name, self.version, *reasons)
            self.judge.reporter.warning(f"The champion of {self.name} changed meanwhile; comparing again.")
        raise RegistryError(
            f"The champion of {self.name} changed three times during this promotion. Nothing was promoted; "
            "run `geokr promote` again when no other promotion is going on."
        )

    def _refused(self, verdict: Verdict, decision: dict[str, Any]) -> dict[str, Any]:
        self._tag(self.version, {_REFUSED_TAG: verdict.reason, _REFUSED_DELTA_TAG: _delta(verdict)})
        _describe(self.connection.client, self.name, self.version, decision["reason"])
        return decision

    def _tags(self, version: int) -> Mapping[str, str]:
        return dict(self.connection.client.get_model_version(self.name, str(version)).tags)

    def _tag(self, version: int, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self.connection.client.set_model_version_tag(self.name, str(version), key, value)

    def _already_champion(self, challenger: Scorecard) -> dict[str, Any]:
        """The decision that made it champion, as long as it rests on the same figures and rule."""
        found = self._tags(self.version).get(_DECISION_TAG)
        if found is not None:
            decision = dict(json.loads(found))
            same = decision["challenger"] == _record(self.version, challenger)
            if same and decision["rule"] == self.config.model_dump(mode="json"):
                return decision
        return self._decision(challenger, self.version, challenger, Verdict(False, "it is the champion already"))

    def _scorecard_of(self, champion: int, challenger: Scorecard) -> Scorecard:
        """The champion's scores if they were measured on today's data by today's settings; measured again otherwise."""
        text = self._tags(champion).get(_SCORES_TAG)
        recorded = None if text is None else Scorecard.from_text(text)
        if recorded is not None and recorded.covers(challenger):
            return recorded
        self.judge.reporter.info(f"{self.name}: judging champion {champion} again, on the challenger's data.")
        with tempfile.TemporaryDirectory() as folder:
            card = self.judge.score(_fetch(self.connection, self.name, champion, Path(folder)))
        self._tag(champion, {_SCORES_TAG: card.as_text()})
        return card

    def _decision(
        self, challenger: Scorecard, champion: int | None, other: Scorecard | None, verdict: Verdict
    ) -> dict[str, Any]:
        tags = self._tags(self.version)
        outcome = f"was promoted: {verdict.reason}." if verdict.promoted else f"was not promoted: {verdict.reason}."
        return {
            "model_name": self.name,
            "data_version": tags[DATA_VERSION_TAG],
            "levir_kr_data_version": tags["geokr/levir_kr_data_version"],
            "rule": self.config.model_dump(mode="json"),
            "challenger": _record(self.version, challenger),
            "champion": None if champion is None or other is None else _record(champion, other),
            "margins": [_finite(asdict(margin)) for margin in verdict.margins],
            "promoted": verdict.promoted,
            "delta": verdict.gain,
            "delta_ci_low": verdict.ci_low,
            "delta_ci_high": verdict.ci_high,
            "champion_version": self.version if verdict.promoted else champion,
            "reason": f"Version {self.version} of {self.name} {outcome}",
        }


def _describe(client: MlflowClient, name: str, version: int, what_happened: str) -> None:
    """Put what became of a version above its model card on the registry's page."""
    written = client.get_model_version(name, str(version)).description or ""
    card = written.rpartition(_ABOVE_CARD)[2]
    text = f"{what_happened}{_ABOVE_CARD}{card}"[:_MAX_DESCRIPTION_CHARS]
    client.update_model_version(name, str(version), description=text)


def _drop_tags(client: MlflowClient, name: str, version: int, *keys: str) -> None:
    there = client.get_model_version(name, str(version)).tags
    for key in keys:
        if key in there:
            client.delete_model_version_tag(name, str(version), key)


def _delta(verdict: Verdict) -> str:
    return "none" if verdict.gain is None else repr(verdict.gain)


def _record(version: int, card: Scorecard) -> dict[str, Any]:
    """For people to read: without the hundreds of resampled values, which stay on the version's tag."""
    scores = json.loads(card.as_text())
    for score in scores.values():
        del score["replicates"]
    return {"version": version, "scores": scores}


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no word for NaN: a bound that is none is null."""
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in values.items()}


def _promotion_summary(decision: Mapping[str, Any]) -> Summary:
    numbers: dict[str, Number] = {
        "reason": str(decision["reason"]),
        "promoted": bool(decision["promoted"]),
        "version": int(decision["challenger"]["version"]),
    }
    if decision["champion_version"] is not None:
        numbers["champion_version"] = int(decision["champion_version"])
    for name in ("delta", "delta_ci_low", "delta_ci_high"):
        if decision[name] is not None:
            numbers[name] = float(decision[name])
    table: list[dict[str, Number]]
    if decision["margins"]:
        table = [{key: _shown_figure(value) for key, value in row.items()} for row in decision["margins"]]
    else:
        scores = Scorecard.from_text(json.dumps(decision["challenger"]["scores"])).scores
        table = [{"name": name, "challenger": _shown_figure(score.value)} for name, score in scores.items()]
    return Summary(numbers=numbers, table=table)


def _shown_figure(value: Number | None) -> Number:
    """To four decimals, which is more than any test set can tell; blank where there is none."""
    return "" if value is None else round(value, 4) if isinstance(value, float) else value


# --- taking back and comparing ----------------------------------------------------------------------------------------


def rollback(name: str, because: str, to: int | None, reporter: Reporter) -> int:
    """Give the alias of the champion back to the one before, or to a version by number.

    The version that is left is marked as withdrawn, so that no promotion makes it champion again; a version that is
    returned to loses that mark.

    Args:
        name: the registered model.
        because: why, kept as a tag.
        to: version to return to; None: the one that the present champion replaced.
        reporter: hears what was done.

    Returns:
        The version that is champion now.

    Raises:
        RegistryError: there is no such model, version, champion or predecessor, or MLflow cannot be reached.
    """
    with _refusals(f"Rolling back {name}"):
        connection = _connect()
        client = connection.client
        with _lock(connection.locks / "promotion.lock", reporter):
            _, champion = _resolve(client, f"{name}@{CHAMPION}")
            target = _predecessor(client, name, champion) if to is None else _resolve(client, f"{name}/{to}")[1]
            if target == champion:
                raise RegistryError(f"Version {target} of {name} is the champion already; nothing to roll back.")
            client.set_model_version_tag(name, str(champion), _WITHDRAWN_TAG, because)
            _drop_tags(client, name, target, _WITHDRAWN_TAG, _REFUSED_TAG, _REFUSED_DELTA_TAG)
            client.set_model_version_tag(name, str(target), "restored_because", f"version {champion}: {because}")
            client.set_registered_model_alias(name, CHAMPION, str(target))
            _describe(client, name, champion, f"Withdrawn: {because}.")
            _describe(client, name, target, f"Champion again since version {champion} was withdrawn: {because}.")
    reporter.info(f"{name}: version {target} is champion again; version {champion} is withdrawn ({because}).")
    return target


def _predecessor(client: MlflowClient, name: str, champion: int) -> int:
    replaced = client.get_model_version(name, str(champion)).tags.get(_REPLACED_TAG, "none")
    if replaced == "none":
        numbers = sorted(int(found.version) for found in _versions(client, name))
        raise RegistryError(
            f"Champion {champion} of {name} replaced no other; name a version with `--to` (there: "
            f"{', '.join(map(str, numbers))})."
        )
    return int(replaced)


def compare(
    references: tuple[str, str], config: ChampionConfig, evaluation: EvaluationConfig, cells: Path, reporter: Reporter
) -> Summary:
    """Score two registered backbones alike and set them side by side.

    Args:
        references: ``name@alias`` or ``name/version``, the first to be compared with the second.
        config: the criteria.
        evaluation: where the sets lie, seeds and budget.
        cells: folder that keeps finished cells.
        reporter: hears every score.

    Returns:
        One row a criterion: both means, the mean difference seed by seed with its 95 % interval; as numbers, what the
        rule of promotion would say.

    Raises:
        RegistryError: there is no such model, alias or version, or MLflow cannot be reached.
        BackboneError: a download is damaged.
        EvaluationError: a criterion cannot be measured on one of the two.
    """
    judge = _Judge(evaluation, config.criteria, cells, reporter)
    cards = []
    with _refusals(f"Comparing {' with '.join(references)}"):
        connection = _connect()
        for reference in references:
            with tempfile.TemporaryDirectory() as folder:
                cards.append(judge.score(_fetch(connection, *_resolve(connection.client, reference), Path(folder))))
    verdict = decide(config, cards[0], cards[1])
    table: list[dict[str, Number]] = [
        {
            "criterion": margin.name,
            "role": margin.role,
            references[0]: round(margin.challenger, 4),
            references[1]: round(margin.champion, 4),
            "difference": round(margin.difference, 4),
            "ci_low": round(margin.ci_low, 4),
            "ci_high": round(margin.ci_high, 4),
        }
        for margin in margins_of(config, cards[0], cards[1])
    ]
    return Summary({"would_be_promoted": verdict.promoted, "reason": verdict.reason}, table)


# --- downloading ------------------------------------------------------------------------------------------------------


def download(reference: str, to: Path) -> Path:
    """Download a backbone from the registry and check it: every sha256, and the golden features.

    Args:
        reference: ``name@alias`` or ``name/version``.
        to: folder that gets the files of the bundle; a bundle that lies there is replaced.

    Returns:
        ``to``.

    Raises:
        RegistryError: there is no such model, alias or version (the message lists what there is), MLflow cannot be
            reached, or ``to`` holds something else.
        BackboneError: what was downloaded is damaged; ``to`` is left as it was.
    """
    to = to.resolve()
    if to.exists() and not (to / DESCRIPTION).is_file() and (to.is_file() or any(to.iterdir())):
        raise RegistryError(f"{to}: something else lies there and would be replaced; name a new folder.")
    database = _sqlite_file(tracking_uri())
    if database is not None and not database.is_file():
        raise RegistryError(
            f"{database}: no registry there. Set MLFLOW_TRACKING_URI to the server that has {reference!r}, "
            "or run from the folder of the project that registered it."
        )
    with _refusals(f"Downloading {reference}"):
        connection = _connect()
        name, version = _resolve(connection.client, reference)
        with tempfile.TemporaryDirectory() as folder:
            bundle = _fetch(connection, name, version, Path(folder))
            with whole_folder(to) as partial:
                for file in BUNDLE_FILES:
                    shutil.copyfile(bundle / file, partial / file)
    return to


def _fetch(connection: _Connection, name: str, version: int, folder: Path) -> Path:
    """Download one version; verify it and give the folder of the bundle alone, without what MLflow adds."""
    source = connection.client.get_model_version_download_uri(name, str(version))
    bundle = folder / "bundle"
    bundle.mkdir()
    place = Path(download_artifacts(artifact_uri=source, dst_path=str(folder), tracking_uri=connection.uri))
    for file in BUNDLE_FILES:
        if not (place / file).is_file():
            raise BackboneError(
                f"Version {version} of {name} lacks {file}: it was not registered by `geokr promote`, or its artifacts "
                f"were deleted. Choose another version, or register the backbone again."
            )
        (place / file).rename(bundle / file)
    verify_bundle(bundle)
    return bundle


def _resolve(client: MlflowClient, reference: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:models:/)?([^@/:]+)(?:@([^@/:]+)|/(\d+))", reference)
    if match is None:
        raise RegistryError(f"{reference!r}: expected NAME@ALIAS or NAME/VERSION, e.g. geokr-resnet18@champion.")
    name, alias, version = match[1], match[2], match[3]
    models = _model_names(client)
    if name not in models:
        raise RegistryError(
            f"No model {name!r} in the registry at {_shown(tracking_uri())}; there: {', '.join(sorted(models)) or 'none'}."
        )
    if alias is not None:
        aliases = _aliases(client, name)
        if alias not in aliases:
            there = ", ".join(f"{key} (version {value})" for key, value in sorted(aliases.items()))
            raise RegistryError(f"{name} has no alias {alias!r}; there: {there or 'none'}.")
        return name, aliases[alias]
    numbers = sorted(int(found.version) for found in _versions(client, name))
    if int(version) not in numbers:
        raise RegistryError(f"{name} has no version {version}; there: {', '.join(map(str, numbers)) or 'none'}.")
    return name, int(version)
