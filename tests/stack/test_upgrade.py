"""Today's code over the store, the MLflow database and the Dagster instance that an earlier commit left behind.

The earlier code is checked out from this repository and really run; nothing here imitates its formats. ``GEOKR_PREVIOUS`` names
another commit. Libraries are those of today: an update of MLflow or Dagster is not part of it.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
from forked_runs import Undisturbed, recorded, run_worker, said, versions
from mlflow import MlflowClient
from tiny_worlds import tiny_world

REPOSITORY = Path(__file__).parents[2]
PREVIOUS = os.environ.get("GEOKR_PREVIOUS", "dec1868")
STEPS = 11

RUN = """
import sys
import dagster as dg
from geokr_assets.definitions import defs
with dg.DagsterInstance.get() as instance:
    sys.exit(0 if defs.resolve_job_def("whole_chain").execute_in_process(instance=instance, raise_on_error=False).success else 1)
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture
def previous(tmp_path: Path) -> Iterator[Path]:
    """The earlier code, in a separate worktree."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)

    if git("cat-file", "-e", f"{PREVIOUS}^{{commit}}").returncode != 0:
        pytest.skip(f"no history here that holds commit {PREVIOUS}")
    folder = tmp_path / "previous"
    assert git("worktree", "add", "--detach", str(folder), PREVIOUS).returncode == 0
    yield folder
    git("worktree", "remove", "--force", str(folder))


def _python(code: Path, project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A Python program with the code of some folder, in a project."""
    environment = {
        "PYTHONPATH": str(code),
        "MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlflow.db'}",
        "DAGSTER_HOME": str(project / "dagster_home"),
        "GEOKR_PARAMS": str(project / "params.yaml"),
    }
    return subprocess.run(
        [sys.executable, *words],
        cwd=project,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def _status(project: Path) -> dict[str, dict[str, str]]:
    told = _python(
        REPOSITORY, project, "-m", "geokr_core.cli", "status", "--json", "--params", str(project / "params.yaml")
    )
    assert told.returncode == 0, told.stderr
    return {row["step"]: row for row in json.loads(told.stdout)}


def test_todays_code_goes_on_from_what_an_earlier_commit_left(
    tmp_path: Path,
    previous: Path,
    empty_database: Path,
    undisturbed: Undisturbed,
    record_property: Callable[[str, object], None],
) -> None:
    project = tmp_path / "project"
    params = tiny_world(project)
    shutil.copy(empty_database, project / "mlflow.db")
    (project / "dagster_home").mkdir()
    (project / "dagster_home" / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
    where = _python(previous, project, "-c", "import geokr_core, geokr_assets; print(geokr_core.__file__)")
    assert where.stdout.startswith(str(previous)), where.stdout + where.stderr
    made = _python(previous, project, "-c", RUN)
    assert made.returncode == 0, made.stderr[-3000:]
    runs_before, _ = recorded(project / "mlflow.db")

    found = _status(project)
    reused = [step for step, row in found.items() if row["state"] == "up to date"]
    # What cannot be used is said to be of an earlier version, and is no reason to stop.
    assert len(found) == STEPS
    assert reused or "an earlier version wrote it" in json.dumps(found)

    assert run_worker(project).wait(timeout=1200) == 0, said(project)
    assert versions(params) == undisturbed.versions
    assert {row["state"] for row in _status(project).values()} == {"up to date"}
    assert run_worker(project).wait(timeout=600) == 0, said(project)  # and nothing is left to do
    runs, _ = recorded(project / "mlflow.db")
    assert runs_before - runs == {}
    with dg.DagsterInstance.from_config(str(project / "dagster_home")) as instance:
        assert [run.status for run in instance.get_runs()] == [dg.DagsterRunStatus.SUCCESS] * 3

    # The champion of the earlier code holds until a better one comes, can be fetched, and was compared with.
    client = MlflowClient(tracking_uri=f"sqlite:///{project / 'mlflow.db'}")
    assert int(client.get_model_version_by_alias("geokr-resnet18", "champion").version) in (1, 2)
    assert {int(found.version) for found in client.search_model_versions("name = 'geokr-resnet18'")} == {1, 2}
    fetched = ("download", "geokr-resnet18/1", "--to", str(tmp_path / "fetched"))
    told = _python(REPOSITORY, project, "-m", "geokr_core.cli", *fetched)
    assert told.returncode == 0, told.stderr
    refused = [line for line in said(project).splitlines() if "cannot be read" in line]
    record_property("fault", f"store, MLflow and Dagster of commit {PREVIOUS}, opened by today's code")
    record_property("reused", ", ".join(reused) or "nothing")
    record_property("remade", STEPS - len(reused))
    record_property("refused", len(refused))
