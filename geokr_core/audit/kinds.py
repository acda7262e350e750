"""What a disagreement may be: cloud, time between image and map, a confusion of two classes that returns, or a single error."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np

from geokr_core.audit.config import MapAuditConfig
from geokr_core.audit.pairs import Pairs

CLOUD: Final = "cloud"
TIME_GAP: Final = "image_map_gap"
SYSTEMATIC: Final = "class_confusion"
SINGLE: Final = "single"
KINDS: Final = {
    CLOUD: "the chip is cloudy: look at another image before you doubt the map",
    TIME_GAP: "image and map are years apart: the ground may have changed",
    SYSTEMATIC: "the same two classes are confused at many places: a habit of the map, or of its legend",
    SINGLE: "none of these: an error of the map, or ground that the network cannot tell",
}

_DAYS_A_YEAR: Final = 365.25
_SYSTEMATIC_SHARE: Final = 0.1
_SYSTEMATIC_CHIPS: Final = 10
"""A confusion is systematic if this share, and this number, of the flagged chips have it."""


def kinds_of(
    config: MapAuditConfig, pairs: Pairs, surplus: Sequence[str], missing: Sequence[str], flagged: np.ndarray
) -> list[str]:
    """The kind of each chip's disagreement, the first that applies in the order of `KINDS`.

    Args:
        config: thresholds.
        pairs: the chips.
        surplus: the class that the map has too much of, chip by chip.
        missing: the class that it has too little of.
        flagged: positions of the chips that count as disagreements.
    """
    confusions = Counter((surplus[k], missing[k]) for k in flagged)
    least = max(_SYSTEMATIC_CHIPS, _SYSTEMATIC_SHARE * len(flagged))
    returning = {pair for pair, count in confusions.items() if count >= least}
    cloudy = pairs.chips["cloud_fraction"].to_numpy(dtype=float) >= config.cloudy_fraction
    apart = np.abs(pairs.chips["gap_days"].to_numpy(dtype=float)) > config.max_gap_years * _DAYS_A_YEAR
    return [
        CLOUD
        if cloudy[k]
        else TIME_GAP
        if apart[k]
        else SYSTEMATIC
        if (surplus[k], missing[k]) in returning
        else SINGLE
        for k in range(len(surplus))
    ]
