"""A step in a separate process: ``python -m geokr_assets.step_process``. The asset ``pretraining`` starts one.

It speaks to Dagster through Pipes and does not load it. Without Dagster use the step's command, e.g. ``geokr pretrain``.
With ``--processes`` above 1 it stays beside as many of its kind, which it has ``torchrun`` start, and start again.
"""

import argparse
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from dagster_pipes import PipesContext, open_dagster_pipes

from geokr_assets import metadata
from geokr_assets.reporter import LogReporter, in_run
from geokr_core.chain.check_list import of_step
from geokr_core.chain.params import Params, load_params
from geokr_core.chain.run import run_step
from geokr_core.errors import GeoKRError
from geokr_core.step.reporter import Reporter

log = logging.getLogger(__name__)

REASON = "reason"
"""Key of the message that says why there is no output. It ends the process with exit code 0: Dagster's own client keeps
no message of a process that ends otherwise."""

SECONDS_TO_STOP = 60.0
"""After the run's process is gone: for a checkpoint and for the end of the MLflow run."""

MAX_RESTARTS = 3
"""Of several processes that train together, after one of them was lost. All are started again, from the last checkpoint."""


def main(words: Sequence[str] | None = None) -> int:
    """Run a step and report it, or report why it could not be made.

    Args:
        words: the command line; None: that of this program.
    """
    words = sys.argv[1:] if words is None else list(words)
    parser = argparse.ArgumentParser(description="Run a step in a separate process, for Dagster.")
    parser.add_argument("--params", type=Path, required=True, help="parameter file")
    parser.add_argument("--step", required=True, help="step of the chain")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="section.key=value (repeatable)")
    parser.add_argument("--force", action="store_true", help="run even if the output is up to date")
    parser.add_argument("--processes", type=int, default=1, help="that make it together, by torchrun")
    arguments = parser.parse_args(words)
    rank = os.environ.get("RANK")  # torchrun started this one
    if arguments.processes > 1 and rank is None:
        _end_with_parent()
        return _together(arguments.processes, words)
    _stop_once()
    _end_with_parent()
    if rank not in (None, "0"):
        return _assist(arguments.step, load_params(arguments.params, arguments.overrides), arguments.force)
    with open_dagster_pipes() as pipes:
        code = _report(pipes, arguments, together=rank is not None)
        if code != 0 and rank is not None:
            # torchrun may start it again, and Dagster wants to hear no more of who has said goodbye.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return code


def _report(pipes: PipesContext, arguments: argparse.Namespace, *, together: bool) -> int:
    """Make the step and tell Dagster what came of it; the exit code."""
    try:
        _make(pipes, arguments.step, load_params(arguments.params, arguments.overrides), arguments.force)
    except GeoKRError as error:
        pipes.report_custom_message({REASON: str(error)})
    except KeyboardInterrupt:
        pipes.log.warning("Stopped. The next run resumes from the last checkpoint.")
        return 130
    except Exception as error:  # noqa: BLE001  # a fault of this project: reported, with its traceback in the log
        pipes.log.error(traceback.format_exc())  # noqa: TRY400  # its text crosses Pipes, the exception does not
        if together:
            return 1  # most likely another process was lost: all are started again
        pipes.report_custom_message({REASON: f"{type(error).__name__}: {error} (the log has the traceback)"})
    return 0


def _together(processes: int, words: Sequence[str]) -> int:
    """Have ``torchrun`` start this program several times, and stay with it.

    torchrun runs within this process, not in another one below it: it ends with the run in Dagster, and its children with it.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    from geokr_core.networks.distributed import of_this_machine_alone

    restarts = [f"--max-restarts={MAX_RESTARTS}", f"--shutdown-timeout={SECONDS_TO_STOP:.0f}"]
    try:
        with tempfile.TemporaryDirectory() as folder:
            environment, alone = of_this_machine_alone(Path(folder))
            os.environ.update(environment)
            torchrun([*alone, f"--nproc-per-node={processes}", *restarts, "-m", "geokr_assets.step_process", *words])
    except SignalException:
        return 130
    except ChildFailedError as failed:
        # If the first one ended in order, it has said what came of the step, or why nothing did.
        return 1 if 0 in failed.failures else 0
    return 0


def _assist(step: str, params: Params, force: bool) -> int:
    """Work on a step in a process that reports nothing: the first one does, also why the step refuses."""
    try:
        run_step(step, params, Reporter(), force=force)
    except GeoKRError as error:
        log.error("%s", error)  # noqa: TRY400  # the sentence is for people; the traceback is not
    except KeyboardInterrupt:
        return 130
    return 0


def _make(pipes: PipesContext, step: str, params: Params, force: bool) -> None:
    reporter = LogReporter(pipes.log)
    with in_run(pipes.run_id, step):
        outcome = run_step(step, params, reporter, force=force, tags=pipes.get_extra("tags"))
    pipes.report_asset_materialization(
        asset_key=step,
        metadata={**metadata.of_outcome(outcome), **metadata.curves(reporter.points)},
        data_version=outcome.data_version,
    )
    for check in of_step(step, params):
        finding = check.judge(params)
        # Pipes has no field for the sentence that says what was found.
        message: metadata.Entry = {"type": "text", "raw_value": finding.message}
        pipes.report_asset_check(
            asset_key=step,
            check_name=check.name,
            passed=finding.passed,
            severity=check.severity,
            metadata={"finding": message, **metadata.of_finding(finding)},
        )


def _stop_once() -> None:
    """Take SIGINT and SIGTERM alike, and only the first: a checkpoint is being written when the second one arrives.

    A machine that shuts down, or a scheduler, signals all processes of a run, and Dagster passes its own signal on.
    """

    def stop(*_: object) -> None:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_IGN)
        raise KeyboardInterrupt

    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, stop)


def _end_with_parent() -> None:
    """Stop this process when the run's process is gone.

    A run that is terminated interrupts us, but one that is killed outright sends no signal: the training would run on
    unwatched, and hold the GPU.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(SECONDS_TO_STOP)
        os._exit(130)  # every output appears whole or not at all, so this leaves nothing half-written

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


if __name__ == "__main__":
    sys.exit(main())
