"""A tile's own plane: windows in its (col, row), which of its cells they touch, and how much ground a cell holds."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pyproj
import shapely

from geokr_core.land_cover.product import Tile
from geokr_core.proportions.areas import Edges, edges_of_polygons, edges_of_rings, signed_areas, weighted_areas
from geokr_core.proportions.windows import Windows
from geokr_core.rasters.grid import Grid, reproject, same_crs, unwrap_lon


def rings_in(tile: Tile, windows: Windows, segments: int) -> np.ndarray:
    """Outlines of windows in a tile's (col, row).

    Args:
        tile: the tile.
        windows: N windows.
        segments: straight pieces that an edge is cut into where scene and tile differ in CRS.

    Returns:
        float64 (N, P, 2), closed; not finite where a point has no image.
    """
    # Straight lines stay straight in the same CRS; elsewhere they bend and are followed piece by piece.
    pieces = 1 if same_crs(windows.crs_wkt, tile.grid.wkt) else segments
    outlines = windows.outlines(pieces)
    near_lon = np.broadcast_to(windows.lon[:, None], outlines.shape[:2])
    return to_pixels(outlines, windows.crs_wkt, tile, near_lon)


def to_pixels(xy: np.ndarray, wkt: str, tile: Tile, near_lon: np.ndarray) -> np.ndarray:
    """Points (..., 2) of CRS ``wkt`` in the tile's (col, row); longitudes are taken on the turn of ``near_lon`` (...)."""
    xy = xy if same_crs(wkt, tile.grid.wkt) else reproject(xy, wkt, tile.grid.wkt)
    x, y = xy[..., 0], xy[..., 1]
    return tile.grid.pixel(unwrap_lon(x, near_lon) if tile.grid.crs.is_geographic else x, y)


def turns(tile: Tile) -> tuple[float, ...]:
    """Whole turns of longitude in columns: a window beyond the tile's right edge may lie on its left part."""
    if not tile.grid.crs.is_geographic:
        return (0.0,)
    turn = 360.0 / tile.grid.transform.a
    return (0.0, turn, -turn)


def boxes_of(rings: np.ndarray) -> np.ndarray:
    """Left, top, right and bottom of rings (N, P, 2), float64 (N, 4)."""
    return np.concatenate([rings.min(axis=1), rings.max(axis=1)], axis=1)


def are_boxes(rings: np.ndarray) -> bool:
    """Whether all rings are four corners with sides along the axes."""
    if rings.shape[1] != 5:
        return False
    step = np.abs(np.diff(rings, axis=1))
    return bool((step.min(axis=-1) <= 1e-9 * step.max(axis=-1)).all())


def touching(boxes: np.ndarray, grid: Grid) -> np.ndarray:
    """Which boxes (N, 4) share ground with a grid, int (M,)."""
    left, top, right, bottom = boxes.T
    return np.flatnonzero((right > 0) & (bottom > 0) & (left < grid.width) & (top < grid.height))


def inside(boxes: np.ndarray, grid: Grid) -> np.ndarray:
    """Which boxes (N, 4) lie wholly within a grid, bool (N,)."""
    left, top, right, bottom = boxes.T
    return np.asarray((left >= 0) & (top >= 0) & (right <= grid.width) & (bottom <= grid.height))


def cells_of(boxes: np.ndarray, grid: Grid) -> tuple[int, int, int, int]:
    """First row, first column, height and width of the cells that boxes (N, 4) touch, within the grid."""
    low = np.floor(boxes[:, :2].min(axis=0)).astype(int).clip(0, [grid.width - 1, grid.height - 1])
    high = np.ceil(boxes[:, 2:].max(axis=0)).astype(int).clip(1, [grid.width, grid.height])
    return int(low[1]), int(low[0]), int(max(high[1] - low[1], 1)), int(max(high[0] - low[0], 1))


def strips(height: int, width: int, max_cells: int) -> Iterator[tuple[int, int]]:
    """First row and number of rows of strips of at most ``max_cells`` cells, or of one row."""
    rows = max(1, max_cells // width)
    for top in range(0, height, rows):
        yield top, min(rows, height - top)


def blocks(boxes: np.ndarray, chosen: np.ndarray, grid: Grid, max_cells: int) -> list[np.ndarray]:
    """Split some of the boxes, in their order, into blocks whose common cells are at most ``max_cells``, or one box."""
    if not len(chosen):
        return []
    _, _, height, width = cells_of(boxes[chosen], grid)
    if height * width <= max_cells or len(chosen) == 1:
        return [chosen]
    half = len(chosen) // 2
    return blocks(boxes, chosen[:half], grid, max_cells) + blocks(boxes, chosen[half:], grid, max_cells)


def on_parallels(grid: Grid) -> bool:
    """Whether rows lie on parallels, so that the ground area of a cell depends on its row: degrees and Mercator."""
    return bool(grid.crs.is_geographic) or _is_mercator(grid.wkt)


def row_areas(grid: Grid, row: int, height: int) -> np.ndarray | None:
    """`parallel_areas` where rows lie on parallels; None where all cells count alike."""
    return parallel_areas(grid, row, height) if on_parallels(grid) else None


def parallel_areas(grid: Grid, row: int, height: int) -> np.ndarray:
    """Ground area of a cell in each row of a grid whose rows lie on parallels.

    On the sphere the area between two parallels is proportional to the difference of the sines of their latitudes.

    Args:
        grid: of the tile.
        row: first row; rows beyond the grid are continued.
        height: number of rows.

    Returns:
        float64 (height,), proportional to the true area of a cell.
    """
    y = grid.transform.f + grid.transform.e * np.arange(row, row + height + 1)
    lat = y if grid.crs.is_geographic else grid.lonlat(np.stack([np.full_like(y, grid.transform.c), y], axis=-1))[:, 1]
    return np.asarray(np.abs(np.diff(np.sin(np.radians(lat.clip(-90.0, 90.0))))))


def ground_areas(shapes: np.ndarray, grid: Grid) -> np.ndarray:
    """Area of polygons in a tile's (col, row), float64 (N,): in cells, or by true area where rows lie on parallels."""
    return (
        _true_areas(edges_of_polygons(list(shapes)), grid) if on_parallels(grid) else np.asarray(shapely.area(shapes))
    )


def ring_areas(rings: np.ndarray, grid: Grid) -> np.ndarray:
    """`ground_areas` of closed rings (N, P, 2)."""
    return _true_areas(edges_of_rings(rings), grid) if on_parallels(grid) else np.abs(signed_areas(rings))


def _true_areas(edges: Edges, grid: Grid) -> np.ndarray:
    if not len(edges.start):
        return np.zeros(edges.num_polygons)
    first = int(np.floor(edges.start[:, 1].min()))
    height = max(int(np.ceil(edges.start[:, 1].max())) - first, 1)
    return weighted_areas(edges, first, parallel_areas(grid, first, height))


def area_within(rings: np.ndarray, grid: Grid) -> np.ndarray:
    """`ground_areas` of the part of each ring (N, P, 2) that lies within the grid."""
    return ground_areas(shapely.intersection(shapely.polygons(rings), shapely.box(0, 0, grid.width, grid.height)), grid)


@lru_cache(maxsize=256)
def _is_mercator(wkt: str) -> bool:
    operation = pyproj.CRS.from_wkt(wkt).coordinate_operation
    name = operation.method_name if operation is not None else ""
    return name.startswith(("Mercator", "Popular Visualisation Pseudo Mercator"))
