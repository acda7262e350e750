"""The whole stack as `make stack` starts it: the chain through the guard, artifacts and DVC in the object store, rights, the end.

One stack for the file, so the order of the tests matters: the chain comes first.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from opened_pages import CHROMIUM, needs_chromium
from running_stack import started
from stack.services import listens
from tiny_worlds import tiny_world

REPOSITORY = Path(__file__).parents[2]
MODEL = "geokr-resnet18"
SECRETS = (
    "postgres_superuser",
    "db_webserver",
    "db_mlflow",
    "mlflow_admin",
    "mlflow_pipeline",
    "guard_operator",
    "s3_secret_key",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def stack(open_folder: Path) -> Iterator[Any]:
    params = tiny_world(open_folder / "project")
    with started(open_folder, GEOKR_PARAMS=params) as running:
        yield running


def client_environment(stack: Any, user: str | None) -> dict[str, str]:
    """Of someone who reaches MLflow through the guard."""
    login = (
        {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": stack.secret(f"mlflow_{user}")} if user else {}
    )
    return {**stack.environment, "MLFLOW_TRACKING_URI": stack.url("mlflow"), **login}


def launched_in_a_browser(stack: Any) -> str:
    """Log in, open the job, press *Launch Run*; the run's id."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        login = {"username": "operator", "password": stack.secret("guard_operator")}
        page = browser.new_context(http_credentials=login).new_page()  # type: ignore[arg-type]
        page.set_default_timeout(120_000)
        page.goto(f"{stack.url('dagster')}/locations/geokr/jobs/whole_chain/playground")
        page.get_by_role("button", name="Launch Run").click()
        page.wait_for_url("**/runs/*")
        run_id = str(page.url).rpartition("/")[2]
        browser.close()
    return run_id


def test_the_chain_runs_behind_the_guard(stack: Any) -> None:
    run_id = launched_in_a_browser(stack) if CHROMIUM else stack.launch("whole_chain")
    assert stack.end_of(run_id, 1200) == "SUCCESS"
    store = stack.folder / "project" / "store"
    assert (store / "champion").exists()
    # What the run printed can be read in the interface: web server and runs share the folder.
    assert list((stack.folder / "stack" / "dagster_home" / "storage").rglob("*"))


@needs_chromium
def test_a_browser_gets_in_with_the_password_only(stack: Any) -> None:
    from playwright.sync_api import Error, expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        stranger = browser.new_page()
        with pytest.raises(Error, match="ERR_INVALID_AUTH_CREDENTIALS"):
            stranger.goto(f"{stack.url('dagster')}/runs")
        login = {"username": "operator", "password": stack.secret("guard_operator")}
        context = browser.new_context(http_credentials=login)  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(f"{stack.url('dagster')}/runs")
        expect(page.get_by_text("Success", exact=True).first).to_be_visible(timeout=60_000)
        # Subscriptions come over a WebSocket: the log of a run is one.
        with page.expect_websocket(timeout=30_000) as socket:
            page.goto(f"{stack.url('dagster')}/locations/geokr/jobs/whole_chain")
            page.goto(f"{stack.url('dagster')}/runs")
            page.get_by_role("link").filter(has_text="whole_chain").first.click()
        assert "/graphql" in socket.value.url
        browser.close()


def test_a_mutation_by_get_and_a_foreign_name_do_not_reach_the_real_server(stack: Any) -> None:
    login = ("operator", stack.secret("guard_operator"))
    mutation = 'mutation{deleteRun(runId:"a"){__typename}}'
    url = f"{stack.url('dagster')}/graphql"
    assert requests.get(url, params={"query": mutation}, auth=login, timeout=10).status_code == 405
    foreign = {"Host": "evil.example"}
    assert requests.post(url, json={"query": mutation}, headers=foreign, auth=login, timeout=10).status_code == 421
    # The same without the guard is what it is there for.
    inner = requests.get(f"{stack.url('inner_dagster')}/graphql", params={"query": mutation}, timeout=10)
    assert inner.status_code == 200


