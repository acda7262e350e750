"""What folders hold: the md5 of every file, looked up in the memory of checksums where the file has not been touched."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from geokr_core.rasters.checksums import Checksums, memory_of
from geokr_core.step.digests import file_md5, folder_version
from geokr_core.step.found_files import is_leftover


class Contents:
    """The files of sources and outputs. Every folder is walked once in the life of this value, every file costs a stat.

    Bytes are read where the size, the inode or one of the times of a file is not what it was when its bytes were last
    read; with ``deep`` always.
    """

    def __init__(self, store: Path, *, deep: bool = False, only_looks: bool = False) -> None:
        """Take the store that keeps the memory of checksums, below ``.state/checksums``.

        With ``only_looks`` the memory is kept up where there is one that can be written, and none is begun.
        """
        self._store, self.deep = store, deep
        self._remembers = not only_looks or os.access(memory_of(store, store).parent, os.W_OK)
        self._known: dict[Path, Mapping[str, str]] = {}

    def of_output(self, folder: Path) -> Mapping[str, str]:
        """md5 of each file of a step's output, by its path below the folder; empty where there is no folder."""
        return self._files(folder, _walk(folder))

    def of_source(self, folder: Path) -> Mapping[str, str]:
        """The same for a folder that a user filled; what operating systems leave behind, and the store, are skipped.

        A link to nothing is there with an empty md5: its target may come later.
        """
        store = self._store.resolve()
        return self._files(folder, _walk(folder, skip=store))

    def version(self, folder: Path) -> str:
        """The data version of a step's output."""
        return folder_version(self.of_output(folder))

    def forget(self, folder: Path) -> None:
        """Walk the folder again when it is asked for next: it was written to."""
        self._known.pop(folder, None)

    def _files(self, folder: Path, paths: Iterator[tuple[str, Path]]) -> Mapping[str, str]:
        if folder not in self._known:
            checksums = Checksums(memory_of(self._store, folder))
            read = file_md5 if self.deep else checksums.md5
            files = {}
            for relative, path in paths:
                try:
                    files[relative] = read(path)
                except OSError:
                    # The step that reads it says what is wrong with it.
                    files[relative] = ""
            self._known[folder] = files
            if checksums.num_read and self._remembers:
                checksums.save()
        return self._known[folder]


def _walk(folder: Path, skip: Path | None = None) -> Iterator[tuple[str, Path]]:
    """All files below a folder; linked folders once, those of ``skip`` and, where it is given, leftovers not at all."""
    seen: set[tuple[int, int]] = set()
    pending = [("", str(folder))] if folder.is_dir() else []
    while pending:
        prefix, place = pending.pop()
        status = os.stat(place)  # noqa: PTH116  (a hundred thousand files: no Path for each)
        if (status.st_dev, status.st_ino) in seen or (skip is not None and Path(place).resolve() == skip):
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(place) as entries:
            for entry in entries:
                if skip is not None and is_leftover(entry.name):
                    continue
                if _leads_in_a_circle(entry):
                    yield f"{prefix}{entry.name}", Path(entry.path)
                elif entry.is_dir():
                    pending.append((f"{prefix}{entry.name}/", entry.path))
                elif entry.is_file() or entry.is_symlink():
                    yield f"{prefix}{entry.name}", Path(entry.path)


def _leads_in_a_circle(entry: "os.DirEntry[str]") -> bool:
    try:
        entry.is_dir()
    except OSError:
        return True
    return False
