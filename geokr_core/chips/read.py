"""Chips read back: the rows of shards, and the summary of a scene."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geokr_core.chips.stretch import Stretch
from geokr_core.errors import MissingInputError
from geokr_core.scenes.reader import open_scene
from geokr_core.scenes.scene import Scene
from geokr_core.scenes.scene_outputs import PIXELS, chip_outputs, scenes_in
from geokr_core.step.summary import Summary


def reread(row: Mapping[Any, Any], source: Path, scene: Scene) -> np.ndarray:
    """Read one chip's pixels again from the raw files, by its recorded transform alone.

    An independent way to the same bytes: the window is found from CRS coordinates, not from the pixel offsets that
    cutting used, so that a shard whose pixels and georeference disagree is found out.

    Args:
        row: a catalogue row with ``transform``, ``size_px``, ``bands``, ``stretch_low``, ``stretch_high``.
        source: the raw scene folder.
        scene: from the inventory.

    Returns:
        uint8 (H, W, C).

    Raises:
        SceneRefusedError: the pixels cannot be read any more.
    """
    size = int(row["size_px"])
    _, _, x, _, _, y = row["transform"]
    col, line = ~scene.grid.transform @ (float(x), float(y))
    with open_scene(source, scene, list(row["bands"])) as reader:
        pixels, valid = reader.read(round(line), size)
    part = slice(round(col), round(col) + size)
    return Stretch(tuple(row["stretch_low"]), tuple(row["stretch_high"])).apply(pixels[:, :, part], valid[:, part])


def read_rows(chips: Path, scene_id: str) -> pd.DataFrame:
    """The catalogue rows of one scene's shard.

    Raises:
        MissingInputError: the scene has no shard.
        DamagedOutputError: its table is not what was written.
    """
    rows: pd.DataFrame = chip_outputs(chips).table(scene_id).to_pandas()
    return rows


def shard_ids(chips: Path) -> list[str]:
    """Scenes that have a shard, in order.

    Raises:
        MissingInputError: there is not one shard.
    """
    found = scenes_in(chips)
    if not found:
        raise MissingInputError(f"{chips}: no shard; run `geokr chips` first.")
    return found


def scene_summary(chips: Path, scene_id: str) -> Summary:
    """What one scene's shard shows for itself, or why there is none.

    Raises:
        MissingInputError: the scene has neither a shard nor a quarantine record.
        DamagedOutputError: a file of it is not what was written.
    """
    outputs = chip_outputs(chips)
    if (reason := outputs.reason(scene_id)) is not None:
        return Summary({"num_chips": 0, "quarantined": reason}, warnings=[f"{scene_id}: {reason}"])
    from geokr_core.pictures.images import as_rgb, mosaic, png

    rows = read_rows(chips, scene_id)
    record = outputs.record(scene_id)
    dropped = record.notes["dropped"] if record is not None else {}
    images = outputs.array(scene_id, PIXELS)
    chosen = np.linspace(0, len(images) - 1, min(24, len(images))).astype(int)
    return Summary(
        numbers={
            "num_chips": len(rows),
            "gsd_m": float(rows["gsd_m"].median()),
            "valid_fraction": round(float(rows["valid_fraction"].mean()), 4),
            "contrast": round(float(rows["contrast"].mean()), 2),
            "num_dropped": sum(dropped.values()),
        },
        table=[{"threshold": name, "dropped": number} for name, number in sorted(dropped.items())],
        picture_png=png(mosaic(as_rgb(images[chosen], tuple(rows["bands"].iloc[0])), columns=8)),
    )
