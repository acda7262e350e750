"""The MLflow server or database: where it is, how it is reached, locks between processes, and the error when it is away.

What is recorded there is in ``tracking`` and ``versions``.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from geokr_core.errors import GeoKRError, RegistryError
from geokr_core.step.addresses import without_password as without_password
from geokr_core.step.reporter import Reporter

EXPERIMENT: Final = "geokr"
AWAY: Final = (MlflowException, SQLAlchemyError, OSError)
"""What the client raises when server, database or artifact store cannot be reached or refuse."""

_ABOUT: Final = {
    "mlflow.note.content": "Runs of GeoKR. A run is one step of the chain (tag `geokr/step`). Below a run of `pretraining` lies "
    "one run for each variant and seed: select these and compare their `loss`. Models are registered by the step `champion`, "
    "whose run holds results and report under `evidence`. In the interface choose *Model training*, not *GenAI*.",
    "mlflow.experimentKind": "custom_model_development",
}
"""Tags of the experiment: its description, and that it is about training, which decides what its page shows first."""

_DEFAULT_URI: Final = "sqlite:///mlflow.db"


@dataclass(frozen=True)
class Connection:
    """A client, the experiment, and the folder for locks between processes."""

    uri: str
    client: MlflowClient
    experiment_id: str
    locks: Path


def tracking_uri() -> str:
    """The MLflow server or database that is used; the path of an SQLite file is made absolute."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "") or _DEFAULT_URI
    path = sqlite_file(uri)
    return uri if path is None else f"sqlite:///{path}"


def sqlite_file(uri: str) -> Path | None:
    """The database's file, absolute; None where the URI names a server, another database or one in memory."""
    if not uri.startswith("sqlite:"):
        return None
    database = make_url(uri).database
    return None if database in (None, "", ":memory:") else Path(str(database)).resolve()


def connect() -> Connection:
    """Connect, and create database and experiment where they are missing.

    Two processes that create a fresh SQLite file at once would spoil each other's tables: hence the lock.
    """
    uri = tracking_uri()
    database = sqlite_file(uri)
    artifacts = None if database is None else database.parent / "mlruns"
    locks = _lock_folder(uri, artifacts)
    with lock(locks / "setup.lock"):
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            # A server chooses the place itself. A bare SQLite file has its artifacts beside it, wherever we run.
            location = None if artifacts is None else (artifacts / EXPERIMENT).as_uri()
            created = client.create_experiment(EXPERIMENT, artifact_location=location, tags=_ABOUT)
            return Connection(uri, client, created, locks)
    if experiment.lifecycle_stage == "deleted":
        raise MlflowException(
            f"The experiment {EXPERIMENT!r} is deleted; bring it back with "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`."
        )
    return Connection(uri, client, experiment.experiment_id, locks)


def _lock_folder(uri: str, artifacts: Path | None) -> Path:
    if artifacts is not None:
        folder = artifacts / ".locks"
    else:
        digest = hashlib.sha256(uri.encode()).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"geokr-{os.getuid()}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def lock(path: Path, reporter: Reporter | None = None) -> Iterator[None]:
    """Hold a lock between processes of this machine; the system frees it when its holder dies."""
    held = FileLock(path)
    try:
        held.acquire(timeout=0)
    except Timeout:
        if reporter is not None:
            reporter.info("Another promotion is going on; waiting for it to end.")
        held.acquire()
    try:
        yield
    finally:
        held.release()


@contextmanager
def refusals(doing: str) -> Iterator[None]:
    """Say what cannot be done, where and why, when MLflow is away or refuses.

    Raises:
        RegistryError: in place of the client's own errors; those of this project go through.
    """
    try:
        yield
    except GeoKRError:
        raise  # some are OSErrors too, and say better what is wrong
    except AWAY as error:
        raise RegistryError(
            f"{doing}: MLflow at {without_password(tracking_uri())} cannot be reached or refused: {first_line(error)} "
            "Nothing that was built is lost. Start the server or set MLFLOW_TRACKING_URI, then run this again."
        ) from error


def first_line(error: BaseException) -> str:
    """What an error says, on one line, without a password."""
    text = str(error).strip() or type(error).__name__
    return without_password(text.splitlines()[0][:300])
