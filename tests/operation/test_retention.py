"""Retention: nothing goes that anything points to, nothing goes unasked, and what people put somewhere stays."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from typer.testing import CliRunner

from geokr_core.chain.params import load_params
from geokr_core.chain.record import Record, write_record
from geokr_core.cli import app
from geokr_core.errors import ConfigError
from geokr_core.operation.retention import Candidate, Policy, candidates, remove_all
from geokr_core.step.files import _machine
from geokr_core.tracking.server import connect

DAY_MS = 86_400_000
OLD = Policy(days=90, keep_runs=2, keep_versions=1, restorable_days=30)


def found(*kinds: str, policy: Policy = OLD) -> dict[str, Candidate]:
    """What can go, by the beginning of its name."""
    return {one.name.split(" ")[0]: one for one in candidates(load_params(), policy, kinds)}


def apply(*kinds: str, policy: Policy = OLD) -> None:
    assert all(not fault for _, fault in remove_all(list(candidates(load_params(), policy, kinds))))


class Runs:
    """Runs of the project's experiment, as old as they are told to be."""

    def __init__(self) -> None:
        connection = connect()
        self.client, self.experiment = connection.client, connection.experiment_id

    def add(self, name: str, days: float, status: str = "FINISHED", **tags: str) -> str:
        start = int(time.time() * 1000 - days * DAY_MS)
        named = {"geokr/step": "levir_kr", **{key.replace("__", "/"): value for key, value in tags.items()}}
        kept = {key: value for key, value in named.items() if value}
        run_id = str(self.client.create_run(self.experiment, start, kept, name).info.run_id)
        self.client.log_text(run_id, "a file", "log.txt")
        if status != "RUNNING":
            self.client.set_terminated(run_id, status)
        return run_id

    @property
    def names(self) -> set[str]:
        there = self.client.search_runs([self.experiment], run_view_type=ViewType.ACTIVE_ONLY)
        return {str(run.info.run_name) for run in there}


@pytest.fixture
def runs(archive: Path) -> Runs:
    return Runs()


def test_old_runs_go_and_what_anything_points_to_stays(archive: Path, runs: Runs) -> None:
    for number in range(4):
        runs.add(f"old-{number}", 100 + number)
    runs.add("failed-today", 0, "FAILED")
    runs.add("failed-long-ago", 200, "FAILED")
    runs.add("still-running", 200, "RUNNING")
    runs.add("kept-by-someone", 200, geokr__keep="yes")
    runs.add("of-someone-else", 200, geokr__step="")
    runs.add("parent", 200, "FAILED")
    parent = runs.add("parent-of-a-new-part", 200, "FAILED")
    runs.add("new-part", 1)
    trained = runs.add("trained-what-is-reused", 300, "FAILED")
    new = runs.add("new", 1, geokr__trained_in=trained)
    runs.client.set_tag(new, "mlflow.parentRunId", parent)
    made = runs.add("of-the-store", 250, "FAILED")
    write_record(archive / "data/store/.state/levir_kr", Record({}, "f", "v", {}, mlflow_url=f"runs:/{made}"), {})

    # The newest two that ended well, `new` and `new-part`, stay for their number; the others stay for a link, a tag or their age.
    gone = {"old-0", "old-1", "old-2", "old-3", "failed-long-ago", "parent"}
    assert set(found("run")) == gone
    before = runs.names
    apply("run")
    assert before - runs.names == gone


def test_a_deleted_run_can_be_restored_and_its_files_go_weeks_later(runs: Runs) -> None:
    run_id = runs.add("failed", 200, "FAILED")
    theirs = runs.add("deleted-by-someone", 200)
    runs.client.delete_run(theirs)
    apply("run")
    assert [file.path for file in runs.client.list_artifacts(run_id)] == ["log.txt"]
    assert found("run") == {}
    weeks_ago = time.time() - 31 * 86_400
    runs.client.restore_run(run_id)
    runs.client.set_tag(run_id, "geokr/retired", str(weeks_ago))
    runs.client.delete_run(run_id)
    assert found("run")["failed"].reason == "deleted; its files go now"
    apply("run")
    assert runs.client.list_artifacts(run_id) == []
    assert [file.path for file in runs.client.list_artifacts(theirs)] == ["log.txt"]
    assert found("run") == {}


@pytest.fixture
def versions(archive: Path, runs: Runs) -> tuple[MlflowClient, list[str]]:
    """Six versions of the project's model, half a year old; the second is champion and replaced the first."""
    client, name = runs.client, load_params().backbone.model_name
    client.create_registered_model(name)
    ids = []
    for number in range(6):
        run_id = runs.add(f"promotion-{number}", 180)
        model = client.create_logged_model(runs.experiment, f"m{number}", run_id)
        weights = archive / "weights"
        weights.write_text(str(number))
        client.log_model_artifact(model.model_id, str(weights))
        ours = {} if number == 4 else {"geokr/data_version": str(number), "geokr/evaluation_run": run_id}
        client.create_model_version(name, f"models:/{model.model_id}", run_id, tags=ours, model_id=model.model_id)
        ids.append(model.model_id)
    client.set_registered_model_alias(name, "champion", "2")
    client.set_model_version_tag(name, "2", "replaced_version", "1")
    with closing(sqlite3.connect(archive / "mlflow.db")) as database, database:
        database.execute("UPDATE model_versions SET creation_time = creation_time - ?", (180 * DAY_MS,))
    return client, ids


