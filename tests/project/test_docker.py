"""The production stack: what can be proven of it without a container engine."""

import dataclasses
import os
import re
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
from stack.errors import StackError
from stack.images import pin_images
from stack.settings import make_secrets, read_settings

from geokr_assets.step_process import SECONDS_TO_STOP

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
SECRET_NAMES = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|AUTH_KEY")


def read(name: str) -> Any:
    return yaml.safe_load((DOCKER / name).read_text(encoding="utf-8"))


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = read("compose.yaml")["services"]
    assert {"postgres", "objects", "mlflow", "code-location", "webserver", "daemon", "guard"} <= set(found)
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


def compose_config(*options: str) -> subprocess.CompletedProcess[str]:
    command = compose_command()
    if command is None:
        pytest.skip("no compose tool of version 2 or later on PATH or in $GEOKR_COMPOSE")
    arguments = ["--env-file", str(DOCKER / "stack.env"), "-f", str(DOCKER / "compose.yaml"), *options, "config"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


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
    answer = compose_config("--profile", "celery")
    assert answer.returncode == 0, answer.stderr
    resolved = yaml.safe_load(answer.stdout)["services"]
    published = {name: port for name, service in resolved.items() for port in service.get("ports", ())}
    assert set(published) == {"guard", "objects"}
    assert {port["host_ip"] for port in published.values()} == {"127.0.0.1"}


def settings() -> dict[str, str]:
    from stack.settings import SETTINGS, _values

    return dict(_values(SETTINGS))


def test_every_setting_of_compose_is_in_the_settings_file() -> None:
    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    wanted = set(re.findall(r"(?<!\$)\$\{(\w+)", text))
    assert wanted <= set(settings())
    # And each is used, by compose or by the processes.
    used = (DOCKER / "stack" / "settings.py").read_text(encoding="utf-8")
    assert {name for name in settings() if name not in wanted and f'"{name}"' not in used} == set()


def test_published_ports_are_bound_to_loopback() -> None:
    # Without the address in front, the engine publishes on every interface, past most firewalls.
    ports = {name: port for name, service in services().items() for port in service.get("ports", ())}
    assert set(ports) == {"guard", "objects"}
    assert [port for port in ports.values() if not port.startswith(("127.0.0.1:", "${GUARD_ADDRESS}:"))] == []
    assert settings()["GUARD_ADDRESS"] == "127.0.0.1"


def test_every_service_tells_its_health_and_waits_for_the_health_of_what_it_needs() -> None:
    for name, service in services().items():
        needs = service.get("depends_on", {})
        assert isinstance(needs, dict), f"{name}: depends_on without a condition waits for the start only"
        for other, need in needs.items():
            ends = other == "accounts"
            assert need["condition"] == ("service_completed_successfully" if ends else "service_healthy"), name
        if name != "accounts":
            assert service["healthcheck"]["test"], name
    alone = {name for name, service in services().items() if not service.get("depends_on")}
    assert alone == {"postgres", "objects", "redis"}


def test_every_service_is_hardened_limited_and_keeps_little_log() -> None:
    for name, service in services().items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["deploy"]["resources"]["limits"]["memory"], name
        assert service["logging"]["options"] == {"max-size": "10m", "max-file": "5"}, name
        if service["image"].startswith("${"):
            assert service["user"].split(":")[0] != "0", name


def test_volumes_lie_over_folders_that_their_user_may_write_to() -> None:
    # A new volume takes its owner from the folder of the image below it; without one it is root's, and no service is root.
    dockerfile = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    (made,) = re.findall(r"install -d -o geokr -g geokr ((?:[^&]|\\\n)*?)\n", dockerfile.replace("\\\n", " "))
    theirs = {"postgres": {"/var/lib/postgresql/data"}, "redis": {"/data"}}  # by their images' Dockerfiles
    for name, service in services().items():
        mounted = [volume for volume in service.get("volumes", ()) if not volume.startswith("./")]
        folders = {volume.rsplit(":", 1)[1] for volume in mounted}
        assert folders <= theirs.get(name, set(made.split())), name


def test_a_training_has_time_for_its_checkpoint() -> None:
    for name in ("code-location", "worker"):
        assert int(services()[name]["stop_grace_period"].removesuffix("s")) > SECONDS_TO_STOP


def test_both_ways_to_start_the_stack_have_the_same_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stack import services as processes

    monkeypatch.setattr(processes, "program", lambda name: f"/usr/bin/{name}")
    wanted = dataclasses.replace(read_settings(), executor="celery", celery_workers=1, folder=tmp_path)
    table = {service.name: service for service in processes.services_of(wanted, processes.free_ports(wanted))}
    table["worker"] = table.pop("worker-1")
    composed = services()
    assert set(table) == set(composed) - {"accounts"}
    for name, service in table.items():
        names = set(composed[name].get("environment", {}))
        if composed[name].get("image") == "geokr:0.1.0":
            assert names == set(service.environment) - {"DAGSTER_HOME"}, name  # the image sets that one
            assert composed[name]["command"][0] == Path(service.command[0]).name


def test_every_service_gets_as_long_to_come_up_as_in_the_stack_of_processes() -> None:
    from stack.processes import START_SECONDS

    # With less, `up` gives up on a busy machine, seconds before the service is healthy.
    checks = {name: service["healthcheck"] for name, service in services().items() if name != "accounts"}
    assert {name: check.get("start_period") for name, check in checks.items()} == dict.fromkeys(
        checks, f"{START_SECONDS:.0f}s"
    )


def test_checks_of_health_use_no_name_that_their_service_does_not_set() -> None:
    # Docker sets HOSTNAME in a container, also for a check; podman does not, and the worker was never healthy.
    for name, service in services().items():
        test = service.get("healthcheck", {}).get("test", ())
        used = {word for part in test for word in re.findall(r"\$\$\{?(\w+)", part)}
        assert used <= set(service.get("environment", {})), name


def environment_values() -> Iterator[tuple[str, str, str]]:
    for service, content in services().items():
        for name, value in content.get("environment", {}).items():
            yield service, name, str(value)


def test_every_secret_is_a_file_and_each_service_has_only_its_own() -> None:
    seen = set()
    for service, name, value in environment_values():
        if value.startswith("/run/secrets/"):
            secret = value.removeprefix("/run/secrets/")
            assert secret in services()[service]["secrets"], f"{service} reads {secret}"
            seen.add(secret)
        else:
            assert not SECRET_NAMES.search(name) or name == "GEOKR_SECRETS", f"{service}.{name}"
        assert not re.search(r"://[^/@]*:[^/@]+@", value), f"{service}.{name}"
    assert len(seen) >= 10
    asked = {secret for service in services().values() for secret in service.get("secrets", ())}
    assert asked == set(read("compose.yaml")["secrets"])
    assert read("dagster.yaml")["storage"]["postgres"]["postgres_db"]["password"] == {"env": "DAGSTER_PG_PASSWORD"}


def test_the_secrets_of_compose_are_those_that_are_made(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on PATH (Debian: apt-get install openssl)")
    make_secrets(tmp_path / "secrets")
    made = {path.name for path in (tmp_path / "secrets").iterdir()}
    assert {content["file"].rsplit("/", 1)[1] for content in read("compose.yaml")["secrets"].values()} <= made
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    before = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    make_secrets(tmp_path / "secrets")
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == before
    assert before["postgres_superuser"] not in before["guard_accounts"]
    assert before["guard_operator"] not in before["guard_accounts"]


def test_with_secrets_gives_files_to_the_program_alone(tmp_path: Path) -> None:
    (tmp_path / "key").write_text('it\'s $a "secret"')
    environment = {"PATH": os.environ["PATH"], "SECRET_FILE_MY_KEY": str(tmp_path / "key")}
    code = "import os; print(os.environ['MY_KEY'], 'SECRET_FILE_MY_KEY' in os.environ)"
    command = [str(DOCKER / "with-secrets"), sys.executable, "-c", code]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.stdout == 'it\'s $a "secret" False\n'
    environment["SECRET_FILE_MY_KEY"] += "s"
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert f"{tmp_path}/keys cannot be read; it holds MY_KEY" in answer.stderr


def rendered(environment: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Services as compose has them after its substitutions: by the tool where there is one, else as its rules say."""
    command = compose_command()
    if command is not None:
        arguments = ["--env-file", str(DOCKER / "stack.env"), "-f", str(DOCKER / "compose.yaml"), "--profile", "celery"]
        answer = subprocess.run(
            [*command, *arguments, "config"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        return dict(yaml.safe_load(answer.stdout)["services"])
    values = {**settings(), **environment}  # the environment of who starts it comes before the file
    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    text = re.sub(r"(?<!\$)\$\{(\w+)(?::?-[^}]*)?\}", lambda found: values[found[1]], text)
    return dict(yaml.safe_load(text)["services"])


def test_docker_inspect_shows_no_secret(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on PATH (Debian: apt-get install openssl)")
    make_secrets(tmp_path)
    values = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    # Who starts the stack may have each of them in the environment as well, under the names that programs look for.
    names = {name for _, name, _ in environment_values()}
    environment = {name.upper(): value.replace("\n", " ") for name, value in values.items()}
    environment |= {
        name.removeprefix("SECRET_FILE_"): "planted-in-the-environment" for name in names if SECRET_NAMES.search(name)
    }
    found = rendered({**environment, "GEOKR_SECRETS": str(tmp_path)})
    assert {"worker", "code-location", "mlflow"} <= set(found)
    planted = {word for value in values.values() for word in re.findall(r"[\w$./]{16,}", value)}
    assert len(planted) >= 12
    for service, content in found.items():
        shown = yaml.safe_dump({name: value for name, value in content.items() if name not in ("secrets", "volumes")})
        assert [word for word in (*planted, "planted-in-the-environment") if word in shown] == [], service
    # Nor does the image: what its build was told and what it sets stands in its history.
    told = re.findall(
        r"^(?:ARG|ENV)\s+(.*(?:\\\n.*)*)", (DOCKER / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert told
    assert [line for line in told if SECRET_NAMES.search(line)] == []


def test_images_are_pinned_by_the_digests_that_their_registries_tell(tmp_path: Path) -> None:
    path = tmp_path / "stack.env"
    path.write_text(f"A=1\nBASE_IMAGE=python:3.12\n# x\nREDIS_IMAGE=redis:7.4@sha256:{'0' * 64}\n", encoding="utf-8")
    digests = {"python:3.12": f"sha256:{'a' * 64}", "redis:7.4": f"sha256:{'b' * 64}"}
    assert pin_images(path, digests.__getitem__) == [f"{tag}@{digest}" for tag, digest in digests.items()]
    wanted = f"A=1\nBASE_IMAGE=python:3.12@sha256:{'a' * 64}\n# x\nREDIS_IMAGE=redis:7.4@sha256:{'b' * 64}\n"
    assert path.read_text(encoding="utf-8") == wanted

    def away(image: str) -> str:
        if image.startswith("redis"):
            raise StackError("away")
        return f"sha256:{'c' * 64}"

    with pytest.raises(StackError, match="away"):
        pin_images(path, away)
    assert path.read_text(encoding="utf-8") == wanted, "half of it was changed"


def test_every_image_of_compose_can_be_pinned() -> None:
    images = {content["image"] for content in services().values() if content["image"] != "geokr:0.1.0"}
    base = next(content for content in services().values() if "build" in content)["build"]["args"]["BASE"]
    assert {name.strip("${}") for name in (*images, base)} == {name for name in settings() if name.endswith("_IMAGE")}
    assert f"ARG BASE={settings()['BASE_IMAGE']}\n" in (DOCKER / "Dockerfile").read_text(encoding="utf-8")


def test_both_tools_name_the_postgres_driver_that_works() -> None:
    # SQLAlchemy 2.1 takes `postgresql://` for psycopg 3, which is not installed and which Dagster does not support.
    assert read("dagster.yaml")["storage"]["postgres"]["postgres_db"]["scheme"] == "postgresql+psycopg2"
    uris = [value for _, _, value in environment_values() if "@postgres:" in value]
    assert [uri.split("://")[0] for uri in uris] == ["postgresql+psycopg2"]


def test_each_tool_has_a_database_and_each_service_a_user() -> None:
    script = (DOCKER / "postgres/10-databases.sql").read_text("utf-8")
    accounts = (DOCKER / "mlflow" / "accounts.ini").read_text("utf-8")
    used = {value.rsplit("/", 1)[1] for _, _, value in environment_values() if "@postgres:" in value}
    used |= {value for _, name, value in environment_values() if name == "DAGSTER_PG_DB"}
    used |= set(re.findall(r"@postgres:5432/(\w+)", accounts))
    assert used == {"dagster", "mlflow", "mlflow_accounts"}
    assert all(f"('{name}', " in script for name in used)
    users = {service: value for service, name, value in environment_values() if name == "DAGSTER_PG_USERNAME"}
    assert len({users[name] for name in ("code-location", "webserver", "daemon")}) == 3
    assert all(f"ALTER ROLE {user} PASSWORD" in script for user in users.values())


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
    assert stack["grpc_server"]["host"] == {"env": "CODE_LOCATION_HOST"}
    assert stack["grpc_server"]["port"] == {"env": "CODE_LOCATION_PORT"}
    for name in ("webserver", "daemon"):
        environment = services()[name]["environment"]
        listening = services()[environment["CODE_LOCATION_HOST"]]
        assert f"--port={environment['CODE_LOCATION_PORT']}" in listening["command"]
        assert f"--port={environment['CODE_LOCATION_PORT']}" in listening["healthcheck"]["test"]


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
