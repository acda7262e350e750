"""Work on many items in several processes, with the results in the order of the items.

Processes and not threads, because what a small item costs is mostly Python itself, which one thread at a time may run.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Final, TypeVar

LEAST_ITEMS: Final = 100
"""Items a process from which its start, one to two seconds, is worth it."""

_LOOKS_S: Final = 1.0
"""How often a process looks whether its parent is there."""

T = TypeVar("T")
R = TypeVar("R")


def num_processes(wanted: int | None, num_items: int) -> int:
    """How many processes to use.

    Args:
        wanted: by the user; None: one a usable core.
        num_items: what there is to do. Below `LEAST_ITEMS` a process, fewer are used.

    Returns:
        1 or more; 1 is this process alone.
    """
    return max(1, min(wanted or len(os.sched_getaffinity(0)), num_items // LEAST_ITEMS))


def in_processes(work: Callable[[T], R], items: Sequence[T], processes: int, *, kept: bool = False) -> Iterator[R]:
    """Do some work on each item.

    Args:
        work: a function of a module, or a ``functools.partial`` of one, so that another process finds it.
        items: what it is done on; as its results, they can be pickled.
        processes: 1 works in this process, an item at a time. So does a process that may start none, such as one of Celery's.
        kept: leave the processes to a next call, which finds what they have imported and opened; the caller is within
            `kept_processes`.

    Yields:
        The results, in the order of the items.

    Raises:
        Exception: whatever ``work`` raises, of the first item in order. The other items are not waited for.
    """
    if processes == 1 or multiprocessing.current_process().daemon:
        yield from map(work, items)
        return
    # Unlike the standard library's processes, joblib's do not run the user's script again, which need not expect that.
    from joblib import Parallel, delayed

    try:
        watched = delayed(partial(_beside, os.getpid(), work))
        yield from Parallel(n_jobs=processes, return_as="generator")(watched(item) for item in items)
    except BaseException:  # whoever is asked to stop must not wait for work that takes minutes
        _end_processes(at_once=True)
        raise
    if not kept:
        _end_processes()


def _beside(parent: int, work: Callable[[T], R], item: T) -> R:
    end_with(parent)
    return work(item)


@cache
def end_with(parent: int) -> None:
    """End this process soon after its parent, which may be killed before it can end it."""
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOKS_S)
    os._exit(1)


@contextmanager
def kept_processes() -> Iterator[None]:
    """End with the block the processes that `in_processes` left within it.

    Later they would hold memory, and stay in the working directory of then.
    """
    try:
        yield
    finally:
        _end_processes()


def _end_processes(*, at_once: bool = False) -> None:
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True, kill_workers=at_once)
