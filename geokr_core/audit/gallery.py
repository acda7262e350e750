"""The first chips of an audit as one picture: the image, what the map says of it, and what the image says."""

from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from geokr_core.audit.pairs import Pairs
from geokr_core.pictures.images import above_legend, as_rgb, below_caption, line_of_text, mosaic, png, proportion_bar
from geokr_core.scenes.scene_outputs import CUT_FILE, PIXELS, chip_outputs
from geokr_core.step.files import read_json

_WIDTH_PX: Final = 180
"""Chips are enlarged to at least this, so that the longest kind fits above them."""

_LABEL_PX: Final = 44
"""Room for the word in front of a bar."""

_GAP_PX: Final = 2
_SHOWN_FRACTION: Final = 0.01
"""A class is in the legend where it has this part of a bar: shorter parts are not to be seen."""


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
    tiles, shown = [], np.zeros(len(pairs.classes), dtype=bool)
    for _, row in rows.iterrows():
        shard = outputs.array(str(row["scene_id"]), PIXELS)
        picture = as_rgb(np.asarray(shard[int(row["row"])]), tuple(cut["bands"]))
        parts = [below_caption(picture, f"{row['rank']}  {str(row['kind']).replace('_', ' ')}", _WIDTH_PX)]
        for said in ("map", "image"):
            shares = _shares(row, said, pairs)
            shown |= shares >= _SHOWN_FRACTION
            parts.append(_bar(said, shares, pairs, parts[0].shape[1]))
        tiles.append(np.concatenate(parts))
    entries = [
        (name.replace("_", " "), colour)
        for name, colour, is_shown in zip(pairs.classes, pairs.colours, shown, strict=True)
        if is_shown
    ]
    return png(above_legend(mosaic(np.stack(tiles), columns, gap_px=10), entries), pairs.colours)


def _shares(row: "pd.Series[float]", said: str, pairs: Pairs) -> np.ndarray:
    shares = np.array([float(row[f"{said}_{name}"]) for name in pairs.classes])
    return shares / max(float(shares.sum()), 1e-9)


def _bar(said: str, shares: np.ndarray, pairs: Pairs, width_px: int) -> np.ndarray:
    """A bar behind the word that says whose shares it shows."""
    word = line_of_text(said, _LABEL_PX)
    bar = proportion_bar(shares, pairs.colours, width_px - _LABEL_PX, len(word) - 2 * _GAP_PX)
    gap = np.full((_GAP_PX, bar.shape[1], 3), 255, dtype=np.uint8)
    return np.concatenate([word, np.concatenate([gap, bar, gap])], axis=1)
