"""The first chips of an audit as one picture: the image, what the map says of it, and what the image says."""

from pathlib import Path

import numpy as np
import pandas as pd

from geokr_core.audit.pairs import Pairs
from geokr_core.pictures.bars import Compared, compared
from geokr_core.pictures.images import as_rgb
from geokr_core.scenes.scene_outputs import CUT_FILE, PIXELS, chip_outputs
from geokr_core.step.files import read_json


def gallery(chips: Path, rows: pd.DataFrame, pairs: Pairs, columns: int = 5) -> bytes:
    """Chips in rows with their rank and kind, below each two bars of land cover, the map's and the image's, and a legend below all.

    Args:
        chips: folder of shards.
        rows: of the audit's table.
        pairs: for classes and their colours.
        columns: chips in a row.

    Returns:
        PNG bytes.

    Raises:
        MissingInputError: a shard is missing.
        DamagedOutputError: one is cut off.
    """
    cut, outputs = read_json(chips / CUT_FILE), chip_outputs(chips)
    listed = []
    for _, row in rows.iterrows():
        shard = outputs.array(str(row["scene_id"]), PIXELS)
        picture = as_rgb(np.asarray(shard[int(row["row"])]), tuple(cut["bands"]))
        caption = f"{row['rank']}  {str(row['kind']).replace('_', ' ')}"
        listed.append(Compared(picture, caption, {said: _shares(row, said, pairs) for said in ("map", "image")}))
    return compared(listed, pairs.classes, pairs.colours, columns)


def _shares(row: "pd.Series[float]", said: str, pairs: Pairs) -> np.ndarray:
    return np.array([float(row[f"{said}_{name}"]) for name in pairs.classes])
