"""Which land cover lies under windows of a scene: the tiles of a product asked one after the other, exactly.

Where tiles overlap, each piece of ground votes once: the tile whose centre is nearest to the window's centre is asked
first, and the next tile only for the ground on which no earlier one said anything, because it lies beyond their edge or
because they hold no data there. For GlobeLand30 the first is the tile whose nominal belt the window lies in. Nothing
is resampled; cells weigh by their true area where rows lie on parallels (degrees and Mercator).

The arithmetic of areas is in ``coverage``; files of proportions are the business of ``proportions``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyproj
import shapely
from affine import Affine
from rasterio.features import shapes
from rasterio.windows import Window

from geokr_core.land_cover.legend import EXCLUDED, SEA, UNKNOWN
from geokr_core.land_cover.product import Product, Tile, read_slots
from geokr_core.proportions.areas import (
    RunningCounts,
    edges_of_polygons,
    edges_of_rings,
    polygon_areas,
    rectangle_areas,
    signed_areas,
    widest_cells,
)
from geokr_core.rasters.grid import Grid, carried, reproject, same_crs, unit_ring, unwrap_lon

_COVERED = 1.0 - 1e-9
"""Share of a window from which it counts as wholly known."""

_CELLS_AHEAD = 256
"""Cells read on each side of those that are asked for, when tiles are asked window by window."""

_CELLS_PER_BLOCK = 4_000_000
"""Land-cover cells held in memory at a time, each in up to a few words of 8 bytes."""


@dataclass(frozen=True)
class Windows:
    """Square windows of one scene's grid whose ground is to be looked up.

    Attributes:
        crs_wkt: CRS of the scene.
        transforms: float64 (N, 6), from each window's (col, row) to (x, y).
        size_px: side in pixels; need not be whole.
        lon: float64 (N,), longitude of the centres in degrees.
        lat: float64 (N,), latitude of the centres in degrees.
    """

    crs_wkt: str
    transforms: np.ndarray
    size_px: float
    lon: np.ndarray
    lat: np.ndarray

    @classmethod
    def of_rows(cls, rows: pd.DataFrame) -> "Windows":
        """The windows of one scene's catalogue rows."""
        return cls(
            str(rows["crs_wkt"].iloc[0]),
            np.array(rows["transform"].tolist(), dtype=np.float64),
            float(rows["size_px"].iloc[0]),
            rows["lon"].to_numpy(),
            rows["lat"].to_numpy(),
        )

    def __getitem__(self, part: slice | np.ndarray) -> "Windows":
        """Some of the windows."""
        return Windows(self.crs_wkt, self.transforms[part], self.size_px, self.lon[part], self.lat[part])

    def cells(self, per_side: int) -> "Windows":
        """Each window cut into ``per_side`` x ``per_side`` squares, row by row; window 0 first."""
        size = self.size_px / per_side
        offset = np.arange(per_side) * size
        rows, cols = (grid.ravel() for grid in np.meshgrid(offset, offset, indexing="ij"))
        a, b, c, d, e, f = (part[:, None] for part in self.transforms.T)
        corners = carried((a, b, c, d, e, f), cols, rows)
        c, f = corners[..., 0], corners[..., 1]
        parts = [np.broadcast_to(part, c.shape) for part in (a, b, c, d, e, f)]
        repeat = per_side**2
        return Windows(
            self.crs_wkt,
            np.stack(parts, axis=-1).reshape(-1, 6),
            size,
            self.lon.repeat(repeat),
            self.lat.repeat(repeat),
        )

    def outlines(self, segments: int) -> np.ndarray:
        """Closed outlines, float64 (N, 4 * segments + 1, 2), x and y in the scene's CRS."""
        ring = unit_ring(segments) * self.size_px
        return carried([part[:, None] for part in self.transforms.T], ring[:, 0], ring[:, 1])


@dataclass(frozen=True)
class Ground:
    """What lies under windows, as shares of each window's ground that sum to 1.

    Attributes:
        classes: float64 (N, K), share of each class of the legend.
        excluded: float64 (N,), classes outside the legend.
        sea: float64 (N,), sea where the product tells it from water.
        unknown: float64 (N,), tiles without data.
        outside: float64 (N,), beyond every tile.
        num_cells: float64 (N,), cells of known class that voted.
    """

    classes: np.ndarray
    excluded: np.ndarray
    sea: np.ndarray
    unknown: np.ndarray
    outside: np.ndarray
    num_cells: np.ndarray


