"""Quality of chips: fractions and contrast from running sums over whole lines, and which chips are left out for it."""

from collections.abc import Sequence

import numpy as np

from geokr_core.config import ChipsConfig

_SATURATED = 250
"""8-bit value from which a pixel counts as saturated if it holds in every band."""

_DARK = 20
"""Mean 8-bit brightness below which a pixel counts as dark: shadow or water."""

MAX_GROUP_LINES = 255
"""Lines that may be summed at once: as many ones fit into 8 bits, in which counting is fastest."""

NUM_SUMS = 6


def chip_sums(
    planes: Sequence[np.ndarray],
    valid: np.ndarray | None,
    cloud: np.ndarray | None,
    columns: np.ndarray,
    size_px: int,
    group_lines: int,
) -> np.ndarray:
    """Sums over the part of each chip that lies in each group of lines.

    Args:
        planes: uint8 (H, W) of each band, stretched; 0 where there are no data.
        valid: bool (H, W), or None where all pixels hold data.
        cloud: bool (H, W), or None where the product brings no cloud mask.
        columns: int (N,), first column of each chip.
        size_px: side of a chip in pixels.
        group_lines: lines a group, at most `MAX_GROUP_LINES`; divides H.

    Returns:
        int64 (6, H / group_lines, N): pixels that are valid, dark, saturated and cloudy, and the sums of brightness
        and of its square, where brightness is the sum over the bands.
    """
    total = planes[0].astype(np.uint16)
    for plane in planes[1:]:
        np.add(total, plane, out=total)
    dark = total < _DARK * len(planes)
    if valid is not None:
        dark &= valid
    saturated = np.minimum.reduce(planes) >= _SATURATED
    # The square of 16 bands' sum, 255 times over, is the most that 32 bits hold.
    squares = np.multiply(total, total, dtype=np.uint32 if len(planes) <= 16 else np.uint64)
    by_column = [
        None if valid is None else _down(valid.view(np.uint8), group_lines),
        _down(dark.view(np.uint8), group_lines),
        _down(saturated.view(np.uint8), group_lines),
        None if cloud is None else _down((cloud if valid is None else cloud & valid).view(np.uint8), group_lines),
        _down(total, group_lines, np.uint32),
        _down(squares, group_lines, squares.dtype),
    ]
    sums = np.zeros((NUM_SUMS, len(total) // group_lines, len(columns)), dtype=np.int64)
    for target, values in zip(sums, by_column, strict=True):
        if values is not None:
            running = np.cumsum(values, axis=1, dtype=np.int64)
            target += running[:, columns + size_px - 1]
            target[:, columns > 0] -= running[:, columns[columns > 0] - 1]
    if valid is None:
        sums[0] = group_lines * size_px
    return sums


def _down(values: np.ndarray, group_lines: int, dtype: np.typing.DTypeLike = np.uint8) -> np.ndarray:
    return np.asarray(np.add.reduce(values.reshape(-1, group_lines, values.shape[1]), axis=1, dtype=dtype))


def fractions(sums: np.ndarray, size_px: int, num_bands: int, *, has_cloud_mask: bool) -> dict[str, np.ndarray]:
    """Quality of chips from their sums.

    Args:
        sums: int64 (6, N), see `chip_sums`.
        size_px: side of a chip in pixels.
        num_bands: number of bands.
        has_cloud_mask: whether the product brings one.

    Returns:
        float64 (N,) each. All but ``valid_fraction`` are of the valid pixels, and 0 where there are none;
        ``cloud_fraction`` is NaN where the product brings no mask; ``contrast`` is the standard deviation of the mean
        over the bands, in 8-bit steps.
    """
    valid, dark, saturated, cloud, brightness, squares = sums
    number = np.maximum(valid, 1)
    mean = brightness / number
    return {
        "valid_fraction": valid / size_px**2,
        "dark_fraction": dark / number,
        "saturated_fraction": saturated / number,
        "cloud_fraction": cloud / number if has_cloud_mask else np.full(len(valid), np.nan),
        "contrast": (np.sqrt(np.maximum(squares / number - mean**2, 0.0)) / num_bands).round(6),
    }


def failures(config: ChipsConfig, quality: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Which chips fail which threshold, in the order in which a chip's reason is looked for.

    Args:
        config: the thresholds.
        quality: see `fractions`.

    Returns:
        bool (N,) by the name of the threshold. A missing cloud mask fails nothing.
    """
    return {
        "min_valid_fraction": quality["valid_fraction"] < config.min_valid_fraction,
        "max_saturated_fraction": quality["saturated_fraction"] > config.max_saturated_fraction,
        "max_cloud_fraction": quality["cloud_fraction"] > config.max_cloud_fraction,
        "max_dark_fraction": quality["dark_fraction"] > config.max_dark_fraction,
        "min_contrast": quality["contrast"] < config.min_contrast,
    }
