"""Running over a scene in overlapping windows: values of cells, blended so that no window shows its border.

Windows are of a chip's size and lie half a window apart. A cell is seen by up to four; each counts more the nearer the cell is to
its middle. A few strips of one window's height are held at a time, whatever the scene's height. Beyond the scene's edge its pixels are
mirrored, and hold no data.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np

from geokr_core.chips.stretch import Stretch
from geokr_core.rasters.grid import Grid
from geokr_core.scenes.reader import SceneReader
from geokr_core.step.threads import in_order

OfWindows = Callable[[np.ndarray], np.ndarray]
"""Values of windows: uint8 (N, size, size, C) to float32 (N, n, n, K)."""

_LEAST_VALID = 0.5
"""Share of a cell that must hold data for the cell to be mapped."""


@dataclass(frozen=True)
class Cells:
    """How a scene is divided into cells and windows.

    Attributes:
        size_px: side of a window.
        per_window: cells n along each side of a window.
        rows: cells that cover the scene's height; the last may reach beyond it.
        columns: cells that cover its width.
    """

    size_px: int
    per_window: int
    rows: int
    columns: int

    @classmethod
    def of(cls, grid: Grid, size_px: int, per_window: int) -> "Cells":
        """The cells of a scene."""
        cell = size_px // per_window
        return cls(size_px, per_window, -(-grid.height // cell), -(-grid.width // cell))

    @property
    def cell_px(self) -> int:
        """Side of a cell in pixels."""
        return self.size_px // self.per_window

    @property
    def step(self) -> int:
        """Cells from one window to the next: half a window, or a whole one that has a single cell."""
        return max(1, self.per_window // 2)

    def windows_along(self, cells: int) -> int:
        """Windows that cover a number of cells."""
        return -(-max(cells - self.per_window, 0) // self.step) + 1

    @property
    def weights(self) -> np.ndarray:
        """How much a window counts for each of its cells, float32 (n, n): a pyramid; two windows half apart add up to a plane."""
        ramp = np.minimum(np.arange(self.per_window) + 0.5, self.per_window - np.arange(self.per_window) - 0.5)
        return np.outer(ramp, ramp).astype(np.float32)


@dataclass(frozen=True)
class CellRows:
    """Some rows of cells.

    Attributes:
        first: number of the first row.
        values: float32 (R, columns, K); zeros where no data.
        valid: bool (R, columns), cells that hold data.
    """

    first: int
    values: np.ndarray
    valid: np.ndarray


def cells_of_scene(
    reader: SceneReader, grid: Grid, stretch: Stretch, cells: Cells, of_windows: OfWindows, workers: int = 1
) -> Iterator[CellRows]:
    """Values of all cells of a scene, from top to bottom.

    Args:
        reader: the open scene.
        grid: of the scene.
        stretch: of the scene, as its chips were stretched.
        cells: how the scene is divided.
        of_windows: what is asked of windows; gets those of one line that hold any data.
        workers: lines of windows that are asked about at the same time, each in a thread.

    Yields:
        Rows of cells, in order, each once.

    Raises:
        SceneRefusedError: the file is corrupt or cut off.
    """
    blender = _Blender(cells)
    seen = partial(_seen, cells, of_windows)
    with closing(in_order(seen, _strips(reader, grid, stretch, cells), workers)) as lines:
        for number, (values, columns, valid) in enumerate(lines):
            if values is not None:
                blender.add(values, columns)
            is_last = number + 1 == cells.windows_along(cells.rows)
            yield blender.finish(number * cells.step, valid, is_last=is_last)


def _seen(
    cells: Cells, of_windows: OfWindows, strip: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray | None, list[int], np.ndarray]:
    """Values of the windows of a strip that hold any data, the columns of their first cells, and which cells hold data."""
    lines, valid = strip
    all_columns = range(0, cells.windows_along(cells.columns) * cells.step, cells.step)
    columns = [c for c in all_columns if valid[:, c * cells.cell_px : c * cells.cell_px + cells.size_px].any()]
    values = None
    if columns:
        windows = [lines[:, c * cells.cell_px : c * cells.cell_px + cells.size_px] for c in columns]
        values = of_windows(np.stack(windows))
    return values, columns, _share_valid(valid, cells) >= _LEAST_VALID


def _strips(reader: SceneReader, grid: Grid, stretch: Stretch, cells: Cells) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Stretched pixels uint8 (size, W, C) and validity bool (size, W) of each line of windows, padded on the right and below."""
    step_px = cells.step * cells.cell_px
    width = ((cells.windows_along(cells.columns) - 1) * cells.step + cells.per_window) * cells.cell_px
    held, valid = _read(reader, stretch, 0, min(cells.size_px, grid.height))
    for number in range(cells.windows_along(cells.rows)):
        if number:
            begin = (number - 1) * step_px + cells.size_px
            height = max(0, min(step_px, grid.height - begin))
            held, valid = held[step_px:], valid[step_px:]
            if height:
                more, more_valid = _read(reader, stretch, begin, height)
                held, valid = np.concatenate([held, more]), np.concatenate([valid, more_valid])
        below, right = cells.size_px - len(held), width - held.shape[1]
        yield (
            np.pad(held, ((0, below), (0, right), (0, 0)), mode="symmetric"),
            np.pad(valid, ((0, below), (0, right)), mode="symmetric"),
        )


def _read(reader: SceneReader, stretch: Stretch, row: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    pixels, valid = reader.read(row, height)
    return stretch.apply(pixels, valid), valid


def _share_valid(valid: np.ndarray, cells: Cells) -> np.ndarray:
    side = cells.cell_px
    blocks = valid.reshape(cells.per_window, side, valid.shape[1] // side, side)
    found: np.ndarray = blocks.mean(axis=(1, 3))[:, : cells.columns]
    return found


class _Blender:
    """Sums of weighted values of the cells below one line of windows."""

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self._sums: np.ndarray | None = None
        width = (cells.windows_along(cells.columns) - 1) * cells.step + cells.per_window
        self._weights = np.zeros((cells.per_window, width), dtype=np.float32)

    def add(self, values: np.ndarray, columns: list[int]) -> None:
        """Add the windows of a line, float32 (N, n, n, K), whose first cells lie in these columns."""
        side, weights = self._cells.per_window, self._cells.weights
        if self._sums is None:
            self._sums = np.zeros((*self._weights.shape, values.shape[-1]), dtype=np.float32)
        for column, of_window in zip(columns, values, strict=True):
            self._sums[:, column : column + side] += of_window * weights[..., None]
            self._weights[:, column : column + side] += weights

    def finish(self, first: int, valid: np.ndarray, *, is_last: bool) -> CellRows:
        """The rows that no later line of windows reaches, and make room for the next line."""
        cells = self._cells
        number = min(cells.per_window if is_last else cells.step, cells.rows - first)
        weights = self._weights[:number, : cells.columns]
        sums = np.zeros((number, cells.columns, 1), dtype=np.float32)
        if self._sums is not None:
            sums = self._sums[:number, : cells.columns]
        values = sums / np.maximum(weights, 1e-12)[..., None]
        found = CellRows(first, values, valid[:number] & (weights > 0))
        if self._sums is not None:
            self._sums = _moved_up(self._sums, cells.step)
        self._weights = _moved_up(self._weights, cells.step)
        return found


def _moved_up(rows: np.ndarray, number: int) -> np.ndarray:
    moved = np.zeros_like(rows)
    moved[: len(rows) - number] = rows[number:]
    return moved