def look_up(
    windows: Windows, product: Product, tiles: Sequence[Tile], source: Path, num_classes: int, edge_segments: int
) -> Ground:
    """Count the land cover under windows.

    Args:
        windows: of one scene.
        product: whose legend the codes are of.
        tiles: its tiles of one edition.
        source: the land-cover folder.
        num_classes: K, classes of the common legend.
        edge_segments: straight pieces a window's edge is cut into before it is carried to another CRS.

    Returns:
        What lies under each window.

    Raises:
        UnknownLegendCodeError: a code that the legend does not list.
        LandCoverError: a tile cannot be read.
    """
    return _Count(windows, product, tiles, source, num_classes, edge_segments).run()


@dataclass(frozen=True)
class _Part:
    """Cells of a tile, from (row, col) on."""

    row: int
    col: int
    slots: np.ndarray

    def holds(self, row: int, col: int, height: int, width: int) -> bool:
        rows, cols = self.slots.shape
        return (
            self.row <= row and self.col <= col and row + height <= self.row + rows and col + width <= self.col + cols
        )


class _Count:
    """Counting windows of one scene over tiles of one edition; see `look_up`.

    Slots are the classes of the legend, then `excluded`, `sea` and, last, `silent`: cells without data.
    """

    def __init__(
        self,
        windows: Windows,
        product: Product,
        tiles: Sequence[Tile],
        source: Path,
        num_classes: int,
        edge_segments: int,
    ) -> None:
        self._windows, self._product, self._source, self._segments = windows, product, source, edge_segments
        self._tiles = [tile for tile in tiles if _near(tile.footprint, windows.lon, windows.lat)]
        self._num_classes, self._silent = num_classes, num_classes + 2
        self._num_slots = num_classes + 3
        self._slot = np.arange(256, dtype=np.uint8)
        self._slot[[EXCLUDED, SEA, UNKNOWN]] = np.arange(num_classes, num_classes + 3)
        num = len(windows.lon)
        self._known = np.zeros((num, self._silent))
        self._cells = np.zeros(num)
        # The largest share of a window that lies within one tile, and how many tiles it touches.
        self._covered, self._num_tiles = np.zeros(num), np.zeros(num, dtype=np.int64)
        self._peeked: dict[int, _Part] = {}

    def run(self) -> Ground:
        """Ask the tiles in order until everything is known or all are asked."""
        order = self._tile_order()
        for rank in range(order.shape[1]):
            for tile_index in np.unique(order[:, rank]):
                still_open = (order[:, rank] == tile_index) & (self._known.sum(axis=1) < _COVERED)
                self._ask(int(tile_index), np.flatnonzero(still_open), order[:, :rank])
        # Line integrals cancel to zero only within rounding: a share below a billionth is none.
        known = np.where(self._known < 1e-9, 0.0, self._known)
        silent_or_outside = (1.0 - known.sum(axis=1)).clip(0.0, 1.0)
        outside = (1.0 - self._covered).clip(0.0, 1.0)
        for chip in np.flatnonzero((self._num_tiles > 1) & (outside > 1e-9) & (silent_or_outside > 1e-9)):
            outside[chip] = self._outside_all(int(chip))
        outside = np.where(outside < 1e-9, 0.0, np.minimum(outside, silent_or_outside))
        k = self._num_classes
        return Ground(known[:, :k], known[:, k], known[:, k + 1], silent_or_outside - outside, outside, self._cells)

    def _tile_order(self) -> np.ndarray:
        """Tiles in the order in which each window asks them, int (N, T); only tiles near the scene take part."""
        lon, lat = self._windows.lon, self._windows.lat
        if not self._tiles:
            return np.zeros((len(lon), 0), dtype=np.int64)
        centres = np.array([tile.footprint.centroid.coords[0] for tile in self._tiles])
        dx = unwrap_lon(lon[:, None] - centres[None, :, 0], 0.0) * np.cos(np.radians(lat))[:, None]
        return np.argsort(np.hypot(dx, lat[:, None] - centres[None, :, 1]), axis=1, kind="stable")

    def _ask(self, tile_index: int, chips: np.ndarray, order: np.ndarray) -> None:
        """Let one tile vote on the ground of some windows on which the tiles before it in ``order`` said nothing."""
        tile = self._tiles[tile_index]
        rings = self._rings(tile, chips)
        finite = np.isfinite(rings).all(axis=(1, 2))
        rings, chips = rings[finite], chips[finite]
        box = np.concatenate([rings.min(axis=1), rings.max(axis=1)], axis=1)
        unheard = self._known[chips].sum(axis=1) == 0
        for shift in _shifts(tile):
            moved = box + np.array([shift, 0.0, shift, 0.0])
            touching = _touching(moved, tile.grid)
            # Windows on which no tile has said anything are asked about as a whole, which is many times faster.
            for some, earlier in ((touching[unheard[touching]], order[:, :0]), (touching[~unheard[touching]], order)):
                for block in _blocks(moved, some, tile.grid):
                    self._vote(tile, rings[block] + np.array([shift, 0.0]), moved[block], chips[block], earlier, shift)

    def _rings(self, tile: Tile, chips: np.ndarray) -> np.ndarray:
        """Outlines of some windows in the tile's (col, row), (N, P, 2)."""
        windows = self._windows
        # Straight lines stay straight in the same CRS; elsewhere they bend and are followed piece by piece.
        segments = 1 if same_crs(windows.crs_wkt, tile.grid.wkt) else self._segments
        return _to_pixels(windows[chips].outlines(segments), windows.crs_wkt, tile, windows.lon[chips])

    def _vote(
        self, tile: Tile, rings: np.ndarray, boxes: np.ndarray, chips: np.ndarray, order: np.ndarray, shift: float
    ) -> None:
        row0, col0, height, width = _bounds(boxes, tile.grid)
        origin = np.array([col0, row0])
        local = rings - origin
        edges = edges_of_rings(local)
        if order.shape[1]:
            left = [self._still_open(tile, r, c, order[c], shift) for r, c in zip(rings, chips, strict=True)]
            edges = edges_of_polygons([shapely.transform(shape, lambda xy: xy - origin) for shape in left])
        boxed = not order.shape[1] and _are_boxes(local)
        by_area = row_weights(tile.grid, row0, height)
        weights = np.ones((height, 1)) if by_area is None else np.stack([np.ones(height), by_area], axis=1)
        widest = min(width, widest_cells(boxes[:, 0], boxes[:, 2]))
        areas = np.zeros((weights.shape[1], len(chips), self._num_slots))
        # Areas of strips add up, so that even a window as large as a tile is counted within bounded memory.
        for top, strip in _strips(height, width):
            counts = RunningCounts(self._read(tile, row0 + top, col0, strip, width), self._num_slots, widest)
            down = np.array([0.0, top])
            areas += (
                rectangle_areas(counts, boxes - np.tile(origin + down, 2), weights[top : top + strip])
                if boxed
                else polygon_areas(counts, edges.moved(-down), weights[top : top + strip])
            )
        cells, weighted = areas[0].sum(axis=1), areas[-1]
        total = weighted.sum(axis=1, keepdims=True)
        mix = np.divide(weighted, total, out=np.zeros_like(weighted), where=total > 0)[:, : self._silent]
        whole = np.abs(signed_areas(local))
        share = cells / whole
        # `np.add.at` is not needed: a window appears once in a block.
        self._known[chips] += mix * share[:, None]
        self._cells[chips] += mix[:, : self._num_classes].sum(axis=1) * cells
        within = share if not order.shape[1] else _within(rings, tile.grid) / whole
        self._covered[chips] = np.maximum(self._covered[chips], within)
        self._num_tiles[chips] += 1

    def _still_open(
        self, tile: Tile, ring: np.ndarray, chip: int, earlier: np.ndarray, shift: float
    ) -> shapely.Geometry:
        """Ground of a window that earlier tiles said nothing about, in this tile's (col, row)."""
        known = []
        for index in earlier:
            other, theirs = self._tiles[index], self._rings(self._tiles[index], np.array([chip]))[0]
            for turn in _shifts(other) if np.isfinite(theirs).all() else ():
                parts = self._spoke(int(index), theirs + np.array([turn, 0.0]))
                known += [self._carry(part, other, tile, chip, turn, shift, self._step(theirs)) for part in parts]
        return shapely.Polygon(ring).difference(shapely.union_all(known))

    def _outside_all(self, chip: int) -> float:
        """Share of a window that lies in no tile, where several have a part of it."""
        frame = self._tiles[0]
        ring = self._rings(frame, np.array([chip]))[0]
        inside = []
        for other in self._tiles:
            theirs = self._rings(other, np.array([chip]))[0]
            for turn in _shifts(other) if np.isfinite(theirs).all() else ():
                if (around := _cells_around(theirs + np.array([turn, 0.0]), other.grid)) is not None:
                    row, col, height, width = around
                    box = shapely.box(col, row, col + width, row + height)
                    inside.append(self._carry(box, other, frame, chip, turn, 0.0, self._step(theirs)))
        whole = shapely.Polygon(ring)
        return float(whole.difference(shapely.union_all(inside)).area / whole.area)

    def _step(self, ring: np.ndarray) -> float:
        return float(np.ptp(ring, axis=0).max()) / self._segments

    def _carry(
        self, shape: shapely.Geometry, source: Tile, target: Tile, chip: int, turn: float, shift: float, step: float
    ) -> shapely.Geometry:
        """A shape of one tile's (col, row), moved by ``turn``, in another's, moved by ``shift``; edges cut to ``step``."""
        near_lon = self._windows.lon[[chip]]

        def move(points: np.ndarray) -> np.ndarray:
            col, row = points[:, 0] - turn, points[:, 1]
            xy = source.grid.xy(col, row)
            return np.asarray(_to_pixels(xy[None], source.grid.wkt, target, near_lon)[0] + np.array([shift, 0.0]))

        return shapely.transform(shapely.segmentize(shape, step), move)

    def _spoke(self, index: int, ring: np.ndarray) -> list[shapely.Geometry]:
        """Where a tile holds data around a window, in the tile's (col, row)."""
        around = _cells_around(ring, self._tiles[index].grid)
        if around is None:
            return []
        row, col, height, width = around
        spoke = self._peek(index, row, col, height, width) != self._silent
        if spoke.all():
            return [shapely.box(col, row, col + width, row + height)]
        found = shapes(spoke.astype(np.uint8), mask=spoke, transform=Affine.translation(col, row))
        return [shapely.geometry.shape(geometry) for geometry, _ in found]

    def _peek(self, index: int, row: int, col: int, height: int, width: int) -> np.ndarray:
        """A few cells of a tile; those around them are kept, since the next window lies beside this one."""
        part = self._peeked.get(index)
        if part is None or not part.holds(row, col, height, width):
            grid = self._tiles[index].grid
            top, left = max(row - _CELLS_AHEAD, 0), max(col - _CELLS_AHEAD, 0)
            bottom = min(row + height + _CELLS_AHEAD, grid.height)
            right = min(col + width + _CELLS_AHEAD, grid.width)
            part = _Part(top, left, self._read(self._tiles[index], top, left, bottom - top, right - left))
            self._peeked[index] = part
        return part.slots[row - part.row : row - part.row + height, col - part.col : col - part.col + width]

    def _read(self, tile: Tile, row: int, col: int, height: int, width: int) -> np.ndarray:
        window = Window(col, row, width, height)
        return np.asarray(self._slot[read_slots(self._source, tile, self._product, window)])


