"""Land-cover tiles that stay open from one scene to the next: small scenes lie by the hundred on the same tile.

What is opened here is what `open_with_mask` opens; only the closing waits. A tile that is another file than before, or whose
mask is, is opened anew.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from geokr_core.rasters.checksums import Mark, file_mark
from geokr_core.rasters.masks import Opened, mask_beside, opened_with_mask
from geokr_core.rasters.open_raster import surroundings

_MOST_OPEN: Final = 8
"""Tiles a thread keeps open: a scene lies on four where their corners meet, its neighbour on four more at most."""


@dataclass(frozen=True)
class _Kept:
    marks: tuple[Mark, ...]
    opened: Opened
    closing: ExitStack


class _OfThread(threading.local):
    """An open file of GDAL must not be read by two threads: each has its own."""

    def __init__(self) -> None:
        self.tiles: OrderedDict[Path, _Kept] = OrderedDict()


_open = _OfThread()


@contextmanager
def open_tile(path: Path) -> Iterator[Opened]:
    """A raster with the mask beside it for the length of a ``with`` block; it may have been open before, and stay so.

    Args:
        path: of the tile.

    Yields:
        The open raster, to be read within the block only.

    Raises:
        RasterioIOError: as by `open_with_mask`.
    """
    with surroundings(path):
        opened = _kept(path)
        try:
            yield opened
        except BaseException:  # what has failed once is not believed again
            _close(path)
            raise


def close_tiles() -> None:
    """Close what this thread has left open."""
    while _open.tiles:
        _close(next(iter(_open.tiles)))


def _kept(path: Path) -> Opened:
    marks = _marks(path)
    if path in _open.tiles and _open.tiles[path].marks != marks:
        _close(path)
    if path not in _open.tiles:
        with ExitStack() as stack:
            opened = opened_with_mask(path, stack)
            _open.tiles[path] = _Kept(marks, opened, stack.pop_all())
        if len(_open.tiles) > _MOST_OPEN:
            _close(next(iter(_open.tiles)))
    _open.tiles.move_to_end(path)
    return _open.tiles[path].opened


def _marks(path: Path) -> tuple[Mark, ...]:
    """Of the tile and its mask; none of a file that is not there, which opening then says."""
    beside = mask_beside(path)
    return tuple(file_mark(one) for one in (path, beside) if one is not None and one.is_file())


def _close(path: Path) -> None:
    kept = _open.tiles.pop(path, None)
    if kept is not None:
        kept.closing.close()
