"""Settings of the stack (`docker/stack.env`), where its files lie, and its secrets, one file each."""

import secrets
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stack.errors import StackError

DOCKER = Path(__file__).resolve().parents[1]
PROJECT = DOCKER.parent
SETTINGS = DOCKER / "stack.env"

PASSWORDS = (
    "postgres_superuser",
    "db_webserver",
    "db_daemon",
    "db_code_location",
    "db_mlflow",
    "mlflow_admin",
    "mlflow_pipeline",
    "mlflow_reader",
    "mlflow_session_key",
    "guard_operator",
    "s3_secret_key",
    "redis",
)
"""Secrets that are drawn at random; every other secret file is made of these."""

S3_USER = "geokr"
DEBIAN_PACKAGES = {
    "postgres": "postgresql",
    "initdb": "postgresql",
    "psql": "postgresql-client",
    "nginx": "nginx-light",
    "redis-server": "redis-server",
    "openssl": "openssl",
    "skopeo": "skopeo",
}


@dataclass(frozen=True)
class Settings:
    """What the settings file says.

    Attributes:
        guard_address: address that both interfaces are served at.
        guard_names: host names under which they answer.
        dagster_port: port of Dagster behind the guard; 0: a free one.
        mlflow_port: port of MLflow behind the guard; 0: a free one.
        s3_port: port of the object store; 0: a free one.
        params: parameter file of the chain.
        executor: ``$GEOKR_EXECUTOR``.
        scenes_per_run: ``$GEOKR_SCENES_PER_RUN``.
        training_processes: ``$GEOKR_TRAINING_PROCESSES``.
        celery_workers: worker processes, with the executor ``celery`` only.
        secrets: folder of secret files.
        folder: databases, objects and logs.
    """

    guard_address: str
    guard_names: tuple[str, ...]
    dagster_port: int
    mlflow_port: int
    s3_port: int
    params: Path
    executor: str
    scenes_per_run: int
    training_processes: int
    celery_workers: int
    secrets: Path
    folder: Path


def read_settings(path: Path = SETTINGS) -> Settings:
    """The settings of a file.

    Raises:
        StackError: the file is missing, lacks a name, or a number is none.
    """
    if not path.is_file():
        raise StackError(f"{path}: no such settings file; {SETTINGS} is the one that comes with the project.")
    values = _values(path)
    try:
        return Settings(
            guard_address=values["GUARD_ADDRESS"],
            guard_names=tuple(values["GUARD_NAMES"].split()),
            dagster_port=int(values["DAGSTER_PORT"]),
            mlflow_port=int(values["MLFLOW_PORT"]),
            s3_port=int(values["S3_PORT"]),
            params=PROJECT / values["GEOKR_PARAMS"],
            executor=values["GEOKR_EXECUTOR"],
            scenes_per_run=int(values["GEOKR_SCENES_PER_RUN"]),
            training_processes=int(values["GEOKR_TRAINING_PROCESSES"]),
            celery_workers=int(values["CELERY_WORKERS"]),
            secrets=(path.parent / values["GEOKR_SECRETS"]).resolve(),
            folder=(path.parent / values["GEOKR_STACK"]).resolve(),
        )
    except KeyError as missing:
        raise StackError(f"{path}: {missing.args[0]} is missing; {SETTINGS} shows all names.") from missing
    except ValueError as error:
        raise StackError(f"{path}: a number was expected ({error}).") from error


def _values(path: Path) -> Mapping[str, str]:
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#") and "=" in line)


def program(name: str) -> str:
    """The path of a Debian program.

    Raises:
        StackError: it is not installed; says which package brings it.
    """
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    found = found or next((str(folder / name) for folder in folders if (folder / name).is_file()), None)
    if found is None:
        raise StackError(f"`{name}` was not found. On Debian and Ubuntu: apt-get install {DEBIAN_PACKAGES[name]}")
    return found


def make_secrets(folder: Path) -> None:
    """Make the secret files that are missing; those that exist stay as they are.

    The folder is for its owner alone. In it, the files can be read by all: compose shows each to one container, whose user is another.

    Raises:
        StackError: openssl is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name in PASSWORDS:
        _write(folder / name, lambda: secrets.token_hex(24))

    def of(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    # In quotes: rclone reads its environment as a line of CSV.
    _write(folder / "s3_auth_key", lambda: f'"{S3_USER},{of("s3_secret_key")}"')
    _write(
        folder / "s3_credentials",
        lambda: f"[default]\naws_access_key_id = {S3_USER}\naws_secret_access_key = {of('s3_secret_key')}\n",
    )
    _write(folder / "compose_redis_url", lambda: f"redis://:{of('redis')}@redis:6379/0")
    _write(folder / "guard_accounts", lambda: f"operator:{_hashed(of('guard_operator'))}\n")


def _write(path: Path, content: Callable[[], str]) -> None:
    if path.exists():
        return
    path.touch(mode=0o600)
    path.write_text(content(), encoding="utf-8")
    path.chmod(0o444)


def _hashed(password: str) -> str:
    """A salted hash that nginx understands on every Linux (SHA-512 crypt). The password goes in by stdin."""
    command = [program("openssl"), "passwd", "-6", "-stdin"]
    return subprocess.run(command, input=password, capture_output=True, text=True, check=True).stdout.strip()