def test_artifacts_are_in_the_object_store_and_only_with_its_key(stack: Any) -> None:
    import boto3
    from botocore.exceptions import ClientError

    objects = stack.folder / "stack" / "objects" / "geokr-artifacts"
    names = {path.name for path in objects.rglob("*") if path.is_file()}
    assert "backbone.safetensors" in names
    assert requests.get(f"{stack.url('s3')}/geokr-artifacts", timeout=10).status_code == 400  # unsigned
    key = {"aws_access_key_id": "geokr", "region_name": "us-east-1"}
    for secret, allowed in (("wrong", False), (stack.secret("s3_secret_key"), True)):
        client = boto3.client("s3", endpoint_url=stack.url("s3"), aws_secret_access_key=secret, **key)
        if allowed:
            assert client.list_objects_v2(Bucket="geokr-artifacts")["KeyCount"] > 0
        else:
            with pytest.raises(ClientError):
                client.list_objects_v2(Bucket="geokr-artifacts")


def download(stack: Any, user: str | None, to: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "geokr_core.cli", "download", f"{MODEL}@champion", "--to", str(to)]
    return subprocess.run(
        command,
        cwd=to.parent,
        env={**client_environment(stack, user), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_champion_is_downloaded_with_rights_and_refused_without(stack: Any, tmp_path: Path) -> None:
    with_rights = download(stack, "reader", tmp_path / "champion")
    assert with_rights.returncode == 0, with_rights.stderr
    weights = "backbone.safetensors"
    made = stack.folder / "project" / "store" / "backbone" / weights
    assert (tmp_path / "champion" / weights).read_bytes() == made.read_bytes()
    without = download(stack, None, tmp_path / "nothing")
    assert without.returncode == 2
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(("user", "allowed"), [("reader", False), ("pipeline", True)])
def test_a_reader_promotes_nothing(stack: Any, user: str, allowed: bool) -> None:
    login = (user, stack.secret(f"mlflow_{user}"))
    api = f"{stack.url('mlflow')}/api/2.0/mlflow"
    alias = {"name": MODEL, "alias": "tried", "version": "1"}
    answer = requests.post(f"{api}/registered-models/alias", json=alias, auth=login, timeout=30)
    assert answer.status_code == (200 if allowed else 403), answer.text
    tag = {"name": MODEL, "key": "tried", "value": "1"}
    answer = requests.post(f"{api}/registered-models/set-tag", json=tag, auth=login, timeout=30)
    assert answer.status_code == (200 if allowed else 403), answer.text
    found = requests.get(
        f"{api}/registered-models/alias", params={"name": MODEL, "alias": "champion"}, auth=login, timeout=30
    )
    assert found.json()["model_version"]["version"] == "1"


def test_dvc_pushes_to_the_object_store_and_pulls_the_same_bytes(stack: Any, tmp_path: Path) -> None:
    def command(*words: str) -> None:
        done = subprocess.run(words, cwd=tmp_path, env=stack.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"

    shutil.copytree(stack.folder / "project" / "store" / "levir_kr", tmp_path / "levir_kr")
    before = {path.name: path.read_bytes() for path in (tmp_path / "levir_kr").iterdir()}
    command("git", "init", "-q")
    dvc = str(Path(sys.executable).parent / "dvc")
    command(dvc, "init", "-q")
    command(dvc, "remote", "add", "--default", "stack", "s3://geokr-dvc")
    command(dvc, "remote", "modify", "stack", "endpointurl", stack.url("s3"))
    command(
        dvc, "remote", "modify", "--local", "stack", "credentialpath", str(stack.folder / "secrets" / "s3_credentials")
    )
    command(dvc, "add", "-q", "levir_kr")
    command(dvc, "push", "-q")
    shutil.rmtree(tmp_path / "levir_kr")
    shutil.rmtree(tmp_path / ".dvc" / "cache")
    command(dvc, "pull", "-q")
    assert {path.name: path.read_bytes() for path in (tmp_path / "levir_kr").iterdir()} == before


def family(stack: Any) -> list[psutil.Process]:
    return psutil.Process(stack.process.pid).children(recursive=True)


def test_nothing_listens_beyond_loopback(stack: Any) -> None:
    ids = {process.pid for process in family(stack)}
    listening = [
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.net_connections("inet")
        if connection.pid in ids and connection.status == psutil.CONN_LISTEN
    ]
    assert {port for _, port in listening} >= set(stack.state["ports"].values()) - {stack.state["ports"]["redis"]}
    # gRPC writes an address of IPv4 as one of IPv6.
    assert {address.removeprefix("::ffff:") for address, _ in listening} == {"127.0.0.1"}


def test_no_secret_stands_on_a_command_line_or_in_a_log(stack: Any) -> None:
    secrets = {name: stack.secret(name) for name in SECRETS}
    lines = []
    for process in family(stack):
        with contextlib.suppress(psutil.NoSuchProcess):
            lines.append(" ".join(process.cmdline()))
    logs = [path.read_text(encoding="utf-8", errors="replace") for path in (stack.folder / "stack" / "logs").iterdir()]
    printed = [path.read_text(errors="replace") for path in (stack.folder / "stack" / "dagster_home").rglob("*.err")]
    assert len(lines) > 8
    assert [name for name, value in secrets.items() if any(value in text for text in lines + logs + printed)] == []


def test_each_service_has_its_database_user_and_reaches_no_other_database(stack: Any) -> None:
    import psycopg2

    at = {"host": "127.0.0.1", "port": stack.state["ports"]["postgres"]}
    with psycopg2.connect(**at, user="postgres", password=stack.secret("postgres_superuser"), dbname="postgres") as one:
        cursor = one.cursor()
        wanted = {("geokr_mlflow", "mlflow"), ("geokr_webserver", "dagster"), ("geokr_daemon", "dagster")}
        found: set[tuple[str, str]] = set()
        deadline = time.monotonic() + 120
        while not wanted <= found:  # Dagster's sessions are short
            cursor.execute("SELECT usename, datname FROM pg_stat_activity WHERE usename LIKE 'geokr%'")
            found |= set(cursor.fetchall())
            one.commit()
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
    with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
        psycopg2.connect(**at, user="geokr_webserver", password=stack.secret("db_webserver"), dbname="mlflow")
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(**at, user="geokr_daemon", password=stack.secret("db_webserver"), dbname="dagster")


def test_what_dies_is_started_again(stack: Any) -> None:
    old = stack.pid("objects")
    os.kill(old, 9)
    deadline = time.monotonic() + 60
    while stack.pid("objects") == old or not listens(stack.state["ports"]["s3"]):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert stack.state["services"]["objects"]["restarts"] >= 1


def test_the_end_leaves_no_process_and_keeps_everything(stack: Any) -> None:
    everyone = family(stack)
    stack.process.terminate()
    assert stack.process.wait(timeout=200) == 0
    assert [process for process in everyone if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    said = (stack.folder / "supervisor.log").read_text(encoding="utf-8")
    assert "killed" not in said, said
    assert not (stack.folder / "stack" / "state.json").exists()
    with started(stack.folder, GEOKR_PARAMS=stack.folder / "project" / "params.yaml") as again:
        login = ("reader", again.secret("mlflow_reader"))
        found = requests.get(
            f"{again.url('mlflow')}/api/2.0/mlflow/registered-models/alias",
            params={"name": MODEL, "alias": "champion"},
            auth=login,
            timeout=30,
        )
        assert found.json()["model_version"]["version"] == "1"
        runs = again.ask("{runsOrError{... on Runs{results{status}}}}")["runsOrError"]["results"]
        assert json.dumps(runs).count("SUCCESS") == 1
