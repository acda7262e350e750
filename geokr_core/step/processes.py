"""Work on many items in several processes, with the results in the order of the items.

Processes and not threads, because what a small item costs is mostly Python itself, which one thread at a time may run.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

LEAST_ITEMS: Final = 100
"""Items a process from which its start, one to two seconds, is worth it."""

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


def in_processes(work: Callable[[T], R], items: Sequence[T], processes: int) -> Iterator[R]:
    """Do some work on each item.

    Args:
        work: a function of a module, or a ``functools.partial`` of one, so that another process finds it.
        items: what it is done on; as its results, they can be pickled.
        processes: 1 works in this process, an item at a time.

    Yields:
        The results, in the order of the items.

    Raises:
        Exception: whatever ``work`` raises, of the first item in order.
    """
    if processes == 1:
        yield from map(work, items)
        return
    # Unlike the standard library's processes, joblib's do not run the user's script again, which need not expect that.
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    try:
        yield from Parallel(n_jobs=processes, return_as="generator")(delayed(work)(item) for item in items)
    finally:
        # Kept for a next time they would hold memory, and stay in the working directory of this time.
        get_reusable_executor().shutdown(wait=True)
