"""MLflow's database for a backup, and back: SQLite by its backup interface, PostgreSQL by ``pg_dump`` and ``pg_restore``.

Passwords go by environment: on a command line every user of the machine could read them.
"""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from sqlalchemy import create_engine, inspect
from sqlalchemy.engine import URL, make_url

from geokr_core.errors import BackupError
from geokr_core.tracking.server import first_line, sqlite_file

ARTIFACTS: Final = "mlruns"
"""Folder of artifacts beside an SQLite database."""

_PLACES: Final = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
"""Columns of MLflow's tables that name files, for a database that is restored to another folder."""


def is_postgres(uri: str) -> bool:
    """Whether a tracking URI names a PostgreSQL database."""
    return uri.startswith(("postgresql", "postgres:"))


def artifact_folders(uri: str) -> tuple[list[Path], list[str]]:
    """Where the artifacts of a database's experiments lie.

    Returns:
        Folders of this machine, and addresses of what lies elsewhere.
    """
    database = sqlite_file(uri)
    if database is not None:
        return [database.parent / ARTIFACTS], []
    engine = create_engine(uri)
    try:
        with engine.connect() as connection:
            rows = connection.exec_driver_sql("SELECT artifact_location FROM experiments").fetchall()
    finally:
        engine.dispose()
    places = sorted({str(place) for (place,) in rows if place})
    local = [Path(unquote(urlsplit(place).path)) for place in places if place.startswith(("file:", "/"))]
    return local, [place for place in places if not place.startswith(("file:", "/"))]


def dump_postgres(uri: str, target: Path) -> None:
    """Write a dump of a PostgreSQL database in its own compressed form.

    Raises:
        BackupError: pg_dump is missing or refuses.
    """
    url = make_url(uri)
    _run(["pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--file={target}", *_connection(url)], url)


def restore_postgres(dump: Path, uri: str) -> None:
    """Fill an empty PostgreSQL database from a dump.

    Raises:
        BackupError: the database holds tables already, or pg_restore is missing or refuses.
    """
    require_empty(uri)
    url = make_url(uri)
    _run(["pg_restore", "--no-owner", "--no-privileges", "--exit-on-error", *_connection(url), str(dump)], url)


def require_empty(uri: str) -> None:
    """Refuse a PostgreSQL database that holds anything.

    Raises:
        BackupError: it holds tables.
    """
    url = make_url(uri)
    engine = create_engine(uri)
    try:
        tables = inspect(engine).get_table_names()
    finally:
        engine.dispose()
    if tables:
        raise BackupError(
            f"The database {url.database} holds {len(tables)} tables already. Restore into an empty one: "
            "`createdb NAME`, and point MLFLOW_TRACKING_URI at it."
        )


def _connection(url: URL) -> list[str]:
    given = {"host": url.host, "port": url.port, "username": url.username, "dbname": url.database}
    return [f"--{name}={value}" for name, value in given.items() if value is not None]


def _run(command: Sequence[str], url: URL) -> None:
    if shutil.which(command[0]) is None:
        raise BackupError(f"{command[0]} is not installed; on Debian: apt-get install postgresql-client.")
    environment = dict(os.environ) if url.password is None else {**os.environ, "PGPASSWORD": str(url.password)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise BackupError(f"{command[0]} refused: {first_line(RuntimeError(done.stderr))}")


def move_places(database: Path, before: Path, after: Path) -> int:
    """Point the rows of an SQLite database that name files below one folder at another one.

    Args:
        database: of MLflow.
        before: folder of artifacts when the backup was made.
        after: folder of artifacts now.

    Returns:
        Rows that were changed.
    """
    changed = 0
    with closing(sqlite3.connect(database)) as connection, connection:
        for table, columns in _PLACES.items():
            there = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            for column in there & set(columns):
                for old, new in ((before.as_uri(), after.as_uri()), (str(before), str(after))):
                    done = connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",  # noqa: S608  (names of our own table)
                        (new, len(old) + 1, len(old), old),
                    )
                    changed += done.rowcount
    return changed
