"""The land-cover tiles: the truth as a global product would have it — coarser, older, smoothed and sometimes wrong.

Names, codes, colours and tiling follow GlobeLand30 2020 (tiles of 6° x 5°, from 60° to 80° of 12° x 5° on odd zones,
30 m, WGS 84 / UTM, a rectangle that reaches beyond the nominal tile). Each raster is limited to the surroundings of
the scenes, so that the files stay small.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import shapely
from affine import Affine
from rasterio.enums import ColorInterp
from scipy import ndimage

from geokr_core.rasters.grid import Grid, reproject
from geokr_core.world import terrain
from geokr_core.world.noise import STREAM_TILE, Noise, generator
from geokr_core.world.plan import PlannedScene
from geokr_core.world.terrain import Place

CELL_M = 30.0

IMAGE_YEAR = 2016.0
"""Year of the images behind the 2020 edition; one of its tiles lists images of 2015 to 2017."""

COLOURS = {
    0: (0, 0, 0),
    10: (250, 160, 255),
    20: (0, 100, 0),
    30: (100, 255, 0),
    40: (0, 255, 120),
    50: (0, 100, 255),
    60: (0, 0, 255),
    70: (100, 100, 50),
    80: (255, 0, 0),
    90: (190, 190, 190),
    100: (200, 240, 255),
    255: (0, 200, 255),
}
"""Red, green and blue of each code: the colours of the 2020 edition's metadata."""

CONFUSIONS = {
    10: 30,
    20: 40,
    30: 10,
    40: 20,
    50: 30,
    60: 50,
    70: 90,
    80: 10,
    90: 30,
    100: 90,
    255: 60,
}
"""What a mapper takes a class for when wrong; pairs of look-alikes, a judgement."""

_SMOOTHING_CELLS = 2.0
"""Reach of the smoothing: patches below about half a hectare to a hectare vanish."""

_MARGIN_M = 1500.0
_OVERLAP_DEG = 0.0125
"""How far, about 1.4 km, a tile reaches beyond its nominal border: less than `_MARGIN_M`, so that two tiles of one zone
under the same scenes never lie on one grid, as two versions of one map would."""

_BORDER_STEP_DEG = 0.05
"""Distance of the points at which a tile's border is carried to its zone; between them it is straight."""

_WRONG_ABOVE = 1.45
"""Threshold of the noise that lays patches of wrong labels: some 7 % of the ground."""

_UNMAPPED_ABOVE = 2.5
"""Threshold of the noise that leaves patches without value: less than 1 % of the ground."""


@dataclass(frozen=True)
class Tile:
    """A tile of the product.

    Attributes:
        zone: UTM zone.
        south: on the southern hemisphere.
        latitude: smaller absolute latitude of the band, a multiple of 5.
        place: whose ground it shows.
        grid: where its cells lie.
    """

    zone: int
    south: bool
    latitude: int
    place: Place
    grid: Grid

    @property
    def name(self) -> str:
        """As the product names its tiles, e.g. ``N48_30_2020LC030``."""
        return f"{'S' if self.south else 'N'}{self.zone:02d}_{self.latitude:02d}_2020LC030"

    @property
    def bounds_deg(self) -> tuple[float, float, float, float]:
        """Nominal west, south, east and north."""
        return _nominal_bounds(self.zone, self.south, self.latitude)


def plan_tiles(scenes: Sequence[PlannedScene]) -> list[Tile]:
    """The tiles on which scenes lie, each limited to their surroundings.

    Returns:
        Tiles in order of their names.
    """
    tiles: dict[tuple[int, bool, int], list[PlannedScene]] = {}
    for scene in scenes:
        for key in _tiles_under(scene.grid):
            tiles.setdefault(key, []).append(scene)
    planned = (_tile(*key, scenes_there) for key, scenes_there in tiles.items())
    return sorted(planned, key=lambda tile: tile.name)


def _tiles_under(grid: Grid) -> set[tuple[int, bool, int]]:
    ring = np.asarray(grid.footprint().exterior.coords)
    return {_tile_key(lon, lat) for lon, lat in ring}


