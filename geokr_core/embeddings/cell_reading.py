"""Vectors of cells read back from a scene's map, in the order of the scene's own rows: some lines at a time, or chip by chip."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.windows import Window

from geokr_core.embeddings.cells import NODATA, CellGrid
from geokr_core.errors import DamagedOutputError

_LINES: Final = 256
"""Lines of a tile of the map: fewer at a time would unpack every tile several times."""


def cell_lines(path: Path, grid: CellGrid) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """All cells of a scene, from top to bottom.

    Args:
        path: the map.
        grid: of the scene.

    Yields:
        The first line; float32 (n, W, D), vectors; bool (n, W), where there are any.

    Raises:
        DamagedOutputError: the map cannot be read, or is not of these chips.
    """
    with _opened(path, grid) as found:
        for top in range(0, grid.rows, _LINES):
            yield top, *_read(found, grid, Window(0, top, grid.columns, min(_LINES, grid.rows - top)), path)


def cells_of_chips(path: Path, grid: CellGrid, places: np.ndarray) -> np.ndarray:
    """Vectors of the cells of some chips.

    Args:
        path: the map.
        grid: of the scene.
        places: int64 (N, 2), row and column of each chip's first cell.

    Returns:
        float32 (N, n, n, D).

    Raises:
        DamagedOutputError: the map cannot be read, or is not of these chips.
    """
    side = grid.per_chip
    with _opened(path, grid) as found:
        vectors = np.empty((len(places), side, side, found.count), dtype=np.float32)
        for k, (top, left) in enumerate(places.tolist()):
            vectors[k] = _read(found, grid, Window(left, top, side, side), path)[0]
    return vectors


def _opened(path: Path, grid: CellGrid) -> Any:
    try:
        found = rasterio.open(path)
    except RasterioError as error:
        raise DamagedOutputError(
            f"{path}: cannot be read ({error}); run `geokr embed`, which makes it again."
        ) from error
    if found.shape != (grid.rows, grid.columns):
        found.close()
        raise DamagedOutputError(
            f"{path}: {found.shape[0]} x {found.shape[1]} cells, expected {grid.rows} x {grid.columns} by the chips: they were cut anew. "
            "Run `geokr embed`, which makes it again."
        )
    return found


def _read(found: Any, grid: CellGrid, window: Window, path: Path) -> tuple[np.ndarray, np.ndarray]:
    if grid.flipped:
        window = Window(window.col_off, grid.rows - window.row_off - window.height, window.width, window.height)
    try:
        codes = np.moveaxis(found.read(window=window), 0, -1)
    except RasterioError as error:
        raise DamagedOutputError(
            f"{path}: cannot be read ({error}); run `geokr embed`, which makes it again."
        ) from error
    codes = codes[::-1] if grid.flipped else codes
    scale, offset = (np.asarray(values, dtype=np.float32) for values in (found.scales, found.offsets))
    return codes.astype(np.float32) * scale + offset, codes[..., 0] != NODATA
