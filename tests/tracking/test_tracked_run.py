"""What the MLflow run of a step holds, how it ends, and how a step that was stopped finds it again."""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from geokr_core import registry
from geokr_core.step.reporter import RecordingReporter
from geokr_core.step.summary import Summary


def only_run(server: MlflowClient, run_id: str | None) -> Any:
    assert run_id is not None
    return server.get_run(run_id)


def test_tracked_step_records_everything(server: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_RUN_ID", "d-1")
    listener = RecordingReporter()
    parameters = {"pretraining": {"steps": 20, "seeds": [0, 1], "note": "n" * 2000}}
    with registry.track_step("pretraining", parameters, {"dagster/asset_key": "pretraining"}, listener) as run:
        run.reporter.info("hello")
        for step in range(30):
            run.reporter.metrics({"loss": 1.0 / (step + 1)}, step=step)
        time.sleep(0.4)  # for a sample of the system metrics
        numbers = {"loss": 0.03, "num_runs": 1, "done": True, "name": "x"}
        run.finish(Summary(numbers, [{"a": 1}], b"\x89PNG", ["careful"]), "abc.dir")

    found = only_run(server, run.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "pretraining"
    assert server.get_experiment(found.info.experiment_id).name == "geokr"
    assert found.data.params["pretraining.steps"] == "20"
    assert found.data.params["pretraining.seeds"] == "[0, 1]"
    assert len(found.data.params["pretraining.note"]) == 500
    assert len(server.get_metric_history(run.run_id, "loss")) == 31
    # The closing figure ends the curve: at another step it would bend it, or MLflow would show the last point instead.
    assert [point.step for point in server.get_metric_history(run.run_id, "loss") if point.value == 0.03] == [29]
    assert found.data.metrics["loss"] == 0.03
    assert found.data.metrics["num_runs"] == 1
    assert "done" not in found.data.metrics
    assert any(name.startswith("system/") for name in found.data.metrics)
    assert found.data.tags["geokr/step"] == "pretraining"
    assert found.data.tags["geokr/data_version"] == "abc.dir"
    assert found.data.tags["dagster/run_id"] == "d-1"
    assert found.data.tags["dagster/asset_key"] == "pretraining"
    shown = {name for name in found.data.tags if name.startswith("geokr/")}
    assert shown == {f"geokr/{name}" for name in ("step", "data_version", "git_sha", "version", "trace_id", "openings")}
    assert found.data.metrics["num_warnings"] == 1
    assert {info.path for info in server.list_artifacts(run.run_id)} == {
        "params.json",
        "summary.json",
        "table.csv",
        "preview.png",
        "log.txt",
    }
    place = Path(server.download_artifacts(run.run_id, "params.json"))
    assert json.loads(place.read_text(encoding="utf-8")) == parameters
    assert listener.infos == ["hello"]
    assert len(listener.points) == 30


def test_failed_step_is_a_failed_run_and_the_error_passes_on(server: MlflowClient) -> None:
    runs = []

    def fail() -> None:
        with registry.track_step("chips", {}, {}, RecordingReporter()) as run:
            runs.append(run.run_id)
            run.reporter.metrics({"loss": 1.0}, step=1)
            raise ValueError("no such band")

    with pytest.raises(ValueError, match="no such band"):
        fail()
    found = only_run(server, runs[0])
    assert found.info.status == "FAILED"
    assert found.data.tags["geokr/error"] == "ValueError: no such band"
    assert found.data.metrics["loss"] == 1.0, "the curve up to the failure is lost"


def test_interrupted_step_is_a_killed_run(server: MlflowClient) -> None:
    with pytest.raises(KeyboardInterrupt), registry.track_step("chips", {}, {}, RecordingReporter()) as run:
        raise KeyboardInterrupt
    assert only_run(server, run.run_id).info.status == "KILLED"


_WAITS = """
import sys, time
from geokr_core.step.reporter import RecordingReporter
from geokr_core.tracking.tracked_run import track_step
with track_step("levir_kr", {"a": 1}, {}, RecordingReporter()) as run:
    run.reporter.metrics({"loss": 1.0}, step=1)
    heavy = {"torch", "torchvision", "timm"} & set(sys.modules)
    print(run.run_id, *heavy, flush=True)
    for _ in range(3000):
        time.sleep(0.1)  # in one piece, a signal that comes just before it would be heard at its end
"""


def test_a_terminated_step_is_a_killed_run_and_tracking_needs_no_torch(server: MlflowClient) -> None:
    with subprocess.Popen([sys.executable, "-c", _WAITS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        run_id, *heavy = process.stdout.readline().split()
        process.terminate()
        assert process.wait(timeout=60) != 0
    assert heavy == []
    found = only_run(server, run_id)
    assert found.info.status == "KILLED"
    assert found.data.metrics["loss"] == 1.0, "the curve up to the signal is lost"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_step_that_is_resumed_resumes_its_run(server: MlflowClient) -> None:
    """A killed training that is resumed has one curve, not two halves in two runs."""

    def trained(mark: str, first: int, last: int, *, dies: bool = False) -> str | None:
        with registry.track_step(
            "pretraining", {"steps": 6}, {registry.FINGERPRINT_TAG: mark}, RecordingReporter()
        ) as run:
            for step in range(first, last + 1):
                run.reporter.metrics({"loss": 1.0 / step}, step)
            begun.append(run.run_id)
            if dies:
                raise KeyboardInterrupt
            return run.run_id

    begun: list[str | None] = []
    with pytest.raises(KeyboardInterrupt):
        trained("same", 1, 4, dies=True)
    resumed = trained("same", 3, 6)  # from its checkpoint at step 2
    assert resumed == begun[0]
    assert only_run(server, resumed).info.status == "FINISHED"
    assert "geokr/error" not in only_run(server, resumed).data.tags
    assert {m.step for m in server.get_metric_history(str(resumed), "loss")} == {1, 2, 3, 4, 5, 6}
    assert trained("same", 1, 6) != resumed, "a finished run is history"
    with pytest.raises(KeyboardInterrupt):
        trained("same", 1, 2, dies=True)
    assert trained("other parameters", 1, 6) not in begun[:-1]


def test_a_run_may_be_resumed_with_more_processes(server: MlflowClient) -> None:
    """What decides no result may be given otherwise the second time; MLflow changes no parameter of a run."""
    listener, tags = RecordingReporter(), {registry.FINGERPRINT_TAG: "more processes"}
    first = {"pretraining": {"steps": 6, "runs_at_once": 1}}
    with pytest.raises(KeyboardInterrupt), registry.track_step("pretraining", first, tags, listener) as begun:
        raise KeyboardInterrupt
    second = {"pretraining": {"steps": 6, "runs_at_once": 2, "examples_every": 0}}
    with registry.track_step("pretraining", second, tags, listener) as resumed:
        pass
    assert resumed.run_id == begun.run_id
    assert not listener.warnings, "no server was away"
    found = only_run(server, resumed.run_id).data
    assert (found.params["pretraining.runs_at_once"], found.params["pretraining.examples_every"]) == ("1", "0")
    assert json.loads(found.tags["geokr/resumed_with"]) == {"pretraining.runs_at_once": "2"}


def test_a_step_that_dies_after_it_told_its_figures_tells_them_once(server: MlflowClient) -> None:
    tags = {registry.FINGERPRINT_TAG: "told"}
    for dies in (True, False):
        with (
            pytest.raises(KeyboardInterrupt) if dies else contextlib.nullcontext(),
            registry.track_step("backbone", {}, tags, RecordingReporter()) as run,
        ):
            run.finish(Summary({"size_mb": 3.2}), "version")
            if dies:
                raise KeyboardInterrupt
            run_id = str(run.run_id)
    assert only_run(server, run_id).info.status == "FINISHED"
    assert [point.value for point in server.get_metric_history(run_id, "size_mb")] == [3.2]


def test_a_step_that_dies_between_its_figures_and_its_data_version_tells_them_once(server: MlflowClient) -> None:
    tags = {registry.FINGERPRINT_TAG: "half told"}
    for attempt, dies in enumerate((True, False)):
        with (
            pytest.raises(KeyboardInterrupt) if dies else contextlib.nullcontext(),
            registry.track_step("pretraining", {}, tags, RecordingReporter()) as run,
        ):
            run_id = str(run.run_id)
            run.reporter.metrics({"accuracy": 0.5}, 1 + attempt)
            run.finish(Summary({"size_mb": 3.2, "images_per_s": 80.0 + attempt, "accuracy": 0.75}), "version")
            if dies:
                server.delete_tag(run_id, "geokr/data_version")  # MLflow had not come so far
                raise KeyboardInterrupt
    told = {
        name: [point.value for point in server.get_metric_history(run_id, name)] for name in ("size_mb", "images_per_s")
    }
    assert told == {"size_mb": [3.2], "images_per_s": [80.0]}
    curve = sorted((point.step, point.value) for point in server.get_metric_history(run_id, "accuracy"))
    assert curve == [(1, 0.5), (1, 0.75), (2, 0.5), (2, 0.75)]
    assert only_run(server, run_id).data.metrics["accuracy"] == 0.75, "a figure that ends a curve is the latest of it"
    assert only_run(server, run_id).data.tags["geokr/data_version"] == "version"


def test_a_run_that_is_alive_is_left_alone_and_lines_of_both_attempts_stay(server: MlflowClient) -> None:
    tags = {registry.FINGERPRINT_TAG: "same"}
    with (
        registry.track_step("pretraining", {}, tags, RecordingReporter()) as running,
        registry.track_step("pretraining", {}, tags, RecordingReporter()) as beside,
    ):
        assert beside.run_id != running.run_id, "two processes would draw one curve"
    with pytest.raises(KeyboardInterrupt), registry.track_step("pretraining", {}, tags, RecordingReporter()) as first:
        first.reporter.warning("the first half")
        raise KeyboardInterrupt
    # As kill -9 leaves it: it says that it is running, of a process that is gone.
    server.update_run(str(first.run_id), status="RUNNING")
    server.set_tag(str(first.run_id), "geokr/process", f"{platform.node()}/{os.getpid()}/1.00")
    with registry.track_step("pretraining", {}, tags, RecordingReporter()) as second:
        second.reporter.warning("the second half")
    assert second.run_id == first.run_id
    logs = {item.path for item in server.list_artifacts(str(first.run_id)) if item.path.startswith("log")}
    assert logs == {"log.txt", "log_attempt_2.txt"}


def test_a_run_of_another_machine_is_resumed_once_it_is_silent(server: MlflowClient) -> None:
    tags = {registry.FINGERPRINT_TAG: "elsewhere"}
    with pytest.raises(KeyboardInterrupt), registry.track_step("pretraining", {}, tags, RecordingReporter()) as first:
        raise KeyboardInterrupt
    server.update_run(str(first.run_id), status="RUNNING")
    server.set_tag(str(first.run_id), "geokr/process", "another-machine/1/1.00")
    with registry.track_step("pretraining", {}, tags, RecordingReporter()) as beside:
        assert beside.run_id != first.run_id
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geokr_core.tracking.runs._SILENCE_SECONDS", 0.0)
        with registry.track_step("pretraining", {}, tags, RecordingReporter()) as second:
            assert second.run_id == first.run_id


def test_points_of_curves_are_sent_when_they_are_flushed(server: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geokr_core.tracking.tracked_run._FLUSH_SECONDS", float("inf"))
    with registry.track_step("pretraining", {}, {}, RecordingReporter()) as run:
        assert run.run_id is not None
        run.reporter.metrics({"loss": 1.0}, step=1)
        assert server.get_metric_history(run.run_id, "loss") == []
        run.reporter.flush()
        assert [point.step for point in server.get_metric_history(run.run_id, "loss")] == [1]


def test_link_to_the_run_goes_where_people_open_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    with registry.track_step("chips", {}, {}, RecordingReporter()) as run:
        assert run.url == f"runs:/{run.run_id}"
    monkeypatch.setenv("GEOKR_MLFLOW_UI_URL", "https://mlflow.example.org/")
    with registry.track_step("chips", {}, {}, RecordingReporter()) as run:
        assert str(run.url).startswith("https://mlflow.example.org/#/experiments/")
        assert str(run.url).endswith(f"/runs/{run.run_id}?workflowType=machine_learning")


def test_git_commit_is_told_with_whether_it_is_what_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert registry.git_sha() == "unknown"
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    (tmp_path / "f").write_text("1", encoding="utf-8")
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", "add", "f"], check=True)
    subprocess.run(["git", *identity, "commit", "-qm", "x"], check=True)
    clean = registry.git_sha()
    assert len(clean) == 40
    (tmp_path / "untracked").write_text("1", encoding="utf-8")
    assert registry.git_sha() == clean
    (tmp_path / "f").write_text("2", encoding="utf-8")
    assert registry.git_sha() == f"{clean}+dirty"


@pytest.mark.slow
def test_two_processes_may_create_the_database_at_once(tmp_path: Path) -> None:
    code = """
from geokr_core.tracking.tracked_run import track_step
from geokr_core.step.reporter import RecordingReporter
listener = RecordingReporter()
with track_step("chips", {}, {}, listener) as run:
    pass
assert run.run_id, listener.warnings
"""
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'fresh.db'}", "PATH": "/usr/bin:/bin"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [(process.communicate(timeout=300)[1], process.returncode)[1] for process in both] == [0, 0]
