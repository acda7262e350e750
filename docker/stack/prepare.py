"""What a service needs before it starts, and what is made in it after its start: folders, databases, accounts. Safe to repeat."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import requests

from stack.errors import StackError
from stack.services import BUCKETS, LOOPBACK, Ports, Service, guard_configuration
from stack.settings import DOCKER, Settings, program

MLFLOW_USERS = {"pipeline": "mlflow_pipeline", "reader": "mlflow_reader"}
"""Accounts of MLflow beside its `admin`: ``pipeline`` records and promotes, ``reader`` looks and downloads."""


def before_start(settings: Settings, ports: Ports, services: list[Service]) -> None:
    """Folders and settings files of all services.

    Raises:
        StackError: PostgreSQL cannot make its files.
    """
    settings.folder.mkdir(parents=True, exist_ok=True)
    for name in ("logs", "objects", "guard", "mlflow", "redis", "dagster_home"):
        (settings.folder / name).mkdir(exist_ok=True)
    for bucket in BUCKETS:
        (settings.folder / "objects" / bucket).mkdir(exist_ok=True)
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(DOCKER / name, settings.folder / "dagster_home")
    of_compose = (DOCKER / "mlflow" / "accounts.ini").read_text(encoding="utf-8")
    here = of_compose.replace("@postgres:5432/", f"@{LOOPBACK}:{ports.postgres}/")
    (settings.folder / "mlflow" / "accounts.ini").write_text(here, encoding="utf-8")
    password = (settings.secrets / "redis").read_text()
    redis = settings.folder / "redis"
    # Each step on the disk before it is confirmed: the run of a step that was lost would wait for ever.
    kept = f"dir {redis}\nappendonly yes\nappendfsync always"
    _private(redis / "redis.conf", f"bind {LOOPBACK}\nport {ports.redis}\n{kept}\nrequirepass {password}\n")
    _private(redis / "url", f"redis://:{password}@{LOOPBACK}:{ports.redis}/0")
    _guard(settings, ports, next(service.user for service in services if service.name == "guard"))
    _database_cluster(settings, next(service.user for service in services if service.name == "postgres"))


def _private(path: Path, content: str) -> None:
    path.touch(mode=0o600)
    path.write_text(content, encoding="utf-8")


def _guard(settings: Settings, ports: Ports, user: str | None) -> None:
    folder = settings.folder / "guard"
    configuration = guard_configuration(
        folder=folder,
        names=settings.guard_names,
        dagster=(f"{settings.guard_address}:{ports.dagster}", f"{LOOPBACK}:{ports.inner_dagster}"),
        mlflow=(f"{settings.guard_address}:{ports.mlflow}", f"{LOOPBACK}:{ports.inner_mlflow}"),
    )
    (folder / "nginx.conf").write_text(configuration, encoding="utf-8")
    _private(folder / "accounts", (settings.secrets / "guard_accounts").read_text(encoding="utf-8"))
    own(folder, user)


def own(folder: Path, user: str | None) -> None:
    """Give a folder and what is in it to the account that its service runs under, where root starts the stack."""
    if os.geteuid() != 0 or user is None:
        return
    account = pwd.getpwnam(user)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def _database_cluster(settings: Settings, user: str | None) -> None:
    folder = settings.folder / "postgres"
    if (folder / "PG_VERSION").is_file():
        return
    folder.mkdir(exist_ok=True)
    own(folder, user)
    password = folder.with_name("first_password")
    _private(password, (settings.secrets / "postgres_superuser").read_text() + "\n")
    own(password, user)
    made = subprocess.run(
        [
            *(program("initdb"), "-D", str(folder), "-U", "postgres"),
            *("-A", "scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8", f"--pwfile={password}"),
        ],
        user=user if os.geteuid() == 0 else None,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    password.unlink()
    if made.returncode != 0:
        raise StackError(
            f"PostgreSQL could not make its files in {folder}: {made.stderr.strip()}. Where root starts the stack, the account "
            f"{user!r} must be able to reach that folder (GEOKR_STACK in the settings)."
        )


def databases(settings: Settings, ports: Ports) -> None:
    """Databases and users, as `docker/postgres/10-databases.sql` says.

    Raises:
        StackError: PostgreSQL refuses.
    """
    script = str(DOCKER / "postgres" / "10-databases.sql")
    password = (settings.secrets / "postgres_superuser").read_text()
    made = subprocess.run(
        [program("psql"), "-h", LOOPBACK, "-p", str(ports.postgres), "-U", "postgres", "-qf", script],
        env={**os.environ, "PGPASSWORD": password, "GEOKR_SECRETS": str(settings.secrets)},
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise StackError(f"The databases could not be made: {made.stderr.strip()}")


def accounts(settings: Settings, ports: Ports) -> None:
    """Accounts of MLflow, with the passwords of the secret files.

    Raises:
        StackError: MLflow refuses.
    """
    make_accounts(f"http://{LOOPBACK}:{ports.inner_mlflow}", settings.secrets)


def make_accounts(server: str, secrets: Path) -> None:
    """Make the accounts of `MLFLOW_USERS`, or give them the passwords of the secret files.

    Raises:
        StackError: MLflow refuses.
    """
    users, admin = f"{server}/api/2.0/mlflow/users", ("admin", (secrets / "mlflow_admin").read_text())
    for name, secret in MLFLOW_USERS.items():
        account = {"username": name, "password": (secrets / secret).read_text()}
        answer = requests.post(f"{users}/create", json=account, auth=admin, timeout=60)
        if answer.status_code == requests.codes.bad_request and "ALREADY_EXISTS" in answer.text:
            answer = requests.patch(f"{users}/update-password", json=account, auth=admin, timeout=60)
        if not answer.ok:
            raise StackError(f"MLflow refused to make the account {name!r}: {answer.status_code} {answer.text[:300]}")


AFTER_START: Mapping[str, Callable[[Settings, Ports], None]] = {"postgres": databases, "mlflow": accounts}
"""What is done once a service is healthy, and before those that need it start."""
