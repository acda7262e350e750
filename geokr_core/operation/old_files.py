"""Files of the store that are no longer needed: what dead processes left, and checkpoints of other parameters or data."""

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from geokr_core.chain.params import Params
from geokr_core.chain.steps import Folders
from geokr_core.errors import GeoKRError
from geokr_core.operation.disk_use import disk_use
from geokr_core.step.files import sweep

_DAY_S: Final = 86_400.0
_RUN_FOLDER: Final = re.compile("[0-9a-f]{16,64}")
"""The folder of a training is named by the digest of all that it depends on."""


@dataclass(frozen=True)
class OldFile:
    """A file or folder that can go.

    Attributes:
        path: where it lies.
        age_days: since something in it was written.
        num_bytes: what it holds; files that have another name elsewhere do not count.
        reason: why it can go.
        is_leftover: whether a dead process left it.
    """

    path: Path
    age_days: float
    num_bytes: int
    reason: str
    is_leftover: bool


def leftovers(store: Path) -> Iterator[OldFile]:
    """What dead processes left unfinished, anywhere in a store."""
    for path in disk_use(store).leftovers:
        yield OldFile(path, *_age_and_size(path), "left by a process that was killed", True)


def checkpoints(params: Params, days: int) -> Iterator[OldFile]:
    """Half-done and finished trainings of other parameters or data than today's, that were not touched for some days.

    Nothing where today's cannot be known, because there is no data set or the section is refused.

    Args:
        params: the parameter file.
        days: age from which one can go.
    """
    folder = Folders(params).checkpoints / "pretraining"
    places = [path for path in folder.iterdir() if _RUN_FOLDER.fullmatch(path.name)] if folder.is_dir() else []
    aged = {path: _age_and_size(path) for path in sorted(places) if path.is_dir() and not path.is_symlink()}
    aged = {path: found for path, found in aged.items() if found[0] >= days}
    if not aged or (ours := _todays(params, folder)) is None:
        return
    for path, found in aged.items():
        if path not in ours:
            yield OldFile(path, *found, "a training of other parameters or data", False)


def _todays(params: Params, folder: Path) -> set[Path] | None:
    from geokr_core.levir_kr.dataset import open_levir_kr
    from geokr_core.pretraining.runs import runs_of

    try:
        data = open_levir_kr(Folders(params)["levir_kr"])
        return {run.folder for run in runs_of(params.pretraining, data, folder)}
    except GeoKRError:
        return None


def clear(old: OldFile) -> None:
    """Remove it; what a dead process was replacing comes back.

    Raises:
        OSError: the file system refuses.
    """
    if old.is_leftover:
        sweep(old.path.parent)
    else:
        shutil.rmtree(old.path)


def _age_and_size(path: Path) -> tuple[float, int]:
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    stats = [file.lstat() for file in files]
    alone = sum(found.st_blocks * 512 for found in stats if found.st_nlink == 1)
    return (time.time() - max(found.st_mtime for found in stats)) / _DAY_S, alone
