"""A failed run is told to the web hook that is configured, with the reason and a link."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import dagster as dg
import pytest
from failed_runs import context_of_a_failed_run

from geokr_assets.alerts import UI_VARIABLE, WEBHOOK_VARIABLE, _tell_of_failure, build_alerts, message_of


@pytest.fixture
def heard() -> Iterator[tuple[str, list[dict[str, str]]]]:
    messages: list[dict[str, str]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", messages
    server.shutdown()
    server.server_close()


def test_without_an_address_there_is_no_sensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WEBHOOK_VARIABLE, raising=False)
    assert build_alerts() == []
    monkeypatch.setenv(WEBHOOK_VARIABLE, "http://127.0.0.1:1")
    assert [sensor.name for sensor in build_alerts()] == ["failed_runs"]


def test_a_failed_run_is_told_with_its_reason(
    heard: tuple[str, list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, messages = heard
    monkeypatch.setenv(WEBHOOK_VARIABLE, address)
    monkeypatch.setenv(UI_VARIABLE, "http://dagster.example/")

    with dg.DagsterInstance.ephemeral() as instance:
        context = context_of_a_failed_run(instance, "data/nowhere: no such folder")
        _tell_of_failure(context)
    (message,) = messages
    assert message["text"] == (
        f"GeoKR: whole_chain failed: data/nowhere: no such folder http://dagster.example/runs/{context.dagster_run.run_id}"
    )


def test_without_the_address_of_the_ui_the_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(UI_VARIABLE, raising=False)
    assert message_of("reevaluate", "abc", "no") == "GeoKR: reevaluate failed: no Run abc."
