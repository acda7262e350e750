"""Which land cover lies under windows of a scene: the tiles of a product asked one after the other, exactly.

Where tiles overlap, each piece of ground is counted once: a window is resolved with the tile whose centre is nearest to
its own first, and with the next tile only on the ground of which no earlier one knows anything, because it lies beyond
their edge or because they hold no data there. For GlobeLand30 the first is the tile whose nominal belt the window lies in.
Nothing is resampled; cells weigh by their true area where rows lie on parallels (degrees and Mercator).

The arithmetic of areas is in ``areas``, a tile's plane in ``frames``, ground that tiles share in ``seams``; the files are
the business of ``count``.
"""

from dataclasses import dataclass

import numpy as np

from geokr_core.land_cover.product import PlacedTiles, Tile
from geokr_core.proportions.areas import (
    Edges,
    RunningCounts,
    edges_of_polygons,
    edges_of_rings,
    polygon_areas,
    rectangle_areas,
    signed_areas,
    widest_cells,
)
from geokr_core.proportions.frames import (
    are_boxes,
    area_within,
    blocks,
    boxes_of,
    cells_of,
    inside,
    ring_areas,
    rings_in,
    row_areas,
    strips,
    touching,
    turns,
)
from geokr_core.proportions.seams import Seams, TileCells
from geokr_core.proportions.windows import Windows
from geokr_core.rasters.grid import unwrap_lon

_RESOLVED = 1.0 - 1e-9
"""Share of a window's ground from which all of it counts as known."""

_CELLS_PER_BLOCK = 4_000_000
"""Land-cover cells held in memory at a time, each in up to a few words of 8 bytes."""

_MANY_TILES = 32
"""Tiles from which the windows of a scene are looked up part by part, each with the tiles near it."""

_WINDOWS_PER_PART = 256


@dataclass(frozen=True)
class Ground:
    """What lies under windows, as shares of each window's ground that sum to 1.

    Attributes:
        classes: float64 (N, K), share of each class of the legend.
        excluded: float64 (N,), classes outside the legend.
        sea: float64 (N,), sea where the product tells it from water.
        unknown: float64 (N,), tiles without data.
        outside: float64 (N,), beyond every tile.
        num_cells: float64 (N,), cells of known class that were counted.
    """

    classes: np.ndarray
    excluded: np.ndarray
    sea: np.ndarray
    unknown: np.ndarray
    outside: np.ndarray
    num_cells: np.ndarray


