"""SIGTERM, with which schedulers and machines that shut down end a process: it leaves as Ctrl-C does, tidily.

Without a handler the process would be gone at once: runs in MLflow stay open, locks and temporary files lie about, and
no one is told what was kept. Not here: what a training saves when it is stopped (``pretraining.training.interruption``).
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

TERMINATED: Final = 128 + signal.SIGTERM
"""Exit code of a process that SIGTERM ended, as shells and schedulers know it."""


@contextmanager
def terminable() -> Iterator[None]:
    """Turn SIGTERM into ``SystemExit`` for the time of the block, so that everything that is open is closed.

    Who has a handler already, and threads, which may have none, are left alone. A second SIGTERM changes nothing: the
    first is being answered.

    Raises:
        SystemExit: SIGTERM came; its code is `TERMINATED`.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def leave(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(TERMINATED)

    if ours:
        signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
