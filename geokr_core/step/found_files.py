"""What lies below a folder that a user filled: the files that a pattern matches, found the same way everywhere.

Links are followed, each folder once. What operating systems and archives leave behind is skipped and counted. What is
listed but cannot be reached (a link to nothing, a folder that may not be read) is returned by name, because a file that
silently does not count is worse than one that is refused. No file is opened here, and no format is known.
"""

import errno
import fnmatch
import hashlib
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_LEFTOVER_NAMES: Final = frozenset(
    {
        "$recycle.bin",  # Windows: bin, protected folder, thumbnails, folder settings
        "system volume information",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "__macosx",  # zip archives made by macOS
        "icon\r",
        "@eadir",  # network stores: thumbnails, bins, snapshots
        "@tmp",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "~snapshot",
        "lost+found",  # file systems: what a check of the disk saved
    }
)
_LEFTOVER_ENDINGS: Final = ("~", ":zone.identifier")
"""Copies that editors keep, and where Windows says that a file was downloaded."""


def is_leftover(name: str) -> bool:
    """Whether a file or folder is something that an operating system, an archive or an editor left behind.

    Every hidden name counts (``._scene.tif`` and ``.DS_Store`` of macOS, ``.Trash-1000``, ``.git``), and those that
    Windows, zip archives and network stores write (``Thumbs.db``, ``__MACOSX``, ``@eaDir``).

    Args:
        name: name of the file or folder, without its path.
    """
    folded = name.casefold()
    return name.startswith(".") or folded in _LEFTOVER_NAMES or folded.endswith(_LEFTOVER_ENDINGS)


def glob_fault(pattern: str) -> str:
    """What is wrong with a pattern of paths below a folder; empty where nothing is.

    Args:
        pattern: as ``files`` of a collection: ``*`` and ``?`` within a name, ``[…]`` one of some characters, ``**``
            alone between slashes any number of folders.
    """
    parts = pattern.split("/")
    if not pattern.strip():
        return "it is empty: give a pattern of file names, e.g. `**/*.tif`"
    if pattern.startswith("/") or re.match(r"[A-Za-z]:", pattern):
        return f"{pattern!r} is absolute: give a pattern of paths below the folder, e.g. `**/*.tif`"
    if ".." in parts:
        return f"{pattern!r} leaves the folder: `..` has no place in a pattern"
    if wrong := next((part for part in parts if "**" in part and part != "**"), None):
        return f"{wrong!r} in {pattern!r}: `**` stands alone between slashes; write `**/{wrong.replace('**', '*')}`"
    if "" in parts:
        return f"{pattern!r} has a name missing before, between or after its slashes"
    return ""


@dataclass(frozen=True)
class FoundFiles:
    """What a pattern matches below a folder. Paths are relative to the folder, with forward slashes, sorted.

    Attributes:
        files: regular files, also those that links lead to.
        folders: folders that the whole pattern matches.
        unreachable: what is listed but cannot be had, and why: a file that the pattern matches, or a folder on the way.
        leftovers: what operating systems and archives left there and the pattern would have matched.
        repeated: links to folders that are followed elsewhere, or that contain the folder they lie in.
    """

    files: tuple[str, ...]
    folders: tuple[str, ...]
    unreachable: Mapping[str, str]
    leftovers: tuple[str, ...]
    repeated: tuple[str, ...]


def find_files(folder: Path, pattern: str) -> FoundFiles:
    """Find files below a folder.

    Folders that lie there themselves come before folders that links lead to, so that a path does not change because
    somebody adds a link. Each folder is visited once; a link back to a folder above is not followed.

    Args:
        folder: an existing folder.
        pattern: see `glob_fault`. A ``**`` at the end stands for all files below.

    Raises:
        ValueError: `glob_fault` has something to say about the pattern.
        OSError: the folder itself cannot be listed.
    """
    if fault := glob_fault(pattern):
        raise ValueError(fault)
    parts = pattern.split("/")
    search = _Search(folder, (*parts, "*") if parts[-1] == "**" else tuple(parts))
    search.run()
    return FoundFiles(
        files=tuple(sorted(search.files)),
        folders=tuple(sorted(search.folders)),
        unreachable=dict(sorted(search.unreachable.items())),
        leftovers=tuple(sorted(search.leftovers)),
        repeated=tuple(sorted(search.repeated)),
    )


