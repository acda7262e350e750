"""Which scenes the generated world has: place, sensor, grid and look of each, fixed by its number alone."""

import math
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
from affine import Affine

from geokr_core.rasters.grid import Grid, reproject
from geokr_core.world.atmosphere import Look
from geokr_core.world.noise import STREAM_SCENE, generator
from geokr_core.world.terrain import PLACES, Place, zone_crs


@dataclass(frozen=True)
class Sensor:
    """A camera.

    Attributes:
        name: as in file names.
        suffix: what file names end with.
        gsd_m: side of a pixel.
        bits: depth of the digital numbers.
        counts: digital numbers a unit of reflectance and band.
        declares_nodata: whether its files say that 0 is no data.
    """

    name: str
    suffix: str
    gsd_m: float
    bits: int
    counts: tuple[float, float, float, float]
    declares_nodata: bool


SENSORS = {
    "wfv1": Sensor("GF1_WFV1", "", 16.0, 10, (2050, 2150, 2200, 1700), declares_nodata=True),
    "wfv4": Sensor("GF1_WFV4", "", 16.0, 10, (2200, 2100, 2050, 1800), declares_nodata=True),
    "pms1": Sensor("GF1_PMS1", "-MSS1", 8.0, 10, (1950, 2050, 2100, 1600), declares_nodata=False),
    "pms2": Sensor("GF1_PMS2", "-MSS2", 8.0, 10, (2000, 2000, 2150, 1650), declares_nodata=False),
    "gf6": Sensor("GF6_PMS", "-MUX", 8.0, 12, (8000, 8400, 8300, 6600), declares_nodata=False),
}
"""Saturation lies near a reflectance of 0.5, so that clouds and snow saturate as they do in 10-bit data."""


@dataclass(frozen=True)
class Design:
    """One line of the plan.

    Attributes:
        place: key of `terrain.PLACES`.
        sensor: key of `SENSORS`.
        zone: UTM zone of the grid.
        offset: of the centre from the place, in widths of the scene, east and north.
        acquired: date of the image.
        cloudiness: see `Look`.
        snow_height: see `Look`.
        tilt_deg: turn of the imaged area against the grid; its corners are no data.
    """

    place: str
    sensor: str
    zone: int
    offset: tuple[float, float]
    acquired: date
    cloudiness: float = 0.0
    snow_height: float = 9.0
    tilt_deg: float = 0.0


# The first three already show two zones, both hemispheres, a corner of four tiles, the sea and no data.
DESIGNS = (
    Design("four_corners", "wfv1", 48, (0.03, -0.02), date(2018, 8, 7)),
    Design("southern_coast", "pms1", 34, (-0.1, -0.15), date(2019, 1, 23), tilt_deg=9.0),
    Design("four_corners", "pms2", 49, (0.9, 0.5), date(2019, 5, 16), cloudiness=0.35),
    Design("far_north", "wfv4", 48, (0.0, 0.0), date(2019, 7, 28), snow_height=1.0),
    Design("tropics", "pms1", 48, (0.55, 0.6), date(2020, 2, 3)),
    Design("dry_north", "gf6", 49, (-0.6, 0.7), date(2019, 9, 19)),
    Design("savanna", "pms2", 35, (0.0, 0.0), date(2020, 4, 11), tilt_deg=-7.0),
    Design("tropics", "wfv4", 48, (-0.4, -0.3), date(2018, 11, 2), cloudiness=0.25),
    Design("southern_coast", "wfv1", 34, (0.35, 0.6), date(2020, 9, 5)),
    Design("dry_north", "wfv1", 49, (0.2, -0.3), date(2020, 1, 30), snow_height=0.8, tilt_deg=11.0),
    Design("far_north", "gf6", 48, (-1.4, 0.9), date(2020, 6, 30)),
    Design("savanna", "wfv4", 35, (0.7, -0.7), date(2018, 12, 14), cloudiness=0.3),
)