def _tile_key(lon: float, lat: float) -> tuple[int, bool, int]:
    band = int(abs(lat) // 5) * 5
    zone = int(lon // 6) + 31
    return (zone if band < 60 or zone % 2 else zone - 1), bool(lat < 0), band


def _tile(zone: int, south: bool, latitude: int, scenes: Sequence[PlannedScene]) -> Tile:
    crs = terrain.zone_crs(zone, south)
    wkt = str(crs.to_wkt())
    rings = [reproject(np.asarray(s.grid.footprint().exterior.coords), "EPSG:4326", wkt) for s in scenes]
    border = shapely.box(*_nominal_bounds(zone, south, latitude)).buffer(_OVERLAP_DEG, join_style="mitre")
    border_xy = reproject(shapely.get_coordinates(border.segmentize(_BORDER_STEP_DEG)), "EPSG:4326", wkt)
    low = np.maximum(np.min([ring.min(axis=0) for ring in rings], axis=0) - _MARGIN_M, border_xy.min(axis=0))
    high = np.minimum(np.max([ring.max(axis=0) for ring in rings], axis=0) + _MARGIN_M, border_xy.max(axis=0))
    left, top = math.floor(low[0] / CELL_M) * CELL_M, math.ceil(high[1] / CELL_M) * CELL_M
    width, height = math.ceil((high[0] - left) / CELL_M), math.ceil((top - low[1]) / CELL_M)
    grid = Grid(crs, Affine(CELL_M, 0.0, left, 0.0, -CELL_M, top), height, width)
    return Tile(zone, south, latitude, scenes[0].place, grid)


def _nominal_bounds(zone: int, south: bool, latitude: int) -> tuple[float, float, float, float]:
    """West, south, east and north of a tile, degrees."""
    west = (zone - 31) * 6
    bottom = -latitude - 5 if south else latitude
    return float(west), float(bottom), float(west + (12 if latitude >= 60 else 6)), float(bottom + 5)


def render_tile(seed: int, tile: Tile) -> np.ndarray:
    """The codes of a tile.

    Returns:
        uint8 (H, W): codes of GlobeLand30, 0 beyond the tile's border and in unmapped patches, 255 in the sea.
    """
    x, y = terrain.plane_coordinates(tile.grid, tile.place)
    codes = terrain.land_cover_truth(tile.place, tile.place.noise(seed), x, y, IMAGE_YEAR)
    codes = _smoothed(codes)
    # Each tile is mapped by itself: its mistakes are its own, so that neighbours disagree where they overlap.
    mistakes = Noise(seed, (STREAM_TILE, tile.zone, int(tile.south), tile.latitude))
    wrong = mistakes.octaves("wrong", x, y, 400.0, 3) > _WRONG_ABOVE
    confused = np.arange(256, dtype=np.uint8)
    confused[list(CONFUSIONS)] = list(CONFUSIONS.values())
    codes[wrong] = confused[codes[wrong]]
    _speckle(codes, generator(seed, STREAM_TILE, tile.zone, int(tile.south), tile.latitude, "speckle"))
    codes[mistakes.octaves("unmapped", x, y, 1500.0, 3) > _UNMAPPED_ABOVE] = terrain.NO_VALUE
    codes[~_within_border(tile)] = terrain.NO_VALUE
    return codes


def write_tile(seed: int, tile: Tile, folder: Path) -> np.ndarray:
    """Render a tile and write it, with its palette, into its own folder below ``folder``.

    Returns:
        The codes, see `render_tile`.

    Raises:
        OSError: the file system refused.
    """
    codes = render_tile(seed, tile)
    profile = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 1,
        "height": tile.grid.height,
        "width": tile.grid.width,
        "crs": tile.grid.crs,
        "transform": tile.grid.transform,
        "compress": "deflate",
        "photometric": "palette",
    }
    path = folder / tile.name / f"{tile.name.lower()}.tif"
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", **profile) as target:
        target.write_colormap(1, {code: (*rgb, 255) for code, rgb in COLOURS.items()})
        target.colorinterp = [ColorInterp.palette]
        target.write(codes, 1)
    return codes


def _smoothed(codes: np.ndarray) -> np.ndarray:
    """A minimum mapping unit: each cell takes the commonest class around it, near cells counting most."""
    present: Iterable[int] = np.unique(codes).tolist()
    best = np.full(codes.shape, -1.0, dtype=np.float32)
    out = codes.copy()
    for code in present:
        share = ndimage.gaussian_filter((codes == code).astype(np.float32), _SMOOTHING_CELLS, mode="nearest")
        better = share > best
        best[better] = share[better]
        out[better] = code
    return out


def _speckle(codes: np.ndarray, rng: np.random.Generator) -> None:
    """Mistakes of single cells: some take the class that lies three cells on."""
    moved = np.roll(codes, (3, 3), axis=(0, 1))
    here = rng.random(codes.shape, dtype=np.float32) < 0.01
    codes[here] = moved[here]


def _within_border(tile: Tile) -> np.ndarray:
    row, col = np.mgrid[0 : tile.grid.height, 0 : tile.grid.width]
    lonlat = tile.grid.lonlat(tile.grid.xy(col + 0.5, row + 0.5))
    west, south, east, north = tile.bounds_deg
    lon, lat = lonlat[..., 0], lonlat[..., 1]
    inside = (lon >= west - _OVERLAP_DEG) & (lon <= east + _OVERLAP_DEG)
    return np.asarray(inside & (lat >= south - _OVERLAP_DEG) & (lat <= north + _OVERLAP_DEG))
