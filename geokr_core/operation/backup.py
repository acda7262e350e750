"""A backup of a project as one folder, checksummed. Its way back is in ``restore``.

In it: the store, MLflow's database with its artifacts, what waits for MLflow, Dagster's home, and the files that describe the project.
Not in it: raw scenes and land cover, labelled sets and DVC's cache, which the chain only reads, or which ``dvc push`` keeps elsewhere.

Databases are copied first and files after them: whatever a database names was written before.
"""

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from geokr_core import __version__
from geokr_core.chain.params import EXTENDS, Params
from geokr_core.errors import BackupError
from geokr_core.operation.copies import Copies, num_bytes
from geokr_core.operation.disk_use import disk_use
from geokr_core.step.digests import sha256, text_digest
from geokr_core.step.extras import lacking
from geokr_core.step.files import whole_folder, write_json
from geokr_core.step.reporter import LOG, Reporter
from geokr_core.step.strict_yaml import read_yaml
from geokr_core.tracking.spool import spool_folder

MANIFEST: Final = "backup.json"
FORMAT: Final = 1
DUMP: Final = "mlflow.dump"
DATABASE: Final = "mlflow.db"
_DESCRIBING: Final = ("dvc.yaml", "dvc.lock", ".dvc/config", ".dvcignore", "workspace.yaml")


def back_up(params: Params, target: Path, reporter: Reporter = LOG) -> Mapping[str, Any]:
    """Write a backup; it appears whole or not at all.

    Args:
        params: the parameter file.
        target: a new folder.
        reporter: hears what cannot be backed up from here, and how far it is.

    Returns:
        The manifest.

    Raises:
        BackupError: the folder exists, there is too little room, or a database cannot be copied.
        OSError: the file system refused.
    """
    target = target.resolve()
    if target.exists():
        raise BackupError(f"{target}: exists already; name a new folder for each backup.")
    if target.is_relative_to(params.store.resolve()):
        raise BackupError(
            f"{target}: lies in the store, which it is to hold; name a folder elsewhere, best on another disk."
        )
    for place, process in disk_use(params.store).held.items():
        reporter.warning(f"Process {process} holds {place}: a step is at work, and its newest output may be missing.")
    parts = dict(_parts(params))
    _require_room(target, parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(target) as folder:
        folder.chmod(0o700)  # what is in databases and parameters is no one else's business
        copies = Copies(folder)
        tracking = _tracking(copies, reporter)
        with reporter.progress("backup", sum(map(num_bytes, parts.values()))) as advance:
            for name, source in parts.items():
                copies.add_tree(source, folder / name, advance)
        for path in _describing(params):
            copies.add_file(path, folder / "project" / path)
        manifest = _manifest(params, parts, tracking, copies.sha256s)
        write_json(folder / MANIFEST, {**manifest, "digest": text_digest(manifest)})
    return manifest


def _parts(params: Params) -> Iterator[tuple[str, Path]]:
    """Folders of a backup by name, those that exist."""
    found = {"store": params.store, "spool": spool_folder(), "dagster": dagster_home()}
    found |= {f"artifacts-{number}": folder for number, folder in enumerate(_artifacts()[0])}
    yield from ((name, folder) for name, folder in found.items() if folder.is_dir())


def dagster_home() -> Path:
    """Where Dagster keeps its runs: ``DAGSTER_HOME``, or the folder that `make ui` uses."""
    return Path(os.environ.get("DAGSTER_HOME", "") or ".dagster_home")


def _artifacts() -> tuple[list[Path], list[str]]:
    if lacking("mlflow") or not _has_database():
        return [], []
    from geokr_core.tracking.databases import artifact_folders
    from geokr_core.tracking.server import tracking_uri

    return artifact_folders(tracking_uri())


def _has_database() -> bool:
    """Whether MLflow's database can be read from here: it is a file that exists, or PostgreSQL."""
    from geokr_core.tracking.databases import is_postgres
    from geokr_core.tracking.server import sqlite_file, tracking_uri

    uri = tracking_uri()
    database = sqlite_file(uri)
    return is_postgres(uri) if database is None else database.is_file()


def _tracking(copies: Copies, reporter: Reporter) -> Mapping[str, str]:
    """Copy MLflow's database; what it is, and where it lay."""
    if lacking("mlflow"):
        return {"kind": "none"}
    from geokr_core.tracking.databases import dump_postgres, is_postgres
    from geokr_core.tracking.server import sqlite_file, tracking_uri, without_password

    uri = tracking_uri()
    database, place = sqlite_file(uri), without_password(uri)
    for address in _artifacts()[1]:
        reporter.warning(
            f"Artifacts at {without_password(address)} are not in this backup: keep versions of the bucket, or copy it."
        )
    if database is not None:
        if not database.is_file():
            return {"kind": "none"}
        copies.add_file(database, copies.root / DATABASE)
        return {"kind": "sqlite", "artifacts": str(database.parent / "mlruns")}
    if is_postgres(uri):
        dump_postgres(uri, copies.root / DUMP)
        copies.sha256s[DUMP] = sha256(copies.root / DUMP)
        return {"kind": "postgres", "place": place}
    reporter.warning(
        f"MLflow at {place} is a server: its database and artifacts are not in this backup. Run `geokr backup` on its "
        "machine, with MLFLOW_TRACKING_URI set to its database."
    )
    return {"kind": "server", "place": place}


def _describing(params: Params) -> Iterator[Path]:
    """The parameter file, those that it extends, and DVC's files, by their path below the working directory."""
    path: Path | None = params.path
    while path is not None and path.is_file():
        yield Path(os.path.relpath(path)) if path.resolve().is_relative_to(Path.cwd()) else Path(path.name)
        base = read_yaml(path).get(EXTENDS)
        path = None if base is None else path.parent / base
    yield from (Path(name) for name in _DESCRIBING if Path(name).is_file())


def _require_room(target: Path, parts: Mapping[str, Path]) -> None:
    place = next(folder for folder in target.parents if folder.is_dir())
    needed, free = sum(map(num_bytes, parts.values())), shutil.disk_usage(place).free
    if needed > free:
        raise BackupError(f"{target}: the backup takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there.")


def _manifest(
    params: Params, parts: Mapping[str, Path], tracking: Mapping[str, str], sha256s: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "geokr": __version__,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "parameter_file": params.file,
        "parts": {name: str(folder.resolve()) for name, folder in parts.items()},
        "tracking": dict(tracking),
        "files": dict(sha256s),
    }
