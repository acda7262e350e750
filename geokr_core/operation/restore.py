"""The way back of a backup: every digest compared first, what is there moved aside, and paths in MLflow's database set right."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geokr_core.chain.params import Params
from geokr_core.errors import BackupError
from geokr_core.operation.backup import DATABASE, DUMP, FORMAT, MANIFEST, dagster_home
from geokr_core.operation.copies import Copies, is_database
from geokr_core.step.digests import sha256, text_digest
from geokr_core.step.files import whole_folder
from geokr_core.step.reporter import LOG, Reporter
from geokr_core.tracking.spool import spool_folder


@dataclass(frozen=True)
class Restored:
    """What a restore did.

    Attributes:
        parts: where each part of the backup lies now.
        put_aside: what lay there before, and where it is now.
        num_files: files whose digest was compared.
        moved_places: rows of MLflow's database that name files and were pointed at the new folder.
    """

    parts: Mapping[str, Path]
    put_aside: Mapping[Path, Path]
    num_files: int
    moved_places: int


def read_manifest(backup: Path) -> Mapping[str, Any]:
    """The manifest of a backup.

    Raises:
        BackupError: there is none, it is damaged, or of a later release.
    """
    path = backup / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest = content.pop("digest")
        if digest != text_digest(content):
            raise BackupError(f"{path}: not what was written; take another backup.")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, BackupError):
            raise
        raise BackupError(f"{path}: no backup of GeoKR there ({type(error).__name__}).") from error
    if content["format"] != FORMAT:
        raise BackupError(
            f"{path}: format {content['format']}, this release reads {FORMAT}; take a later release of GeoKR."
        )
    return dict(content)


def verify_backup(backup: Path) -> Mapping[str, Any]:
    """Compare every file of a backup with its digest.

    Returns:
        The manifest.

    Raises:
        BackupError: a file is missing or is not what was written; the message names the first few.
    """
    manifest = read_manifest(backup)
    wrong = []
    for name, digest in manifest["files"].items():
        path = backup / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif sha256(path) != digest:
            wrong.append(f"{name} is not what was written")
    if wrong:
        raise BackupError(
            f"{backup}: {len(wrong)} file(s): {'; '.join(wrong[:5])}. Nothing was restored; take another backup."
        )
    return manifest


def restore(backup: Path, params: Params, reporter: Reporter = LOG) -> Restored:
    """Put a backup in place. What lies there is moved aside and never deleted.

    The parameter file and DVC's files are not touched: those of the backup lie in its folder ``project``.

    Args:
        backup: folder that `back_up` wrote.
        params: the parameter file; it says where the store goes, the environment where the rest goes.
        reporter: hears what was moved aside, and what to do by hand.

    Raises:
        BackupError: the backup is damaged, or a database cannot be filled.
        OSError: the file system refused.
    """
    manifest = verify_backup(backup)
    if manifest["tracking"]["kind"] == "postgres":  # refused before anything is moved
        from geokr_core.tracking.databases import require_empty
        from geokr_core.tracking.server import tracking_uri

        require_empty(tracking_uri())
    targets = dict(_targets(manifest, params))
    aside: dict[Path, Path] = {}
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    for name, target in targets.items():
        with whole_folder(target.with_name(f".{target.name}.restored")) as folder:
            copies = Copies(folder)
            copies.add_tree(backup / name, folder)
        aside |= _put(target.with_name(f".{target.name}.restored"), target, stamp, reporter)
    moved = _restore_tracking(backup, manifest, aside, stamp, reporter)
    return Restored(targets, aside, len(manifest["files"]), moved)


def _targets(manifest: Mapping[str, Any], params: Params) -> Iterator[tuple[str, Path]]:
    """Where each folder of the backup goes today."""
    for name, before in manifest["parts"].items():
        if name == "store":
            yield name, params.store.resolve()
        elif name == "spool":
            yield name, spool_folder().resolve()
        elif name == "dagster":
            yield name, dagster_home().resolve()
        else:
            yield name, _artifacts_now(manifest, Path(before))


def _artifacts_now(manifest: Mapping[str, Any], before: Path) -> Path:
    """Beside an SQLite database wherever that is now; elsewhere where the database says."""
    if manifest["tracking"]["kind"] != "sqlite":
        return before
    return _database_now().parent / "mlruns"


def _database_now() -> Path:
    from geokr_core.tracking.server import sqlite_file, tracking_uri

    database = sqlite_file(tracking_uri())
    if database is None:
        raise BackupError(
            "The backup holds an SQLite database; set MLFLOW_TRACKING_URI to one (sqlite:///PATH), or unset it."
        )
    return database


def _put(restored: Path, target: Path, stamp: str, reporter: Reporter) -> Mapping[Path, Path]:
    """Move what was restored into place, and what lies there aside."""
    aside = {}
    if target.exists():
        place = target.with_name(f"{target.name}.before-restore-{stamp}")
        while place.exists():
            place = place.with_name(f"{place.name}~")
        aside[target] = place
        target.rename(aside[target])
        reporter.info(f"{target}: what lay there is now {aside[target]}")
    restored.rename(target)
    return aside


def _restore_tracking(
    backup: Path, manifest: Mapping[str, Any], aside: dict[Path, Path], stamp: str, reporter: Reporter
) -> int:
    tracking = manifest["tracking"]
    if tracking["kind"] == "postgres":
        from geokr_core.tracking.databases import restore_postgres
        from geokr_core.tracking.server import tracking_uri

        restore_postgres(backup / DUMP, tracking_uri())
    elif tracking["kind"] == "server":
        reporter.warning(f"MLflow at {tracking['place']} is a server: restore its own backup on its machine.")
    elif tracking["kind"] == "sqlite":
        return _restore_sqlite(backup / DATABASE, Path(tracking["artifacts"]), aside, stamp, reporter)
    return 0


def _restore_sqlite(source: Path, artifacts: Path, aside: dict[Path, Path], stamp: str, reporter: Reporter) -> int:
    from geokr_core.tracking.databases import move_places

    target = _database_now()
    restored = target.with_name(f".{target.name}.restored")
    restored.unlink(missing_ok=True)
    if not is_database(source):
        raise BackupError(f"{source}: no SQLite database.")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, restored)
    now = target.parent / "mlruns"
    moved = move_places(restored, artifacts, now) if artifacts != now else 0
    aside |= _put(restored, target, stamp, reporter)
    return moved
