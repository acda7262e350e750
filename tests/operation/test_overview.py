"""The operator's page: what a project holds, and what is stuck in it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from mlflow import MlflowClient
from typer.testing import CliRunner

from geokr_core.chain.params import load_params
from geokr_core.chain.run import run_step
from geokr_core.cli import app
from geokr_core.commands.overview_page import lines_of
from geokr_core.operation.disk_use import disk_use
from geokr_core.operation.overview import Overview, overview
from geokr_core.step.files import _machine, write_json
from geokr_core.step.reporter import RecordingReporter
from geokr_core.tracking.spool import spool_of
from geokr_core.tracking.tracked_run import track_step


def looked_at() -> Overview:
    return overview(load_params())


def page() -> str:
    return "\n".join(lines_of(looked_at()))


@pytest.fixture
def dead_process() -> int:
    """The id of a process that is gone."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_a_project_that_has_not_run(project: Path) -> None:
    found = looked_at()
    assert (found.scenes, found.champion, found.data_version) == (None, None, None)
    assert found.stuck == ()
    assert [line.split()[-1] for line in page().splitlines() if line.startswith(("Training", "Champion"))] == [
        "yet"
    ] * 2


def test_scenes_are_counted_by_what_became_of_them(archive: Path) -> None:
    params = load_params()
    (archive / "scenes/broken.tif").write_bytes(b"no raster")
    for step in ("scenes", "land_cover", "chips"):
        run_step(step, params, RecordingReporter())
    scenes = looked_at().scenes
    assert scenes is not None
    assert (scenes.seen, scenes.usable, scenes.cut, scenes.counted) == (3, 2, 2, 0)
    assert scenes.quarantined == {"scenes": 1, "chips": 0, "proportions": 0}
    assert "3 seen, 2 usable, 2 cut, 0 counted; quarantined: scenes 1" in page()
    found = looked_at()
    assert found.disk.by_folder["chips"] > 0
    assert found.last["chips"].numbers["seconds"] >= 0


def test_the_champion_stands_with_its_evidence(project: Path) -> None:
    from geokr_core.chain.record import Record, write_record
    from geokr_core.step.summary import Summary, write_summary

    def scores(value: float) -> dict[str, object]:
        return {"scenes/accuracy": {"per_seed": {"0": value, "1": value}}}

    decision = {
        "model_name": "tiny",
        "challenger": {"version": 4, "scores": scores(0.7)},
        "champion": {"version": 3, "scores": scores(0.8)},
        "promoted": False,
        "champion_version": 3,
        "delta": -0.1,
        "delta_ci_low": -0.2,
        "delta_ci_high": 0.0,
        "reason": "Version 4 of tiny was not promoted: it is worse.",
    }
    write_json(project / "data/store/champion/decision.json", decision)
    state = project / "data/store/.state/champion"
    write_summary(state, Summary({"seconds": 3.0}))
    write_record(state, Record({}, "f", "v", {}, mlflow_url="runs:/abc"), {})
    champion = looked_at().champion
    assert champion is not None
    assert (champion.version, champion.challenger, champion.evidence) == (3, 4, "runs:/abc")
    assert champion.scores == {"scenes/accuracy": pytest.approx(0.8)}
    assert "tiny version 3" in page()
    assert "evidence: runs:/abc" in page()


def test_what_a_killed_process_left_is_named(project: Path, dead_process: int) -> None:
    store = project / "data/store"
    left = store / f".chips.{_machine()}-{dead_process}-1.partial"
    at_work = store / f".scenes.{_machine()}-{os.getpid()}-1.partial"
    for folder in (left, at_work):
        folder.mkdir(parents=True)
    assert [line.partition(":")[0] for line in looked_at().stuck] == [str(left.relative_to(project))]


def test_a_lock_that_is_held_names_its_process(project: Path) -> None:
    place = project / "data/store/.state/unfinished/chips/a.lock"
    place.parent.mkdir(parents=True)
    with FileLock(place):
        assert disk_use(project / "data/store").held == {place: os.getpid()}
        assert f"process {os.getpid()} holds" in page()
    assert disk_use(project / "data/store").held == {}


def test_a_file_with_two_names_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "weights").write_bytes(b"x" * 100_000)
    alone = disk_use(tmp_path).num_bytes
    os.link(tmp_path / "a" / "weights", tmp_path / "weights")
    assert disk_use(tmp_path).num_bytes == alone


def test_runs_that_wait_and_runs_that_are_left_open(project: Path, dead_process: int) -> None:
    uri = f"sqlite:///{project / 'mlflow.db'}"
    with track_step("levir_kr", {}, {}, RecordingReporter()) as run:
        assert run.run_id is not None
        assert looked_at().stuck == ()
    client = MlflowClient(uri)
    spool_of(uri, "abc").keep({"kind": "batch"})
    client.update_run(run.run_id, status="RUNNING")
    client.set_tag(run.run_id, "geokr/process", f"{os.uname().nodename}/{dead_process}/0.00")
    (stuck,) = looked_at().stuck
    assert run.run_id in stuck
    assert looked_at().waiting_for_mlflow == 1


def test_a_server_that_is_away_is_said_and_not_waited_for(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (stuck,) = looked_at().stuck
    assert "no answer" in stuck


def test_the_table_of_a_program_stays_a_table(project: Path) -> None:
    shown = CliRunner()
    done = shown.invoke(app, ["status"])
    assert done.stdout.startswith("step,state,why,output\n")
    assert all("," in line for line in done.stdout.splitlines())
    assert "Stuck       nothing" in done.stderr
    steps = json.loads(shown.invoke(app, ["status", "--json"]).stdout)
    assert steps[0]["step"] == "world"
    everything = json.loads(shown.invoke(app, ["status", "--json", "--all"]).stdout)
    assert [one["step"] for one in everything["steps"]] == [one["step"] for one in steps]
    assert everything["disk"]["num_bytes"] == 0
