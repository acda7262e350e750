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


@pytest.mark.slow
def test_the_command_becomes_the_program_that_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "geokr_assets.lost_runs", "sh", "-c", "echo reached"],
        env={"DAGSTER_HOME": str(tmp_path), "PATH": "/bin:/usr/bin", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "reached\n"
