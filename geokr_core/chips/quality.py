"""Quality of chips: fractions and contrast from running sums over whole lines, and which chips are left out for it."""

from collections.abc import Sequence

import numpy as np

from geokr_core.chips.config import ChipsConfig

_SATURATED = 250
"""8-bit value from which a pixel counts as saturated if it holds in every band."""

_DARK = 20
"""Mean 8-bit brightness below which a pixel counts as dark: shadow or water."""

NUM_SUMS = 6


def max_group_lines(num_bands: int) -> int:
    """Lines that may be summed at once so that counts fit into 8 bits and brightness into 16: narrow sums are fast."""
    return max(1, min(255, 65535 // (255 * num_bands)))


class ChipColumns:
    """The columns that the chips of a line stand in, and sums over them.

    Columns are first summed between all edges of chips, then the pieces are put together, so that each is added up
    once however much the chips overlap.
    """

    def __init__(self, columns: np.ndarray, size_px: int) -> None:
        """Take the first column of each chip, int (N,), rising, and the side of a chip."""
        self.num_chips, self.size_px = len(columns), size_px
        edges = np.unique(np.concatenate([columns, columns + size_px]))
        self._edges, self._end = edges[:-1], int(edges[-1])
        self._left, self._right = np.searchsorted(edges, columns), np.searchsorted(edges, columns + size_px)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum of ``values``, integers (G, W), over the columns of each chip, int64 (G, N)."""
        pieces = np.add.reduceat(values[:, : self._end], self._edges, axis=1, dtype=np.int64)
        running = np.zeros((len(values), len(self._edges) + 1), dtype=np.int64)
        np.cumsum(pieces, axis=1, out=running[:, 1:])
        return np.asarray(running[:, self._right] - running[:, self._left])


def chip_sums(
    planes: Sequence[np.ndarray],
    valid: np.ndarray | None,
    cloud: np.ndarray | None,
    columns: ChipColumns,
    group_lines: int,
) -> np.ndarray:
    """Sums over the part of each chip that lies in each group of lines.

    Args:
        planes: uint8 (H, W) of each band, stretched; 0 where there are no data.
        valid: bool (H, W), or None where all pixels hold data.
        cloud: bool (H, W), or None where the product brings no cloud mask.
        columns: where the chips stand.
        group_lines: lines a group, at most `max_group_lines`; divides H.

    Returns:
        int64 (6, H / group_lines, N): pixels that are valid, dark, saturated and cloudy, and the sums of brightness
        and of its square, where brightness is the sum over the bands.
    """
    # The square of 16 bands' sum, 255 lines together, is the most that 32 bits hold.
    narrow, wide = ("u2", "u4") if len(planes) <= 16 else ("u4", "u8")
    total: np.ndarray = planes[0].astype(narrow)
    least = planes[0]
    for plane in planes[1:]:
        total += plane
        least = np.minimum(least, plane)
    dark = total < _DARK * len(planes)
    if valid is not None:
        dark &= valid
        cloud = None if cloud is None else cloud & valid
    squares: np.ndarray = total.astype(wide)
    squares *= squares
    sums = np.zeros((NUM_SUMS, len(total) // group_lines, columns.num_chips), dtype=np.int64)
    for target, values in zip(sums, (valid, dark, least >= _SATURATED, cloud, total, squares), strict=True):
        if values is not None:
            grouped = (values.view(np.uint8) if values.dtype == bool else values).reshape(
                -1, group_lines, total.shape[1]
            )
            target[:] = columns.sums(np.add.reduce(grouped, axis=1, dtype=grouped.dtype))
    if valid is None:
        sums[0] = group_lines * columns.size_px
    return sums


def fractions(sums: np.ndarray, size_px: int, num_bands: int, *, has_cloud_mask: bool) -> dict[str, np.ndarray]:
    """Quality of chips from their sums.

    Args:
        sums: int64 (6, N), see `chip_sums`, summed over the groups.
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