def _are_boxes(rings: np.ndarray) -> bool:
    """Whether all rings are four corners with sides along the axes."""
    if rings.shape[1] != 5:
        return False
    step = np.abs(np.diff(rings, axis=1))
    return bool((step.min(axis=-1) <= 1e-9 * step.max(axis=-1)).all())


def row_weights(grid: Grid, row: int, height: int) -> np.ndarray | None:
    """Relative ground area of the cells in each row where rows lie on parallels; None where all cells count alike.

    On the sphere the area between two parallels is proportional to the difference of the sines of their latitudes.

    Returns:
        float64 (height,), proportional to the true area of a cell.
    """
    if not (grid.crs.is_geographic or _is_mercator(grid.wkt)):
        return None
    y = grid.transform.f + grid.transform.e * np.arange(row, row + height + 1)
    lat = y if grid.crs.is_geographic else grid.lonlat(np.stack([np.full_like(y, grid.transform.c), y], axis=-1))[:, 1]
    areas = np.abs(np.diff(np.sin(np.radians(lat.clip(-90.0, 90.0)))))
    return np.asarray(areas / areas.max())


@lru_cache(maxsize=256)
def _is_mercator(wkt: str) -> bool:
    operation = pyproj.CRS.from_wkt(wkt).coordinate_operation
    name = operation.method_name if operation is not None else ""
    return name.startswith(("Mercator", "Popular Visualisation Pseudo Mercator"))


