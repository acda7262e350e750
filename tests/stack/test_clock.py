"""A clock that is a year ahead for the first steps of a chain, a year back for the others, and right at the end.

``faketime`` (a Debian package) shows the commands another clock. Times of files are those of the real one under it, and are moved here
as the wrong clock would have written them.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forked_runs import Undisturbed, metrics_that_came_twice, recorded, versions
from tiny_worlds import tiny_world

DAYS = 400
DAY_NS = 86_400 * 10**9

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def _geokr(project: Path, days: int, *words: str) -> subprocess.CompletedProcess[str]:
    """The command, with a clock that is some days ahead; negative: back."""
    faketime = shutil.which("faketime")
    if faketime is None:
        pytest.skip("faketime is not installed: apt-get install faketime")
    shown = [faketime, "-f", f"{days:+d}d"] if days else []
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlflow.db'}", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    return subprocess.run(
        [*shown, sys.executable, "-m", "geokr_core.cli", *words, "--params", str(project / "params.yaml")],
        cwd=project,
        env={**os.environ, **environment, "NO_FAKE_STAT": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )


def _written_with_that_clock(project: Path, days: int, before: set[Path]) -> set[Path]:
    """Move the times of the files that were written since, and give all that there are now."""
    files = {path for path in project.rglob("*") if path.is_file() and path.name != "mlflow.db"}
    for path in files - before:
        then = path.stat().st_mtime_ns + days * DAY_NS
        os.utime(path, ns=(then, then))
    return files


def _states(project: Path, days: int) -> set[str]:
    told = _geokr(project, days, "status", "--json")
    assert told.returncode == 0, told.stderr
    return {row["state"] for row in json.loads(told.stdout)}


def test_a_clock_that_jumps_between_the_steps_changes_nothing(
    tmp_path: Path, empty_database: Path, undisturbed: Undisturbed, record_property: Callable[[str, object], None]
) -> None:
    params = tiny_world(tmp_path)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    seen: set[Path] = set()
    for step in ("world", "scenes", "land-cover", "chips"):
        made = _geokr(tmp_path, DAYS, step)
        assert made.returncode == 0, made.stderr
    seen = _written_with_that_clock(tmp_path, DAYS, seen)
    made = _geokr(tmp_path, -DAYS, "run")
    assert made.returncode == 0, made.stderr
    _written_with_that_clock(tmp_path, -DAYS, seen)
    assert made.stderr.count("up to date") + made.stdout.count("up to date") == 4  # nothing of before was made again
    assert versions(params) == undisturbed.versions
    for days in (0, DAYS, -DAYS):
        assert _states(tmp_path, days) == {"up to date"}
    assert metrics_that_came_twice(tmp_path / "mlflow.db") == []
    assert recorded(tmp_path / "mlflow.db") == undisturbed.recorded
    # It is noticed: files that were written a year from now.
    doctor = _geokr(tmp_path, 0, "doctor", "--json")
    (clock,) = [found for found in json.loads(doctor.stdout) if found["check"] == "clock"]
    assert clock["state"] == "failure"
    # A year ahead, everything is old; the champion and what the store names stay all the same.
    told = _geokr(tmp_path, DAYS, "retain", "--json")
    assert told.returncode == 0, told.stderr
    assert "version" not in {old["kind"] for old in json.loads(told.stdout)}
    record_property("fault", "the clock 400 days ahead, then 400 days back, then right")
    record_property("kills", 3)
