"""The stack as a test starts it: every port free, everything below one folder. Found through ``pythonpath`` in pyproject.toml."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

REPOSITORY = Path(__file__).parents[2]
SETTINGS = (REPOSITORY / "docker" / "stack.env").read_text(encoding="utf-8")


def settings_file(folder: Path, **changes: object) -> Path:
    """The project's settings with free ports and everything below one folder."""
    wanted = {"DAGSTER_PORT": 0, "MLFLOW_PORT": 0, "S3_PORT": 0, "GEOKR_SECRETS": "secrets", "GEOKR_STACK": "stack"}
    lines = []
    for line in SETTINGS.splitlines():
        name = line.partition("=")[0]
        value = {**wanted, **changes}.get(name)
        lines.append(line if value is None or line.startswith("#") else f"{name}={value}")
    path = folder / "stack.env"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


LOCATION = {"repositoryLocationName": "geokr", "repositoryName": "__repository__"}
LAUNCH = """mutation($p: ExecutionParams!){launchPipelineExecution(executionParams: $p){__typename
  ... on LaunchRunSuccess{run{runId}} ... on PythonError{message}}}"""
STATUS = "query($id: ID!){runOrError(runId: $id){... on Run{status}}}"


@dataclass(frozen=True)
class Started:
    """A stack that runs.

    Attributes:
        folder: holds the settings, ``secrets`` and ``stack``.
        process: the supervisor.
    """

    folder: Path
    process: subprocess.Popen[bytes]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def state(self) -> dict[str, Any]:
        """Process ids and ports."""
        content: dict[str, Any] = json.loads((self.folder / "stack" / "state.json").read_text(encoding="utf-8"))
        return content

    def secret(self, name: str) -> str:
        return (self.folder / "secrets" / name).read_text(encoding="utf-8")

    def url(self, port: str) -> str:
        return f"http://127.0.0.1:{self.state['ports'][port]}"

    def pid(self, service: str) -> int:
        return int(self.state["services"][service]["pid"])

    def ask(self, query: str, **variables: Any) -> Any:
        """GraphQL through the guard, as the operator."""
        answer = requests.post(
            f"{self.url('dagster')}/graphql",
            json={"query": query, "variables": variables},
            auth=("operator", self.secret("guard_operator")),
            timeout=60,
        )
        answer.raise_for_status()
        content = answer.json()
        assert "errors" not in content, content["errors"]
        return content["data"]

    def launch(self, job: str, *assets: str) -> str:
        """Launch a job, or some assets (``__ASSET_JOB``); the run's id."""
        selector: dict[str, Any] = {**LOCATION, "pipelineName": job}
        if assets:
            selector["assetSelection"] = [{"path": [asset]} for asset in assets]
        launched = self.ask(LAUNCH, p={"selector": selector, "mode": "default", "runConfigData": {}})
        assert launched["launchPipelineExecution"]["__typename"] == "LaunchRunSuccess", launched
        return str(launched["launchPipelineExecution"]["run"]["runId"])

    def status(self, run_id: str) -> str:
        return str(self.ask(STATUS, id=run_id)["runOrError"]["status"])

    def end_of(self, run_id: str, seconds: float) -> str:
        """Wait for a run's end; its status."""
        deadline = time.monotonic() + seconds
        while (status := self.status(run_id)) not in ("SUCCESS", "FAILURE", "CANCELED"):
            assert time.monotonic() < deadline, f"still {status} after {seconds:.0f} s"
            time.sleep(1)
        return status


def require_packages(*programs: str) -> None:
    """Skip where a package of the stack is missing, and say which."""
    from stack.errors import StackError
    from stack.settings import program

    for name in programs:
        try:
            program(name)
        except StackError as missing:
            pytest.skip(str(missing))
    for module in ("dagster_postgres", "flask_wtf", "boto3", "dvc_s3"):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed: `make test-stack` installs it")
    if shutil.which("rclone", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("rclone is not installed: `make test-stack` installs it")


def _end(family: list[psutil.Process], seconds: float = 5.0) -> None:
    """Kill what does not end by itself; `psutil.wait_procs` stumbles over processes that end under its hands."""
    deadline = time.monotonic() + seconds
    while (left := [process for process in family if process.is_running()]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@contextmanager
def started(folder: Path, seconds: float = 400.0, **changes: object) -> Iterator[Started]:
    """Start the stack as `make stack` does, and end it with SIGTERM to its supervisor alone."""
    require_packages(
        "postgres", "psql", "nginx", "openssl", *(["redis-server"] if changes.get("GEOKR_EXECUTOR") == "celery" else [])
    )
    settings = settings_file(folder, **changes)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "docker"), str(REPOSITORY)])}
    environment.pop("MLFLOW_TRACKING_URI", None)
    log = folder / "supervisor.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "stack", "up", "--settings", str(settings)],
            cwd=REPOSITORY,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    family: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + seconds
        while "Ready." not in log.read_text(encoding="utf-8"):
            assert process.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.5)
        yield Started(folder, process, environment)
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=400)
        finally:
            if process.poll() is None:
                process.kill()
            _end(family)


def patiently(question: Callable[[], Any], seconds: float = 300) -> Any:
    """An answer from servers that may be on their way back."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return question()
        except (requests.RequestException, AssertionError, TypeError):
            assert time.monotonic() < deadline
            time.sleep(1)
