"""How a step tells what it is doing, without knowing who listens.

A step gets a `Reporter` and nothing else: no ``print``, no ``mlflow.*`` and no Dagster context inside the chain.
Python's log and the console speak here; the MLflow and Dagster reporters live beside those tools (``tracking``,
``geokr_assets``).
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Source:
    """A data set that a step, or a part of it, learns from or is judged on.

    Attributes:
        name: what it is called.
        data_version: its data version.
        place: where it lies.
        purpose: ``training`` or ``evaluation``.
        num_items: chips or images; None where that is not known.
    """

    name: str
    data_version: str
    place: str
    purpose: str
    num_items: int | None = None


@dataclass(frozen=True)
class Part:
    """One of several alike parts of a step that are compared with each other, such as one training.

    Attributes:
        name: for people.
        key: what its curves are prefixed with where all parts speak to one listener.
        fingerprint: digest of everything that its result depends on.
        parameters: what it was made with, scalars or mappings of these.
        about: what it is and how its figures are read, in Markdown.
        is_kept: whether its result was made before and is taken as it is.
    """

    name: str
    key: str
    fingerprint: str
    parameters: Mapping[str, Any]
    about: str = ""
    is_kept: bool = False


class Reporter:
    """Listens to a step. This one hears nothing; each listener overrides what it wants to hear."""

    def info(self, message: str) -> None:
        """Hear of one step of the work."""

    def warning(self, message: str) -> None:
        """Hear what needs attention: a quarantined scene, a delivery that was not made."""

    def step(self, name: str, number: int, total: int) -> AbstractContextManager[Callable[[str], None]]:
        """Enter step ``number`` of ``total`` of a chain; the block calls the given function with how it ended."""
        del name, number, total
        return _unheard()

    def progress(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """Open a progress bar over ``total`` units; the block calls the given function with units done.

        One that is opened within another one counts within a unit of that.
        """
        return _unseen()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record a point of one or more curves at optimiser step ``step``."""

    def picture(self, name: str, content_png: bytes) -> None:
        """Show a picture of how far the step is; ``name`` is a relative path that ends in ``.png``."""

    def flush(self) -> None:
        """Pass on the points of the curves: they will not be told again, whatever becomes of this process."""

    def source(self, source: Source) -> None:
        """Hear which data set is used."""

    def figures(self, values: Mapping[str, float]) -> None:
        """Hear what came out of a part."""

    def part(self, part: Part) -> "AbstractContextManager[Reporter]":
        """Open a part of the step; what is told to the given reporter within the block belongs to the part."""
        return nullcontext(self)


@contextmanager
def _unseen() -> Iterator[Advance]:
    yield lambda units: None


@contextmanager
def _unheard() -> Iterator[Callable[[str], None]]:
    yield lambda ending: None


class LoggingReporter(Reporter):
    """Speaks through Python's ``logging``, to the logger ``geokr``.

    As ``logging`` is set up by default, warnings reach standard error and progress stays silent.
    """

    def __init__(self, log: logging.Logger | None = None) -> None:
        """Take another logger than ``geokr``."""
        self._log = log or logging.getLogger("geokr")

    def info(self, message: str) -> None:
        """Log a line."""
        self._log.info("%s", message)

    def warning(self, message: str) -> None:
        """Log a warning."""
        self._log.warning("%s", message)


LOG: Final = LoggingReporter()
"""Who listens where a caller names no reporter."""


class ConsoleReporter(Reporter):
    """Speaks at a terminal through rich; plain lines where there is no terminal."""

    def __init__(self) -> None:
        """Write to standard error, so that standard output stays free for results."""
        from rich.console import Console

        self._console = Console(stderr=True)
        self._bars: Any = None

    def info(self, message: str) -> None:
        """Print a line."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def warning(self, message: str) -> None:
        """Print a line marked as a warning."""
        self._console.print("warning:", style="yellow", end=" ")
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Advance]:
        """Show a bar with rate and time left."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        if self._bars is not None:  # rich shows one set of bars at a time
            task, bars = self._bars.add_task(description, total=total), self._bars
            yield lambda units: bars.advance(task, units)
            return
        with Progress(*columns, console=self._console) as bars:
            self._bars, task = bars, bars.add_task(description, total=total)
            try:
                yield lambda units: bars.advance(task, units)
            finally:
                self._bars = None


@dataclass
class RecordingReporter(Reporter):
    """Keeps everything it hears; for tests and notebooks."""

    infos: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    points: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)

    def info(self, message: str) -> None:
        """Keep the line."""
        self.infos.append(message)

    def warning(self, message: str) -> None:
        """Keep the warning."""
        self.warnings.append(message)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Keep the point."""
        self.points.append((step, dict(values)))

    def picture(self, name: str, content_png: bytes) -> None:
        """Keep the picture."""
        self.pictures[name] = content_png


class TeeReporter(Reporter):
    """Passes everything on to several reporters, in order."""

    def __init__(self, *listeners: Reporter) -> None:
        """Take the listeners."""
        self._listeners = listeners

    def info(self, message: str) -> None:
        """Tell every listener."""
        for listener in self._listeners:
            listener.info(message)

    def warning(self, message: str) -> None:
        """Warn every listener."""
        for listener in self._listeners:
            listener.warning(message)

    @contextmanager
    def step(self, name: str, number: int, total: int) -> Iterator[Callable[[str], None]]:
        """Enter the step with every listener."""
        with ExitStack() as stack:
            endings = [stack.enter_context(listener.step(name, number, total)) for listener in self._listeners]

            def ended(how: str) -> None:
                for ending in endings:
                    ending(how)

            yield ended

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Advance]:
        """Move every listener's bar."""
        with ExitStack() as stack:
            bars = [stack.enter_context(listener.progress(description, total)) for listener in self._listeners]

            def advance(units: int) -> None:
                for bar in bars:
                    bar(units)

            yield advance

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Give the point to every listener."""
        for listener in self._listeners:
            listener.metrics(values, step)

    def picture(self, name: str, content_png: bytes) -> None:
        """Show the picture to every listener."""
        for listener in self._listeners:
            listener.picture(name, content_png)

    def flush(self) -> None:
        """Have every listener pass on what it heard."""
        for listener in self._listeners:
            listener.flush()

    def source(self, source: Source) -> None:
        """Tell every listener."""
        for listener in self._listeners:
            listener.source(source)

    def figures(self, values: Mapping[str, float]) -> None:
        """Tell every listener."""
        for listener in self._listeners:
            listener.figures(values)

    @contextmanager
    def part(self, part: Part) -> Iterator[Reporter]:
        """Open the part with every listener."""
        with ExitStack() as stack:
            yield TeeReporter(*(stack.enter_context(listener.part(part)) for listener in self._listeners))
