"""How long a cell spent inside forward and backward passes: what is left of its seconds is overhead.

Nothing is measured unless `measuring` is active, and nothing depends on what is measured.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch


@dataclass
class Stopwatch:
    """Seconds inside forward and backward passes, optimiser steps and the fits of linear classifiers."""

    seconds: float = 0.0


_ACTIVE: ContextVar[Stopwatch | None] = ContextVar("stopwatch", default=None)


@contextmanager
def measuring() -> Iterator[Stopwatch]:
    """Give a stopwatch that runs in every `computing` block within."""
    watch = Stopwatch()
    token = _ACTIVE.set(watch)
    try:
        yield watch
    finally:
        _ACTIVE.reset(token)


@contextmanager
def computing() -> Iterator[None]:
    """Count the time of this block. On a GPU the block ends when the device has finished."""
    watch = _ACTIVE.get()
    if watch is None:
        yield
        return
    started = time.perf_counter()
    try:
        yield
    finally:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        watch.seconds += time.perf_counter() - started
