"""Fixtures for all tests: who listens, where real data lie, and a clean environment."""

import os
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


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reads this machine's parameter file or writes to its MLflow database."""
    monkeypatch.delenv("GEOKR_PARAMS", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
