"""How much of each land-cover class lies under a polygon, exactly, without resampling.

A land-cover raster is a function that is constant on each cell. By Green's theorem the area of class k under a
polygon is the integral of F_k along its outline, ∮ F_k dy, where F_k(x, y) is the width of class k between the
raster's left edge and x in the row of y: a cumulative sum along the row, plus a part of the cell that x lies in. Along
an edge cut at every grid line F_k is linear, so the midpoint value times dy is exact. The cost grows with
the polygon's outline, not with its area, and the outline may be any polygon: rotated, sheared, across CRS, with holes.

Only arithmetic lives here: coordinates are pixel coordinates of the raster, (col, row).
"""

from dataclasses import dataclass

import numpy as np
import shapely


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


def class_areas(slots: np.ndarray, edges: Edges, num_slots: int, row_weights: np.ndarray) -> np.ndarray:
    """Area of each class under each polygon.

    Args:
        slots: uint8 (H, W), class index of each cell, below ``num_slots``.
        edges: outlines in the raster's pixel coordinates; parts outside the raster count nothing.
        num_slots: K.
        row_weights: float64 (H,), area of a cell in each row (1 for cells of equal area).

    Returns:
        float64 (N, K), in units of ``row_weights``.
    """
    pieces = _split_at_grid_lines(edges, *slots.shape)
    rows, cols = np.floor(pieces.middle[:, 1]).astype(np.int64), np.floor(pieces.middle[:, 0]).astype(np.int64)
    height, width = slots.shape
    inside = (rows >= 0) & (rows < height) & (cols >= 0)
    rows, cols, dy = rows[inside], cols[inside], pieces.dy[inside]
    polygon, x = pieces.polygon[inside], pieces.middle[inside, 0]
    strength = dy * row_weights[rows]
    # Width inside the cell that x lies in; none once x is right of the raster.
    within = cols < width
    own = slots[rows[within], cols[within]].astype(np.int64)
    areas = np.zeros((edges.num_polygons, num_slots))
    np.add.at(areas, (polygon[within], own), strength[within] * (x[within] - cols[within]))
    cols = np.minimum(cols, width)
    cumulative = np.zeros((height, width + 1), dtype=np.int32)
    for slot in np.flatnonzero(np.bincount(slots.ravel(), minlength=num_slots)):
        np.cumsum(slots == slot, axis=1, out=cumulative[:, 1:])
        areas[:, slot] += np.bincount(polygon, weights=strength * cumulative[rows, cols], minlength=edges.num_polygons)
    return areas


@dataclass(frozen=True)
class _Pieces:
    polygon: np.ndarray
    middle: np.ndarray
    dy: np.ndarray


def _split_at_grid_lines(edges: Edges, height: int, width: int) -> _Pieces:
    """Cut every edge where it crosses a grid line, so that each piece lies in one cell."""
    delta = edges.end - edges.start
    # Horizontal edges have dy = 0 and contribute nothing.
    keep = delta[:, 1] != 0
    start, delta, polygon = edges.start[keep], delta[keep], edges.polygon[keep]
    count = len(start)
    owners, cuts = [np.repeat(np.arange(count), 2)], [np.tile([0.0, 1.0], count)]
    for axis, limit in ((0, width), (1, height)):
        low = np.minimum(start[:, axis], start[:, axis] + delta[:, axis])
        high = np.maximum(start[:, axis], start[:, axis] + delta[:, axis])
        first = np.maximum(np.floor(low) + 1, 0).astype(np.int64)
        last = np.minimum(np.ceil(high) - 1, limit).astype(np.int64)
        number = np.maximum(last - first + 1, 0)
        owner = np.repeat(np.arange(count), number)
        nth = np.arange(len(owner)) - np.repeat(np.cumsum(number) - number, number)
        line = first[owner] + nth
        owners.append(owner)
        cuts.append((line - start[owner, axis]) / delta[owner, axis])
    owner, cut = np.concatenate(owners), np.concatenate(cuts).clip(0.0, 1.0)
    order = np.lexsort((cut, owner))
    owner, cut = owner[order], cut[order]
    same = owner[1:] == owner[:-1]
    owner, begin, finish = owner[:-1][same], cut[:-1][same], cut[1:][same]
    middle = start[owner] + (0.5 * (begin + finish))[:, None] * delta[owner]
    return _Pieces(polygon[owner], middle, (finish - begin) * delta[owner, 1])
