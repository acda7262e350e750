"""Vectors as 8-bit integers: a scale and an offset a dimension, by which they become float32 again."""

from dataclasses import dataclass

import numpy as np

STEPS = 254
"""Steps between the smallest and the largest value of a dimension: -127 to 127, as symmetric integers have."""


@dataclass(frozen=True)
class Quantised:
    """Vectors of one scene as integers; ``codes * scale + offset`` are the vectors.

    Attributes:
        codes: int8 (N, D), -127 to 127.
        scale: float32 (D,), above 0.
        offset: float32 (D,), the middle of each dimension's values.
    """

    codes: np.ndarray
    scale: np.ndarray
    offset: np.ndarray

    def restored(self) -> np.ndarray:
        """The vectors, float32 (N, D), each value within half a step of what it was."""
        restored: np.ndarray = self.codes.astype(np.float32) * self.scale + self.offset
        return restored


def quantise(vectors: np.ndarray) -> Quantised:
    """Quantise vectors, each dimension over the range of its values.

    Args:
        vectors: float32 (N, D), finite, N at least 1.

    Returns:
        The integers with scale and offset; a constant dimension is kept exactly by its offset.
    """
    low, high = vectors.min(axis=0).astype(np.float64), vectors.max(axis=0).astype(np.float64)
    offset = ((low + high) / 2).astype(np.float32)
    scale = ((high - low) / STEPS).astype(np.float32)
    scale[scale <= 0] = 1.0
    codes = np.rint((vectors - offset) / scale).clip(-127, 127).astype(np.int8)
    return Quantised(codes, scale, offset)
