"""Work on many items in several threads, with the results in the order of the items.

For items whose work is done outside of Python: by numpy on large arrays, by torch, or while a file is read. Work that is
mostly Python itself takes processes (``processes``).
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def in_order(work: Callable[[T], R], items: Iterable[T], workers: int) -> Generator[R]:
    """Work on items in threads and give the results in the items' order, at most ``workers`` of them ahead.

    Args:
        work: done with each item; must be safe in threads.
        items: what to work on.
        workers: threads; with one, everything happens in the calling thread.
    """
    if workers == 1:
        yield from map(work, items)
        return
    ahead: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) > workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
