"""Random fields on a metric plane: value noise, noise summed over octaves, and random numbers per cell.

Every field is a pure function of (seed, name, x, y): it can be evaluated on any grid, in any order, in pieces. What
the fields mean is decided in ``terrain`` and ``surface``.
"""

import math
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_PERIOD = 256
"""Side of the random tables; a field repeats after this many cells, far beyond any one place."""

_BLOCK = 1 << 14
"""Points handled at a time: the intermediate arrays stay in the processor's cache."""

_OCTAVE_DEVIATION = math.sqrt(1 / 12) * 0.78355
"""Standard deviation of one octave: uniform corner values (1/12) blended by the quintic fade in x and y.

With w = 6t⁵ − 15t⁴ + 10t³, the mean of w² + (1 − w)² over t in 0–1 is 0.78355, once for each axis.
"""

# Stream numbers: first entry of the spawn keys, so that parts of the world draw from unrelated streams.
STREAM_PLACE = 1
STREAM_SCENE = 2
STREAM_TILE = 3
STREAM_TASK = 4


def generator(seed: int, *key: int | str) -> np.random.Generator:
    """A generator for one thing in the world; no draw of it depends on any other thing.

    Args:
        seed: the world's seed.
        key: what it is for, such as a stream number, an index and a name.
    """
    numbers = tuple(zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=numbers))


@dataclass(frozen=True)
class Noise:
    """All random fields of one place.

    Attributes:
        seed: the world's seed.
        key: stream and index of the place.
    """

    seed: int
    key: tuple[int, ...]

    def values(self, name: str, x: np.ndarray, y: np.ndarray, wavelength_m: float, octave: int = 0) -> np.ndarray:
        """One octave of value noise.

        Args:
            name: which field.
            x: float32, any shape, metres.
            y: float32, same shape, metres.
            wavelength_m: side of a cell.
            octave: which octave of the field; each has its own table and is turned against the others.

        Returns:
            float32, same shape, mean 0 and standard deviation about 1.
        """
        table, turn = _table(self.seed, self.key, name, octave)
        scale = 1.0 / wavelength_m
        cos, sin = np.float32(math.cos(turn) * scale), np.float32(math.sin(turn) * scale)
        out = np.empty(x.shape, dtype=np.float32)
        flat, flat_x, flat_y = out.reshape(-1), x.reshape(-1), y.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            part = slice(start, start + _BLOCK)
            px, py = flat_x[part], flat_y[part]
            flat[part] = _blended(table, px * cos + py * sin, py * cos - px * sin)
        return out

    def octaves(
        self, name: str, x: np.ndarray, y: np.ndarray, wavelength_m: float, num: int, gain: float = 0.5
    ) -> np.ndarray:
        """Value noise summed over octaves, each of half the wavelength and ``gain`` times the strength of the last.

        Returns:
            float32, shape of ``x``, mean 0 and standard deviation about 1.
        """
        total = self.values(name, x, y, wavelength_m)
        power = weight = 1.0
        for octave in range(1, num):
            weight *= gain
            power += weight * weight
            total += np.float32(weight) * self.values(name, x, y, wavelength_m / 2**octave, octave)
        return np.asarray(total * np.float32(1.0 / math.sqrt(power)))

    def per_cell(self, name: str, column: np.ndarray, row: np.ndarray) -> np.ndarray:
        """One random number a cell.

        Args:
            name: which number.
            column: whole numbers, any shape.
            row: whole numbers, same shape.

        Returns:
            float32 in 0–1, same shape.
        """
        table, _ = _table(self.seed, self.key, f"cell:{name}", 0)
        i, j = column.astype(np.int32) & (_PERIOD - 1), row.astype(np.int32) & (_PERIOD - 1)
        return table[j * _PERIOD + i] * np.float32(_OCTAVE_DEVIATION) + np.float32(0.5)


@lru_cache(maxsize=512)
def _table(seed: int, key: tuple[int, ...], name: str, octave: int) -> tuple[np.ndarray, float]:
    rng = generator(seed, *key, name, octave)
    table = (rng.random(_PERIOD * _PERIOD, dtype=np.float32) - np.float32(0.5)) / np.float32(_OCTAVE_DEVIATION)
    table.flags.writeable = False
    return table, float(rng.uniform(0, 2 * math.pi))


def _blended(table: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Corner values of the cells of (u, v), blended; ``u`` and ``v`` float32 (N,) counted in cells."""
    column, row = np.floor(u), np.floor(v)
    fade_u, fade_v = _fade(u - column), _fade(v - row)
    i, j = column.astype(np.int32) & (_PERIOD - 1), row.astype(np.int32) & (_PERIOD - 1)
    top_left = j * _PERIOD + i
    top_right = j * _PERIOD + ((i + 1) & (_PERIOD - 1))
    last = _PERIOD * _PERIOD - 1  # the mask that wraps the row below the last to the first
    left, right = table.take(top_left), table.take(top_right)
    top = left + fade_u * (right - left)
    left, right = table.take((top_left + _PERIOD) & last), table.take((top_right + _PERIOD) & last)
    bottom = left + fade_u * (right - left)
    return np.asarray(top + fade_v * (bottom - top))


def _fade(t: np.ndarray) -> np.ndarray:
    return np.asarray(t * t * t * (t * (t * np.float32(6) - np.float32(15)) + np.float32(10)))


def smooth_step(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """From 0 below ``low`` to 1 above ``high`` without a kink.

    Returns:
        float32 in 0–1, shape of ``values``.
    """
    t = ((values - np.float32(low)) * np.float32(1.0 / (high - low))).clip(0, 1)
    return np.asarray(t * t * (np.float32(3) - np.float32(2) * t))


def seen_contrast(wavelength_m: float, gsd_m: float) -> np.float32:
    """Share of a wave's contrast that square pixels of side ``gsd_m`` keep: sinc(gsd / wavelength).

    Textures are sampled at pixel centres; this stands for the averaging over the pixel that a sensor does.
    """
    return np.float32(max(0.0, float(np.sinc(gsd_m / wavelength_m))))
