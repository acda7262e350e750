"""Runs of Dagster that can go: ended ones in which no asset, partition or check has its latest state."""

import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from geokr_assets.old_runs import delete, old_runs

TOMORROW = -1
"""Runs are as old as the test: those made before tomorrow."""


@dg.asset(check_specs=[dg.AssetCheckSpec("data_set_is_whole", asset="levir_kr")])
def levir_kr() -> dg.MaterializeResult:
    return dg.MaterializeResult(
        check_results=[dg.AssetCheckResult(passed=True, check_name="data_set_is_whole")], metadata={"rows": 1}
    )


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a", "b"]))
def chips() -> None: ...


@dg.op
def broken() -> None:
    raise dg.Failure("no")


@dg.job
def fails() -> None:
    broken()


def test_a_run_that_holds_a_latest_state_stays(tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        first = dg.materialize([levir_kr], instance=instance).run_id
        second = dg.materialize([levir_kr], instance=instance).run_id
        of_a = dg.materialize([chips], instance=instance, partition_key="a").run_id
        of_b = dg.materialize([chips], instance=instance, partition_key="b").run_id
        failed = fails.execute_in_process(instance=instance, raise_on_error=False).run_id
        assert [row["run_id"] for row in old_runs(instance, TOMORROW)] == [first, failed]
        assert old_runs(instance, 1) == []
        for row in old_runs(instance, TOMORROW):
            delete(instance, str(row["run_id"]))
        assert {run.run_id for run in instance.get_runs()} == {second, of_a, of_b}
        assert instance.all_logs(failed) == []
        latest = instance.get_latest_materialization_event(dg.AssetKey("levir_kr"))
        assert latest is not None
        assert latest.run_id == second


@pytest.mark.slow
def test_the_command_asks_the_instance_of_the_environment(tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        failed = fails.execute_in_process(instance=instance, raise_on_error=False).run_id

    def told(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "geokr_assets.old_runs", *arguments],
            env={**os.environ, "DAGSTER_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    (row,) = json.loads(told("--days", str(TOMORROW)))
    assert row["run_id"] == failed
    told("--delete", failed)
    assert json.loads(told("--days", str(TOMORROW))) == []
