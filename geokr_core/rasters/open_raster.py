"""The one door through which raster files are opened: listed formats only, one file a raster, bounded memory.

A file is taken for what its ending says, is read alone (no file beside it and no address has a say), and is refused
where its header asks for more memory than an honest file of its length could need. What the numbers of a header mean
is not judged here: `Grid.fault` and `scenes` do that.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rasterio
from pyproj.exceptions import ProjError
from rasterio._err import CPLE_BaseError
from rasterio.enums import Interleaving
from rasterio.errors import CRSError, RasterioError, RasterioIOError, RPCError
from rasterio.io import DatasetReader
from shapely.errors import ShapelyError

from geokr_core.rasters.tiff_index import TiffIndex, TiffIndexError, read_index

DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".jp2": "JP2OpenJPEG", ".img": "HFA", ".msk": "GTiff"}
"""GDAL driver by file ending. Formats that name other files or addresses (VRT, WMS, …) are not among them."""

# Decoded blocks that GDAL may keep: a row of blocks as large as they may be. The default, a share of the machine's
# memory, would let every process of a machine take that share. Set once, before GDAL looks: as a setting of each opened
# raster it would empty the cache each time, and reading would take more than twice as long.
os.environ.setdefault("GDAL_CACHEMAX", "256")

SURROUNDINGS: Mapping[str, str | int] = {
    # The md5 of a scene names its one file: what lies beside it (.aux.xml, .ovr, .msk, .tfw, .rpb) must not be able to
    # move it, mask it or change its pixels unseen. GDAL is told that the folder is empty, and not to look by name.
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_GEOREF_SOURCES": "INTERNAL",
    # Set in a user's environment, this one turns unreadable blocks into black pixels without a word.
    "GTIFF_IGNORE_READ_ERRORS": "NO",
    # Whatever a file makes GDAL ask for, no address ends in this.
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".no-network",
}
"""GDAL's settings while a raster is open. They win over the environment's."""

MAX_BANDS = 4096
"""More bands are refused: GDAL keeps an object for each, and no optical sensor has as many."""

MAX_BLOCK_BYTES = 256 << 20
"""Largest decoded strip or tile of all bands stored together. GDAL decodes a block as a whole."""

MAX_BLOCK_ROW_BYTES = 256 << 20
"""Largest row of blocks of a scene: a line of chips must fit the cache, or each block is decoded again for each line."""

MAX_SIDE_PX = 1 << 18
"""Longest side of a scene: lines are held in memory at full width."""

MAX_SCENE_PIXELS = 1 << 32
"""Most pixels of a scene."""

_MAX_EXPANSION = 2000
"""Unpacked over stored bytes. Deflate reaches 1032 on constant pixels (zlib, "Technical Details")."""

_ALWAYS_UNPACKED_BYTES = 1 << 30
"""Up to here a file may expand as it likes."""


RASTER_ERRORS = (RasterioError, CPLE_BaseError, CRSError, RPCError, UnicodeDecodeError)
"""What rasterio raises over a bad file; not all of it is a `RasterioError`."""

FILE_ERRORS = (
    *RASTER_ERRORS,
    ProjError,
    ShapelyError,
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
)
"""Everything that rasterio, numpy, pyproj, shapely and Python raise over what a file holds: numbers out of range, kinds of
pixels that numpy does not know, text that is not text. Catch it around one file and say which; let this project's own
refusals (`GeoKRError`) pass first, since some of them are `ValueError`."""


@contextmanager
def open_raster(path: Path) -> Iterator[DatasetReader]:
    """Open a raster for reading, alone and under `SURROUNDINGS`, for the length of a ``with`` block.

    Args:
        path: a file with a listed ending. Symbolic links are followed: who may place one may place its target.

    Yields:
        The open dataset.

    Raises:
        RasterioIOError: the ending is not listed, there is no such regular file, it is not of that format, refers to
            other files, declares an impossible size, or GDAL fails on it inside the block.
    """
    with surroundings(path), opened_raster(path) as source:
        yield source


@contextmanager
def surroundings(path: Path) -> Iterator[None]:
    """`SURROUNDINGS` for the length of a ``with`` block that opens or reads a raster.

    Args:
        path: the raster, for messages.

    Raises:
        RasterioIOError: GDAL fails inside the block.
    """
    with rasterio.Env(**SURROUNDINGS):
        try:
            yield
        except RASTER_ERRORS as error:
            if isinstance(error, RasterioError):
                raise
            raise RasterioIOError(f"{path.name}: {cause_of(error)}") from error


def opened_raster(path: Path) -> DatasetReader:
    """A raster, open until the caller closes it, which may be in another block of `surroundings` than it was opened in.

    Args:
        path: as for `open_raster`, which is the way to a raster that is read once.

    Raises:
        RasterioIOError: as by `open_raster`.
    """
    driver = DRIVERS.get(path.suffix.lower())
    if driver is None:
        raise RasterioIOError(f"{path.name}: ending {path.suffix!r} found, expected one of {', '.join(DRIVERS)}")
    if not path.is_file():
        raise RasterioIOError(f"{path}: no such regular file")
    # Absolute: a relative name such as `GTIFF_DIR:2:a.tif` would be an order to GDAL.
    source = rasterio.open(path.absolute(), driver=driver)
    try:
        _refuse_company(source, path)
        _refuse_impossible(source, path)
    except BaseException:
        source.close()
        raise
    return source


def cause_of(error: BaseException) -> str:
    """What GDAL said first, without the folder of the file: rasterio's own words often only point to it."""
    while isinstance(error.__cause__, CPLE_BaseError):
        error = error.__cause__
    said = re.sub(r"(/[^/\s:'\"]+)+/", "", str(error))
    # Only libraries that read files write sentences; `KeyError: 3` says nothing without its kind.
    return (
        said
        if said and isinstance(error, (*RASTER_ERRORS, OSError))
        else f"{type(error).__name__}: {said}".rstrip(": ")
    )


