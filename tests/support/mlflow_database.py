"""A real MLflow on SQLite, one database a module of tests; a ``conftest`` imports both fixtures."""

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient


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
