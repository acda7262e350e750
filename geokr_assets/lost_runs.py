"""Runs whose process went with the code location: ``python -m geokr_assets.lost_runs [command …]``, before the code location starts.

Runs live below the code location. If that is killed, or its machine loses power, they are gone, and Dagster goes on waiting: its run
monitoring asks only launchers that can look at a run's process, and the launcher of these runs cannot. Whatever is under way
when the code location starts is therefore of the one before. It is reported as failed, gives back what it held, and is tried
once more (``run_retries`` in ``dagster.yaml``); every step goes on where it stood.
"""

import fcntl
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
from dagster._core.launcher import DefaultRunLauncher

UNDER_WAY = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)
"""Of a run that has a process. One that waits in the queue has none, and is not lost."""

LOCK = "code-location.lock"
"""In Dagster's home: held by the program that `main` became, for as long as it lives."""

log = logging.getLogger(__name__)


def report_lost_runs(instance: dg.DagsterInstance) -> list[str]:
    """End the runs that no process carries out any more. To be called while no code location runs.

    Args:
        instance: of Dagster. Where it starts runs elsewhere, in containers or pods, nothing is done: those outlive the code location.

    Returns:
        Ids of the runs.
    """
    if not isinstance(instance.run_launcher, DefaultRunLauncher):
        return []
    lost = instance.get_runs(dg.RunsFilter(statuses=list(UNDER_WAY)))
    for run in lost:
        if run.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run)
        else:
            instance.report_run_failed(
                run, "The code location was started anew; the process of this run went with the one before."
            )
        log.warning("Run %s of %s was under way and has no process any more.", run.run_id, run.job_name)
    return [run.run_id for run in lost]


def _is_alone(home: Path) -> bool:
    """Whether no other code location that was started like this lives; from now on this one does."""
    lock = os.open(home / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return False
    os.set_inheritable(lock, True)  # the program that this process becomes holds it
    return True


def main(command: Sequence[str] | None = None) -> None:
    """Report lost runs, and become the program that is named."""
    command = sys.argv[1:] if command is None else list(command)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells every table that it makes
    with dg.DagsterInstance.get() as instance:
        if _is_alone(Path(instance.root_directory)):
            report_lost_runs(instance)
        else:
            log.info("Another code location lives over this instance; its runs are left alone.")
    if command:
        os.execvp(command[0], command)  # noqa: S606  # the same process goes on under the signals that the stack sends it


if __name__ == "__main__":
    main()
