"""What a benchmark measures and returns; no benchmark lives here."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """One benchmark's figure.

    Attributes:
        name: of the benchmark.
        ratio: the figure that the budget speaks of.
        budget: what it should reach: at least this, or at most this for ``startup``, ``loader``,
            ``scale``, ``archive``, ``methods`` and ``evaluate``.
        n: how many chips or calls were measured.
        on: what it was measured on.
        details: the other figures, by name with unit.
    """

    name: str
    ratio: float
    budget: float
    n: int
    on: str
    details: dict[str, float]


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Best of several runs: the machine's other work only ever adds time."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
