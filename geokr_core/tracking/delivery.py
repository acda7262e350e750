"""Records on their way to one MLflow run: sent, kept in files while the server is away, handed over when it is back.

How they lie in files is in ``geokr_core.tracking.spool``; what is recorded, in ``tracking``.
"""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, RunTag
from mlflow.tracking import MlflowClient

from geokr_core.step.reporter import Reporter, Source
from geokr_core.tracking.runs import NOTE_TAG, Opening, end_run, open_run, run_of_key
from geokr_core.tracking.server import AWAY, Connection, connect, first_line, refusals, tracking_uri, without_password
from geokr_core.tracking.spool import Record, Spool, spool_of, spools_of

_UNOPENED: Final = "unopened-"
"""Begins the name of a spool whose run the server has not heard of; the opening's key follows."""
_MAX_DIGEST_CHARS: Final = 36
"""What MLflow keeps of a data set's digest: all of a data version."""
_RETRY_SECONDS: Final = 60.0
"""Between two attempts to reach a server that was lost: an attempt costs some seconds of the step's time."""


@dataclass(frozen=True)
class Link:
    """The way to a run that is open on a server that answers."""

    connection: Connection
    run_id: str


@dataclass
class Delivery:
    """Sends to one MLflow run. While the server is away, everything is kept in files, and handed over when it is back.

    Attributes:
        spool: where it is kept meanwhile.
        step: name of the run.
        reporter: hears that the server was lost, and that it is back.
        opening: what is wanted of the run.
        link: None while the server is away.
        on_open: gets the run when it could only be opened later, and whether it has ended by then.
    """

    spool: Spool
    step: str
    reporter: Reporter
    opening: Opening
    link: Link | None = None
    on_open: Callable[[Link, bool], None] | None = None
    _known: Connection | None = None
    _tried: float = 0.0
    _owning: ExitStack = field(default_factory=ExitStack)

    def begin_later(self, error: BaseException) -> None:
        """Keep the opening of the run itself, for a server that is away from the start.

        Args:
            error: what reaching the server ended in.
        """
        self._lost(
            f"MLflow at {without_password(tracking_uri())} cannot be reached: {first_line(error)} This run of `{self.step}`, but "
            "for its system metrics,"
        )
        self._keep({"kind": "begin", **asdict(self.opening)}, None)

    def send(self, record: Record, attached: Path | None = None, *, last: bool = False) -> None:
        """Send a record, or keep it.

        Args:
            record: see `_take`.
            attached: the file that a record of the kind ``file`` attaches.
            last: the run ends with it: try the server once more, however short ago it was found away.
        """
        if self.link is not None:
            self._try(self.link, record, attached)
        else:
            self._keep(record, attached)
            if last or time.monotonic() - self._tried > _RETRY_SECONDS:
                self._hand_over(last=last)
        if last:
            self._owning.close()

    def _try(self, link: Link, record: Record, attached: Path | None) -> None:
        try:
            _take(link.connection.client, link.run_id, {**record, "attached": str(attached)} if attached else record)
        except AWAY as error:
            self._known, uri = link.connection, without_password(link.connection.uri)
            self._lost(f"MLflow at {uri} was lost: {first_line(error)} The rest of this run of `{self.step}`")
            self._keep(record, attached)

    def _lost(self, what: str) -> None:
        self.link, self._tried = None, time.monotonic()
        self.reporter.warning(
            f"{what} is kept in {self.spool.folder} and handed over when the server is back, at the latest by the next "
            "tracked step; the step goes on and its output is complete."
        )
        try:
            self._owning.enter_context(self.spool.owned())
        except OSError as error:
            self.reporter.warning(f"{self.spool.folder}: cannot be written, nothing is kept for MLflow: {error}")

    def _keep(self, record: Record, attached: Path | None) -> None:
        try:
            self.spool.keep(record, attached)
        except OSError as error:
            self.reporter.warning(f"{self.spool.folder}: not kept for MLflow either: {error}")

    def _hand_over(self, *, last: bool) -> None:
        self._tried = time.monotonic()
        try:
            connection = self._known or connect()
            self.link = Link(connection, _hand_over(connection, self.spool, self.opening)[0])
        except AWAY:
            return
        if self.on_open is not None:
            self.on_open(self.link, last)
        self.reporter.info(f"MLflow at {without_password(connection.uri)} is back and has everything of `{self.step}`.")


def spool_of_opening(server: str, key: str) -> Spool:
    """The spool of a run that waits for being opened."""
    return spool_of(server, f"{_UNOPENED}{key}")


