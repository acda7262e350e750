"""From sensor geometry to a map grid, by the rational polynomial coefficients (RPCs) that a raw scene brings.

The grid is UTM of the scene's centre, square pixels of the scene's own ground sampling, north-up. Pixels are carried by
bilinear resampling; this is the one place where the project resamples imagery. GDAL's RPC transformer does the geometry,
through rasterio. Heights are metres above the WGS 84 ellipsoid, as RPCs mean them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.rpc import RPC
from rasterio.transform import RPCTransformer
from rasterio.warp import reproject as warp
from rasterio.windows import Window

from geokr_core.errors import ConfigError, SceneRefusedError
from geokr_core.rasters.grid import Grid, reproject, unit_ring, unwrap_lon
from geokr_core.rasters.open_raster import RASTER_ERRORS, cause_of, open_raster

TILE_ROWS = 256
"""Lines that are carried at a time, counted from the grid's top, so that a pixel never depends on who asks for it."""

_TILE_COLUMNS = 1024
_NODES = 17
"""Points along a tile's side from which the needed part of the source is found."""

_MARGIN_PX = 4
"""Source pixels read around that part: bilinear needs one, the surface between nodes is curved."""

_MOST_WHOLE = 65535
"""Stored for "holds data" beside the pixels while both are resampled, or the most that their type holds. The larger,
the less a pixel without data may weigh before its neighbour counts as touched by it."""

_MAX_GROWTH = 16.0
"""A grid of more pixels than this times the scene's comes from RPCs that are wrong."""

ReadWindow = Callable[[Window, tuple[int, int]], tuple[np.ndarray, np.ndarray]]
"""Reads a window of the source at a shape: pixels (C, h, w) and bool (h, w)."""


@dataclass(frozen=True)
class Terrain:
    """Height of the ground: a constant, or an elevation model.

    Attributes:
        height_m: metres above the ellipsoid, or None.
        dem: raster of heights in metres above the ellipsoid, or None.
    """

    height_m: float | None
    dem: Path | None

    @property
    def options(self) -> dict[str, Any]:
        """For GDAL's RPC transformer."""
        return {"RPC_HEIGHT": self.height_m} if self.dem is None else {"RPC_DEM": str(self.dem)}

    def range_m(self, outline: np.ndarray) -> tuple[float, float]:
        """Lowest and highest ground inside the box around an outline.

        Args:
            outline: float64 (N, 2), longitudes and latitudes.

        Raises:
            SceneRefusedError: the elevation model has no height there.
            ConfigError: the elevation model cannot be read.
        """
        if self.dem is None:
            height_m = float(self.height_m or 0.0)
            return height_m, height_m
        try:
            return _dem_range(self.dem, outline)
        except RASTER_ERRORS as error:
            raise ConfigError(f"{self.dem}: elevation model cannot be read: {cause_of(error)}; mend `dem`") from error


def _dem_range(path: Path, outline: np.ndarray) -> tuple[float, float]:
    with open_raster(path) as dem:
        if dem.crs is None:
            raise ConfigError(f"{path}: elevation model without CRS; assign one or name another in `dem`")
        xy = reproject(outline, "EPSG:4326", dem.crs.to_wkt())
        cols, rows = ~dem.transform @ (xy[:, 0], xy[:, 1])
        top, bottom = max(0, math.floor(rows.min()) - 1), min(dem.height, math.ceil(rows.max()) + 1)
        left, right = max(0, math.floor(cols.min()) - 1), min(dem.width, math.ceil(cols.max()) + 1)
        low, high = math.inf, -math.inf
        for row in range(top, bottom if right > left else top, TILE_ROWS):
            part = dem.read(1, window=Window(left, row, right - left, min(TILE_ROWS, bottom - row)), masked=True)
            heights = np.ma.masked_invalid(part).compressed()
            if heights.size:
                low, high = min(low, float(heights.min())), max(high, float(heights.max()))
    if low > high:
        raise SceneRefusedError(f"elevation model {path.name} has no height under the scene")
    return low, high


