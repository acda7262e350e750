"""Records on their way to one MLflow run: sent, kept in files while the server is away, handed over when it is back.

How they lie in files is in ``geokr_core.spool``; what is recorded, in ``tracking``.
"""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mlflow.entities import Metric, RunTag
from mlflow.tracking import MlflowClient

from geokr_core.registry.server import AWAY, Connection, connect, first_line, refusals, without_password
from geokr_core.reporter import Reporter
from geokr_core.spool import Record, Spool, spools_of

_RETRY_SECONDS: Final = 60.0
"""Between two attempts to reach a server that was lost: an attempt costs some seconds of the step's time."""


@dataclass
class Delivery:
    """Sends to one MLflow run. While the server is away, everything is kept in files, and handed over when it is back."""

    connection: Connection
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
        except AWAY as error:
            self.lost, self._tried = True, time.monotonic()
            self.reporter.warning(
                f"MLflow at {without_password(self.connection.uri)} was lost: {first_line(error)} The rest of this run of "
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
        except AWAY:
            return
        self.lost = False
        self.reporter.info(
            f"MLflow at {without_password(self.connection.uri)} is back and has everything of `{self.step}`."
        )


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
                taken += spool.hand_over(lambda record, run=spool.run_id: _take(connection.client, run, record))  # type: ignore[misc]
            except AWAY as error:
                reporter.warning(
                    f"{spool.folder}: kept for MLflow's run {spool.run_id}, but not taken: {first_line(error)} It stays for "
                    "the next time; delete the folder if that run is gone for good."
                )
                continue
            reporter.info(f"MLflow: what was kept of run {spool.run_id} is delivered.")
    return taken
