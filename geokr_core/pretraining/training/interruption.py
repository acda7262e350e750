"""Polite stops: Ctrl-C, SIGTERM and Dagster's Terminate end a training after its present step, with a checkpoint.

Not here: what is saved (``resuming``); stops that no process hears (SIGKILL, a power cut), which cost the steps since the
last checkpoint.
"""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self, *, once: bool) -> None:
        """Listen to nothing yet; ``once``: a second signal acts at once, without waiting for the step."""
        self._once = once
        self._earlier: dict[signal.Signals, Any] = {}
        self.signal: signal.Signals | None = None

    def listen(self) -> None:
        """Note signals from now on. Those that this process ignores (``nohup``) stay ignored."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets the main thread alone hear signals: who trains in another one stops as ever
        for number in _SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._earlier[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.signal = signal.Signals(number)
        if self._once:
            self.give_back()

    def give_back(self) -> None:
        """Let signals act as they did before `listen`."""
        earlier: Mapping[signal.Signals, Any] = self._earlier
        self._earlier = {}
        for number, handler in earlier.items():
            signal.signal(number, handler)

    def obey(self) -> None:
        """Do what the noted signal would have done: what was listened before acts, and ``SIGTERM`` ends the process.

        Raises:
            KeyboardInterrupt: Ctrl-C.
            SystemExit: any other signal that no one else handles: 128 + its number, after all that is open was closed.
        """
        self.give_back()
        number = self.signal or signal.SIGTERM  # none: another process of the run was asked to
        if callable(signal.getsignal(number)):
            signal.raise_signal(number)
        raise SystemExit(128 + number)


@contextmanager
def stop_requests(*, once: bool = True) -> Iterator[StopRequest]:
    """Note signals that ask this process to stop for the time of the block, instead of being interrupted by them.

    Args:
        once: a second signal acts at once. Under ``torchrun`` it must not: the terminal and torchrun both send one.

    Yields:
        What has been asked for so far.
    """
    request = StopRequest(once=once)
    request.listen()
    try:
        yield request
    finally:
        request.give_back()
