"""What DVC and Dagster keep and no one needs: asked of the tools as the commands they are; neither is imported."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from geokr_core.chain.params import Params
from geokr_core.chain.versioning import is_versioned, why_not_recorded
from geokr_core.errors import VersioningError

_CODE_LOCATION: Final = "geokr_assets"
_GARBAGE: Final = ("gc", "--workspace", "--all-commits")
"""Of the cache alone: what any commit of git, or this folder, names stays, and no remote is touched."""


@dataclass(frozen=True)
class DagsterRun:
    """A run of Dagster that can go.

    Attributes:
        run_id: Dagster's id.
        job: what it ran.
        age_days: since it was made.
    """

    run_id: str
    job: str
    age_days: float


def dagster_runs(days: int) -> list[DagsterRun]:
    """Runs of Dagster that can go: ended, older than some days, and holding the latest state of no asset, partition or check.

    Nothing where ``DAGSTER_HOME`` is not set or Dagster is not installed.

    Raises:
        VersioningError: Dagster refuses to say.
    """
    if not os.environ.get("DAGSTER_HOME") or importlib.util.find_spec(_CODE_LOCATION) is None:
        return []
    told = _run([sys.executable, "-m", f"{_CODE_LOCATION}.old_runs", "--days", str(days)], "Dagster")
    return [DagsterRun(**row) for row in json.loads(told)]


def delete_dagster_run(run_id: str) -> None:
    """Delete a run with its events and its captured output.

    Raises:
        VersioningError: Dagster refuses.
    """
    _run([sys.executable, "-m", f"{_CODE_LOCATION}.old_runs", "--delete", run_id], "Dagster")


def dvc_garbage(params: Params) -> str:
    """What lies in DVC's cache and nothing names, in DVC's words; empty where nothing does, or DVC is not in use."""
    if not is_versioned(params.path) or why_not_recorded() or not Path(".dvc/cache").is_dir():
        return ""
    lines = _dvc("--dry").splitlines()
    return " ".join(line.strip() for line in lines if "object" in line and "No unused" not in line)


def collect_dvc_garbage() -> None:
    """Remove it.

    Raises:
        VersioningError: DVC refuses.
    """
    _dvc("--force")


def _dvc(option: str) -> str:
    return _run([sys.executable, "-m", "dvc", *_GARBAGE, option], "DVC")


def _run(command: list[str], tool: str) -> str:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise VersioningError(f"{tool} refused `{' '.join(command[2:])}`: {lines[-1] if lines else 'no word said'}")
    return done.stdout
