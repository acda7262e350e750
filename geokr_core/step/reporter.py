"""How a step tells what it is doing, without knowing who listens.

A step gets a `Reporter` and nothing else: no ``print``, no ``mlflow.*`` and no Dagster context inside the chain.
The console speaks here; the MLflow and Dagster reporters live beside those tools (``registry``, ``geokr_assets``).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

Advance = Callable[[int], None]


class Reporter(Protocol):
    """Listens to a step."""

    def info(self, message: str) -> None:
        """Tell one thing a person wants to know."""

    def warning(self, message: str) -> None:
        """Tell one thing a person must know: a quarantined scene, a skipped delivery."""

    def progress(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """Open a progress bar over ``total`` units; the block calls the given function with units done."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record a point of one or more curves at optimiser step ``step``."""

    def picture(self, name: str, content_png: bytes) -> None:
        """Show a picture of how far the step is; ``name`` is a relative path that ends in ``.png``."""

    def flush(self) -> None:
        """Pass on the points of the curves: they will not be told again, whatever becomes of this process."""


class ConsoleReporter:
    """Speaks to a person at a terminal through rich; plain lines where there is no terminal."""

    def __init__(self) -> None:
        """Write to standard error, so that standard output stays free for results."""
        from rich.console import Console

        self._console = Console(stderr=True)

    def info(self, message: str) -> None:
        """Print a line."""
        self._console.print(message, highlight=False)

    def warning(self, message: str) -> None:
        """Print a line marked as a warning."""
        self._console.print(f"[yellow]warning:[/yellow] {message}", highlight=False)

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
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task(description, total=total)
            yield lambda units: bar.advance(task, units)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Stay silent: curves belong into files and MLflow, the bar already moves."""

    def picture(self, name: str, content_png: bytes) -> None:
        """Show nothing: a terminal has no place for it."""

    def flush(self) -> None:
        """Do nothing: every line was written when it came."""


@dataclass
class RecordingReporter:
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

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Advance]:
        """Count nothing, show nothing."""
        yield lambda units: None

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Keep the point."""
        self.points.append((step, dict(values)))

    def picture(self, name: str, content_png: bytes) -> None:
        """Keep the picture."""
        self.pictures[name] = content_png

    def flush(self) -> None:
        """Do nothing: everything is kept."""


class TeeReporter:
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
