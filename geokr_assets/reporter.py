"""How a step speaks in a Dagster run: through a logger, be it the run's own or the one at the far end of Pipes."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from geokr_core.step.logs import JsonReporter, log_fields, wants_json
from geokr_core.step.reporter import LoggingReporter, Reporter

LOG_EVERY_S = 5.0
"""Seconds between two lines of figures: often enough to see life, too seldom to swell the event log."""


def in_run(run_id: str, step: str) -> AbstractContextManager[None]:
    """Have every line of JSON within the block name the Dagster run and the step; the run's id is the trace id."""
    return log_fields(trace_id=run_id.replace("-", ""), dagster_run=run_id, step=step)


class LogReporter(LoggingReporter):
    """Speaks to a run's log, with the way in tenths and the latest figures of the curves.

    Attributes:
        points: what `metrics` heard, for the curves that are shown at the end.
    """

    def __init__(self, log: logging.Logger) -> None:
        """Take the logger of a Dagster context or of a Pipes session."""
        super().__init__(log)
        self._lines = JsonReporter() if wants_json() else Reporter()
        self._spoke_at = 0.0
        self.points: list[tuple[int, dict[str, float]]] = []

    def info(self, message: str) -> None:
        """Log a line; where lines of JSON are wanted, write one to the output of the process, too."""
        super().info(message)
        self._lines.info(message)

    def warning(self, message: str) -> None:
        """Log a warning, likewise."""
        super().warning(message)
        self._lines.warning(message)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Log each tenth of the way: a bar has no place in a log, and a line a unit would drown it."""
        done = 0

        def advance(units: int) -> None:
            nonlocal done
            before, done = done, done + units
            if total and 10 * before // total < 10 * done // total:
                self._log.info(f"{description}: {done} of {total}")

        yield advance

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Keep the point, and log it if the last line of figures is some seconds old."""
        self.points.append((step, dict(values)))
        self._lines.metrics(values, step)
        if time.monotonic() - self._spoke_at >= LOG_EVERY_S:
            self._spoke_at = time.monotonic()
            measured = {name: value for name, value in values.items() if math.isfinite(value)}
            self._log.info(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in measured.items()))
