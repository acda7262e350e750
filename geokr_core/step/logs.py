"""Log lines for machines: one JSON object a line, each with what it belongs to.

``GEOKR_LOG_FORMAT=json``, or ``geokr --log-format json``, turns them on in every door. Fields: ``time`` (UTC, ISO 8601), ``level``,
``message``, ``trace_id``, and where they apply ``run`` (MLflow's id), ``dagster_run``, ``step``, ``partition`` (the scene), ``number``, ``total``,
``metrics``, ``seconds``. All lines, and the MLflow runs, of one ``geokr run`` or one Dagster run share a trace id: that of ``TRACEPARENT``
(W3C Trace Context) where it is set.

Not here: what a terminal shows (``commands.screen``).
"""

import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Final
from uuid import uuid4

from geokr_core.errors import ConfigError
from geokr_core.step.addresses import without_password
from geokr_core.step.reporter import Advance, Reporter

FORMAT_VARIABLE: Final = "GEOKR_LOG_FORMAT"
"""Environment variable: ``text`` or ``json``."""

FORMATS: Final = ("text", "json")

_TRACE_VARIABLE: Final = "TRACEPARENT"
_TRACE: Final = re.compile(r"[0-9a-f]{2}-(?P<trace_id>[0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_FIGURES_EVERY_S: Final = 10.0

_fields: ContextVar[Mapping[str, str]] = ContextVar("geokr_log_fields", default=MappingProxyType({}))


def wants_json() -> bool:
    """Whether log lines are JSON.

    Raises:
        ConfigError: the environment asks for a form that there is none of.
    """
    wanted = os.environ.get(FORMAT_VARIABLE, "") or FORMATS[0]
    if wanted not in FORMATS:
        raise ConfigError(f"${FORMAT_VARIABLE} is {wanted!r}; expected one of {', '.join(FORMATS)}.")
    return wanted == "json"


def trace_id() -> str:
    """What all that belongs together shares: 32 hexadecimal digits. A new one is passed on to processes that are started."""
    if known := _fields.get().get("trace_id"):
        return known
    found = _TRACE.fullmatch(os.environ.get(_TRACE_VARIABLE, ""))
    if found is None:
        os.environ[_TRACE_VARIABLE] = f"00-{uuid4().hex}-{uuid4().hex[:16]}-01"
        return trace_id()
    return found["trace_id"]


@contextmanager
def log_fields(**fields: str) -> Iterator[None]:
    """Add fields to every line that is logged within the block, by this thread."""
    token = _fields.set({**_fields.get(), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON; what ``extra={"fields": …}`` gives stands beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        content: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "message": without_password(record.getMessage()),
            "trace_id": trace_id(),
            **_fields.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            content["exception"] = without_password(self.formatException(record.exc_info))
        return json.dumps(content, ensure_ascii=False, default=str)


def json_log(handler: logging.Handler | None = None) -> logging.Logger:
    """A logger that writes JSON and is none of the tree of loggers.

    Args:
        handler: where to; None: standard error.
    """
    log = logging.Logger("geokr.json")
    handler = handler or logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    log.addHandler(handler)
    return log


class JsonReporter(Reporter):
    """Writes what a step tells as lines of JSON: steps with their seconds, progress in tenths, figures every ten seconds."""

    def __init__(self, *logs: logging.Logger) -> None:
        """Write to these loggers; by default to standard error."""
        self._logs = logs or (json_log(),)
        self._spoke_at = -math.inf

    def _say(self, level: int, message: str, **fields: Any) -> None:
        for log in self._logs:
            log.log(level, "%s", message, extra={"fields": fields})

    def info(self, message: str) -> None:
        """Write a line."""
        self._say(logging.INFO, message)

    def warning(self, message: str) -> None:
        """Write a warning."""
        self._say(logging.WARNING, message)

    @contextmanager
    def step(self, name: str, number: int, total: int) -> Iterator[Callable[[str], None]]:
        """Write when a step begins and how it ends; every line between the two names it."""
        endings: list[str] = []
        started = time.monotonic()

        def ended(level: int, how: str) -> None:
            seconds = round(time.monotonic() - started, 1)
            self._say(level, f"{name}: {how}", event="step_ended", number=number, total=total, seconds=seconds)

        with log_fields(step=name):
            self._say(logging.INFO, f"{name} begins", event="step_started", number=number, total=total)
            try:
                yield endings.append
            except BaseException:
                ended(logging.ERROR, "failed")
                raise
            ended(logging.INFO, endings[-1] if endings else "done")

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Advance]:
        """Write a line each tenth of the way."""
        done = 0

        def advance(units: int) -> None:
            nonlocal done
            before, done = done, done + units
            if total and 10 * before // total < 10 * done // total:
                self._say(logging.INFO, description, event="progress", done=done, total=total)

        yield advance

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Write the figures, if the last ones are some seconds old."""
        if time.monotonic() - self._spoke_at >= _FIGURES_EVERY_S:
            self._spoke_at = time.monotonic()
            finite = {name: value for name, value in values.items() if math.isfinite(value)}
            self._say(logging.INFO, f"optimiser step {step}", event="metrics", optimiser_step=step, metrics=finite)
