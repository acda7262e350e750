"""The guard in front of both interfaces: what a foreign page, a foreign name or a stranger sends never reaches them."""

from collections.abc import Mapping
from typing import Any

import psutil
import pytest
import requests

MUTATION = '{"query": "mutation { terminateRun(runId: \\"a\\") { __typename } }"}'
JSON = {"Content-Type": "application/json"}


def ask(
    guarded: Any,
    method: str,
    path: str = "/graphql",
    headers: Mapping[str, str] | None = None,
    *,
    body: str = MUTATION,
    login: bool = True,
    mlflow: bool = False,
) -> tuple[int, bool]:
    """The status of an answer, and whether the server behind was reached."""
    before = len(guarded.reached)
    answer = requests.request(
        method,
        f"http://127.0.0.1:{guarded.mlflow if mlflow else guarded.dagster}{path}",
        headers=dict(headers or {}),
        data=None if method == "GET" else body,
        auth=("operator", guarded.password) if login else None,
        timeout=10,
    )
    return answer.status_code, len(guarded.reached) > before


def test_the_interface_itself_is_let_through(guarded: Any) -> None:
    own_page = {**JSON, "Origin": f"http://127.0.0.1:{guarded.dagster}"}
    assert ask(guarded, "POST", headers=own_page) == (200, True)
    assert ask(guarded, "POST", headers={"Content-Type": "application/json; charset=utf-8"}) == (200, True)
    assert ask(guarded, "GET", "/runs") == (200, True)


@pytest.mark.parametrize(("method", "path"), [("GET", "/runs"), ("POST", "/graphql"), ("GET", "/logs/a/b/c")])
def test_without_a_login_nothing_of_dagster_is_reached(guarded: Any, method: str, path: str) -> None:
    assert ask(guarded, method, path, JSON, login=False) == (401, False)


def test_a_wrong_password_is_refused(guarded: Any) -> None:
    answer = requests.get(f"http://127.0.0.1:{guarded.dagster}/", auth=("operator", "wrong"), timeout=10)
    assert answer.status_code == 401


@pytest.mark.parametrize("mlflow", [False, True])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:3000", "localhost.evil.example", "127.0.0.1.evil.example"]
)
def test_a_foreign_host_is_refused(guarded: Any, host: str, mlflow: bool) -> None:
    # A name that an attacker makes resolve to 127.0.0.1: the browser sends it as the host.
    assert ask(guarded, "POST", headers={**JSON, "Host": host}, mlflow=mlflow) == (421, False)


@pytest.mark.parametrize(
    "path", ["/graphql?query=mutation{terminateRun(runId:1){__typename}}", "/graphql", "/graphql?a=b"]
)
def test_graphql_by_get_is_refused(guarded: Any, path: str) -> None:
    assert ask(guarded, "GET", path) == (405, False)
    # Dressed up as the beginning of a WebSocket, with a query in its address.
    if "?" in path:
        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade"}
        assert ask(guarded, "GET", path, upgrade) == (405, False)


@pytest.mark.parametrize("path", ["/graphql/", "//graphql", "/./graphql", "/%67raphql"])
def test_another_spelling_of_the_address_is_no_way_round(guarded: Any, path: str) -> None:
    status, reached = ask(guarded, "GET", f"{path}?query=mutation")
    # What does reach the server is an address that Dagster does not take for GraphQL.
    assert status == 405 or (reached and guarded.reached[-1][1].startswith("/graphql/"))


@pytest.mark.parametrize("mlflow", [False, True])
@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1", "http://127.0.0.1:1", "http://localhost"]
)
def test_a_foreign_page_is_refused(guarded: Any, origin: str, mlflow: bool) -> None:
    assert ask(guarded, "POST", headers={**JSON, "Origin": origin}, mlflow=mlflow) == (403, False)


def test_a_foreign_page_opens_no_websocket(guarded: Any) -> None:
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade"}
    assert ask(guarded, "GET", headers={**upgrade, "Origin": "https://evil.example"}) == (403, False)
    assert ask(guarded, "GET", headers=upgrade) == (200, True)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a", ""]
)
@pytest.mark.parametrize("path", ["/graphql", "/report_asset_materialization/world"])
def test_what_a_form_of_any_page_can_send_is_refused(guarded: Any, kind: str, path: str) -> None:
    assert ask(guarded, "POST", path, {"Content-Type": kind}) == (415, False)


def test_no_page_frames_an_interface(guarded: Any) -> None:
    for port in (guarded.dagster, guarded.mlflow):
        answer = requests.get(f"http://127.0.0.1:{port}/", auth=("operator", guarded.password), timeout=10)
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'none'"


def test_the_guard_listens_where_it_is_told(guarded: Any) -> None:
    mine = [
        connection.laddr
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port in (guarded.dagster, guarded.mlflow)
    ]
    assert {address.port for address in mine} == {guarded.dagster, guarded.mlflow}
    assert {address.ip for address in mine} == {"127.0.0.1"}