def test_the_champion_what_it_replaced_and_what_is_not_ours_stay(versions: tuple[MlflowClient, list[str]]) -> None:
    client, ids = versions
    name = load_params().backbone.model_name
    client.set_registered_model_alias(name, "of-a-user", "3")
    assert set(found("version")) == {
        f"{name}/4"
    }  # 1: before the champion, 2: champion, 3: alias, 5: not ours, 6: newest
    apply("version")
    there = {int(one.version) for one in client.search_model_versions(f"name = '{name}'")}
    assert there == {1, 2, 3, 5, 6}
    assert client.download_artifacts(client.get_model_version(name, "2").run_id, "log.txt")
    assert Path(client.get_logged_model(ids[1]).artifact_location.removeprefix("file://"), "weights").is_file()


def test_runs_of_versions_stay_and_files_of_a_version_go_with_its_run(
    versions: tuple[MlflowClient, list[str]], runs: Runs
) -> None:
    client, ids = versions
    runs.add("new", 1)
    runs.add("newer", 0)
    assert found("run") == {}  # all are of versions
    apply("version")
    assert set(found("run")) == {"promotion-2", "promotion-3"}
    apply("run")
    place = Path(client.get_logged_model(ids[3]).artifact_location.removeprefix("file://"))
    assert (place / "weights").is_file()
    apply("run", policy=Policy(restorable_days=0, keep_versions=1))
    assert not (place / "weights").exists()
    champion = Path(client.get_logged_model(ids[1]).artifact_location.removeprefix("file://"))
    assert (champion / "weights").read_text() == "1"


def test_nothing_is_deleted_unless_it_is_asked_for(archive: Path, versions: object, runs: Runs) -> None:
    runs.add("failed", 200, "FAILED")
    before = runs.names
    rows = json.loads(CliRunner().invoke(app, ["retain", "--json", "--keep-versions", "1"]).stdout)
    assert {row["kind"] for row in rows} == {"run", "version"}
    assert {row["outcome"] for row in rows} == {"kept"}
    assert runs.names == before
    shown = CliRunner().invoke(app, ["retain", "--only", "run"])
    assert "--apply does it" in shown.stderr
    done = CliRunner().invoke(app, ["retain", "--apply", "--only", "run", "--json"])
    assert {row["outcome"] for row in json.loads(done.stdout)} == {"deleted"}
    assert "failed" not in runs.names


def _age(path: Path, days: float) -> None:
    for place in (*path.rglob("*"), path):
        os.utime(place, (time.time() - days * 86_400,) * 2)


@pytest.fixture
def dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_what_dead_processes_left_goes_and_files_of_users_stay(archive: Path, dead_process: int) -> None:
    store = archive / "data/store"
    left = store / f".report.{_machine()}-{dead_process}-1.partial"
    replaced = store / f".backbone.{_machine()}-{dead_process}-1.replaced"
    for folder in (left, replaced):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"x" * 10_000)
    users = [store / "foreign-files/chips/mine.npy", store / ".mine.partial", store / ".checkpoints/pretraining/mine/a"]
    for path in users:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        _age(path, 400)
    assert {Path(name).name for name in found("partial", "checkpoint")} == {left.name, replaced.name}
    apply("partial", "checkpoint")
    assert not left.exists()
    assert (store / "backbone/file").is_file()  # the earlier output came back
    assert all(path.read_text() == "mine" for path in users)


@pytest.mark.slow
def test_trainings_of_other_parameters_go_after_a_while_and_todays_stays(archive: Path) -> None:
    from geokr_core.pretraining.runs import runs_of
    from geokr_core.testing import make_levir_kr

    params = load_params()
    folder = params.store / ".checkpoints" / "pretraining"
    other, recent = folder / ("a" * 64), folder / ("b" * 64)
    for place in (other, recent):
        place.mkdir(parents=True)
        (place / "checkpoint_00000050.safetensors").write_bytes(b"x")
    _age(other, 100)
    assert found("checkpoint") == {}  # no data set: which training is today's is not known
    data = make_levir_kr(params.store, num_chips=24)
    (today,) = [run.folder for run in runs_of(params.pretraining, data, folder)][:1]
    today.mkdir()
    _age(today, 100)
    assert set(found("checkpoint")) == {str(other)}
    apply("checkpoint")
    assert sorted(folder.iterdir()) == sorted([recent, today])


def test_numbers_with_which_too_much_would_go_are_refused() -> None:
    with pytest.raises(ConfigError, match="--keep-versions: 0, expected 1 or more"):
        Policy(keep_versions=0)
    with pytest.raises(ConfigError, match="expected one of partial"):
        list(candidates(load_params(Path(__file__).parents[2] / "params.yaml"), OLD, ("everything",)))


def test_what_cannot_be_removed_keeps_no_other_from_going() -> None:
    def refuse() -> None:
        raise PermissionError("no")

    gone: list[str] = []
    first = Candidate("run", "a", None, None, "", refuse)
    second = Candidate("run", "b", None, None, "", lambda: gone.append("b"))
    assert [fault for _, fault in remove_all([first, second])] == ["no", ""]
    assert gone == ["b"]


def test_without_a_database_none_is_made(archive: Path) -> None:
    (archive / "mlflow.db").unlink()
    assert found() == {}
    assert not (archive / "mlflow.db").exists()


@pytest.mark.slow
def test_garbage_of_dvc_goes_and_what_the_folder_names_stays(archive: Path) -> None:
    def dvc(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True, capture_output=True)

    dvc("init", "--no-scm")
    (archive / "dvc.yaml").write_text("stages: {}\n")
    for text in ("first", "second"):
        (archive / "data.txt").write_text(text)
        dvc("add", "data.txt")
    cache = archive / ".dvc/cache"
    assert len([path for path in cache.rglob("*") if path.is_file()]) == 2
    (garbage,) = found("garbage").values()
    assert garbage.num_bytes is None
    assert len([path for path in cache.rglob("*") if path.is_file()]) == 2
    apply("garbage")
    assert len([path for path in cache.rglob("*") if path.is_file()]) == 1
    assert found("garbage") == {}
