"""What the last inventory found, so that a scene whose files and settings have not changed keeps its row unopened.

The memory lies beside the inventory, hidden, and is no part of its data version: it can be removed at any time. What the
bytes of a file are is remembered elsewhere (``rasters.checksums``).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import shapely

from geokr_core.scenes.rows import LISTS, USABLE
from geokr_core.step.digests import file_md5
from geokr_core.step.files import read_json, write_json
from geokr_core.step.reporter import Reporter


class KnownRows:
    """Usable rows of the last inventory, by what they were made from."""

    def __init__(self, inventory: Path, memory: Path, reporter: Reporter) -> None:
        """Read what is remembered.

        Args:
            inventory: the table that was written last, if there is one.
            memory: JSON file that says what its rows were made from; a damaged one is as good as none.
            reporter: hears if the memory cannot be read.
        """
        self._inventory, self._memory = inventory, memory
        self._rows: Mapping[str, dict[str, Any]] = {}
        self._old: Mapping[str, Any] = {}
        self._new: dict[str, dict[str, Any]] = {}
        if not memory.is_file():
            return
        try:
            content = read_json(memory)
            if inventory.is_file() and content["inventory"] == file_md5(inventory):
                self._old, self._rows = dict(content["scenes"]), _usable_rows(inventory)
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            reporter.warning(f"{memory}: not readable ({error!r}); every scene is read anew")

    def row(self, scene_id: str, stamp: str) -> tuple[dict[str, Any], tuple[str, ...]] | None:
        """The scene's row and remarks as they were, if its stamp is; None for a scene that is new or changed."""
        known, row = self._old.get(scene_id), self._rows.get(scene_id)
        if row is None or not known or known["stamp"] != stamp:
            return None
        return row, tuple(known["remarks"])

    def note(self, scene_id: str, stamp: str, remarks: tuple[str, ...]) -> None:
        """Remember what a scene's row was made from, and what was remarked."""
        self._new[scene_id] = {"stamp": stamp, "remarks": list(remarks)}

    def save(self) -> None:
        """Write the memory; call it once the new inventory is in place.

        Raises:
            OSError: the file system refused.
        """
        write_json(self._memory, {"scenes": self._new, "inventory": file_md5(self._inventory)})


def _usable_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Usable rows of an inventory as they went in."""
    table = pd.read_parquet(path)
    records = table[table["status"] == USABLE].to_dict("records")
    for record in records:
        record.update({name: list(record[name]) for name in LISTS}, geometry=shapely.from_wkb(record["geometry"]))
    return {str(record["scene_id"]): {str(k): v for k, v in record.items()} for record in records}
