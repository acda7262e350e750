"""Whether MLflow answers: its database or server, its schema, its clock, and what still waits to be handed over.

Nothing is written and nothing is created: an installation that is looked at stays as it is.
"""

import sqlite3
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

import mlflow
import requests
from mlflow.tracking import MlflowClient
from sqlalchemy import create_engine, inspect, text

from geokr_core.tracking.runs import STEP_TAG, left_open
from geokr_core.tracking.server import (
    AWAY,
    EXPERIMENT,
    first_line,
    refusals,
    sqlite_file,
    tracking_uri,
    without_password,
)
from geokr_core.tracking.spool import spools_of

_PATIENCE_S: Final = 5
_SCHEMA: Final = "alembic_version"


@dataclass(frozen=True)
class Health:
    """How MLflow is.

    Attributes:
        place: its URI, without a password.
        fault: what is wrong; empty where it answers.
        remedy: what to do about it.
        found: what there is.
        clock_ahead_s: seconds by which the server's clock is ahead of this machine's; None where it tells no time.
        has_tables: whether there is anything to ask.
        num_waiting: runs of which records wait in files.
    """

    place: str = ""
    fault: str = ""
    remedy: str = ""
    found: str = ""
    clock_ahead_s: float | None = None
    has_tables: bool = False
    num_waiting: int = 0


_EMPTY: Final = Health(found="an empty database; the first tracked step fills it")


def health() -> Health:
    """Ask MLflow how it is."""
    uri = tracking_uri()
    database = sqlite_file(uri)
    if database is not None:
        found = _of_file(uri, database)
    elif uri.startswith(("http://", "https://")):
        found = _of_server(uri)
    else:
        found = _of_database(uri)
    return replace(found, place=without_password(uri), num_waiting=len(spools_of(uri)))


def runs_left_open() -> list[str]:
    """Names of runs that say they are running although their process is gone.

    Raises:
        RegistryError: MLflow cannot be asked.
    """
    with refusals("Asking for open runs"):
        client = MlflowClient(tracking_uri=tracking_uri())
        experiment = client.get_experiment_by_name(EXPERIMENT)
        return [] if experiment is None else left_open(client, experiment.experiment_id)


def runs_since(days: int) -> Mapping[tuple[str, str], int]:
    """How many runs began in the last days, by step and MLflow's word for how they stand.

    Raises:
        RegistryError: MLflow cannot be asked.
    """
    with refusals("Counting runs"):
        client = MlflowClient(tracking_uri=tracking_uri())
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return {}
        recent = f"attributes.start_time > {int((time.time() - days * 86_400) * 1000)}"
        counts: Counter[tuple[str, str]] = Counter()
        token: str | None = ""
        while token is not None:
            page = client.search_runs([experiment.experiment_id], recent, page_token=token or None)
            counts.update((run.data.tags.get(STEP_TAG, "other"), run.info.status) for run in page)
            token = page.token or None
        return counts


def _of_file(uri: str, database: Path) -> Health:
    if not database.is_file():
        return Health(found="no database yet; the first tracked step makes it")
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True, timeout=2.0)) as connection:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                return Health(fault=f"{database} is damaged: {verdict}", remedy=_RESTORE)
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.OperationalError as error:
        remedy = (
            "Give this user write rights to the file and its folder, or end the process that holds it (`fuser FILE`)."
        )
        return Health(fault=f"{database}: {error}", remedy=remedy)
    except sqlite3.DatabaseError as error:
        return Health(fault=f"{database} is damaged: {error}", remedy=_RESTORE)
    return _of_tables(uri) if _SCHEMA in names else _EMPTY


_RESTORE: Final = "`geokr restore` the last backup; keep the damaged file beside it."


def _of_database(uri: str) -> Health:
    try:
        engine = create_engine(uri, connect_args={"connect_timeout": _PATIENCE_S} if "postgres" in uri else {})
        try:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
                has_tables = inspect(connection).has_table(_SCHEMA)
        finally:
            engine.dispose()
    except (*AWAY, ImportError, ValueError) as error:
        return Health(fault=first_line(error), remedy="Start the database, or mend MLFLOW_TRACKING_URI.")
    return _of_tables(uri) if has_tables else _EMPTY


def _of_server(uri: str) -> Health:
    base = uri.rstrip("/")
    try:
        answer = requests.get(f"{base}/health", timeout=_PATIENCE_S)
        version = requests.get(f"{base}/version", timeout=_PATIENCE_S).text.strip()[:40]
    except requests.RequestException as error:
        kind = type(error).__name__
        return Health(
            fault=f"no answer within {_PATIENCE_S} s ({kind})", remedy="Start the server, or mend MLFLOW_TRACKING_URI."
        )
    if not answer.ok:
        return Health(
            fault=f"answers {answer.status_code} {answer.reason}",
            remedy="Look into the server's log; is MLFLOW_TRACKING_URI that of MLflow?",
        )
    ahead = _ahead(answer.headers.get("Date", ""))
    return replace(_of_tables(uri, f"server {version}"), clock_ahead_s=ahead)


def _ahead(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except (TypeError, ValueError):
        return None


def _of_tables(uri: str, what: str = "") -> Health:
    """Ask by MLflow's client, which compares the schema of a database with its own and has rights to prove at a server."""
    try:
        experiments = MlflowClient(tracking_uri=uri).search_experiments(max_results=1000)
    except AWAY as error:
        said = first_line(error)
        if "schema" in said:
            return Health(
                fault=said, remedy="Back up, then `mlflow db upgrade URI` with the release that is installed."
            )
        return Health(
            fault=said,
            remedy="Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or look into the server's log.",
        )
    shown = what or f"client {mlflow.__version__}"
    return Health(found=f"{shown}, {len(experiments)} experiment(s)", has_tables=True)
