"""What a disagreement may be: cloud, change, a shift of the map, a confusion of two classes that returns, or a single error."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from geokr_core.audit.config import MapAuditConfig

CLOUD: Final = "cloud"
EDITION: Final = "changed_between_editions"
SHIFT: Final = "misregistration"
TIME_GAP: Final = "image_map_gap"
SYSTEMATIC: Final = "class_confusion"
SINGLE: Final = "single"
KINDS: Final = {
    CLOUD: "the chip is cloudy: look at another image before you doubt the map",
    EDITION: "another edition of the map shows other ground here, nearer to what the image says: the ground changed, or was mended",
    SHIFT: "the map of this place lies on the image only after a shift of a few pixels",
    TIME_GAP: "image and map are years apart: the ground may have changed",
    SYSTEMATIC: "the same two classes are confused at many places: a habit of the map, or of its legend",
    SINGLE: "none of these: an error of the map, or ground that the network cannot tell",
}

_DAYS_A_YEAR: Final = 365.25
_SYSTEMATIC_SHARE: Final = 0.1
_SYSTEMATIC_CHIPS: Final = 10
"""A confusion is systematic if this share, and this number, of the flagged chips have it."""


@dataclass(frozen=True)
class Causes:
    """What else may explain a disagreement, chip by chip.

    Attributes:
        in_other_edition: bool (N,), whether another edition of the map shows other ground, nearer to the image.
        shifted: bool (N,), whether the map of the chip's place is shifted.
    """

    in_other_edition: np.ndarray
    shifted: np.ndarray

    @classmethod
    def none(cls, number: int) -> "Causes":
        """Nothing was looked for."""
        return cls(np.zeros(number, dtype=bool), np.zeros(number, dtype=bool))


def kinds_of(
    config: MapAuditConfig,
    chips: pd.DataFrame,
    moves: tuple[Sequence[str], Sequence[str]],
    flagged: np.ndarray,
    causes: Causes,
) -> list[str]:
    """The kind of each chip's disagreement, the first that applies in the order of `KINDS`.

    Args:
        config: thresholds.
        chips: ``cloud_fraction``, ``gap_days`` of the chips, or of the chips that cells are in.
        moves: the class that the map has too much of, and the one it has too little of, chip by chip.
        flagged: positions of the chips that count as disagreements.
        causes: what else was looked for.
    """
    surplus, missing = moves
    confusions = Counter((surplus[k], missing[k]) for k in flagged)
    least = max(_SYSTEMATIC_CHIPS, _SYSTEMATIC_SHARE * len(flagged))
    returning = {pair for pair, count in confusions.items() if count >= least}
    cloudy = chips["cloud_fraction"].to_numpy(dtype=float) >= config.cloudy_fraction
    apart = np.abs(chips["gap_days"].to_numpy(dtype=float)) > config.max_gap_years * _DAYS_A_YEAR
    systematic = np.array([pair in returning for pair in zip(surplus, missing, strict=True)], dtype=bool)
    tests = (cloudy, causes.in_other_edition, causes.shifted, apart, systematic)
    return [str(kind) for kind in np.select(tests, (CLOUD, EDITION, SHIFT, TIME_GAP, SYSTEMATIC), SINGLE)]
