"""Windows of a scene whose land cover is looked up: chips, or squares inside of them. No land cover is read here."""

from dataclasses import dataclass

import numpy as np

from geokr_core.rasters.grid import carried, reproject, unit_ring, unwrap_lon


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

    def lonlat_box(self) -> tuple[float, float, float, float]:
        """West, south, east and north of all windows in degrees, by their corners; east may exceed 180.

        Corners that have no image in longitude and latitude are left out.
        """
        lonlat = reproject(self.outlines(1), self.crs_wkt, "EPSG:4326")
        lon = unwrap_lon(lonlat[..., 0], float(self.lon[0])) if len(self.lon) else lonlat[..., 0]
        seen = np.isfinite(lonlat).all(axis=-1)
        if not seen.any():
            return (0.0, 0.0, 0.0, 0.0)
        return (
            float(lon[seen].min()),
            float(lonlat[seen, 1].min()),
            float(lon[seen].max()),
            float(lonlat[seen, 1].max()),
        )
