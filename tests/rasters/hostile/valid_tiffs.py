"""Small valid GeoTIFFs, one of each kind of file, and the scene and land cover beside them."""

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.rpc import RPC

SIDE_PX, CHIP_PX = 64, 32
BANDS = ("red", "green", "blue")
SCENE_PLACE = Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_500_000.0)
TILE_PLACE = Affine(30.0, 0.0, 499_000.0, 0.0, -30.0, 5_501_000.0)
UTM, TILE_CRS = "EPSG:32632", "EPSG:25832"


def _pixels(count: int, dtype: str) -> np.ndarray:
    rng = np.random.default_rng(len(dtype) + count)
    row, col = np.indices((SIDE_PX, SIDE_PX))
    base = np.stack([60 + 40 * k + row + col + rng.normal(0, 6, row.shape) for k in range(count)])
    if dtype == "uint8":
        return base.clip(1, 254).astype(np.uint8)
    return (base * 20).astype(dtype)


def _write(path: Path, count: int, dtype: str, options: dict[str, Any], extra: str) -> None:
    pixels = _pixels(count, dtype)
    place: dict[str, Any] = {"crs": CRS.from_user_input(UTM)}
    if extra == "gcps":
        corners = [(r, c, *(SCENE_PLACE @ (c, r))) for r, c in ((0, 0), (0, 64), (64, 0), (64, 64))]
        place["gcps"] = [GroundControlPoint(row=r, col=c, x=x, y=y) for r, c, x, y in corners]
    elif extra != "rpcs":
        place["transform"] = SCENE_PLACE
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver="GTiff", count=count, height=SIDE_PX, width=SIDE_PX, dtype=dtype, **place, **options
        ) as target,
    ):
        target.write(pixels)
        if extra == "mask":
            mask = np.full((SIDE_PX, SIDE_PX), 255, np.uint8)
            mask[40:, 40:] = 0
            target.write_mask(mask)
        if extra == "alpha":
            target.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
            target.write(np.full((SIDE_PX, SIDE_PX), 255, np.uint8), 4)
        if extra == "overviews":
            target.build_overviews([2, 4], Resampling.average)
        if extra == "tags":
            target.update_tags(NOTE="x" * 3000, AREA_OR_POINT="Area")
        if extra == "rpcs":
            line = [1.0] + [0.01 * k for k in range(19)]
            target.rpcs = RPC(
                height_off=100,
                height_scale=500,
                lat_off=49.6,
                lat_scale=0.1,
                long_off=9.0,
                long_scale=0.1,
                line_off=32,
                line_scale=32,
                samp_off=32,
                samp_scale=32,
                err_bias=1,
                err_rand=1,
                line_num_coeff=line,
                line_den_coeff=line,
                samp_num_coeff=line,
                samp_den_coeff=line,
            )


_TILED = {"tiled": True, "blockxsize": 32, "blockysize": 32}
SEEDS: dict[str, tuple[int, str, dict[str, Any], str]] = {
    "stripped": (3, "uint8", {"blockysize": 8}, ""),
    "tiled": (3, "uint8", _TILED, ""),
    "deflate": (3, "uint8", {**_TILED, "compress": "deflate"}, ""),
    "lzw_predictor": (3, "uint16", {**_TILED, "compress": "lzw", "predictor": 2}, ""),
    "zstd": (3, "int16", {"compress": "zstd", "blockysize": 16}, ""),
    "packbits": (3, "uint8", {"compress": "packbits", "blockysize": 16}, ""),
    "lerc": (3, "float32", {**_TILED, "compress": "lerc_deflate"}, ""),
    "jpeg": (3, "uint8", {**_TILED, "compress": "jpeg", "photometric": "ycbcr"}, ""),
    "jpeg_strips": (3, "uint8", {"compress": "jpeg", "blockysize": 16}, ""),
    "bigtiff": (3, "uint16", {**_TILED, "bigtiff": "yes", "compress": "deflate"}, ""),
    "float_predictor": (
        3,
        "float32",
        {**_TILED, "compress": "deflate", "predictor": 3, "nodata": -12345.678901234},
        "",
    ),
    "planar": (3, "uint16", {**_TILED, "interleave": "band", "compress": "deflate", "nodata": 65535}, ""),
    "mask": (3, "uint8", {**_TILED, "compress": "deflate"}, "mask"),
    "alpha": (4, "uint8", {**_TILED, "compress": "deflate"}, "alpha"),
    "overviews": (3, "uint8", {**_TILED, "compress": "deflate"}, "overviews"),
    "tags": (3, "uint8", {"blockysize": 64}, "tags"),
    "gcps": (3, "uint8", {**_TILED}, "gcps"),
    "rpcs": (3, "uint8", {**_TILED}, "rpcs"),
    "big_endian": (3, "uint16", {"endianness": "big", "blockysize": 16}, ""),
    "esri_citation": (3, "uint8", {"geotiff_keys_flavor": "esri_pe", "blockysize": 16}, ""),
}


def make_seeds(folder: Path) -> dict[str, bytes]:
    """Bytes of every seed by name."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = {}
    for name, (count, dtype, options, extra) in SEEDS.items():
        path = folder / f"{name}.tif"
        _write(path, count, dtype, options, extra)
        seeds[name] = path.read_bytes()
        for left in folder.iterdir():
            left.unlink()
    return seeds


def write_good_scene(path: Path) -> None:
    _write(path, 3, "uint8", {**_TILED, "compress": "deflate"}, "")


def write_land_cover(path: Path) -> None:
    """100 x 100 cells of 30 m around the scenes, in patches of five cells."""
    rng = np.random.default_rng(5)
    codes = np.array([10, 20, 30, 40, 50, 60, 80, 90], np.uint8)[rng.integers(0, 8, (20, 20))]
    codes = codes.repeat(5, axis=0).repeat(5, axis=1)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=1,
        height=100,
        width=100,
        dtype="uint8",
        crs=CRS.from_user_input(TILE_CRS),
        transform=TILE_PLACE,
        nodata=0,
        tiled=True,
        blockxsize=64,
        blockysize=64,
        compress="deflate",
    ) as target:
        target.write(codes, 1)
