"""Which size of places leaves some of them to validation: the split of the data set, tried on where the scenes lie."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from geokr_core.draft.headers import Box
from geokr_core.levir_kr.catalogue import Places
from geokr_core.levir_kr.config import LevirKRConfig

_SIZES_DEG: Final = (5.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
"""Larger places keep more of what is alike on one side of the split, so the largest that serves is taken."""

_WANTED_FRACTION: Final = (0.05, 0.2)
"""Of the ground, held out: as many chips as are needed to watch a training, and not many more."""

_LEAST_HELD_OUT: Final = 3
"""Places that are held out: fewer are one landscape."""

_POINTS: Final = 10_000
"""Of all scenes together, at which the split is tried; at least four by four of each."""


@dataclass(frozen=True)
class PlaceSize:
    """A size of places and what the split makes of it.

    Attributes:
        deg: sides of the squares in degrees.
        num_places: that the scenes lie in.
        num_held_out: of them that go to validation.
        fraction: of the ground that these hold, 0 to 1.
    """

    deg: float
    num_places: int
    num_held_out: int
    fraction: float

    @property
    def serves(self) -> bool:
        """Whether enough places, and not too much of the ground, are held out."""
        low, high = _WANTED_FRACTION
        return self.num_held_out >= _LEAST_HELD_OUT and low <= self.fraction <= high

    @property
    def words(self) -> str:
        """What the split makes of it, in words."""
        return f"{self.num_held_out} of {self.num_places} places are held out, {self.fraction:.0%} of the ground"


def choose_place_size(boxes: Sequence[Box]) -> PlaceSize | None:
    """The largest size that serves; else the one that comes nearest; None where nothing is known or nothing is held out.

    Args:
        boxes: where the scenes lie, degrees.
    """
    tried = []
    for size in _tried(boxes) if boxes else ():
        if size.serves:
            return size
        tried.append(size)
    wanted = LevirKRConfig().validation_fraction
    some = [size for size in tried if 0 < size.num_held_out < size.num_places]
    return min(some, key=lambda size: abs(size.fraction - wanted), default=None)


def _tried(boxes: Sequence[Box]) -> Iterator[PlaceSize]:
    across = max(4, min(24, round(np.sqrt(_POINTS / len(boxes)))))
    steps = (np.arange(across) + 0.5) / across
    ground = [
        np.stack(np.meshgrid(west + steps * (east - west), south + steps * (north - south)), axis=-1).reshape(-1, 2)
        for west, south, east, north in boxes
    ]
    points = pd.DataFrame(np.concatenate(ground), columns=["lon", "lat"])
    for deg in _SIZES_DEG:
        held_out = Places(LevirKRConfig(place_size_deg=deg)).split_of(points) == "validation"
        places = pd.DataFrame(points.to_numpy() // deg).assign(held_out=held_out).drop_duplicates()
        yield PlaceSize(deg, len(places), int(places["held_out"].sum()), float(held_out.mean()))