def look_up(windows: Windows, placed: PlacedTiles, cells: TileCells, edge_segments: int) -> Ground:
    """Count the land cover under windows.

    Args:
        windows: of one scene.
        placed: tiles of one edition; those that are not near the windows are skipped.
        cells: their cells.
        edge_segments: straight pieces a window's edge is cut into before it is carried to another CRS.

    Returns:
        What lies under each window.

    Raises:
        UnknownLegendCodeError: a code that the legend does not list.
        LandCoverError: a tile cannot be read.
    """
    near = placed.near(windows.lonlat_box())
    number = len(windows.lon)
    if len(near.tiles) <= _MANY_TILES or number <= _WINDOWS_PER_PART:
        return _Lookup(windows, near, cells, edge_segments).run()
    parts = [
        look_up(windows[first : first + _WINDOWS_PER_PART], near, cells, edge_segments)
        for first in range(0, number, _WINDOWS_PER_PART)
    ]
    names = ("classes", "excluded", "sea", "unknown", "outside", "num_cells")
    return Ground(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


class _Lookup:
    """One look-up of windows: how much of each is resolved so far, and with what."""

    def __init__(self, windows: Windows, near: PlacedTiles, cells: TileCells, segments: int) -> None:
        self._windows, self._near, self._cells, self._segments = windows, near, cells, segments
        self._seams = Seams(windows, near.tiles, cells, segments)
        num = len(windows.lon)
        self._resolved = np.zeros((num, cells.unknown))
        self._num_cells = np.zeros(num)
        # The largest share of a window that lies within one tile, and how many tiles it touches.
        self._covered_share, self._num_tiles = np.zeros(num), np.zeros(num, dtype=np.int64)

    def run(self) -> Ground:
        """Resolve windows tile after tile until all ground is known or no tile is left."""
        order = self._tile_order()
        for rank in range(order.shape[1]):
            for index in np.unique(order[:, rank]):
                unresolved = (order[:, rank] == index) & (self._resolved.sum(axis=1) < _RESOLVED)
                self._resolve_with(self._near.tiles[index], np.flatnonzero(unresolved), order[:, :rank])
        # Line integrals cancel to zero only within rounding: a share below a billionth is none.
        resolved = np.where(self._resolved < 1e-9, 0.0, self._resolved)
        rest = (1.0 - resolved.sum(axis=1)).clip(0.0, 1.0)
        outside = (1.0 - self._covered_share).clip(0.0, 1.0)
        for window in np.flatnonzero((self._num_tiles > 1) & (outside > 1e-9) & (rest > 1e-9)):
            outside[window] = self._seams.outside_share(int(window))
        outside = np.where(outside < 1e-9, 0.0, np.minimum(outside, rest))
        k = self._cells.num_classes
        return Ground(resolved[:, :k], resolved[:, k], resolved[:, k + 1], rest - outside, outside, self._num_cells)

    def _tile_order(self) -> np.ndarray:
        """Tiles in the order in which each window is resolved with them, int (N, T): the nearest centre first."""
        lon, lat, centres = self._windows.lon, self._windows.lat, self._near.centres
        dx = unwrap_lon(lon[:, None] - centres[None, :, 0], 0.0) * np.cos(np.radians(lat))[:, None]
        return np.argsort(np.hypot(dx, lat[:, None] - centres[None, :, 1]), axis=1, kind="stable")

    def _resolve_with(self, tile: Tile, chosen: np.ndarray, earlier: np.ndarray) -> None:
        """Count a tile on the ground of some windows of which the tiles ``earlier`` (N, R) know nothing."""
        rings = rings_in(tile, self._windows[chosen], self._segments)
        finite = np.isfinite(rings).all(axis=(1, 2))
        rings, chosen = rings[finite], chosen[finite]
        box = boxes_of(rings)
        untouched = self._resolved[chosen].sum(axis=1) == 0
        for shift in turns(tile):
            moved = box + np.array([shift, 0.0, shift, 0.0])
            here = touching(moved, tile.grid)
            # Windows of which nothing is known yet are counted as a whole, which is many times faster.
            for some, before in ((here[untouched[here]], earlier[:, :0]), (here[~untouched[here]], earlier)):
                for block in blocks(moved, some, tile.grid, _CELLS_PER_BLOCK):
                    ground = rings[block] + np.array([shift, 0.0])
                    self._count(tile, ground, moved[block], chosen[block], before[chosen[block]], shift)

    def _count(
        self, tile: Tile, rings: np.ndarray, boxes: np.ndarray, chosen: np.ndarray, earlier: np.ndarray, shift: float
    ) -> None:
        """Count a tile under rings (M, P, 2) in its plane, without the ground that ``earlier`` tiles (M, R) know."""
        row0, col0, height, width = cells_of(boxes, tile.grid)
        origin = np.array([col0, row0])
        local = rings - origin
        edges = edges_of_rings(local)
        if earlier.shape[1]:
            left = self._seams.left_over(tile, rings, chosen, earlier, shift)
            edges = edges_of_polygons(list(left)).moved(-origin)
        rectangles = boxes - np.tile(origin, 2) if not earlier.shape[1] and are_boxes(local) else None
        by_area = row_areas(tile.grid, row0, height)
        unit = 1.0 if by_area is None else float(by_area.max())
        weights = np.ones((height, 1)) if by_area is None else np.stack([np.ones(height), by_area / unit], axis=1)
        areas = np.zeros((weights.shape[1], len(chosen), self._cells.num_slots))
        # Areas of strips add up, so that even a window as large as a tile is counted within bounded memory.
        for top, rows in strips(height, width, _CELLS_PER_BLOCK):
            slots = self._cells.read(tile, row0 + top, col0, rows, width)
            areas += _areas(slots, areas.shape[2], boxes, edges, rectangles, top, weights[top : top + rows])
        num_cells, weighted = areas[0].sum(axis=1), areas[-1]
        total = weighted.sum(axis=1)
        mix = np.divide(weighted, total[:, None], out=np.zeros_like(weighted), where=total[:, None] > 0)
        share = num_cells / np.abs(signed_areas(local))
        if by_area is not None:
            # A part of a window is a share of its ground, not of its picture in degrees; the whole is 1 either way.
            parts = np.flatnonzero(~inside(boxes, tile.grid) | (earlier.shape[1] > 0))
            share[parts] = total[parts] * unit / ring_areas(rings[parts], tile.grid)
        within = area_within(rings, tile.grid) / ring_areas(rings, tile.grid) if earlier.shape[1] else share
        # `np.add.at` is not needed: a window appears once in a block.
        self._resolved[chosen] += mix[:, : self._cells.unknown] * share[:, None]
        self._num_cells[chosen] += mix[:, : self._cells.num_classes].sum(axis=1) * num_cells
        self._covered_share[chosen] = np.maximum(self._covered_share[chosen], within)
        self._num_tiles[chosen] += 1


def _areas(
    slots: np.ndarray,
    num_slots: int,
    boxes: np.ndarray,
    edges: Edges,
    rectangles: np.ndarray | None,
    top: int,
    weights: np.ndarray,
) -> np.ndarray:
    """Areas of slots, (R, M, S), in a strip of cells ``top`` rows below the origin of ``edges`` and ``rectangles``."""
    widest = min(slots.shape[1], widest_cells(boxes[:, 0], boxes[:, 2]))
    counts = RunningCounts(slots, num_slots, widest)
    if rectangles is not None:
        return rectangle_areas(counts, rectangles - np.array([0.0, top, 0.0, top]), weights)
    return polygon_areas(counts, edges.moved(-np.array([0.0, top])), weights)
