"""Runs of Dagster that no one needs any more: ``python -m geokr_assets.old_runs``. The command ``geokr retain`` starts it.

A run goes with its events and its captured output. Those that hold the latest materialisation of an asset or of a partition, or
the latest result of a check, stay: Dagster would forget what it knows of the asset.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg

_PAGE = 500
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


def old_runs(instance: dg.DagsterInstance, days: int) -> list[dict[str, object]]:
    """Runs that can go.

    Args:
        instance: of Dagster.
        days: age from which a run can go.

    Returns:
        Rows with ``run_id``, ``job`` and ``age_days``, the oldest first.
    """
    before = datetime.now(UTC) - timedelta(days=days)
    wanted = dg.RunsFilter(statuses=_ENDED, created_before=before)
    records = instance.get_run_records(filters=wanted, ascending=True)
    if not records:
        return []
    needed = set(_runs_of_latest_states(instance))
    return [
        {
            "run_id": record.dagster_run.run_id,
            "job": record.dagster_run.job_name,
            "age_days": (time.time() - record.create_timestamp.timestamp()) / 86_400,
        }
        for record in records
        if record.dagster_run.run_id not in needed
    ]


def delete(instance: dg.DagsterInstance, run_id: str) -> None:
    """Delete a run, its events and its captured output."""
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    instance.delete_run(run_id)


def _runs_of_latest_states(instance: dg.DagsterInstance) -> Iterator[str]:
    for key in instance.all_asset_keys():
        seen: set[str | None] = set()
        cursor: str | None = None
        while True:
            page = instance.fetch_materializations(key, limit=_PAGE, cursor=cursor)
            for record in page.records:
                if record.partition_key not in seen:
                    yield record.run_id
                seen.add(record.partition_key)
            cursor = page.cursor
            if not page.has_more:
                break
    yield from _runs_of_latest_checks(instance)


def _runs_of_latest_checks(instance: dg.DagsterInstance) -> Iterator[str]:
    keys = instance.event_log_storage.get_asset_check_summary_records
    from geokr_core.chain.check_list import CHECKS

    names = [dg.AssetCheckKey(dg.AssetKey(check.step), check.name) for check in CHECKS]
    for summary in keys(names).values():
        if summary.last_check_execution_record is not None:
            yield summary.last_check_execution_record.run_id


def main() -> int:
    """Print the runs that can go as JSON, or delete one."""
    parser = argparse.ArgumentParser(description="Old runs of Dagster, for `geokr retain`.")
    parser.add_argument("--days", type=int, default=90, help="age from which a run can go")
    parser.add_argument("--delete", metavar="RUN_ID", help="delete this run")
    arguments = parser.parse_args()
    with dg.DagsterInstance.get() as instance:
        if arguments.delete:
            delete(instance, arguments.delete)
        else:
            sys.stdout.write(json.dumps(old_runs(instance, arguments.days)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