def ortho_grid(rpcs: RPC, height: int, width: int, terrain: Terrain) -> Grid:
    """The map grid that a raw scene is carried to.

    Args:
        rpcs: of the scene.
        height: its lines.
        width: its columns.
        terrain: height of the ground.

    Raises:
        SceneRefusedError: the RPCs give no sensible footprint, or the elevation model lies elsewhere.
        ConfigError: the elevation model cannot be read.
    """
    ring = unit_ring(16) * np.array([width, height], dtype=np.float64)
    outline = _ground(rpcs, ring, float(rpcs.height_off))
    low, high = terrain.range_m(outline)
    lonlat = np.concatenate([_ground(rpcs, ring, low), _ground(rpcs, ring, high)])
    lonlat[:, 0] = unwrap_lon(lonlat[:, 0], lonlat[0, 0])
    crs = _local_crs(*lonlat.mean(axis=0))
    xy = reproject(lonlat, "EPSG:4326", crs.to_wkt())
    area = shapely.Polygon(xy[: len(ring)]).area / (height * width)
    if not (np.isfinite(xy).all() and area > 0):
        raise SceneRefusedError("its RPCs give no footprint on Earth; they belong to another scene or are damaged")
    # Three digits: neighbours of one sensor get one pixel size, and a name that reads well.
    gsd_m = float(f"{math.sqrt(area):.3g}")
    (left, bottom), (right, top) = np.floor(xy.min(axis=0) / gsd_m), np.ceil(xy.max(axis=0) / gsd_m)
    rows, cols = int(top - bottom), int(right - left)
    if rows * cols > _MAX_GROWTH * height * width:
        raise SceneRefusedError(
            f"its RPCs spread {height} x {width} pixels over {rows} x {cols} of {gsd_m:g} m; they belong to another scene or are damaged"
        )
    return Grid(crs, Affine(gsd_m, 0.0, left * gsd_m, 0.0, -gsd_m, top * gsd_m), rows, cols)


def _ground(rpcs: RPC, points: np.ndarray, height_m: float) -> np.ndarray:
    """Longitudes and latitudes under pixel positions (col, row), float64 (N, 2), at one height."""
    try:
        with RPCTransformer(rpcs) as transformer:
            lon, lat = transformer.xy(points[:, 1], points[:, 0], zs=np.full(len(points), height_m), offset="ul")
    except (*RASTER_ERRORS, ValueError) as error:
        raise SceneRefusedError(f"its RPCs cannot be used: {error}") from error
    lonlat = np.stack([lon, lat], axis=-1).astype(np.float64)
    if not np.isfinite(lonlat).all() or np.abs(lonlat[:, 1]).max() > 90.0:
        raise SceneRefusedError("its RPCs give no footprint on Earth; they belong to another scene or are damaged")
    return lonlat


