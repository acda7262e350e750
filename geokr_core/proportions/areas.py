"""How much of each land-cover class lies under a polygon, exactly, without resampling.

A land-cover raster is a function that is constant on each cell. By Green's theorem the area of class k under a
polygon is the integral of F_k along its outline, ∮ F_k dy, where F_k(x, y) is the width of class k between the
raster's left edge and x in the row of y: a cumulative sum along the row, plus a part of the cell that x lies in. Along
an edge cut at every grid line F_k is linear, so the midpoint value times dy is exact. The cost grows with
the polygon's outline, not with its area, and the outline may be any polygon: rotated, sheared, across CRS, with holes.
Where raster and scene share their axes the polygons are rectangles, whose sides need no cutting.

The cumulative sums of several classes share one 64-bit word (`RunningCounts`), so that a raster is summed once or twice
instead of once a class.

Only arithmetic lives here: coordinates are pixel coordinates of the raster, (col, row).
"""

from dataclasses import dataclass

import numpy as np
import shapely
from scipy import sparse


@dataclass(frozen=True)
class Edges:
    """Outlines of many polygons as one list of straight edges.

    Attributes:
        polygon: int64 (M,), which polygon an edge belongs to, from 0.
        start: float64 (M, 2), (col, row) where it starts.
        end: float64 (M, 2), (col, row) where it ends.
        num_polygons: number of polygons.
    """

    polygon: np.ndarray
    start: np.ndarray
    end: np.ndarray
    num_polygons: int

    def moved(self, by: np.ndarray) -> "Edges":
        """The same outlines, moved by (col, row)."""
        return Edges(self.polygon, self.start + by, self.end + by, self.num_polygons) if by.any() else self


def edges_of_rings(rings: np.ndarray) -> Edges:
    """Edges of closed rings that all have the same number of points.

    Args:
        rings: float64 (N, P, 2), the last point of each repeats its first.

    Returns:
        Edges oriented such that every area comes out positive.
    """
    area = signed_areas(rings)
    oriented = np.where(area[:, None, None] < 0, rings[:, ::-1], rings)
    num, points, _ = rings.shape
    polygon = np.repeat(np.arange(num), points - 1)
    return Edges(polygon, oriented[:, :-1].reshape(-1, 2), oriented[:, 1:].reshape(-1, 2), num)


def edges_of_polygons(polygons: list[shapely.Geometry]) -> Edges:
    """Edges of any polygons and multipolygons, holes included."""
    polygon, start, end = [], [], []
    for index, shape in enumerate(polygons):
        for part in shapely.get_parts(shape):
            if part.geom_type != "Polygon" or part.is_empty:
                continue  # what a difference leaves behind as points and lines has no area
            oriented = shapely.geometry.polygon.orient(part, sign=1.0)
            for ring in (oriented.exterior, *oriented.interiors):
                points = shapely.get_coordinates(ring)
                polygon.append(np.full(len(points) - 1, index))
                start.append(points[:-1])
                end.append(points[1:])
    if not polygon:
        return Edges(np.zeros(0, dtype=np.int64), np.zeros((0, 2)), np.zeros((0, 2)), len(polygons))
    return Edges(np.concatenate(polygon), np.concatenate(start), np.concatenate(end), len(polygons))


def signed_areas(rings: np.ndarray) -> np.ndarray:
    """Signed areas of closed rings by the shoelace formula.

    Args:
        rings: float64 (N, P, 2).

    Returns:
        float64 (N,), positive where ∮ x dy is.
    """
    # Relative to the first point: far from the origin the products would cancel and lose digits.
    x, y = np.moveaxis(rings - rings[:, :1], -1, 0)
    cross = x[:, :-1] * y[:, 1:] - x[:, 1:] * y[:, :-1]
    return np.asarray(0.5 * cross.sum(axis=1))


