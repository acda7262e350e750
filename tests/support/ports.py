"""Ports of 127.0.0.1 for servers of a test. Found through ``pythonpath`` in pyproject.toml."""

import socket


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
