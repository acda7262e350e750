"""How a step speaks in a Dagster run: through a logger, be it the run's own or the one at the far end of Pipes."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

LOG_EVERY_S = 5.0
"""Seconds between two lines of figures: often enough to see life, too seldom to swell the event log."""


class LogReporter:
    """Speaks to a run's log (a `geokr_core.step.reporter.Reporter`).

    Attributes:
        points: what `metrics` heard, for the curves that are shown at the end.
    """

    def __init__(self, log: logging.Logger) -> None:
        """Take the logger of a Dagster context or of a Pipes session."""
        self._log = log
        self._spoke_at = 0.0
        self.points: list[tuple[int, dict[str, float]]] = []

    def info(self, message: str) -> None:
        """Log a line."""
        self._log.info(message)

    def warning(self, message: str) -> None:
        """Log a warning."""
        self._log.warning(message)

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
        if time.monotonic() - self._spoke_at >= LOG_EVERY_S:
            self._spoke_at = time.monotonic()
            measured = {name: value for name, value in values.items() if math.isfinite(value)}
            self._log.info(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in measured.items()))

    def picture(self, name: str, content_png: bytes) -> None:
        """Show nothing: a log has no place for it, and MLflow keeps it."""

    def flush(self) -> None:
        """Do nothing: Dagster has every line, and the points are put into one event when the step ends."""
