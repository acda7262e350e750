"""Several trainings at once, each in a separate process, heard by this one.

A training of a small network gains little from a second core, and loses much where something else keeps that core busy: the
threads of a layer wait for each other at its end. Two trainings side by side do not wait.

Not here: what such a process does (``one_run``), what a training does (``training``).
"""

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Final

from geokr_core.errors import ConfigError, TrainingError
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.one_run import DONE, FAILED, STEPS, Wanted
from geokr_core.pretraining.training.interruption import stop_requests
from geokr_core.pretraining.training.monitoring import Clock
from geokr_core.pretraining.training.state import Run
from geokr_core.step.reporter import Advance, Reporter

_LOOKS_S: Final = 0.2
"""How often this process looks whether it was asked to stop."""


@dataclass
class _Training:
    """A training under way.

    Attributes:
        run: what is trained.
        process: that trains it.
        connection: to it.
        part: of the step; closes with the training.
        told: the reporter of the part.
        clock: how fast it went, once it is done.
        error: why it is not done, once it has ended so.
        asked: whether it was asked to stop.
    """

    run: Run
    process: "subprocess.Popen[bytes]"
    connection: Connection
    part: ExitStack
    told: Reporter
    clock: Clock | None = None
    error: BaseException | None = None
    asked: bool = False


def require_possible(config: PretrainingConfig, run: Run) -> None:
    """Refuse trainings at once where one already takes all there is.

    Raises:
        ConfigError: ``runs_at_once`` is above 1 on a GPU, or under ``torchrun``.
    """
    if config.runs_at_once == 1:
        return
    if run.processes.size > 1 or run.runtime.device.type != "cpu":
        where = f"of {run.processes.size} processes of torchrun each" if run.processes.size > 1 else "on a GPU"
        raise ConfigError(
            f"pretraining.runs_at_once: {config.runs_at_once} trainings {where} were asked for; they are for the cores of a CPU. "
            "Set it to 1."
        )


def trained_at_once(
    config: PretrainingConfig,
    levir_kr: Path,
    checkpoints: Path,
    runs: Sequence[Run],
    opened: Callable[[Run], AbstractContextManager[Reporter]],
    advance: Advance,
) -> list[Clock]:
    """Train runs to their end, ``config.runs_at_once`` of them at a time, and keep what comes out.

    Args:
        config: the section that the runs are from.
        levir_kr: folder of the frozen data set.
        checkpoints: folder of half-done and finished runs.
        runs: what is to be trained.
        opened: opens the part of the step that a run speaks to.
        advance: hears how many steps more were made.

    Returns:
        How fast each was.

    Raises:
        GeoKRError: what a training refuses; the others are stopped after their present step, and saved.
        TrainingError: the process of a training is gone.
        OSError: a file could not be written.
        KeyboardInterrupt: Ctrl-C, and SystemExit at SIGTERM: the trainings are saved first.
    """
    waiting, working, ended = deque(runs), list[_Training](), list[_Training]()
    with stop_requests() as stop, _none_left(working):
        while True:
            stops = stop.signal is not None or any(training.error is not None for training in ended)
            while waiting and not stops and len(working) < config.runs_at_once:
                working.append(_started(config, levir_kr, checkpoints, waiting.popleft(), opened))
            if not working:
                break
            for training in working if stops else ():
                _ask_to_stop(training)
            heard = wait([training.connection for training in working], timeout=_LOOKS_S)
            for training in [training for training in working if training.connection in heard]:
                if not _hear(training, advance):
                    _close(training, stop.signal)
                    ended.append(training)
                    working.remove(training)
    if stop.signal is not None:
        stop.obey()
    for training in ended:
        if training.error is not None:
            raise training.error
    return [training.clock for training in ended if training.clock is not None]


def _started(
    config: PretrainingConfig,
    levir_kr: Path,
    checkpoints: Path,
    run: Run,
    opened: Callable[[Run], AbstractContextManager[Reporter]],
) -> _Training:
    with ExitStack() as opening:  # first: where the part cannot be opened, no process is left behind
        told = opening.enter_context(opened(run))
        ours, theirs = Pipe()
        with theirs:
            # A separate group: Ctrl-C at a terminal reaches this process alone, which asks each training once.
            words = [sys.executable, "-m", "geokr_core.pretraining.one_run", str(theirs.fileno())]
            process = subprocess.Popen(words, pass_fds=[theirs.fileno()], process_group=0)
        training = _Training(run, process, ours, opening.pop_all(), told)
    ours.send(Wanted(os.getpid(), config, levir_kr, checkpoints, run.fingerprint))
    return training


def _hear(training: _Training, advance: Advance) -> bool:
    """Pass on a message of a training; False where there comes none any more."""
    try:
        what, *told = training.connection.recv()
    except (EOFError, ConnectionResetError):
        return False
    if what == STEPS:
        advance(*told)
    elif what == DONE:
        (training.clock,) = told
    elif what == FAILED:
        (training.error,) = told
    else:
        getattr(training.told, what)(*told)
        if what == "flush":
            training.connection.send(None)
    return True


def _ask_to_stop(training: _Training) -> None:
    """Ask once: a second time, a training stops at once and saves nothing."""
    if not training.asked:
        training.asked = True
        training.process.send_signal(signal.SIGTERM)


def _close(training: _Training, stopped_by: signal.Signals | None) -> None:
    """Wait for a process that has said all, and close its part as it ended."""
    code = training.process.wait()
    training.connection.close()
    error = training.error
    if training.clock is None and error is None:
        if stopped_by is not None or training.asked:
            error = KeyboardInterrupt()
        else:
            error = training.error = _gone(training, code)
    if error is None:
        training.part.close()
    else:
        training.part.__exit__(type(error), error, error.__traceback__)


def _gone(training: _Training, code: int) -> TrainingError:
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return TrainingError(
        f"{training.run.name}: the process of this training {how}. Where memory is short, the system ends the largest process: lower "
        f"`pretraining.runs_at_once`. The last checkpoint is kept in {training.run.folder}; the same command resumes from there."
    )


@contextmanager
def _none_left(working: Collection[_Training]) -> Iterator[None]:
    """Leave no process behind, whatever happens here."""
    try:
        yield
    except BaseException as error:
        for training in working:
            training.process.kill()
            training.process.wait()
            training.part.__exit__(type(error), error, error.__traceback__)
        raise
