"""Processes that want the same step of the same store at once take turns: one makes it, the others wait and find it made.

Files of single scenes have locks of their own (``scenes.scene_outputs``), so that runs of different scenes need not wait.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from geokr_core.errors import BusyError
from geokr_core.step.reporter import Reporter

_PATIENCE_TOGETHER_S: Final = 120.0
"""Longer than a training that lost its run in Dagster takes to end, shorter than its companions wait for the first process."""


def is_first() -> bool:
    """Whether this process is the first of those that ``torchrun`` started, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def turn(store: Path, step: str, reporter: Reporter) -> Iterator[bool]:
    """Hold a step of a store, against processes of this machine and of others whose file system knows ``flock``.

    The system lets go of what a dead process held. Who may not write to the store makes nothing there and holds nothing;
    of the processes of ``torchrun`` the first one holds for all.

    Args:
        store: where the step's output is recorded.
        step: its name.
        reporter: hears that another process is waited for.

    Yields:
        Whether another process was waited for.

    Raises:
        BusyError: another process makes the step, and this one is the first of several, which do not wait for long.
    """
    if not is_first() or (store.is_dir() and not os.access(store, os.W_OK)):
        yield False
        return
    folder = store / ".state" / "unfinished"
    folder.mkdir(parents=True, exist_ok=True)
    held, waited = FileLock(folder / f"{step}.lock"), False
    try:
        held.acquire(timeout=0)
    except Timeout:
        waited = True
        reporter.warning(f"{step}: another process makes it in {store}; waiting for that one to end.")
        _wait(held, step, store)
    try:
        yield waited
    finally:
        held.release()


def _wait(held: FileLock, step: str, store: Path) -> None:
    try:
        held.acquire(timeout=_PATIENCE_TOGETHER_S if _together() else -1)
    except Timeout as error:
        raise BusyError(
            f"{step}: another process makes it in {store}, and several processes of torchrun do not wait for that. "
            "Start them again when it has ended, or use another store."
        ) from error


def refuse_late(step: str) -> None:
    """Refuse what was made while the first of several processes waited: the others have begun without it.

    Raises:
        BusyError: there are several processes.
    """
    if _together():
        raise BusyError(f"{step}: another process made it meanwhile. Run this again: it will be found up to date.")


def _together() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
