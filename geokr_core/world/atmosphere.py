"""What stands between the ground and the picture: light on slopes, seasonal snow, clouds and their shadows, haze.

Works on reflectance arrays (..., H, W, 4), blue, green, red, near infrared. Surfaces are in ``surface``; sensors and
files in ``scenes`` and ``tasks``.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from geokr_core.world.noise import Noise, smooth_step
from geokr_core.world.surface import SNOW_COVER, blend

CLEAR, CLOUD, THIN_CLOUD, SHADOW, SNOW = range(5)
"""Codes of the sky masks."""

_CLOUD = np.array([0.58, 0.57, 0.57, 0.56], dtype=np.float32)
_PATH = np.array([0.040, 0.024, 0.014, 0.006], dtype=np.float32)
"""Light scattered into the picture by a unit of haze: strongest in blue."""

_SHADOW_SHIFT_M = 420.0
"""How far on the ground a cloud's shadow lies from the cloud."""


@dataclass(frozen=True)
class Look:
    """Light and air of one acquisition.

    Attributes:
        greenness: 0 (winter, drought) to 1 (growing season).
        sun_azimuth_deg: from north, clockwise.
        light: gain on the reflectance, 1 = overhead sun.
        tint: further gain a band.
        haze: units of scattered light, 0 (clear) to about 2.
        cloudiness: 0 (no cloud) to 1 (half the sky).
        snow_height: height in standard deviations above which snow of the season lies; 9 where there is none.
    """

    greenness: float = 0.8
    sun_azimuth_deg: float = 150.0
    light: float = 1.0
    tint: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    haze: float = 0.5
    cloudiness: float = 0.0
    snow_height: float = 9.0


def lit(reflectance: np.ndarray, height: np.ndarray, gsd_m: float, relief: float, sun_azimuth_deg: float) -> np.ndarray:
    """Shade the slopes.

    Args:
        reflectance: float32 (..., H, W, 4).
        height: float32 (..., H, W), standard deviations.
        gsd_m: side of a pixel, metres.
        relief: strength of the shading.
        sun_azimuth_deg: from north, clockwise; rows run south.

    Returns:
        float32 (..., H, W, 4).
    """
    south, east = np.gradient(height, gsd_m * 0.002, axis=(-2, -1))  # slope per 500 m
    azimuth = math.radians(sun_azimuth_deg)
    towards_sun = -(east * math.sin(azimuth) - south * math.cos(azimuth))
    return np.asarray(reflectance * (1 + relief * 0.35 * np.tanh(towards_sun))[..., None].astype(np.float32))


def snowed(
    reflectance: np.ndarray, height: np.ndarray, noise: Noise, x: np.ndarray, y: np.ndarray, snow_height: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lay the snow of the season above a height.

    Returns:
        Reflectance float32 (..., H, W, 4), and where snow covers most of a pixel, bool (..., H, W).
    """
    if snow_height > 5:
        return reflectance, np.zeros(height.shape, dtype=bool)
    depth = smooth_step(height + 0.3 * noise.octaves("drift", x, y, 300.0, 3), snow_height, snow_height + 0.5)
    return blend(reflectance, SNOW_COVER, depth * np.float32(0.92)), depth > 0.5


def clouded(
    reflectance: np.ndarray, noise: Noise, x: np.ndarray, y: np.ndarray, look: Look
) -> tuple[np.ndarray, np.ndarray]:
    """Draw clouds, and shadows away from the sun.

    Returns:
        Reflectance float32 (..., H, W, 4), and the sky mask uint8 (..., H, W) of `CLEAR`, `CLOUD`, `THIN_CLOUD` and
        `SHADOW`.
    """
    mask = np.full(x.shape, CLEAR, dtype=np.uint8)
    if look.cloudiness <= 0:
        return reflectance, mask
    azimuth = math.radians(look.sun_azimuth_deg)
    shift_x = np.float32(_SHADOW_SHIFT_M * math.sin(azimuth))
    shift_y = np.float32(_SHADOW_SHIFT_M * math.cos(azimuth))
    over = _cloud_depth(noise, x, y, look.cloudiness)
    towards_sun = _cloud_depth(noise, x + shift_x, y + shift_y, look.cloudiness)
    shade = np.float32(0.6) * towards_sun * (1 - over)
    out = blend(reflectance * (1 - shade)[..., None], _CLOUD, over * np.float32(0.97))
    mask[shade > 0.2] = SHADOW
    mask[over > 0.12] = THIN_CLOUD
    mask[over > 0.6] = CLOUD
    return out, mask


def _cloud_depth(noise: Noise, x: np.ndarray, y: np.ndarray, cloudiness: float) -> np.ndarray:
    thickness = noise.octaves("cloud", x, y, 1800.0, 6)
    low = 2.0 - 2.0 * cloudiness
    return smooth_step(thickness, low, low + 0.9)


def through_air(reflectance: np.ndarray, look: Look) -> np.ndarray:
    """Apply the light, the tint and the haze of an acquisition, then the blur of the optics.

    Returns:
        float32 (..., H, W, 4), not clipped.
    """
    tint = np.array(look.tint, dtype=np.float32) * np.float32(look.light)
    out = reflectance * tint * np.float32(1 - 0.1 * look.haze) + _PATH * np.float32(look.haze)
    sigma = [0.0] * (out.ndim - 3) + [0.45, 0.45, 0.0]
    return np.asarray(ndimage.gaussian_filter(out, sigma))
