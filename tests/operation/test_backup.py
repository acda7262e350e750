"""Backup and restore: equal bytes come back, nothing is overwritten, and a damaged backup restores nothing."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from geokr_core.chain.params import load_params
from geokr_core.chain.run import run_step
from geokr_core.chain.status import verify
from geokr_core.cli import app
from geokr_core.errors import BackupError
from geokr_core.operation.backup import back_up
from geokr_core.operation.copies import copy_database, is_database
from geokr_core.operation.restore import read_manifest, restore, verify_backup
from geokr_core.step.reporter import RecordingReporter
from geokr_core.tracking.server import connect
from geokr_core.tracking.spool import spool_of
from tests.chain.conftest import finished  # noqa: F401  # a fixture


def content(folder: Path) -> dict[str, object]:
    """What every file holds, but for locks and the memory of checksums, which names inodes."""
    return {
        path.relative_to(folder).as_posix(): tables(path) if is_database(path) else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "checksums" not in path.parts and path.suffix != ".lock"
    }


def tables(database: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(database)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: sorted(connection.execute(f"SELECT * FROM {name}"), key=repr) for name in names}  # noqa: S608


@pytest.fixture
def worked_on(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with scenes, an MLflow run with a file, a registered version, records that wait, and a home of Dagster."""
    run_step("scenes", load_params(), RecordingReporter())
    connection = connect()
    run_id = connection.client.create_run(connection.experiment_id, run_name="promotion").info.run_id
    connection.client.log_text(run_id, "evidence", "scores.txt")
    connection.client.create_registered_model("tiny")
    model = connection.client.create_logged_model(connection.experiment_id, "tiny", run_id)
    (archive / "weights").write_text("weights")
    connection.client.log_model_artifact(model.model_id, str(archive / "weights"))
    connection.client.create_model_version("tiny", f"models:/{model.model_id}", run_id, model_id=model.model_id)
    connection.client.set_registered_model_alias("tiny", "champion", "1")
    spool_of(connection.uri, "abc").keep({"kind": "batch"})
    home = archive / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("run_monitoring: {enabled: true}\n")
    with closing(sqlite3.connect(home / "runs.db")) as database, database:
        database.execute("CREATE TABLE runs (id TEXT)")
        database.execute("INSERT INTO runs VALUES ('one')")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return archive


PARTS = ("data/store", "mlruns", ".mlflow_spool", "home")


def lost(project: Path) -> None:
    """The disk breaks."""
    for name in PARTS:
        shutil.rmtree(project / name)
    (project / "mlflow.db").unlink()


