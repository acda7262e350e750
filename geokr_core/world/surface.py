"""How each land-cover class looks from above: spectra and textures, in reflectance.

The spectra are round numbers of the right order, not measurements. Every class wanders between several of them, so
that mean colours overlap between classes (ripe fields and dry grass, roofs and bare rock, forest and shrub) and the
textures have to tell them apart. Light, haze and clouds are in ``atmosphere``.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from geokr_core.world import terrain
from geokr_core.world.noise import Noise, seen_contrast, smooth_step

NUM_BANDS = 4
"""Blue, green, red, near infrared, in this order everywhere in the world."""

_SOIL = np.array([0.09, 0.125, 0.17, 0.25], dtype=np.float32)
_DARK_SOIL = np.array([0.065, 0.085, 0.105, 0.16], dtype=np.float32)
_SAND = np.array([0.13, 0.19, 0.26, 0.34], dtype=np.float32)
_ROCK = np.array([0.11, 0.125, 0.14, 0.18], dtype=np.float32)
_CROP = np.array([0.045, 0.085, 0.05, 0.42], dtype=np.float32)
_RIPE = np.array([0.08, 0.125, 0.15, 0.30], dtype=np.float32)
_LEAVES = np.array([0.035, 0.058, 0.036, 0.34], dtype=np.float32)
_BARE_TREES = np.array([0.055, 0.072, 0.078, 0.20], dtype=np.float32)
_MEADOW = np.array([0.048, 0.088, 0.06, 0.36], dtype=np.float32)
_DRY_GRASS = np.array([0.085, 0.118, 0.142, 0.26], dtype=np.float32)
_BUSH = np.array([0.04, 0.06, 0.05, 0.26], dtype=np.float32)
_REED = np.array([0.045, 0.075, 0.06, 0.27], dtype=np.float32)
_CLEAR_WATER = np.array([0.045, 0.045, 0.028, 0.015], dtype=np.float32)
_TURBID_WATER = np.array([0.07, 0.095, 0.085, 0.035], dtype=np.float32)
_SEA_WATER = np.array([0.055, 0.05, 0.025, 0.012], dtype=np.float32)
_MOSS = np.array([0.05, 0.078, 0.072, 0.24], dtype=np.float32)
_LICHEN = np.array([0.10, 0.122, 0.13, 0.22], dtype=np.float32)
_ASPHALT = np.array([0.085, 0.092, 0.10, 0.12], dtype=np.float32)
_CONCRETE = np.array([0.17, 0.18, 0.19, 0.22], dtype=np.float32)
_TILE_ROOF = np.array([0.085, 0.10, 0.165, 0.22], dtype=np.float32)
_BRIGHT_ROOF = np.array([0.27, 0.28, 0.29, 0.31], dtype=np.float32)
SNOW_COVER = np.array([0.40, 0.41, 0.40, 0.36], dtype=np.float32)


@dataclass(frozen=True)
class Points:
    """Pixels of one class.

    Attributes:
        x: float32 (N,), metres on the plane of the place.
        y: float32 (N,), metres.
        gsd_m: side of a pixel.
        greenness: 0 (winter, drought) to 1 (growing season).
        noise: the random fields of the place.
    """

    x: np.ndarray
    y: np.ndarray
    gsd_m: float
    greenness: float
    noise: Noise

    def values(self, name: str, wavelength_m: float) -> np.ndarray:
        """One octave of noise, weakened as far as pixels blur it; float32 (N,)."""
        return self.noise.values(name, self.x, self.y, wavelength_m) * seen_contrast(2 * wavelength_m, self.gsd_m)

    def tone(self, name: str, wavelength_m: float) -> np.ndarray:
        """A slow change in colour within the class, float32 (N,) of standard deviation 1."""
        return self.noise.octaves(name, self.x, self.y, wavelength_m, 3)


def reflectance(
    codes: np.ndarray, x: np.ndarray, y: np.ndarray, gsd_m: float, greenness: float, noise: Noise
) -> np.ndarray:
    """Colour every pixel as its class.

    Args:
        codes: uint8, any shape: codes of `terrain`, without ``NO_VALUE``.
        x: float32, same shape, metres on the plane of the place.
        y: float32, same shape, metres.
        gsd_m: side of a pixel in metres; finer textures than pixels fade.
        greenness: 0 (winter, drought) to 1 (growing season).
        noise: the random fields of the place.

    Returns:
        float32, shape of ``codes`` and one axis more: blue, green, red, near infrared in 0–1.
    """
    out = np.zeros((*codes.shape, NUM_BANDS), dtype=np.float32)
    for code, paint in _PAINTERS.items():
        here = codes == code
        if here.any():
            out[here] = paint(Points(x[here], y[here], gsd_m, greenness, noise))
    return out


def blend(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """From the spectra ``first`` to the spectra ``second`` by ``share`` in 0–1; (N, 4) from (N, 4) or (4,)."""
    return np.asarray(first + share[..., None] * (second - first))


def _turned(points: Points, name: str, block_m: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates along and across the layout of each block of land, and the block's number in x and y."""
    bend = 0.22 * points.noise.values(f"{name} bend", points.x, points.y, block_m)
    column = np.floor(points.x * np.float32(1 / block_m) + bend)
    row = np.floor(points.y * np.float32(1 / block_m) - bend)
    angle = points.noise.per_cell(f"{name} angle", column, row) * np.float32(math.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    return points.x * cos + points.y * sin, points.y * cos - points.x * sin, column, row


def _edge_distance(position: np.ndarray, width: np.ndarray | float) -> np.ndarray:
    """Metres from the nearer edge of a strip, for ``position`` counted in strips."""
    inside = position - np.floor(position)
    return np.asarray(np.minimum(inside, 1 - inside) * width)


def _cultivated(points: Points) -> np.ndarray:
    u, v, column, row = _turned(points, "farm", 1000.0)
    width = 70 + 110 * points.noise.per_cell("parcel width", column, row)
    strip = u / width
    i = np.floor(strip)
    length = 260 + 240 * points.noise.per_cell("parcel length", column, row)
    along = v / length + points.noise.per_cell("parcel shift", i + 7 * column, row)
    j = np.floor(along)
    key = (i + 31 * column, j + 57 * row)
    crop = points.noise.per_cell("crop", *key)
    growth = (1.1 * points.greenness - 0.45 + 0.9 * crop).clip(0, 1)
    soil = blend(_DARK_SOIL, _SOIL, points.noise.per_cell("soil", *key))
    colour = blend(soil, _CROP, growth)
    ripe = points.noise.per_cell("ripe", *key) < 0.3
    colour[ripe] = 0.4 * colour[ripe] + 0.6 * _RIPE
    rows = np.sin(u * np.float32(2 * math.pi / 44)) * seen_contrast(44, points.gsd_m)
    light = 1 + 0.12 * rows + 0.3 * (points.noise.per_cell("parcel light", *key) - 0.5)
    light[np.minimum(_edge_distance(strip, width), _edge_distance(along, length)) < 6] *= 0.72
    return np.asarray(colour * light[:, None])


def _forest(points: Points) -> np.ndarray:
    crowns = points.values("crowns", 22.0) + 0.6 * points.values("fine crowns", 13.0)
    stand = points.tone("stand", 700.0)
    leaves = (0.25 + 0.7 * points.greenness + 0.22 * stand).clip(0, 1)
    light = (1 + 0.24 * crowns + 0.12 * points.tone("canopy", 350.0)).clip(0.3, 2)
    return np.asarray(blend(_BARE_TREES, _LEAVES, leaves) * light[:, None])


def _grass(points: Points) -> np.ndarray:
    green = (points.greenness + 0.28 * points.tone("sward", 1100.0)).clip(0, 1)
    light = 1 + 0.035 * points.values("tufts", 24.0) + 0.07 * points.tone("pasture", 500.0)
    return np.asarray(blend(_DRY_GRASS, _MEADOW, green) * light[:, None])


def _shrub(points: Points) -> np.ndarray:
    ground = blend(_DRY_GRASS, _MEADOW, (points.greenness - 0.1 + 0.25 * points.tone("heath", 900.0)).clip(0, 1))
    ground = blend(ground, _SOIL, (0.2 + 0.2 * points.tone("bare spots", 400.0)).clip(0, 0.7))
    bushes = smooth_step(points.noise.values("bushes", points.x, points.y, 30.0), 0.15, 0.8)
    return blend(ground, _BUSH, bushes * np.float32(0.85) * seen_contrast(60, points.gsd_m))


def _wetland(points: Points) -> np.ndarray:
    reed = blend(_REED, _DRY_GRASS, (0.55 - 0.5 * points.greenness + 0.2 * points.tone("reed", 600.0)).clip(0, 0.9))
    reed *= (1 + 0.09 * points.values("stalks", 26.0))[:, None]
    pools = smooth_step(points.tone("pools", 160.0), 0.35, 0.7)
    channel = 1 - smooth_step(np.abs(points.noise.octaves("channel", points.x, points.y, 420.0, 2)), 0.08, 0.2)
    water = blend(_CLEAR_WATER, _TURBID_WATER, (0.5 + 0.3 * points.tone("silt", 800.0)).clip(0, 1))
    return blend(reed, water, np.maximum(pools, channel))


def _water(points: Points) -> np.ndarray:
    silt = (0.4 + 0.35 * points.tone("silt", 1500.0)).clip(0, 1)
    light = 1 + 0.025 * points.values("ripples", 20.0)
    return np.asarray(blend(_CLEAR_WATER, _TURBID_WATER, silt) * light[:, None])


def _sea(points: Points) -> np.ndarray:
    silt = (0.2 + 0.25 * points.tone("plume", 2500.0)).clip(0, 1)
    swell = np.sin((points.x + 0.4 * points.y) * np.float32(2 * math.pi / 130) + points.tone("swell", 900.0))
    light = 1 + 0.03 * swell + 0.03 * points.values("ripples", 20.0)
    return np.asarray(blend(_SEA_WATER, _TURBID_WATER, silt) * light[:, None])


def _tundra(points: Points) -> np.ndarray:
    cover = blend(_MOSS, _LICHEN, (0.65 - 0.4 * points.greenness + 0.25 * points.tone("moss", 900.0)).clip(0, 1))
    edge = _polygon_edges(points, 85.0)
    light = 1 - 0.34 * edge * seen_contrast(60, points.gsd_m) + 0.08 * points.values("hummocks", 22.0)
    ponds = smooth_step(points.tone("ponds", 130.0), 1.35, 1.6)
    return blend(cover * light[:, None], _CLEAR_WATER, ponds)


def _polygon_edges(points: Points, size_m: float) -> np.ndarray:
    """Frost polygons: 1 on the edges between the cells of scattered points, 0 inside."""
    u, v = points.x * np.float32(1 / size_m), points.y * np.float32(1 / size_m)
    column, row = np.floor(u), np.floor(v)
    nearest = np.full(u.shape, 9.0, dtype=np.float32)
    second = nearest.copy()
    for step_i in (-1, 0, 1):
        for step_j in (-1, 0, 1):
            i, j = column + step_i, row + step_j
            at_u, at_v = i + points.noise.per_cell("polygon x", i, j), j + points.noise.per_cell("polygon y", i, j)
            distance = np.hypot(u - at_u, v - at_v)
            second = np.minimum(second, np.maximum(nearest, distance))
            nearest = np.minimum(nearest, distance)
    return 1 - smooth_step(second - nearest, 0.04, 0.22)


def _artificial(points: Points) -> np.ndarray:
    u, v, column, row = _turned(points, "town", 1600.0)
    street = np.minimum(_edge_distance(u / 120, 120), _edge_distance(v / 88, 88))
    i, j = np.floor(u / 30) + 11 * column, np.floor(v / 22) + 17 * row
    kind, light = points.noise.per_cell("roof", i, j), points.noise.per_cell("roof light", i, j)
    works = points.noise.per_cell("quarter", np.floor(u / 360) + column, np.floor(v / 264) + row) < 0.25
    large = points.noise.per_cell("hall", np.floor(u / 120) + column, np.floor(v / 88) + row)
    colour = blend(_ROCK, _CONCRETE, light)
    colour[kind < 0.34] = _TILE_ROOF
    colour[kind > 0.90] = _BRIGHT_ROOF
    colour[works] = blend(_CONCRETE, _BRIGHT_ROOF, large)[works] * 0.9
    garden = (kind > 0.34) & (kind < 0.62) & ~works
    colour[garden] = blend(_DRY_GRASS, _LEAVES, np.full(int(garden.sum()), 0.3 + 0.5 * points.greenness, np.float32))
    colour[street < 8] = _ASPHALT
    dust = (0.1 + 0.1 * points.tone("dust", 900.0)).clip(0, 0.4)
    return np.asarray(blend(colour, _SOIL, dust) * (0.85 + 0.3 * light)[:, None])


def _bare(points: Points) -> np.ndarray:
    sandy = (0.45 + 0.35 * points.tone("sand", 1500.0)).clip(0, 1)
    colour = blend(_ROCK, _SAND, sandy)
    wind = points.noise.octaves("dune bend", points.x, points.y, 500.0, 2)
    crest = np.sin((0.8 * points.x + 0.6 * points.y) * np.float32(2 * math.pi / 115) + np.float32(2.2) * wind)
    rubble = points.values("rubble", 18.0) + points.tone("outcrop", 160.0)
    return np.asarray(colour * (1 + 0.17 * sandy * crest + 0.13 * (1 - sandy) * rubble)[:, None])


def _snow(points: Points) -> np.ndarray:
    crust = np.sin((points.x - 0.7 * points.y) * np.float32(2 * math.pi / 260) + points.tone("wind", 500.0))
    rock = smooth_step(points.tone("ridge", 320.0), 1.3, 1.9)
    light = 1 + 0.035 * crust + 0.09 * points.tone("firn", 600.0)
    return blend(SNOW_COVER * light[:, None], _ROCK, rock * np.float32(0.8))


_PAINTERS: Mapping[int, Callable[[Points], np.ndarray]] = {
    terrain.CULTIVATED: _cultivated,
    terrain.FOREST: _forest,
    terrain.GRASS: _grass,
    terrain.SHRUB: _shrub,
    terrain.WETLAND: _wetland,
    terrain.WATER: _water,
    terrain.TUNDRA: _tundra,
    terrain.ARTIFICIAL: _artificial,
    terrain.BARE: _bare,
    terrain.SNOW: _snow,
    terrain.SEA: _sea,
}
