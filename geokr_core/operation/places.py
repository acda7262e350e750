"""Checks of files: the parameter file, raw data, the store, free disk, the clock, the DVC repository, Dagster's home."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import yaml
from filelock import FileLock, Timeout

from geokr_core.chain.params import Params
from geokr_core.chain.record import STATE_FILE, read_record
from geokr_core.chain.status import status, verify
from geokr_core.chain.steps import Folders, steps_of
from geokr_core.chain.versioning import (
    LOCK,
    PIPELINE,
    is_recorded,
    is_versioned,
    recorded_versions,
    stages_of,
    why_not_recorded,
)
from geokr_core.operation.diagnosis import Diagnosis, failure, ok, warning
from geokr_core.step.files import sync

LEAST_FREE_BYTES: Final = 1 << 30
"""Less free disk is a failure: a checkpoint, or the shard of one scene, may not fit."""
FEW_FREE_BYTES: Final = 10 << 30
_LEAST_FREE_FILES: Final = 1000
_CLOCKS_DIFFER_S: Final = 2.0
_LOCK_PATIENCE_S: Final = 2.0


def raw_data(params: Params) -> Iterator[Diagnosis]:
    """Whether the raw data are there that steps still have to read."""
    blocked = [one for one in status(params) if one.state == "blocked" and not one.reasons[0].startswith("by ")]
    for one in blocked:
        yield failure(
            "raw data", f"{one.step}: {'; '.join(one.reasons)}", "Mend the folder in the parameter file, or mount it."
        )
    if not blocked:
        yield ok("raw data", "every folder that a step has to read is there")


def store(params: Params) -> Iterator[Diagnosis]:
    """Whether the store can be written, renamed in, synced and locked, as every step does."""
    place = params.store.resolve()
    remedy = f"Give this user write rights below {place}, mount it writable, or set `store` to another folder."
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=_existing(place)) as folder:
            written, moved = Path(folder, "written"), Path(folder, "moved")
            written.write_bytes(b"x" * 4096)
            sync(written)
            written.replace(moved)
            with FileLock(Path(folder, "lock"), timeout=_LOCK_PATIENCE_S):
                pass
    except Timeout:
        yield failure(
            "store", f"{place}: files cannot be locked", "Mount the file system with locks (NFS: without `nolock`)."
        )
        return
    except OSError as error:
        yield failure("store", f"{place}: {error.strerror or error}", remedy)
        return
    yield ok("store", f"{place} can be written and locked")


def outputs(params: Params) -> Iterator[Diagnosis]:
    """Whether the files of the store are what was written, without reading those that were not touched."""
    damages = verify(params)
    if not damages:
        yield ok("outputs", "every file of the store is what was written")
        return
    first = damages[0]
    more = f", and {len(damages) - 1} more" if len(damages) > 1 else ""
    yield failure("outputs", f"{first.path}: {first.fault}{more}", f"{first.remedy}; `geokr verify` names every file.")


def disk(params: Params | None) -> Iterator[Diagnosis]:
    """How much is free where the chain writes.

    Args:
        params: the parameter file; None where it cannot be read.
    """
    places = {"store": params.store} if params is not None else {}
    places |= {"working directory": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}
    seen = set()
    for name, place in places.items():
        there = _existing(place)
        if (device := there.stat().st_dev) not in seen:
            yield _room(name, there)
        seen.add(device)


def _room(name: str, place: Path) -> Diagnosis:
    free, found = shutil.disk_usage(place).free, os.statvfs(place)
    told = f"{name} ({place.resolve()}): {free / 1e9:.1f} GB free"
    remedy = "Free some space: `geokr retain` shows what can be deleted."
    if found.f_files and found.f_favail < _LEAST_FREE_FILES:
        return failure("disk", f"{told}, room for {found.f_favail} files", remedy)
    if free < LEAST_FREE_BYTES:
        return failure("disk", told, remedy)
    return warning("disk", told, remedy) if free < FEW_FREE_BYTES else ok("disk", told)


def _existing(place: Path) -> Path:
    place = place.resolve()
    return next(folder for folder in (place, *place.parents) if folder.is_dir())


def clock(params: Params | None) -> Iterator[Diagnosis]:
    """Whether the clock agrees with the store's file system and lies behind everything that was recorded.

    Args:
        params: the parameter file; None where it cannot be read.
    """
    now, remedy = time.time(), "Set the clock (`timedatectl set-ntp true`): what is new is told by times."
    built = Path(__file__).stat().st_mtime
    newest = max([built, *_times_of_records(params)])
    if newest > now + _CLOCKS_DIFFER_S:
        yield failure(
            "clock", f"{_day(now)}, but files were written at {_day(newest)}: the clock is or was wrong", remedy
        )
        return
    apart = _apart(params)
    if abs(apart) > _CLOCKS_DIFFER_S:
        yield warning("clock", f"the file system of the store is {apart:+.1f} s off this machine's clock", remedy)
        return
    yield ok("clock", f"{_day(now)}")


def _times_of_records(params: Params | None) -> list[float]:
    found = []
    for path in (params.store / ".state").glob(f"*/{STATE_FILE}") if params is not None else ():
        with suppress(OSError):
            found.append(path.stat().st_mtime)
    return found


def _apart(params: Params | None) -> float:
    """Seconds by which the clock of the store's file system is ahead of ours; 0 where it cannot be written."""
    if params is None:
        return 0.0
    try:
        with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=_existing(params.store)) as file:
            file.write(b"x")
            file.flush()
            return Path(file.name).stat().st_mtime - time.time()
    except OSError:
        return 0.0


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def dvc(params: Params) -> Iterator[Diagnosis]:
    """Whether outputs are recorded in DVC, where this folder is a DVC repository."""
    if not Path(".dvc").is_dir() or not PIPELINE.is_file():
        yield ok("dvc", "no DVC repository here; outputs are not versioned")
        return
    if not is_versioned(params.path):
        yield ok("dvc", f"DVC versions what params.yaml gives, not {params.path}")
        return
    if lack := why_not_recorded():
        yield failure("dvc", f"outputs are not recorded: {lack}", "Do what is missing, or take the folder `.dvc` away.")
        return
    recorded = recorded_versions()
    if LOCK.is_file() and not recorded:
        yield warning("dvc", f"{LOCK} cannot be read", "`geokr run` moves it aside and records the outputs again.")
        return
    if lacking := [name for name in _to_record(params) if name not in recorded]:
        yield failure(
            "dvc",
            f"{len(lacking)} output(s) are made and not recorded in {LOCK}: {', '.join(lacking)}",
            f"`dvc commit --force {' '.join(lacking)}` records them as they are.",
        )
        return
    remotes = [line for line in Path(".dvc/config").read_text(encoding="utf-8").splitlines() if "url" in line]
    if not remotes:
        yield warning(
            "dvc",
            "a repository without a remote: versions exist on this machine alone",
            "`dvc remote add -d NAME PLACE`, then `dvc push`.",
        )
        return
    yield ok("dvc", f"a repository with {len(remotes)} remote(s); {len(recorded)} output(s) recorded{_which(params)}")


