import time

import pytest

from geokr_core.step.threads import in_order


def test_results_keep_their_order_and_an_error_stops_the_work() -> None:
    started = []

    def work(item: int) -> int:
        started.append(item)
        time.sleep(0.02 if item % 2 else 0)
        if item == 5:
            raise ValueError(item)
        return item * item

    assert list(in_order(work, range(5), 3)) == [0, 1, 4, 9, 16]
    started.clear()
    with pytest.raises(ValueError, match="5"):
        list(in_order(work, range(1000), 2))
    assert len(started) < 12
