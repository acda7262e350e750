"""A guard over two servers that only note what reaches them, and a folder that the accounts of the services can reach."""

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from forked_runs import Undisturbed, command, recorded, said, versions
from tiny_worlds import tiny_world


@pytest.fixture(scope="session")
def open_folder() -> Iterator[Path]:
    """A folder that every account may enter: PostgreSQL and nginx run under their own where root runs the tests."""
    with tempfile.TemporaryDirectory(prefix="geokr-stack-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """A run of the tiny world to which nothing happened."""
    project = tmp_path_factory.mktemp("undisturbed")
    params = tiny_world(project)
    begun = time.monotonic()
    assert command(project).wait(timeout=1200) == 0, said(project)
    seconds = time.monotonic() - begun
    return Undisturbed(project, versions(params), seconds, recorded(project / "mlflow.db"))


class _Noting(BaseHTTPRequestHandler):
    """Answers everything, and notes what came."""

    seen: list[tuple[str, str]]

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.seen.append((self.command, self.path))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"reached")

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@dataclass(frozen=True)
class Guarded:
    """A guard in front of two servers that note what reaches them."""

    dagster: int
    mlflow: int
    reached: list[tuple[str, str]]
    password: str


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def guarded(open_folder: Path) -> Iterator[Guarded]:
    """The guard alone, with the settings of the stack."""
    from stack.errors import StackError
    from stack.prepare import own
    from stack.services import guard_configuration
    from stack.settings import make_secrets, program

    try:
        nginx = program("nginx")
    except StackError as missing:
        pytest.skip(str(missing))
    seen: list[tuple[str, str]] = []
    handler = type("Handler", (_Noting,), {"seen": seen})
    folder, secrets = open_folder / "guard", open_folder / "guard_secrets"
    folder.mkdir()
    make_secrets(secrets)
    ports = _port(), _port()
    with ExitStack() as ending:
        servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        for server in servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            ending.callback(server.shutdown)
        inner = [f"127.0.0.1:{server.server_address[1]}" for server in servers]
        content = guard_configuration(
            folder=folder,
            names=("localhost", "127.0.0.1"),
            dagster=(f"127.0.0.1:{ports[0]}", inner[0]),
            mlflow=(f"127.0.0.1:{ports[1]}", inner[1]),
        )
        (folder / "nginx.conf").write_text(content, encoding="utf-8")
        shutil.copy(secrets / "guard_accounts", folder / "accounts")
        account = "www-data" if os.geteuid() == 0 else None
        own(folder, account)
        command = [nginx, "-e", "stderr", "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
        process = subprocess.Popen(command, user=account, group=account, extra_groups=[] if account else None, cwd="/")
        ending.callback(process.wait, 10)
        ending.callback(process.terminate)
        _until(lambda: socket.socket().connect_ex(("127.0.0.1", ports[0])) == 0, 10)
        yield Guarded(*ports, seen, (secrets / "guard_operator").read_text())


def _until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
