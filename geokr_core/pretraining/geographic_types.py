"""Types of ground: clusters of what covers a chip and of where it lies, as classes to be distinguished.

Ten proportions say little of a chip that is pure; its type says what ground it is, and where. The idea is that of
geo-location classification (Ayush and others 2021, "Geography-aware self-supervised learning"), with land cover beside place.

Not here: the head and the loss (``pretraining.network``, ``pretraining.objectives``).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.cluster.vq import kmeans2, vq

_ITERATIONS: Final = 30
_SEED: Final = 0
"""Types are the same for all seeds of a variant, so that these differ in their training alone."""


@dataclass(frozen=True)
class GeographicTypes:
    """Centres of types.

    Attributes:
        centres: float64 (T, K + 3), in the space of `_described`.
        land_cover_factor: scale of the land-cover coordinates.
        place_factor: scale of the coordinates of place.
    """

    centres: np.ndarray
    land_cover_factor: float
    place_factor: float

    def of(self, proportions: np.ndarray, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """The type of each chip, int64 (N,): that of the nearest centre.

        Args:
            proportions: float (N, K) land cover.
            lon: degrees (N,).
            lat: degrees (N,).
        """
        described = _described(proportions, lon, lat, self.land_cover_factor, self.place_factor)
        nearest: np.ndarray = vq(described, self.centres)[0].astype(np.int64)
        return nearest


def fit_types(
    proportions: np.ndarray,
    lon: np.ndarray,
    lat: np.ndarray,
    num_types: int,
    land_cover_factor: float = 1.0,
    place_factor: float = 1.0,
) -> GeographicTypes:
    """Find types by k-means (k-means++ starts, `_ITERATIONS` rounds), the same ones for the same chips.

    Args:
        proportions: float (N, K) land cover of the training chips.
        lon: degrees (N,).
        lat: degrees (N,).
        num_types: T, at most N.
        land_cover_factor: 0 leaves land cover out.
        place_factor: 0 leaves place out.
    """
    described = _described(proportions, lon, lat, land_cover_factor, place_factor)
    # Chips of one class and one place are alike to the last digit: more types than kinds of chips would stay empty.
    num_kinds = len(np.unique(described, axis=0))
    centres, _ = kmeans2(described, min(num_types, num_kinds), iter=_ITERATIONS, minit="++", rng=_SEED)
    return GeographicTypes(centres, land_cover_factor, place_factor)


def _described(
    proportions: np.ndarray, lon: np.ndarray, lat: np.ndarray, land_cover_factor: float, place_factor: float
) -> np.ndarray:
    """float64 (N, K + 3): square roots of the shares (a vector of length 1), and the place as a unit vector from the globe's centre.

    The distance of square roots is Hellinger's: a share that comes from nothing counts more than one that grows.
    """
    east, north = np.radians(np.asarray(lon, np.float64)), np.radians(np.asarray(lat, np.float64))
    place = np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)], axis=1)
    cover = np.sqrt(np.asarray(proportions, np.float64))
    return np.hstack([land_cover_factor * cover, place_factor * place])
