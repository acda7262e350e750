"""DVC: record a step's output in ``dvc.lock`` after another door has made it, and read what DVC recorded.

DVC is called as the command it is; it is never imported. When DVC itself runs a stage it records the output, and
nothing here does anything.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from geokr_core.chain.params import DEFAULT_PARAMS, Params
from geokr_core.errors import VersioningError
from geokr_core.step.extras import lacking
from geokr_core.step.reporter import Reporter

_PATIENCE = 30
"""Seconds that a DVC process of the user's is waited for."""

_BUSY = ("is busy", "Unable to acquire lock")

PIPELINE = Path("dvc.yaml")
LOCK = Path("dvc.lock")
DAMAGED_LOCK = Path("dvc.lock.damaged")


def is_versioned(params_file: Path) -> bool:
    """Whether DVC versions what ``params_file`` makes: only ``params.yaml`` beside ``dvc.yaml`` in a DVC repository."""
    same = params_file.resolve() == DEFAULT_PARAMS.resolve()
    return same and PIPELINE.is_file() and Path(".dvc").is_dir()


def is_recorded(params: Params) -> bool:
    """Whether what the chain makes is recorded in ``dvc.lock``: where DVC versions it, and there is something to version.

    What other values than the file's gave is not recorded: DVC must not take it for the file's.

    A generated world is the same on every machine, and what is made from it is not worth a version: it is recorded once
    someone has begun with it (``dvc repro``), so that a demo leaves the checkout as it was.
    """
    begun = LOCK.exists() or DAMAGED_LOCK.exists()
    return not params.is_overridden and is_versioned(params.path) and (begun or not params.uses_world)


def why_not_recorded() -> str:
    """What this folder lacks for DVC to record anything; empty where it lacks nothing."""
    if lack := lacking("dvc"):
        return lack
    if _without_git():
        return ""
    if shutil.which("git") is None:
        return "git is not installed"
    if not any((folder / ".git").exists() for folder in (Path.cwd(), *Path.cwd().parents)):
        return "the folder is no git repository (`git init` makes it one; `dvc config core.no_scm true` does without)"
    return ""


def _without_git() -> bool:
    """Whether DVC is told to do without git."""
    texts = [
        path.read_text(encoding="utf-8") for path in (Path(".dvc/config"), Path(".dvc/config.local")) if path.is_file()
    ]
    return any(line.replace(" ", "").lower() == "no_scm=true" for text in texts for line in text.splitlines())


def commit(step: str | Sequence[str], params: Params, reporter: Reporter) -> bool:
    """Record the present output of ``step`` in ``dvc.lock``, so that ``dvc status`` finds it up to date.

    Args:
        step: stage name, or several.
        params: the parameters that the step ran with.
        reporter: hears why nothing was recorded.

    Returns:
        Whether it was recorded: False inside a DVC run, outside a DVC or git repository, and where `is_recorded` is.

    Raises:
        VersioningError: DVC refused, e.g. since another DVC process holds the lock; the message holds its own words.
    """
    steps = [step] if isinstance(step, str) else list(step)
    if "DVC_STAGE" in os.environ or not is_recorded(params):
        return False
    if lack := why_not_recorded():
        reporter.warning(f"Outputs are not recorded in dvc.lock: {lack}. The outputs themselves are complete.")
        return False
    _put_damaged_lock_away(reporter)
    # DVC does not wait for its own lock, it fails: our processes take turns, a DVC of the user's is given time to end.
    with FileLock(".dvc/tmp/geokr.lock"):
        done = _dvc_commit(steps)
        for _ in range(_PATIENCE):
            if not done.returncode or not any(word in done.stderr for word in _BUSY):
                break
            time.sleep(1.0)
            done = _dvc_commit(steps)
    if done.returncode:
        names = " ".join(steps)
        raise VersioningError(
            f"DVC could not record {names}: {_words_of(done)} The output itself is complete; run "
            f"`dvc commit --force {names}` once the cause is gone."
        )
    return True


def _dvc_commit(steps: Sequence[str]) -> subprocess.CompletedProcess[str]:
    # Without --quiet, which silences the reason of a failure, too.
    return subprocess.run(
        [sys.executable, "-m", "dvc", "commit", "--force", *steps],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DVC_NO_ANALYTICS": "1"},
    )


def _words_of(done: subprocess.CompletedProcess[str]) -> str:
    """What DVC said, in one line."""
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    told = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines
    words = " ".join(told) or f"it ended with exit code {done.returncode} and said nothing"
    return words if words.endswith((".", "!")) else f"{words}."


def _put_damaged_lock_away(reporter: Reporter) -> None:
    """Move a lock file that is not one out of DVC's way: outputs are recorded anew."""
    if LOCK.is_file() and stages_of(LOCK) is None:
        LOCK.replace(DAMAGED_LOCK)
        reporter.warning(f"{LOCK} could not be read; it is now {DAMAGED_LOCK}, and outputs are recorded anew.")


def recorded_versions(lock: Path = LOCK) -> Mapping[str, str]:
    """Data version of each stage's output in ``dvc.lock``; empty where there is no lock file or a damaged one."""
    stages = stages_of(lock) if lock.is_file() else {}
    return {
        name: "+".join(out["md5"] for out in stage["outs"])
        for name, stage in (stages or {}).items()
        if isinstance(stage, dict) and stage.get("outs") and all("md5" in out for out in stage["outs"])
    }


def stages_of(file: Path) -> Mapping[str, Any] | None:
    """Stages of a pipeline or of its lock file; None where it cannot be read as one."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    stages = content.get("stages", {}) if isinstance(content, dict) else None
    return stages if isinstance(stages, dict) else None
