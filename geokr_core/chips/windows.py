"""Which windows of a scene become chips, and in which order their pixels are read."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from geokr_core.chips.config import ChipsConfig
from geokr_core.chips.quality import NUM_SUMS, max_group_lines
from geokr_core.errors import SceneRefusedError
from geokr_core.rasters.grid import Grid

_PIECE_VALUES = 2_000_000
"""Values (pixels times bands) that are read at a time: small enough for the cache, large enough to spare calls."""


@dataclass(frozen=True)
class ChipWindows:
    """Where chips may lie in a scene, and in which pieces it is read for them.

    Attributes:
        size_px: side of a chip.
        tops: first line of each line of chips, int (R,).
        columns: first column of each chip of a line, int (N,).
        group_lines: lines over which quality is summed at once; divides every top and ``size_px``.
        pieces: first line and number of lines of each piece; each line that a chip needs is in exactly one.
    """

    size_px: int
    tops: np.ndarray
    columns: np.ndarray
    group_lines: int
    pieces: tuple[tuple[int, int], ...]


def chip_windows(config: ChipsConfig, grid: Grid) -> ChipWindows:
    """The windows of a scene that become chips, and the pieces of lines its pixels are read in.

    Raises:
        SceneRefusedError: the scene is smaller than one chip.
    """
    size = config.size_px
    if grid.height < size or grid.width < size:
        raise SceneRefusedError(f"{grid.height} x {grid.width} pixels: smaller than one chip of {size} x {size}")
    tops, columns = _starts(config, grid.height), _starts(config, grid.width)
    most = max(1, _PIECE_VALUES // (grid.width * len(config.bands)))
    step = int(np.gcd.reduce(np.append(tops, size)))
    group = max(
        lines for lines in range(1, min(most, step, max_group_lines(len(config.bands))) + 1) if step % lines == 0
    )
    lines = group * (most // group)
    pieces: list[tuple[int, int]] = []
    end = 0
    for top in tops.tolist():
        begin, end = max(end, top), top + size
        if pieces and sum(pieces[-1]) == begin:
            begin = pieces.pop()[0]
        pieces += [(row, min(lines, end - row)) for row in range(begin, end, lines)]
    return ChipWindows(size, tops, columns, group, tuple(pieces))


def _starts(config: ChipsConfig, length: int) -> np.ndarray:
    """First pixel of each window along an edge of ``length`` pixels."""
    starts = np.arange(0, length - config.size_px + 1, config.stride_px)
    left_over = length - config.size_px
    if config.edge == "shift" and starts[-1] < left_over:
        starts = np.append(starts, left_over)
    return starts


@dataclass(frozen=True)
class Piece:
    """Some lines of a scene: stretched pixels, uint8 (h, W, C), and quality sums, int64 (6, h / group, N)."""

    row: int
    lines: np.ndarray
    sums: np.ndarray
    has_cloud_mask: bool


def lines_of_chips(
    pieces: Iterable[Piece], windows: ChipWindows, width: int, num_bands: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray, bool]]:
    """Put pieces together to lines of chips: first line, pixels (size, W, C), sums (6, N), and if there is a cloud mask.

    The pixels are overwritten when the next line of chips is asked for.
    """
    size, group = windows.size_px, windows.group_lines
    most = max(height for _, height in windows.pieces)
    held = np.empty((size + most, width, num_bands), dtype=np.uint8)
    sums = np.zeros((NUM_SUMS, 0, len(windows.columns)), dtype=np.int64)
    first = count = 0
    tops = deque(windows.tops.tolist())
    for piece in pieces:
        if piece.row != first + count:
            first, count, sums = piece.row, 0, sums[:, :0]
        held[count : count + len(piece.lines)] = piece.lines
        count += len(piece.lines)
        sums = np.concatenate([sums, piece.sums], axis=1)
        while tops and tops[0] + size <= first + count:
            top = tops.popleft()
            at = top - first
            in_chip = sums[:, at // group : (at + size) // group].sum(axis=1)
            yield top, held[at : at + size], in_chip, piece.has_cloud_mask
        done = min(tops[0] - first, count) if tops else count
        held[: count - done] = held[done:count]
        first, count, sums = first + done, count - done, sums[:, done // group :]
