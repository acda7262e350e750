"""A real MLflow on SQLite: one database a module of tests, whose fixtures a ``conftest`` imports; a server over a database."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from running_stack import patiently


@pytest.fixture(scope="module")
def database(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for the module. Each test has its own runs and model names."""
    return Path(shutil.copy(empty_database, tmp_path_factory.mktemp("mlflow")))


@pytest.fixture(autouse=True)
def server(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A client of the database, which is the tracking server of the test."""
    monkeypatch.setenv("GEOKR_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    monkeypatch.delenv("GEOKR_MLFLOW_UI_URL", raising=False)
    return MlflowClient(tracking_uri=f"sqlite:///{database}")


def server_command(folder: Path, port: int, artifacts: Path | str | None = None) -> list[str]:
    """What starts an MLflow server over ``mlflow.db``.

    Args:
        folder: of the database.
        port: of this machine.
        artifacts: where artifacts go; None: a folder beside the database.
    """
    program = [str(Path(sys.executable).parent / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port)]
    database = f"sqlite:///{folder / 'mlflow.db'}"
    places = ["--backend-store-uri", database, "--artifacts-destination", str(artifacts or folder / "artifacts")]
    return [*program, "--workers", "1", *places]


@contextlib.contextmanager
def mlflow_server(folder: Path, artifacts: Path | str | None = None, **environment: str) -> Iterator[int]:
    """A real MLflow server over ``mlflow.db``; its port.

    Args:
        folder: of the database.
        artifacts: where artifacts go; None: a folder beside the database.
        environment: of the server.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            server_command(folder, port, artifacts),
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        patiently(lambda: requests.get(f"http://127.0.0.1:{port}/health", timeout=5).raise_for_status())
        yield port
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)
