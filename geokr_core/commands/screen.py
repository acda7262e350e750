"""What a run of the chain shows: one line a step, a bar with the time left while it works, warnings; details in a log file.

Where the output is no terminal, a line comes when a step ends, and one a minute while it works.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from geokr_core.step.logs import JsonReporter, json_log, wants_json
from geokr_core.step.reporter import Advance, Reporter

LOG_FILE: Final = "geokr.log"
"""Name of the log file in the store."""

_LOG_BYTES: Final = 5_000_000
_LINE_EVERY_S: Final = 60.0
_FIRST_ESTIMATE_S: Final = 2.0
"""Before that no time left is shown: the first units say little."""


@dataclass
class _Level:
    """A progress that is open; the next one counts within one of its units."""

    description: str
    total: int
    done: int = 0


@dataclass
class _Step:
    name: str
    number: int
    total: int
    started: float = field(default_factory=lambda: time.monotonic())
    levels: list[_Level] = field(default_factory=list)
    spoke_at: float = field(default_factory=lambda: time.monotonic())

    @property
    def title(self) -> str:
        """Number and name, as wide in every step."""
        digits = len(str(self.total))
        return f"{self.number:>{digits}}/{self.total} {self.name:<12}"

    @property
    def fraction(self) -> float:
        """How far the step is, 0 to 1: what lies within a unit counts as a part of it."""
        done, unit = 0.0, 1.0
        for level in self.levels:
            total = max(level.total, 1)
            done += unit * min(level.done, total) / total
            unit /= total
        return min(done, 1.0)

    @property
    def left(self) -> str:
        """The time left, if the rest goes as fast; empty where that cannot be told yet."""
        elapsed, fraction = time.monotonic() - self.started, self.fraction
        if elapsed < _FIRST_ESTIMATE_S or fraction < 0.02:
            return ""
        return f"{duration(elapsed * (1 - fraction) / fraction)} left"


class Screen(Reporter):
    """Shows the steps of a run at a terminal, and writes what they tell into a log file."""

    def __init__(self, log_file: Path | None, *, verbose: bool = False, console: Console | None = None) -> None:
        """Open the log file.

        Args:
            log_file: gets every line, warnings included; None: no file.
            verbose: show every line as well.
            console: where to write; None: standard error, so that standard output stays free for results.
        """
        self._console = console or Console(stderr=True)
        self._verbose = verbose
        self._log = _opened(log_file)
        self._step: _Step | None = None
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def info(self, message: str) -> None:
        """Write a line to the log."""
        self._log.info("%s", message)
        if self._verbose:
            self._print(message)

    def warning(self, message: str) -> None:
        """Show a warning, and write it to the log."""
        self._log.warning("%s", message)
        self._print(f"warning: {message}", style="yellow")

    @contextmanager
    def step(self, name: str, number: int, total: int) -> Iterator[Callable[[str], None]]:
        """Show a step of the chain while it works, and a line when it ends."""
        self._step = step = _Step(name, number, total)
        ending: list[str] = []
        try:
            if self._console.is_terminal:
                with self._opened_bar(step):
                    yield ending.append
            else:
                yield ending.append
        finally:
            self._step = None
        self._print(f"{step.title} {ending[-1] if ending else 'done'}")

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Advance]:
        """Move the bar of the step. Within another progress, the whole of this one is one unit of that."""
        step = self._step
        if step is None:  # a command that is no step
            with self.step(description, 1, 1) as ended, self.progress(description, total) as advance:
                yield advance
                ended("done")
            return
        level = _Level(description, total)
        step.levels.append(level)

        def advance_by(units: int) -> None:
            level.done += units
            self._show()

        self._show()
        try:
            yield advance_by
        finally:
            step.levels.remove(level)

    @contextmanager
    def _opened_bar(self, step: _Step) -> Iterator[None]:
        columns: tuple[Any, ...] = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[what]}", markup=False),
            TextColumn("{task.fields[left]}", style="cyan"),
        )
        with Progress(*columns, console=self._console, transient=True) as self._bar:
            self._task = self._bar.add_task(step.title, total=1.0, what="", left="")
            yield
        self._bar = None

    def _show(self) -> None:
        step = self._step
        if step is None:
            return
        if self._bar is not None:
            what = step.levels[-1].description if step.levels else ""
            self._bar.update(self._task, completed=step.fraction, what=what, left=step.left)
        elif not self._console.is_terminal and time.monotonic() - step.spoke_at >= _LINE_EVERY_S:
            step.spoke_at = time.monotonic()
            self._print(f"{step.title} {step.fraction:.0%}{f', {step.left}' if step.left else ''}")

    def _print(self, message: str, style: str | None = None) -> None:
        self._console.print(message, style=style, highlight=False, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def listener(log_file: Path, *, verbose: bool) -> Reporter:
    """Who listens to a run: a `Screen`, or what writes lines of JSON to standard error and the log file."""
    if not wants_json():
        return Screen(log_file, verbose=verbose)
    return JsonReporter(json_log(), json_log(_file(log_file)))


def _file(log_file: Path) -> logging.Handler:
    log_file.parent.mkdir(parents=True, exist_ok=True)
    return RotatingFileHandler(log_file, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8", delay=True)


def _opened(log_file: Path | None) -> logging.Logger:
    log = logging.Logger("geokr.run")  # none of the tree of loggers: what other libraries log stays where it is
    if log_file is None:
        log.addHandler(logging.NullHandler())
        return log
    handler = _file(log_file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    log.addHandler(handler)
    return log
