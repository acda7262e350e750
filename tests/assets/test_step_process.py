import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import psutil
import pytest
import yaml
from mlflow import MlflowClient

from geokr_assets.step_process import SECONDS_TO_STOP
from geokr_core.chain.params import Params
from geokr_core.chain.steps import Folders
from geokr_core.levir_kr.freeze import freeze
from geokr_core.step.digests import data_version
from geokr_core.step.reporter import RecordingReporter

Materialise = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture
def frozen(project: Path, params: Params) -> Params:
    """A project whose data set is frozen, without the MLflow run that freezing opens."""
    folders = Folders(params)
    freeze(params.levir_kr, folders["chips"], folders["proportions"], folders["levir_kr"], RecordingReporter())
    return params


@pytest.fixture
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No MLflow is there: setting up its database takes many seconds, and these tests are not about it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def _change(project: Path, **pretraining: object) -> None:
    content = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
    content["pretraining"] |= pretraining
    (project / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def test_what_the_process_made_and_checked_comes_back_through_pipes(materialise: Materialise, frozen: Params) -> None:
    result = materialise("pretraining")
    assert result.success
    (made,) = result.asset_materializations_for_node("pretraining")
    assert (made.tags or {})["dagster/data_version"] == data_version(Folders(frozen)["pretraining"])
    assert made.metadata["num_steps"].value == 2
    assert "data:image/png;base64," in str(made.metadata["preview"].value)
    curves = made.metadata["curves"]
    assert isinstance(curves, dg.TableMetadataValue)
    assert [record.data["step"] for record in curves.records] == [1, 2]
    assert {check.check_name: check.passed for check in result.get_asset_check_evaluations()} == {
        "weights_are_finite": True,
        "teacher_is_apart": True,
    }
    # The run in MLflow leads back to the run in Dagster.
    import mlflow

    run_id = str(made.metadata["MLflow run"].value).rsplit("/", 1)[-1]
    assert mlflow.get_run(run_id).data.tags["dagster/run_id"] == result.run_id


@pytest.mark.usefixtures("untracked")
def test_a_training_that_refuses_fails_the_run_with_its_own_message(
    materialise: Materialise, project: Path, frozen: Params
) -> None:
    _change(project, initial_weights="nowhere.safetensors")
    result = materialise("pretraining")
    assert not result.success
    assert not result.asset_materializations_for_node("pretraining")
    assert "nowhere.safetensors" in _failure(result)
    assert "Pipes" not in _failure(result)


@pytest.mark.usefixtures("untracked")
def test_a_training_process_that_dies_without_a_word_is_said_to_have_died(
    materialise: Materialise, frozen: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    result = materialise("pretraining")
    assert not result.success
    assert "ended without a word" in _failure(result)
    assert "failed with code 1" in _failure(result)


def _failure(result: dg.ExecuteInProcessResult) -> str:
    (event,) = [event for event in result.all_events if event.is_step_failure]
    assert event.step_failure_data.user_failure_data is not None
    return str(event.step_failure_data.user_failure_data.description)


_RUN = """
import dagster as dg
from geokr_assets.definitions import defs
job = defs.resolve_implicit_global_asset_job_def()
with dg.DagsterInstance.ephemeral() as instance:
    result = job.execute_in_process(asset_selection=[dg.AssetKey("pretraining")], instance=instance, raise_on_error=False)
"""


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGINT, id="terminated"),
        pytest.param(signal.SIGKILL, id="killed outright", marks=pytest.mark.slow),
    ],
)
def test_the_training_stops_with_its_run_and_is_killed_in_mlflow(
    project: Path, frozen: Params, how: signal.Signals
) -> None:
    _change(project, steps=100_000, checkpoint_every=1)
    run = subprocess.Popen(
        [sys.executable, "-c", _RUN],
        cwd=project,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        training = _wait_for_training(run.pid, frozen.store / ".checkpoints")
        run.send_signal(how)
        _, alive = psutil.wait_procs([training], timeout=SECONDS_TO_STOP - 5)
        assert not alive
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert not Folders(frozen)["pretraining"].exists()
    server = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    found = server.search_runs([server.get_experiment_by_name("geokr").experiment_id])
    assert [run.info.status for run in found] == ["KILLED"] * 2, "the step's run and, below it, the training's"


def _wait_for_training(pid: int, checkpoints: Path) -> psutil.Process:
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        if any(path.is_file() for path in checkpoints.rglob("*")):
            children = psutil.Process(pid).children(recursive=True)
            return next(child for child in children if "geokr_assets.step_process" in child.cmdline())
        time.sleep(0.2)
    raise AssertionError("the training did not start")
