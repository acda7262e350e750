"""What lies in a store: bytes by folder, what dead processes left, and which locks are held."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from geokr_core.step.files import is_left_unfinished

_LOCKS: Final = Path("/proc/locks")
_LOCK_ENDING: Final = ".lock"


@dataclass(frozen=True)
class DiskUse:
    """What lies below a folder.

    Attributes:
        num_bytes: on the disk, a file with several names counted once.
        by_folder: the same of each folder directly below.
        leftovers: files and folders that processes which are gone left unfinished.
        held: lock files that a living process holds, with its id.
    """

    num_bytes: int
    by_folder: dict[str, int]
    leftovers: tuple[Path, ...]
    held: dict[Path, int]


def disk_use(folder: Path) -> DiskUse:
    """Walk a folder, which need not exist; links are not followed."""
    by_folder: dict[str, int] = {}
    leftovers, held = [], {}
    seen: set[tuple[int, int]] = set()
    holders = _holders()
    for entry in _walk(folder):
        path = Path(entry.path)
        if is_left_unfinished(path):
            leftovers.append(path)
        if entry.is_dir(follow_symlinks=False):
            continue
        try:
            found = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # a running step has just moved it
            continue
        if path.name.endswith(_LOCK_ENDING) and found.st_ino in holders:
            held[path] = holders[found.st_ino]
        if (found.st_dev, found.st_ino) not in seen:
            top = path.relative_to(folder).parts[0]
            by_folder[top] = by_folder.get(top, 0) + found.st_blocks * 512
        seen.add((found.st_dev, found.st_ino))
    return DiskUse(sum(by_folder.values()), dict(sorted(by_folder.items())), tuple(sorted(leftovers)), held)


def _walk(folder: Path) -> Iterator["os.DirEntry[str]"]:
    pending = [str(folder)] if folder.is_dir() else []
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    yield entry
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        except FileNotFoundError:
            continue


def _holders() -> dict[int, int]:
    """The process that holds a lock on each file, by inode; read and not tried: to try a lock would be in others' way."""
    holders = {}
    for line in _LOCKS.read_text().splitlines() if _LOCKS.is_file() else ():
        words = line.split()
        if "->" not in words and len(words) >= 6:  # one that waits
            holders[int(words[5].rpartition(":")[2])] = int(words[4])
    return holders
