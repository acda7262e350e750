"""What lies in the scene folder as the file system lists it: names, sizes and times. No file is opened here."""

import os
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from geokr_core.rasters.checksums import Mark, file_mark
from geokr_core.step.found_files import find_files, is_leftover


class Listing:
    """Names, sizes and times below a folder; every directory is listed once."""

    def __init__(self, folder: Path) -> None:
        """Take the scene folder."""
        self._folder = folder
        self._names: dict[str, list[str]] = {}

    def marks(self, roots: Sequence[str]) -> dict[str, Mark]:
        """Marks of all files whose names begin with one of ``roots``, or that lie in a folder of that name, by path."""
        found: dict[str, Mark] = {}
        for root in roots:
            if (self._folder / root).is_dir():
                paths = [f"{root}/{name}" for name in find_files(self._folder / root, "**/*").files]
            else:
                paths = [PurePosixPath(root).with_name(name).as_posix() for name in self._beginning_with(root)]
            for path in paths:
                # What is a link to nothing, or was removed this moment, is refused by whoever needs it.
                with suppress(OSError):
                    if (self._folder / path).is_file():
                        found[path] = file_mark(self._folder / path)
        return found

    def _beginning_with(self, root: str) -> list[str]:
        place, stem = str(PurePosixPath(root).parent), PurePosixPath(root).name
        if place not in self._names:
            listed = os.scandir(self._folder / place) if (self._folder / place).is_dir() else ()
            self._names[place] = sorted(entry.name for entry in listed if not is_leftover(entry.name))
        names = self._names[place]
        result = []
        for name in names[bisect_left(names, stem) :]:
            if not name.startswith(stem):
                break
            if name[len(stem) :][:1] in ("", ".", "_", "-"):
                result.append(name)
        return result
