"""A server that passes requests on to another one and spoils some of them. Found through ``pythonpath`` in pyproject.toml."""

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KINDS = ("500 before", "500 after", "cut off", "hung up", "slow")
"""Refused without being passed on; passed on and then refused; half an answer; no answer at all; an answer after `SLOW_SECONDS`."""

SLOW_SECONDS = 12.0


@dataclass
class Unreliable:
    """What it does.

    Attributes:
        url: of this server.
        spoiled_fraction: share of requests that are spoiled, 0 to 1.
        spoiled: how many of each kind so far.
    """

    url: str
    spoiled_fraction: float
    spoiled: Counter[str] = field(default_factory=Counter)


@contextmanager
def unreliable(port: int, seed: int) -> Iterator[Unreliable]:
    """Pass requests on to a port of 127.0.0.1."""
    rng, lock = random.Random(seed), threading.Lock()
    state = Unreliable("", 0.0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                kind = rng.choice(KINDS) if rng.random() < state.spoiled_fraction else ""
                if kind:
                    state.spoiled[kind] += 1
            self.close_connection = bool(kind)
            if kind == "500 before":
                self._answer(500, [], b"spoiled")
                return
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            if kind == "500 after":
                self._answer(500, [], b"spoiled")
            elif kind != "hung up":
                if kind == "slow":
                    time.sleep(SLOW_SECONDS)
                self._answer(answer.status, answer.getheaders(), content, cut=kind == "cut off")

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, *, cut: bool = False) -> None:
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if cut else content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _pass_on  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
