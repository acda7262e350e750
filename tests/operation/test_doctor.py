"""The examination: nothing to do on a healthy installation, and a named fault with a remedy on broken ones."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from geokr_core.chain.params import load_params
from geokr_core.chain.run import run
from geokr_core.cli import app
from geokr_core.operation import doctor, installation, places
from geokr_core.operation.diagnosis import Diagnosis, examined
from geokr_core.step.reporter import RecordingReporter

CHECKS = {
    "python",
    "packages",
    "versions",
    "gdal",
    "extras",
    "gpu",
    "parameter file",
    "store",
    "raw data",
    "outputs",
    "dvc",
    "disk",
    "clock",
    "mlflow",
    "dagster",
}


@pytest.fixture(autouse=True)
def _enough_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """How full the disk of this machine is does not matter here."""
    monkeypatch.setattr(places, "FEW_FREE_BYTES", 1 << 21)
    monkeypatch.setattr(places, "LEAST_FREE_BYTES", 1 << 21)


def faults(**options: tuple[str, ...]) -> dict[str, Diagnosis]:
    """What is not in order, by check; every fault has a remedy."""
    found = {one.check: one for one in doctor.examine(**options) if one.state != "ok"}
    assert all(one.remedy for one in found.values())
    return found


def test_a_healthy_installation_has_nothing_to_mend(project: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", "--json"])
    rows = json.loads(done.stdout)
    assert {row["check"] for row in rows} == CHECKS
    assert [row for row in rows if row["state"] != "ok"] == []
    assert done.exit_code == 0
    made = {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}
    assert made == {"mlflow.db", "params.yaml"}


def test_a_fault_is_exit_code_1_and_stands_in_a_row_with_its_remedy(project: Path) -> None:
    (project / "params.yaml").write_text("scenes: [")
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("parameter file,")]
    assert "failure" in row
    assert "1 failure(s)" in done.stderr


@pytest.mark.parametrize("text", ["scenes: [", "chips: {sizepx: 3}\n", "\xff\xfe"])
def test_a_damaged_parameter_file(project: Path, text: str) -> None:
    (project / "params.yaml").write_text(text, encoding="latin-1")
    found = faults()
    assert set(found) == {"parameter file"}
    assert "params.yaml" in found["parameter file"].found


def test_a_store_that_is_mounted_read_only(project: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    found = faults(overrides=(f"store={small_disk / 'store'}",))
    assert found["store"].state == "failure"
    assert "Read-only file system" in found["store"].found
    assert "write rights" in found["store"].remedy


def test_a_full_disk(project: Path, small_disk: Path) -> None:
    (small_disk / "full").write_bytes(b"x" * ((2 << 20) - 8192))
    found = faults(overrides=(f"store={small_disk / 'store'}",))
    assert found["disk"].state == "failure"
    assert str(small_disk) in found["disk"].found
    assert "geokr retain" in found["disk"].remedy


def test_a_server_that_is_away_is_named_without_its_password(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://anna:geheim@127.0.0.1:9")
    found = faults()
    assert set(found) == {"mlflow"}
    assert "127.0.0.1:9: no answer" in found["mlflow"].found
    assert "geheim" not in str(found)


def _overwritten(database: Path) -> None:
    content = bytearray(database.read_bytes())
    content[4096 : 4096 * 40] = b"\xa5" * (4096 * 39)
    database.write_bytes(content)


def _no_database(database: Path) -> None:
    database.write_bytes(b"something else" * 1000)


def _of_another_release(database: Path) -> None:
    import sqlite3

    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'aaaaaaaaaaaa'")


@pytest.mark.parametrize(
    ("harm", "words"), [(_overwritten, "damaged"), (_no_database, "damaged"), (_of_another_release, "schema")]
)
def test_a_database_that_is_damaged_or_of_another_release(
    project: Path, harm: Callable[[Path], None], words: str
) -> None:
    harm(project / "mlflow.db")
    found = faults()
    assert found["mlflow"].state == "failure"
    assert words in found["mlflow"].found


def test_an_extra_that_a_step_needs_and_one_that_none_needs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    assert faults()["extras"].state == "failure"
    assert "needed by champion" in faults()["extras"].found
    assert "pip install 'geokr[evaluate]'" in faults()["extras"].remedy
    assert faults(overrides=("champion=null",))["extras"].state == "warning"


def test_a_package_of_another_release(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [*(installation.metadata.requires("geokr") or ()), "numpy>=99"]
    monkeypatch.setattr(installation.metadata, "requires", lambda _: asked)
    assert "expected >=99" in faults()["packages"].found


def test_a_gpu_that_is_asked_for_and_not_there(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = faults(overrides=("pretraining.device=cuda", "evaluation.device=cuda"))
    assert "pretraining.device, evaluation.device" in found["gpu"].found


def test_raw_data_that_are_not_there(project: Path) -> None:
    found = faults(overrides=("scenes.folder=archive",))
    assert "archive: no such folder" in found["raw data"].found


def test_a_clock_that_lies_before_the_last_run(project: Path) -> None:
    record = project / "data" / "store" / ".state" / "scenes" / "state.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    tomorrow = time.time() + 86_400
    os.utime(record, (tomorrow, tomorrow))
    found = faults()
    assert found["clock"].state == "failure"
    assert "timedatectl" in found["clock"].remedy
    assert "no record that can be read" in found["outputs"].found


def test_a_repository_of_dvc_without_git_or_remote(project: Path) -> None:
    (project / ".dvc").mkdir()
    (project / "dvc.yaml").write_text("stages: {}\n")
    assert "no git repository" in faults()["dvc"].found
    (project / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    assert "without a remote" in faults()["dvc"].found


def test_what_was_made_and_is_not_recorded_in_dvc(archive: Path) -> None:
    (archive / ".dvc").mkdir()
    (archive / "dvc.yaml").write_text("stages: {scenes: {cmd: geokr scenes}, land_cover: {cmd: geokr land-cover}}\n")
    (archive / ".dvc" / "config").write_text("[core]\n    no_scm = true\n['remote \"one\"']\n    url = /somewhere\n")
    assert "dvc" not in faults()
    run(load_params(), RecordingReporter(), steps=["scenes"])
    (archive / "dvc.lock").unlink(missing_ok=True)
    found = faults()["dvc"]
    assert found.state == "failure"
    assert "1 output(s) are made and not recorded in dvc.lock: scenes" in found.found
    assert "`dvc commit --force scenes`" in found.remedy
    (archive / "dvc.lock").write_text("stages: {scenes: {outs: [{path: a, md5: 0f}]}}\n")
    assert "dvc" not in faults()


def test_a_generated_world_need_not_be_recorded(project: Path) -> None:
    (project / ".dvc").mkdir()
    (project / "dvc.yaml").write_text("stages: {world: {cmd: geokr world}}\n")
    (project / ".dvc" / "config").write_text("[core]\n    no_scm = true\n['remote \"one\"']\n    url = /somewhere\n")
    assert load_params().uses_world
    (found,) = places.dvc(load_params())
    assert (found.state, "0 output(s) recorded: of a generated world" in found.found) == ("ok", True)


def test_a_home_of_dagster_without_run_monitoring(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "nowhere")
    assert faults()["dagster"].state == "failure"
    monkeypatch.setenv("DAGSTER_HOME", str(project))
    (project / "dagster.yaml").write_text("run_monitoring: {enabled: false}\n")
    assert "run monitoring is off" in faults()["dagster"].found


@pytest.mark.slow
def test_another_installations_files_of_proj(project: Path) -> None:
    """In a new process: PROJ looks for its database once."""
    done = subprocess.run(
        [sys.executable, "-m", "geokr_core.cli", "doctor", "--json"],
        env={**os.environ, "PROJ_DATA": "/nowhere", "PROJ_LIB": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    (row,) = [row for row in json.loads(done.stdout) if row["state"] == "failure"]
    assert row["check"] == "gdal"
    assert "Unset PROJ_DATA" in row["remedy"]


def test_a_check_that_breaks_is_a_finding_and_not_the_end() -> None:
    def broken() -> list[Diagnosis]:
        raise RuntimeError("out of order")

    (found,) = examined("gpu", broken)
    assert (found.check, found.state) == ("gpu", "failure")
    assert "out of order" in found.found
