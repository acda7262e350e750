"""Runs that end before they are done: a killed worker's slot is free for its retry, a time limit ends a run and says so."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

LAUNCH = """mutation($p: ExecutionParams!){launchPipelineExecution(executionParams: $p){__typename
  ... on LaunchRunSuccess{run{runId}} ... on PythonError{message}}}"""
SLOTS = "query($pool: String!){instance{concurrencyLimit(concurrencyKey: $pool){activeRunIds}}}"
STATUS = """query($id: ID!){runOrError(runId: $id){... on Run{status
  eventConnection{events{... on MessageEvent{message}}}}}}"""
RUNS = "{runsOrError{... on Runs{results{id status tags{key value} stepStats{status startTime}}}}}"


def _large_world(root: Path) -> Path:
    """Parameters of a world that takes long enough to be killed in the making."""
    content = {
        "store": str(root / "store"),
        "world": {"folder": str(root / "world"), "seed": 3, "scene_size_px": 2048, "num_scenes": 4},
        "scenes": {
            "folder": str(root / "world" / "scenes"),
            "collections": [{"name": "gaofen", "files": "*.tiff", "land_cover": "globe"}],
        },
        "land_cover": {
            "folder": str(root / "world" / "land_cover"),
            "products": [{"name": "globe", "files": "**/*.tif", "legend": "globeland30", "year": 2020}],
        },
        "evaluation": {"folder": str(root / "world" / "tasks"), "tasks": [{"name": "scene_classification"}]},
        "champion": {"primary": [{"task": "scene_classification"}]},
    }
    path = root / "params.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def _launch_world(server: Any, **tags: str) -> str:
    selector = {
        "repositoryLocationName": "geokr",
        "repositoryName": "__repository__",
        "pipelineName": "__ASSET_JOB",
        "assetSelection": [{"path": ["world"]}],
    }
    metadata = {"tags": [{"key": f"dagster/{name}", "value": value} for name, value in tags.items()]}
    asked = {"selector": selector, "mode": "default", "runConfigData": {}, "executionMetadata": metadata}
    return str(server.ask(LAUNCH, p=asked)["launchPipelineExecution"]["run"]["runId"])


def _until(what: str, found: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.5)
    return value


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_worker_loses_its_slot_in_seconds_and_its_retry_starts(
    tmp_path: Path, start_dagster: Callable[..., Any], record_property: Callable[[str, object], None]
) -> None:
    server = start_dagster(_large_world(tmp_path))
    first = _launch_world(server)

    def runs() -> dict[str, Any]:
        return {run["id"]: run for run in server.ask(RUNS)["runsOrError"]["results"]}

    _until("the step starts", lambda: any(step["startTime"] for step in runs()[first]["stepStats"]), 180)

    def holders() -> list[str]:
        return list(server.ask(SLOTS, pool="dvc")["instance"]["concurrencyLimit"]["activeRunIds"])

    _until("it holds the slot of its pool", lambda: first in holders(), 30)
    # The run's process does not name its run; what copies the step's output does, and is its child.
    workers = {p.ppid() for p in psutil.process_iter(["cmdline"]) if first in " ".join(p.info["cmdline"] or ())}
    assert len(workers) == 1, f"expected one process of the run, found {workers}"
    killed = time.time()
    os.kill(workers.pop(), signal.SIGKILL)
    _until("the slot is free", lambda: first not in holders(), 60)
    freed = time.time()
    # Dagster starts the retry by itself; its step waits for the slot.
    started = _until(
        "the retry's step starts",
        lambda: [
            step["startTime"]
            for run_id, run in runs().items()
            if run_id != first
            for step in run["stepStats"]
            if step["startTime"]
        ],
        300,
    )
    record_property("freed_s", round(freed - killed, 1))
    record_property("retried_s", round(started[0] - killed, 1))
    assert freed - killed < 20  # 5 s between two looks, 1 s of patience, and what a busy machine adds
    assert started[0] - killed < 120


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_takes_longer_than_its_limit_is_ended_and_says_so(
    tmp_path: Path, start_dagster: Callable[..., Any]
) -> None:
    server = start_dagster(_large_world(tmp_path))
    run_id = _launch_world(server, max_runtime="1", max_retries="0")

    def status() -> str:
        return str(server.ask(STATUS, id=run_id)["runOrError"]["status"])

    _until("the run is ended", lambda: status() in ("FAILURE", "SUCCESS", "CANCELED"), 300)
    run = server.ask(STATUS, id=run_id)["runOrError"]
    assert run["status"] == "FAILURE"
    assert "Exceeded maximum runtime of 1 seconds." in [e.get("message") for e in run["eventConnection"]["events"]]

    def is_gone() -> bool:
        return not any(run_id in " ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))

    _until("its processes are gone", is_gone, 120)
    assert len(server.ask(RUNS)["runsOrError"]["results"]) == 1  # no retry
