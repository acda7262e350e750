"""DVC: record a step's output in ``dvc.lock`` after another door has made it, and read what DVC recorded.

DVC is called as the command it is; it is never imported. When DVC itself runs a stage it records the output, and
nothing here does anything.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import yaml
from filelock import FileLock

from geokr_core.chain.params import DEFAULT_PARAMS
from geokr_core.errors import VersioningError
from geokr_core.step.reporter import Reporter

_PATIENCE = 30
"""Seconds that a DVC process of the user's is waited for."""

_BUSY = ("is busy", "Unable to acquire lock")

PIPELINE = Path("dvc.yaml")
LOCK = Path("dvc.lock")


def is_versioned(params_file: Path) -> bool:
    """Whether DVC versions what ``params_file`` makes: only ``params.yaml`` beside ``dvc.yaml`` in a DVC repository."""
    same = params_file.resolve() == DEFAULT_PARAMS.resolve()
    return same and PIPELINE.is_file() and Path(".dvc").is_dir()


def commit(step: str, params_file: Path, reporter: Reporter) -> bool:
    """Record the present output of ``step`` in ``dvc.lock``, so that ``dvc status`` finds it up to date.

    Args:
        step: stage name.
        params_file: the parameter file the step ran with.
        reporter: hears why nothing was recorded.

    Returns:
        Whether it was recorded: False inside a DVC run, outside a DVC repository, or with another parameter file.

    Raises:
        VersioningError: DVC refused, e.g. since another DVC process holds the lock.
    """
    if "DVC_STAGE" in os.environ or not is_versioned(params_file):
        return False
    if shutil.which("git") is None:
        reporter.warning("git is not installed: the output is not recorded in dvc.lock.")
        return False
    # DVC does not wait for its own lock, it fails: our processes take turns, a DVC of the user's is given time to end.
    with FileLock(".dvc/tmp/geokr.lock"):
        done = _dvc_commit(step)
        for _ in range(_PATIENCE):
            if not done.returncode or not any(word in done.stderr for word in _BUSY):
                break
            time.sleep(1.0)
            done = _dvc_commit(step)
    if done.returncode:
        raise VersioningError(
            f"DVC could not record step {step!r}: {done.stderr.strip() or done.stdout.strip()}. "
            f"The output itself is complete; run `dvc commit --force {step}` once the cause is gone."
        )
    return True


def _dvc_commit(step: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dvc", "commit", "--quiet", "--force", step],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DVC_NO_ANALYTICS": "1"},
    )


def recorded_versions(lock: Path = LOCK) -> Mapping[str, str]:
    """Data version of each stage's output in ``dvc.lock``; empty where there is no lock file."""
    if not lock.is_file():
        return {}
    stages = yaml.safe_load(lock.read_text(encoding="utf-8")).get("stages", {})
    return {name: "+".join(out["md5"] for out in stage["outs"]) for name, stage in stages.items() if stage.get("outs")}
