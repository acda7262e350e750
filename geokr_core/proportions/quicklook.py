"""A scene and the land cover of its ground on one grid: for looking, and for asking whether the two are aligned.

The land cover is resampled here, by nearest neighbour, onto the scene's own grid. That is good enough for eyes and for
`alignment`, and deliberately another way than the one by which labels are made: no label ever comes from here.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from affine import Affine
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from geokr_core.errors import LandCoverError
from geokr_core.land_cover.product import LandCover, Product, Tile, open_land_cover, slots_of
from geokr_core.land_cover.slots import UNKNOWN
from geokr_core.pictures.images import as_rgb, beside_legend, paint
from geokr_core.rasters.grid import Grid
from geokr_core.rasters.open_raster import RASTER_ERRORS, cause_of, open_raster
from geokr_core.scenes.reader import open_scene
from geokr_core.scenes.scene import Scene

_SIDE_PX = 300
"""Longer side of each of the two images of a picture: legible, and together below 200 kB in most cases."""

_TOLERANCE_PX = 0.001
"""How far GDAL may interpolate a coordinate instead of computing it; by default it is an eighth of a pixel."""


@dataclass(frozen=True)
class QuickLook:
    """A part of a scene with its land cover.

    Attributes:
        pixels: as stored, (C, H, W).
        valid: bool (H, W), where every band holds data.
        slots: uint8 (H, W): class index of the common legend, `UNKNOWN`, `SEA` or `EXCLUDED`, nearest to each pixel's centre.
        grid: where the pixels lie.
    """

    pixels: np.ndarray
    valid: np.ndarray
    slots: np.ndarray
    grid: Grid


def look(
    folder: Path,
    scene: Scene,
    bands: tuple[str, ...],
    source: Path,
    product: Product,
    *,
    row: int = 0,
    height: int | None = None,
    decimation: int = 1,
) -> QuickLook:
    """Read full-width lines of a scene, and the land cover nearest to each pixel.

    Args:
        folder: the scene folder.
        scene: from the inventory.
        bands: common names of the bands wanted.
        source: the land-cover folder.
        product: whose tiles are asked.
        year: edition of the tiles.
        row: first line.
        height: number of lines; None means all from ``row``.
        decimation: read every n-th pixel and line only.

    Raises:
        SceneRefusedError: the scene cannot be read.
        LandCoverError: a tile cannot be read.
        UnknownLegendCodeError: a tile holds a code that its legend does not list.
    """
    height = scene.grid.height - row if height is None else height
    with open_scene(folder, scene, list(bands)) as reader:
        pixels, valid = reader.read(row, height, decimation=decimation)
    lines, columns = valid.shape
    part = scene.grid.window(row, 0, height, scene.grid.width)
    # Decimation rounds the number of pixels down, so a pixel is a little larger than ``decimation``.
    scaled = part.transform @ Affine.scale(scene.grid.width / columns, height / lines)
    grid = Grid(part.crs, scaled, lines, columns)
    year = product.edition(scene.acquired)
    return QuickLook(pixels, valid, land_cover_on(grid, source, product, year), grid)


def land_cover_on(grid: Grid, source: Path, product: Product, year: int) -> np.ndarray:
    """The land cover nearest to each pixel's centre of a grid.

    Where tiles overlap, the one whose centre is nearest to the grid's centre has the first word.

    Args:
        grid: any grid, also a rotated one or one across the antimeridian.
        source: the land-cover folder.
        product: whose tiles are asked.
        year: edition of the tiles.

    Returns:
        uint8 (H, W): class index of the common legend, `UNKNOWN`, `SEA` or `EXCLUDED`.

    Raises:
        LandCoverError: a tile cannot be read.
        UnknownLegendCodeError: a tile holds a code that its legend does not list.
    """
    slots = np.full((grid.height, grid.width), UNKNOWN, dtype=np.uint8)
    centre = grid.footprint().centroid
    for tile in sorted(product.tiles_in(year), key=lambda tile: tile.footprint.centroid.distance(centre)):
        # A whole turn aside: the other half of a grid across the antimeridian.
        for turn_deg in (0.0, 360.0, -360.0) if tile.grid.crs.is_geographic else (0.0,):
            if not (slots == UNKNOWN).any():
                return slots
            if _overlap(grid, tile, turn_deg):
                # A projected grid asks for longitudes within half a turn; one in degrees for those it is written in.
                found = _sample(grid, source, tile, product, turn_deg if grid.crs.is_geographic else 0.0)
                slots = np.where(slots == UNKNOWN, found, slots)
    return slots


def _overlap(grid: Grid, tile: Tile, turn_deg: float) -> bool:
    west, south, east, north = tile.footprint.bounds
    left, bottom, right, top = grid.footprint().bounds
    return bool(west + turn_deg < right and east + turn_deg > left and south < top and north > bottom)


def _sample(grid: Grid, source: Path, tile: Tile, product: Product, turn_deg: float) -> np.ndarray:
    try:
        with (
            open_raster(source / tile.file) as opened,
            WarpedVRT(
                opened,
                src_crs=tile.grid.crs,
                src_transform=Affine.translation(turn_deg, 0.0) @ tile.grid.transform,
                crs=grid.crs,
                transform=grid.transform,
                width=grid.width,
                height=grid.height,
                resampling=Resampling.nearest,
                add_alpha=True,
                tolerance=_TOLERANCE_PX,
            ) as warped,
        ):
            codes, covered = warped.read(tile.band), warped.read(warped.count) > 0
    except RASTER_ERRORS as error:
        raise LandCoverError(f"{source / tile.file}: unreadable: {cause_of(error)}. Fetch the tile again.") from error
    slots = np.full(codes.shape, UNKNOWN, dtype=np.uint8)
    slots[covered] = slots_of(codes[covered], tile, product)
    return slots


def scene_with_land_cover(folder: Path, scene: Scene, bands: tuple[str, ...], source: Path, index: LandCover) -> bytes:
    """A picture: the scene, decimated, and beside it the land cover of the same ground on the same pixels.

    Args:
        folder: the scene folder.
        scene: from the inventory.
        bands: bands of the chips; red, green and blue are shown where they are among them.
        source: the land-cover folder.
        index: products and legend.

    Returns:
        PNG bytes, at most 200 kB, with a legend of the classes that occur.

    Raises:
        SceneRefusedError, LandCoverError, UnknownLegendCodeError: as for `look`.
    """
    decimation = max(1, math.ceil(max(scene.grid.height, scene.grid.width) / _SIDE_PX))
    seen = look(folder, scene, bands, source, index.products[scene.land_cover], decimation=decimation)
    image = as_rgb(_to_bytes(seen), bands)
    image[~seen.valid] = 255
    classes, colours = index.legend.classes, index.legend.colours
    known = seen.slots[seen.slots < len(classes)]
    share = np.bincount(known, minlength=len(classes)) / max(1, seen.slots.size)
    entries = [(classes[k], colours[k], float(share[k])) for k in np.argsort(-share, kind="stable") if share[k] > 0]
    rest = float((seen.slots >= len(classes)).mean())
    entries += [("unknown, sea or excluded", "#FFFFFF", rest)] if rest > 0 else []
    return beside_legend([image, paint(seen.slots, colours)], entries)


def _to_bytes(seen: QuickLook) -> np.ndarray:
    """A stretch for the eye alone, between the 2nd and 98th percentile of each band; uint8 (H, W, C)."""
    pixels = np.where(seen.valid, seen.pixels, 0).astype(np.float32)
    if not seen.valid.any():
        return np.zeros((*seen.valid.shape, len(pixels)), dtype=np.uint8)
    low, high = np.percentile(pixels[:, seen.valid], [2, 98], axis=1)
    unit = (pixels - low[:, None, None]) / np.maximum(high - low, 1e-9)[:, None, None]
    return np.moveaxis(np.rint(unit.clip(0, 1) * 255).astype(np.uint8), 0, -1)


def picture_of(folder: Path, scene: Scene, bands: tuple[str, ...], source: Path, land_cover: Path) -> bytes:
    """`scene_with_land_cover` for an index that is still to be opened.

    Raises:
        MissingInputError: there is no index.
        SceneRefusedError, LandCoverError, UnknownLegendCodeError: as for `look`.
    """
    return scene_with_land_cover(folder, scene, bands, source, open_land_cover(land_cover))
