"""Copies of the files of a project for a backup, and back: whole, with the second names of files kept, and with a digest of each."""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from geokr_core.step.digests import sha256
from geokr_core.step.files import is_left_unfinished, sync

_SQLITE: Final = b"SQLite format 3\x00"
_BESIDE_DATABASES: Final = ("-wal", "-shm", "-journal")
"""Endings of what SQLite keeps beside a database; its copy needs none of it."""


@dataclass
class Copies:
    """Copies files and remembers what each holds.

    Attributes:
        sha256s: digest of each file by its path below ``root``.
        root: folder that the paths are below.
    """

    root: Path
    sha256s: dict[str, str] = field(default_factory=dict)
    _copied: dict[tuple[int, int], Path] = field(default_factory=dict)

    def add_tree(self, source: Path, target: Path, advance: Callable[[int], None] = lambda _: None) -> None:
        """Copy a folder; locks, and what dead processes left, stay behind. Links are copied as links.

        Args:
            source: the folder.
            target: where it goes, below ``root``.
            advance: hears how many bytes were copied.

        Raises:
            OSError: the file system refused.
        """
        target.mkdir(parents=True, exist_ok=True)
        for path in files_below(source):
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            self.add_file(path, place)
            advance(path.lstat().st_size)

    def add_file(self, source: Path, target: Path) -> None:
        """Copy one file; of an SQLite database a consistent copy is made, also while it is written to.

        Raises:
            OSError: the file system refused.
            sqlite3.Error: a database cannot be copied.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        found = source.lstat()
        identity = (found.st_dev, found.st_ino)
        if source.is_symlink():
            target.symlink_to(source.readlink())
            return
        if identity in self._copied:
            os.link(self._copied[identity], target)
        elif is_database(source):
            copy_database(source, target)
        else:
            shutil.copy2(source, target)
        if found.st_nlink > 1:
            self._copied[identity] = target
        sync(target)
        self.sha256s[target.relative_to(self.root).as_posix()] = sha256(target)


def files_below(folder: Path) -> Iterator[Path]:
    """Files and links of a folder that belong into a backup, in order."""
    for place, folders, names in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(name for name in folders if not is_left_unfinished(here / name))
        linked = [name for name in folders if (here / name).is_symlink()]
        for name in sorted([*names, *linked]):
            path = here / name
            is_beside = name.endswith(_BESIDE_DATABASES) and (here / name.rpartition("-")[0]).is_file()
            if name.endswith(".lock") and not path.is_symlink() and path.stat().st_size == 0:
                continue
            if not is_beside and not is_left_unfinished(path) and (path.is_file() or path.is_symlink()):
                yield path


def is_database(path: Path) -> bool:
    """Whether a file is an SQLite database."""
    with path.open("rb") as stream:
        return stream.read(len(_SQLITE)) == _SQLITE


def copy_database(source: Path, target: Path) -> None:
    """Copy an SQLite database by its backup interface: as it is at one moment, whoever writes to it.

    Raises:
        sqlite3.Error: it is damaged, or the copy cannot be written.
    """
    with (
        closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True, timeout=30)) as original,
        closing(sqlite3.connect(target)) as copy,
    ):
        original.backup(copy)


def num_bytes(folder: Path) -> int:
    """What a backup of a folder takes, at most."""
    return sum(path.lstat().st_size for path in files_below(folder)) if folder.is_dir() else 0
