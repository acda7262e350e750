"""A real `dagster dev`, as `make ui` starts it, with a separate instance; and a client for its GraphQL."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from ports import free_port

REPOSITORY = Path(__file__).parents[2]
SECONDS_TO_START = 300
SECONDS_TO_END = 120
"""Of Dagster on a machine that does other things beside it."""


@dataclass(frozen=True)
class Server:
    """A running Dagster.

    Attributes:
        url: of the web server.
        home: ``$DAGSTER_HOME``.
    """

    url: str
    home: Path

    def ask(self, query: str, **variables: Any) -> Any:
        """The data of a GraphQL answer."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  # our own server
            content = json.load(answer)
        assert "errors" not in content, content["errors"]
        return content["data"]


def _wait_for(url: str, server: subprocess.Popen[bytes], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert server.poll() is None, f"`dagster dev` ended with code {server.returncode}"
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310  # our own server
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"{url} did not answer within {seconds:.0f} s")


def _default_interrupt() -> None:
    # Started from a script in the background, the server inherits an ignored SIGINT, and then nothing but SIGKILL ends it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def running(root: Path, params_file: Path, environment: Mapping[str, str]) -> Iterator[Server]:
    """Start `dagster dev` in the repository and end all of its processes afterwards."""
    home = root / "dagster_home"
    home.mkdir(exist_ok=True)
    shutil.copy(REPOSITORY / ".dagster_home" / "dagster.yaml", home)
    port = free_port()
    with (root / "dev.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "dagster", "dev", "-h", "127.0.0.1", "-p", str(port), "-w", "workspace.yaml"],
            cwd=REPOSITORY,
            env={**os.environ, "DAGSTER_HOME": str(home), "GEOKR_PARAMS": str(params_file), **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_default_interrupt,
        )
        family: list[psutil.Process] = []
        try:
            _wait_for(f"http://127.0.0.1:{port}/server_info", server, seconds=SECONDS_TO_START)
            family = psutil.Process(server.pid).children(recursive=True)
            yield Server(f"http://127.0.0.1:{port}", home)
            family = psutil.Process(server.pid).children(recursive=True)
        finally:
            server.terminate()
            try:
                server.wait(timeout=SECONDS_TO_END)
            finally:
                for process in psutil.wait_procs(family, timeout=10)[1]:
                    process.kill()
                if server.poll() is None:
                    os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture
def start_dagster(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start a Dagster for a parameter file; it ends with the test."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda params_file, **environment: stack.enter_context(running(tmp_path, params_file, environment))
