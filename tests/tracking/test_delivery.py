"""MLflow that is away, lost midway or back again: nothing is lost, and the step goes on."""

import os
import platform
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow_database import server_command

from geokr_core import registry
from geokr_core.errors import RegistryError
from geokr_core.step.reporter import RecordingReporter
from geokr_core.step.summary import Summary

UNREACHABLE = "http://127.0.0.1:9"


def test_absent_server_is_a_warning_and_the_step_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", UNREACHABLE)
    listener = RecordingReporter()
    started = time.monotonic()
    with registry.track_step("pretraining", {"a": 1}, {}, listener) as run:
        run.reporter.metrics({"loss": 1.0}, step=1)
        run.finish(Summary({"loss": 1.0}), "abc.dir")
    assert time.monotonic() - started < 40
    assert (run.run_id, run.url) == (None, None)
    assert len(listener.warnings) == 1
    assert "http://127.0.0.1:9" in listener.warnings[0]
    assert "is kept in" in listener.warnings[0]
    assert listener.points == [(1, {"loss": 1.0})]


def _runs(server: MlflowClient) -> set[str]:
    experiments = [experiment.experiment_id for experiment in server.search_experiments()]
    return {run.info.run_id for run in server.search_runs(experiments)}


@pytest.mark.parametrize("late", [False, True])
def test_a_run_that_the_client_began_twice_is_there_once(
    late: bool, server: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MLflow's client repeats a request whose answer does not come, whatever the server made of it.
    create, again, before = MlflowClient.create_run, [], _runs(server)

    def twice(*words: Any, **named: Any) -> Any:
        again.append(lambda: create(*words, **named))
        if not late:
            again.pop()()
        return create(*words, **named)

    monkeypatch.setattr(MlflowClient, "create_run", twice)
    with registry.track_step("pretraining", {"a": 1}, {}, RecordingReporter()) as run:
        while again:  # the first request, which a slow server carries out only now
            again.pop()()
        run.reporter.metrics({"loss": 1.0}, step=1)
        run.finish(Summary({"loss": 1.0}), "abc.dir")
    assert _runs(server) - before == {run.run_id}


def test_server_lost_midway_is_one_warning_and_the_step_goes_on(
    server: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = RecordingReporter()

    def lost(*_: object, **__: object) -> None:
        raise MlflowException("connection reset")

    with registry.track_step("pretraining", {}, {}, listener) as run:
        monkeypatch.setattr(MlflowClient, "log_batch", lost)
        for step in range(1200):
            run.reporter.metrics({"loss": 1.0}, step=step)
        run.finish(Summary({"loss": 0.5}), "abc.dir")
        monkeypatch.undo()
    assert len(listener.warnings) == 1
    assert "was lost: connection reset" in listener.warnings[0]
    # The server came back before the run ended: nothing is missing, and nothing is left behind.
    found = server.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.tags["geokr/data_version"] == "abc.dir"
    assert len(server.get_metric_history(run.run_id, "loss")) == 1201
    assert any("is back" in message for message in listener.infos)
    assert not list((tmp_path / "spool").rglob("records.jsonl"))


def test_what_a_run_kept_is_delivered_by_the_next_one(
    server: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise MlflowException("connection reset")

    with monkeypatch.context() as away, registry.track_step("pretraining", {}, {}, RecordingReporter()) as run:
        for name in ("log_batch", "log_artifact", "log_text", "set_terminated"):
            away.setattr(MlflowClient, name, lost)
        run.reporter.metrics({"loss": 2.0}, step=7)
        run.reporter.picture("examples/a.png", b"a picture")
        run.finish(Summary({"loss": 1.0}), "abc.dir")
    assert server.get_run(run.run_id).info.status == "RUNNING"
    gone = tmp_path / "spool" / next((tmp_path / "spool").glob("*")).name / "0123456789abcdef0123456789abcdef"
    gone.mkdir()
    (gone / "records.jsonl").write_text(
        '{"kind": "end", "key": "k", "status": "FINISHED", "end_ms": 1, "error": null}\n{"kind": "half'
    )
    listener = RecordingReporter()
    with registry.track_step("pretraining", {}, {}, listener):
        pass
    assert server.get_run(run.run_id).info.status == "FINISHED"
    assert [(m.step, m.value) for m in server.get_metric_history(run.run_id, "loss")] == [(7, 2.0), (7, 1.0)]
    assert [info.path for info in server.list_artifacts(run.run_id, "examples")] == ["examples/a.png"]
    # A run that no longer exists cannot be delivered to, and must not keep others from being tracked.
    assert any("not taken" in warning for warning in listener.warnings)


@pytest.mark.parametrize("back", ["meanwhile", "later"])
def test_a_run_that_begins_while_the_server_is_away_is_opened_when_it_is_back(
    back: str, server: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dies(BaseException):
        pass

    tags = {registry.FINGERPRINT_TAG: "f1"}
    with pytest.raises(Dies), registry.track_step("pretraining", {"steps": 2}, tags, RecordingReporter()) as first:
        first.reporter.metrics({"loss": 2.0}, step=1)
        raise Dies
    listener = RecordingReporter()

    def refused(*_: object, **__: object) -> None:
        raise MlflowException("connection refused")

    with monkeypatch.context() as away:
        away.setattr(MlflowClient, "get_experiment_by_name", refused)
        with registry.track_step("pretraining", {"steps": 2}, tags, listener) as run:
            assert (run.run_id, run.url) == (None, None)
            run.reporter.metrics({"loss": 1.0}, step=2)
            run.reporter.picture("examples/a.png", b"a picture")
            run.finish(Summary({"train_kl": 0.5}), "abc.dir")
            if back == "meanwhile":
                away.undo()
    assert len(listener.warnings) == 1
    assert any("is back" in message for message in listener.infos) == (back == "meanwhile")
    registry.deliver_kept(RecordingReporter())
    # The curve of the run that was killed continues in it, and nothing is left behind.
    found = server.get_run(first.run_id)
    assert found.info.status == "FINISHED"
    assert [(m.step, m.value) for m in server.get_metric_history(first.run_id, "loss")] == [(1, 2.0), (2, 1.0)]
    assert found.data.metrics["train_kl"] == 0.5
    assert found.data.params["steps"] == "2"
    assert [info.path for info in server.list_artifacts(first.run_id, "examples")] == ["examples/a.png"]
    assert registry.deliver_kept(RecordingReporter()) == 0
    assert not list((tmp_path / "spool").rglob("records.jsonl"))


def test_a_run_that_was_opened_before_the_server_was_lost_again_is_not_opened_twice(
    server: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise MlflowException("connection reset")

    with monkeypatch.context() as away:
        away.setattr(MlflowClient, "log_dict", lost)  # the run is there, its parameters are not yet all recorded
        with registry.track_step("pretraining", {"steps": 2}, {"mine": "twice"}, RecordingReporter()) as run:
            run.reporter.metrics({"loss": 1.0}, step=1)
    registry.deliver_kept(RecordingReporter())
    experiment = server.get_experiment_by_name(registry.EXPERIMENT)
    (found,) = server.search_runs([experiment.experiment_id], "tags.mine = 'twice'")
    assert found.info.status == "FINISHED"
    assert [info.path for info in server.list_artifacts(found.info.run_id)][-1] == "params.json"


def test_what_was_half_delivered_goes_to_its_run_even_if_that_was_resumed_since(
    server: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = {registry.FINGERPRINT_TAG: "half"}
    with monkeypatch.context() as away:
        away.setattr(MlflowClient, "get_experiment_by_name", _refused)
        with registry.track_step("pretraining", {}, tags, RecordingReporter()) as first:
            first.reporter.metrics({"loss": 3.0}, step=1)
            first.reporter.picture("examples/a.png", b"a picture")
    (records,) = (tmp_path / "spool").rglob("records.jsonl")
    records.write_text(re.sub(r"\n[^\n]*\"kind\": \"end\"[^\n]*", "", records.read_text()))  # as a kill leaves it
    mark = '"geokr/process": "' + platform.node() + "/1/1.00"
    records.write_text(re.sub(r'"geokr/process": "[^"]*', mark, records.read_text()))
    with monkeypatch.context() as flaky:
        flaky.setattr(MlflowClient, "log_batch", _fails_with_metrics(MlflowClient.log_batch))
        with registry.track_step("pretraining", {}, tags, RecordingReporter()) as second:
            pass
    registry.deliver_kept(RecordingReporter())
    assert [(m.step, m.value) for m in server.get_metric_history(str(second.run_id), "loss")] == [(1, 3.0)]
    assert [info.path for info in server.list_artifacts(str(second.run_id), "examples")] == ["examples/a.png"]
    assert len(server.get_run(str(second.run_id)).data.tags["geokr/openings"].split()) == 2
    assert not list((tmp_path / "spool").rglob("records.jsonl"))


def _refused(*_: object, **__: object) -> None:
    raise MlflowException("connection refused")


def _fails_with_metrics(log_batch: Callable[..., Any]) -> Callable[..., Any]:
    def flaky(client: MlflowClient, run_id: str, metrics: Sequence[Any] = (), **others: Any) -> Any:
        if metrics:
            raise MlflowException("timed out")
        return log_batch(client, run_id, **others)

    return flaky


def test_a_run_is_known_once_it_could_be_opened(server: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geokr_core.tracking.delivery._RETRY_SECONDS", 0.0)
    monkeypatch.setattr("geokr_core.tracking.tracked_run._FLUSH_SECONDS", 0.0)
    with monkeypatch.context() as away:
        away.setattr(MlflowClient, "get_experiment_by_name", _refused)
        opened = registry.track_step("pretraining", {}, {}, RecordingReporter())
        run = opened.__enter__()
    assert run.run_id is None
    run.reporter.metrics({"loss": 1.0}, step=1)
    assert server.get_run(str(run.run_id)).info.status == "RUNNING"
    assert run.url == f"runs:/{run.run_id}"
    until = time.monotonic() + 30
    while not server.get_metric_history(str(run.run_id), "system/cpu_utilization_percentage"):
        assert time.monotonic() < until, "nothing shows that it is alive"
        time.sleep(0.1)
    opened.__exit__(None, None, None)
    assert server.get_run(str(run.run_id)).info.status == "FINISHED"


def test_a_folder_that_cannot_be_written_costs_the_records_and_not_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_file").write_text("")
    monkeypatch.setenv("GEOKR_SPOOL", str(tmp_path / "a_file"))
    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", _refused)
    listener = RecordingReporter()
    with registry.track_step("pretraining", {}, {}, listener) as run:
        run.reporter.metrics({"loss": 1.0}, step=1)
    assert any("nothing is kept for MLflow" in warning for warning in listener.warnings)


def test_records_whose_opening_was_torn_are_not_lost(
    server: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as away:
        away.setattr(MlflowClient, "get_experiment_by_name", _refused)
        with registry.track_step("pretraining", {}, {}, RecordingReporter()) as run:
            run.reporter.metrics({"loss": 5.25}, step=1)
    (records,) = (tmp_path / "spool").rglob("records.jsonl")
    records.write_text("\n{" + records.read_text().lstrip("\n"))  # the first line is no longer JSON
    registry.deliver_kept(RecordingReporter())
    experiment = server.get_experiment_by_name(registry.EXPERIMENT)
    (found,) = server.search_runs([experiment.experiment_id], "metrics.loss = 5.25")
    assert found.info.run_name == "unknown step"
    assert found.info.status == "FINISHED"


@pytest.mark.slow
def test_a_server_that_is_stopped_and_started_again_misses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("geokr_core.tracking.tracked_run._FLUSH_SECONDS", 0.0)
    command = server_command(tmp_path, port)

    @contextmanager
    def serving() -> Iterator[None]:
        with (tmp_path / "server.log").open("a") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            for _ in range(480):
                with suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=1):  # noqa: S310
                    break
                time.sleep(0.25)
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=30)

    listener = RecordingReporter()
    with ExitStack() as first:
        first.enter_context(serving())
        with registry.track_step("pretraining", {"steps": 3}, {}, listener) as run:
            assert run.run_id is not None
            run.reporter.metrics({"loss": 3.0}, step=1)
            first.close()
            for step in (2, 3):
                run.reporter.metrics({"loss": 4.0 - step}, step=step)
            run.reporter.picture("examples/a.png", b"a picture")
            run.finish(Summary({"train_kl": 0.5}, picture_png=b"curves"), "abc.dir")
    assert len(listener.warnings) == 1
    assert "is kept in" in listener.warnings[0]
    with pytest.raises(RegistryError):
        registry.deliver_kept(RecordingReporter())
    with serving():
        assert registry.deliver_kept(RecordingReporter()) > 3
        client = MlflowClient(tracking_uri=uri)
        found = client.get_run(run.run_id)
        assert found.info.status == "FINISHED"
        assert found.data.metrics["train_kl"] == 0.5
        assert [(m.step, m.value) for m in client.get_metric_history(run.run_id, "loss")] == [
            (1, 3.0),
            (2, 2.0),
            (3, 1.0),
        ]
        paths = {info.path for info in client.list_artifacts(run.run_id)}
        assert {"examples", "preview.png", "summary.json"} <= paths


def test_passwords_in_the_tracking_uri_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # saves seconds
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:9")
    listener = RecordingReporter()
    with registry.track_step("pretraining", {}, {}, listener):
        pass
    assert "127.0.0.1:9" in listener.warnings[0]
    assert "s3cret" not in listener.warnings[0]
