"""Fixtures for all tests: who listens, where real data lie, and a clean environment."""

import contextlib
import os
import signal
from pathlib import Path

import pytest

from geokr_core.step.reporter import RecordingReporter


@pytest.fixture
def reporter() -> RecordingReporter:
    return RecordingReporter()


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = Path(os.environ.get("GEOKR_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not (folder / "scenes").is_dir():
        pytest.skip(f"{folder}: no real data there; set GEOKR_REAL_DATA to a copy")
    return folder


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with nothing in it, to be copied: MLflow needs five seconds of computing to create one."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow")
    with contextlib.chdir(folder):  # artifacts of its default experiment would lie beside it
        MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}").search_experiments()
    return folder / "mlflow.db"


@pytest.fixture(autouse=True)
def _signals_act_as_in_a_new_process() -> None:
    """Every test hears SIGINT and SIGTERM, whoever started the tests and whichever ran before.

    What is started in the background of a script inherits an ignored SIGINT. Dagster, once it runs in a process, treats SIGTERM
    as it treats SIGINT: ignored as well, then, and so in every process that a later test starts.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reads this machine's parameter file or writes to its MLflow database."""
    monkeypatch.delenv("GEOKR_PARAMS", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
