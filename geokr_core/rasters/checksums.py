"""The md5 of large source files, remembered by size and modification time so that an unchanged archive is not read again.

The memory is kept beside an output, never inside: modification times differ between machines and must not change its
data version. Losing it costs time only.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from geokr_core.step.digests import file_md5, text_digest
from geokr_core.step.files import write_json

_SETTLED_NS = 2_000_000_000
"""Files written to less than this long ago are not remembered: they may change again within one tick of the clock."""


Mark = tuple[int, int, int, int]
"""Size in bytes, times of the last modification and of the inode's change in ns, and number of the inode."""


Entry = list[int | str]
"""The mark of a file and, last, its md5."""


class Checksums:
    """The md5 of files, read anew only where size, inode or one of the times changed."""

    def __init__(self, memory: Path) -> None:
        """Open the memory.

        Args:
            memory: JSON file that holds what earlier runs found. A missing one is as good as an empty one, and so is one
                whose digest is not that of its content: a single wrong md5 in it would be believed for ever.
        """
        self._memory = memory
        self._known = _remembered(memory)
        self._seen: dict[str, Entry] = {}
        self._written: dict[str, Entry] = {}
        self._folders: dict[str, str] = {}
        self._kept_s = time.monotonic()
        self.num_read = 0
        """Files whose bytes were read, not remembered."""

    def md5(self, path: Path) -> str:
        """The md5 of a file's bytes, in hex.

        Raises:
            OSError: the file cannot be read.
        """
        mark = list(file_mark(path))
        key = self._key(path)
        known = self._seen.get(key) or self._known.get(key, [])
        if known[:-1] == mark:
            digest = str(known[-1])
        else:
            digest = file_md5(path)
            self.num_read += 1
        if is_settled(mark):
            self._seen[key] = [*mark, digest]
        return digest

    def _key(self, path: Path) -> str:
        """A file without links on the way to it. Folders are looked up once: an archive has far more files than folders."""
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        key = f"{self._folders[folder]}/{name}"
        return os.path.realpath(key) if path.is_symlink() else key

    def keep(self, every_s: float = 0.0) -> None:
        """Write down what is known, forgetting nothing.

        Args:
            every_s: write only if this many seconds have passed since it was written last. Hashing an archive takes hours: a
                killed run resumes where it was.

        Raises:
            OSError: the file system refused.
        """
        if time.monotonic() - self._kept_s >= every_s:
            self._write(self._known | self._seen)
            self._kept_s = time.monotonic()

    def note(self, path: Path, digest: str) -> None:
        """Take the md5 of a file that the caller has just written and hashed; `save` keeps it if it is settled by then.

        Raises:
            OSError: the file cannot be looked at.
        """
        self._written[self._key(path)] = [*file_mark(path), digest]

    def noted(self, paths: Iterable[Path]) -> dict[str, Entry]:
        """What was noted of some of the files that the caller has written, for the memory of another process."""
        keys = [self._key(path) for path in paths]
        return {key: self._written[key] for key in keys if key in self._written}

    def take_over(self, entries: Mapping[str, Entry]) -> None:
        """Note what another process `noted`."""
        self._written.update(entries)

    def save(self) -> None:
        """Remember the files that were asked for, and forget the others.

        Raises:
            OSError: the file system refused.
        """
        for key, (*mark, digest) in self._written.items():
            with suppress(FileNotFoundError):
                if list(file_mark(Path(key))) == mark and is_settled(mark):
                    self._seen[key] = [*mark, digest]
        self._write(self._seen)

    def _write(self, files: Mapping[str, Entry]) -> None:
        write_json(self._memory, {"digest": _digest_of(files), "files": files})


def _remembered(memory: Path) -> dict[str, Entry]:
    try:
        content = json.loads(memory.read_text(encoding="utf-8"))
        files: dict[str, Entry] = content["files"]
        return files if content["digest"] == _digest_of(files) else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def _digest_of(files: Mapping[str, Entry]) -> str:
    return text_digest(sorted(files.items()))


def memory_of(store: Path, folder: Path) -> Path:
    """Where the digests of a folder's files are remembered: one file a folder, for every step that reads it."""
    name = folder.as_posix().strip("/").replace("/", "_") or "here"
    return store / ".state" / "checksums" / f"of_{name}.json"


def file_mark(path: Path) -> Mark:
    """The mark of a file.

    The time of the inode's change is set by the system alone: it moves even where a copy keeps the old time.

    Raises:
        OSError: the file cannot be looked at.
    """
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def is_settled(mark: Sequence[int | str]) -> bool:
    """Whether a file has stood long enough that a change of its bytes would change its mark.

    The modification time is not asked: it is whatever a copy says, and may lie ahead of the clock.
    """
    return time.time_ns() - int(mark[2]) > _SETTLED_NS
