"""The moments at which the tests of kills strike: in a step that is made, and in no other."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock
from kill_moments import makers, seconds_of_steps, until_a_moment_of

from geokr_core.chain.record import STATE_FILE

NEVER = 3600.0


def _lock(store: Path, step: str) -> FileLock:
    folder = store / ".state" / "unfinished"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{step}.lock")


def _chain(store: Path, *steps: str) -> Iterator[None]:
    """Make one step after the other, each for a moment."""
    for step in steps:
        with _lock(store, step):
            for _ in range(3):
                yield


def test_a_step_that_ends_before_its_moment_lets_the_next_one_be_hit(tmp_path: Path) -> None:
    chain = _chain(tmp_path, "training", "report")
    begun = time.monotonic()
    end = until_a_moment_of(
        {"training", "report"},
        lambda: next(chain, "the end"),
        tmp_path,
        lambda step: {"training": NEVER, "report": 0.0}[step],
    )
    assert (end, list(makers(tmp_path))) == (None, ["report"])
    assert time.monotonic() - begun < 60


def test_what_is_up_to_date_is_no_hit(tmp_path: Path) -> None:
    record = tmp_path / ".state" / "scenes" / STATE_FILE
    with _lock(tmp_path, "scenes"):
        assert makers(tmp_path) == {"scenes": os.getpid()}
        assert makers(tmp_path, group=os.getpgid(0)) == {"scenes": os.getpid()}
        assert makers(tmp_path, group=1) == {}
        record.parent.mkdir()
        record.touch()
        assert makers(tmp_path) == {}
    assert makers(tmp_path) == {}


def test_how_long_steps_take_is_seen(tmp_path: Path) -> None:
    chain = _chain(tmp_path, "scenes", "chips")
    end, seconds = seconds_of_steps(lambda: next(chain, "the end"), tmp_path)
    assert end == "the end"
    assert set(seconds) == {"scenes", "chips"}
    assert 0 < seconds["chips"] < 60
