"""Small pictures that let a person check at a glance: chips with their land cover, footprints, quick looks.

Everything returns PNG bytes that depend on the data alone (no dates inside), small enough for the Dagster event log.
"""

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from geokr_core.levir_kr import LevirKR

_MAX_BYTES = 200_000
_BAR_PX = 10


def png(pixels: np.ndarray) -> bytes:
    """Encode an image.

    Args:
        pixels: uint8 (H, W, 3) or (H, W).

    Returns:
        PNG bytes; halved in size as often as needed to stay below 200 kB.
    """
    image = Image.fromarray(pixels)
    while True:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", optimize=True)
        if buffer.tell() <= _MAX_BYTES or min(image.size) < 64:
            return buffer.getvalue()
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def as_rgb(chips: np.ndarray, bands: tuple[str, ...]) -> np.ndarray:
    """The red, green and blue channels of chips, or the first channel thrice where there are none.

    Args:
        chips: uint8 (..., C).
        bands: common band names in channel order.

    Returns:
        uint8 (..., 3).
    """
    if {"red", "green", "blue"} <= set(bands):
        return chips[..., [bands.index(name) for name in ("red", "green", "blue")]]
    return np.repeat(chips[..., :1], 3, axis=-1)


def proportion_bar(
    proportions: np.ndarray, colours: tuple[str, ...], width_px: int, height_px: int = _BAR_PX
) -> np.ndarray:
    """A horizontal bar whose parts are as long as the proportions.

    Args:
        proportions: float (K,), summing to 1.
        colours: ``#RRGGBB`` of each class.
        width_px: length of the bar.
        height_px: thickness of the bar.

    Returns:
        uint8 (height_px, width_px, 3).
    """
    edges = np.round(np.cumsum(proportions) * width_px).astype(int)
    index = np.searchsorted(edges, np.arange(width_px), side="right").clip(0, len(colours) - 1)
    palette = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colours], dtype=np.uint8)
    return np.repeat(palette[index][None], height_px, axis=0)


def mosaic(tiles: np.ndarray, columns: int, gap_px: int = 2) -> np.ndarray:
    """Tiles side by side on white.

    Args:
        tiles: uint8 (N, H, W, 3).
        columns: tiles in a row.
        gap_px: white space between tiles.

    Returns:
        uint8 (H', W', 3).
    """
    num, height, width, _ = tiles.shape
    rows = -(-num // columns)
    out = np.full((rows * (height + gap_px), columns * (width + gap_px), 3), 255, dtype=np.uint8)
    for k, tile in enumerate(tiles):
        top, left = (k // columns) * (height + gap_px), (k % columns) * (width + gap_px)
        out[top : top + height, left : left + width] = tile
    return out


def chips_with_land_cover(dataset: "LevirKR", num_chips: int, columns: int = 8, seed: int = 0) -> bytes:
    """A panel of chips drawn at random, under each a bar of its land-cover proportions.

    Returns:
        PNG bytes.
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(dataset.catalogue), size=min(num_chips, len(dataset.catalogue)), replace=False))
    return panel(dataset.images(rows), dataset.proportions[rows], dataset.bands, dataset.class_colours, columns)


def panel(
    chips: np.ndarray, proportions: np.ndarray, bands: tuple[str, ...], colours: tuple[str, ...], columns: int = 8
) -> bytes:
    """Chips in rows, under each a bar of its proportions.

    Args:
        chips: uint8 (N, H, W, C).
        proportions: float (N, K); a row of zeros gives an empty (black) bar.
        bands: common band names in channel order.
        colours: ``#RRGGBB`` of each class.
        columns: chips in a row.

    Returns:
        PNG bytes.
    """
    rgb = as_rgb(chips, bands)
    bars = np.stack([proportion_bar(p, colours, rgb.shape[2]) for p in proportions])
    return png(mosaic(np.concatenate([rgb, bars], axis=1), columns))
