"""One training in a separate process: ``python -m geokr_core.pretraining.one_run <file descriptor of a connection>``.

What it has to tell goes over the connection, to the process that passes it on. Not here: who starts it (``at_once``).
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import torch

from geokr_core.errors import GeoKRError
from geokr_core.levir_kr.dataset import open_levir_kr
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.results import finish_run
from geokr_core.pretraining.runs import runs_of
from geokr_core.pretraining.training.loop import train
from geokr_core.pretraining.training.monitoring import Clock
from geokr_core.step.processes import end_with
from geokr_core.step.reporter import Advance, Reporter
from geokr_core.step.termination import terminable

STEPS: Final = "steps"
"""Message: so many steps more were made."""

DONE: Final = "done"
"""Message: the training is finished and kept; how fast it was."""

FAILED: Final = "failed"
"""Message: the training refused; the error."""


@dataclass(frozen=True)
class Wanted:
    """The first message, to this process.

    Attributes:
        parent: process with which this one ends.
        config: the section that the run is from.
        levir_kr: folder of the frozen data set.
        checkpoints: folder of half-done and finished runs.
        fingerprint: of the run.
    """

    parent: int
    config: PretrainingConfig
    levir_kr: Path
    checkpoints: Path
    fingerprint: str


class _Told(Reporter):
    """Tells everything over a connection: a message is the name of what a reporter hears, and what it hears."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def info(self, message: str) -> None:
        self._connection.send(("info", message))

    def warning(self, message: str) -> None:
        self._connection.send(("warning", message))

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Advance]:
        del description, total
        yield lambda units: self._connection.send((STEPS, units))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._connection.send(("metrics", dict(values), step))

    def picture(self, name: str, content_png: bytes) -> None:
        self._connection.send(("picture", name, content_png))

    def flush(self) -> None:
        self._connection.send(("flush",))
        self._connection.recv()  # only now are the points where this training will not tell them again


def main() -> None:
    """Train the run that is asked for, and keep it."""
    connection = Connection(int(sys.argv[1]))
    wanted: Wanted = connection.recv()
    end_with(wanted.parent)
    with terminable():
        try:
            clock = _trained(wanted, _Told(connection))
        except (GeoKRError, OSError) as error:
            connection.send((FAILED, error))
        else:
            connection.send((DONE, clock))


def _trained(wanted: Wanted, reporter: Reporter) -> Clock:
    data = open_levir_kr(wanted.levir_kr)
    (run,) = runs_of(wanted.config, data, wanted.checkpoints, fingerprints=frozenset({wanted.fingerprint}))
    torch.set_num_threads(run.config.threads)
    state, clock = train(run, reporter)
    finish_run(run, state)
    return clock


if __name__ == "__main__":
    main()
