"""What covers the ground of the generated world, as a function of place and time; where the places lie.

One continuous truth per place: smooth random fields thresholded into the ten classes of GlobeLand30 and sea. It is
evaluated on any grid, by the scenes at their date and by the land-cover tiles at an earlier one. How a class looks is
in ``surface``.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import pyproj
from rasterio.crs import CRS
from scipy import ndimage

from geokr_core.rasters.grid import Grid
from geokr_core.world.noise import STREAM_PLACE, Noise

LAND_CODES = range(10, 101, 10)
CULTIVATED, FOREST, GRASS, SHRUB, WETLAND, WATER, TUNDRA, ARTIFICIAL, BARE, SNOW = LAND_CODES
SEA = 255
NO_VALUE = 0
"""Codes of GlobeLand30."""

REFERENCE_YEAR = 2018.0
"""Year at which the thresholds of settlement hold as written."""

_LATTICE_PX = 32
"""Distance of the points at which a grid is carried to the plane exactly; between them it is interpolated (error
below 1 cm at 16 m pixels)."""


@dataclass(frozen=True)
class Climate:
    """Thresholds, in standard deviations of the fields they cut: a larger number means less of a class.

    Attributes:
        farming: of cultivated land.
        settlement: of artificial surfaces.
        dry: below it, natural ground is bare; the bounds to grass, shrub and forest follow from it.
        basin: height below which ground is a lake.
        marsh: height below which moist ground is wetland.
        snowline: height above which snow and ice lie all year.
        cold: of tundra in place of forest, shrub and grass; above 3 there is none.
        relief: strength of the shading of slopes.
    """

    farming: float = 0.35
    settlement: float = 1.35
    dry: float = -1.25
    basin: float = -1.6
    marsh: float = -1.0
    snowline: float = 1.6
    cold: float = 9.0
    relief: float = 0.5


@dataclass(frozen=True)
class Place:
    """A region some tens of kilometres wide with its own plane, noise and climate.

    Attributes:
        index: number that seeds its noise.
        lon: of the plane's origin, degrees.
        lat: of the plane's origin, degrees.
        climate: its thresholds.
        coast_direction_deg: where the sea lies, counted from east to north; None inland.
    """

    index: int
    lon: float
    lat: float
    climate: Climate = field(default_factory=Climate)
    coast_direction_deg: float | None = None

    def noise(self, seed: int) -> Noise:
        """The random fields of the place in the world of ``seed``."""
        return Noise(seed, (STREAM_PLACE, self.index))

    @property
    def plane_wkt(self) -> str:
        """The metric plane on which the fields live: azimuthal equidistant about the place."""
        return str(pyproj.CRS(f"+proj=aeqd +lat_0={self.lat} +lon_0={self.lon} +datum=WGS84 +units=m").to_wkt())


# The first place straddles two zones and two bands of latitude; the last one lies where tiles are twice as wide.
PLACES: dict[str, Place] = {
    "four_corners": Place(0, 108.0, 30.0),
    "southern_coast": Place(1, 20.2, -33.9, Climate(farming=0.5, marsh=-0.85, snowline=9.0), coast_direction_deg=250.0),
    "tropics": Place(2, 104.6, 22.8, Climate(farming=0.15, dry=-1.6, snowline=9.0)),
    "dry_north": Place(3, 111.3, 37.6, Climate(farming=0.55, dry=-0.55, marsh=-1.3, snowline=1.4)),
    "savanna": Place(4, 27.3, -17.4, Climate(farming=0.5, dry=-1.0, settlement=1.5, snowline=9.0)),
    "far_north": Place(5, 104.5, 66.7, Climate(farming=1.5, settlement=1.7, cold=0.0, snowline=0.95, relief=0.7)),
}
TASK_REGION = Place(
    50, 12.4, 47.3, Climate(farming=0.3, settlement=1.1, snowline=2.0, dry=-1.0, marsh=-0.9, relief=0.6)
)
"""Ground of the labelled sets: no scene and no tile lies there."""


def zone_crs(zone: int, south: bool) -> CRS:
    """WGS 84 / UTM of a zone."""
    return CRS.from_epsg((32700 if south else 32600) + zone)


def plane_coordinates(grid: Grid, place: Place) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixel centres of a grid lie on the plane of a place.

    Returns:
        x and y, float32 (H, W), metres.
    """
    rows = np.arange(0, grid.height + _LATTICE_PX, _LATTICE_PX, dtype=np.float64)
    cols = np.arange(0, grid.width + _LATTICE_PX, _LATTICE_PX, dtype=np.float64)
    row, col = np.meshgrid(rows, cols, indexing="ij")
    centres = grid.xy(col + 0.5, row + 0.5)
    to_plane = pyproj.Transformer.from_crs(grid.wkt, place.plane_wkt, always_xy=True)
    x, y = to_plane.transform(centres[..., 0], centres[..., 1])
    wanted = np.meshgrid(np.arange(grid.height) / _LATTICE_PX, np.arange(grid.width) / _LATTICE_PX, indexing="ij")
    return (
        ndimage.map_coordinates(x, wanted, order=1).astype(np.float32),
        ndimage.map_coordinates(y, wanted, order=1).astype(np.float32),
    )