def test_what_was_lost_comes_back_as_it_was(worked_on: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = {name: content(worked_on / name) for name in PARTS}
    rows = tables(worked_on / "mlflow.db")
    folder = tmp_path_factory.mktemp("backups") / "first"
    done = CliRunner().invoke(app, ["backup", str(folder), "--json"])
    assert json.loads(done.stdout)["tracking"] == "sqlite", done.output
    lost(worked_on)
    done = CliRunner().invoke(app, ["restore", str(folder), "--json"])
    assert done.exit_code == 0, done.output
    assert {name: content(worked_on / name) for name in PARTS} == before
    assert tables(worked_on / "mlflow.db") == rows
    assert verify(load_params(), deep=True) == []
    client = MlflowClient(f"sqlite:///{worked_on / 'mlflow.db'}")
    version = client.get_model_version_by_alias("tiny", "champion")
    assert Path(client.download_artifacts(version.run_id, "scores.txt")).read_text() == "evidence"


def test_what_is_there_is_moved_aside_and_never_deleted(worked_on: Path, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    back_up(load_params(), folder, RecordingReporter())
    (worked_on / "data/store/mine.txt").write_text("made after the backup")
    done = restore(folder, load_params(), RecordingReporter())
    assert not (worked_on / "data/store/mine.txt").exists()
    aside = done.put_aside[(worked_on / "data/store").resolve()]
    assert (aside / "mine.txt").read_text() == "made after the backup"
    assert len(done.put_aside) == len(PARTS) + 1


def test_at_another_place_the_database_names_the_files_there(
    worked_on: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = tmp_path_factory.mktemp("backups") / "first", tmp_path_factory.mktemp("other")
    back_up(load_params(), folder, RecordingReporter())
    lost(worked_on)
    shutil.copy(worked_on / "params.yaml", other)
    monkeypatch.chdir(other)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other / 'mlflow.db'}")
    monkeypatch.setenv("DAGSTER_HOME", str(other / "home"))
    assert restore(folder, load_params(), RecordingReporter()).moved_places >= 3
    client = MlflowClient(f"sqlite:///{other / 'mlflow.db'}")
    version = client.get_model_version_by_alias("tiny", "champion")
    run = client.get_run(version.run_id)
    assert run.info.artifact_uri.startswith((other / "mlruns").as_uri())
    assert Path(client.download_artifacts(version.run_id, "scores.txt")).read_text() == "evidence"
    model = client.get_logged_model(str(version.source).removeprefix("models:/"))
    assert model.artifact_location.startswith((other / "mlruns").as_uri())


@pytest.mark.parametrize("name", ["mlflow.db", "backup.json", "store/scenes/inventory.parquet"])
def test_a_backup_with_a_flipped_byte_restores_nothing(worked_on: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "backup"
    back_up(load_params(), folder, RecordingReporter())
    damaged = bytearray((folder / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (folder / name).write_bytes(damaged)
    before = content(worked_on / "data/store")
    with pytest.raises(BackupError):
        restore(folder, load_params(), RecordingReporter())
    assert content(worked_on / "data/store") == before
    (folder / name).unlink()
    with pytest.raises(BackupError, match="is missing" if name != "backup.json" else "no backup of GeoKR"):
        verify_backup(folder)


def test_a_database_is_copied_whole_while_it_is_written_to(tmp_path: Path) -> None:
    source, stop = tmp_path / "busy.db", threading.Event()
    with closing(sqlite3.connect(source)) as connection, connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE pairs (a INTEGER, b INTEGER)")

    def write() -> None:
        with closing(sqlite3.connect(source, timeout=30)) as connection:
            number = 0
            while not stop.is_set():
                number += 1
                with connection:
                    connection.execute("INSERT INTO pairs VALUES (?, NULL)", (number,))
                    connection.execute("UPDATE pairs SET b = ? WHERE a = ?", (number, number))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(5):
            copy_database(source, tmp_path / f"{number}.db")
    finally:
        stop.set()
        writer.join()
    for number in range(5):
        with closing(sqlite3.connect(tmp_path / f"{number}.db")) as copy:
            assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert copy.execute("SELECT count(*) FROM pairs WHERE b IS NULL").fetchone() == (0,)


def test_second_names_of_files_stay_second_names(worked_on: Path, tmp_path: Path) -> None:
    store = worked_on / "data/store"
    (store / "a").mkdir()
    (store / "a/weights").write_bytes(b"w" * 1000)
    os.link(store / "a/weights", store / "weights")
    (store / "link").symlink_to("a/weights")
    folder = tmp_path / "backup"
    back_up(load_params(), folder, RecordingReporter())
    assert (folder / "store/weights").stat().st_ino == (folder / "store/a/weights").stat().st_ino
    assert (folder / "store/link").readlink() == Path("a/weights")
    restore(folder, load_params(), RecordingReporter())
    assert (store / "weights").stat().st_ino == (store / "a/weights").stat().st_ino


def test_a_backup_is_its_owners_and_needs_a_new_folder_elsewhere(worked_on: Path, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    back_up(load_params(), folder, RecordingReporter())
    assert folder.stat().st_mode & 0o777 == 0o700
    assert set(read_manifest(folder)["parts"]) == {"store", "spool", "dagster", "artifacts-0"}
    assert (folder / "project/params.yaml").is_file()
    with pytest.raises(BackupError, match="exists already"):
        back_up(load_params(), folder, RecordingReporter())
    with pytest.raises(BackupError, match="lies in the store"):
        back_up(load_params(), worked_on / "data/store/backup", RecordingReporter())


def test_a_disk_with_too_little_room_is_refused_before_anything_is_written(worked_on: Path, small_disk: Path) -> None:
    (worked_on / "data/store/large").write_bytes(b"x" * (4 << 20))
    with pytest.raises(BackupError, match="are free there"):
        back_up(load_params(), small_disk / "backup", RecordingReporter())
    assert list(small_disk.iterdir()) == []


def test_a_server_is_named_with_what_to_do(worked_on: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://anna:geheim@127.0.0.1:9")
    reporter = RecordingReporter()
    back_up(load_params(), tmp_path / "backup", reporter)
    assert "Run `geokr backup` on its machine" in reporter.warnings[0]
    assert "geheim" not in (tmp_path / "backup/backup.json").read_text() + reporter.warnings[0]


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """A PostgreSQL of this test alone; its address, with a password in it."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs or os.geteuid() != 0:
        pytest.skip("no PostgreSQL server here: apt-get install postgresql")
    data, port = tmp_path / "postgres", 54_000 + os.getpid() % 1000
    data.mkdir()
    (tmp_path / "password").write_text("geheim")
    for path in (*reversed(tmp_path.parents), tmp_path, data, tmp_path / "password"):
        if path.owner() == "root" and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    shutil.chown(data, "postgres")

    def run(*command: str) -> None:
        subprocess.run(["runuser", "-u", "postgres", "--", *command], check=True, capture_output=True, cwd="/")

    passwords = ("--auth=scram-sha-256", f"--pwfile={tmp_path / 'password'}")
    run(str(programs[-1] / "initdb"), "-D", str(data), "-U", "geokr", "--no-sync", *passwords)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data}"
    run(str(programs[-1] / "pg_ctl"), "-D", str(data), "-w", "-l", str(data / "log"), "-o", options, "start")
    try:
        yield f"postgresql+psycopg2://geokr:geheim@127.0.0.1:{port}/"
    finally:
        run(str(programs[-1] / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop")


@pytest.mark.slow
def test_a_postgres_is_dumped_and_filled(
    worked_on: Path, tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg2", reason="pip install 'geokr[production]'")
    import sqlalchemy

    engine = sqlalchemy.create_engine(f"{postgres}postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for name in ("mlflow", "empty"):
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{postgres}mlflow")
    client = MlflowClient(f"{postgres}mlflow")
    run_id = client.create_run("0", run_name="in postgres").info.run_id
    back_up(load_params(), tmp_path / "backup", RecordingReporter())
    assert "geheim" not in (tmp_path / "backup/backup.json").read_text()
    with pytest.raises(BackupError, match="Restore into an empty one"):
        restore(tmp_path / "backup", load_params(), RecordingReporter())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{postgres}empty")
    restore(tmp_path / "backup", load_params(), RecordingReporter())
    assert MlflowClient(f"{postgres}empty").get_run(run_id).info.run_name == "in postgres"


@pytest.mark.slow
def test_the_drill_a_whole_chain_is_lost_and_restored(
    finished: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Backup, loss, restore: `geokr verify` finds nothing, nothing is to do, and the champion is downloaded as before."""
    place = tmp_path_factory.mktemp("drill")
    project = place / "project"
    shutil.copytree(finished, project, symlinks=True)
    shutil.copytree(finished, place / "untouched", symlinks=True)
    monkeypatch.chdir(project)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlflow.db'}"}

    def geokr(*arguments: str) -> str:
        command = [sys.executable, "-m", "geokr_core.cli", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=500)
        assert done.returncode == 0, done.stderr
        return done.stdout

    # The copy lies elsewhere than the chain ran: its database still names the first place.
    from geokr_core.tracking.databases import move_places

    move_places(project / "mlflow.db", finished / "mlruns", project / "mlruns")
    geokr("download", "tiny@champion", "--to", str(place / "before"))
    states = [row["state"] for row in json.loads(geokr("status", "--json"))]
    geokr("backup", str(place / "backup"))
    for name in ("data/store", "mlruns"):
        shutil.rmtree(project / name)
    (project / "mlflow.db").unlink()
    geokr("restore", str(place / "backup"))
    geokr("verify", "--deep")
    assert [row["state"] for row in json.loads(geokr("status", "--json"))] == states
    geokr("download", "tiny@champion", "--to", str(place / "after"))
    assert content(place / "after") == content(place / "before")
    assert content(project / "data/store") == content(place / "untouched/data/store")
