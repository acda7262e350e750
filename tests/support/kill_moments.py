"""When to kill: what is made in a store now, how long each step takes, and a random moment of one of them.

Found through ``pythonpath`` in pyproject.toml.
"""

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from geokr_core.chain.record import STATE_FILE

KILLS_OF_A_CHAIN = 4
"""In one step of it: what a kill does wrong should not be hidden by many that follow."""

_GLANCE_S = 0.005
"""Between two looks at what is under way. The shortest step takes some twenty times as long."""

_LONGEST_RUN_S = 1800.0

End = TypeVar("End")


def makers(store: Path, group: int | None = None) -> dict[str, int]:
    """Steps that are made now, and a process that makes each, by the locks that are held in the store.

    The system is asked (`/proc/locks`), which leaves no trace in the store. A step that is found up to date is held for a moment too,
    and does not count: it has its record.

    Args:
        store: of the steps.
        group: count what processes of this group hold; None: whoever holds it. A training that was left behind may hold its step
            while the next run waits for it.
    """
    folder = store / ".state" / "unfinished"
    locks = {lock.stat().st_ino: lock for lock in (*folder.glob("*.lock"), *folder.glob("*/*.lock"))}
    found = {}
    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
        words = line.split()
        lock = locks.get(int(words[5].rpartition(":")[2])) if words[1] == "FLOCK" else None
        if lock is None or group not in (None, _group(int(words[4]))):
            continue
        step = lock.stem if lock.parent == folder else lock.parent.name
        if not (store / ".state" / step / STATE_FILE).exists():
            found[step] = int(words[4])
    return found


def _group(pid: int) -> int:
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(pid)
    return -1


def seconds_of_steps(ended: Callable[[], End | None], store: Path) -> tuple[End, dict[str, float]]:
    """Let a run go to its end.

    Args:
        ended: what came of the run, None while it goes on.
        store: of its steps.

    Returns:
        What came of it, and how long each of its steps was under way.
    """
    seconds: dict[str, float] = defaultdict(float)
    begun = looked = time.monotonic()
    while (end := ended()) is None:
        time.sleep(_GLANCE_S)
        before, looked = looked, time.monotonic()
        assert looked - begun < _LONGEST_RUN_S, "a run does not end"
        for name in makers(store):
            seconds[name] += looked - before
    return end, seconds


def until_a_moment_of(
    wanted: set[str],
    ended: Callable[[], End | None],
    store: Path,
    moment: Callable[[str], float],
    group: int | None = None,
) -> End | None:
    """Wait for a moment of one of some steps, or for the end of a run: what came of it, None where it goes on.

    A step that ends before its moment came is forgotten at once, or the steps after it would be let pass unseen.

    Args:
        wanted: the steps.
        ended: what came of the run, None while it goes on.
        store: of its steps.
        moment: draws one of a step: seconds after its begin.
        group: as for `makers`.
    """
    moments: dict[str, float] = {}
    begun = time.monotonic()
    while (end := ended()) is None:
        time.sleep(_GLANCE_S)
        now = time.monotonic()
        assert now - begun < _LONGEST_RUN_S, "a run does not end"
        made = sorted(wanted & set(makers(store, group)))
        moments = {name: moments[name] if name in moments else now + moment(name) for name in made}
        if any(at <= now for at in moments.values()):
            return None
    return end
