"""The training process: ``python -m geokr_assets.pretraining_process``, started by the asset ``pretraining``.

It speaks to Dagster through Pipes and does not load it. For a training without Dagster use ``geokr pretrain``.
"""

import argparse
import os
import sys
import threading
import time
from pathlib import Path

from dagster_pipes import PipesContext, open_dagster_pipes

from geokr_assets import metadata
from geokr_assets.check_list import of_step
from geokr_assets.reporter import LogReporter
from geokr_core.chain.params import load_params
from geokr_core.chain.run import run_step
from geokr_core.errors import GeoKRError

STEP = "pretraining"


def main() -> int:
    """Run the step and report it. Returns the exit code: 0, or 2 where the step refused, or 130 where stopped."""
    parser = argparse.ArgumentParser(description="Train in a process of its own, for Dagster.")
    parser.add_argument("--params", type=Path, required=True, help="parameter file")
    parser.add_argument("--force", action="store_true", help="train even if the output is up to date")
    arguments = parser.parse_args()
    _end_with_parent()
    with open_dagster_pipes() as pipes:
        try:
            _train(pipes, arguments.params, arguments.force)
        except GeoKRError as error:
            pipes.log.error(str(error))  # noqa: TRY400  # the message teaches; a trace would bury it
            return 2
        except KeyboardInterrupt:
            pipes.log.warning("Stopped. The next run goes on from the last checkpoint.")
            return 130
    return 0


def _train(pipes: PipesContext, params_file: Path, force: bool) -> None:
    params = load_params(params_file)
    reporter = LogReporter(pipes.log)
    outcome = run_step(STEP, params, reporter, force=force, tags=pipes.get_extra("tags"))
    pipes.report_asset_materialization(
        asset_key=STEP,
        metadata={**metadata.of_outcome(outcome), **metadata.curves(reporter.points)},
        data_version=outcome.data_version,
    )
    for check in of_step(STEP, params):
        finding = check.judge(params)
        # Pipes has no field for the sentence that says what was found.
        said: metadata.Entry = {"type": "text", "raw_value": finding.message}
        pipes.report_asset_check(
            asset_key=STEP,
            check_name=check.name,
            passed=finding.passed,
            severity=check.severity,
            metadata={"finding": said, **metadata.of_finding(finding)},
        )


def _end_with_parent() -> None:
    """End this process when the run's process is gone.

    A run that is terminated interrupts us, but one that is killed outright sends no signal: the training would go on
    with nobody watching, and hold the GPU.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(130)  # every output appears whole or not at all, so this leaves nothing half-written

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


if __name__ == "__main__":
    sys.exit(main())
