"""`make ui`: it says when the pages are filled, and no process of it stays behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from geokr_assets.ui import pages_are_filled

PROGRAM = """
import subprocess, sys, time
from pathlib import Path
child = subprocess.Popen([sys.executable, "-c", "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; time.sleep(60)"])
Path(sys.argv[1]).write_text(str(child.pid))
try:
    time.sleep(60)
except KeyboardInterrupt:
    Path(sys.argv[1] + ".ended").touch()
"""

SUPERVISOR = """
import sys
from pathlib import Path
from geokr_assets.ui import supervise
place = Path(sys.argv[2])
sys.exit(supervise([sys.executable, "-c", sys.argv[1], str(place)], place.exists, lambda: Path(f"{place}.ready").touch()))
"""


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_processes_end_when_it_is_told_to(number: signal.Signals, tmp_path: Path) -> None:
    place, ready = tmp_path / "child", tmp_path / "child.ready"
    program = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, PROGRAM, str(place)], env={**os.environ, "PYTHONPATH": str(Path.cwd())}
    )
    for _ in range(600):
        if ready.exists():
            break
        time.sleep(0.1)
    assert ready.exists(), "it never said that it is ready"
    program.send_signal(number)
    assert program.wait(60) == 0
    assert (tmp_path / "child.ended").exists(), "the program was not asked to end"
    time.sleep(0.1)
    assert not _lives(int(place.read_text()))


def _answer(*states: tuple[str, float | None, str]) -> Any:
    sensors = [
        {
            "name": "s",
            "sensorState": {"status": status, "ticks": [] if at is None else [{"timestamp": at, "status": tick}]},
        }
        for status, at, tick in states
    ]
    return {"data": {"repositoriesOrError": {"nodes": [{"sensors": sensors}]}}}


@pytest.mark.parametrize(
    ("states", "filled"),
    [
        ((("RUNNING", 12.0, "SKIPPED"), ("STOPPED", None, "")), True),
        ((("RUNNING", 12.0, "SUCCESS"), ("RUNNING", 3.0, "SUCCESS")), False),  # of the time before
        ((("RUNNING", 12.0, "SUCCESS"), ("RUNNING", None, "")), False),
        ((("RUNNING", 12.0, "STARTED"),), False),
        ((), False),
    ],
)
def test_pages_are_filled_when_every_sensor_has_looked(states: tuple[Any, ...], filled: bool) -> None:
    assert pages_are_filled(_answer(*states), since_s=10.0) is filled
