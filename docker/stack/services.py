"""The services of the stack: how each is started, how one sees that it is healthy, and in which order they come up."""

import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stack.settings import DOCKER, PROJECT, Settings, program

LOOPBACK = "127.0.0.1"
BUCKETS = ("geokr-artifacts", "geokr-dvc")
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Ports:
    """Where each service listens; the first three are those of the settings, if these name any."""

    dagster: int
    mlflow: int
    s3: int
    postgres: int
    inner_dagster: int
    inner_mlflow: int
    code_location: int
    redis: int


@dataclass(frozen=True)
class Service:
    """One process of the stack.

    Attributes:
        name: as in the compose file.
        command: program and arguments; no secret among them.
        healthy: whether it answers.
        environment: what it gets beside the environment of the caller; ``SECRET_FILE_X`` becomes X (`docker/with-secrets`).
        needs: services that must be healthy before.
        stop_seconds: that it has to end after SIGTERM.
        user: account that it runs under where root starts the stack, because the program refuses root.
        silence_seconds: that it may be unhealthy for before it is stopped and started again.
    """

    name: str
    command: tuple[str, ...]
    healthy: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    stop_seconds: float = 30.0
    user: str | None = None
    silence_seconds: float = 300.0


def free_ports(settings: Settings) -> Ports:
    """The ports of the settings, and free ones on loopback for everything else."""
    probes = [socket.socket() for _ in range(8)]
    try:
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        free = [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
    wanted = (settings.dagster_port, settings.mlflow_port, settings.s3_port)
    return Ports(*(port or free[k] for k, port in enumerate(wanted)), *free[3:])


def services_of(settings: Settings, ports: Ports) -> list[Service]:
    """All services, each after those that it needs.

    Raises:
        StackError: a Debian program is missing.
    """
    celery = settings.executor == "celery"
    return [
        _postgres(settings, ports),
        _object_store(settings, ports),
        *([_redis(settings, ports)] if celery else []),
        _mlflow(settings, ports),
        _code_location(settings, ports),
        _webserver(settings, ports),
        _daemon(settings, ports),
        *(_worker(settings, ports, k) for k in range(settings.celery_workers if celery else 0)),
        _guard(settings, ports),
    ]


def _postgres(settings: Settings, ports: Ports) -> Service:
    options = {"listen_addresses": LOOPBACK, "port": str(ports.postgres), "unix_socket_directories": ""}
    arguments = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    return Service(
        "postgres",
        (program("postgres"), "-D", str(settings.folder / "postgres"), *arguments),
        healthy=lambda: (
            subprocess.run(
                [program("psql"), "-h", LOOPBACK, "-p", str(ports.postgres), "-U", "postgres", "-qc", "SELECT 1"],
                env={**os.environ, "PGPASSWORD": (settings.secrets / "postgres_superuser").read_text()},
                capture_output=True,
                check=False,
            ).returncode
            == 0
        ),
        user="postgres",
        # Told to end by SIGTERM, it refuses all who come and waits for those who are there: for ever, where a server keeps its connection.
        silence_seconds=30.0,
    )


def _object_store(settings: Settings, ports: Ports) -> Service:
    objects = settings.folder / "objects"
    # Its cache of folders stays on: without it (`--dir-cache-time 0`) rclone 1.75 answers no one any more once two clients write.
    options = ("--addr", f"{LOOPBACK}:{ports.s3}", "--config", os.devnull)
    return Service(
        "objects",
        (str(BIN / "rclone"), "serve", "s3", *options, str(objects)),
        healthy=lambda: listens(ports.s3),
        environment={"SECRET_FILE_RCLONE_AUTH_KEY": str(settings.secrets / "s3_auth_key")},
    )


def _redis(settings: Settings, ports: Ports) -> Service:
    return Service(
        "redis",
        (program("redis-server"), str(settings.folder / "redis" / "redis.conf")),
        healthy=lambda: listens(ports.redis),
    )


def _mlflow(settings: Settings, ports: Ports) -> Service:
    return Service(
        "mlflow",
        (
            *(str(BIN / "mlflow"), "server", "--app-name", "basic-auth"),
            *("--host", LOOPBACK, "--port", str(ports.inner_mlflow), "--workers", "1"),
            *("--allowed-hosts", f"localhost:*,{LOOPBACK}:*"),
            *("--artifacts-destination", f"s3://{BUCKETS[0]}"),
        ),
        healthy=lambda: answers(f"http://{LOOPBACK}:{ports.inner_mlflow}/health"),
        environment={
            "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg2://geokr_mlflow@{LOOPBACK}:{ports.postgres}/mlflow",
            "MLFLOW_AUTH_CONFIG_PATH": str(settings.folder / "mlflow" / "accounts.ini"),
            "MLFLOW_S3_ENDPOINT_URL": f"http://{LOOPBACK}:{ports.s3}",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "AWS_SHARED_CREDENTIALS_FILE": str(settings.secrets / "s3_credentials"),
            "AWS_DEFAULT_REGION": "us-east-1",
            "SECRET_FILE_PGPASSWORD": str(settings.secrets / "db_mlflow"),
            "SECRET_FILE_MLFLOW_AUTH_ADMIN_PASSWORD": str(settings.secrets / "mlflow_admin"),
            "SECRET_FILE_MLFLOW_FLASK_SERVER_SECRET_KEY": str(settings.secrets / "mlflow_session_key"),
        },
        needs=("postgres", "objects"),
    )


def _dagster_environment(settings: Settings, ports: Ports, user: str) -> dict[str, str]:
    """What every process of Dagster is told, with the database user of its service."""
    return {
        "DAGSTER_HOME": str(settings.folder / "dagster_home"),
        "DAGSTER_PG_HOST": LOOPBACK,
        "DAGSTER_PG_PORT": str(ports.postgres),
        "DAGSTER_PG_DB": "dagster",
        "DAGSTER_PG_USERNAME": f"geokr_{user}",
        "SECRET_FILE_DAGSTER_PG_PASSWORD": str(settings.secrets / f"db_{user}"),
        "CODE_LOCATION_HOST": LOOPBACK,
        "CODE_LOCATION_PORT": str(ports.code_location),
        # Without it a run fails that the code location, on a busy machine, does not start within a minute.
        "DAGSTER_GRPC_TIMEOUT_SECONDS": "300",
    }


def _run_environment(settings: Settings, ports: Ports) -> dict[str, str]:
    """What the chain itself is told, wherever its steps run."""
    celery = settings.executor == "celery"
    broker = str(settings.folder / "redis" / "url")
    return {
        **_dagster_environment(settings, ports, "code_location"),
        "GEOKR_PARAMS": str(settings.params),
        "GEOKR_EXECUTOR": settings.executor,
        "GEOKR_SCENES_PER_RUN": str(settings.scenes_per_run),
        "GEOKR_TRAINING_PROCESSES": str(settings.training_processes),
        "GEOKR_MLFLOW_UI_URL": f"http://{settings.guard_names[0]}:{ports.mlflow}",
        "MLFLOW_TRACKING_URI": f"http://{LOOPBACK}:{ports.inner_mlflow}",
        "MLFLOW_TRACKING_USERNAME": "pipeline",
        # What waits for a server that is away outlives the process, and does not lie in a checkout.
        "GEOKR_SPOOL": str(settings.folder / "mlflow_spool"),
        "SECRET_FILE_MLFLOW_TRACKING_PASSWORD": str(settings.secrets / "mlflow_pipeline"),
        **(
            dict.fromkeys(("SECRET_FILE_CELERY_BROKER_URL", "SECRET_FILE_CELERY_RESULT_BACKEND"), broker)
            if celery
            else {}
        ),
    }


def _code_location(settings: Settings, ports: Ports) -> Service:
    return Service(
        "code-location",
        (
            *(str(BIN / "python"), "-m", "geokr_assets.lost_runs"),
            *(str(BIN / "dagster"), "code-server", "start", "--host", LOOPBACK, "--port", str(ports.code_location)),
            *("--module-name", "geokr_assets.definitions", "--location-name", "geokr"),
        ),
        healthy=lambda: serves_code(ports.code_location),
        environment=_run_environment(settings, ports),
        needs=("postgres",),
        # Its runs save a checkpoint first: `SECONDS_TO_STOP` of geokr_assets.step_process, and the end of the runs.
        stop_seconds=120.0,
    )


def _webserver(settings: Settings, ports: Ports) -> Service:
    workspace = settings.folder / "dagster_home" / "workspace.yaml"
    return Service(
        "webserver",
        (
            *(str(BIN / "dagster-webserver"), "--host", LOOPBACK, "--port", str(ports.inner_dagster)),
            *("--workspace", str(workspace)),
        ),
        healthy=lambda: answers(f"http://{LOOPBACK}:{ports.inner_dagster}/server_info"),
        environment=_dagster_environment(settings, ports, "webserver"),
        needs=("code-location",),
    )


def _daemon(settings: Settings, ports: Ports) -> Service:
    workspace = settings.folder / "dagster_home" / "workspace.yaml"
    return Service(
        "daemon",
        (str(BIN / "dagster-daemon"), "run", "--workspace", str(workspace)),
        healthy=lambda: daemons_beat(ports.inner_dagster),
        environment=_dagster_environment(settings, ports, "daemon"),
        # After the web server, so that only one process makes Dagster's tables in a new database.
        needs=("webserver",),
    )


def _worker(settings: Settings, ports: Ports, number: int) -> Service:
    name = f"worker-{number + 1}"
    return Service(
        name,
        (
            *(str(BIN / "celery"), "--app", "geokr_assets.celery_worker", "worker", "--loglevel", "INFO"),
            *("--queues", "dagster", "--concurrency", "1", "--hostname", f"{name}@%h"),
        ),
        healthy=lambda: True,
        environment=_run_environment(settings, ports),
        needs=("redis", "code-location"),
        stop_seconds=120.0,
    )


def _guard(settings: Settings, ports: Ports) -> Service:
    folder = settings.folder / "guard"
    return Service(
        "guard",
        (program("nginx"), "-e", "stderr", "-c", str(folder / "nginx.conf"), "-g", "daemon off;"),
        healthy=lambda: answers(f"http://{settings.guard_address}:{ports.dagster}/", refusal=True),
        needs=("webserver", "mlflow"),
        user="www-data",
    )


def guard_configuration(
    *, folder: Path, names: tuple[str, ...], dagster: tuple[str, str], mlflow: tuple[str, str]
) -> str:
    """The settings of nginx.

    Args:
        folder: where it keeps its files; holds ``accounts``.
        names: host names under which it answers.
        dagster: address and port to listen at, and those to pass requests on to.
        mlflow: likewise.
    """
    template = (DOCKER / "guard" / "nginx.conf.template").read_text(encoding="utf-8")
    filled = {
        "GUARD_FOLDER": str(folder),
        "GUARD_ACCOUNTS": str(folder / "accounts"),
        "GUARD_LOG": str(folder / "access.log"),
        "GUARD_NAMES": " ".join(names),
        "GUARD_LISTEN_DAGSTER": dagster[0],
        "GUARD_DAGSTER": dagster[1],
        "GUARD_LISTEN_MLFLOW": mlflow[0],
        "GUARD_MLFLOW": mlflow[1],
    }
    return re.sub(r"\$\{(\w+)\}", lambda found: filled[found[1]], template)


def listens(port: int) -> bool:
    """Whether something takes connections at a port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0


def answers(url: str, *, refusal: bool = False) -> bool:
    """Whether a server answers with success; ``refusal``: any answer will do."""
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310  # our own server
            return True
    except urllib.error.HTTPError:
        return refusal
    except OSError:
        return False


def serves_code(port: int) -> bool:
    """Whether the code server has loaded the code location (gRPC's own health check)."""
    import grpc
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
    from grpc_health.v1.health_pb2_grpc import HealthStub

    with grpc.insecure_channel(f"{LOOPBACK}:{port}") as channel:
        try:
            answer = HealthStub(channel).Check(HealthCheckRequest(service="DagsterApi"), timeout=5)
        except grpc.RpcError:
            return False
    return bool(answer.status == HealthCheckResponse.SERVING)


def daemons_beat(port: int) -> bool:
    """Whether every daemon that the instance wants has a fresh heartbeat, as the web server sees it."""
    query = json.dumps({"query": "{instance{daemonHealth{allDaemonStatuses{required healthy}}}}"}).encode()
    request = urllib.request.Request(f"http://{LOOPBACK}:{port}/graphql", query, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            found = json.load(answer)["data"]["instance"]["daemonHealth"]["allDaemonStatuses"]
    except (OSError, KeyError, TypeError):
        return False
    return bool(found) and all(one["healthy"] for one in found if one["required"])


WORKING_DIRECTORY = PROJECT
"""Of every service: relative paths of the parameter file are as in a checkout."""