def _local_crs(lon: float, lat: float) -> CRS:
    """UTM of a place; universal polar stereographic beyond its range."""
    if lat >= 84.0 or lat <= -80.0:
        return CRS.from_epsg(32661 if lat > 0 else 32761)
    zone = int((lon + 180.0) // 6.0) % 60 + 1
    return CRS.from_epsg((32600 if lat >= 0 else 32700) + zone)


class Orthorectifier:
    """Reads lines of a map grid out of a scene in sensor geometry, with memory bounded by the lines asked for."""

    def __init__(
        self,
        rpcs: RPC,
        source_shape: tuple[int, int],
        grid: Grid,
        terrain: Terrain,
        num_bands: int,
        dtype: np.dtype,
        read_window: ReadWindow,
    ) -> None:
        """Take what describes the scene.

        Args:
            rpcs: of the scene.
            source_shape: lines and columns in sensor geometry.
            grid: from `ortho_grid`.
            terrain: height of the ground.
            num_bands: bands that ``read_window`` gives.
            dtype: type of its pixels.
            read_window: reads the source.
        """
        self._rpcs, self._source_shape, self._grid, self._terrain = rpcs, source_shape, grid, terrain
        self._num_bands, self._dtype, self._read_window = num_bands, dtype, read_window
        self._whole = _MOST_WHOLE if dtype.kind == "f" else min(_MOST_WHOLE, int(np.iinfo(dtype).max))
        self._heights_m = terrain.range_m(grid.lonlat(grid.outline_xy(4)))
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def read(self, row: int, height: int, decimation: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Full-width lines of the grid: pixels (C, H, W) and bool (H, W).

        Raises:
            RasterioError: the source cannot be read there.
        """
        if decimation > 1:
            coarse = self._coarse(row, height, decimation)
            lines = [self._lines(coarse, top, decimation) for top in range(0, coarse.height, TILE_ROWS)]
            return np.concatenate([p for p, _ in lines], axis=1), np.concatenate([v for _, v in lines])
        first, last = row // TILE_ROWS, (row + height - 1) // TILE_ROWS
        # Lines come in order, and chips may overlap: what lies above them is not asked for again.
        self._kept = {k: v for k, v in self._kept.items() if first <= k <= last}
        for index in range(first, last + 1):
            if index not in self._kept:
                self._kept[index] = self._lines(self._grid, index * TILE_ROWS, 1)
        wanted = [self._kept[index] for index in range(first, last + 1)]
        part = slice(row - first * TILE_ROWS, row - first * TILE_ROWS + height)
        if len(wanted) == 1:
            return wanted[0][0][:, part], wanted[0][1][part]
        return (
            np.concatenate([p for p, _ in wanted], axis=1)[:, part],
            np.concatenate([v for _, v in wanted])[part],
        )

    def _coarse(self, row: int, height: int, decimation: int) -> Grid:
        rows, cols = max(1, height // decimation), max(1, self._grid.width // decimation)
        transform = (
            self._grid.transform @ Affine.translation(0, row) @ Affine.scale(self._grid.width / cols, height / rows)
        )
        return Grid(self._grid.crs, transform, rows, cols)

    def _lines(self, grid: Grid, top: int, decimation: int) -> tuple[np.ndarray, np.ndarray]:
        rows = min(TILE_ROWS, grid.height - top)
        pixels = np.zeros((self._num_bands, rows, grid.width), dtype=self._dtype)
        valid = np.zeros((rows, grid.width), dtype=bool)
        for left in range(0, grid.width, _TILE_COLUMNS):
            tile = grid.window(top, left, rows, min(_TILE_COLUMNS, grid.width - left))
            carried = self._tile(tile, decimation)
            if carried is not None:
                part = slice(left, left + tile.width)
                pixels[:, :, part], valid[:, part] = carried[:-1], carried[-1] > self._whole - 0.5
        return pixels, valid

    def _tile(self, tile: Grid, decimation: int) -> np.ndarray | None:
        """One tile, its last band ``_whole`` where only pixels with data took part; None where the scene has no pixel."""
        window = self._source_window(tile)
        if window is None:
            return None
        rows, cols = max(1, int(window.height) // decimation), max(1, int(window.width) // decimation)
        pixels, valid = self._read_window(window, (rows, cols))
        source = np.concatenate(
            [pixels, valid[None].astype(self._dtype) * self._dtype.type(self._whole)], dtype=self._dtype
        )
        if self._dtype.kind == "f":
            source = np.nan_to_num(source, copy=False)
        carried = np.zeros((self._num_bands + 1, tile.height, tile.width), dtype=self._dtype)
        warp(
            source,
            carried,
            rpcs=_cut(self._rpcs, window, rows, cols),
            src_crs=CRS.from_epsg(4326),
            dst_crs=tile.crs,
            dst_transform=tile.transform,
            resampling=Resampling.bilinear,
            **self._terrain.options,
        )
        return carried

    def _source_window(self, tile: Grid) -> Window | None:
        t = np.linspace(0.0, 1.0, _NODES)
        cols, rows = (axis.ravel() for axis in np.meshgrid(t * tile.width, t * tile.height))
        lon, lat = tile.lonlat(tile.xy(cols, rows)).T
        lon = unwrap_lon(lon, float(self._rpcs.long_off))
        with RPCTransformer(self._rpcs) as transformer:
            places = [
                transformer.rowcol(lon, lat, zs=np.full(len(lon), height_m), op=np.positive)
                for height_m in self._heights_m
            ]
        rows, cols = (np.concatenate([place[axis] for place in places]) for axis in (0, 1))
        if not (np.isfinite(rows).all() and np.isfinite(cols).all()):
            return None
        height, width = self._source_shape
        top, bottom = _span(rows, height)
        left, right = _span(cols, width)
        return Window(left, top, right - left, bottom - top) if bottom > top and right > left else None


def _span(positions: np.ndarray, size: int) -> tuple[int, int]:
    low, high = np.clip([positions.min() - _MARGIN_PX, positions.max() + _MARGIN_PX], 0, size)
    return math.floor(low), math.ceil(high)


def _cut(rpcs: RPC, window: Window, rows: int, cols: int) -> RPC:
    """RPCs of a window that was read with ``rows`` lines and ``cols`` columns.

    Offsets count pixel centres from 0 while a window's corner lies at the edge of a pixel, hence the halves.
    """
    down, across = rows / window.height, cols / window.width
    values = rpcs.to_dict()
    values.update(
        line_off=(rpcs.line_off + 0.5 - window.row_off) * down - 0.5,
        samp_off=(rpcs.samp_off + 0.5 - window.col_off) * across - 0.5,
        line_scale=rpcs.line_scale * down,
        samp_scale=rpcs.samp_scale * across,
    )
    return RPC(**values)
