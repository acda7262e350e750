"""SIGTERM to each process of the stack, one after another, then `kill -9` of the broker: each comes back, and the runs end as if undisturbed."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from forked_runs import Undisturbed, versions
from running_stack import patiently, started
from tiny_worlds import tiny_world

SERVICES = (
    "guard",
    "webserver",
    "worker-1",
    "daemon",
    "mlflow",
    "objects",
    "redis",
    "worker-2",
    "postgres",
    "code-location",
)
KILLED = ("redis",)
"""By ``kill -9``, after that. The other servers are killed in ``test_faults.py``, whose runs need no broker."""
PAUSE_SECONDS = 5.0
STATUS = "query($id: ID!){runOrError(runId: $id){... on Run{status}}}"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def test_each_process_of_the_stack_is_told_to_end_during_a_run(
    open_folder: Path, undisturbed: Undisturbed, record_property: Callable[[str, object], None]
) -> None:
    project, folder = open_folder / "terminated_project", open_folder / "terminated"
    params = tiny_world(project)
    folder.mkdir()
    waited: dict[str, float] = {}
    launches = 0
    with started(folder, GEOKR_PARAMS=params, GEOKR_EXECUTOR="celery") as stack:
        assert set(SERVICES) == set(stack.state["services"])
        left, status, run = [(name, signal.SIGTERM) for name in SERVICES], "", ""
        left += [(name, signal.SIGKILL) for name in KILLED]
        while left or status != "SUCCESS":
            if status in ("", "SUCCESS", "FAILURE", "CANCELED"):
                assert launches < 8, status
                run = patiently(lambda: stack.launch("whole_chain"))
                launches += 1
            if left:
                service, how = left.pop(0)
                pid, begun = stack.pid(service), time.monotonic()
                os.kill(pid, how)
                while stack.pid(service) == pid:
                    assert time.monotonic() < begun + 240, f"{service} was not started again"
                    time.sleep(0.2)
                waited[f"{service} ({how.name})"] = time.monotonic() - begun
                time.sleep(PAUSE_SECONDS)
            status = patiently(lambda run=run: stack.ask(STATUS, id=run)["runOrError"]["status"])
            time.sleep(0.5)
    assert versions(params) == undisturbed.versions
    assert not list(project.rglob("*.partial"))
    record_property("fault", "SIGTERM to each process of the stack in turn, then kill -9 of the broker, during runs")
    record_property("kills", len(waited))
    record_property("launches", launches)
    record_property("seconds", ", ".join(f"{name} {seconds:.0f}" for name, seconds in waited.items()))