@dataclass(frozen=True)
class PlannedScene:
    """Everything about a scene but its pixels.

    Attributes:
        index: number in the plan; seeds what is random about the scene.
        design: the line of the plan.
        grid: where its pixels lie.
        look: light and air.
        name: name of its file, as Gaofen scenes are named.
    """

    index: int
    design: Design
    grid: Grid
    look: Look
    name: str

    @property
    def place(self) -> Place:
        """The place on which it looks."""
        return PLACES[self.design.place]

    @property
    def sensor(self) -> Sensor:
        """The camera."""
        return SENSORS[self.design.sensor]


def plan_scene(seed: int, index: int, size_px: int) -> PlannedScene:
    """Lay down one scene. It depends on no other scene: a longer plan leaves the shorter one as it was.

    Args:
        seed: the world's seed.
        index: number in the plan. Beyond the written designs they come again, moved aside and in other years.
        size_px: width and height.
    """
    rng = generator(seed, STREAM_SCENE, index, "plan")
    design = _design(index, rng)
    sensor, place = SENSORS[design.sensor], PLACES[design.place]
    crs = zone_crs(design.zone, south=place.lat < 0)
    width_m = size_px * sensor.gsd_m
    origin = reproject(np.array([place.lon, place.lat]), "EPSG:4326", str(crs.to_wkt()))
    left = _snapped(origin[0] + (design.offset[0] - 0.5) * width_m, sensor.gsd_m)
    top = _snapped(origin[1] + (design.offset[1] + 0.5) * width_m, sensor.gsd_m)
    grid = Grid(crs, Affine(sensor.gsd_m, 0.0, left, 0.0, -sensor.gsd_m, top), size_px, size_px)
    lon, lat = grid.lonlat(np.array([left + width_m / 2, top - width_m / 2]))
    centre = f"{'E' if lon >= 0 else 'W'}{abs(lon):.1f}_{'N' if lat >= 0 else 'S'}{abs(lat):.1f}"
    product = f"L1A{int(rng.integers(1_000_000_000, 4_000_000_000)):010d}"
    name = f"{sensor.name}_{centre}_{design.acquired:%Y%m%d}_{product}{sensor.suffix}.tiff"
    return PlannedScene(index, design, grid, _look(design, place, rng), name)


def _design(index: int, rng: np.random.Generator) -> Design:
    design = DESIGNS[index % len(DESIGNS)]
    if index < len(DESIGNS):
        return design
    moved = rng.uniform(-1.2, 1.2, size=2)
    later = timedelta(days=int(rng.integers(-150, 150)))
    return Design(
        design.place,
        design.sensor,
        design.zone,
        (float(moved[0]), float(moved[1])),
        design.acquired + later,
        cloudiness=float(rng.choice([0.0, 0.0, 0.3])),
    )


def _look(design: Design, place: Place, rng: np.random.Generator) -> Look:
    """Season from date and hemisphere; the rest drawn: sun, air and calibration differ from scene to scene."""
    summer = math.cos(2 * math.pi * (design.acquired.timetuple().tm_yday - 200) / 365)
    summer = summer if place.lat >= 0 else -summer
    seasons = min(1.0, abs(place.lat) / 35)
    return Look(
        greenness=float(np.clip(0.55 + 0.35 * summer * seasons + rng.uniform(-0.12, 0.12), 0.08, 0.95)),
        sun_azimuth_deg=float(rng.uniform(120, 165) if place.lat >= 0 else rng.uniform(20, 60)),
        light=float(0.92 + 0.16 * summer * seasons + rng.uniform(-0.06, 0.06)),
        tint=tuple(rng.uniform(0.95, 1.05, size=4).tolist()),
        haze=float(rng.uniform(0.2, 1.5)),
        cloudiness=design.cloudiness,
        snow_height=design.snow_height,
    )


def _snapped(value: float, step: float) -> float:
    return round(value / step) * step
