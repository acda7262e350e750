"""The production stack: what can be proven of it without a container engine."""

import os
import re
import secrets
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import DagsterInstance

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
SECRET_NAMES = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY")
REQUIRED_VARIABLE = re.compile(r"\$\{\w+:\?[^}]+\}")


def read(name: str) -> Any:
    return yaml.safe_load((DOCKER / name).read_text(encoding="utf-8"))


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = read("compose.yaml")["services"]
    assert {"postgres", "mlflow", "code-location", "webserver", "daemon"} <= set(found)
    return found


def compose_command() -> list[str] | None:
    """A compose tool of the current format (version 2 or later); Debian 12's 1.29 knows the old format only."""
    named = os.environ.get("GEOKR_COMPOSE")
    for command in ([named] if named else ["docker-compose"], ["docker", "compose"]):
        if command[0] is None or shutil.which(command[0]) is None:
            continue
        answer = subprocess.run([*command, "version", "--short"], capture_output=True, text=True, check=False)
        version = answer.stdout.strip().removeprefix("v")
        if answer.returncode == 0 and version[:1].isdigit() and int(version.split(".")[0]) >= 2:
            return command
    return None


def compose_config(**environment: str) -> subprocess.CompletedProcess[str]:
    command = compose_command()
    if command is None:
        pytest.skip("no compose tool of version 2 or later on PATH or in $GEOKR_COMPOSE")
    clean = {name: value for name, value in os.environ.items() if name != "POSTGRES_PASSWORD"}
    # A separate env file, so that a developer's docker/.env does not decide the outcome.
    arguments = ["--env-file", os.devnull, "-f", str(DOCKER / "compose.yaml"), "config"]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, env={**clean, **environment}
    )