def _hand_over(connection: Connection, spool: Spool, opening: Opening | None = None) -> tuple[str, int]:
    """Give a run what was kept of it, and open it first if it could not be.

    Args:
        connection: to the server.
        spool: what was kept.
        opening: what is wanted of the run, for whom its record could not be kept.

    Returns:
        MLflow's id of the run, and how many records there were.
    """
    key = spool.run_id.removeprefix(_UNOPENED) if spool.run_id.startswith(_UNOPENED) else None
    known = None if key is None else run_of_key(connection, key)
    run_id = spool.run_id if key is None else "" if known is None else known.info.run_id

    def take(record: Record) -> None:
        nonlocal run_id
        if record["kind"] == "begin":
            wanted = Opening(**{name: record[name] for name in Opening.__dataclass_fields__ if name in record})
            run_id = open_run(connection, wanted, known).run_id
            return
        run_id = run_id or open_run(connection, opening or _lost_opening(str(key))).run_id
        _take(connection.client, run_id, record)

    num_taken = spool.hand_over(take)
    if not run_id and opening is not None:
        run_id = open_run(connection, opening).run_id
    return run_id, num_taken


def _lost_opening(key: str) -> Opening:
    """For records whose opening was torn by a kill: they are kept under a name that says so."""
    return Opening(key, "unknown step", {NOTE_TAG: "What opened this run was lost."}, {}, _now_ms())


def _now_ms() -> int:
    return int(time.time() * 1000)


def _take(client: MlflowClient, run_id: str, record: Record) -> None:
    """Put a record into a run; one of the kind ``begin``, which opens it, is not for here.

    Kinds: ``batch`` (``metrics``: rows of key, value, timestamp and step, or with ``at_start`` of the time at which the run began; ``tags``), ``text`` (``name``, ``text``),
    ``file`` (``attached``, ``folder``), ``source`` (fields of a ``Source``), ``end`` (``key``, ``status``, ``end_ms``, ``error``). Taken twice, each leaves the run as it was.
    """
    kind = record["kind"]
    if kind == "batch":
        metrics = [Metric(*row) for row in record.get("metrics", ())]
        if record.get("at_start"):
            # Whoever resumes a run that was killed tells them again: with the same time they are the same rows.
            began_ms = client.get_run(run_id).info.start_time
            metrics = [Metric(metric.key, metric.value, began_ms, metric.step) for metric in metrics]
        tags = [RunTag(key, value) for key, value in record.get("tags", {}).items()]
        once = record.get("once")  # a tag: with it, the whole of this was recorded
        if once is not None:
            run = client.get_run(run_id)
            if run.data.tags.get(once) == record["tags"][once]:
                return
            metrics = _not_yet_told(metrics, run.data.metrics)
        client.log_batch(run_id, metrics=metrics, tags=tags)
    elif kind == "text":
        client.log_text(run_id, record["text"], record["name"])
    elif kind == "file":
        client.log_artifact(run_id, record["attached"], record["folder"])
    elif kind == "source":
        client.log_inputs(run_id, [_dataset_input(Source(**record["source"]))])
    else:
        end_run(client, run_id, record["key"], record["status"], record["end_ms"], record["error"])


def _not_yet_told(metrics: list[Metric], known: Mapping[str, float]) -> list[Metric]:
    """Those that a killed attempt did not record: MLflow stores the metrics of a request before its tags, each by itself.

    Args:
        metrics: what came out, a metric a figure; at the last step of the curve that it ends, else at step 0.
        known: the latest value of every metric of the run. That of a curve is no sign that the figure was recorded, unless it is the same.
    """
    return [one for one in metrics if one.key not in known or (one.step > 0 and known[one.key] != one.value)]


def _dataset_input(source: Source) -> DatasetInput:
    """A data set as MLflow shows it on the page of a run."""
    counted = {} if source.num_items is None else {"num_rows": source.num_items}
    dataset = Dataset(
        name=source.name,
        digest=source.data_version[:_MAX_DIGEST_CHARS],
        source_type="local",
        source=json.dumps({"uri": source.place}),
        profile=json.dumps(counted),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", source.purpose)])


def deliver_kept(reporter: Reporter) -> int:
    """Hand over what earlier runs kept while the server was away, but for those that are still running.

    Args:
        reporter: hears what was delivered.

    Returns:
        Records that were handed over.

    Raises:
        RegistryError: the server is still away.
    """
    with refusals("Delivering what was kept for MLflow"):
        return deliver_all_kept(connect(), reporter)


def deliver_all_kept(connection: Connection, reporter: Reporter) -> int:
    """As `deliver_kept`, over a connection that is open; client errors go through."""
    taken = 0
    for spool in spools_of(connection.uri):
        with spool.owned() as ours:
            if not ours or not spool:
                continue
            try:
                run_id, num_taken = _hand_over(connection, spool)
            except AWAY as error:
                reporter.warning(
                    f"{spool.folder}: kept for MLflow's run {spool.run_id}, but not taken: {first_line(error)} It stays for "
                    "the next time; delete the folder if that run is gone for good."
                )
                continue
            taken += num_taken
            reporter.info(f"MLflow: what was kept of run {run_id} is delivered.")
    return taken
