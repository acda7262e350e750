"""An object store as the stack has it, with its objects as files. Found through ``pythonpath`` in pyproject.toml."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

KEY, SECRET = "tests", "not-a-secret"


@contextmanager
def object_store(objects: Path, *buckets: str) -> Iterator[int]:
    """Serve a folder by S3; its port. Each bucket is a folder below it."""
    program = Path(sys.executable).parent / "rclone"
    if not program.is_file():
        pytest.skip("rclone is not installed: `make test-stack` installs it")
    for bucket in buckets:
        (objects / bucket).mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = subprocess.Popen(
        [str(program), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--config", os.devnull, str(objects)],
        env={**os.environ, "RCLONE_AUTH_KEY": f'"{KEY},{SECRET}"'},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
            assert server.poll() is None, "rclone did not start"
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait(timeout=60)


def credentials(folder: Path) -> Path:
    """A file of credentials for the store."""
    path = folder / "s3_credentials"
    path.write_text(f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n", encoding="utf-8")
    return path