def test_hadolint_passes() -> None:
    hadolint = shutil.which("hadolint") or str(Path(sys.executable).parent / "hadolint")
    answer = subprocess.run(
        [hadolint, "--no-color", "--failure-threshold", "warning", str(DOCKER / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_compose_accepts_the_file_and_keeps_every_port_on_loopback() -> None:
    answer = compose_config(POSTGRES_PASSWORD=secrets.token_hex(8))
    assert answer.returncode == 0, answer.stderr
    resolved = yaml.safe_load(answer.stdout)["services"]
    published = {name: port for name, service in resolved.items() for port in service.get("ports", ())}
    assert set(published) == {"mlflow", "webserver"}
    assert {port["host_ip"] for port in published.values()} == {"127.0.0.1"}


def test_compose_refuses_to_start_without_a_password() -> None:
    answer = compose_config()
    assert answer.returncode != 0
    assert "POSTGRES_PASSWORD" in answer.stderr
    assert "docker/.env" in answer.stderr


def test_published_ports_are_bound_to_loopback() -> None:
    # Without the address in front, the engine publishes on every interface, past most firewalls.
    ports = [port for service in services().values() for port in service.get("ports", ())]
    assert ports
    assert [port for port in ports if not str(port).startswith("127.0.0.1:")] == []


def test_every_service_tells_its_health_and_waits_for_the_health_of_what_it_needs() -> None:
    for name, service in services().items():
        assert service["healthcheck"]["test"], name
        needs = service.get("depends_on", {})
        assert isinstance(needs, dict), f"{name}: depends_on without a condition waits for the start only"
        assert {need["condition"] for need in needs.values()} <= {"service_healthy"}, name
    assert [name for name, service in services().items() if not service.get("depends_on")] == ["postgres"]


def test_mlflow_gets_time_to_come_up() -> None:
    period = services()["mlflow"]["healthcheck"]["start_period"]
    assert int(period.removesuffix("s")) >= 60


def environment_values() -> Iterator[tuple[str, str, str]]:
    for service, content in services().items():
        for name, value in content.get("environment", {}).items():
            yield service, name, str(value)


def test_no_password_is_written_down() -> None:
    seen = 0
    for service, name, value in environment_values():
        if SECRET_NAMES.search(name):
            assert REQUIRED_VARIABLE.fullmatch(value), f"{service}.{name}"
            seen += 1
        for password in re.findall(r"://[^:/@]+:(.+)@", value):
            assert REQUIRED_VARIABLE.fullmatch(password), f"{service}.{name}"
            seen += 1
    assert seen >= 3
    assert "POSTGRES_PASSWORD=\n" in (DOCKER / ".env.example").read_text(encoding="utf-8")
    assert read("dagster.yaml")["storage"]["postgres"]["postgres_db"]["password"] == {"env": "DAGSTER_PG_PASSWORD"}


def test_no_password_stands_on_a_command_line() -> None:
    for name, service in services().items():
        assert "PASSWORD" not in str(service.get("command", "")), name


def test_both_tools_name_the_postgres_driver_that_works() -> None:
    # SQLAlchemy 2.1 takes `postgresql://` for psycopg 3, which is not installed and which Dagster does not support.
    assert read("dagster.yaml")["storage"]["postgres"]["postgres_db"]["scheme"] == "postgresql+psycopg2"
    uris = [value for _, _, value in environment_values() if "@postgres:" in value]
    assert [uri.split("://")[0] for uri in uris] == ["postgresql+psycopg2"]


def test_each_tool_has_a_database_of_its_own() -> None:
    made = set(re.findall(r"CREATE DATABASE (\w+);", (DOCKER / "postgres/10-databases.sql").read_text("utf-8")))
    used = {value.rsplit("/", 1)[1] for _, _, value in environment_values() if "@postgres:" in value}
    used |= {value for _, name, value in environment_values() if name == "DAGSTER_PG_DB"}
    assert used == made == {"dagster", "mlflow"}


def test_mlflow_answers_to_its_name_in_the_stack() -> None:
    (option,) = [a for a in services()["mlflow"]["command"] if a.startswith("--allowed-hosts=")]
    hosts = option.removeprefix("--allowed-hosts=").split(",")
    asked = services()["code-location"]["environment"]["MLFLOW_TRACKING_URI"].removeprefix("http://").split(":")[0]
    assert {f"{asked}:*", "localhost:*", "127.0.0.1:*"} <= set(hosts)
    assert "*" not in hosts


def test_the_location_has_one_name_everywhere() -> None:
    (local,) = yaml.safe_load((ROOT / "workspace.yaml").read_text(encoding="utf-8"))["load_from"]
    (stack,) = read("workspace.yaml")["load_from"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["dagster"]
    command = services()["code-location"]["command"]
    assert (
        local["python_module"]["location_name"]
        == stack["grpc_server"]["location_name"]
        == project["code_location_name"]
        == "geokr"
    )
    assert "--location-name=geokr" in command
    assert f"--module-name={local['python_module']['module_name']}" in command
    assert find_spec(local["python_module"]["module_name"]) is not None


def test_webserver_and_daemon_look_for_the_code_where_it_listens() -> None:
    (stack,) = read("workspace.yaml")["load_from"]
    host, port = stack["grpc_server"]["host"], stack["grpc_server"]["port"]
    assert f"--port={port}" in services()[host]["command"]
    assert f"--port={port}" in services()[host]["healthcheck"]["test"]


def test_dagster_accepts_the_instance_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A misspelt setting ends every Dagster process of the stack at its start. The Postgres storage itself comes with
    # the `production` extra and is left out here.
    settings = {key: value for key, value in read("dagster.yaml").items() if key != "storage"}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.telemetry_enabled is False
        assert instance.run_monitoring_enabled
        assert instance.get_concurrency_config().pool_config.default_pool_limit == 1


def dockerfile() -> str:
    return (DOCKER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


def test_the_image_does_not_run_as_root() -> None:
    final_stage = dockerfile().split("FROM ")[-1]
    (user,) = re.findall(r"^USER (\d+):(\d+)$", final_stage, flags=re.MULTILINE)
    assert "0" not in user


def test_what_the_image_copies_exists_and_is_let_into_the_build() -> None:
    copied = {
        source
        for line in re.findall(r"^COPY (.+)$", dockerfile(), flags=re.MULTILINE)
        if "--from=" not in line
        for source in [word for word in line.split() if not word.startswith("--")][:-1]
    }
    assert copied
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    assert {source for source in copied if not (ROOT / source).exists()} == set()
    assert allowed == copied