@dataclass
class _Search:
    folder: Path
    parts: tuple[str, ...]
    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    unreachable: dict[str, str] = field(default_factory=dict)
    leftovers: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)

    def run(self) -> None:
        self._patterns = [re.compile(fnmatch.translate(part)) for part in self.parts]
        top = self.folder.resolve()
        self._seen = {_identity(place.stat()) for place in top.parents}
        self._linked: list[tuple[str, frozenset[int]]] = [("", self._reached({0}))]
        while self._linked:
            # The linked folder with the first name in the order of paths, after all that lies there itself.
            self._linked.sort(reverse=True)
            path, reached = self._linked.pop()
            identity = _identity((self.folder / path).stat())
            if identity in self._seen:
                self.repeated.append(path)
                continue
            self._seen.add(identity)
            self._visit(path, reached)

    def _visit(self, path: str, reached: frozenset[int]) -> None:
        """Look at what a folder holds; ``reached`` are the parts of the pattern that its entries may match."""
        try:
            with os.scandir(self.folder / path) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if not path:
                raise
            self.unreachable[path] = f"the folder cannot be listed ({error.strerror})"
            return
        for entry in listed:
            matches, below = self._match(entry.name, reached)
            if not matches and not below:
                continue
            name = f"{path}/{entry.name}" if path else entry.name
            if is_leftover(entry.name):
                if matches or entry.is_dir(follow_symlinks=False):
                    self.leftovers.append(name)
            elif not entry.name.isprintable() and (fault := _name_fault(entry.name)):
                self.unreachable[printable(name)] = fault
            else:
                self._sort_in(entry, name, below, matches=matches)

    def _sort_in(self, entry: "os.DirEntry[str]", name: str, below: frozenset[int], *, matches: bool) -> None:
        try:
            status = entry.stat()
        except OSError as error:
            self.unreachable[name] = _unreached(self.folder / name, error)
            return
        if stat.S_ISDIR(status.st_mode):
            if matches:
                self.folders.append(name)
            if below and entry.is_symlink():
                self._linked.append((name, below))
            elif below and _identity(status) not in self._seen:
                self._seen.add(_identity(status))
                self._visit(name, below)
        elif not matches:
            return
        elif stat.S_ISREG(status.st_mode):
            self.files.append(name)
        else:
            self.unreachable[name] = "neither a file nor a folder"

    def _match(self, name: str, reached: frozenset[int]) -> tuple[bool, frozenset[int]]:
        """Whether a name ends the pattern, and the parts of the pattern that entries below it may match."""
        hit = {part for part in reached if self.parts[part] != "**" and self._patterns[part].fullmatch(name)}
        below = {part for part in reached if self.parts[part] == "**"} | {part + 1 for part in hit}
        last = len(self.parts) - 1
        return last in hit, self._reached(part for part in below if part <= last)

    def _reached(self, parts: Iterable[int]) -> frozenset[int]:
        """``parts`` of the pattern and those behind a ``**``, which may stand for no folder at all."""
        reached = set(parts)
        for part in range(len(self.parts)):
            if part in reached and self.parts[part] == "**":
                reached.add(part + 1)
        return frozenset(reached)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _name_fault(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8 text; rename it, e.g. with convmv"
    return ""


def _unreached(path: Path, error: OSError) -> str:
    if not path.is_symlink():
        return f"it cannot be reached ({error.strerror})"
    target = printable(str(path.readlink()))
    if error.errno == errno.ELOOP:
        return f"a link to {target}, which leads in a circle"
    if error.errno == errno.ENOENT:
        return (
            f"a link to {target}, where there is nothing: fetch what it stands for, mount its disk, or remove the link"
        )
    return f"a link to {target}, which cannot be reached ({error.strerror})"


def printable(name: str) -> str:
    """A file name as text that can be stored anywhere: bytes that are not UTF-8 become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


_MOST_ID_BYTES: Final = 200
"""What file systems allow in a name (255 bytes), less the endings that outputs and their temporary files add."""


def readable_id(path: str) -> str:
    """An identifier made from a path: stable, readable, and usable as a file name.

    Letters and digits of any script stay, runs of anything else become ``-``. ASCII paths that differ in nothing else share
    an identifier (``a b`` and ``a-b``). Every other path that does not stay as it is gets eight digits of its digest, so
    that different paths have different identifiers.

    Args:
        path: with forward slashes, without ending.

    Returns:
        At most 200 bytes of UTF-8; empty where an ASCII path has neither letter nor digit.
    """
    text = re.sub("\0+", "-", "".join(letter if _stays(letter) else "\0" for letter in path)).strip("-._")
    text = re.sub(r"\.{3,}", "-", text)  # Dagster takes three dots of a partition for a range of them
    too_long = len(text.encode()) > _MOST_ID_BYTES
    if (path.isascii() or text == path) and not too_long:
        return text
    short = text.encode()[: _MOST_ID_BYTES - 9].decode(errors="ignore") if too_long else text
    return f"{short}-{_digest(path)}".lstrip("-")


def _digest(path: str) -> str:
    return hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _stays(letter: str) -> bool:
    # Marks (accents, vowel signs) are no letters of their own, but many scripts cannot be read without them.
    return letter in "._-" or letter.isalnum() or unicodedata.category(letter).startswith("M")
