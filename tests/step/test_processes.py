import os

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


@pytest.mark.parametrize(
    ("wanted", "items", "expected"),
    [(1, 10**6, 1), (4, 10**6, 4), (4, LEAST_ITEMS, 1), (4, 2 * LEAST_ITEMS, 2), (2, 0, 1)],
)
def test_a_process_starts_only_for_work_that_is_worth_it(wanted: int, items: int, expected: int) -> None:
    assert num_processes(wanted, items) == expected
    assert num_processes(None, 10**6) == len(os.sched_getaffinity(0))
