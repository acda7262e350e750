"""From a scene's stored values to 8 bits and back: how the stretch is measured, applied and undone.

One stretch a scene, never one a chip: neighbouring chips keep their difference in brightness.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geokr_core.chips.config import ChipsConfig, FixedStretch
from geokr_core.errors import ConfigError, SceneRefusedError
from geokr_core.scenes.reader import SceneReader
from geokr_core.scenes.scene import Scene

_SAMPLED_PIXELS = 1_000_000
"""Pixels from which percentiles are measured, at least; a scene of up to four times as many is measured whole."""

_SAMPLED_STRIPS = 16
"""Strips of whole lines, evenly spread over the scene, that the sample is made of."""


@dataclass(frozen=True)
class Stretch:
    """How a scene's values became 8 bits: ``(value - low) / (high - low)``, clipped to 0–1, times 255, rounded.

    Attributes:
        low: value of each band that became 0.
        high: value of each band that became 255.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def apply(self, pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Stretch pixels.

        Args:
            pixels: any numeric (C, H, W) as stored.
            valid: bool (H, W); pixels without data become 0.

        Returns:
            uint8 (H, W, C).
        """
        return np.stack(self.planes(pixels, None if valid.all() else valid), axis=-1)

    def planes(self, pixels: np.ndarray, valid: np.ndarray | None) -> list[np.ndarray]:
        """Stretch pixels and leave the bands apart.

        Args:
            pixels: any numeric (C, H, W) as stored.
            valid: bool (H, W); pixels without data become 0. None: all hold data.

        Returns:
            uint8 (H, W) for each band.
        """
        planes = [_to_bytes(values, *limits) for values, *limits in zip(pixels, self.low, self.high, strict=True)]
        # Times a mask is several times faster than assigning through it.
        return planes if valid is None else [np.multiply(plane, valid, dtype=np.uint8) for plane in planes]

    def undo(self, images: np.ndarray) -> np.ndarray:
        """Bring 8-bit pixels back to the scene's values.

        Args:
            images: uint8 (..., C).

        Returns:
            float32 (..., C) in the scene's units. A value between ``low`` and ``high`` comes back to within half a step
            of ``(high - low) / 255``; one beyond comes back as ``low`` or ``high``.
        """
        low, high = np.array(self.low), np.array(self.high)
        return np.asarray(images * ((high - low) / 255.0) + low, dtype=np.float32)


def _to_bytes(values: np.ndarray, low: float, high: float) -> np.ndarray:
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
        # Every value that 8 or 16 bits can hold is stretched once and then looked up. Arrow takes 16-bit positions as
        # they are; numpy first makes 64-bit ones of them, which costs four times as long.
        positions = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}").ravel()
        looked_up = pc.take(_table(values.dtype.str, low, high), pa.array(positions), boundscheck=False)
        return np.asarray(looked_up.to_numpy().reshape(values.shape))
    # Pixels without data may be NaN, which no integer can hold; the caller overwrites them.
    return _scale(np.nan_to_num(values), low, high)


@lru_cache(maxsize=64)
def _table(dtype: str, low: float, high: float) -> pa.Array:
    """Stretched value of everything an 8- or 16-bit integer can hold, in the order of its bits read as unsigned."""
    bits = np.arange(2 ** (8 * np.dtype(dtype).itemsize)).astype(f"u{np.dtype(dtype).itemsize}")
    return pa.array(_scale(bits.view(np.dtype(dtype).newbyteorder("=")), low, high))


def _scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    # float32 holds 16 bits with room to spare, but not large integers or doubles.
    real = np.dtype(np.float32 if values.dtype.itemsize <= 2 or values.dtype == np.float32 else np.float64)
    limits = np.array([low, high], dtype=real)
    unit = (values.astype(real) - limits[0]) / (limits[1] - limits[0])
    return np.asarray(np.rint(unit.clip(0.0, 1.0) * 255.0).astype(np.uint8))


def choose_stretch(config: ChipsConfig, scene: Scene, reader: SceneReader) -> Stretch:
    """Choose the stretch of a scene as the configuration says.

    Percentiles are those of all pixels with data in 16 strips of whole lines, evenly spread from top to bottom, at least
    a million pixels together: most files hold lines or tiles one after the other, so that a sample spread pixel by
    pixel would read the whole file a second time. Scenes of up to four million pixels are measured whole. The choice
    depends on the scene's size alone, so that the same scene always gets the same stretch.

    Args:
        config: ``stretch`` and what belongs to it, and the bands.
        scene: from the inventory.
        reader: the open scene.

    Returns:
        The stretch, one pair of limits a band.

    Raises:
        ConfigError: ``stretch: none`` for data that are not uint8.
        SceneRefusedError: no pixel of the sample holds data, a band has no contrast, or a fixed scale is far beyond what the
            scene's pixels can stand for.
    """
    num_bands = len(config.bands)
    if config.stretch == "fixed" and config.stretch_fixed is not None:
        return _fixed(config.stretch_fixed, scene, reader, config.bands)
    if config.stretch == "none":
        pixels, _ = reader.read(0, 1)
        if pixels.dtype != np.uint8:
            raise ConfigError(
                f"scene {scene.scene_id}: stored as {pixels.dtype}; `chips.stretch: none` needs uint8. Choose `percentile`."
            )
        return Stretch((0.0,) * num_bands, (255.0,) * num_bands)
    bands = _sample(scene, reader, num_bands)
    if not bands[0].size:
        raise SceneRefusedError("no pixel holds data")
    wanted = (config.stretch_low, config.stretch_high)
    if config.stretch == "joint_percentile":
        return _joint(bands, wanted, _factors(scene, config.bands))
    pairs = [percentiles(values, wanted) for values in bands]
    for name, pair in zip(config.bands, pairs, strict=True):
        _require_contrast(f"band {name} has", wanted, pair)
    return Stretch(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))


def _require_contrast(what: str, wanted: tuple[float, float], pair: Sequence[float]) -> None:
    if pair[1] <= pair[0]:
        raise SceneRefusedError(f"{what} no contrast: percentiles {wanted[0]} and {wanted[1]} are both {pair[0]:g}")


def _factors(scene: Scene, bands: Sequence[str]) -> list[tuple[float, float]]:
    """Scale and offset of each band, by which stored values become physical ones; nothing where the scene states none."""
    places = [scene.bands.index(name) for name in bands] if scene.scales else []
    return [(scene.scales[place], scene.offsets[place]) for place in places]


def _joint(bands: Sequence[np.ndarray], wanted: tuple[float, float], factors: Sequence[tuple[float, float]]) -> Stretch:
    """One pair of limits for all bands: of stored values, or of physical ones where bands are stored by different scales."""
    if len(set(factors)) <= 1:
        limits = percentiles(np.concatenate(bands), wanted)
        _require_contrast("all bands together have", wanted, limits)
        return Stretch((limits[0],) * len(bands), (limits[1],) * len(bands))
    values = [values * scale + offset for values, (scale, offset) in zip(bands, factors, strict=True)]
    limits = percentiles(np.concatenate(values), wanted)
    _require_contrast("all bands together have", wanted, limits)
    return Stretch(*(tuple((limit - offset) / scale for scale, offset in factors) for limit in limits))


def _fixed(fixed: FixedStretch, scene: Scene, reader: SceneReader, bands: Sequence[str]) -> Stretch:
    """Limits in physical values as the scene stores them, so that one reflectance gets one grey whatever a file's scale."""
    low, high = fixed.low * (len(bands) // len(fixed.low)), fixed.high * (len(bands) // len(fixed.high))
    factors = _factors(scene, bands)
    if not factors:
        return Stretch(low, high)
    dtype = reader.read(0, 1)[0].dtype
    for name, low_value, high_value, (scale, offset) in zip(bands, low, high, factors, strict=True):
        if dtype.kind not in "iu":
            break
        ends = sorted(float(end) * scale + offset for end in (np.iinfo(dtype).min, np.iinfo(dtype).max))
        step = (high_value - low_value) / 255.0
        # What the pixels can hold would all become one grey, or two.
        if ends[1] < low_value + step or ends[0] > high_value - step:
            raise SceneRefusedError(
                f"`stretch_fixed` {low_value:g} … {high_value:g} leaves nothing of band {name}: it is in physical values, and "
                f"this band's (stored x {scale:g} + {offset:g}) lie within {ends[0]:g} … {ends[1]:g}. Give the limits as "
                "physical values, e.g. reflectances 0 … 0.3"
            )
    return Stretch(
        tuple((value - offset) / scale for value, (scale, offset) in zip(low, factors, strict=True)),
        tuple((value - offset) / scale for value, (scale, offset) in zip(high, factors, strict=True)),
    )


def _sample(scene: Scene, reader: SceneReader, num_bands: int) -> list[np.ndarray]:
    """Values with data of each band in the strips of the sample, 1-D."""
    parts: list[list[np.ndarray]] = [[] for _ in range(num_bands)]
    for row, height in sample_strips(scene.grid.height, scene.grid.width):
        pixels, valid = reader.read(row, height)
        whole = bool(valid.all())
        for part, values in zip(parts, pixels, strict=True):
            part.append(values.ravel() if whole else values[valid])
    return [np.concatenate(part) for part in parts]


def sample_strips(height: int, width: int) -> list[tuple[int, int]]:
    """First line and number of lines of each strip from which percentiles are measured.

    Args:
        height: lines of the scene.
        width: columns of the scene.
    """
    if height * width <= 4 * _SAMPLED_PIXELS:
        step = max(1, _SAMPLED_PIXELS // width)
        return [(row, min(step, height - row)) for row in range(0, height, step)]
    num_strips = min(_SAMPLED_STRIPS, height)
    lines = -(-_SAMPLED_PIXELS // (num_strips * width))
    return [(int((k + 0.5) * height / num_strips - lines / 2), lines) for k in range(num_strips)]


def percentiles(values: np.ndarray, wanted: Iterable[float]) -> tuple[float, ...]:
    """Percentiles, linear between ranks as numpy has them; integers of up to 16 bits are counted and not sorted.

    Args:
        values: numeric (N,), N at least 1.
        wanted: percentiles in 0–100.

    Returns:
        One value for each.
    """
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2:
        return tuple(float(value) for value in np.percentile(values.astype(np.float64), list(wanted)))
    least = int(np.iinfo(values.dtype).min)
    # Ranks below which each value lies; counting is more than ten times faster than sorting.
    below = np.cumsum(np.bincount(values if least == 0 else values.astype(np.int32) - least))
    found = []
    for percentile in wanted:
        rank = (len(values) - 1) * percentile / 100.0
        lower, upper = np.searchsorted(below, [np.floor(rank), np.ceil(rank)], side="right")
        found.append(float(least + lower + (upper - lower) * (rank - np.floor(rank))))
    return tuple(found)
