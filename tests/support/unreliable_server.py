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

HALF_SENT = "half sent"
"""Half of what is sent is passed on, then the line is dead."""

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
def unreliable(
    port: int, seed: int, *, kinds: tuple[str, ...] = KINDS, slow_seconds: float = SLOW_SECONDS, same_host: bool = False
) -> Iterator[Unreliable]:
    """Pass requests on to a port of 127.0.0.1.

    Args:
        port: of the other server.
        seed: of what is spoiled, and how.
        kinds: what may be done to a request.
        slow_seconds: how late a slow answer is.
        same_host: pass on the ``Host`` that was asked for, which a signature may be made over.
    """
    rng, lock = random.Random(seed), threading.Lock()
    state = Unreliable("", 0.0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                kind = rng.choice(kinds) if rng.random() < state.spoiled_fraction else ""
                if kind:
                    state.spoiled[kind] += 1
            self.close_connection = bool(kind)
            if kind == "500 before":
                self._answer(500, [], b"spoiled")
                return
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            dropped = {"expect"} if same_host else {"expect", "host"}
            headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
            if kind == HALF_SENT:
                self._send_half(connection, headers, body)
                return
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            if kind == "500 after":
                self._answer(500, [], b"spoiled")
            elif kind != "hung up":
                if kind == "slow":
                    time.sleep(slow_seconds)
                self._answer(answer.status, answer.getheaders(), content, cut=kind == "cut off")

        def _send_half(self, connection: http.client.HTTPConnection, headers: dict[str, str], body: bytes) -> None:
            connection.putrequest(self.command, self.path, skip_host="Host" in headers, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders(body[: len(body) // 2])
            connection.close()

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, *, cut: bool = False) -> None:
            self.send_response(status)
            size = str(len(content))
            for name, value in headers:
                if name.lower() == "content-length" and self.command == "HEAD":
                    size = value  # of what a GET would give
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                    self.send_header(name, value)
            self.send_header("Content-Length", size)
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
