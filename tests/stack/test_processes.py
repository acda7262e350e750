"""What the stack does with a service that ends, that leaves others behind, or that runs and answers no one."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from running_stack import settings_file
from stack import processes
from stack.processes import Stack, stack_of
from stack.services import Service
from stack.settings import read_settings


@contextmanager
def _watched(tmp_path: Path, service: Service) -> Iterator[Stack]:
    """A stack of one service, watched as `make stack` does."""
    stack = stack_of(read_settings(settings_file(tmp_path)))
    (stack.settings.folder / "logs").mkdir(parents=True)
    stack._launch(service)
    watching = threading.Thread(target=stack.watch)
    watching.start()
    try:
        yield stack
    finally:
        stack.stopping = True
        watching.join()
        stack.stop()


def _until(holds: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_service_that_answers_no_more_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_LOOK_SECONDS", 0.0)
    ignores_sigterm = ("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
    mute = Service("mute", ignores_sigterm, healthy=lambda: False, silence_seconds=0.2, stop_seconds=0.2)
    with _watched(tmp_path, mute) as stack:
        first = stack.running["mute"].process
        _until(lambda: stack.running["mute"].process is not first)
        assert first.returncode is not None


def test_a_service_that_answers_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_LOOK_SECONDS", 0.0)
    asked = []
    fine = Service("fine", ("sleep", "100"), healthy=lambda: not asked.append(1), silence_seconds=0.0)  # type: ignore[func-returns-value]
    with _watched(tmp_path, fine) as stack:
        first = stack.running["fine"].process
        _until(lambda: len(asked) > 1)
        assert stack.running["fine"].process is first


def test_what_a_dead_service_left_behind_is_ended(tmp_path: Path) -> None:
    note = tmp_path / "left.pid"
    leaves_one = ("sh", "-c", f"sleep 1000 & echo $! > {note}.new; mv {note}.new {note}; exit 1")
    with _watched(tmp_path, Service("leaves", leaves_one, healthy=lambda: True)):
        _until(note.is_file)
        left = psutil.Process(int(note.read_text()))
        _until(lambda: not left.is_running() or left.status() == psutil.STATUS_ZOMBIE)
