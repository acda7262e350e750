import signal
import subprocess
import sys

from geokr_core.step.termination import TERMINATED, terminable

_COMMAND = """
import time
from geokr_core import cli
def app():
    try:
        print("begun", flush=True)
        for _ in range(3000):
            time.sleep(0.1)  # in one piece, a signal that comes just before it would be heard at its end
    finally:
        time.sleep(0.5)  # what is open is closed, also where a second signal comes
        print("closed", flush=True)
cli.app = app
cli.main()
"""


def test_a_terminated_command_closes_what_is_open_says_what_is_kept_and_ends_with_143() -> None:
    command = [sys.executable, "-c", _COMMAND]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.terminate()
        process.terminate()
        printed, told = process.communicate(timeout=60)
    assert printed == "closed\n"
    assert process.returncode == TERMINATED == 143
    assert told == "Terminated. Finished work is kept: the same command resumes where this one was.\n"


def test_who_listens_already_goes_on_listening() -> None:
    heard: list[int] = []
    earlier = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with terminable():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, earlier)
    assert heard == [signal.SIGTERM]
