"""`make ui`: Dagster's web server and daemon as one program, which says when its pages are filled and ends as a whole.

``dagster dev`` ends its own processes on an interrupt alone: a termination would leave its web server, daemon and code server behind.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import typer

from geokr_assets import lost_runs

_PATIENCE_S: Final = 30.0
"""For the processes to end by themselves; a training writes its checkpoint meanwhile."""

_SENSORS: Final = "{ repositoriesOrError { ... on RepositoryConnection { nodes { sensors { name sensorState { status ticks(limit: 1) { timestamp status } } } } } } }"

_SUPERSEDED: Final = "ignore:Function `dev_command` is superseded"
"""Why `dagster dev` all the same: docs/decisions/0050-no-dg-project.md."""


def supervise(command: Sequence[str], is_ready: Callable[[], bool], say_ready: Callable[[], None]) -> int:
    """Run a program until it ends or this process is told to, and leave none of its processes behind.

    Args:
        command: the program.
        is_ready: asked once a second until it is.
        say_ready: called then.

    Returns:
        The program's exit code; 0 where it was told to end.
    """
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: told.append(number))
    program = subprocess.Popen(command, start_new_session=True)
    waits = True
    try:
        while program.poll() is None and not told:
            if waits and is_ready():
                waits = False
                say_ready()
            time.sleep(1.0)
        if told:
            program.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                program.wait(_PATIENCE_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
    return 0 if told else program.wait()


def pages_are_filled(answer: Any, since_s: float) -> bool:
    """Whether every sensor that is on has looked at what is there.

    Args:
        answer: to the question for the sensors.
        since_s: seconds since 1970, when the program was started.
    """
    if not answer.get("data"):
        return False  # the server could not ask this code yet
    sensors = [sensor for node in answer["data"]["repositoriesOrError"].get("nodes", []) for sensor in node["sensors"]]
    states = [sensor["sensorState"] for sensor in sensors if sensor["sensorState"]["status"] == "RUNNING"]
    looked = [tick for state in states for tick in state["ticks"] if tick["timestamp"] >= since_s]
    return bool(sensors) and len(looked) == len(states) and all(tick["status"] != "STARTED" for tick in looked)


def dagster_dev(port: int) -> list[str]:
    """What starts Dagster of this checkout on a port of this machine."""
    return [sys.executable, "-m", "dagster", "dev", "-h", "127.0.0.1", "-p", str(port), "-w", "workspace.yaml"]


def main(port: int) -> None:
    """Start Dagster of this checkout on a port of this machine."""
    lost_runs.main([])
    address, since_s = f"http://127.0.0.1:{port}", time.time()
    os.environ["PYTHONWARNINGS"] = _SUPERSEDED

    def is_ready() -> bool:
        body = json.dumps({"query": _SENSORS}).encode()
        asked = urllib.request.Request(f"{address}/graphql", body, {"Content-Type": "application/json"})  # noqa: S310  # our own server
        try:
            with urllib.request.urlopen(asked, timeout=10) as answer:  # noqa: S310  # our own server
                return pages_are_filled(json.load(answer), since_s)
        except (OSError, ValueError, KeyError):  # it does not serve yet, or not this code
            return False

    def say_ready() -> None:
        typer.echo(f"Ready: {address}")
        typer.echo(
            "First time: Lineage, 'Materialize all', All; or the job whole_chain in one run: "
            f"{address}/locations/geokr/jobs/whole_chain"
        )

    typer.echo(f"Dagster starts at {address}; its pages are filled in a minute or two. Ctrl-C stops it.")
    sys.exit(supervise([*dagster_dev(port), "--log-level", "warning"], is_ready, say_ready))


if __name__ == "__main__":
    Path(os.environ["DAGSTER_HOME"]).mkdir(exist_ok=True)
    main(int(sys.argv[1]))
