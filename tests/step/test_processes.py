import multiprocessing
import os
import time

import pytest

from geokr_core.errors import LandCoverError
from geokr_core.step.processes import LEAST_ITEMS, in_processes, num_processes


def _work(number: int) -> tuple[int, int]:
    if number == 13:
        raise LandCoverError(f"number {number} is refused")
    return number, os.getpid()


def test_results_come_in_order_from_several_processes_and_a_refusal_comes_through() -> None:
    found = list(in_processes(_work, range(12), 2))
    assert [number for number, _ in found] == list(range(12))
    assert os.getpid() not in {process for _, process in found}
    with pytest.raises(LandCoverError, match="number 13 is refused"):
        list(in_processes(_work, range(20), 2))


def test_one_process_works_here() -> None:
    assert list(in_processes(_work, [1, 2], 1)) == [(1, os.getpid()), (2, os.getpid())]


def _work_slowly(number: int) -> int:
    time.sleep(0.5)  # longer than a process needs to notice that its parent is gone
    return number


def _in_a_process_that_may_start_none() -> None:
    assert list(in_processes(_work_slowly, [1, 2], 2)) == [1, 2]


def test_a_process_that_may_start_none_works_alone() -> None:
    """A process of Celery's is one, and a step that ended it was given out again and again."""
    process = multiprocessing.get_context("fork").Process(target=_in_a_process_that_may_start_none, daemon=True)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 0


@pytest.mark.parametrize(
    ("wanted", "items", "expected"),
    [(1, 10**6, 1), (4, 10**6, 4), (4, LEAST_ITEMS, 1), (4, 2 * LEAST_ITEMS, 2), (2, 0, 1)],
)
def test_a_process_starts_only_for_work_that_is_worth_it(wanted: int, items: int, expected: int) -> None:
    assert num_processes(wanted, items) == expected
    assert num_processes(None, 10**6) == len(os.sched_getaffinity(0))
