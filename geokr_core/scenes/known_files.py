"""Files of the scene folder as they lie there, and what an earlier inventory knows of them.

An archive is read whole once. Afterwards a file's digest is taken from memory while its size and modification time
stand; a scene's whole row is, while none of its files came, went or was written to. The memory lies beside the
inventory, hidden, and is no part of its data version: it can be removed at any time.
"""

import json
import os
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import shapely

from geokr_core.step.digests import file_md5, text_digest
from geokr_core.step.files import read_json, write_json
from geokr_core.step.reporter import Reporter

_SAVE_EVERY_S = 30.0


class Listing:
    """Names, sizes and modification times below a folder; every directory is listed once."""

    def __init__(self, folder: Path) -> None:
        """Take the scene folder."""
        self._folder = folder
        self._names: dict[str, list[str]] = {}

    def digest(self, roots: Sequence[str]) -> str:
        """Digest of all files whose names begin with one of ``roots``, or that lie in a folder of that name."""
        found: dict[str, tuple[int, int]] = {}
        for root in roots:
            if (self._folder / root).is_dir():
                paths = [Path(top) / name for top, _, names in os.walk(self._folder / root) for name in names]
            else:
                paths = [self._folder / PurePosixPath(root).with_name(name) for name in self._beginning_with(root)]
            for path in paths:
                try:
                    stat = path.stat()
                except FileNotFoundError:
                    continue  # a link to nowhere, or removed this moment; whoever needs it will say so
                found[path.relative_to(self._folder).as_posix()] = (stat.st_size, stat.st_mtime_ns)
        return text_digest(sorted(found.items()))

    def _beginning_with(self, root: str) -> list[str]:
        place, stem = str(PurePosixPath(root).parent), PurePosixPath(root).name
        if place not in self._names:
            self._names[place] = sorted(entry.name for entry in os.scandir(self._folder / place) if entry.is_file())
        names = self._names[place]
        result = []
        for name in names[bisect_left(names, stem) :]:
            if not name.startswith(stem):
                break
            if name[len(stem) :][:1] in ("", ".", "_", "-"):
                result.append(name)
        return result


class Seen:
    """What the last inventory saw."""

    def __init__(self, out: Path, reporter: Reporter) -> None:
        """Read what is remembered beside ``out``, the inventory's folder; nothing is remembered at first."""
        self._path = out.with_name(f".{out.name}-seen.json")
        self._inventory = out / "inventory.parquet"
        self._files: dict[str, list[Any]] = {}
        self._stamps: dict[str, str] = {}
        self._old_stamps: Mapping[str, str] = {}
        self._rows: dict[str, dict[str, Any]] = {}
        self._saved_s = time.monotonic()
        if not self._path.is_file():
            return
        try:
            memory = read_json(self._path)
            self._files = dict(memory["files"])
            if self._inventory.is_file() and memory["inventory"] == file_md5(self._inventory):
                self._old_stamps = memory["stamps"]
                self._rows = _rows(self._inventory)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            reporter.warning(f"{self._path}: not readable ({error!r}); every scene is read anew")

    def md5(self, path: Path) -> str:
        """The md5 of a file's bytes, read only if its size or modification time is not what it was.

        Raises:
            OSError: the file cannot be read.
        """
        stat = path.stat()
        known = self._files.get(key := path.as_posix())
        if known is None or known[:2] != [stat.st_size, stat.st_mtime_ns]:
            known = self._files[key] = [stat.st_size, stat.st_mtime_ns, file_md5(path)]
            # Hashing an archive takes hours: a killed run goes on where it was.
            if time.monotonic() - self._saved_s > _SAVE_EVERY_S:
                self._write("")
        return str(known[2])

    def row(self, scene_id: str, stamp: str) -> dict[str, Any] | None:
        """The scene's row as it was, if its stamp is; None for a scene that is new, changed or was refused."""
        return self._rows.get(scene_id) if self._old_stamps.get(scene_id) == stamp else None

    def note(self, scene_id: str, stamp: str) -> None:
        """Remember what a scene's row was made from."""
        self._stamps[scene_id] = stamp

    def save(self) -> None:
        """Remember the inventory just written, and no file that has vanished; call it once the inventory is in place."""
        self._files = {path: known for path, known in self._files.items() if Path(path).exists()}
        self._write(file_md5(self._inventory))

    def _write(self, inventory: str) -> None:
        write_json(self._path, {"files": self._files, "stamps": self._stamps, "inventory": inventory})
        self._saved_s = time.monotonic()


def _rows(path: Path) -> dict[str, dict[str, Any]]:
    """Usable rows of an inventory as they went in."""
    table = pd.read_parquet(path)
    table = table[table["status"] == "usable"]
    records = table.to_dict("records")
    lists = ("files", "bands", "transform", "scales", "offsets")
    for record in records:
        record.update({name: list(record[name]) for name in lists}, geometry=shapely.from_wkb(record["geometry"]))
    return {str(record["scene_id"]): {str(k): v for k, v in record.items()} for record in records}
