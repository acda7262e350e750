"""A RabbitMQ for one test, at a free port of 127.0.0.1. Found through ``pythonpath`` in pyproject.toml."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from ports import free_port

# Not the command on PATH: as root, that one changes to an account that cannot reach the folders of a test.
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


def _end(process: subprocess.Popen[bytes]) -> None:
    family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)
    for pid in family:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
    process.wait(timeout=30)


@contextmanager
def rabbitmq(folder: Path, seconds: float = 300.0) -> Iterator[str]:
    """Start it; its address.

    Args:
        folder: for its files; made.
        seconds: to wait for it at most.
    """
    epmd = shutil.which("epmd")
    if not SERVER.exists() or epmd is None:
        pytest.skip("RabbitMQ is missing: apt-get install rabbitmq-server")
    folder.mkdir(parents=True)
    port, names, between = free_port(), free_port(), free_port()
    settings = f"listeners.tcp.1 = 127.0.0.1:{port}\nconsumer_timeout = 86400000\n"  # as docs/scale-out.md asks
    (folder / "rabbitmq.conf").write_text(settings, encoding="utf-8")
    (folder / "plugins").write_text("[].\n", encoding="utf-8")
    environment = {
        **os.environ,
        "HOME": str(folder),  # holds the cookie of its processes
        "ERL_EPMD_PORT": str(names),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": "geokr@localhost",
        "RABBITMQ_DIST_PORT": str(between),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "logs"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
    }
    with ExitStack() as ending, (folder / "output.log").open("wb") as log:
        # Its name service, which would stay for good if RabbitMQ started it.
        for command in ([epmd, "-address", "127.0.0.1", "-port", str(names)], [str(SERVER)]):
            process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
            ending.callback(_end, process)
        deadline = time.monotonic() + seconds
        while b"Starting broker... completed" not in (folder / "output.log").read_bytes():
            assert process.poll() is None, (folder / "output.log").read_text()
            assert time.monotonic() < deadline, (folder / "output.log").read_text()
            time.sleep(0.2)
        yield f"amqp://guest:guest@127.0.0.1:{port}//"
