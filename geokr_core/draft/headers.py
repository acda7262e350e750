"""What the header of a raster says, and a thin sample of its values: enough to guess what the file is."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from rasterio.enums import Resampling
from rasterio.warp import transform_bounds

from geokr_core.rasters.open_raster import DRIVERS, FILE_ERRORS, open_raster

Box = tuple[float, float, float, float]
"""West, south, east and north in degrees."""

_SAMPLE_PX = 1024


@dataclass(frozen=True)
class Header:
    """A raster as its header shows it.

    Attributes:
        path: relative to the folder it was looked for in.
        num_bands: its bands.
        kind: type of its values, e.g. ``uint8``.
        colours: what each band is tagged as.
        descriptions: what each band is described as; empty where it is not.
        place: CRS, transform and size as text: files of one scene share it.
        cell: side of a pixel in the units of its CRS.
        cell_m: the same in metres, or None without a projected CRS.
        box: where it lies, or None where that cannot be told.
        nodata: its declared nodata value, or None.
        colour_table: ``#RRGGBB`` by code, empty without one.
    """

    path: str
    num_bands: int
    kind: str
    colours: tuple[str, ...]
    descriptions: tuple[str, ...]
    place: str
    cell: float
    cell_m: float | None
    box: Box | None
    nodata: float | None
    colour_table: dict[int, str]

    @property
    def folder(self) -> str:
        """The folder that it lies in."""
        return PurePosixPath(self.path).parent.as_posix()

    @property
    def name(self) -> str:
        """Its file name."""
        return PurePosixPath(self.path).name


def is_raster(path: str) -> bool:
    """Whether a file may be a raster, by its ending."""
    ending = PurePosixPath(path).suffix.lower()
    return ending in DRIVERS and ending != ".msk"


def read_header(folder: Path, path: str) -> Header | None:
    """The header of a raster; None where it cannot be read."""
    try:
        with open_raster(folder / path) as source:
            return Header(
                path,
                source.count,
                source.dtypes[0],
                tuple(colour.name for colour in source.colorinterp),
                tuple(text or "" for text in source.descriptions),
                f"{source.crs} {tuple(source.transform)[:6]} {source.shape}",
                float(abs(source.transform.a)),
                float(abs(source.transform.a)) if source.crs is not None and source.crs.is_projected else None,
                _box(source),
                source.nodata,
                _colour_table(source),
            )
    except FILE_ERRORS:
        return None


def sample(folder: Path, header: Header) -> np.ndarray:
    """Values of a raster, thinned out to at most 1024 × 1024 pixels; empty where they cannot be read.

    Returns:
        (num_bands, H, W), of the file's type.
    """
    try:
        with open_raster(folder / header.path) as source:
            shape = (source.count, min(source.height, _SAMPLE_PX), min(source.width, _SAMPLE_PX))
            values: np.ndarray = source.read(out_shape=shape, resampling=Resampling.nearest)
            return values
    except FILE_ERRORS:
        return np.zeros((header.num_bands, 0, 0))


def _box(source: Any) -> Box | None:
    try:
        west, south, east, north = transform_bounds(source.crs, "EPSG:4326", *source.bounds)
    except FILE_ERRORS:
        return tuple(source.bounds) if source.crs is not None and source.crs.is_geographic else None
    return (west, south, east, north)


def _colour_table(source: Any) -> dict[int, str]:
    try:
        table = source.colormap(1)
    except ValueError:
        return {}
    return {code: "#{:02X}{:02X}{:02X}".format(*colour[:3]) for code, colour in table.items()}
