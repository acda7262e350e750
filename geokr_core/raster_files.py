"""The one door through which raster files are opened: only listed formats, chosen by the file's ending.

Formats that refer to other files or addresses (VRT, WMS, …) are not among them, whatever a file says of itself, so
that a data folder cannot make this process read elsewhere. The same holds for the mask and the overviews beside a file.
"""

import warnings
from pathlib import Path

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.io import DatasetReader

DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".jp2": "JP2OpenJPEG", ".img": "HFA"}
"""GDAL driver by file ending."""

_COMPANIONS = (".msk", ".ovr")
"""Rasters that GDAL opens of its own accord beside a file, in whatever format they are."""

_TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_raster(path: Path) -> DatasetReader:
    """Open a raster for reading; use it in ``with``.

    Raises:
        RasterioIOError: the file's ending is not listed, the file is missing or not of that format, or a mask or
            overview file beside it is no TIFF.
    """
    driver = DRIVERS.get(path.suffix.lower())
    if driver is None:
        raise RasterioIOError(f"{path.name}: ending {path.suffix!r} found, expected one of {', '.join(DRIVERS)}")
    for ending in _COMPANIONS:
        _check_companion(path.with_name(path.name + ending))
    with warnings.catch_warnings():
        # Scenes in sensor geometry have none on purpose; who needs one says so in words of his own.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path, driver=driver)


def _check_companion(path: Path) -> None:
    if not path.is_file():
        return
    with path.open("rb") as stream:
        if stream.read(4) not in _TIFF_MARKS:
            raise RasterioIOError(
                f"{path.name}: no TIFF; a mask or overview of another format is not opened. Remove it."
            )
