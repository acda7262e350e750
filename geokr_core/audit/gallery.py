"""The first chips of an audit as one picture: the image, what the map says of it, and what the image says."""

from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from geokr_core.audit.pairs import Pairs
from geokr_core.pictures.images import as_rgb, mosaic, png, proportion_bar
from geokr_core.scenes.scene_outputs import CUT_FILE, PIXELS, chip_outputs
from geokr_core.step.files import read_json

_BAR_PX: Final = 10
_GAP_PX: Final = 2


def gallery(chips: Path, rows: pd.DataFrame, pairs: Pairs, columns: int = 5) -> bytes:
    """Chips in rows, below each two bars of land cover: the map's, then the image's.

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
    tiles = []
    for _, row in rows.iterrows():
        shard = outputs.array(str(row["scene_id"]), PIXELS)
        picture = as_rgb(np.asarray(shard[int(row["row"])]), tuple(cut["bands"]))
        bars = [_bar(row, said, pairs, picture.shape[1]) for said in ("map", "image")]
        gap = np.full((_GAP_PX, picture.shape[1], 3), 255, dtype=np.uint8)
        tiles.append(np.concatenate([picture, gap, bars[0], gap, bars[1]]))
    return png(mosaic(np.stack(tiles), columns, gap_px=8))


def _bar(row: "pd.Series[float]", said: str, pairs: Pairs, width_px: int) -> np.ndarray:
    shares = np.array([float(row[f"{said}_{name}"]) for name in pairs.classes])
    return proportion_bar(shares / max(float(shares.sum()), 1e-9), pairs.colours, width_px, _BAR_PX)
