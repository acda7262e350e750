"""Chips in rows, each above bars of land cover that are to be compared, and a legend below all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from geokr_core.pictures.images import above_legend, below_caption, line_of_text, mosaic, png, proportion_bar

_WIDTH_PX: Final = 180
"""Chips are enlarged to at least this, so that a caption fits above them."""

_LABEL_PX: Final = 56
"""Room for the word in front of a bar."""

_GAP_PX: Final = 2
_SHOWN_FRACTION: Final = 0.01
"""A class is in the legend where it has this part of a bar: shorter parts are not to be seen."""


@dataclass(frozen=True)
class Compared:
    """A chip, its caption, and the shares of its classes by several sources.

    Attributes:
        picture: uint8 (H, W, 3).
        caption: a few words, written above it.
        shares: by the word that says whose they are, float (K,), 0 to 1; each is stretched to the length of a bar.
    """

    picture: np.ndarray
    caption: str
    shares: Mapping[str, np.ndarray]


def compared(chips: Sequence[Compared], classes: Sequence[str], colours: tuple[str, ...], columns: int = 5) -> bytes:
    """Chips in rows with their captions, below each a bar for each of those that speak of it, and below all the legend.

    Args:
        chips: of one size, with the same words in the same order.
        classes: names of the K classes.
        colours: their ``#RRGGBB``.
        columns: chips in a row.

    Returns:
        PNG bytes.
    """
    tiles, shown = [], np.zeros(len(classes), dtype=bool)
    for chip in chips:
        parts = [below_caption(chip.picture, chip.caption, _WIDTH_PX)]
        for word, given in chip.shares.items():
            shares = given / max(float(given.sum()), 1e-9)
            shown |= shares >= _SHOWN_FRACTION
            parts.append(_bar(word, shares, colours, parts[0].shape[1]))
        tiles.append(np.concatenate(parts))
    entries = [
        (name.replace("_", " "), colour)
        for name, colour, is_shown in zip(classes, colours, shown, strict=True)
        if is_shown
    ]
    return png(above_legend(mosaic(np.stack(tiles), columns, gap_px=10), entries), colours)


def _bar(word: str, shares: np.ndarray, colours: tuple[str, ...], width_px: int) -> np.ndarray:
    """A bar behind the word that says whose shares it shows."""
    label = line_of_text(word, _LABEL_PX)
    bar = proportion_bar(shares, colours, width_px - _LABEL_PX, len(label) - 2 * _GAP_PX)
    gap = np.full((_GAP_PX, bar.shape[1], 3), 255, dtype=np.uint8)
    return np.concatenate([label, np.concatenate([gap, bar, gap])], axis=1)
