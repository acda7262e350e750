"""Where there is land: outlines for small maps.

``land/natural_earth_110m.npy`` holds the land of Natural Earth, 1:110 million (naturalearthdata.com, public domain), as the
union of its countries, simplified to 0.15° and without islands below 0.6 square degrees: int16 (N, 2), hundredths of a degree
of longitude and latitude, outlines one after another with a row of -32768 between them.
"""

from functools import cache
from importlib import resources

import numpy as np

_BETWEEN = -32768


@cache
def land_outlines() -> tuple[np.ndarray, ...]:
    """Outlines of land.

    Returns:
        One float64 (M, 2) an outline, longitude and latitude in degrees, closed.
    """
    with (resources.files("geokr_core.pictures") / "land" / "natural_earth_110m.npy").open("rb") as stream:
        points = np.load(stream, allow_pickle=False)
    parts = np.split(points, np.flatnonzero(points[:, 0] == _BETWEEN))
    return tuple(part[part[:, 0] != _BETWEEN].astype(np.float64) / 100.0 for part in parts)
