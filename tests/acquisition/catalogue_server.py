"""An HTTP server on loopback that serves a catalogue and rasters, and fails as servers do."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Server:
    """What is served and what was asked.

    Attributes:
        files: bytes by path.
        failures: (status, headers) answered before the file is, by path, the first one first.
        cuts: how many more answers break off half-way, by path.
        no_ranges: paths whose ranges are ignored.
        cut_over: bytes of an answer above which it may break off.
        hold: large answers wait for this event, by path.
        redirects: path to another address.
        log: (method, path, range, headers) of every request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    failures: dict[str, list[tuple[int, dict[str, str]]]] = field(default_factory=dict)
    cuts: dict[str, int] = field(default_factory=dict)
    no_ranges: set[str] = field(default_factory=set)
    redirects: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    cut_over: int = 1000
    hold: dict[str, threading.Event] = field(default_factory=dict)
    log: list[tuple[str, str, str, dict[str, str]]] = field(default_factory=list)
    url: str = ""

    def json(self, path: str, value: Any) -> None:
        self.files[path] = json.dumps(value).encode()

    def bytes_sent(self, path: str) -> int:
        return sum(int(h.get("x-sent", 0)) for _, p, _, h in self.log if p == path)

    def requests_for(self, path: str) -> list[tuple[str, str]]:
        return [(method, span) for method, p, span, _ in self.log if p == path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_GET(self) -> None:
        self._answer(send=True)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        self._answer(send=True, body=body)

    def _answer(self, *, send: bool, body: dict[str, Any] | None = None) -> None:
        state: Server = self.server.state
        path = self.path.partition("?")[0]
        headers = {k.lower(): v for k, v in self.headers.items()}
        entry = (self.command, path, headers.get("range", ""), headers | {"query": self.path.partition("?")[2]})
        state.log.append(entry)
        waiting = state.failures.get(path) or state.failures.get("*")
        if waiting:
            status, extra = waiting.pop(0)
            return self._reply(status, b"", extra, send)
        if path in state.redirects:
            return self._reply(302, b"", {"Location": state.redirects[path]}, send)
        if path == "/search" and body is not None:
            return self._reply(200, search(state, body), {"Content-Type": "application/geo+json"}, send)
        data = state.files.get(path)
        if data is None:
            return self._reply(404, b"no such file", {}, send)
        extra = {"ETag": '"1"', "Content-Type": state.types.get(path, "image/tiff")}
        span = headers.get("range", "")
        status, part = 200, data
        if path in state.no_ranges:
            span = ""
        else:
            extra["Accept-Ranges"] = "bytes"
        if span:
            first, _, last = span.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else len(data), len(data))
            status, part = 206, data[start:stop]
            extra["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        if path in state.hold and entry[2] not in ("", "bytes=0-15") and start > len(data) // 4:
            state.hold[path].wait(60)
        entry[3]["x-sent"] = str(len(part) if send else 0)
        if send and len(part) > state.cut_over and state.cuts.get(path, 0) > 0:
            state.cuts[path] -= 1
            self.send_response(status)
            for key, value in {**extra, "Content-Length": str(len(part))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(part[: len(part) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return None
        return self._reply(status, part, extra, send)

    def _reply(self, status: int, data: bytes, headers: dict[str, str], send: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if send:
            self.wfile.write(data)


@contextmanager
def serving() -> Iterator[Server]:
    state = Server()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.state = state  # type: ignore[attr-defined]
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def search(server: Server, body: dict[str, Any]) -> bytes:
    """Item search, one item a page, with a next link as APIs give it."""
    found = [i for i in json.loads(server.files["/items"]) if i["collection"] in body["collections"]]
    page = int(body.get("token", 0))
    links = []
    if page + 1 < len(found):
        following = {**body, "token": page + 1}
        links = [{"rel": "next", "href": f"{server.url}/search", "method": "POST", "body": following}]
    return json.dumps({"type": "FeatureCollection", "features": found[page : page + 1], "links": links}).encode()