def _shifts(tile: Tile) -> tuple[float, ...]:
    """Whole turns of longitude in columns: a window beyond the tile's right edge may lie on its left part."""
    if not tile.grid.crs.is_geographic:
        return (0.0,)
    turn = 360.0 / tile.grid.transform.a
    return (0.0, turn, -turn)


def _near(footprint: shapely.Polygon, lon: np.ndarray, lat: np.ndarray, margin_deg: float = 5.0) -> bool:
    west, south, east, north = footprint.bounds
    middle = (west + east) / 2
    apart = np.abs(unwrap_lon(lon - middle, 0.0)) > (east - west) / 2 + margin_deg
    return not bool((apart | (lat < south - margin_deg) | (lat > north + margin_deg)).all())


def _to_pixels(outlines: np.ndarray, wkt: str, tile: Tile, near_lon: np.ndarray) -> np.ndarray:
    """Outlines (N, P, 2) of CRS ``wkt`` in the tile's (col, row)."""
    xy = outlines if same_crs(wkt, tile.grid.wkt) else reproject(outlines, wkt, tile.grid.wkt)
    x, y = xy[..., 0], xy[..., 1]
    if tile.grid.crs.is_geographic:
        x = unwrap_lon(x, np.broadcast_to(near_lon[:, None], x.shape))
    return tile.grid.pixel(x, y)