def unopened(name: str, error: Exception) -> str:
    """Why a file was not opened, and what to do, in one sentence."""
    reason = cause_of(error).removeprefix(f"{name}: ")
    if isinstance(error.__cause__, CPLE_BaseError):
        return f"{name}: cannot be opened: its header is damaged or of another format ({reason}). Fetch the file again."
    return f"{name}: cannot be opened: {reason}"


def _refuse_company(source: DatasetReader, path: Path) -> None:
    others = [name for name in source.files if Path(name) != path.absolute()]
    if others:
        raise RasterioIOError(
            f"{path.name}: refers to {Path(others[0]).name}; expected one file that holds everything. "
            "Copy it into one file, e.g. with gdal_translate."
        )


def _refuse_impossible(source: DatasetReader, path: Path) -> None:
    """Refuse what no honest file of this length declares, before anything is allocated for it."""
    if source.count > MAX_BANDS:
        raise RasterioIOError(f"{path.name}: {source.count} bands declared, expected at most {MAX_BANDS}")
    block_bytes = _block_bytes(source)
    if block_bytes > MAX_BLOCK_BYTES:
        rows, columns = source.block_shapes[0]
        raise RasterioIOError(
            f"{path.name}: strips or tiles of {rows} x {columns} pixels, {block_bytes >> 20} MiB each, expected at most "
            f"{MAX_BLOCK_BYTES >> 20} MiB. Write it with smaller tiles, e.g. `gdal_translate -co TILED=YES`."
        )
    if source.driver == "GTiff":
        _tiff_index(path)


def _tiff_index(path: Path) -> TiffIndex:
    try:
        return read_index(path)
    except TiffIndexError as error:
        raise RasterioIOError(f"{path.name}: {error}") from error


def refuse_flood(source: DatasetReader, path: Path) -> None:
    """Refuse a scene that cannot be read line by line within bounded memory, or that unpacks without measure.

    Sparse files are legal: blocks that are not there count for nothing where the file says which value is no data.

    Args:
        source: the open scene.
        path: its file.

    Raises:
        RasterioIOError: a side, the number of pixels or a row of blocks is too large, or few bytes unpack to very many.
    """
    height, width = source.shape
    if max(height, width) > MAX_SIDE_PX or height * width > MAX_SCENE_PIXELS:
        raise RasterioIOError(
            f"{path.name}: {height} x {width} pixels declared, expected at most {MAX_SIDE_PX} a side and "
            f"{MAX_SCENE_PIXELS / 1e9:.1f} thousand million in all. If that is its true size, cut it into several scenes."
        )
    _, columns = source.block_shapes[0]
    row_bytes = -(-width // columns) * _block_bytes(source)
    if row_bytes > MAX_BLOCK_ROW_BYTES:
        raise RasterioIOError(
            f"{path.name}: a row of its strips or tiles unpacks to {row_bytes >> 20} MiB, expected at most "
            f"{MAX_BLOCK_ROW_BYTES >> 20} MiB. Write it with smaller tiles, e.g. `gdal_translate -co TILED=YES`."
        )
    allowed = max(_ALWAYS_UNPACKED_BYTES, _MAX_EXPANSION * path.stat().st_size)
    if _unpacked_bytes(source, path) > allowed:
        raise RasterioIOError(
            f"{path.name}: {path.stat().st_size} bytes would unpack to {height} x {width} pixels of {source.count} bands, "
            f"more than {_MAX_EXPANSION} times as much: a decompression bomb, or a sparse file that declares no `nodata`. "
            "Declare its nodata value, or crop it to its data."
        )


def _unpacked_bytes(source: DatasetReader, path: Path) -> int:
    """Bytes that the scene unpacks to; strips and tiles that are not stored count only where they become data."""
    if source.driver == "GTiff" and source.nodata is not None:
        return _tiff_index(path).num_stored * _block_bytes(source)
    rows, columns = source.block_shapes[0]
    planes = source.count if _is_banded(source) else 1
    return int(-(-source.height // rows) * -(-source.width // columns) * planes * _block_bytes(source))


def _is_banded(source: DatasetReader) -> bool:
    return source.interleaving in (None, Interleaving.band)


def _block_bytes(source: DatasetReader) -> int:
    """Bytes that GDAL unpacks at a time."""
    rows, columns = source.block_shapes[0]
    # Complex pixels have the longest items; numpy does not know all their names.
    item = max(16 if "complex" in kind else np.dtype(kind).itemsize for kind in set(source.dtypes))
    return int(rows * columns * item * (1 if _is_banded(source) else source.count))
