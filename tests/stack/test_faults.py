"""Kills at random moments, servers lost in the middle of a run, a full disk: the end is that of an undisturbed run, byte for byte.

`make test-faults` runs this file; ``GEOKR_KILLS_A_STEP`` says how many kills of the command are drawn in each step.
"""

import contextlib
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from forked_runs import Undisturbed, command, killed_in_every_step, recorded, said, versions
from mlflow_database import mlflow_server
from running_stack import patiently, started
from small_disks import small_disk
from tiny_worlds import tiny_world
from unreliable_server import SLOW_SECONDS, unreliable

KILLS_A_STEP = int(os.environ.get("GEOKR_KILLS_A_STEP", "2"))
SEED = 18
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def test_the_command_killed_in_every_step(
    tmp_path: Path,
    empty_database: Path,
    undisturbed: Undisturbed,
    record_property: Callable[[str, object], None],
) -> None:
    tiny_world(tmp_path)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    kills = killed_in_every_step(
        tmp_path,
        undisturbed,
        command,
        lambda process, _: process.kill(),
        kills_a_step=KILLS_A_STEP,
        seed=SEED,
    )
    record_property("fault", "kill -9 of `geokr run`")
    record_property("kills", kills.total())
    record_property("hit", ", ".join(f"{step} {count}" for step, count in sorted(kills.items())))


def test_a_tracking_server_that_spoils_requests(
    tmp_path: Path,
    empty_database: Path,
    undisturbed: Undisturbed,
    record_property: Callable[[str, object], None],
) -> None:
    params = tiny_world(tmp_path)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    with mlflow_server(tmp_path) as port, unreliable(port, SEED) as server:
        # Quick to give up: what is tried is the spool, not the patience of MLflow's client.
        environment = {
            "MLFLOW_TRACKING_URI": server.url,
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(round(SLOW_SECONDS * 2 / 3)),
            "GEOKR_SPOOL": str(tmp_path / "spool"),
        }
        server.spoiled_fraction = 0.2
        first = command(tmp_path, **environment).wait(timeout=1200)
        # A promotion that the server spoils is refused by name; everything before it is made.
        assert first in (0, 2), said(tmp_path)
        assert "Traceback" not in said(tmp_path), said(tmp_path)
        server.spoiled_fraction = 0.0
        assert command(tmp_path, **environment).wait(timeout=1200) == 0, said(tmp_path)
    assert versions(params) == undisturbed.versions
    runs, figures = recorded(tmp_path / "mlflow.db")
    wanted_runs, wanted_figures = undisturbed.recorded
    # What is tried again (the promotion, if it was refused) has a run more; nothing else is lost or comes twice.
    assert {name: count for name, count in (runs - wanted_runs).items() if not name.startswith("champion")} == {}
    assert wanted_runs - runs == Counter()
    lost, twice = wanted_figures - figures, figures - wanted_figures
    assert (list(lost), [name for name in twice if not name.startswith("champion")]) == ([], [])
    record_property("fault", "MLflow answers with 500, half an answer, too late, or not at all, to one request in five")
    record_property("kills", server.spoiled.total())
    record_property("after", ", ".join(f"{kind} {count}" for kind, count in sorted(server.spoiled.items())))


IN_TURN = {
    "run_world": "guard",
    "run_chips": "webserver",
    "run_levir_kr": "mlflow",
    "run_pretraining": "objects",
    "run_backbone": "postgres",
    "run_evaluation": "daemon",
    "run_report": "code-location",
}
"""Which server is killed when which step has begun."""

STEPS = "query($id: ID!){runOrError(runId: $id){... on Run{status stepStats{stepKey}}}}"


def _kill(stack: Any, service: str) -> None:
    """Kill a server and all of its processes, and wait for its successor."""
    pid = stack.pid(service)
    for process in [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + 60
    while stack.pid(service) == pid:
        assert time.monotonic() < deadline, f"{service} was not started again"
        time.sleep(0.2)


def test_every_server_killed_in_turn_during_a_run(
    open_folder: Path, undisturbed: Undisturbed, record_property: Callable[[str, object], None]
) -> None:
    expected = undisturbed.versions
    params = tiny_world(open_folder / "faults_project")
    folder = open_folder / "faults"
    folder.mkdir()
    killed: list[str] = []
    launches = 0
    with started(folder, GEOKR_PARAMS=params) as stack:
        status = ""
        while status != "SUCCESS":
            assert launches < 5, status
            run_id = patiently(lambda: stack.launch("whole_chain"))
            launches += 1
            deadline = time.monotonic() + 900
            while status := patiently(lambda run_id=run_id: stack.ask(STEPS, id=run_id)["runOrError"]):
                begun = {step["stepKey"] for step in status["stepStats"]}
                due = [server for step, server in IN_TURN.items() if step in begun and server not in killed]
                for server in due[:1]:
                    _kill(stack, server)
                    killed.append(server)
                if status["status"] in ("SUCCESS", "FAILURE", "CANCELED"):
                    break
                assert time.monotonic() < deadline, status
                time.sleep(0.5)
            status = status["status"]
        login = ("reader", stack.secret("mlflow_reader"))
        api = f"{stack.url('mlflow')}/api/2.0/mlflow"
        found = patiently(
            lambda: requests.get(
                f"{api}/registered-models/alias",
                params={"name": "geokr-resnet18", "alias": "champion"},
                auth=login,
                timeout=30,
            ).json()["model_version"]["version"]
        )
        assert found == "1"
        runs = patiently(lambda: _finished_runs(api, login))
    assert versions(params) == expected
    assert set(killed) == set(IN_TURN.values())
    # A step that was made once is recorded once, whoever was away.
    assert [name for name, count in runs.items() if count > 1] == []
    record_property("fault", "kill -9 of each server in turn during a run in Dagster")
    record_property("kills", len(killed))
    record_property("launches", launches)


def _finished_runs(api: str, login: tuple[str, str]) -> Counter[str]:
    """Finished runs of MLflow, counted by the step that they tell of."""
    ids = ["1"]
    answer = requests.post(
        f"{api}/runs/search", json={"experiment_ids": ids, "max_results": 500}, auth=login, timeout=30
    )
    runs = answer.json().get("runs", [])
    assert runs
    return Counter(
        f"{tag['value']} {run['info']['run_name']}"
        for run in runs
        if run["info"]["status"] == "FINISHED"
        for tag in run["data"]["tags"]
        if tag["key"] == "geokr/step"
    )


def test_a_disk_that_is_full_at_any_write(
    tmp_path: Path,
    empty_database: Path,
    undisturbed: Undisturbed,
    record_property: Callable[[str, object], None],
) -> None:
    expected = undisturbed.versions
    rng = random.Random(SEED)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    ends: Counter[str] = Counter()
    with small_disk(tmp_path / "disk") as resize:
        params = tiny_world(tmp_path)
        text = params.read_text(encoding="utf-8").replace(str(tmp_path / "store"), str(tmp_path / "disk" / "store"))
        params.write_text(text, encoding="utf-8")
        size, code = 0, 2
        while code != 0:
            # The disk grows until the chain fits: each time it is full at another write.
            size += rng.randrange(100_000, 3_000_000)
            resize(size)
            code = command(tmp_path).wait(timeout=900)
            ends[str(code)] += 1
            assert code in (0, 2), said(tmp_path)
            if code == 2:
                words = said(tmp_path)
                assert "No space left on device" in words or "full" in words or "room" in words, words
                assert "Traceback" not in words, words
        assert versions(params) == expected
    record_property("fault", "a full disk below the store")
    record_property("kills", ends["2"])
