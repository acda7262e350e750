"""The map that a team had before: what an older or coarser product says of the same chips, and maps of shares that learned from it alone.

Not here: the tables (``bench.maps``, ``bench.forest_maps``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from geokr_core.audit.pairs import other_shares
from geokr_core.bench.mapped import mapped_shares
from geokr_core.land_cover_shares.outputs import RESULT_FILE
from geokr_core.scenes.scene_outputs import proportion_outputs

LEARNED: Final = "learned_from_"
"""Before the name of an older map: what learned from it alone."""


@dataclass(frozen=True)
class OlderMap:
    """An older or coarser map of chips.

    Attributes:
        product: its name in the store that counted it.
        shares: float64 (N, K), what it says of the chips; NaN where it does not know them.
        learned: float64 (N, K), what ``geokr predict`` of that store says, whose head knows no other map; None: nothing was mapped there.
    """

    product: str
    shares: np.ndarray
    learned: np.ndarray | None


def read_older_map(store: Path, chips: pd.DataFrame, classes: Sequence[str], chip_size_px: int) -> OlderMap:
    """Read what a store of the same scenes and the same chips counted in its own land cover, and mapped after it.

    Args:
        store: holds ``proportions``, and ``land_cover_shares`` or none.
        chips: ``chip_id``, ``scene_id``, ``pixel_row`` and ``pixel_col`` of N chips.
        classes: K names.
        chip_size_px: side of the chips.

    Raises:
        MissingInputError: no land cover was counted in the store.
        AuditError: it was counted by another legend, or under none of the chips.
        OSError: a map is missing.
    """
    folder, maps = store / "proportions", store / "land_cover_shares"
    shares = other_shares(chips, tuple(classes), folder)
    learned = mapped_shares(maps, chips, chip_size_px) if (maps / RESULT_FILE).is_file() else None
    outputs = proportion_outputs(folder)
    counted = next(scene for scene in chips["scene_id"].unique().tolist() if outputs.whole(scene))
    product = outputs.table(counted, ["product"]).to_pandas()["product"].iloc[0]
    return OlderMap(str(product), shares, learned)


def said_by(older: Sequence[OlderMap]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Shares of the chips by name, and the words for each name: every older map, then what learned from it alone."""
    given, words = dict[str, np.ndarray](), dict[str, str]()
    for one in older:
        given[one.product], words[one.product] = one.shares, f"`{one.product}`, the map of before"
        if one.learned is not None:
            name = f"{LEARNED}{one.product}"
            given[name], words[name] = one.learned, f"`geokr predict` that knows `{one.product}` alone"
    return given, words