def _touching(boxes: np.ndarray, grid: Grid) -> np.ndarray:
    left, top, right, bottom = boxes.T
    return np.flatnonzero((right > 0) & (bottom > 0) & (left < grid.width) & (top < grid.height))


def _bounds(boxes: np.ndarray, grid: Grid) -> tuple[int, int, int, int]:
    """First row, first column, height and width of the cells that the boxes touch, within the grid."""
    low = np.floor(boxes[:, :2].min(axis=0)).astype(int).clip(0, [grid.width - 1, grid.height - 1])
    high = np.ceil(boxes[:, 2:].max(axis=0)).astype(int).clip(1, [grid.width, grid.height])
    return int(low[1]), int(low[0]), int(max(high[1] - low[1], 1)), int(max(high[0] - low[0], 1))


def _cells_around(ring: np.ndarray, grid: Grid) -> tuple[int, int, int, int] | None:
    """First row, first column, height and width of the cells that a ring touches; None if it touches none."""
    box = np.concatenate([ring.min(axis=0), ring.max(axis=0)])[None]
    return _bounds(box, grid) if len(_touching(box, grid)) else None


def _within(rings: np.ndarray, grid: Grid) -> np.ndarray:
    """Area of each ring within a grid, in cells."""
    return np.asarray(
        shapely.area(shapely.intersection(shapely.polygons(rings), shapely.box(0, 0, grid.width, grid.height)))
    )


def _strips(height: int, width: int) -> Iterator[tuple[int, int]]:
    """First row and number of rows of strips of bounded size."""
    rows = max(1, _CELLS_PER_BLOCK // width)
    for top in range(0, height, rows):
        yield top, min(rows, height - top)


def _blocks(boxes: np.ndarray, touching: np.ndarray, grid: Grid) -> list[np.ndarray]:
    """Split windows, in their order, into blocks whose common part of the raster fits in memory."""
    if not len(touching):
        return []
    _, _, height, width = _bounds(boxes[touching], grid)
    if height * width <= _CELLS_PER_BLOCK or len(touching) == 1:
        return [touching]
    half = len(touching) // 2
    return _blocks(boxes, touching[:half], grid) + _blocks(boxes, touching[half:], grid)