def elevation(noise: Noise, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Height in standard deviations, float32, shape of ``x``."""
    return noise.octaves("relief", x, y, 4000.0, 5)


def land_cover_truth(
    place: Place, noise: Noise, x: np.ndarray, y: np.ndarray, year: float, height: np.ndarray | None = None
) -> np.ndarray:
    """The land cover of points on the plane of a place.

    Args:
        place: gives the climate and the coast.
        noise: the random fields of the place.
        x: float32, any shape, metres.
        y: float32, same shape, metres.
        year: towns grow and a few fields are given up as years go by.
        height: `elevation` of the points, where it is known already.

    Returns:
        uint8 codes of GlobeLand30, same shape; `SEA` for sea, never 0.
    """
    climate = place.climate
    height = elevation(noise, x, y) if height is None else height
    moisture = noise.octaves("moisture", x, y, 3000.0, 4)
    natural = np.float32(0.75) * moisture + np.float32(0.66) * noise.octaves("cover", x, y, 1100.0, 3, gain=0.7)
    dry = climate.dry
    codes = np.full(x.shape, FOREST, dtype=np.uint8)
    codes[natural < dry + 1.55] = SHRUB
    codes[natural < dry + 1.0] = GRASS
    codes[natural < dry] = BARE
    if climate.cold < 3:
        cold = 0.5 * height + noise.octaves("cold", x, y, 2500.0, 3)
        codes[(cold > climate.cold) & (codes != BARE)] = TUNDRA
    years = np.float32(year - REFERENCE_YEAR)
    farming = noise.octaves("farming", x, y, 2200.0, 3, gain=0.6)
    codes[(farming > climate.farming + 0.01 * years) & (height < 1.1)] = CULTIVATED
    codes[(height < climate.marsh) & (moisture > -0.6)] = WETLAND
    settlement = noise.octaves("settlement", x, y, 2600.0, 4, gain=0.6)
    codes[settlement > climate.settlement - 0.03 * years] = ARTIFICIAL
    codes[(height < climate.basin) | (np.abs(noise.octaves("river", x, y, 6000.0, 3, gain=0.4)) < 0.035)] = WATER
    codes[height > climate.snowline] = SNOW
    if place.coast_direction_deg is not None:
        _flood(codes, _metres_inland(place.coast_direction_deg, noise, x, y), settlement)
    return codes


def _metres_inland(direction_deg: float, noise: Noise, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    east, north = math.cos(math.radians(direction_deg)), math.sin(math.radians(direction_deg))
    return np.asarray(2400 - (x * east + y * north) + 700 * noise.octaves("coast", x, y, 3500.0, 4))


def _flood(codes: np.ndarray, inland: np.ndarray, settlement: np.ndarray) -> None:
    codes[(inland < 150) & (settlement < 0.8)] = BARE  # the beach
    codes[inland < 0] = SEA
