"""Runs that were under way when the code location was killed."""

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from geokr_assets.lost_runs import report_lost_runs


def test_what_has_no_process_any_more_is_ended_and_what_waits_goes_on_waiting(tmp_path: Path) -> None:
    wanted = {
        dg.DagsterRunStatus.STARTED: dg.DagsterRunStatus.FAILURE,
        dg.DagsterRunStatus.STARTING: dg.DagsterRunStatus.FAILURE,
        dg.DagsterRunStatus.CANCELING: dg.DagsterRunStatus.CANCELED,
        dg.DagsterRunStatus.NOT_STARTED: dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.SUCCESS: dg.DagsterRunStatus.SUCCESS,
    }
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        runs = {status: create_run_for_test(instance, "whole_chain", status=status).run_id for status in wanted}
        lost = report_lost_runs(instance)
        assert set(lost) == {runs[status] for status, end in wanted.items() if end != status}
        for status, end in wanted.items():
            run = instance.get_run_by_id(runs[status])
            assert run is not None
            assert run.status == end
        assert report_lost_runs(instance) == []


def test_runs_that_outlive_the_code_location_are_left_alone() -> None:
    with dg.DagsterInstance.ephemeral() as instance:  # its launcher is another
        run = create_run_for_test(instance, "whole_chain", status=dg.DagsterRunStatus.STARTED)
        assert report_lost_runs(instance) == []
        found = instance.get_run_by_id(run.run_id)
        assert found is not None
        assert found.status == dg.DagsterRunStatus.STARTED


def _command(home: Path, *words: str) -> subprocess.Popen[str]:
    environment = {"DAGSTER_HOME": str(home), "PATH": "/bin:/usr/bin", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "geokr_assets.lost_runs", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_the_command_becomes_the_program_that_is_named_and_leaves_the_runs_of_a_living_one_alone(
    tmp_path: Path,
) -> None:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
    living = _command(tmp_path, "sh", "-c", "echo reached; exec sleep 1000")
    try:
        assert living.stdout is not None
        assert living.stdout.readline() == "reached\n"
        with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
            run = create_run_for_test(instance, "whole_chain", status=dg.DagsterRunStatus.STARTED).run_id

            def status() -> dg.DagsterRunStatus:
                found = instance.get_run_by_id(run)
                assert found is not None
                return found.status

            assert _command(tmp_path, "true").wait() == 0
            assert status() == dg.DagsterRunStatus.STARTED
            living.kill()
            living.wait()
            assert _command(tmp_path, "true").wait() == 0
            assert status() == dg.DagsterRunStatus.FAILURE
    finally:
        living.kill()
        living.wait()