def _which(params: Params) -> str:
    """Why no more outputs are recorded, where that is no fault."""
    if params.is_overridden:
        return ", none of what --set gives"
    return ": of a generated world, those that `dvc repro` made" if params.uses_world else ""


def _to_record(params: Params) -> Iterator[str]:
    """Steps whose present output DVC has to name: not what a generated world or --set gave."""
    if params.uses_world or not is_recorded(params):
        return
    folders, stages = Folders(params), stages_of(PIPELINE) or {}
    for step in steps_of(params):
        if step.name in stages and read_record(folders.state(step.name)) is not None:
            yield step.name


def dagster() -> Iterator[Diagnosis]:
    """Whether Dagster's home can hold its runs."""
    home = os.environ.get("DAGSTER_HOME", "")
    if not home:
        yield ok(
            "dagster",
            "DAGSTER_HOME is not set. In a checkout `make ui` sets it; elsewhere set it to a folder, or `dagster dev` forgets its runs",
        )
        return
    place = Path(home)
    if not place.is_absolute() or not place.is_dir():
        yield failure(
            "dagster", f"DAGSTER_HOME is {home!r}: no absolute path of a folder", "Set it to a folder that is there."
        )
        return
    if not os.access(place, os.W_OK):
        yield failure(
            "dagster", f"{place} cannot be written", "Give this user write rights: runs and schedules are kept there."
        )
        return
    yield _settings(place / "dagster.yaml")


def _settings(path: Path) -> Diagnosis:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return warning(
            "dagster", f"{path}: missing", "Copy .dagster_home/dagster.yaml: it monitors runs and limits them."
        )
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        return failure(
            "dagster", f"{path}: {str(error).splitlines()[0]}", "Mend it, or copy .dagster_home/dagster.yaml."
        )
    if not isinstance(content, Mapping) or not (content.get("run_monitoring") or {}).get("enabled"):
        return warning(
            "dagster",
            f"{path}: run monitoring is off",
            "Set `run_monitoring: {enabled: true}`: else a killed run holds its slot.",
        )
    return ok("dagster", f"{path.parent}, run monitoring on")
