"""Where pixels lie: a frozen grid value (CRS, transform, shape) and what follows from it.

Axis order: ``shape`` is (height, width); points are (x, y) in CRS units, or (lon, lat) in degrees; pixel positions
are (col, row) with the upper-left corner of the first pixel at (0, 0). No file is opened here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Self

import numpy as np
import pyproj
import pyproj.network
import shapely
from affine import Affine
from rasterio.crs import CRS

EARTH_RADIUS_M = 6_371_007.1809
"""Authalic radius of the WGS 84 ellipsoid: the sphere of the same surface."""

METRES_PER_DEGREE = math.pi * EARTH_RADIUS_M / 180.0

GSD_RANGE_M = (0.001, 1_000_000.0)
"""Ground sampling distances that are believed: from microdrones to maps of the world of a few hundred cells, with room."""

MAX_PIXEL_STRETCH = 100.0
"""Longest over shortest extent of a pixel that is believed: far beyond what is delivered, short of a damaged number."""


@lru_cache(maxsize=256)
def transformer(source_wkt: str, target_wkt: str) -> pyproj.Transformer:
    """A cached coordinate transformer in (x, y) order on both sides.

    Raises:
        pyproj.exceptions.ProjError: there is no way from one CRS to the other.
    """
    # A CRS comes from a file and may name grids by URL. Asked for here because the setting is one of each thread.
    pyproj.network.set_network_enabled(active=False)  # type: ignore[attr-defined]
    return pyproj.Transformer.from_crs(source_wkt, target_wkt, always_xy=True)


@lru_cache(maxsize=1024)
def same_crs(wkt: str, other_wkt: str) -> bool:
    """Whether two WKT texts describe the same CRS, so that coordinates need no change."""
    return wkt == other_wkt or bool(CRS.from_wkt(wkt) == CRS.from_wkt(other_wkt))


@dataclass(frozen=True)
class Grid:
    """A raster's grid.

    Attributes:
        crs: coordinate reference system.
        transform: from (col, row) to (x, y).
        height: rows.
        width: columns.
    """

    crs: CRS
    transform: Affine
    height: int
    width: int

    @classmethod
    def of(cls, dataset: Any, crs: CRS | None = None) -> Self:
        """The grid of an open raster.

        Args:
            dataset: an open rasterio dataset with a CRS, or any with ``crs``, ``transform``, ``height`` and ``width``.
            crs: CRS to use instead of the dataset's.
        """
        crs = CRS.from_wkt(dataset.crs.to_wkt()) if crs is None else crs
        return cls(crs, Affine(*tuple(dataset.transform)[:6]), dataset.height, dataset.width)

    @classmethod
    def of_columns(cls, row: Mapping[Any, Any], crs: CRS | None = None) -> Self:
        """The grid that `columns` describe.

        Args:
            row: a row of a table that has these columns.
            crs: the parsed ``crs_wkt``, where it is at hand already.
        """
        crs = CRS.from_wkt(row["crs_wkt"]) if crs is None else crs
        return cls(crs, Affine(*row["transform"]), int(row["height"]), int(row["width"]))

    def columns(self) -> dict[str, Any]:
        """The grid as columns of a table: ``crs_wkt``, ``transform`` (six numbers), ``height``, ``width``."""
        return {
            "crs_wkt": self.wkt,
            "transform": list(tuple(self.transform)[:6]),
            "height": self.height,
            "width": self.width,
        }

    @cached_property
    def wkt(self) -> str:
        """The CRS as WKT."""
        return str(self.crs.to_wkt())

    def xy(self, col: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Points of the CRS at pixel positions.

        Args:
            col: float64 of any shape, columns; whole numbers are the left edges of pixels.
            row: float64 of the same shape, rows; whole numbers are the upper edges of pixels.

        Returns:
            float64 (..., 2), x and y in CRS units.
        """
        return carried(self.transform, col, row)

    def pixel(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Pixel positions of points of the CRS; the inverse of `xy`.

        Args:
            x: float64 of any shape, in CRS units.
            y: float64 of the same shape.

        Returns:
            float64 (..., 2), col and row.
        """
        return carried(~self.transform, x, y)

    def window(self, row: int, col: int, height: int, width: int) -> "Grid":
        """The grid of exactly the pixels ``[row, row + height) x [col, col + width)``."""
        return Grid(self.crs, self.transform @ Affine.translation(col, row), height, width)

    def outlines_xy(self, rows: np.ndarray, cols: np.ndarray, size_px: int, segments: int) -> np.ndarray:
        """Closed outlines of square windows, their edges cut into ``segments`` straight pieces.

        Args:
            rows: int (N,), upper pixel row of each window.
            cols: int (N,), left pixel column of each window.
            size_px: side of the windows in pixels.
            segments: pieces an edge is cut into.

        Returns:
            float64 (N, 4 * segments + 1, 2), x and y in CRS units; the last point repeats the first.
        """
        ring = unit_ring(segments) * size_px
        col = cols[:, None] + ring[None, :, 0]
        row = rows[:, None] + ring[None, :, 1]
        return self.xy(col, row)

    def lonlat(self, xy: np.ndarray) -> np.ndarray:
        """Longitudes and latitudes of points of this grid's CRS.

        Args:
            xy: float64 (..., 2) in CRS units.

        Returns:
            float64 (..., 2) in degrees on WGS 84; not finite where a point has no image.
        """
        return reproject(xy, self.wkt, "EPSG:4326")

    def outline_xy(self, segments: int) -> np.ndarray:
        """Closed outline of the whole grid, its edges cut into ``segments`` straight pieces.

        Returns:
            float64 (4 * segments + 1, 2), x and y in CRS units.
        """
        ring = unit_ring(segments) * np.array([self.width, self.height], dtype=np.float64)
        return self.xy(ring[:, 0], ring[:, 1])

    def footprint(self, segments: int = 16) -> shapely.Polygon:
        """Outline of the grid in longitude and latitude, edges followed in ``segments`` pieces.

        Longitudes are continuous: across the antimeridian they run beyond 180 degrees.
        """
        lonlat = self.lonlat(self.outline_xy(segments))
        # Point by point, not relative to the first: a global grid spans a whole turn.
        lonlat[:, 0] = np.unwrap(lonlat[:, 0], period=360.0)
        return shapely.Polygon(lonlat)

    def fault(self) -> str:
        """Why this grid has no usable place on Earth; empty where it has one.

        A place that is wrong but possible cannot be distinguished from a right one. What can be seen: numbers that are not
        finite, a CRS that is neither geographic nor projected or not of this planet, corners beyond the poles or more
        than one and a half turns away, and pixels of a size or shape that no sensor has.
        """
        numbers = tuple(self.transform)[:6]
        if not all(math.isfinite(v) for v in numbers) or self.transform.is_degenerate:
            return f"its geotransform {numbers} spans no area or is not finite; georeference it again"
        widths = np.linalg.svd(np.array([numbers[:2], numbers[3:5]]), compute_uv=False)
        if widths[0] > MAX_PIXEL_STRETCH * widths[1]:
            return f"its geotransform {numbers} draws pixels over {MAX_PIXEL_STRETCH:g} times as long as wide; georeference it again"
        if not (self.crs.is_geographic or self.crs.is_projected):
            return "its CRS is neither geographic nor projected; warp it to a map grid first"
        try:
            lonlat = self.lonlat(self.outline_xy(16))
            gsd_m = self.gsd_m
        except pyproj.exceptions.ProjError as error:
            return f"its CRS cannot be carried to longitude and latitude ({error}); assign the right one, e.g. with gdal_edit"
        if not np.isfinite(lonlat).all() or (np.abs(lonlat).max(axis=0) > [540.0, 90.0 + 1e-6]).any():
            return "its grid has no place on Earth: corners do not map to longitude and latitude; check CRS and geotransform"
        if not GSD_RANGE_M[0] <= gsd_m <= GSD_RANGE_M[1]:
            return (
                f"its pixels measure {gsd_m:g} m on the ground, expected {GSD_RANGE_M[0]:g} to {GSD_RANGE_M[1]:g} m; "
                "check the units of CRS and geotransform (degrees or metres?)"
            )
        return ""

    @property
    def gsd_m(self) -> float:
        """Ground sampling distance in metres: the square root of the true ground area of the central pixel.

        Measured on the sphere of the ellipsoid's surface, so that Web Mercator metres and degrees become ground metres.
        """
        centre = self.transform @ Affine.translation(self.width / 2 - 0.5, self.height / 2 - 0.5)
        xy = np.array([centre @ corner for corner in ((0, 0), (1, 0), (1, 1), (0, 1))], dtype=np.float64)
        lon, lat = np.radians(self.lonlat(xy)).T
        # As points in space: longitude differences say nothing where the pixel touches a pole.
        corners = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)
        diagonals = corners[2:] - corners[:2]
        area = 0.5 * float(np.linalg.norm(np.cross(diagonals[0], diagonals[1]))) * EARTH_RADIUS_M**2
        return math.sqrt(area)


def carried(transform: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Points carried by an affine transform, or by one transform a point.

    Args:
        transform: six numbers a, b, c, d, e, f (an `Affine`, say), or six arrays that broadcast against ``x``.
        x: float64 of any shape.
        y: float64 of the same shape.

    Returns:
        float64 (..., 2): ``a x + b y + c`` and ``d x + e y + f``.
    """
    a, b, c, d, e, f = tuple(transform)[:6]
    return np.stack(np.broadcast_arrays(a * x + b * y + c, d * x + e * y + f), axis=-1)


@lru_cache(maxsize=32)
def unit_ring(segments: int) -> np.ndarray:
    """The unit square's outline from (0, 0) over (1, 0), (1, 1), (0, 1) back, ``segments`` points an edge.

    Returns:
        float64 (4 * segments + 1, 2), closed; not to be written to.
    """
    t = np.arange(segments, dtype=np.float64) / segments
    zero, one = np.zeros_like(t), np.ones_like(t)
    sides = [(t, zero), (one, t), (1 - t, one), (zero, 1 - t)]
    ring = np.concatenate([np.stack(side, axis=-1) for side in sides])
    closed = np.concatenate([ring, ring[:1]])
    closed.flags.writeable = False
    return closed


def reproject(xy: np.ndarray, source_wkt: str, target_wkt: str) -> np.ndarray:
    """Carry points from one CRS to another.

    Args:
        xy: float64 (..., 2).
        source_wkt: CRS of ``xy`` as WKT.
        target_wkt: wanted CRS as WKT or authority code.

    Returns:
        float64 (..., 2); infinite where a point has no image.
    """
    x, y = transformer(source_wkt, target_wkt).transform(xy[..., 0], xy[..., 1])
    return np.stack([x, y], axis=-1)


def unwrap_lon(lon: np.ndarray, near: np.ndarray | float) -> np.ndarray:
    """Longitudes shifted by whole turns to lie within 180 degrees of ``near``."""
    return lon - 360.0 * np.round((lon - near) / 360.0)
