"""Where several tiles share a window: the ground that the earlier ones leave over, and the ground beyond all of them.

Cells that a tile knows are joined into polygons, carried into another tile's plane and cut out of the window there.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from rasterio.windows import Window

from geokr_core.land_cover.product import Product, Tile, read_slots
from geokr_core.land_cover.slots import EXCLUDED, SEA, UNKNOWN
from geokr_core.proportions.frames import boxes_of, cells_of, ground_areas, rings_in, to_pixels, touching, turns
from geokr_core.proportions.windows import Windows

_CELLS_AHEAD = 256
"""Cells read on each side of those that are asked for, where a tile is looked at window by window."""


@dataclass(frozen=True)
class _Part:
    """Cells of a tile, from (row, col) on."""

    row: int
    col: int
    slots: np.ndarray

    def cut(self, row: int, col: int, height: int, width: int) -> np.ndarray | None:
        """Some of the cells; None where not all of them are here."""
        rows, cols = self.slots.shape
        top, left = row - self.row, col - self.col
        if top < 0 or left < 0 or top + height > rows or left + width > cols:
            return None
        return self.slots[top : top + height, left : left + width]


class TileCells:
    """Cells of a product's tiles as slots: the classes of the legend, then excluded, sea and, last, cells without data.

    The last part that was read of each tile is kept: chips, their squares and their neighbours ask for the same cells.
    """

    def __init__(self, source: Path, product: Product, num_classes: int) -> None:
        """Take the land-cover folder, the product and the number of classes of the common legend."""
        self._source, self._product = source, product
        self.num_classes, self.unknown, self.num_slots = num_classes, num_classes + 2, num_classes + 3
        self._slot = np.arange(256, dtype=np.uint8)
        self._slot[[EXCLUDED, SEA, UNKNOWN]] = np.arange(num_classes, num_classes + 3)
        self._parts: dict[tuple[str, int], _Part] = {}

    def read(self, tile: Tile, row: int, col: int, height: int, width: int, *, ahead: int = 0) -> np.ndarray:
        """Slots of some cells, uint8 (height, width).

        Args:
            tile: which tile.
            row: first row, within the tile.
            col: first column, within the tile.
            height: number of rows.
            width: number of columns.
            ahead: cells on each side that are read along with them, where they have to be read.

        Raises:
            UnknownLegendCodeError: a code that the legend does not list.
            LandCoverError: the file cannot be read there.
        """
        key = (tile.file, tile.band)
        if key in self._parts and (kept := self._parts[key].cut(row, col, height, width)) is not None:
            return kept
        top, left = max(row - ahead, 0), max(col - ahead, 0)
        bottom, right = min(row + height + ahead, tile.grid.height), min(col + width + ahead, tile.grid.width)
        window = Window(left, top, right - left, bottom - top)
        slots = np.asarray(self._slot[read_slots(self._source, tile, self._product, window)])
        self._parts[key] = _Part(top, left, slots)
        return slots[row - top : row - top + height, col - left : col - left + width]


class Seams:
    """Windows of a scene on ground that several tiles share."""

    def __init__(self, windows: Windows, tiles: tuple[Tile, ...], cells: TileCells, segments: int) -> None:
        """Take the windows, the tiles that may touch them, and the pieces an edge is cut into."""
        self._windows, self._tiles, self._cells, self._segments = windows, tiles, cells, segments

    def left_over(
        self, tile: Tile, rings: np.ndarray, chosen: np.ndarray, earlier: np.ndarray, shift: float
    ) -> np.ndarray:
        """The ground of windows that earlier tiles know nothing of.

        Args:
            tile: in whose (col, row) the ground is wanted.
            rings: float64 (M, P, 2), the windows there, ``shift`` columns aside.
            chosen: int (M,), which windows they are.
            earlier: int (M, R), the tiles that each window was resolved with before.
            shift: columns by which the windows are moved.

        Returns:
            Geometries (M,).
        """
        known: list[list[shapely.Geometry]] = [[] for _ in chosen]
        for index in np.unique(earlier):
            mine = np.flatnonzero((earlier == index).any(axis=1))
            other = self._tiles[index]
            theirs = rings_in(other, self._windows[chosen[mine]], self._segments)
            finite = np.isfinite(theirs).all(axis=(1, 2))
            mine, theirs = mine[finite], theirs[finite]
            for turn in turns(other):
                shapes = [self._known_near(other, ring) for ring in theirs + np.array([turn, 0.0])]
                found = np.array([shape is not None for shape in shapes], dtype=bool)
                carried = self._carried(
                    np.array(shapes, dtype=object)[found], other, tile, chosen[mine[found]], turn, shift, theirs[found]
                )
                for place, shape in zip(mine[found], carried, strict=True):
                    known[place].append(shape)
        left = shapely.polygons(rings)
        some = np.array([bool(shapes) for shapes in known], dtype=bool)
        unions = [shapely.union_all(shapes) for shapes in known if shapes]
        left[some] = shapely.difference(left[some], unions)
        return np.asarray(left)

    def outside_share(self, window: int) -> float:
        """Share of a window's ground that lies in no tile."""
        frame = self._tiles[0]
        chosen = np.array([window])
        whole = shapely.Polygon(rings_in(frame, self._windows[chosen], self._segments)[0])
        covered = []
        for other in self._tiles:
            theirs = rings_in(other, self._windows[chosen], self._segments)
            for turn in turns(other) if np.isfinite(theirs).all() else ():
                around = boxes_of(theirs + np.array([turn, 0.0]))
                if len(touching(around, other.grid)):
                    row, col, height, width = cells_of(around, other.grid)
                    box = shapely.box(col, row, col + width, row + height)
                    covered += list(self._carried(np.array([box]), other, frame, chosen, turn, 0.0, theirs))
        rest, all_of_it = ground_areas(np.array([whole.difference(shapely.union_all(covered)), whole]), frame.grid)
        return float(rest / all_of_it)

    def _known_near(self, tile: Tile, ring: np.ndarray) -> shapely.Geometry | None:
        """Where a tile holds data around a window, in the tile's (col, row); None where it holds none."""
        box = boxes_of(ring[None])
        if not len(touching(box, tile.grid)):
            return None
        row, col, height, width = cells_of(box, tile.grid)
        known = self._cells.read(tile, row, col, height, width, ahead=_CELLS_AHEAD) != self._cells.unknown
        if known.all():
            return shapely.box(col, row, col + width, row + height)
        return _outline_of(known, row, col) if known.any() else None

    def _carried(
        self,
        shapes: np.ndarray,
        source: Tile,
        target: Tile,
        chosen: np.ndarray,
        turn: float,
        shift: float,
        rings: np.ndarray,
    ) -> np.ndarray:
        """Shapes (M,) of one tile's (col, row), moved by ``turn``, in another's, moved by ``shift``.

        Their edges are cut into pieces as long as those of the windows' ``rings`` (M, P, 2) in the source.
        """
        pieces = shapely.segmentize(shapes, np.ptp(rings, axis=1).max(axis=1) / self._segments)
        points, owner = shapely.get_coordinates(pieces, return_index=True)
        xy = source.grid.xy(points[:, 0] - turn, points[:, 1])
        moved = to_pixels(xy, source.grid.wkt, target, self._windows.lon[chosen][owner]) + np.array([shift, 0.0])
        return np.asarray(shapely.set_coordinates(pieces, moved))


def _outline_of(cells: np.ndarray, row: int, col: int) -> shapely.Geometry:
    """The ground of the cells that are True, bool (H, W), whose first is at (row, col)."""
    steps = np.diff(np.pad(cells.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    return shapely.union_all(shapely.box(col + starts, row + rows, col + ends, row + rows + 1))
