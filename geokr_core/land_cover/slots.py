"""What a cell of a land-cover tile becomes when it is read: its slot, one byte.

A product's codes are any numbers of up to 32 bits. Before anything is counted, each is translated to a slot of the common
legend with its K classes:

==============  ===================================================  =============================================
slot            the cell's code is                                   a chip's row counts it in
==============  ===================================================  =============================================
0 … K - 1       a class that belongs to common class k               ``known_fraction``, ``fraction_<class>``
252 `UNLISTED`  in no list of the legend                             nothing: an error that names the code
253 `UNKNOWN`   no data, or hidden by a mask                         ``unknown_fraction``, if no other tile knows more
254 `SEA`       the open sea, where a product has a code for it      ``sea_fraction``
255 `EXCLUDED`  a class that the common legend leaves out            ``excluded_fraction``
==============  ===================================================  =============================================
"""

from collections.abc import Mapping

import numpy as np

UNLISTED = 252
UNKNOWN = 253
SEA = 254
EXCLUDED = 255

MAX_CLASSES = UNLISTED
"""Classes a legend may have: what the slots of one byte leave over."""

CODE_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32")
"""Raster types that codes may be stored in."""


def translated(codes: np.ndarray, listed: Mapping[int, int]) -> np.ndarray:
    """Codes as slots.

    Args:
        codes: one of `CODE_TYPES`, any shape.
        listed: slot by code.

    Returns:
        uint8 of the same shape; `UNLISTED` where a code is not listed.
    """
    return _by_table(codes, listed) if codes.dtype.itemsize <= 2 else _by_search(codes, listed)


def _by_table(codes: np.ndarray, listed: Mapping[int, int]) -> np.ndarray:
    """Codes of 8 or 16 bits: one look-up by the code's bit pattern, so that signed codes need no separate case."""
    bits = np.dtype(f"u{codes.dtype.itemsize}")
    limits = np.iinfo(codes.dtype)
    table = np.full(np.iinfo(bits).max + 1, UNLISTED, dtype=np.uint8)
    for code, slot in listed.items():
        if limits.min <= code <= limits.max:
            table[code & int(np.iinfo(bits).max)] = slot
    return np.asarray(table[codes.view(bits)])


def _by_search(codes: np.ndarray, listed: Mapping[int, int]) -> np.ndarray:
    """Wider codes: search among the few that are listed."""
    keys = np.array(sorted(listed), dtype=np.int64)
    values = np.array([listed[int(key)] for key in keys], dtype=np.uint8)
    wide = codes.astype(np.int64)
    places = np.searchsorted(keys, wide).clip(max=len(keys) - 1)
    return np.where(keys[places] == wide, values[places], np.uint8(UNLISTED))
