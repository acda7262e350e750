"""Secrets that the environment and addresses hold are in nothing that is written, shown, recorded, backed up or scraped."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest
from failed_runs import context_of_a_failed_run
from typer.testing import CliRunner

from geokr_assets.alerts import WEBHOOK_VARIABLE, _tell_of_failure
from geokr_core.chain.params import load_params
from geokr_core.chain.run import run
from geokr_core.cli import app
from geokr_core.errors import RegistryError
from geokr_core.operation.backup import back_up
from geokr_core.step.logs import JsonReporter
from geokr_core.testing import make_small_archive
from geokr_core.tracking.delivery import deliver_kept
from geokr_core.tracking.tracked_run import track_step

SECRET = "geheim-7f3a"  # noqa: S105
PLANTED = {
    "MLFLOW_TRACKING_PASSWORD": f"{SECRET}-mlflow",
    "MLFLOW_TRACKING_TOKEN": f"{SECRET}-token",
    "AWS_SECRET_ACCESS_KEY": f"{SECRET}-aws",
    "AWS_SESSION_TOKEN": f"{SECRET}-session",
    "DAGSTER_PG_PASSWORD": f"{SECRET}-postgres",
    "POSTGRES_PASSWORD": f"{SECRET}-compose",
    "PC_SDK_SUBSCRIPTION_KEY": f"{SECRET}-stac",
    "GEOKR_ALERT_WEBHOOK": f"http://127.0.0.1:9/services/{SECRET}-hook",
}
URI = f"http://anna:{SECRET}-uri@127.0.0.1:9"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose environment is full of secrets and whose MLflow server is away."""
    make_small_archive(tmp_path, num_scenes=2)
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", URI)
    monkeypatch.setenv("TRACEPARENT", "")
    monkeypatch.delenv("GEOKR_SPOOL", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def leaks(folder: Path) -> Iterator[str]:
    """Files below a folder that hold a secret, also in the rows of databases."""
    for path in folder.rglob("*"):
        if path.is_file() and SECRET.encode() in path.read_bytes():
            yield str(path.relative_to(folder))


def test_a_run_writes_shows_and_keeps_no_secret(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    params = load_params()
    run(params, JsonReporter(), steps=["scenes", "land_cover", "chips"])
    with pytest.raises(ValueError, match="broken"), track_step("levir_kr", {}, {}, JsonReporter()):
        raise ValueError(f"broken: {URI}")
    with pytest.raises(RegistryError) as refusal:
        deliver_kept(JsonReporter())
    back_up(params, project / "backup", JsonReporter())
    shown = [
        CliRunner().invoke(app, list(arguments)).output
        for arguments in (("doctor", "--json"), ("status", "--json", "--all"), ("status",), ("metrics",))
    ]
    told = capfd.readouterr()
    assert "geokr_mlflow_up 0.0" in shown[-1]
    assert SECRET not in "".join([*shown, told.out, told.err, str(refusal.value)])
    assert list((project / ".mlflow_spool").rglob("*.jsonl"))  # there was something to look through
    assert list(leaks(project)) == []


def test_rows_of_the_database_hold_no_secret(
    project: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shutil.copy(empty_database, project / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project / 'mlflow.db'}")
    with track_step("levir_kr", {"section": {"steps": 3}}, {}, JsonReporter()) as tracked:
        tracked.reporter.info("a line of the log")
    with closing(sqlite3.connect(project / "mlflow.db")) as database:
        (count,) = database.execute("SELECT count(*) FROM tags").fetchone()
        assert count > 5
    assert list(leaks(project)) == []


def test_the_address_of_a_web_hook_is_not_in_what_its_failure_says(project: Path) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        context = context_of_a_failed_run(instance, "no such folder")
        with pytest.raises(dg.Failure) as failure:
            _tell_of_failure(context)
    assert WEBHOOK_VARIABLE in str(failure.value.description)
    assert SECRET not in str(failure.value.description)
    assert failure.value.__cause__ is None
    assert failure.value.__suppress_context__


def test_metadata_of_dagster_holds_no_secret(project: Path) -> None:
    from geokr_assets import metadata

    (outcome,) = run(load_params(), JsonReporter(), steps=["scenes"])
    assert SECRET not in json.dumps(metadata.of_outcome(outcome), default=str)
