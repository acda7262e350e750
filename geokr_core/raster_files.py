"""The one door through which raster files are opened: only listed formats, chosen by the file's ending.

Formats that refer to other files or addresses (VRT, WMS, …) are not among them, whatever a file says of itself, so
that a data folder cannot make this process read elsewhere.
"""

from pathlib import Path

import rasterio
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetReader

DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".jp2": "JP2OpenJPEG", ".img": "HFA"}
"""GDAL driver by file ending."""


def open_raster(path: Path) -> DatasetReader:
    """Open a raster for reading; use it in ``with``.

    Raises:
        RasterioIOError: the file's ending is not listed, or the file is missing or not of that format.
    """
    driver = DRIVERS.get(path.suffix.lower())
    if driver is None:
        raise RasterioIOError(f"{path.name}: ending {path.suffix!r} found, expected one of {', '.join(DRIVERS)}")
    return rasterio.open(path, driver=driver)