class RunningCounts:
    """How many cells of each class lie left of a column, row by row, for differences over a limited width.

    A word holds 8, 4 or 2 classes in fields of 8, 16 or 32 bits. Running sums overflow their fields, but a sum modulo
    2**64 is still exact, and so is the difference of two of them as long as no field of the difference exceeds its bits:
    that is what ``widest`` promises.
    """

    def __init__(self, slots: np.ndarray, num_slots: int, widest: int) -> None:
        """Sum up a raster.

        Args:
            slots: uint8 (H, W), class index of each cell, below ``num_slots``.
            num_slots: K.
            widest: cells that the widest difference may span.
        """
        self.slots, self.num_slots = slots, num_slots
        self.height, self.width = slots.shape
        field = next(kind for kind in (np.uint8, np.uint16, np.uint32) if widest <= np.iinfo(kind).max)
        # The byte order is named because a word is looked at as fields later.
        self._field, bits = np.dtype(field).newbyteorder("<"), 8 * np.dtype(field).itemsize
        self._present = np.flatnonzero(np.bincount(slots.ravel(), minlength=num_slots))
        per_word = 64 // bits
        self._words = [
            _running_word(slots, self._present[first : first + per_word], num_slots, bits)
            for first in range(0, len(self._present), per_word)
        ]

    def between(self, rows: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Cells of each class in columns ``[left, right)`` of given rows.

        Args:
            rows: int (...), within the raster.
            left: int (...), broadcast against ``rows``, 0 … W.
            right: int (...), ``left`` … W, at most ``widest`` further.

        Returns:
            unsigned (..., P), of the classes that `spread` knows where to put.
        """
        parts = []
        for word in self._words:
            difference = np.ascontiguousarray(word[rows, right] - word[rows, left])
            parts.append(difference[..., None].view(self._field))
        return np.concatenate(parts, axis=-1)[..., : len(self._present)]

    def spread(self, areas: np.ndarray) -> np.ndarray:
        """Put columns of present classes, (N, P), into columns of all classes, (N, K)."""
        out = np.zeros((len(areas), self.num_slots))
        out[:, self._present] = areas
        return out


def _running_word(slots: np.ndarray, classes: np.ndarray, num_slots: int, bits: int) -> np.ndarray:
    """Running sums along rows, uint64 (H, W + 1), of some classes, one field of ``bits`` each."""
    one = np.zeros(num_slots, dtype="<u8")
    one[classes] = np.uint64(1) << (np.arange(len(classes), dtype=np.uint64) * np.uint64(bits))
    word = np.zeros((slots.shape[0], slots.shape[1] + 1), dtype="<u8")
    np.cumsum(one[slots], axis=1, out=word[:, 1:])
    return word


def widest_cells(low: np.ndarray, high: np.ndarray) -> int:
    """Cells that the widest of some spans touches.

    Args:
        low: float64 (N,), where each begins, in pixels.
        high: float64 (N,), where it ends.
    """
    return int((np.ceil(high) - np.floor(low)).max(initial=0)) + 1


def rectangle_areas(counts: RunningCounts, boxes: np.ndarray, row_weights: np.ndarray) -> np.ndarray:
    """Area of each class under rectangles whose sides run along the raster's axes.

    Args:
        counts: of the raster; no box may be wider than its ``widest``.
        boxes: float64 (N, 4), left, top, right, bottom in (col, row); parts outside the raster count nothing.
        row_weights: float64 (H, R), area of a cell in each row, for each of R ways to weigh.

    Returns:
        float64 (R, N, K), in units of ``row_weights``.
    """
    limits = np.array([counts.width, counts.height, counts.width, counts.height], dtype=np.float64)
    clipped = np.clip(boxes, 0.0, limits)
    areas = np.zeros((row_weights.shape[1], len(boxes), counts.num_slots))
    # Chips of one line of a scene share their rows: they are counted together.
    spans, line = np.unique(clipped[:, [1, 3]], axis=0, return_inverse=True)
    order = np.argsort(line, kind="stable")
    for (top, bottom), chips in zip(spans, np.split(order, np.cumsum(np.bincount(line))[:-1]), strict=True):
        if bottom <= top:
            continue
        rows = np.arange(int(top), min(int(np.ceil(bottom)), counts.height))
        heights = np.minimum(rows + 1, bottom) - np.maximum(rows, top)
        areas[:, chips] = _line_areas(
            counts, clipped[chips, 0], clipped[chips, 2], rows, heights[:, None] * row_weights[rows]
        )
    return areas


def _line_areas(
    counts: RunningCounts, left: np.ndarray, right: np.ndarray, rows: np.ndarray, strength: np.ndarray
) -> np.ndarray:
    """Areas (R, N, K) of boxes over the same rows, which weigh ``strength`` (rows, R)."""
    first, last = np.ceil(left).astype(np.int64), np.floor(right).astype(np.int64)
    inner = first <= last  # else the box lies within one column
    whole = counts.between(rows[:, None], np.minimum(first, last), last)
    num_rows, num_boxes, present = whole.shape
    flat = strength.T @ whole.reshape(num_rows, -1).astype(np.float64)
    areas = counts.spread(flat.reshape(-1, present)).reshape(-1, num_boxes, counts.num_slots)
    # What the box holds of the columns that it cuts.
    columns = np.minimum(np.stack([first - 1, last]), counts.width - 1).clip(0)
    widths = np.where(inner, np.stack([first - left, right - last]), np.stack([right - left, 0 * left]))
    columns = np.where(inner, columns, np.minimum(last, counts.width - 1))
    for column, width in zip(columns, widths, strict=True):
        own = counts.slots[rows[:, None], column[None]]
        for way, weight in enumerate(strength.T):
            where = (np.arange(num_boxes)[None] * counts.num_slots + own).ravel()
            share = (weight[:, None] * width[None]).ravel()
            areas[way] += np.bincount(where, share, num_boxes * counts.num_slots).reshape(num_boxes, -1)
    return areas


def polygon_areas(counts: RunningCounts, edges: Edges, row_weights: np.ndarray) -> np.ndarray:
    """Area of each class under polygons.

    Args:
        counts: of the raster; no polygon may be wider than its ``widest``.
        edges: outlines in the raster's pixel coordinates; parts outside the raster count nothing.
        row_weights: float64 (H, R), area of a cell in each row, for each of R ways to weigh.

    Returns:
        float64 (R, N, K), in units of ``row_weights``.
    """
    num, slots = edges.num_polygons, counts.num_slots
    areas = np.zeros((row_weights.shape[1], num, slots))
    pieces = _split_at_grid_lines(edges, counts.height, counts.width)
    if not len(pieces.dy):
        return areas
    rows = np.floor(pieces.y).astype(np.int64)
    # Sides above or below the raster have no part in it; sides left of it stand on its left edge, where the width of
    # every class is none; right of it all cells are counted and no part of one.
    outside = (rows < 0) | (rows >= counts.height)
    rows[outside] = 0
    dy = np.where(outside, 0.0, pieces.dy)
    x = pieces.x.clip(0.0, counts.width)
    cols = x.astype(np.int64)
    # A polygon's edges come one after the other, so that its pieces are one run.
    starts = np.flatnonzero(np.diff(pieces.polygon, prepend=-1))
    owner = pieces.polygon[starts]
    # Columns left of the polygon cancel between its sides: what is counted starts at its own leftmost column.
    leftmost = np.repeat(np.minimum.reduceat(cols, starts), np.diff(starts, append=len(cols)))
    left_of = counts.between(rows, leftmost, cols).astype(np.float64)
    where = pieces.polygon * slots + counts.slots[rows, np.minimum(cols, counts.width - 1)]
    part = x - cols
    bounds = np.append(starts, len(cols))
    for way, weights in enumerate(row_weights.T):
        strength = dy * weights[rows]
        areas[way] = np.bincount(where, strength * part, num * slots).reshape(num, slots)
        runs = sparse.csr_array((strength, np.arange(len(cols)), bounds), shape=(len(owner), len(cols)))
        areas[way, owner] += counts.spread(runs @ left_of)
    return areas


def weighted_areas(edges: Edges, first_row: int, row_weights: np.ndarray) -> np.ndarray:
    """Area of polygons, whatever raster they lie on or beside.

    Args:
        edges: outlines in pixel coordinates.
        first_row: row that ``row_weights`` begins with.
        row_weights: float64 (H,), area of a cell in each row that the polygons touch.

    Returns:
        float64 (N,), in units of ``row_weights``.
    """
    # Close to the origin: far from it the products would cancel and lose digits.
    near = edges.moved(-np.array([np.floor(edges.start[:, 0].min(initial=0.0)), first_row]))
    pieces = _split_at_grid_lines(near, len(row_weights), 0)
    rows = np.floor(pieces.y).astype(np.int64).clip(0, len(row_weights) - 1)
    return np.bincount(pieces.polygon, pieces.x * pieces.dy * row_weights[rows], near.num_polygons)


@dataclass(frozen=True)
class _Pieces:
    polygon: np.ndarray
    x: np.ndarray
    y: np.ndarray
    dy: np.ndarray


def _split_at_grid_lines(edges: Edges, height: int, width: int) -> _Pieces:
    """Cut every edge where it crosses a grid line, so that each piece lies in one cell."""
    delta = edges.end - edges.start
    # Horizontal edges have dy = 0 and contribute nothing.
    keep = delta[:, 1] != 0
    start, delta, polygon = edges.start[keep], delta[keep], edges.polygon[keep]
    count = len(start)
    # Owner and position along the edge in one number, whose plain sort is several times faster than a sort by two
    # keys. The position keeps 10 digits, and a cut that is so little off still ends one piece where the next begins.
    keys = [np.arange(count, dtype=np.float64), np.arange(count) + 0.5]
    for axis, limit in ((0, width), (1, height)):
        low = np.minimum(start[:, axis], start[:, axis] + delta[:, axis])
        high = np.maximum(start[:, axis], start[:, axis] + delta[:, axis])
        first = np.maximum(np.floor(low) + 1, 0).astype(np.int64)
        last = np.minimum(np.ceil(high) - 1, limit).astype(np.int64)
        number = np.maximum(last - first + 1, 0)
        owner = np.repeat(np.arange(count), number)
        nth = np.arange(len(owner)) - np.repeat(np.cumsum(number) - number, number)
        cut = (first[owner] + nth - start[owner, axis]) / delta[owner, axis]
        keys.append(owner + 0.5 * cut.clip(0.0, 1.0))
    key = np.sort(np.concatenate(keys))
    owner = key.astype(np.int64)
    cut = 2.0 * (key - owner)
    same = owner[1:] == owner[:-1]
    owner, begin, finish = owner[:-1][same], cut[:-1][same], cut[1:][same]
    middle = 0.5 * (begin + finish)
    x, y = (start[owner, axis] + middle * delta[owner, axis] for axis in (0, 1))
    return _Pieces(polygon[owner], x, y, (finish - begin) * delta[owner, 1])
