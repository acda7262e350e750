"""Rendering and writing of the scenes: 16-bit GeoTIFFs with four bands in the manner of Gaofen products."""

import math
from pathlib import Path

import numpy as np
import rasterio

from geokr_core.world import atmosphere, terrain
from geokr_core.world.noise import STREAM_SCENE, generator
from geokr_core.world.plan import PlannedScene
from geokr_core.world.surface import NUM_BANDS, reflectance

_READ_NOISE_COUNTS = 2.0
"""Standard deviation of the sensor's noise, in digital numbers of 10 bits."""


def render_scene(seed: int, scene: PlannedScene) -> np.ndarray:
    """Digital numbers of a scene.

    Returns:
        uint16 (4, H, W): blue, green, red, near infrared; 0 in all bands outside the imaged area, else at least 1.
    """
    place, look, grid = scene.place, scene.look, scene.grid
    noise = place.noise(seed)
    gsd_m = scene.sensor.gsd_m
    x, y = terrain.plane_coordinates(grid, place)
    height = terrain.elevation(noise, x, y)
    year = scene.design.acquired.year + scene.design.acquired.timetuple().tm_yday / 365
    codes = terrain.land_cover_truth(place, noise, x, y, year, height)
    ground = reflectance(codes, x, y, gsd_m, look.greenness, noise)
    ground = atmosphere.lit(ground, height, gsd_m, place.climate.relief, look.sun_azimuth_deg)
    # The sea keeps its level and its temperature: no snow settles on it.
    dry_height = np.where(codes == terrain.SEA, np.float32(-9), height)
    ground, _ = atmosphere.snowed(ground, dry_height, noise, x, y, look.snow_height)
    rng = generator(seed, STREAM_SCENE, scene.index, "sensor")
    wind = rng.uniform(-30_000, 30_000, size=2).astype(np.float32)
    ground, _ = atmosphere.clouded(ground, noise, x + wind[0], y + wind[1], look)
    counts = np.moveaxis(atmosphere.through_air(ground, look), -1, 0)
    counts = counts * np.array(scene.sensor.counts, dtype=np.float32)[:, None, None]
    full = 2**scene.sensor.bits
    counts += rng.standard_normal(counts.shape, dtype=np.float32) * np.float32(_READ_NOISE_COUNTS * full / 1024)
    numbers: np.ndarray = np.rint(counts).clip(1, full - 1).astype(np.uint16)
    numbers[:, ~_imaged(grid.height, grid.width, scene.design.tilt_deg)] = 0
    return numbers


def write_scene(seed: int, scene: PlannedScene, folder: Path) -> np.ndarray:
    """Render a scene and write it below ``folder``.

    Returns:
        The digital numbers, see `render_scene`.

    Raises:
        OSError: the file system refused.
    """
    numbers = render_scene(seed, scene)
    profile = {
        "driver": "GTiff",
        "dtype": "uint16",
        "count": NUM_BANDS,
        "height": scene.grid.height,
        "width": scene.grid.width,
        "crs": scene.grid.crs,
        "transform": scene.grid.transform,
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "compress": "deflate",
        "zlevel": 3,
        "predictor": 2,
        "interleave": "pixel",
    }
    if scene.sensor.declares_nodata:
        profile["nodata"] = 0
    folder.mkdir(parents=True, exist_ok=True)
    with rasterio.open(folder / scene.name, "w", **profile) as target:
        target.write(numbers)
    return numbers


def _imaged(height: int, width: int, tilt_deg: float) -> np.ndarray:
    """The area that the camera saw, turned against the grid: bool (height, width)."""
    if tilt_deg == 0:
        return np.ones((height, width), dtype=bool)
    row, col = np.mgrid[0:height, 0:width]
    u, v = (col + 0.5) / width - 0.5, (row + 0.5) / height - 0.5
    cos, sin = math.cos(math.radians(tilt_deg)), math.sin(math.radians(tilt_deg))
    inside = (np.abs(u * cos + v * sin) < 0.49) & (np.abs(v * cos - u * sin) < 0.49)
    return np.asarray(inside)
